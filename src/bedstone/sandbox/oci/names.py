"""The names that a box knows without asking anybody: `/etc/hosts` and `/etc/hostname`.

A root that has one keeps it; one that has none, or an empty one as images do, gets one where the
box's writes go. With a root of one's own to write to, it is bound over its place instead, where the
runtime leaves an empty file, as it leaves an empty `/proc`. Links are left alone. In a microVM the
agent does the same.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

from bedstone.sandbox import mounts
from bedstone.sandbox.box import BoxSpec

_FOLDER: Final = "etc"


def texts(hostname: str) -> dict[str, str]:
    """What is in files of /etc, by name."""
    own = f"127.0.1.1 {hostname}\n" if hostname else ""
    return {
        "hosts": f"127.0.0.1 localhost\n::1 localhost\n{own}",
        "hostname": f"{hostname}\n" if hostname else "",
    }


def missing(root: Path, hostname: str) -> dict[str, str]:
    """Those that a root does not have. None where its /etc is a link, or nothing to look at."""
    try:
        if (root / _FOLDER).is_symlink():
            return {}
        return {
            name: text
            for name, text in texts(hostname).items()
            if text and _empty(root / _FOLDER / name)
        }
    except OSError:
        return {}


def write(root: Path, wanted: dict[str, str], owner: int | None, like: Path) -> None:
    """Write them into a root, or into what is laid over one; what cannot be, is left out.

    Args:
        root: where no program runs yet.
        wanted: text by name.
        owner: user and group, if not this process's.
        like: the root that it is laid over, whose /etc lends its mode where one is made.
    """
    if not wanted:
        return
    with contextlib.suppress(OSError):
        if not (root / _FOLDER).exists():
            (root / _FOLDER).mkdir()
            found = like / _FOLDER
            mode = stat.S_IMODE(found.stat().st_mode) if found.exists() else 0o755
            (root / _FOLDER).chmod(mode | stat.S_IRWXU)
            if owner is not None:
                os.chown(root / _FOLDER, owner, owner)
        folder = mounts.open_inside(root, _FOLDER)
        try:
            for name, text in wanted.items():
                flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                with os.fdopen(os.open(name, flags, 0o644, dir_fd=folder), "w") as file:
                    file.write(text)
                    os.fchmod(file.fileno(), 0o644)
                    if owner is not None:
                        os.fchown(file.fileno(), owner, owner)
        finally:
            os.close(folder)


def over(
    spec: BoxSpec, root: Path, wanted: dict[str, str], folder: Path, owner: int | None
) -> list[tuple[str, str, bool]]:
    """Files in `folder` to be bound over a root that is written to, as `Place.binds` has them.

    A mount that the box declares over one of them, or over /etc, is there instead.
    """
    targets = {mount.target for mount in spec.mounts}
    place = root / _FOLDER
    here = place if place.exists() else root
    found = []
    for name, text in wanted.items():
        if not targets.isdisjoint((f"/{_FOLDER}", f"/{_FOLDER}/{name}")):
            continue
        if not (place / name).exists() and not os.access(here, os.W_OK):
            continue
        file = folder / name
        file.write_text(text)
        file.chmod(0o644)
        if owner is not None:
            os.chown(file, owner, owner)
        found.append((str(file), f"/{_FOLDER}/{name}", False))
    return found


def _empty(path: Path) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return True
    return stat.S_ISREG(found.st_mode) and found.st_size == 0
