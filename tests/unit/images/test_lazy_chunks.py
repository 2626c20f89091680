from __future__ import annotations

import asyncio
import functools
import hashlib
import os
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bedstone.errors import InvalidError, UnavailableError, VerificationError
from bedstone.images.lazy.cache import ChunkCache
from bedstone.images.lazy.chunks import Chunks, Rejected
from bedstone.images.lazy.erofs import BLOCK
from bedstone.images.lazy.making import Made, convert, index
from bedstone.images.lazy.sources import FirstOf, LocalSource, Whole
from bedstone.images.lazy.table import Blob, Table
from bedstone.images.lazy.tree import CHUNK, HOLE, walk
from bedstone.testing.layers import Blobs, entry, tar

FILES = {
    "text": b"some words " * 40_000,
    "small": b"tiny",
    "again": b"tiny",
    "zero": bytes(CHUNK + 1),
    "mixed": b"x" * CHUNK + bytes(CHUNK) + b"y" * 5000,
}
FORMS = ["converted", "plain", "zstd", "gzip", "tar"]


def made(tmp_path: Path, form: str) -> tuple[Made, Blobs]:
    blobs = Blobs(tmp_path / "blobs")
    layer = blobs.layer(
        tar([entry(name, content) for name, content in FILES.items()]),
        {"tar": "none", "zstd": "zstd"}.get(form, "gzip"),
    )
    if form in ("converted", "plain", "zstd"):
        image = convert([layer], blobs.keep, tmp_path, compress=form == "converted")
    else:
        image = index([layer], blobs.keep, tmp_path)
    return image, blobs


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a test in a loop of its own."""

    @functools.wraps(test)
    def run(*given: Any, **named: Any) -> None:
        asyncio.run(test(*given, **named))

    return run


class Source:
    """Counts, and does with the bytes what it is told."""

    def __init__(self, blobs: Blobs, change: Callable[[bytes], bytes] = lambda data: data) -> None:
        self.inner = LocalSource(blobs.path)
        self.change = change
        self.asked: list[tuple[int, int]] = []
        self.failures = 0

    async def read(self, digest: str, start: int, length: int) -> bytes:
        self.asked.append((start, length))
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise UnavailableError("not now")
        return self.change(await self.inner.read(digest, start, length))


def chunks(image: Made, source: Source, cache: Path, *, patience: float = 0.0) -> Chunks:
    return Chunks(image.table, image.spans, source, ChunkCache(cache), lambda _: None, patience)


@pytest.mark.parametrize("form", FORMS)
@in_loop
async def test_the_device_has_every_file_at_its_addresses(tmp_path: Path, form: str) -> None:
    image, blobs = made(tmp_path, form)
    mine = chunks(image, Source(blobs), tmp_path / "cache")
    addresses, blocks = image.table.addresses()
    for path, inode in walk(image.root):
        if not path:
            continue
        got = b""
        for position, chunk in enumerate(inode.chunks):
            length = min(CHUNK, inode.size - position * CHUNK)
            if chunk == HOLE:
                got += bytes(length)
            else:
                got += b"".join(await mine.read(addresses[chunk] * BLOCK, length))
        assert got == FILES[path.decode()]
    whole = b"".join(await mine.read(0, blocks * BLOCK + 999))
    assert len(whole) == blocks * BLOCK
    assert b"".join(await mine.read(BLOCK - 5, 10)) == whole[BLOCK - 5 : BLOCK + 5]


@pytest.mark.parametrize("form", FORMS)
@in_loop
async def test_a_changed_byte_of_the_source_reaches_no_reader(tmp_path: Path, form: str) -> None:
    image, blobs = made(tmp_path, form)
    told: list[Rejected] = []
    sound = chunks(image, Source(blobs), tmp_path / "sound")
    source = Source(blobs, lambda data: bytes([*data[:-1], data[-1] ^ 1]))
    mine = chunks(image, source, tmp_path / "cache")
    mine.tell = told.append
    for number in range(len(image.table)):
        try:
            content = await mine.get(number)
        except VerificationError:
            continue
        # It may stand where it changes nothing: in another chunk of the span, or in no content.
        assert content == await sound.get(number)
    assert len(told) == mine.counts.rejected
    for rejected in told:
        assert rejected.digest == image.table.digest(rejected.chunk).hex()
    if form in ("plain", "tar"):
        assert len(told) == len(image.table)


@pytest.mark.parametrize("form", FORMS)
@in_loop
async def test_a_chunk_that_one_source_gives_wrong_is_had_from_another(
    tmp_path: Path, form: str
) -> None:
    image, blobs = made(tmp_path, form)
    wrong = Source(blobs, lambda data: bytes(len(data)))
    mine = chunks(image, wrong, tmp_path / "cache")
    with pytest.raises(VerificationError):
        await mine.get(0)
    mine.others = [wrong, Source(blobs)]
    sound = chunks(image, Source(blobs), tmp_path / "sound")
    assert await mine.get(0) == await sound.get(0), "and what was wrong is not kept"
    assert mine.counts.rejected == 3


@in_loop
async def test_one_chunk_is_fetched_once_for_many_readers(tmp_path: Path) -> None:
    image, blobs = made(tmp_path, "converted")
    source = Source(blobs)
    mine = chunks(image, source, tmp_path / "cache")
    got = await asyncio.gather(*(mine.get(0) for _ in range(20)))
    assert len(set(got)) == 1
    assert len(source.asked) == 1


@in_loop
async def test_a_reader_that_goes_away_takes_the_chunk_from_nobody(tmp_path: Path) -> None:
    image, blobs = made(tmp_path, "converted")
    mine = chunks(image, Source(blobs), tmp_path / "cache")
    first = asyncio.ensure_future(mine.get(0))
    second = asyncio.ensure_future(mine.get(0))
    await asyncio.sleep(0)
    first.cancel()
    assert await second


@in_loop
async def test_another_process_finds_chunks_in_the_cache(tmp_path: Path) -> None:
    image, blobs = made(tmp_path, "converted")
    first = chunks(image, Source(blobs), tmp_path / "cache")
    for number in range(len(image.table)):
        await first.get(number)
    source = Source(blobs)
    second = chunks(image, source, tmp_path / "cache")
    for number in range(len(image.table)):
        await second.get(number)
    assert source.asked == []


@pytest.mark.parametrize("change", [b"", b"torn", b"other bytes of the same length"])
@in_loop
async def test_a_torn_file_of_the_cache_is_fetched_again(tmp_path: Path, change: bytes) -> None:
    image, blobs = made(tmp_path, "converted")
    mine = chunks(image, Source(blobs), tmp_path / "cache")
    content = await mine.get(0)
    for path in (tmp_path / "cache").glob("??/*"):
        path.write_bytes(change)
    again = chunks(image, Source(blobs), tmp_path / "cache")
    assert await again.get(0) == content
    assert again.counts.requests == 1


@in_loop
async def test_a_source_that_fails_is_asked_again_until_patience_ends(tmp_path: Path) -> None:
    image, blobs = made(tmp_path, "converted")
    source = Source(blobs)
    source.failures = 2
    mine = chunks(image, source, tmp_path / "cache", patience=5.0)
    assert await mine.get(0)
    source.failures = 1
    impatient = chunks(image, source, tmp_path / "other")
    with pytest.raises(UnavailableError):
        await impatient.get(0)
    assert await impatient.get(0), "an error is no state: the next reader gets it"


@in_loop
async def test_neighbours_are_read_ahead_by_one_request(tmp_path: Path) -> None:
    image, blobs = made(tmp_path, "converted")
    source = Source(blobs)
    mine = chunks(image, source, tmp_path / "cache")
    await mine.ahead(range(len(image.table)))
    assert len(source.asked) == 1
    await mine.ahead(range(len(image.table)))
    for number in range(len(image.table)):
        await mine.get(number)
    assert len(source.asked) == 1
    assert list(mine.touched) == [], "reading ahead is no reader"


@in_loop
async def test_reading_ahead_leaves_what_fails(tmp_path: Path) -> None:
    image, blobs = made(tmp_path, "converted")
    source = Source(blobs)
    source.failures = 1
    mine = chunks(image, source, tmp_path / "cache")
    await mine.ahead(range(len(image.table)))
    assert await mine.get(0)


@in_loop
async def test_mirrors_follow_in_order_and_one_that_failed_comes_last(tmp_path: Path) -> None:
    _, blobs = made(tmp_path, "converted")
    digest = blobs.put(b"content")
    now = 0.0
    bad, good = Source(blobs), Source(blobs)
    bad.failures = 1
    both = FirstOf([bad, good], rest=5.0, clock=lambda: now)
    assert await both.read(digest, 0, 7) == b"content"
    assert await both.read(digest, 1, 2) == b"on"
    assert (len(bad.asked), len(good.asked)) == (1, 2)
    now = 6.0
    await both.read(digest, 0, 7)
    assert (len(bad.asked), len(good.asked)) == (2, 2)
    bad.failures = good.failures = 9
    with pytest.raises(UnavailableError, match="not now; not now"):
        await both.read(digest, 0, 7)
    with pytest.raises(InvalidError):
        FirstOf([])


@pytest.mark.parametrize("form", ["converted", "gzip"])
@in_loop
async def test_what_is_read_ahead_is_not_fetched_twice(tmp_path: Path, form: str) -> None:
    image, blobs = made(tmp_path, form)
    source = Source(blobs)
    mine = chunks(image, source, tmp_path / "cache")
    known = [*range(len(image.table)), len(image.table) + 7]
    reading = asyncio.gather(*(mine.get(number) for number in reversed(range(len(image.table)))))
    ahead = asyncio.ensure_future(mine.ahead(known))
    await asyncio.sleep(0)
    late = asyncio.gather(*(mine.get(number) for number in range(len(image.table))))
    await asyncio.gather(reading, ahead, late)
    assert len(source.asked) == len(set(source.asked))
    again = chunks(image, source, tmp_path / "other")
    source.asked.clear()
    await asyncio.gather(again.ahead(known), again.get(0))
    await asyncio.gather(*(again.get(number) for number in range(len(image.table))))
    asked = sum(length for _, length in source.asked)
    assert asked <= sum(blob.size for blob in image.table.blobs)


@in_loop
async def test_the_last_resort_pulls_a_blob_whole_for_one_reader_at_a_time(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "blobs")
    digest = blobs.put(b"content")
    under_way, most = 0, 0

    async def pull(digest: str) -> Path:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return blobs.path(digest)

    now = 0.0
    whole = Whole(pull, after=10, rest=5, clock=lambda: now)
    for now in (0.0, 4.0, 20.0, 25.0, 29.0):  # noqa: B007 - the clock reads it
        with pytest.raises(UnavailableError):
            await whole.read(digest, 0, 3)
    now = 31.0
    got = await asyncio.gather(whole.read(digest, 0, 3), whole.read(digest, 3, 4))
    assert [*got] == [b"con", b"tent"]
    assert most == 1


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_a_layer_must_be_the_archive_that_the_config_says(tmp_path: Path, compression: str) -> None:
    blobs = Blobs(tmp_path / "blobs")
    content = tar([entry("file", b"content")])
    layer = blobs.layer(content, compression)
    right = f"sha256:{hashlib.sha256(content).hexdigest()}"
    makers = (convert,) if compression == "zstd" else (convert, index)
    for make in makers:
        make([replace(layer, diff_id=right)], blobs.keep, tmp_path)
        with pytest.raises(VerificationError, match="is archive"):
            make([replace(layer, diff_id=right[:-1] + "x")], blobs.keep, tmp_path)


def test_the_cache_is_trimmed_from_the_oldest(tmp_path: Path) -> None:
    cache = ChunkCache(tmp_path / "cache")
    digests = []
    for number in range(4):
        content = bytes([number]) * 100
        digests.append(hashlib.sha256(content).digest())
        cache.put(digests[-1], content)
        os.utime(next(cache.root.glob(f"??/{digests[-1].hex()}")), (number, number))
    assert cache.trim(1000) == 0
    assert cache.trim(250) == 200
    assert [cache.has(digest) for digest in digests] == [False, False, True, True]


def test_a_table_says_the_same_after_reading() -> None:
    table = Table([Blob("sha256:" + "0" * 64, 10, "chunks")])
    for content in (b"a", b"b" * CHUNK, b"a"):
        number, new = table.number(content)
        if new:
            table.put(number, 0, 7 * number, len(content))
    read = Table.decode(table.encode())
    assert len(read) == 2
    assert [read.place(it) for it in range(2)] == [table.place(it) for it in range(2)]
    assert read.addresses()[1] == 1 + CHUNK // BLOCK
    assert read.find(0) == (0, 0)
    assert read.find(1) == read.find(CHUNK // BLOCK) == (1, BLOCK)


@pytest.mark.parametrize("data", [b"", b"other", b"BDSTABL1", b"BDSTABL1" + bytes(40)])
def test_what_is_no_table_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidError):
        Table.decode(data)


def test_a_table_that_points_outside_its_blobs_is_refused() -> None:
    table = Table([Blob("sha256:" + "0" * 64, 10, "chunks")])
    number, _ = table.number(b"a")
    table.put(number, 3, 0, 1)
    with pytest.raises(InvalidError, match="outside"):
        Table.decode(table.encode())


def test_a_layer_of_zstd_cannot_be_indexed(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "blobs")
    with pytest.raises(InvalidError, match="zstd"):
        index([blobs.layer(tar([entry("a")]), "zstd")], blobs.keep, tmp_path)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_layer_that_is_damaged_is_refused(tmp_path: Path, compression: str, damage: str) -> None:
    blobs = Blobs(tmp_path / "blobs")
    layer = blobs.layer(tar([entry("a", FILES["text"])]), compression)
    data = layer.path.read_bytes()
    other = data[:-40] if damage == "cut" else data[:100] + bytes(40) + data[140:]
    layer.path.write_bytes(other)
    with pytest.raises(InvalidError):
        convert([layer], blobs.keep, tmp_path)
    if compression == "gzip":
        with pytest.raises(InvalidError):
            index([layer], blobs.keep, tmp_path)
