"""Files between this machine and a box, as a tar stream that nobody holds as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
import posixpath
import shutil
import tarfile
from collections.abc import AsyncIterator

from bedstone.errors import NotFoundError, UnavailableError
from bedstone.sandbox.boxes import Boxes
from bedstone.sandbox.oci.copying import attributes, set_attributes

_BLOCK = 1 << 18
_LATEST = 1 << 33
STREAM = "-"


async def copy_in(boxes: Boxes, box: str, source: str, target: str, *, keep_owners: bool) -> None:
    """Copy into a box: below `target` if that is a folder of it, else as `target`.

    Args:
        boxes: the box's driver.
        box: its id.
        source: a path of this machine, whose contents are meant if it ends with `/.`; or `-` for
            a tar archive on standard input, which needs a folder.
        target: a path of the box.
        keep_owners: whether what arrives has the owners, by number, that it has here; else it is
            the box's root user's.
    """
    if source == STREAM:
        await boxes.copy_in(box, _plain(target), _read(0))
        return
    if not os.path.lexists(source):
        raise NotFoundError(f"nothing is at {source}")
    name = "." if _is_contents(source) else posixpath.basename(os.path.realpath(source))
    try:
        await boxes.copy_in(box, _plain(target), _packed(source, name, keep_owners=keep_owners))
    except NotFoundError:
        if target.endswith("/") and not _is_contents(source):
            raise
        folder, name = posixpath.split(_plain(target))
        await boxes.copy_in(box, folder, _packed(source, name, keep_owners=keep_owners))


async def copy_out(boxes: Boxes, box: str, source: str, target: str) -> list[str]:
    """Copy out of a box: below `target` if that is a folder, else as `target`; what was left out.

    Args:
        boxes: the box's driver.
        box: its id.
        source: a path of the box, whose contents are meant if it ends with `/.`.
        target: a path of this machine, or `-` for a tar archive on standard output.
    """
    blocks = boxes.copy_out(box, _plain(source))
    if target == STREAM:
        async for block in blocks:
            await asyncio.to_thread(_write, 1, block)
        return []
    there = os.path.isdir(target)  # noqa: PTH112 - as it was written
    folder, name = (target, None) if there else posixpath.split(target.rstrip("/"))
    if not there and target.endswith("/") and not _is_contents(source):
        raise NotFoundError(f"{target} is not a folder")
    if not os.path.isdir(folder or "."):  # noqa: PTH112
        raise NotFoundError(f"{folder} is not a folder")
    if there and _is_contents(source):
        name = "."
    ours, theirs = os.pipe()
    unpacking = asyncio.ensure_future(asyncio.to_thread(_unpack, ours, folder or ".", name))
    try:
        with contextlib.suppress(BrokenPipeError):  # what unpacks it has failed, and says why
            async for block in blocks:
                await asyncio.to_thread(_write, theirs, block)
    except BaseException:
        os.close(theirs)
        await asyncio.wait({unpacking})
        unpacking.exception()  # is of no interest
        raise
    os.close(theirs)
    try:
        return await unpacking
    except tarfile.TarError as error:
        raise UnavailableError(f"what came of box {box} is no archive: {error}") from error


def _is_contents(path: str) -> bool:
    return path.endswith("/.")


def _plain(path: str) -> str:
    return posixpath.normpath(path)


async def _read(descriptor: int) -> AsyncIterator[bytes]:
    while block := await asyncio.to_thread(os.read, descriptor, _BLOCK):
        yield block


async def _packed(source: str, name: str, *, keep_owners: bool) -> AsyncIterator[bytes]:
    """The archive of a path of this machine, its first member called `name`."""
    ours, theirs = os.pipe()
    packing = asyncio.ensure_future(
        asyncio.to_thread(_pack, theirs, source, name, keep_owners=keep_owners)
    )
    try:
        async for block in _read(ours):
            yield block
        await packing
    finally:
        os.close(ours)
        with contextlib.suppress(BrokenPipeError):  # nobody wants the rest
            await packing


def _pack(descriptor: int, source: str, name: str, *, keep_owners: bool) -> None:
    def described(member: tarfile.TarInfo) -> tarfile.TarInfo:
        if not keep_owners:
            member.uid = member.gid = 0
        member.uname = member.gname = ""
        if member.isreg() or member.isdir():
            place = source if member.name == name else _below(source, member.name, name)
            member.pax_headers = {**member.pax_headers, **attributes(place)}
        return member

    with (
        os.fdopen(descriptor, "wb") as stream,
        tarfile.open(
            fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8"
        ) as archive,
    ):
        archive.add(os.path.realpath(source), name, filter=described)


def _below(source: str, member: str, name: str) -> str:
    return posixpath.join(source, posixpath.relpath(member, name))


def _unpack(descriptor: int, folder: str, name: str | None) -> list[str]:
    """Unpack an archive whose first component is to be called `name`; what was left out.

    The box has made it, or what is in it: nothing is written beside the folder, through no link,
    and no link leads out of it. `name` is None to keep it, and `.` for no folder of its own.
    """
    left: list[str] = []
    folders: list[tuple[str, tarfile.TarInfo]] = []

    def renamed(text: str) -> str:
        _, slash, rest = text.partition("/")
        return posixpath.normpath(text if name is None else f"{name}{slash}{rest}")

    with (
        os.fdopen(descriptor, "rb") as stream,
        tarfile.open(fileobj=stream, mode="r|", encoding="utf-8") as archive,
    ):
        for member in archive:
            shown, member.name = member.name, renamed(member.name)
            if member.islnk():
                member.linkname = renamed(member.linkname)
            if not _stays(member, folder):
                left.append(shown)
                continue
            place = posixpath.join(folder, member.name)
            _put(archive, member, place, folder)
            set_attributes(place, member)
            if member.isdir() and member.name != ".":
                folders.append((place, member))
    for place, member in reversed(folders):
        os.chmod(place, member.mode & 0o755 | 0o700)  # noqa: PTH101
        _date(place, member)
    return left


def _put(archive: tarfile.TarFile, member: tarfile.TarInfo, place: str, folder: str) -> None:
    """Write one member, in place of what is there; it is the user's, and no more than a file."""
    os.makedirs(posixpath.dirname(place), exist_ok=True)  # noqa: PTH103
    if member.isdir():
        if os.path.islink(place) or not os.path.isdir(place):  # noqa: PTH112, PTH114
            _remove(place)
            os.mkdir(place)  # noqa: PTH102
        return
    _remove(place)
    if member.issym():
        os.symlink(member.linkname, place)  # noqa: PTH211
    elif member.islnk():
        os.link(posixpath.join(folder, member.linkname), place, follow_symlinks=False)
    else:
        source = archive.extractfile(member)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(place, flags, 0o600), "wb") as file:
            if source is not None:
                shutil.copyfileobj(source, file, _BLOCK)
            os.fchmod(file.fileno(), member.mode & 0o755 | 0o600)
        _date(place, member)


