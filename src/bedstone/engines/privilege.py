"""A user of its own for an engine that refuses to run as root.

The permissions of other people's directories are not touched.

The user is a number that no account has. What it can't reach, because some parent directory is
closed to others, is bound into the run directory, in a mount namespace that only the engine sees.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import stat
from pathlib import Path

_FIRST, _LAST = 61_000, 63_999
_CAP_SYS_ADMIN = 21


def engine_uid(key: str) -> int:
    """A user number for an engine, from a hash of `key`, that no account has."""
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    offset = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4])
    size = _LAST - _FIRST + 1
    for step in range(size):
        uid = _FIRST + (offset + step) % size
        if uid not in taken:
            return uid
    return 65_534


def account_uid() -> int:
    """The user number of an account for services, for where none can be made up."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    return 65_534


def open_state(path: Path) -> None:
    """Let others pass, not look, through our own state directory down to `path`.

    For a container's root, which can't mount. Directories above the state are not ours to open.
    """
    state = next((folder for folder in path.parents if folder.name == ".bedstone"), None)
    for folder in path.parents:
        if state is not None and (folder == state or state in folder.parents):
            folder.chmod(stat.S_IMODE(folder.stat().st_mode) | 0o011)


def reachable(path: Path, uid: int, gid: int) -> bool:
    """Whether a user may enter every directory above `path`."""
    for folder in path.resolve().parents:
        found = folder.stat()
        if found.st_uid == uid:
            bit = stat.S_IXUSR
        elif found.st_gid == gid:
            bit = stat.S_IXGRP
        else:
            bit = stat.S_IXOTH
        if not found.st_mode & bit:
            return False
    return True


def can_mount() -> bool:
    """Whether this process, and so the supervisor, may make mount namespaces."""
    if os.geteuid() != 0:
        return False
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return False
