"""Which Python runs a workload, and whether another user could read what it needs.

Without `python:`, the nearest `.venv/bin/python` from the workload's directory upwards, else the
interpreter that runs Bedstone.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from bedstone.errors import InvalidError

_SKIPPED = ("__pycache__", "node_modules")
_SEEN_LIMIT = 5000
"""Files looked at before a start; a source directory seldom has more."""


def find_interpreter(source: Path, declared: str | None) -> str:
    """The interpreter of a workload whose source directory is `source`.

    Raises:
        InvalidError: the declared one is not there.
    """
    if declared is not None:
        if "/" not in declared:
            return declared
        path = (source / declared).absolute()
        if not os.access(path, os.X_OK):
            raise InvalidError(
                f"its interpreter {declared} is not an executable file",
                hint="correct `python:`, or leave it out to use the nearest `.venv`",
            )
        return str(path)
    source = source.absolute()
    for folder in (source, *source.parents):
        candidate = folder / ".venv" / "bin" / "python"
        if os.access(candidate, os.X_OK):
            return str(candidate)
    return sys.executable


def obstacle(path: Path) -> str | None:
    """What keeps a user without any rights of its own from reading `path`; None if nothing does.

    Folders above must be open to all; of a folder, everything in it that is not hidden must be
    readable. Symbolic links are followed as the kernel does, so that a virtual environment's
    interpreter counts with the folder that it really lies in.
    """
    for place in {path.absolute(), Path(os.path.realpath(path))}:
        for folder in place.parents:
            if not _allows(folder, stat.S_IXOTH):
                return str(folder)
        blocked = closed(place)
        if blocked is not None:
            return blocked
    return None


def closed(path: Path) -> str | None:
    """As `obstacle`, whatever the folders above are: what of `path` itself is not open."""
    return _inside(path) if path.is_dir() else _unreadable(path)


def _inside(folder: Path) -> str | None:
    seen = 0
    for root, folders, files in os.walk(folder):
        if not _allows(Path(root), stat.S_IROTH | stat.S_IXOTH):
            return root
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _SKIPPED]
        for name in files:
            seen += 1
            blocked = None if name.startswith(".") else _unreadable(Path(root, name))
            if blocked is not None or seen > _SEEN_LIMIT:
                return blocked
    return None


def _unreadable(path: Path) -> str | None:
    if path.is_symlink() and not path.exists():
        return None
    return None if _allows(path, stat.S_IROTH) else str(path)


def _allows(path: Path, bits: int) -> bool:
    try:
        return path.stat().st_mode & bits == bits
    except OSError:
        return False
