"""A program that `exec` runs in a box: the runtime's own `exec`, in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import signal
import struct
import termios
from pathlib import Path
from typing import Any

from bedstone.processes.linux import CLONE_NEWNET, setns
from bedstone.sandbox.box import Exit, Stdio
from bedstone.sandbox.failing import ended
from bedstone.sandbox.oci.pumping import Pumps
from bedstone.sandbox.oci.runtime import Files, Runtime, environment


class OciRunning:
    """See the protocol `Running`."""

    def __init__(
        self,
        runtime: Runtime,
        box: str,
        child: asyncio.subprocess.Process,
        files: tuple[Path, Path, Path],
        terminal: int | None,
        pumps: Pumps | None,
        *,
        sentry: bool,
    ) -> None:
        self._runtime = runtime
        self._box = box
        self._child = child
        self._files = files
        self._terminal = terminal
        self._pumps = pumps
        self._sentry = sentry
        self._ended: Exit | None = None

    @classmethod
    async def start(
        cls,
        runtime: Runtime,
        box: str,
        process: dict[str, Any],
        folder: Path,
        stdio: Stdio,
        *,
        netns: str | None,
        sentry: bool,
    ) -> OciRunning:
        """Start a process, as OCI describes it, from within the box's network namespace."""
        token = secrets.token_hex(8)
        file, pid, log = (folder / f"exec-{token}.{end}" for end in ("json", "pid", "log"))
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            json.dump(process, out)
        said = Files(str(pid), str(log))
        argv = runtime.starting("exec", "--process", str(file), box, files=said)
        tty = bool(process["terminal"])

        def begin() -> None:
            if tty:  # it must be the one that signals of the keyboard come from
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            if netns is not None:
                setns(netns, CLONE_NEWNET)

        streams = (stdio.stdin, stdio.stdout, stdio.stderr)
        pumps = Pumps(streams) if sentry and not tty else None
        stdin, stdout, stderr = streams if pumps is None else pumps.descriptors
        try:
            child = await asyncio.create_subprocess_exec(
                *argv,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=environment(),
                start_new_session=True,
                preexec_fn=begin if tty or netns is not None else None,
            )
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        finally:
            if pumps is not None:
                pumps.given()
        return cls(
            runtime,
            box,
            child,
            (file, pid, log),
            os.dup(stdio.stdin) if tty else None,
            pumps,
            sentry=sentry,
        )

    async def wait(self) -> Exit:
        """Its end; see the protocol."""
        status = await self._child.wait()
        if self._pumps is not None:
            await asyncio.to_thread(self._pumps.drain)
        if self._ended is None:
            _, pid, log = self._files
            self._ended = Exit(ended(128 - status if status < 0 else status, str(pid), str(log)))
            self._close()
        return self._ended

    async def signal(self, number: int) -> None:
        """Signal it; see the protocol."""
        if self._child.returncode is not None:
            return
        pid = await self._pid()
        if pid is None:
            return
        if self._sentry:
            await self._runtime.call("kill", "--pid", str(pid), self._box, str(int(number)))
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    async def resize(self, rows: int, columns: int) -> None:
        """Give its terminal another size; see the protocol."""
        if self._terminal is None or self._child.returncode is not None:
            return
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, size)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child.pid, signal.SIGWINCH)

    async def _pid(self) -> int | None:
        """The program's pid, once the runtime has written it down."""
        while self._child.returncode is None:
            with contextlib.suppress(OSError, ValueError):
                return int(self._files[1].read_text())
            await asyncio.sleep(0.01)
        return None

    def _close(self) -> None:
        for file in self._files:
            file.unlink(missing_ok=True)
        if self._terminal is not None:
            os.close(self._terminal)
            self._terminal = None
