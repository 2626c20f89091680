"""Tar streams of the host to the records that a guest's agent reads and writes, and back.

A record is `length: u32`, that many bytes of JSON, and `size` bytes of content. All of tar's
dialects are understood here, so that the agent needs to know none of them. Names are bytes, written
in JSON as the characters U+0000 to U+00FF.

Extended attributes are not carried. Devices and pipes are refused on the way in.
"""

from __future__ import annotations

import asyncio
import json
import os
import posixpath
import socket
import struct
import tarfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, Final

from bedstone.errors import InvalidError, UnavailableError

_CHUNK: Final = 64 * 1024
_MAX_HEADER: Final = 64 * 1024
_MODE: Final = 0o1777
"""Bits that are carried; those that give a user's or group's rights away are not."""
_LENGTH: Final = struct.Struct("<I")


def _to_wire(name: str) -> str:
    return os.fsencode(name).decode("latin-1")


def _from_wire(name: str) -> str:
    return os.fsdecode(name.encode("latin-1"))


def _record(header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    return _LENGTH.pack(len(text)) + text


def clean(name: str) -> str:
    """A member's name below the folder it goes to, empty for the folder itself.

    Raises:
        InvalidError: it leads out of the folder.
    """
    plain = posixpath.normpath(name.lstrip("/") or ".")
    if plain == ".." or plain.startswith("../") or "\0" in plain:
        raise InvalidError(f"the archive's member {name!r} leads out of the folder")
    return "" if plain == "." else plain


def records(archive: IO[bytes]) -> Iterator[bytes]:
    """The records of a tar stream, which is read once from start to end.

    Raises:
        InvalidError: no tar archive, or a member that cannot be there.
    """
    try:
        with tarfile.open(fileobj=archive, mode="r|*") as tar:
            for member in tar:
                yield from _member(tar, member)
    except (tarfile.TarError, EOFError, UnicodeError, ValueError) as error:
        raise InvalidError(f"not a tar archive: {error}") from error


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    name = clean(member.name)
    header: dict[str, Any] = {
        "name": _to_wire(name),
        "mode": member.mode & _MODE,
        "user": member.uid,
        "group": member.gid,
        "mtime": int(member.mtime),
    }
    match member.type:
        case tarfile.REGTYPE | tarfile.AREGTYPE | tarfile.CONTTYPE | tarfile.GNUTYPE_SPARSE:
            content = tar.extractfile(member)
            if content is None or not name:
                raise InvalidError(f"the archive's member {member.name!r} has no content")
            yield _record({**header, "type": "file", "size": member.size})
            left = member.size
            while left:
                data = content.read(min(_CHUNK, left))
                if not data:
                    raise InvalidError(f"the archive ends within {member.name!r}")
                left -= len(data)
                yield data
        case tarfile.DIRTYPE:
            if name:
                yield _record({**header, "type": "folder"})
        case tarfile.SYMTYPE:
            yield _record({**header, "type": "symlink", "target": _to_wire(member.linkname)})
        case tarfile.LNKTYPE:
            target = _to_wire(clean(member.linkname))
            yield _record({**header, "type": "hardlink", "target": target})
        case _:
            raise InvalidError(f"the archive's member {member.name!r} is a device or a pipe")


async def to_records(archive: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The records of a tar stream that comes in pieces of any size.

    Raises:
        InvalidError: as `records`.
    """
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    _, writer = await asyncio.open_connection(sock=ours)
    # A thread of its own: those of the loop may all wait, and this one waits for the archive.
    with ThreadPoolExecutor(1) as pool, theirs, theirs.makefile("rb") as source:
        filling = asyncio.ensure_future(_fill(archive, writer))
        iterator = records(source)
        try:
            while True:
                item = await loop.run_in_executor(pool, _next, iterator, filling)
                if item is None:
                    return
                yield item
        finally:
            filling.cancel()
            await asyncio.gather(filling, return_exceptions=True)


def _next(iterator: Iterator[bytes], filling: asyncio.Future[None]) -> bytes | None:
    try:
        return next(iterator, None)
    except InvalidError:
        if filling.done() and not filling.cancelled() and (error := filling.exception()):
            raise error from None  # the archive was cut because its source failed
        raise


async def _fill(archive: AsyncIterator[bytes], writer: asyncio.StreamWriter) -> None:
    try:
        async for data in archive:
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # the archive has ended, and its source has not
    finally:
        writer.close()


async def to_tar(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The tar stream (PAX) of records that a guest sends.

    Raises:
        UnavailableError: they are not what an agent sends.
    """
    buffer = bytearray()
    left = padding = 0
    async for data in stream:
        buffer += data
        while buffer:
            if left:
                part = bytes(buffer[:left])
                del buffer[: len(part)]
                left -= len(part)
                yield part + bytes(0 if left else padding)
                continue
            if len(buffer) < _LENGTH.size:
                break
            (length,) = _LENGTH.unpack_from(buffer)
            if length > _MAX_HEADER:
                raise UnavailableError(f"the guest's agent sent a header of {length} bytes")
            if len(buffer) < _LENGTH.size + length:
                break
            info = _info(bytes(buffer[_LENGTH.size : _LENGTH.size + length]))
            del buffer[: _LENGTH.size + length]
            left, padding = info.size, -info.size % tarfile.BLOCKSIZE
            yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    if left or buffer:
        raise UnavailableError("the guest's agent stopped within a file")
    yield bytes(2 * tarfile.BLOCKSIZE)


_TYPES: Final = {
    "file": tarfile.REGTYPE,
    "folder": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
}


def _info(header: bytes) -> tarfile.TarInfo:
    try:
        value = json.loads(header)
        info = tarfile.TarInfo(clean(_from_wire(value["name"])) or ".")
        info.type = _TYPES[value["type"]]
        info.mode = int(value["mode"]) & _MODE
        info.uid, info.gid = int(value["user"]), int(value["group"])
        info.mtime = int(value["mtime"])
        info.size = int(value.get("size", 0)) if info.type == tarfile.REGTYPE else 0
        info.linkname = _from_wire(value.get("target", ""))
    except (ValueError, TypeError, KeyError, UnicodeError, InvalidError) as error:
        raise UnavailableError(f"the guest's agent sent no record: {error}") from error
    if min(info.size, info.uid, info.gid) < 0:
        raise UnavailableError("the guest's agent sent a record with a negative number")
    return info
