"""The kernel's FUSE protocol, as much as a static, read-only directory of files needs. Pure.

Source: `include/uapi/linux/fuse.h` of Linux, protocol 7.31 and later. Nothing of a session but its
descriptor outlives a reply: inode numbers are fixed, so a server may take over from another
wherever that stopped.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from bedstone.errors import InvalidError

BUFFER = 64 * 1024
"""Bytes that a read of the descriptor must have room for; the kernel wants 8 KiB at least."""

_HEADER = struct.Struct("<IIQQIIIHH")
_REPLY = struct.Struct("<IiQ")
_READ = struct.Struct("<QQIIQII")
_INIT = struct.Struct("<IIII")
_ATTRIBUTES = struct.Struct("<QQQQQQIIIIIIIIII")

_ASYNC_READ, _ASYNC_DIO, _PARALLEL_DIROPS = 1 << 0, 1 << 15, 1 << 18
_MAX_PAGES, _INIT_EXT = 1 << 22, 1 << 30
_HAS_RESEND = 1 << 7  # in the second word of flags; Linux 6.9
_WANTED = _ASYNC_READ | _ASYNC_DIO | _PARALLEL_DIROPS | _MAX_PAGES | _INIT_EXT
_PAGES = 256  # of one read, the kernel's default limit
_DIRECT_IO = 1 << 0
_NOTIFY_RESEND = 7
_FOREVER = 1 << 31  # seconds: nothing here ever changes
_ROOT = 1
_MODE_DIRECTORY, _MODE_FILE = 0o040500, 0o100400


class Op(IntEnum):
    """The requests that are answered; any other gets ENOSYS."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    OPEN = 14
    READ = 15
    STATFS = 17
    RELEASE = 18
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42


@dataclass(frozen=True, slots=True)
class Request:
    """One request: what, by which id it is answered, of which inode, and its arguments."""

    op: int
    unique: int
    node: int
    body: bytes


@dataclass(frozen=True, slots=True)
class ReadFile:
    """What remains to be done of a request: read `length` bytes of a file from `offset`."""

    name: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class File:
    """A file that is served: its name and bytes."""

    name: str
    size: int


def request(data: bytes | memoryview) -> Request:
    """A request from one read of the descriptor. Raises InvalidError if it is none."""
    if len(data) < _HEADER.size:
        raise InvalidError(f"a FUSE request has {len(data)} bytes")
    length, op, unique, node, *_ = _HEADER.unpack_from(data)
    if length != len(data):
        raise InvalidError(f"a FUSE request of {length} bytes came as {len(data)}")
    return Request(op, unique, node, bytes(data[_HEADER.size :]))


def reply(unique: int, pieces: Sequence[bytes | memoryview] = ()) -> list[bytes | memoryview]:
    """What to write to the descriptor, by one call, to answer a request."""
    return [_REPLY.pack(_REPLY.size + sum(map(len, pieces)), 0, unique), *pieces]


def refusal(unique: int, number: int) -> list[bytes | memoryview]:
    """The answer that a request failed, with an errno."""
    return [_REPLY.pack(_REPLY.size, -number, unique)]


def resend() -> bytes:
    """Asks the kernel to give again every request that is read but not answered (Linux 6.9)."""
    return _REPLY.pack(_REPLY.size, _NOTIFY_RESEND, 0)


def init(asked: Request) -> tuple[bytes, bool]:
    """The answer to INIT, and whether the kernel can resend.

    Raises:
        InvalidError: the kernel's protocol is older than 7.31 (Linux 5.4).
    """
    major, minor, readahead, flags = _INIT.unpack_from(asked.body)
    if (major, minor) < (7, 31):
        raise InvalidError(f"the kernel speaks FUSE {major}.{minor}, expected 7.31 or later")
    more = struct.unpack_from("<I", asked.body, _INIT.size)[0] if flags & _INIT_EXT else 0
    answer = struct.pack(
        "<IIIIHHIIHHII24x",
        7,
        min(minor, 39),
        readahead,
        flags & _WANTED,
        64,  # requests in the background, at most
        48,
        4096,  # max_write, which never happens
        1,
        _PAGES,
        0,
        more & _HAS_RESEND,
        0,
    )
    return answer, bool(more & _HAS_RESEND)


