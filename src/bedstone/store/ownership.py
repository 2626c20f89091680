"""Files that one process owns: who holds one, and that nobody else reads it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from bedstone.errors import UnavailableError


def acquire(path: Path, what: str, hint: str) -> int:
    """Hold `PATH.lock` (flock): the kernel releases it however the holder dies.

    Args:
        path: the file to own.
        what: what it is, for the error.
        hint: what to do if another process has it.

    Returns:
        A file descriptor; closing it gives the file up.

    Raises:
        UnavailableError: another process holds it.
        OSError: the lock's file cannot be made.
    """
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(lock, 256, 0).decode(errors="replace").strip() or "another process"
        os.close(lock)
        raise UnavailableError(f"{what} {path} is held by {owner}", hint=hint) from error
    except BaseException:
        os.close(lock)
        raise
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"process {os.getpid()} ({_program()})\n".encode(), 0)
    return lock


def create_private(path: Path) -> None:
    """Create a file for its owner only, if there is none, and make its name durable."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _program() -> str:
    # Never the whole command line: arguments may hold secrets.
    try:
        return Path("/proc/self/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return "unknown program"
