"""The manifest: from a text that a person wrote to an `AppSpec`, or to all of its mistakes.

A manifest is read in three steps, and the mistakes of all three are reported together, in the order
of the text: YAML with positions (`positions`), the shape of each part (`shape`),
and what spans parts (`rules`, `monitoring_rules`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bedstone.errors import InvalidError, NotFoundError, Position
from bedstone.model.monitoring_rules import check_monitoring
from bedstone.model.positions import (
    MAX_BYTES,
    Document,
    ManifestError,
    Problem,
    parse_location,
    read_document,
)
from bedstone.model.rules import check_files, check_rules
from bedstone.model.shape import check_shape
from bedstone.model.spec import AppSpec

MANIFEST_NAME: Final = "bedstone.yaml"


@dataclass(frozen=True)
class Manifest:
    """A manifest without mistakes.

    Attributes:
        spec: what it declares.
        file: what messages call it.
        root: its directory, absolute; workloads' paths are relative to it.
    """

    spec: AppSpec
    file: str
    root: Path
    document: Document = field(repr=False, compare=False)

    def position(self, subject: str) -> Position:
        """Where a part is, such as `workloads.risk.uses[0]`, or what would contain it."""
        return self.document.position(parse_location(subject))


def load_manifest(path: Path, *, environ: Mapping[str, str] | None = None) -> Manifest:
    """Read a manifest and check it against the files around it.

    Args:
        path: the manifest, or the directory of a `bedstone.yaml`.
        environ: the variables that `${env.NAME}` may use; None leaves them unchecked.

    Raises:
        ManifestError: it has mistakes.
        NotFoundError: there is no such file.
        InvalidError: it cannot be read.
    """
    if path.is_dir():
        path /= MANIFEST_NAME
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"there is no manifest at {path}", hint="start one with `bedstone init`"
        ) from error
    except OSError as error:
        raise InvalidError(
            f"the manifest {path} cannot be read: {error.strerror}",
            hint="make it a file that you may read",
        ) from error
    return parse_manifest(
        content, str(path), root=path.resolve().parent, environ=environ, files=True
    )


def parse_manifest(
    text: str | bytes,
    file: str = MANIFEST_NAME,
    *,
    root: Path | None = None,
    environ: Mapping[str, str] | None = None,
    files: bool = False,
) -> Manifest:
    """Read a manifest's text.

    Args:
        text: the text; bytes are UTF-8.
        file: what messages call it.
        root: its directory; default: the current one.
        environ: the variables that `${env.NAME}` may use; None leaves them unchecked.
        files: also check that the directories it names exist below `root`.

    Raises:
        ManifestError: it has mistakes.
    """
    root = root or Path.cwd()
    document = read_document(text, file)
    spec, problems = check_shape(document)
    problems += check_rules(document, environ)
    problems += check_monitoring(document, environ)
    if files:
        problems += check_files(document, root)
    if spec is None or problems:
        raise ManifestError(_ordered(problems))
    return Manifest(spec, file, root, document)


def _ordered(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """In the order of the text, each once."""
    unique = dict.fromkeys(problems)
    return tuple(sorted(unique, key=lambda p: (p.position.line, p.position.column)))