def _date(place: str, member: tarfile.TarInfo) -> None:
    time = min(max(member.mtime, 0), _LATEST)
    os.utime(place, (time, time))


def _remove(place: str) -> None:
    try:
        os.unlink(place)  # noqa: PTH108
    except FileNotFoundError:
        return
    except IsADirectoryError:
        os.rmdir(place)  # noqa: PTH106


def _stays(member: tarfile.TarInfo, folder: str) -> bool:
    """Whether a member is a file below the folder, by no link, or a link that leads nowhere else.

    Said of paths as they are written, since resolving them has its limits.
    """
    named = [member.name, member.linkname] if member.islnk() else [member.name]
    if any(".." in name.split("/") or name.startswith("/") for name in named) or (
        "\0" in member.name + member.linkname
    ):
        return False
    if member.name == ".":
        return member.isdir()
    parts = member.name.split("/")
    places = [parts[:count] for count in range(1, len(parts))]
    if member.islnk():
        source = member.linkname.split("/")
        places += [source[:count] for count in range(1, len(source) + 1)]
    if any(os.path.islink(posixpath.join(folder, *place)) for place in places):  # noqa: PTH114
        return False
    if member.islnk():
        return os.path.lexists(posixpath.join(folder, member.linkname))
    if member.issym():
        return _leads_inside(member.linkname, len(parts) - 1)
    return member.isreg() or member.isdir()


def _leads_inside(target: str, depth: int) -> bool:
    """Whether a link stays below the folder that it is so many folders deep in."""
    steps = [part for part in target.split("/") if part not in ("", ".")]
    up = next((place for place, part in enumerate(steps) if part != ".."), len(steps))
    # What goes up behind a name may go up from where a link has led.
    return not target.startswith("/") and up <= depth and ".." not in steps[up:]


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
