"""Makes lazy images from layers: converted, or an index over the layers as they are.

`convert` writes the content of each layer anew, as chunks one by one, into a blob that depends on
the layer alone: images that share a layer share its blob. `index` leaves the layers where they are,
and notes where in them each chunk is; what has no one place there (the pieces of a sparse file)
goes into a blob of the index's own.
"""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import cramjam

from bedstone.errors import InvalidError, VerificationError
from bedstone.images.decompress import LayerStream
from bedstone.images.lazy import erofs
from bedstone.images.lazy.layers import Sink, read_layer
from bedstone.images.lazy.sealing import Cipher
from bedstone.images.lazy.spans import WINDOW, Reading, Spans
from bedstone.images.lazy.table import Blob, Table
from bedstone.images.lazy.tree import Inode, Merger

_LEVEL = 6
_THREADS = 2
_LARGEST = 128 << 30  # bytes of a layer's archive
_AHEAD = 16  # chunks being compressed at once


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer to read.

    Attributes:
        digest: of the compressed bytes, `sha256:…`; the reader has verified it.
        path: the file with them.
        compression: what the tar is wrapped in, if in anything.
        diff_id: what the config says the tar's digest is; not compared if it is empty.
    """

    digest: str
    path: Path
    compression: Literal["", "gzip", "zstd"]
    diff_id: str = ""


@dataclass(frozen=True, slots=True)
class Lazy:
    """A lazy image, but for the blobs that its table names.

    Attributes:
        metadata: what the kernel mounts.
        table: where the chunks are.
        spans: of each gzip layer that the table names, by the layer's digest.
    """

    metadata: bytes
    table: Table
    spans: dict[str, Spans]


@dataclass(frozen=True, slots=True)
class Made(Lazy):
    """A lazy image that was just made.

    Attributes:
        root: the merged tree.
    """

    root: Inode


def convert(
    layers: Sequence[Layer],
    keep: Callable[[Path], str],
    scratch: Path,
    *,
    compress: bool = True,
    cipher: Cipher | None = None,
) -> Made:
    """Write the layers' content as chunks.

    Args:
        layers: the lowest first.
        keep: takes a finished blob's file into a store, and returns its digest.
        scratch: a directory for files being written.
        compress: whether chunks are stored by zstd where that is shorter.
        cipher: seals each chunk; its blobs are of this image alone, then.

    Raises:
        InvalidError: a layer cannot be read, or its tree not expressed.
        VerificationError: a layer is not the archive that the config says.
    """
    table, merger = Table(), Merger()
    with ThreadPoolExecutor(_THREADS) as threads:
        for layer in layers:
            path = scratch / f"{layer.digest.removeprefix('sha256:')}.chunks"
            with path.open("wb") as out:
                pool = threads if compress else None
                sink = _Chunks(table, len(table.blobs), out, pool, cipher)
                with layer.path.open("rb") as file:
                    _read(layer, file, layer.compression, merger, sink)
                sink.finish()
            table.blobs.append(Blob(keep(path), path.stat().st_size, "chunks"))
            path.unlink()
    return _finish(merger.root, table, {})


def index(layers: Sequence[Layer], keep: Callable[[Path], str], scratch: Path) -> Made:
    """Note where in the layers, as they are, each chunk is.

    Args:
        layers: the lowest first, each a plain or gzip tar.
        keep: takes the index's own blob into a store, and returns its digest.
        scratch: a directory for a file being written.

    Raises:
        InvalidError, VerificationError: as `convert`; also, a layer's compression has no points to
            begin at.
    """
    table, merger, spans = Table(), Merger(), dict[str, Spans]()
    for layer in layers:
        if layer.compression == "zstd":
            raise InvalidError(
                f"layer {layer.digest} is one zstd stream, which cannot be read from its middle",
                hint="convert the image instead",
            )
        kind: Literal["gzip", "tar"] = "gzip" if layer.compression == "gzip" else "tar"
        table.blobs.append(Blob(layer.digest, layer.path.stat().st_size, kind))
    own = len(table.blobs)
    path = scratch / "index.chunks"
    with path.open("wb") as out, ThreadPoolExecutor(_THREADS) as threads:
        extra = _Chunks(table, own, out, threads)
        for number, layer in enumerate(layers):
            sink = _InPlace(table, number, extra)
            if not layer.compression:
                with layer.path.open("rb") as file:
                    _read(layer, file, "", merger, sink)
                continue
            with Reading(layer.path, scratch) as reading:
                _read(layer, reading.buffered(), "", merger, sink)
                spans[layer.digest] = reading.finish(extra.window)
            _check(layer, spans[layer.digest], table)
        extra.finish()
    if path.stat().st_size:
        table.blobs.append(Blob(keep(path), path.stat().st_size, "chunks"))
    path.unlink()
    return _finish(merger.root, table, spans)


def _read(layer: Layer, file: BinaryIO, compression: str, merger: Merger, sink: Sink) -> None:
    """Merge a layer, which must be the archive that the config says."""
    algorithm = layer.diff_id.partition(":")[0] or "sha256"
    stream = LayerStream(file, compression, _LARGEST, algorithm)
    read_layer(stream, merger, sink)
    stream.finish()
    if layer.diff_id not in ("", stream.digest):
        raise VerificationError(
            f"layer {layer.digest} is archive {stream.digest}, expected {layer.diff_id}"
        )


class _Chunks:
    """A sink that writes chunks one after the other; compresses some ahead in threads."""

    def __init__(
        self,
        table: Table,
        blob: int,
        out: BinaryIO,
        threads: ThreadPoolExecutor | None,
        cipher: Cipher | None = None,
    ) -> None:
        self._table, self._blob, self._out, self._threads = table, blob, out, threads
        self._cipher = cipher
        self._at = 0
        self._waiting: deque[tuple[int, bytes, Future[bytes]]] = deque()
        self._mine: set[int] = set()

    def chunk(self, content: bytes, offset: int | None) -> int:
        """Store it in this blob unless it is there.

        A chunk that a lower layer's blob has too is stored again, for this blob is of its layer
        alone; the table names the first. Sealed, a blob is of its image, and needs no other.
        """
        del offset
        number, new = self._table.number(content)
        if number in self._mine or (self._cipher is not None and not new):
            return number
        self._put(number, content, place=new)
        return number

    def window(self, content: bytes) -> int:
        """Store a window, in this blob: to inflate must not need what is to be inflated."""
        number, _ = self._table.number(content)
        if number not in self._mine:
            self._put(number, content, place=True)
        return number

    def _put(self, number: int, content: bytes, *, place: bool) -> None:
        self._mine.add(number)
        target = number if place else -1
        if self._threads is None:
            self._write(target, content, content)
        else:
            self._waiting.append((target, content, self._threads.submit(_compress, content)))
            if len(self._waiting) >= _AHEAD:
                self._drain_one()

    def finish(self) -> None:
        """Write what is waiting."""
        while self._waiting:
            self._drain_one()

    def _drain_one(self) -> None:
        number, content, packed = self._waiting.popleft()
        self._write(number, content, packed.result())

    def _write(self, number: int, content: bytes, packed: bytes) -> None:
        stored = packed if len(packed) < len(content) else content
        if self._cipher is not None:
            stored = self._cipher.seal("chunk", number, stored)
            self._table.rename(number, hashlib.sha256(stored).digest())
        self._out.write(stored)
        if number >= 0:
            self._table.put(number, self._blob, self._at, len(stored))
        self._at += len(stored)


class _InPlace:
    """A sink that leaves chunks where the layer has them."""

    def __init__(self, table: Table, blob: int, extra: _Chunks) -> None:
        self._table, self._blob, self._extra = table, blob, extra

    def chunk(self, content: bytes, offset: int | None) -> int:
        """Note its place; one that has none there goes into the index's own blob."""
        if offset is None:
            return self._extra.chunk(content, None)
        number, new = self._table.number(content)
        if new:
            self._table.put(number, self._blob, offset, len(content))
        return number


def _check(layer: Layer, spans: Spans, table: Table) -> None:
    """Inflate every span once: what cannot be had later must not be promised now."""
    before = b""
    with layer.path.open("rb") as file:
        for span, point in enumerate(spans.points):
            begin, end = spans.bounds(span)
            file.seek(begin)
            window = before[-WINDOW:] if point.window >= 0 else b""
            if window and hashlib.sha256(window).digest() != table.digest(point.window):
                raise InvalidError(f"layer {layer.digest} has another window at {point.plain}")
            before = before[-WINDOW:] + spans.inflate(span, file.read(end - begin), window)


def _compress(content: bytes) -> bytes:
    return bytes(cramjam.zstd.compress(content, level=_LEVEL))


def _finish(root: Inode, table: Table, spans: dict[str, Spans]) -> Made:
    addresses, blocks = table.addresses()
    identity = hashlib.sha256(struct.pack("<I", blocks) + table.encode()).digest()[:16]
    metadata = erofs.write(root, addresses, blocks, uuid=identity)
    return Made(metadata, table, spans, root)
