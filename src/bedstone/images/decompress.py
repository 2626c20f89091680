"""Layers as the tar archives that they are: decompressed in bounded memory, with their digest."""

from __future__ import annotations

import gzip
import hashlib
import sys
import zlib
from typing import BinaryIO, Protocol

from bedstone.errors import InvalidError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_BLOCK = 1 << 18
_WINDOW_LOG = 27  # 128 MiB, which `zstd` itself refuses to exceed without being told


class Source(Protocol):
    """Gives bytes, at most so many and at least one; none at the end."""

    def read(self, size: int, /) -> bytes:
        """The next bytes."""


class _Zstd:
    """The content of one or more frames, one after another."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decompressor = self._fresh()
        self._begun = False

    @staticmethod
    def _fresh() -> zstd.ZstdDecompressor:
        return zstd.ZstdDecompressor(
            options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
        )

    def read(self, size: int, /) -> bytes:
        while True:
            if self._decompressor.eof:
                rest = self._decompressor.unused_data or self._file.read(_BLOCK)
                if not rest:
                    return b""
                self._decompressor = self._fresh()
                data = self._decompressor.decompress(rest, size)
            elif self._decompressor.needs_input:
                block = self._file.read(_BLOCK)
                if not block:
                    if self._begun:
                        raise EOFError("a zstd frame is cut")
                    return b""
                self._begun = True
                data = self._decompressor.decompress(block, size)
            else:
                data = self._decompressor.decompress(b"", size)
            if data:
                return data


class LayerStream:
    """A layer's tar archive, read once from its start.

    Args:
        file: the blob.
        compression: `gzip`, `zstd` or `""` for none.
        limit: bytes of the archive that are read at most.
        algorithm: of its digest.
    """

    def __init__(
        self, file: BinaryIO, compression: str, limit: int, algorithm: str = "sha256"
    ) -> None:
        source: Source
        match compression:
            case "gzip":
                source = gzip.GzipFile(fileobj=file)
            case "zstd":
                source = _Zstd(file)
            case "":
                source = file
            case _:
                raise InvalidError(f"got compression {compression!r}, expected gzip or zstd")
        self._source = source
        self._limit = limit
        self._hash = hashlib.new(algorithm)
        self._algorithm = algorithm
        self.position = 0
        """Bytes that were read."""

    @property
    def digest(self) -> str:
        """Of the bytes that were read: after `finish`, the layer's diff id."""
        return f"{self._algorithm}:{self._hash.hexdigest()}"

    def some(self, size: int) -> bytes:
        """At most so many bytes, and none at the end only.

        Raises:
            InvalidError: it is not compressed as it should be, or larger than its limit.
        """
        try:
            data = self._source.read(min(size, _BLOCK))
        except (EOFError, zlib.error, zstd.ZstdError, gzip.BadGzipFile) as error:
            raise InvalidError(f"a layer cannot be decompressed: {error}") from error
        self.position += len(data)
        if self.position > self._limit:
            raise InvalidError(f"a layer unpacks to more than {self._limit} bytes")
        self._hash.update(data)
        return data

    def read(self, size: int, /) -> bytes:
        """As `some`, for those who read from files."""
        return self.some(size)

    def exactly(self, size: int) -> bytes:
        """So many bytes; raises InvalidError as `some`, and when it ends before."""
        data = self.some(size)
        if len(data) == size:
            return data
        whole = bytearray(data)
        while len(whole) < size:
            data = self.some(size - len(whole))
            if not data:
                raise InvalidError("a layer ends in the middle of an entry")
            whole += data
        return bytes(whole)

    def skip(self, size: int) -> None:
        """Pass so many bytes by; raises as `exactly`."""
        while size:
            data = self.some(size)
            if not data:
                raise InvalidError("a layer ends in the middle of an entry")
            size -= len(data)

    def finish(self) -> None:
        """Read what is left; raises InvalidError as `some`."""
        while self.some(_BLOCK):
            pass
