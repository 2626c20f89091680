"""Writing files so that a crash leaves the old content or the new, and nothing between."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def sync_directory(folder: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_directory(folder: Path, mode: int = 0o755) -> None:
    """A directory and its parents, durable. Raises OSError."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode)
        sync_directory(path.parent)


def replace_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Give a file new content, whole and durable. Raises OSError."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
