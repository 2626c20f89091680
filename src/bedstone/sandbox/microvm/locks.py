"""The lock of a machine's folder: who holds it is alive, its monitor, or what that started."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path
from typing import Final

LOCK: Final = "lock"


def lock_folder(folder: Path) -> int | None:
    """The folder's lock, as a descriptor; None if somebody has it."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def holder(lock: Path) -> int | None:
    """The process that a lock names, if anybody holds it."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0)
        return int(text) if text.isdigit() else 0
    else:
        return None
    finally:
        os.close(descriptor)


def kill_holder(lock: Path, word: str) -> None:
    """End the process that holds a lock, if it has `word` in its command line.

    Its number cannot be another's while the lock is held.
    """
    pid = holder(lock)
    if not pid:
        return
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return  # the monitor has ended, and QEMU is about to
    try:
        if holder(lock) == pid and word.encode() in _command_line(pid):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
