"""Reads from the middle of a gzip stream: points where inflating can begin.

A point is a boundary of deflate blocks: the bytes before it that later ones refer back to (the
window, at most 32 KiB), and how many bits of the byte before belong to it. `indexed_gzip` finds
them while a layer is read once; inflating from one needs only zlib. What lies between two points
is a span, the least that can be had. Windows are chunks of the lazy image, got when they are
needed: together they are a tenth of the layer.

Form: `BDSSPAN2`, then one zstd frame of u32 points, u64 compressed and uncompressed bytes in all,
then of each point u64 compressed offset, u64 uncompressed offset, u8 bits, and i32 number of the
chunk that is its window, or -1.
"""

from __future__ import annotations

import io
import struct
import zlib
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

from bedstone.errors import InvalidError
from bedstone.images.lazy.packing import pack, unpack

SPACING = 128 * 1024
"""Uncompressed bytes between points, about."""

_MAGIC = b"BDSSPAN2"
_POINT = struct.Struct("<QQBi")
WINDOW = 32 * 1024


@dataclass(frozen=True, slots=True)
class Point:
    """Where inflating can begin.

    Attributes:
        packed: the compressed offset of the first whole byte.
        plain: the uncompressed offset.
        bits: how many of the high bits of the byte before `packed` come first.
        window: the chunk with what later bytes may refer back to; -1 at a member's beginning.
    """

    packed: int
    plain: int
    bits: int
    window: int


class Spans:
    """The points of one gzip stream, the first at its beginning."""

    def __init__(self, points: list[Point], packed: int, plain: int) -> None:
        if not points or points[0].plain != 0:
            raise InvalidError("the points of a gzip stream do not begin with it")
        self.points = points
        self.packed = packed
        self.plain = plain
        self._starts = [point.plain for point in points]

    def find(self, offset: int) -> int:
        """The span that an uncompressed offset is in."""
        return bisect_right(self._starts, offset) - 1

    def bounds(self, span: int) -> tuple[int, int]:
        """The compressed bytes of a span: first, and one past the last."""
        point = self.points[span]
        begin = max(point.packed - (1 if point.bits else 0), 0)
        last = span + 1 == len(self.points)
        return begin, self.packed if last else self.points[span + 1].packed

    def start(self, span: int) -> int:
        """The uncompressed offset where a span begins."""
        return self._starts[span]

    def inflate(self, span: int, data: bytes, window: bytes) -> bytes:
        """The span's uncompressed bytes, from those of `bounds` and the content of its window.

        Raises:
            InvalidError: they are not what the points are of.
        """
        point = self.points[span]
        last = span + 1 == len(self.points)
        length = (self.plain if last else self.points[span + 1].plain) - point.plain
        try:
            return _inflate(point, data, length, window)
        except zlib.error as error:
            raise InvalidError(f"a gzip stream cannot be read at its points: {error}") from error

    def encode(self) -> bytes:
        """The points' bytes."""
        parts = [struct.pack("<IQQ", len(self.points), self.packed, self.plain)]
        parts += [_POINT.pack(it.packed, it.plain, it.bits, it.window) for it in self.points]
        return _MAGIC + pack(b"".join(parts))

    @classmethod
    def decode(cls, data: bytes) -> Spans:
        """Read points.

        Raises:
            InvalidError: these are none.
        """
        try:
            if not data.startswith(_MAGIC):
                raise ValueError("they begin with other bytes")
            body = unpack(data[len(_MAGIC) :])
            count, packed, plain = struct.unpack_from("<IQQ", body)
            if len(body) != 20 + _POINT.size * count:
                raise ValueError(f"{len(body)} bytes are not {count} points")
            points = [
                Point(*_POINT.unpack_from(body, 20 + _POINT.size * it)) for it in range(count)
            ]
        except (ValueError, struct.error, InvalidError) as error:
            raise InvalidError(f"the points of a gzip stream cannot be read: {error}") from error
        return cls(points, packed, plain)