class Tree:
    """The directory: one level, its files numbered from 2 in the order given."""

    def __init__(self, files: Sequence[File]) -> None:
        self._files = list(files)

    def answer(  # noqa: C901, PLR0911 (one arm a request)
        self, asked: Request
    ) -> list[bytes | memoryview] | ReadFile | None:
        """The reply, or what must be read for it; None where the kernel awaits none."""
        match asked.op:
            case Op.FORGET | Op.BATCH_FORGET | Op.INTERRUPT | Op.DESTROY:
                return None
            case Op.LOOKUP:
                return self._lookup(asked)
            case Op.GETATTR:
                attributes = self._attributes(asked.node)
                if attributes is None:
                    return refusal(asked.unique, errno.ENOENT)
                return reply(asked.unique, [struct.pack("<QII", _FOREVER, 0, 0) + attributes])
            case Op.OPEN:
                # The kernel's own page cache is EROFS's; a second one of this file would double it.
                return reply(asked.unique, [struct.pack("<QIi", 0, _DIRECT_IO, 0)])
            case Op.OPENDIR:
                return reply(asked.unique, [struct.pack("<QIi", 0, 0, 0)])
            case Op.RELEASE | Op.RELEASEDIR:
                return reply(asked.unique)
            case Op.STATFS:
                return reply(
                    asked.unique, [struct.pack("<QQQQQIIII24x", *[0] * 5, 4096, 255, 4096, 0)]
                )
            case Op.READDIR:
                return self._list(asked)
            case Op.READ:
                return self._read(asked)
            case _:
                return refusal(asked.unique, errno.ENOSYS)

    def _file(self, node: int) -> File | None:
        position = node - _ROOT - 1
        return self._files[position] if 0 <= position < len(self._files) else None

    def _attributes(self, node: int) -> bytes | None:
        file = self._file(node)
        if node != _ROOT and file is None:
            return None
        size = file.size if file else 0
        mode = _MODE_FILE if file else _MODE_DIRECTORY
        links = 1 if file else 2
        blocks = -(-size // 512)
        return _ATTRIBUTES.pack(node, size, blocks, 0, 0, 0, 0, 0, 0, mode, links, 0, 0, 0, 4096, 0)

    def _lookup(self, asked: Request) -> list[bytes | memoryview]:
        name = asked.body.rstrip(b"\0").decode("utf-8", "replace")
        for position, file in enumerate(self._files):
            if asked.node == _ROOT and file.name == name:
                node = _ROOT + 1 + position
                head = struct.pack("<QQQQII", node, 0, _FOREVER, _FOREVER, 0, 0)
                return reply(asked.unique, [head + (self._attributes(node) or b"")])
        return refusal(asked.unique, errno.ENOENT)

    def _list(self, asked: Request) -> list[bytes | memoryview]:
        _, offset, size, *_ = _READ.unpack_from(asked.body)
        names = [(_ROOT, ".", 4), (_ROOT, "..", 4)]
        names += [(_ROOT + 1 + it, file.name, 8) for it, file in enumerate(self._files)]
        listed = bytearray()
        for position, (node, name, kind) in enumerate(names):
            entry = struct.pack("<QQII", node, position + 1, len(name), kind) + name.encode()
            entry += bytes(-len(entry) % 8)
            if position < offset:
                continue
            if len(listed) + len(entry) > size:
                break
            listed += entry
        return reply(asked.unique, [bytes(listed)])

    def _read(self, asked: Request) -> list[bytes | memoryview] | ReadFile:
        file = self._file(asked.node)
        if file is None:
            return refusal(asked.unique, errno.ENOENT)
        _, offset, size, *_ = _READ.unpack_from(asked.body)
        length = max(0, min(size, file.size - offset))
        return ReadFile(file.name, offset, length) if length else reply(asked.unique)
