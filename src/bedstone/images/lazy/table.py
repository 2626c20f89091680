"""Where the bytes of each chunk are: the table that goes with EROFS metadata.

The device that the metadata names does not exist anywhere: it is the unique chunks one after the
other, each at a block's beginning, and the table says which blob each can be had from. A chunk is
known by the SHA-256 of its content (of an encrypted image: of its sealed bytes), and the table is
known by its own digest, so a chunk that verifies is the one that the image was made with.

Form (little-endian): `BDSTABL1`, u32 bytes of JSON, the JSON (`chunks`, `blobs`), then by column
for all chunks: digest 32 B, size u32, blob u16, stored u32, offset u64; all behind the magic is one
zstd frame.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bedstone.errors import InvalidError
from bedstone.images.lazy.erofs import BLOCK
from bedstone.images.lazy.packing import pack, unpack
from bedstone.images.lazy.tree import CHUNK

_MAGIC = b"BDSTABL1"


@dataclass(frozen=True, slots=True)
class Blob:
    """Something in a registry that chunks are read from.

    Attributes:
        digest: `sha256:` and 64 hexadecimal digits.
        size: its bytes.
        kind: `chunks`: they lie in it one by one, compressed by zstd where that is shorter; `tar`
            and `gzip`: a layer as it is, where offsets count uncompressed bytes.
    """

    digest: str
    size: int
    kind: Literal["chunks", "tar", "gzip"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where one chunk is.

    Attributes:
        digest: SHA-256 of its content.
        size: bytes of its content.
        blob: index into `Table.blobs`.
        offset: where it begins there.
        stored: bytes that it takes there; equal to `size` if not compressed by itself.
    """

    digest: bytes
    size: int
    blob: int
    offset: int
    stored: int


class Table:
    """The chunks of an image, by number. Chunks of equal content are one."""

    def __init__(self, blobs: Sequence[Blob] = ()) -> None:
        self.blobs = list(blobs)
        self._digests = bytearray()
        self._sizes = array("I")
        self._blob = array("H")
        self._stored = array("I")
        self._offsets = array("Q")
        self._numbers: dict[bytes, int] = {}
        self._starts = array("I")
        self._blocks = 0
        self._order: dict[int, list[int]] = {}  # of a finished table

    def __len__(self) -> int:
        return len(self._sizes)

    def number(self, content: bytes) -> tuple[int, bool]:
        """The number of a chunk, and whether it is new: it has no place yet then."""
        digest = hashlib.sha256(content).digest()
        known = self._numbers.get(digest)
        if known is not None:
            return known, False
        number = self._numbers[digest] = len(self._sizes)
        self._digests += digest
        self._sizes.append(len(content))
        self._blob.append(0)
        self._stored.append(0)
        self._offsets.append(0)
        return number, True

    def digest(self, number: int) -> bytes:
        """A chunk's digest."""
        return bytes(self._digests[32 * number : 32 * number + 32])

    def rename(self, number: int, digest: bytes) -> None:
        """Know a chunk by another digest: in an encrypted image, by that of its sealed bytes."""
        self._digests[32 * number : 32 * number + 32] = digest

    def put(self, number: int, blob: int, offset: int, stored: int) -> None:
        """Say where a chunk is."""
        self._blob[number] = blob
        self._offsets[number] = offset
        self._stored[number] = stored

    def place(self, number: int) -> Place:
        """Where a chunk is."""
        return Place(
            self.digest(number),
            self._sizes[number],
            self._blob[number],
            self._offsets[number],
            self._stored[number],
        )

    def addresses(self) -> tuple[Sequence[int], int]:
        """Of each chunk, the device's block where it begins; and how many blocks there are."""
        if len(self._starts) != len(self._sizes):
            self._starts = array("I")
            self._blocks = 0
            for size in self._sizes:
                self._starts.append(self._blocks)
                self._blocks += -(-size // BLOCK)
        return self._starts, self._blocks

    def find(self, block: int) -> tuple[int, int]:
        """The chunk that a block of the device belongs to: its number, and its first byte there."""
        starts, _ = self.addresses()
        number = bisect_right(starts, block) - 1
        return number, starts[number] * BLOCK

    def within(self, blob: int, begin: int, end: int) -> Iterator[int]:
        """The chunks of a blob that lie in it, uncompressed, from `begin` to before `end`."""
        order = self._order.get(blob)
        if order is None:
            mine = (number for number, of in enumerate(self._blob) if of == blob)
            order = self._order[blob] = sorted(mine, key=self._offsets.__getitem__)
        for position in range(bisect_left(order, begin, key=self._offsets.__getitem__), len(order)):
            number = order[position]
            if self._offsets[number] + self._sizes[number] > end:
                return
            yield number

    def encode(self) -> bytes:
        """The table's bytes; the same table gives the same."""
        head = json.dumps(
            {"chunks": len(self), "blobs": [asdict(blob) for blob in self.blobs]},
            separators=(",", ":"),
        ).encode()
        columns = (self._sizes, self._blob, self._stored, self._offsets)
        body = b"".join([struct.pack("<I", len(head)), head, self._digests, *map(_little, columns)])
        return _MAGIC + pack(body)

    @classmethod
    def decode(cls, data: bytes) -> Table:
        """Read a table.

        Raises:
            InvalidError: it is none, or one that contradicts itself.
        """
        try:
            return cls._decode(data)
        except (ValueError, KeyError, TypeError, struct.error, InvalidError) as error:
            raise InvalidError(f"a table of chunks cannot be read: {error}") from error

    @classmethod
    def _decode(cls, data: bytes) -> Table:
        if not data.startswith(_MAGIC):
            raise ValueError("it begins with other bytes")
        body = unpack(data[len(_MAGIC) :])
        (length,) = struct.unpack_from("<I", body)
        head: dict[str, Any] = json.loads(body[4 : 4 + length])
        count, at = int(head["chunks"]), 4 + length
        if count < 0 or len(body) != at + 50 * count:
            raise ValueError(f"{len(body)} bytes are not a table of {count} chunks")
        table = cls([Blob(**blob) for blob in head["blobs"]])
        table._digests += body[at : at + 32 * count]
        at += 32 * count
        for column in (table._sizes, table._blob, table._stored, table._offsets):
            width = column.itemsize * count
            column.frombytes(body[at : at + width])
            if sys.byteorder == "big":
                column.byteswap()
            at += width
        if count and (max(table._blob) >= len(table.blobs) or max(table._sizes) > CHUNK):
            raise ValueError("a chunk is outside")
        if any(blob.kind not in ("chunks", "tar", "gzip") for blob in table.blobs):
            raise ValueError("a blob is of unknown kind")
        return table


def _little(column: array[int]) -> bytes:
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column.tobytes()
