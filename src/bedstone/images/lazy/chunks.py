"""Gets chunks: from memory, the cache, or a source; verified, whichever it was.

Invariants:
- No byte leaves that is not part of content whose SHA-256 the table names. Of an encrypted image
  that is the digest of what is sealed: it is compared first, then opened. Disk has it sealed only.
- A chunk is fetched once, however many ask for it at the same time.
- A chunk that a source gives wrong is told of, and had from another source; where none has it
  right, the reader gets an error at once: patience is for what may pass, and tampering does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import cramjam

from bedstone.errors import Error, InvalidError, UnavailableError, VerificationError
from bedstone.images.lazy.cache import ChunkCache
from bedstone.images.lazy.erofs import BLOCK
from bedstone.images.lazy.sealing import Cipher
from bedstone.images.lazy.sources import Source
from bedstone.images.lazy.spans import WINDOW, Spans
from bedstone.images.lazy.table import Place, Table

_MEMORY = 32  # chunks kept in memory: the kernel asks for one by several reads
_SPANS = 128  # inflated spans kept in memory: small files lie side by side, and runs have many
_RUN = 1 << 20  # bytes of one request when reading ahead


@dataclass(slots=True)
class Counts:
    """What was read since the start.

    Attributes:
        fetched: bytes got from the source.
        requests: to the source.
        cached: chunks read from the cache.
        rejected: chunks that did not verify.
    """

    fetched: int = 0
    requests: int = 0
    cached: int = 0
    rejected: int = 0


@dataclass(frozen=True, slots=True)
class Rejected:
    """A source gave a chunk that is not what the table names.

    Attributes:
        chunk: its number.
        digest: what it should be, hexadecimal.
        blob: the blob that it was read from.
        reason: what is wrong.
    """

    chunk: int
    digest: str
    blob: str
    reason: str


@dataclass(slots=True)
class Chunks:
    """The chunks of one image.

    Attributes:
        table: what there is.
        spans: points of the gzip layers that the table names.
        source: gives the bytes of blobs.
        cache: keeps chunks.
        tell: called with each chunk that did not verify.
        patience: seconds for which a source that fails is asked again before a reader gets an
            error.
        others: are asked for a chunk that the source gave wrong.
        cipher: opens the chunks of an encrypted image.
        counts: of this object.
        touched: the numbers of the chunks asked for by readers, in order of the first time.
    """

    table: Table
    spans: Mapping[str, Spans]
    source: Source
    cache: ChunkCache
    tell: Callable[[Rejected], None] = lambda _: None
    patience: float = 30.0
    others: Sequence[Source] = ()
    cipher: Cipher | None = None
    counts: Counts = field(default_factory=Counts)
    touched: dict[int, None] = field(default_factory=dict)
    _memory: OrderedDict[int, bytes] = field(default_factory=OrderedDict)
    _inflated: OrderedDict[tuple[int, int], bytes] = field(default_factory=OrderedDict)
    _coming: dict[int, asyncio.Future[bytes]] = field(default_factory=dict)
    _inflating: dict[tuple[int, int], asyncio.Lock] = field(default_factory=dict)
    _running: dict[int, asyncio.Future[None]] = field(default_factory=dict)

    def here(self, number: int) -> bytes | None:
        """A chunk's content if it needs no source."""
        content = self._memory.get(number)
        if content is not None:
            self._memory.move_to_end(number)
            return content
        content = self.cache.get(self.table.digest(number))
        if content is not None:
            self.counts.cached += 1
            if self.cipher is not None:
                content = self._opened(number, self.table.place(number), content)
            self._remember(number, content)
        return content

    async def get(self, number: int) -> bytes:
        """A chunk's content.

        Raises:
            VerificationError: the source gave something else.
            UnavailableError: no source answered for as long as `patience`.
        """
        content = self.here(number)
        if content is not None:
            return content
        coming = self._coming.get(number)
        if coming is None:
            coming = self._coming[number] = asyncio.ensure_future(self._patiently(number))
            coming.add_done_callback(lambda done: self._arrived(number, done))
        # A reader that goes away must not take the chunk from the others.
        return await asyncio.shield(coming)

    async def read(self, offset: int, length: int) -> list[bytes | memoryview]:
        """Bytes of the device, in pieces; less only where the device ends.

        Raises: as `get`.
        """
        pieces: list[bytes | memoryview] = []
        end = min(offset + length, self.table.addresses()[1] * BLOCK)
        while offset < end:
            number, begin = self.table.find(offset // BLOCK)
            self.touched.setdefault(number)
            content = await self.get(number)
            stop = begin + -(-len(content) // BLOCK) * BLOCK
            take = memoryview(content)[offset - begin : end - begin]
            pieces.append(take)
            padding = min(stop, end) - offset - len(take)
            if padding:
                pieces.append(bytes(padding))
            offset = min(stop, end)
        return pieces

    async def ahead(self, numbers: Iterable[int], *, parallel: int = 4) -> None:
        """Bring chunks into the cache, neighbours by one request; what fails is left.

        Args:
            numbers: in the order of need.
            parallel: requests at a time.
        """
        runs = asyncio.Queue[list[int]]()
        wanted = [it for it in numbers if it < len(self.table) and not self._has(it)]
        for run in _runs(self.table, self.spans, wanted):
            runs.put_nowait(run)

        async def worker() -> None:
            while not runs.empty():
                run = runs.get_nowait()
                # What readers have asked for meanwhile is theirs; they wait for the rest of it.
                rest = [it for it in run if it not in self._coming and not self._has(it)]
                for part in _runs(self.table, self.spans, rest):
                    running = asyncio.get_running_loop().create_future()
                    self._running.update(dict.fromkeys(part, running))
                    try:
                        await self._run(part)
                    except (Error, OSError):
                        continue
                    finally:
                        for number in part:
                            del self._running[number]
                        running.set_result(None)

        async with asyncio.TaskGroup() as group:
            for _ in range(parallel):
                group.create_task(worker())

    def _has(self, number: int) -> bool:
        return number in self._memory or self.cache.has(self.table.digest(number))

    async def _run(self, run: list[int]) -> None:
        places = [self.table.place(number) for number in run]
        blob = self.table.blobs[places[0].blob]
        if blob.kind == "gzip":
            await self._run_of_spans(run, places, self.spans[blob.digest])
            return
        begin = places[0].offset
        end = max(place.offset + place.stored for place in places)
        data = await self._fetch(self.source, blob.digest, begin, end - begin)
        for number, place in zip(run, places, strict=True):
            stored = data[place.offset - begin : place.offset - begin + place.stored]
            self._accept(number, place, stored)

    async def _run_of_spans(self, run: list[int], places: list[Place], spans: Spans) -> None:
        """Chunks of neighbouring spans, which come by one request."""
        first = spans.find(places[0].offset)
        last = max(spans.find(place.offset + place.size - 1) for place in places)
        await self._content(self.source, places[0].blob, spans, first, last)
        for number in run:
            if not self._has(number):  # it lies in two spans
                await self._from(self.source, number)

    async def _content(
        self, source: Source, blob: int, spans: Spans, first: int, last: int
    ) -> bytes:
        """What spans inflate to; those that are not in memory come by one request."""
        async with contextlib.AsyncExitStack() as held:
            for span in range(first, last + 1):
                lock = self._inflating.setdefault((blob, span), asyncio.Lock())
                await held.enter_async_context(lock)
            parts = {it: self._inflated.get((blob, it)) for it in range(first, last + 1)}
            missing = [span for span, content in parts.items() if content is None]
            if missing:
                parts |= await self._spans(source, blob, spans, missing[0], missing[-1])
            return b"".join(part or b"" for part in parts.values())

    async def _spans(
        self, source: Source, blob: int, spans: Spans, first: int, last: int
    ) -> dict[int, bytes]:
        """Get and inflate spans; the end of each is the window of the next one."""
        begin, end = spans.bounds(first)[0], spans.bounds(last)[1]
        window, data = await asyncio.gather(
            self._window(spans, first),
            self._fetch(source, self.table.blobs[blob].digest, begin, end - begin),
        )
        found = {}
        for span in range(first, last + 1):
            low, high = spans.bounds(span)
            part = data[low - begin : high - begin]
            content = await asyncio.to_thread(self._inflate, blob, span, spans, part, window)
            found[span] = self._inflated[blob, span] = content
            if len(self._inflated) > _SPANS:
                self._inflated.popitem(last=False)
            window = (window + content)[-WINDOW:]
        return found

    async def _window(self, spans: Spans, span: int) -> bytes:
        chunk = spans.points[span].window
        return await self.get(chunk) if chunk >= 0 else b""

    async def _patiently(self, number: int) -> bytes:
        if number in self._running:
            await asyncio.wait([self._running[number]])
            content = self.here(number)
            if content is not None:
                return content
        loop = asyncio.get_running_loop()
        deadline, wait = loop.time() + self.patience, 0.05
        while True:
            try:
                return await self._get(number)
            except UnavailableError:
                if loop.time() + wait > deadline:
                    raise
            await asyncio.sleep(wait)
            wait = min(2 * wait, 2.0)

    async def _get(self, number: int) -> bytes:
        """From the source; where that gives something else, from each of the others."""
        refused: VerificationError | None = None
        for source in (self.source, *self.others):
            try:
                return await self._from(source, number)
            except VerificationError as error:
                refused = refused or error
            except UnavailableError:
                if refused is None:
                    raise
        raise refused or UnavailableError("there is no source")

    async def _from(self, source: Source, number: int) -> bytes:
        place = self.table.place(number)
        blob = self.table.blobs[place.blob]
        if blob.kind != "gzip":
            data = await self._fetch(source, blob.digest, place.offset, place.stored)
            return self._accept(number, place, data)
        spans = self.spans.get(blob.digest)
        if spans is None:
            raise InvalidError(f"the image's index has no points of layer {blob.digest}")
        first, last = spans.find(place.offset), spans.find(place.offset + place.size - 1)
        try:
            content = await self._content(source, place.blob, spans, first, last)
            begin = place.offset - spans.start(first)
            return self._accept(number, place, content[begin : begin + place.size])
        except VerificationError:
            self._forget(place.blob, first, last)
            raise
        except InvalidError as error:
            raise self._reject(number, place, str(error)) from error

    def _forget(self, blob: int, first: int, last: int) -> None:
        """Keep no spans of which a chunk was wrong: the next reader asks again."""
        for span in range(first, last + 1):
            self._inflated.pop((blob, span), None)

    def _inflate(self, blob: int, span: int, spans: Spans, data: bytes, window: bytes) -> bytes:
        """The span's bytes; every chunk that lies in it whole is cached, for it costs nothing."""
        content = spans.inflate(span, data, window)
        begin = spans.start(span)
        for number in self.table.within(blob, begin, begin + len(content)):
            place = self.table.place(number)
            part = content[place.offset - begin : place.offset - begin + place.size]
            if hashlib.sha256(part).digest() == place.digest:
                self.cache.put(place.digest, part)
        return content

    async def _fetch(self, source: Source, digest: str, start: int, length: int) -> bytes:
        data = await source.read(digest, start, length)
        self.counts.requests += 1
        self.counts.fetched += len(data)
        if len(data) != length:
            raise UnavailableError(f"a source gave {len(data)} bytes of {digest}, not {length}")
        return data

    def _accept(self, number: int, place: Place, stored: bytes) -> bytes:
        """The chunk's content, verified and kept."""
        if self.cipher is not None:
            if hashlib.sha256(stored).digest() != place.digest:
                raise self._reject(number, place, "its digest is another")
            content = self._opened(number, place, stored)
            self.cache.put(place.digest, stored)
            return content
        content = self._unpacked(number, place, stored)
        if hashlib.sha256(content).digest() != place.digest:
            raise self._reject(number, place, "its digest is another")
        self.cache.put(place.digest, content)
        return content

    def _opened(self, number: int, place: Place, sealed: bytes) -> bytes:
        """The content of a sealed chunk, whose digest is right."""
        assert self.cipher is not None  # noqa: S101 - who calls has looked
        try:
            stored = self.cipher.open("chunk", number, sealed)
        except VerificationError as error:
            raise self._reject(number, place, error.message) from error
        content = self._unpacked(number, place, stored)
        if len(content) != place.size:
            raise self._reject(number, place, "its size is another")
        return content

    def _unpacked(self, number: int, place: Place, stored: bytes) -> bytes:
        content = stored
        if len(stored) < place.size:
            try:
                # No more room than the table says: what would unpack to more is refused.
                room = bytearray(place.size)
                written = cramjam.zstd.decompress_into(stored, room)
                content = bytes(room[:written])
            except cramjam.DecompressionError as error:
                raise self._reject(number, place, f"it does not unpack: {error}") from error
        return content

    def _reject(self, number: int, place: Place, reason: str) -> VerificationError:
        self.counts.rejected += 1
        blob = self.table.blobs[place.blob].digest
        self.tell(Rejected(number, place.digest.hex(), blob, reason))
        return VerificationError(f"chunk {place.digest.hex()} of blob {blob}: {reason}")

    def _remember(self, number: int, content: bytes) -> None:
        self._memory[number] = content
        if len(self._memory) > _MEMORY:
            self._memory.popitem(last=False)

    def _arrived(self, number: int, done: asyncio.Future[bytes]) -> None:
        self._coming.pop(number, None)
        if not done.cancelled() and done.exception() is None:
            self._remember(number, done.result())


def _runs(table: Table, spans: Mapping[str, Spans], numbers: list[int]) -> list[list[int]]:
    """Chunks that one request can bring, together; runs in the order of their first need."""
    order = {number: position for position, number in enumerate(numbers)}
    runs: list[list[int]] = []
    blob, begin, end = -1, 0, 0
    for number in sorted(order, key=lambda it: (table.place(it).blob, table.place(it).offset)):
        place = table.place(number)
        low, high = _bounds(table, spans, place)
        if place.blob == blob and low <= end and high - begin <= _RUN:
            runs[-1].append(number)
            end = max(end, high)
        else:
            runs.append([number])
            blob, begin, end = place.blob, low, high
    return sorted(runs, key=lambda run: min(order[number] for number in run))


def _bounds(table: Table, spans: Mapping[str, Spans], place: Place) -> tuple[int, int]:
    """The bytes of its blob that a chunk needs."""
    mine = spans.get(table.blobs[place.blob].digest)
    if mine is None:
        return place.offset, place.offset + place.stored
    first, last = mine.find(place.offset), mine.find(place.offset + place.size - 1)
    return mine.bounds(first)[0], mine.bounds(last)[1]
