"""One OCI runtime's command line, as container engines use it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedstone.errors import UnavailableError


@dataclass(frozen=True, slots=True)
class Files:
    """Where a runtime leaves whether it could start a program: see `failing.ended`."""

    started: str
    log: str


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime with its global options.

    Attributes:
        program: its path.
        state: the folder in which it keeps what it knows of its containers.
        options: global options, before the subcommand.
        platform: how runsc gets hold of system calls; empty for others.
        keeps: whether it can leave a box that has ended, with its control group, until it is
            deleted: what the box used is known as long.
    """

    program: str
    state: Path
    options: tuple[str, ...] = ()
    platform: str = ""
    keeps: bool = False

    @property
    def name(self) -> str:
        """`runc`, `crun` or `runsc`, with its platform."""
        name = Path(self.program).name
        return f"{name} on {self.platform}" if self.platform else name

    def argv(self, *arguments: str, options: tuple[str, ...] = ()) -> tuple[str, ...]:
        """A command line; `options` are global ones for this call."""
        return (self.program, "--root", str(self.state), *self.options, *options, *arguments)

    def starting(self, action: str, *arguments: str, files: Files) -> tuple[str, ...]:
        """A command line that starts a program, and leaves in `files` whether it could."""
        pid = "--internal-pid-file" if self.platform and action == "exec" else "--pid-file"
        options = ("--log", files.log, "--log-format", "json")
        return self.argv(action, pid, files.started, *arguments, options=options)

    async def call(self, *arguments: str, timeout: float = 30.0) -> tuple[int, str, str]:
        """Run a subcommand to its end: status, output, errors.

        Raises:
            UnavailableError: it did not end in time.
        """
        process = await asyncio.create_subprocess_exec(
            *self.argv(*arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(timeout):
                output, errors = await process.communicate()
        except TimeoutError as error:
            raise UnavailableError(
                f"{self.name} {arguments[0]} did not end within {timeout:g} s"
            ) from error
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        return (
            process.returncode or 0,
            output.decode(errors="replace"),
            errors.decode("utf-8", "replace"),
        )

    async def can_keep(self) -> bool:
        """Whether `run` has the option `--keep` (runc 1.1 and later)."""
        _, output, _ = await self.call("run", "--help")
        return "--keep" in output

    async def demand(self, *arguments: str) -> str:
        """The output of a subcommand that has to succeed.

        Raises:
            UnavailableError: it failed; with the last line that it wrote.
        """
        status, output, errors = await self.call(*arguments)
        if status != 0:
            raise UnavailableError(f"{self.name} {arguments[0]}: {reason(errors or output)}")
        return output

    async def status(self, box: str) -> tuple[str, int | None]:
        """`created`, `running`, `paused`, `stopped` or `absent`, and the first process's pid."""
        code, output, _ = await self.call("state", box)
        if code != 0:
            return "absent", None
        found: dict[str, Any] = json.loads(output)
        pid = int(found.get("pid") or 0)
        return str(found["status"]), pid or None


def reason(text: str) -> str:
    """The last line of what a runtime complained, without its log's decoration."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    if not lines:
        return "it said nothing"
    line = lines[-1].strip()
    for mark in ("level=error msg=", "FATAL ERROR: "):
        if mark in line:
            line = line.split(mark, 1)[1].strip('"')
    return line


def environment() -> dict[str, str]:
    """What of the caller's environment a runtime gets."""
    kept = ("PATH", "HOME", "XDG_RUNTIME_DIR", "TMPDIR")
    return {name: os.environ[name] for name in kept if name in os.environ}