class Reading(io.RawIOBase):
    """A gzip stream to read once from its beginning; `finish` gives its points then.

    Args:
        path: of the compressed file.
        scratch: a directory for a file being written.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        import indexed_gzip

        self._scratch = scratch

        self._size = path.stat().st_size
        self._file = indexed_gzip.IndexedGzipFile(str(path), spacing=SPACING, drop_handles=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes. Raises InvalidError: it is no sound gzip stream."""
        try:
            return int(self._file.readinto(buffer))
        except OSError as error:  # a checksum that is wrong comes as one too
            raise InvalidError(f"a layer is no sound gzip stream: {error}") from error

    def buffered(self) -> BinaryIO:
        """To read from, by whatever pieces."""
        return cast("BinaryIO", io.BufferedReader(self, 1 << 20))

    def finish(self, keep: Callable[[bytes], int]) -> Spans:
        """Read what is left, and give the points; `keep` makes a chunk of a window."""
        rest = bytearray(1 << 20)
        while self.readinto(rest):
            pass
        # On disk: in a large layer there is one window for each 128 KiB, and each is of 32 KiB.
        path = self._scratch / "windows"
        try:
            self._file.export_index(str(path))
            with path.open("rb") as exported:
                return _import(exported, self._size, keep)
        finally:
            path.unlink(missing_ok=True)


def _import(file: BinaryIO, packed: int, keep: Callable[[bytes], int]) -> Spans:
    """Points from indexed_gzip's own form (GZIDX, version 1; `zran_export_index` has it)."""
    form = struct.Struct("<5sBBQQIII")
    magic, version, _flags, _packed, plain, _spacing, window, count = form.unpack(
        file.read(form.size)
    )
    if magic != b"GZIDX" or version != 1:
        raise InvalidError(f"indexed_gzip wrote an index of version {version}, expected 1")
    head = struct.Struct("<QQBB")
    heads = [head.unpack(file.read(head.size)) for _ in range(count)]
    points = []
    for begin, offset, bits, has_window in heads:
        chunk = keep(file.read(window)) if has_window else -1
        points.append(Point(begin, offset, bits, chunk))
    if not points or points[0].plain:
        points.insert(0, Point(0, 0, 0, -1))  # a short stream gets none
    return Spans(points, packed, plain)


def _inflate(point: Point, data: bytes, length: int, window: bytes) -> bytes:
    if point.window < 0:
        return _members(data, length)
    first, lead = data, 0
    if point.bits:
        # zlib's inflatePrime is not in Python. Blocks without content come first, as long as the
        # bits of the first byte that are not ours: stored blocks need all bytes where they were.
        bits = _EMPTY[8 - point.bits]
        lead = len(bits) // 8
        whole = int(bits[::-1], 2) | data[0] >> (8 - point.bits) << len(bits)
        first = whole.to_bytes(lead + 1, "little") + data[1:]
    inflater = zlib.decompressobj(-zlib.MAX_WBITS, zdict=window)
    content = inflater.decompress(first, length)
    if len(content) == length:
        return content
    # A member ends within the span: 8 bytes of trailer, then the next one.
    rest = inflater.unused_data[8:]
    if not inflater.eof or not rest:
        raise zlib.error("a span is short")
    return content + _members(rest, length - len(content))


def _empty() -> list[str]:
    """Deflate blocks without content, first bit first, by their bits modulo 8 (RFC 1951, 3.2).

    A block of fixed codes and nothing in it takes 10 bits, so some of them give any even number.
    One of dynamic codes with 19 code lengths takes 95: 18 and 0 and 1 are the code's symbols, and
    the only literal code is that of the block's end.
    """
    fixed = "010" + "0000000"
    lengths = dict.fromkeys(range(19), "000") | {2: "100", 3: "010", 17: "010"}
    dynamic = "001" + "00000" + "00000" + "1111" + "".join(lengths.values())
    dynamic += "0" + "1111111" + "0" + "1101011" + "11" + "10" + "0"
    found = [fixed * count for count in range(4)]
    found += [dynamic + it for it in found]
    return [next(it for it in found if len(it) % 8 == wanted) for wanted in range(8)]


_EMPTY = _empty()


def _members(data: bytes, length: int) -> bytes:
    """Inflate gzip members, or a raw stream where no header is, up to `length` bytes."""
    content = b""
    while True:
        wrapped = data[:2] == b"\x1f\x8b"
        inflater = zlib.decompressobj(31 if wrapped else -zlib.MAX_WBITS)
        content += inflater.decompress(data, length - len(content))
        if len(content) == length:
            return content
        if not inflater.eof:
            raise zlib.error("a span is short")
        data = inflater.unused_data if wrapped else inflater.unused_data[8:]
        if not data:
            raise zlib.error("a span is short")
