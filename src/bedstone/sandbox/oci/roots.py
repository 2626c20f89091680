"""The root and the mounts of a box, as folders of this machine.

In the folder of a box, `mnt/` has: `lower` (the root as it was given, as the box's user sees it),
`scratch` (what takes its writes), `root` (what the box has), and `0`, `1` … (its mounts). All are
mount points, without effect of set-user-id bits and devices, which a box could leave for users of
this machine; `release` unmounts them, in whatever state a start left them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bedstone.errors import InvalidError, UnavailableError
from bedstone.sandbox import mounts
from bedstone.sandbox.box import BoxSpec, Mount
from bedstone.sandbox.folders import IDS
from bedstone.sandbox.oci import names
from bedstone.sandbox.sources import look

_PLAIN: Final = mounts.MS_NOSUID | mounts.MS_NODEV
_PLACES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Tree:
    """What was mounted.

    Attributes:
        root: of the box.
        binds: (what is shown, where in the box, whether read-only).
        notes: what could not be applied.
    """

    root: Path
    binds: tuple[tuple[str, str, bool], ...]
    notes: tuple[str, ...]


def build(spec: BoxSpec, folder: Path, first_id: int | None, extra: tuple[Mount, ...]) -> Tree:
    """Mount everything of a box below `folder/mnt`.

    Args:
        spec: the box.
        folder: of the box; it is there, and every user may pass through it if ids are mapped.
        first_id: this machine's id that is to be 0 in the box; None to map nothing.
        extra: mounts beside those of the specification.

    Raises:
        InvalidError: a source is not there, or a link.
        UnavailableError: a mount is refused, or its root has no other owners to be shown with; what
            was mounted stays until `release`.
    """
    notes: list[str] = []
    place = folder / "mnt"
    place.mkdir()
    place.chmod(0o711)  # whatever the umask: the users of the box have to pass
    with _refusals(spec):
        source = Path(spec.root)
        if not stat.S_ISDIR(look(spec.id, source).st_mode):
            raise InvalidError(f"box {spec.id}: its root {spec.root} is not a folder")
        direct = spec.write == "direct"
        lower = place / ("root" if direct else "lower")
        lower.mkdir()
        try:
            mounts.view(source, lower, owner=first_id, size=IDS, readonly=not direct)
        except OSError as error:
            if first_id is None or error.errno not in mounts.UNMAPPABLE:
                raise
            # Its root would be this machine's.
            raise UnavailableError(
                f"box {spec.id}: its users cannot be nobody on this machine, since the file system "
                f"of {spec.root} shows no other owners: {error.strerror}",
                hint="put it on another one, such as ext4, xfs, btrfs or tmpfs, or use isolation "
                "gvisor or microvm",
            ) from error
        root = place / "root"
        binds = []
        unnamed = names.missing(lower, spec.hostname)
        if direct:
            binds += names.over(spec, root, unnamed, place, first_id)
            if spec.limits.disk is not None:
                notes.append("disk limit not applied: it writes to its root directory itself")
        else:
            _overlay(spec, lower, root, notes)
            names.write(root, unnamed, first_id, lower)
        for number, mount in enumerate((*extra, *spec.mounts)):
            shown = place / str(number)
            _mount(spec, mount, shown, first_id, notes)
            binds.append((str(shown), mount.target, mount.readonly))
    return Tree(root, tuple(binds), tuple(notes))


def release(folder: Path) -> None:
    """Unmount what `build` mounted. Idempotent."""
    place = folder / "mnt"
    if not place.is_dir():
        return
    first = {"root": 0, "lower": 2, "scratch": 3}
    for child in sorted(place.iterdir(), key=lambda child: first.get(child.name, 1)):
        mounts.unmount(child)


def _overlay(spec: BoxSpec, lower: Path, root: Path, notes: list[str]) -> None:
    """Lay what takes the writes over the root, which is never written to.

    A read-only box has one too: the runtime makes the places of its mounts there, and then takes
    the right to write away.
    """
    scratch = root.with_name("scratch")
    scratch.mkdir()
    scratch.chmod(0o711)
    if spec.write == "readonly":
        mounts.mount("tmpfs", "box", scratch, _PLAIN, f"size={_PLACES},mode=711")
    elif spec.limits.disk is not None:
        _scratch(spec.limits.disk, scratch, notes)
    upper, work = scratch / "upper", scratch / "work"
    found = lower.stat()
    upper.mkdir()
    upper.chmod(stat.S_IMODE(found.st_mode))
    os.chown(upper, found.st_uid, found.st_gid)
    work.mkdir()
    root.mkdir()
    mounts.overlay(lower, upper, work, root)


def _scratch(limit: int, scratch: Path, notes: list[str]) -> None:
    """A file system of the size allowed: of a file, or, where that cannot be, of memory."""
    image = scratch.with_name("scratch.img")
    maker = shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    reason = "mkfs.ext4 is not there"
    if maker is not None:
        with image.open("xb") as file:
            file.truncate(limit)
        options = "lazy_itable_init=1,nodiscard,root_owner=0:0"
        made = subprocess.run(
            [maker, "-q", "-F", "-m0", "-O", "^has_journal", "-E", options, str(image)],
            capture_output=True,
            text=True,
            check=False,
        )
        reason = made.stderr.strip().splitlines()[-1] if made.stderr.strip() else "mkfs.ext4 failed"
        if made.returncode == 0:
            mounted = subprocess.run(
                [
                    "mount",
                    "-t",
                    "ext4",
                    "-o",
                    "loop,nosuid,nodev,noatime",
                    str(image),
                    str(scratch),
                ],
                capture_output=True,
                text=True,
                check=False,
            )
            if mounted.returncode == 0:
                image.unlink()  # the mount alone holds it, and its end frees it
                scratch.chmod(0o711)
                return
            reason = mounted.stderr.strip()
        image.unlink()
    notes.append(f"what it writes is kept in memory: {reason}")
    mounts.mount("tmpfs", "box", scratch, _PLAIN, f"size={limit},mode=711")


def _mount(
    spec: BoxSpec, mount: Mount, shown: Path, first_id: int | None, notes: list[str]
) -> None:
    if mount.kind == "tmpfs":
        shown.mkdir()
        owner = first_id or 0
        data = f"size={mount.size},mode=1777,uid={owner},gid={owner}"
        mounts.mount("tmpfs", "box", shown, _PLAIN, data)
        return
    if stat.S_ISDIR(look(spec.id, Path(mount.source)).st_mode):
        shown.mkdir()
    else:
        shown.touch(mode=0o600)
    source = Path(mount.source)
    try:
        mounts.view(source, shown, owner=first_id, size=IDS, readonly=mount.readonly)
    except OSError as error:
        if first_id is None or error.errno not in mounts.UNMAPPABLE:
            raise
        notes.append(f"owners of {mount.target} are not mapped: {error.strerror}")
        mounts.view(source, shown, owner=None, size=IDS, readonly=mount.readonly)


@contextlib.contextmanager
def _refusals(spec: BoxSpec) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnavailableError(
            f"box {spec.id}: its files cannot be mounted: {error.strerror or error}",
            hint="boxes are mounted as root, on a kernel from 5.12 on",
        ) from error
