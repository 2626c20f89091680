"""The bank over three databases, in every mode, while a killer is about: see `tests/chaos`."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 40

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one run counted; the whole of what it said is shown when it failed."""
    file = tmp_path_factory.mktemp("chaos") / "numbers.json"
    seed = random.SystemRandom().randrange(10**6)
    command = [sys.executable, "-m", "tests.chaos", "--seconds", str(SECONDS), "--seed", str(seed)]
    run = subprocess.run(
        [*command, "--output", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert run.returncode == 0, f"seed {seed}\n{run.stdout}\n{run.stderr}"
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_nothing_is_lost_made_or_left(numbers: dict[str, Any]) -> None:
    assert numbers["wrong"] == 0
    assert len(numbers["deeds"]) > 5, "too few were killed to show anything"
    assert numbers["taken over"] > 0, "no transaction outlived its coordinator"
    assert all(told.get("done", 0) > 0 for told in numbers["told"].values()), numbers["told"]


def test_mariadb_takes_part(numbers: dict[str, Any]) -> None:
    if numbers["without"]:
        pytest.skip(numbers["without"])
    assert "mary" in numbers["banks"]
    assert numbers["reads"]["mary audited"] > 0
