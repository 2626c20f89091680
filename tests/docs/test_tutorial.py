"""The tutorial, done as it says: every file written, every command run, every output as shown."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bedstone.testing.domain import Domain, free_port
from bedstone.testing.shown import missing

PORT = "8080"
PATIENCE = 30.0


class Reader:
    """Somebody who does what the tutorial says."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port
        self.up: subprocess.Popen[bytes] | None = None
        self.screen = directory / "screen.txt"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("BEDSTONE_", "PYTEST_"))},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "NO_COLOR": "1",
            "COLUMNS": "120",
        }

    def here(self, text: str) -> str:
        """Text with our port."""
        return text.replace(PORT, str(self.port))

    def follow(self, block: Any) -> None:
        """Do what one block asks."""
        match block.what:
            case "file":
                (self.directory / block.how).write_text(self.here(block.text))
            case "edit":
                self._edit(self.directory / block.how, block)
            case "run" if block.how == "up":
                self._start(block)
            case "run":
                self._run(block)
            case _:
                raise AssertionError(f"{block.name}: nobody would know what to do with this")

    def _edit(self, file: Path, block: Any) -> None:
        lines = block.text.splitlines()
        old = "".join(f"{line[1:]}\n" for line in lines if line.startswith("-"))
        new = "".join(f"{line[1:]}\n" for line in lines if line.startswith("+"))
        text = file.read_text()
        assert text.count(old) == 1, f"{block.name}: {old!r} is not once in {file.name}"
        file.write_text(text.replace(old, new))

    def _start(self, block: Any) -> None:
        ((command, expected),) = block.commands()
        with self.screen.open("wb") as screen:
            self.up = subprocess.Popen(
                ["sh", "-c", f"exec {command}"],
                cwd=self.directory,
                env=self.environment,
                stdout=screen,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        self._until(block, lambda: missing(self._expected(expected), self.screen.read_text()))

    def _run(self, block: Any) -> None:
        for command, expected in block.commands():
            if command.startswith("cd "):
                self.directory /= command.removeprefix("cd ")
                continue

            def attempt(command: str = command, expected: list[str] = expected) -> str | None:
                return self._attempt(block, self.here(command), self._expected(expected))

            if block.how == "eventually":
                self._until(block, attempt)
            else:
                problem = attempt()
                assert problem is None, f"{block.name}: {command}: {problem}"

    def _attempt(self, block: Any, command: str, expected: list[str]) -> str | None:
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        wanted = int(block.how.removeprefix("status ")) if block.how.startswith("status ") else 0
        if done.returncode != wanted:
            return f"exit status {done.returncode}: {done.stdout}{done.stderr}"
        # init writes the manifest that the tutorial then runs
        manifest = self.directory / "shop" / "bedstone.yaml"
        if manifest.exists():
            manifest.write_text(self.here(manifest.read_text()))
        line = missing(expected, done.stdout)
        return None if line is None else f"expected {line!r} in\n{done.stdout}{done.stderr}"

    def _expected(self, lines: list[str]) -> list[str]:
        return [self.here(line) for line in lines]

    def _until(self, block: Any, attempt: Callable[[], str | None]) -> None:
        give_up = time.monotonic() + PATIENCE
        while (problem := attempt()) is not None:
            if time.monotonic() > give_up:
                raise AssertionError(f"{block.name}: {problem}\n{self.screen.read_text()[-4000:]}")
            time.sleep(0.2)

    def leave(self) -> None:
        """Take down what runs, and see that nothing of it is left."""
        directory = self.directory
        domain = Domain(directory, self.port)
        if (directory / ".bedstone").exists():
            domain.run("down", "--purge", "--yes")
        if self.up is not None:
            if self.up.poll() is None:
                self.up.send_signal(signal.SIGINT)
            self.up.wait(30)
        assert domain.everything() == []


@pytest.fixture
def reader() -> Iterator[Reader]:
    # Not pytest's folder: an instance's own user must pass through its parents.
    directory = Path(tempfile.mkdtemp(prefix="bedstone-tutorial-"))
    directory.chmod(0o755)
    reader = Reader(directory, free_port())
    try:
        yield reader
    finally:
        reader.leave()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.timeout(240)
def test_the_tutorial_works(reader: Reader, blocks: Callable[[str], list[Any]]) -> None:
    steps = blocks("docs/tutorial.md")
    assert len(steps) > 15
    for block in steps:
        reader.follow(block)
    assert reader.up is not None
    assert reader.up.wait(20) is not None, "the first terminal has ended"
    assert not (reader.directory / ".bedstone").exists()
    assert "stopped by another command" in reader.screen.read_text()


@pytest.mark.parametrize(
    ("expected", "output", "found"),
    [
        (["a … c"], "a b c", True),
        (["a c"], "a   c", True),
        (["a c"], "a b c", False),
        (["a", "…", "c"], "a\nb\nc", True),
        (["c", "a"], "a\nc", True),
        (["a", "a"], "a\nb", False),
        (["{}"], "{}", True),
        (["web-… x"], "web-12  x", True),
    ],
)
def test_outputs_are_compared_as_readers_would(
    expected: list[str], output: str, *, found: bool
) -> None:
    assert (missing(expected, output) is None) is found
