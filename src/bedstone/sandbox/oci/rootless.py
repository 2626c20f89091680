"""Boxes of a user without rights: what a runtime itself can mount in a namespace of one user.

Such a box has one user, 0, who is who started it here: files of others are nobody's in it. The root
is laid out by the runtime, as an overlay in the box's own namespace (Linux 5.11); nothing is
mounted on this machine. There are no control groups, and no network but loopback.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from bedstone.errors import InvalidError, UnavailableError
from bedstone.sandbox.box import BoxSpec, Exec, Mount
from bedstone.sandbox.oci import first, names
from bedstone.sandbox.oci.config import Place, unapplied
from bedstone.sandbox.oci.machine import open_files
from bedstone.sandbox.sources import look

_SPECIAL: Final = frozenset(":,\\")


def needed() -> bool:
    """Whether this process has no rights."""
    return os.geteuid() != 0


def check(what: str, request: BoxSpec | Exec) -> None:
    """Refuse what takes rights.

    Raises:
        InvalidError: users other than the one that there is.
        UnavailableError: a given network, or devices.
    """
    groups = request.groups if isinstance(request, BoxSpec) else ()
    if request.user not in (0, None) or request.group not in (0, None) or groups:
        raise InvalidError(
            f"{what}: without root a box has one user, 0, got {request.user}",
            hint="say -u 0, or run it as root",
        )
    if isinstance(request, BoxSpec) and (request.netns is not None or request.devices):
        raise UnavailableError(f"{what}: networks and devices need root", hint="run it as root")


def build(spec: BoxSpec, folder: Path, extra: tuple[Mount, ...]) -> tuple[Place, tuple[str, ...]]:
    """What the runtime is to mount for a box, and what could not be applied.

    Args:
        spec: the box.
        folder: of the box; it is there.
        extra: mounts beside those of the specification.

    Raises:
        InvalidError: a source is not there, or a link.
    """
    source = Path(spec.root)
    if not stat.S_ISDIR(look(spec.id, source).st_mode):
        raise InvalidError(f"box {spec.id}: its root {spec.root} is not a folder")
    notes = ["it runs without root: it has one user, who started it"]
    root = str(source)
    overlay: tuple[str, ...] = ()
    place = folder / "mnt"
    place.mkdir(mode=0o755)
    binds: list[tuple[str, str, bool]] = []
    unnamed = names.missing(source, spec.hostname)
    if spec.write == "direct":
        binds += names.over(spec, source, unnamed, place, None)
    else:
        places = [place / name for name in ("root", "upper", "work")]
        for each in places:
            each.mkdir(mode=0o755)
        if _SPECIAL & set(f"{source}{folder}"):
            raise InvalidError(
                f"box {spec.id}: `:`, `,` and `\\` cannot be in {source} and {folder}"
            )
        root = str(places[0])
        overlay = (
            f"lowerdir={source}",
            f"upperdir={places[1]}",
            f"workdir={places[2]}",
            "userxattr",
        )
        names.write(places[1], unnamed, None, source)
    if spec.limits.disk is not None:
        notes.append("disk limit not applied: no file system can be made without root")
    memory = []
    for mount in (*extra, *spec.mounts):
        if mount.kind == "tmpfs":
            memory.append((mount.target, mount.size))
            continue
        look(spec.id, Path(mount.source))
        binds.append((mount.source, mount.target, mount.readonly))
    made = Place(
        root=root,
        binds=tuple(binds),
        memory=tuple(memory),
        overlay=overlay,
        owner=(os.geteuid(), os.getegid()),
        open_files=open_files(),
        init=first.place(place) if spec.init else None,
    )
    return made, (*notes, *unapplied(spec.limits, made))


def clear(folder: Path) -> None:
    """Let everything below a box's folder be removed by its owner, whatever modes it was given."""
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        try:
            place.chmod(0o700)
            waiting += [
                Path(entry) for entry in os.scandir(place) if entry.is_dir(follow_symlinks=False)
            ]
        except OSError:
            continue  # it is gone, or not ours
