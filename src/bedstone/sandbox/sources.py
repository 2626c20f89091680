"""Folders and files of this machine that a box is to be given."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from bedstone.errors import InvalidError
from bedstone.sandbox import mounts


def look(box: str, path: Path) -> os.stat_result:
    """What is at a path that has no symbolic link in it.

    Raises:
        InvalidError: nothing is there, or there is a link.
    """
    try:
        descriptor = mounts.open_exactly(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InvalidError(
                f"box {box}: a part of {path} is a symbolic link",
                hint=f"declare the place that it leads to: {os.path.realpath(path)}",
            ) from error
        raise InvalidError(f"box {box}: cannot open {path}: {error.strerror}") from error
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)
