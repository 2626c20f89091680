"""Manifests and what is read from them, side by side.

`NAME.yaml` stands with `NAME.json` (what it declares) or `NAME.txt` (its mistakes).
`UPDATE_GOLDEN=1` writes what is read now; review the diff.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bedstone.model.manifest import parse_manifest
from bedstone.model.positions import ManifestError
from bedstone.model.schema import json_schema

FOLDER = Path(__file__).parent / "manifest"


def compare(file: Path, text: str) -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize("manifest", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_manifest_reads_as_recorded(manifest: Path) -> None:
    try:
        spec = parse_manifest(manifest.read_bytes(), manifest.name, environ={}).spec
    except ManifestError as error:
        compare(manifest.with_suffix(".txt"), f"{error}\n")
        assert not manifest.with_suffix(".json").exists()
    else:
        text = json.dumps(spec.model_dump(mode="json", exclude_defaults=True), indent=2)
        compare(manifest.with_suffix(".json"), f"{text}\n")
        assert not manifest.with_suffix(".txt").exists()


def test_the_published_schema_is_as_recorded() -> None:
    compare(FOLDER / "schema.json", json.dumps(json_schema(), indent=2) + "\n")
