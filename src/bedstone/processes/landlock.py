"""Landlock (landlock(7)): what a process may write to, and whom it may reach, by its own choice.

It needs no privilege, binds root too, and whoever descends from the process. Reading is left to the
rights of the user: a program reads from many places that nobody has named.

Also withheld, where the kernel can: signals to processes outside, and connections to their abstract
sockets. That nothing outside can be traced, nor its memory and environment be read, comes with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
from collections.abc import Iterable
from typing import Final

_CREATE: Final = 444
_ADD: Final = 445
_RESTRICT: Final = 446
_VERSION: Final = 1
_PATH_BENEATH: Final = 1

_WRITE_FILE: Final = 1 << 1
_TRUNCATE: Final = 1 << 14
_DEVICES: Final = 1 << 6 | 1 << 11
_CHANGE: Final = sum(1 << bit for bit in (4, 5, 7, 8, 9, 10, 12, 13))
"""Making and removing folders, files, sockets, pipes and links, and moving between folders."""
_SCOPES: Final = 0b11
"""Abstract sockets, and signals."""

OLDEST: Final = 2
"""The version from which on a file can be moved from one folder to another at all (Linux 5.19)."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Ruleset(ctypes.Structure):
    """`struct landlock_ruleset_attr`."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("files", "network", "scoped")]


class _Rule(ctypes.Structure):
    """`struct landlock_path_beneath_attr`."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def version() -> int:
    """Which Landlock this kernel has; 0 if none."""
    return max(0, int(_libc.syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))))


def restrict(writable: Iterable[str], known: int) -> None:
    """Let this thread write to these files, and in and below these folders, and nowhere else.

    A path that is not there, or not to be reached, is left out. No new privileges have to be given
    up before.

    Args:
        writable: paths.
        known: `version()`, at least `OLDEST`.

    Raises:
        OSError: the kernel refuses.
    """
    single = _WRITE_FILE | (_TRUNCATE if known >= 3 else 0)
    ruleset = _Ruleset(single | _CHANGE | _DEVICES, 0, _SCOPES if known >= 6 else 0)
    size = 24 if known >= 6 else 8
    handle = _call(_CREATE, ctypes.byref(ruleset), ctypes.c_size_t(size), ctypes.c_uint32(0))
    try:
        for path in writable:
            with contextlib.suppress(FileNotFoundError, PermissionError, NotADirectoryError):
                _allow(handle, path, single)
        _call(_RESTRICT, ctypes.c_int(handle), ctypes.c_uint32(0))
    finally:
        os.close(handle)


def _allow(ruleset: int, path: str, single: int) -> None:
    parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        folder = stat.S_ISDIR(os.fstat(parent).st_mode)
        rule = _Rule(single | _CHANGE if folder else single, parent)
        _call(
            _ADD,
            ctypes.c_int(ruleset),
            ctypes.c_int(_PATH_BENEATH),
            ctypes.byref(rule),
            ctypes.c_uint32(0),
        )
    finally:
        os.close(parent)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"landlock: {os.strerror(code)}")
    return result
