"""Files between this machine and a box, as a tar stream that nobody holds as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
import posixpath
import tarfile
from collections.abc import AsyncIterator

from bedstone.errors import NotFoundError, UnavailableError
from bedstone.sandbox.boxes import Boxes
from bedstone.sandbox.oci.copying import attributes, set_attributes

_BLOCK = 1 << 18
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
    attributed: list[tuple[str, tarfile.TarInfo]] = []

    def renamed(text: str) -> str:
        _, slash, rest = text.partition("/")
        return text if name is None else posixpath.normpath(f"{name}{slash}{rest}")

    def accepted(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        linkname = renamed(member.linkname) if member.islnk() else member.linkname
        found = member.replace(name=renamed(member.name), linkname=linkname, deep=False)
        try:
            if not _stays(found, folder):
                raise tarfile.LinkOutsideDestinationError(found, linkname)
            checked = tarfile.data_filter(found, path)
        except tarfile.FilterError:
            left.append(member.name)
            return None
        place = posixpath.join(folder, checked.name)
        if os.path.islink(place):  # noqa: PTH114
            os.unlink(place)  # noqa: PTH108
        if checked.pax_headers:
            attributed.append((place, checked))
        return checked

    with (
        os.fdopen(descriptor, "rb") as stream,
        tarfile.open(fileobj=stream, mode="r|", encoding="utf-8") as archive,
    ):
        archive.extractall(folder, filter=accepted)  # noqa: S202 - what is not ours is left out
    for place, member in attributed:
        set_attributes(place, member)
    return left


def _stays(member: tarfile.TarInfo, folder: str) -> bool:
    """Whether a member is below the folder, by no link, and its own link leads nowhere else.

    Said of paths as they are written, since resolving them has its limits.
    """
    parts = member.name.split("/")
    if ".." in parts or member.name.startswith("/"):
        return False
    places = [parts[:count] for count in range(1, len(parts))]
    if member.islnk():
        source = member.linkname.split("/")
        places += [source[:count] for count in range(1, len(source) + 1)]
    if any(os.path.islink(posixpath.join(folder, *place)) for place in places):  # noqa: PTH114
        return False
    if member.islnk():
        return os.path.lexists(posixpath.join(folder, member.linkname))
    if not member.issym():
        return True
    steps = [part for part in member.linkname.split("/") if part not in ("", ".")]
    up = next((place for place, part in enumerate(steps) if part != ".."), len(steps))
    return not member.linkname.startswith("/") and up < len(parts) and ".." not in steps[up:]


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
