"""The calls to Linux that lazy images need and Python lacks."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4
MNT_FORCE, MNT_DETACH = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: Path, kind: str, flags: int, data: str) -> None:
    """Mount a file system. Raises OSError."""
    done = _libc.mount(
        source.encode(),
        os.fsencode(target),
        kind.encode(),
        ctypes.c_ulong(flags),
        data.encode(),
    )
    if done != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {kind}: {os.strerror(number)}", str(target))


def unmount(target: Path, flags: int = 0) -> None:
    """Unmount by umount2. Raises OSError."""
    if _libc.umount2(os.fsencode(target), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"umount: {os.strerror(number)}", str(target))


@contextmanager
def short(directory: Path) -> Iterator[str]:
    """Another path of a directory, for sockets in it: their paths may have 107 bytes only."""
    handle = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)


def release() -> tuple[int, int]:
    """The kernel's version: major and minor."""
    found = re.match(r"(\d+)\.(\d+)", platform.release())
    return (int(found[1]), int(found[2])) if found else (0, 0)


def filesystems() -> frozenset[str]:
    """The kinds of file system that the kernel has now; a module may add one later."""
    try:
        lines = Path("/proc/filesystems").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(line.split("\t")[-1] for line in lines)
