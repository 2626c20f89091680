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

    Folders above must be open to all, and a folder itself and the files in it be readable. Symbolic
    links are followed the way the kernel does, so that a virtual environment's interpreter counts
    with the folder that it really lies in.
    """
    for place in {path.absolute(), Path(os.path.realpath(path))}:
        for folder in place.parents:
            if not _allows(folder, stat.S_IXOTH):
                return str(folder)
        if not place.is_dir():
            if not _allows(place, stat.S_IROTH):
                return str(place)
            continue
        if not _allows(place, stat.S_IROTH | stat.S_IXOTH):
            return str(place)
        for entry in sorted(place.glob("*.py")):
            if not _allows(entry, stat.S_IROTH):
                return str(entry)
    return None


def _allows(path: Path, bits: int) -> bool:
    try:
        return path.stat().st_mode & bits == bits
    except OSError:
        return False
