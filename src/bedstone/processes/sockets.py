"""Sockets that the machine's services listen on in /run, and who of them obeys root.

Rights do not keep root from a socket, and Landlock does not decide on connections. Who listens
there as root (a container engine, the service manager, the message bus) starts what root asks for,
with all rights. So a process that runs as root is shown folders in which they are not.

A folder is covered by one that has all else of it; so a service that is started again, and makes
its socket anew, is not seen either. A folder that had no such socket is shown as it is.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection, Iterable
from typing import Final

from bedstone.processes import linux

PLACE: Final = "/run"
_HARMLESS: Final = (
    *("/run/systemd/journal/dev-log", "/run/systemd/journal/socket"),
    *("/run/systemd/journal/stdout", "/run/nscd/socket"),
)
"""They write down what they are told, or answer what everybody may ask."""


def hide_those_of_root(kept: Collection[str], place: str = PLACE) -> None:
    """Have the folders at and below `place` look as if root listened nowhere there.

    Other file systems below it are left as they are. Needs a mount namespace of its own, and root.

    Args:
        kept: sockets that stay.
        place: a folder.
    """
    device = os.stat(place).st_dev  # noqa: PTH116
    folders = [place]
    while folders:
        folder = folders.pop()
        try:
            if os.stat(folder).st_dev != device:  # noqa: PTH116
                continue
            with os.scandir(folder) as found:
                entries = list(found)
        except FileNotFoundError:
            continue  # it has just been removed
        left_out = [entry.name for entry in entries if _obeys_root(entry, kept)]
        if left_out:
            _cover(folder, [entry for entry in entries if entry.name not in left_out])
        folders += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]


def _obeys_root(entry: os.DirEntry[str], kept: Collection[str]) -> bool:
    if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False):
        return False
    try:
        found = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return True  # it is being made anew
    listens = stat.S_ISSOCK(found.st_mode) and found.st_uid == 0
    return listens and entry.path not in kept and entry.path not in _HARMLESS


def _cover(folder: str, entries: Iterable[os.DirEntry[str]]) -> None:
    """Put a folder in its place that has these entries of it."""
    links = {}
    handles = {}
    try:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if entry.is_symlink():
                    links[entry.path] = os.readlink(entry.path)  # noqa: PTH115
                else:
                    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
                    handles[entry.path] = os.open(entry.path, flags)
        mode = stat.S_IMODE(os.stat(folder).st_mode)  # noqa: PTH116
        flags = linux.MS_NOSUID | linux.MS_NODEV
        linux.mount("shown", folder, flags, "tmpfs", f"mode={mode:o},size=1m")
        for path, target in links.items():
            os.symlink(target, path)  # noqa: PTH211
        for path, handle in handles.items():
            if stat.S_ISDIR(os.fstat(handle).st_mode):
                os.mkdir(path)  # noqa: PTH102
            else:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            # What the kernel does not bind, as some namespaces, is empty there.
            with contextlib.suppress(OSError):
                linux.mount(f"/proc/self/fd/{handle}", path, linux.MS_BIND | linux.MS_REC)
    finally:
        for handle in handles.values():
            os.close(handle)
