"""For tests of `bedstone run` and its like: a root, and the command line with a home of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from bedstone.boxes.standalone import Standalone
from bedstone.errors import UnavailableError
from bedstone.sandbox.boxes import KIND
from bedstone.testing.box_programs import make_root, supported


@contextmanager
def box_place() -> Iterator[Path]:
    """A folder with a root; every user may pass through it, as the users of boxes must."""
    why = supported()
    if why is not None:
        pytest.skip(why)
    folder = Path(tempfile.mkdtemp(prefix="bedstone-run-"))
    folder.chmod(0o711)
    try:
        asyncio.run(KIND.load("container")(folder / "boxes").open())
    except UnavailableError as error:
        shutil.rmtree(folder)
        pytest.skip(f"{error}; {error.hint}")
    make_root(folder)
    yield folder
    asyncio.run(clear(folder / "boxes"))
    shutil.rmtree(folder)


async def clear(home: Path) -> None:
    """Delete what a test that failed has left."""
    standalone = Standalone(home)
    for listed in await standalone.list():
        await standalone.delete(listed.id)


def need(isolation: str, place: Path) -> None:
    """Skip a test whose driver cannot work here."""
    try:
        asyncio.run(KIND.load(isolation)(place / "boxes").open())
    except UnavailableError as error:
        pytest.skip(f"{error}; {error.hint}")


class Command:
    """The command line with a home of its own: in this process, where it needs no input.

    Args:
        home: `BEDSTONE_HOME`.
        capture: of this process's output.
        run: runs a command line here; its exit status.
    """

    def __init__(
        self,
        home: Path,
        capture: pytest.CaptureFixture[str],
        run: Callable[[Sequence[str]], int],
    ) -> None:
        self._capture = capture
        self._run = run
        self.env = {**os.environ, "BEDSTONE_HOME": str(home), "NO_COLOR": "1"}
        self.argv = (sys.executable, "-c", "from bedstone.cli.main import main; main()")

    def __call__(self, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command line to its end."""
        if not given:
            self._capture.readouterr()
            status = self._run(words)
            seen = self._capture.readouterr()
            return subprocess.CompletedProcess(words, status, seen.out, seen.err)
        return subprocess.run(
            [*self.argv, *words],
            env=self.env,
            input=given,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def answer(self, *words: str) -> str:
        """The output of a command line that has to succeed."""
        done = self(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout


def fetched(port: int) -> bytes | None:
    """The page of a published port; None if nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            page: bytes = answer.read()
            return page
    except OSError:
        return None
