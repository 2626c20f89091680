"""A command that stays in the foreground of a terminal of its own, as a person would run it.

Rule: what it writes is read all the time, so that it never waits for its reader; the terminal is a
pseudo-terminal, so that Ctrl-C arrives the way that a person's does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\r")


class Foreground:
    """A running command; a context manager that kills it if it still runs at the end."""

    def __init__(
        self, argv: Sequence[str], directory: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
        self._written = ""
        self.process = subprocess.Popen(
            argv,
            cwd=directory,
            env={**os.environ, **(env or {})},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            # The terminal becomes the session's, so that its Ctrl-C is a signal.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        # EIO: nobody holds the terminal's other side any more.
        with contextlib.suppress(OSError):
            while data := os.read(self._master, 65536):
                self._written += data.decode(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(5)
        os.close(self._master)

    @property
    def text(self) -> str:
        """All that it has written, without colours and cursor movements."""
        return _ESCAPE.sub("", self._written)

    def wait_for(self, pattern: str, since: int = 0, timeout: float = 30) -> str:
        """Wait until it has written what matches, after the first `since` characters; the text."""
        deadline = time.monotonic() + timeout
        while re.search(pattern, self.text[since:]) is None:
            ended = self.process.poll()
            assert ended is None, f"it ended with {ended}:\n{self.text}"
            assert time.monotonic() < deadline, f"no {pattern!r} in:\n{self.text[since:]}"
            time.sleep(0.02)
        return self.text[since:]

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.write(self._master, b"\x03")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def end(self, timeout: float = 30) -> int:
        """Wait until it has ended; its exit status."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end:\n{self.text}") from None
