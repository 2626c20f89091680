"""Every driver of boxes keeps what boxes promise, and withstands what its boxes try."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bedstone.errors import UnavailableError
from bedstone.sandbox.boxes import KIND, Boxes
from bedstone.testing.box_checks import CHECKS
from bedstone.testing.box_escapes import CHECKS as ESCAPES
from bedstone.testing.box_links import CHECKS as LINKS
from bedstone.testing.box_programs import make_root, supported
from bedstone.testing.boxes import run_check

DRIVERS = ("container", "gvisor")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that the users of boxes can pass through; pytest's own are closed."""
    why = supported()
    if why is not None:
        pytest.skip(why)
    folder = Path(tempfile.mkdtemp(prefix="bedstone-boxes-"))
    folder.chmod(0o711)
    make_root(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=DRIVERS)
def driver(request: pytest.FixtureRequest, place: Path) -> Callable[[Path], Boxes]:
    make: Callable[[Path], Boxes] = KIND.load(request.param)
    try:
        asyncio.run(make(place / "home").open())
    except UnavailableError as error:
        pytest.skip(f"{error}; {error.hint}")
    return make


@pytest.mark.parametrize("check", [*CHECKS, *ESCAPES, *LINKS])
def test_conformance(check: str, driver: Callable[[Path], Boxes], place: Path) -> None:
    folder = Path(tempfile.mkdtemp(dir=place))
    folder.chmod(0o711)
    run_check(check, driver, place / "home", place / "root", folder)
