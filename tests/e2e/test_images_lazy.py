"""Lazy images on this machine's kernel: the tree that others unpack, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import errno
import functools
import hashlib
import http.server
import json
import os
import random
import shutil
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bedstone.errors import NotFoundError, UnavailableError
from bedstone.images.lazy.making import Layer, Made, convert, index
from bedstone.images.lazy.mounting import How, Mounted, best, mount, start_keeper, tell
from bedstone.images.lazy.spec import Origin, Spec
from bedstone.images.lazy.tree import CHUNK
from bedstone.testing.layers import (
    Blobs,
    entry,
    folder,
    hardlink,
    oci_layout,
    snapshot,
    symlink,
    tar,
)

pytestmark = pytest.mark.skipif(best()[0] == "plain", reason=best()[1])

RANDOM = random.Random(7)
BIG = RANDOM.randbytes(5 * CHUNK + 17)
LAYERS = [
    tar(
        [
            folder("./", 0o755),
            folder("bin"),
            entry("bin/tool", b"#!/bin/sh\n" * 50_000, mode=0o4755),
            entry("big", BIG, mtime="1700000000.000000123", owner=(1000, 100_000)),
            hardlink("bin/big", "big"),
            symlink("link", "bin/tool"),
            symlink("lib", "usr/lib"),
            folder("usr/lib"),
            folder("gone"),
            entry("gone/file", b"1"),
            folder("opaque", 0o711),
            entry("opaque/old", b"1"),
            folder("opaque/old-too"),
            entry("null", kind=tarfile.CHRTYPE, device=(1, 3), mode=0o666),
            entry("disk", kind=tarfile.BLKTYPE, device=(259, 1000), mode=0o660),
            entry("pipe", kind=tarfile.FIFOTYPE),
            entry("holes", b"a" + bytes(3 * CHUNK) + b"b" + bytes(CHUNK)),
            entry("zero", bytes(2 * CHUNK)),
            entry("empty"),
            entry("marked", b"1", xattrs={"user.colour": b"blue", "user.empty": b""}),
            entry("way/down/below/file", b"1"),
            *[entry(f"many/{it:04}", b"%d" % it, mode=0o600 + it % 64) for it in range(300)],
        ]
    ),
    tar(
        [
            entry(".wh.gone"),
            folder("opaque"),
            entry("opaque/.wh..wh..opq"),
            entry("opaque/new", b"2"),
            entry("lib/through", b"a symbolic link"),
            entry("bin/tool", b"2", mode=0o755),
            entry("many/.wh.0007"),
            folder("many", 0o750),
            hardlink("again", "bin/big"),
        ]
    ),
]


class Registry:
    """Blobs over HTTP, by ranges; slow, broken or lying when told so."""

    def __init__(self, blobs: Path) -> None:
        self.delay = 0.0
        self.status = 0
        self.ranges = True
        self.change: Callable[[bytes], bytes] = lambda data: data
        self.asked: list[tuple[str, int]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                digest = self.path.rsplit("/", 1)[1]
                time.sleep(outer.delay)
                data = blobs.joinpath(*digest.split(":")).read_bytes()
                status = 200
                if outer.ranges:
                    status = 206
                    begin, end = self.headers["Range"].removeprefix("bytes=").split("-")
                    data = outer.change(data[int(begin) : int(end) + 1])
                outer.asked.append((digest, len(data)))
                self.send_response(outer.status or status)
                if status == 206:
                    self.send_header("Content-Range", f"bytes {begin}-{end}/*")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def origin(self) -> Origin:
        return Origin(image=f"127.0.0.1:{self.server.server_port}/it")


@contextmanager
def registry(blobs: Path) -> Iterator[Registry]:
    """A registry while the test runs."""
    made = Registry(blobs)
    try:
        yield made
    finally:
        made.server.shutdown()
        made.server.server_close()


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a test in a loop of its own."""

    @functools.wraps(test)
    def run(*given: Any, **named: Any) -> None:
        asyncio.run(test(*given, **named))

    return run


def made(scratch: Path, form: str, layers: list[bytes] = LAYERS) -> tuple[Made, Blobs]:
    blobs = Blobs(scratch / "blobs")
    stored: list[Layer] = [blobs.layer(layer) for layer in layers]
    make = convert if form == "converted" else index
    return make(stored, blobs.keep, scratch), blobs


class Mounting:
    """Mounts one image, and leaves nothing behind."""

    def __init__(self, scratch: Path, image: Made, *origins: Origin, **more: Any) -> None:
        self.target = scratch / "target"
        self.target.mkdir(exist_ok=True)
        self.image = image
        self.ways: tuple[How, ...] = more.pop("ways", ("erofs", "loop"))
        self.spec = Spec(scratch / "run", scratch / "cache", origins, **more)

    async def __aenter__(self) -> Mounted:
        self.mounted = await mount(self.image, self.spec, self.target, self.refuse, ways=self.ways)
        return self.mounted

    async def refuse(self, target: Path) -> None:
        raise UnavailableError(f"nothing was asked to unpack into {target}")

    async def __aexit__(self, *error: object) -> None:
        await self.mounted.close()


def state(scratch: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((scratch / "run" / "state.json").read_text())
    return found


async def server_of(scratch: Path) -> int:
    """The process that serves now, once it has said so."""
    async with asyncio.timeout(20):
        while True:
            if (scratch / "run" / "state.json").exists():
                return int(state(scratch)["pid"])
            await asyncio.sleep(0.05)


async def read(path: Path) -> bytes:
    return await asyncio.to_thread(path.read_bytes)


@pytest.mark.skipif(shutil.which("umoci") is None, reason="needs umoci, which unpacks to compare")
@pytest.mark.parametrize("form", ["converted", "index"])
@in_loop
async def test_the_tree_is_the_one_that_umoci_unpacks(tmp_path: Path, form: str) -> None:
    oci_layout(tmp_path / "layout", LAYERS)
    unpack = ["umoci", "unpack", "--image", f"{tmp_path / 'layout'}:it", str(tmp_path / "plain")]
    await asyncio.to_thread(subprocess.run, unpack, check=True, capture_output=True)
    plain = tmp_path / "plain" / "rootfs"
    image, blobs = made(tmp_path, form)
    async with Mounting(tmp_path, image, Origin(directory=str(blobs.root))) as mounted:
        assert mounted.how == best()[0]
        shown = await asyncio.to_thread(snapshot, mounted.target)
        assert shown == snapshot(plain)
        assert "gone" not in shown
        assert shown["big"][-1] == ("again", "big", "bin/big")
        diff = ["diff", "-r", "--no-dereference", str(plain), str(mounted.target)]
        for special in ("null", "disk", "pipe"):  # GNU diff opens what is special
            diff += ["--exclude", special]
        done = await asyncio.to_thread(subprocess.run, diff, capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.skipif(shutil.which("fsck.erofs") is None, reason="needs Debian's erofs-utils")
@pytest.mark.parametrize("form", ["converted", "index"])
def test_erofs_utils_find_no_fault(tmp_path: Path, form: str) -> None:
    image, _ = made(tmp_path, form)
    (tmp_path / "image").write_bytes(image.metadata)
    (tmp_path / "device").touch()
    os.truncate(tmp_path / "device", image.table.addresses()[1] * 4096)
    fsck = ["fsck.erofs", f"--device={tmp_path / 'device'}", str(tmp_path / "image")]
    done = subprocess.run(fsck, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@in_loop
async def test_through_loop_devices_it_is_the_same(tmp_path: Path) -> None:
    image, blobs = made(tmp_path, "converted")
    mounting = Mounting(tmp_path, image, Origin(directory=str(blobs.root)), ways=("loop",))
    try:
        async with mounting as mounted:
            assert mounted.how == "loop"
            assert await read(mounted.target / "big") == BIG
    except UnavailableError as error:
        pytest.skip(error.message)


@in_loop
async def test_what_cannot_be_mounted_is_unpacked_and_it_is_said_why(tmp_path: Path) -> None:
    image, _ = made(tmp_path, "converted", [tar([folder("only")])])
    asked: list[Path] = []

    async def plain(target: Path) -> None:
        asked.append(target)

    target = tmp_path / "target"
    target.mkdir()
    spec = Spec(tmp_path / "run", tmp_path / "cache", [Origin(directory="/nowhere")])
    mounted = await mount(image, spec, target, plain)
    assert (mounted.how, asked) == ("plain", [target])
    assert "no file with content" in mounted.reason
    await mounted.close()


@in_loop
async def test_only_what_is_read_is_fetched(tmp_path: Path) -> None:
    image, blobs = made(tmp_path, "converted")
    with registry(blobs.root) as served:
        async with Mounting(tmp_path, image, served.origin) as mounted:
            assert len([*(mounted.target / "many").iterdir()]) == 299
            assert served.asked == [], "names and attributes need no content"
            with (mounted.target / "big").open("rb", buffering=0) as file:
                assert os.pread(file.fileno(), 100, 3 * CHUNK) == BIG[3 * CHUNK :][:100]
        assert 0 < sum(length for _, length in served.asked) <= 3 * CHUNK


@in_loop
async def test_a_server_that_is_killed_under_readers_is_not_noticed(tmp_path: Path) -> None:
    image, blobs = made(tmp_path, "converted")
    with registry(blobs.root) as served:
        served.delay = 0.15
        async with Mounting(tmp_path, image, served.origin) as mounted:
            assert await read(mounted.target / "opaque/new") == b"2"
            before = await server_of(tmp_path)
            names = sorted(it.name for it in (mounted.target / "many").iterdir())[:24]
            readers = [
                asyncio.create_task(read(mounted.target / it))
                for it in ["big", "holes", *(f"many/{name}" for name in names)]
            ]
            pids = {before}
            for _ in range(2):
                await asyncio.sleep(0.4)
                pid = await server_of(tmp_path)
                os.kill(pid, signal.SIGKILL)
                while await server_of(tmp_path) == pid:  # noqa: ASYNC110 (another process)
                    await asyncio.sleep(0.05)
                pids.add(await server_of(tmp_path))
            async with asyncio.timeout(30):
                got = await asyncio.gather(*readers)
            assert len(pids) == 3
            assert got[0] == BIG
            assert got[2:] == [b"%d" % int(name) for name in names]


@in_loop
async def test_server_and_keeper_are_replaced_under_readers(tmp_path: Path) -> None:
    image, blobs = made(tmp_path, "index")
    with registry(blobs.root) as served:
        served.delay = 0.1
        async with Mounting(tmp_path, image, served.origin) as mounted:
            readers = [
                asyncio.create_task(read(mounted.target / it))
                for it in ("big", "holes", "many/0001")
            ]
            await asyncio.sleep(0.1)
            await tell(tmp_path / "run", "upgrade")
            await start_keeper(tmp_path / "run", take_over=True)
            readers.append(asyncio.create_task(read(mounted.target / "bin/tool")))
            async with asyncio.timeout(30):
                got = await asyncio.gather(*readers)
            assert (got[0], got[2], got[3]) == (BIG, b"1", b"2")
            await tell(tmp_path / "run", "upgrade")
            assert await read(mounted.target / "marked") == b"1"


@in_loop
async def test_a_mount_outlives_who_made_it_and_another_closes_it(tmp_path: Path) -> None:
    image, blobs = made(tmp_path, "converted")
    mounting = Mounting(tmp_path, image, Origin(directory=str(blobs.root)))
    first = await mounting.__aenter__()
    again = Mounted.load(tmp_path / "run")
    assert again == first
    assert await read(again.target / "many/0001") == b"1"
    await again.close()
    assert list(again.target.iterdir()) == []
    await again.close()
    with pytest.raises(NotFoundError):
        Mounted.load(tmp_path / "run")


@in_loop
async def test_a_tampered_chunk_is_an_error_of_exactly_its_files_and_an_event(
    tmp_path: Path,
) -> None:
    image, blobs = made(tmp_path, "converted")
    big = image.root.children[b"big"].chunks
    place = image.table.place(big[2])
    blob = image.table.blobs[place.blob].digest
    path = blobs.path(blob)
    data = bytearray(path.read_bytes())
    data[place.offset + 7] ^= 0x20
    path.write_bytes(data)
    async with Mounting(tmp_path, image, Origin(directory=str(blobs.root))) as mounted:
        for name in ("big", "bin/big", "again"):
            with pytest.raises(OSError) as refused:
                await read(mounted.target / name)
            assert refused.value.errno == errno.EIO
        with (mounted.target / "big").open("rb", buffering=0) as file:
            assert os.pread(file.fileno(), 100, 0) == BIG[:100], "the chunks before it are sound"
        assert len(await read(mounted.target / "holes")) == 4 * CHUNK + 2
        assert await read(mounted.target / "many/0001") == b"1"
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    assert {(it["event"], it["chunk"], it["blob"]) for it in events} == {
        ("chunk rejected", big[2], blob)
    }


@in_loop
async def test_a_registry_that_is_lost_is_not_missed_where_others_have_the_bytes(
    tmp_path: Path,
) -> None:
    image, blobs = made(tmp_path, "converted")
    with registry(blobs.root) as served, registry(blobs.root) as mirror:
        origins = [served.origin, mirror.origin]
        async with Mounting(tmp_path, image, *origins, patience=0.2) as mounted:
            assert await read(mounted.target / "bin/tool") == b"2"
            served.status = 503
            assert await read(mounted.target / "many/0001") == b"1"
            mirror.status = 500
            with (mounted.target / "bin/tool").open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert await read(mounted.target / "bin/tool") == b"2", "it is in the cache"
            with pytest.raises(OSError) as refused:
                await read(mounted.target / "many/0003")
            assert refused.value.errno == errno.EIO
            mirror.status = 0
            assert await read(mounted.target / "many/0003") == b"3", "and the error is no state"


@in_loop
async def test_the_next_run_reads_ahead_what_the_first_one_touched(tmp_path: Path) -> None:
    image, blobs = made(tmp_path, "converted")
    names = [f"many/{it:04}" for it in range(100, 160)]
    with registry(blobs.root) as served:
        async with Mounting(tmp_path, image, served.origin) as mounted:
            for name in names:
                await read(mounted.target / name)
            await tell(tmp_path / "run", "upgrade")  # it notes what was touched as it ends
            touched = mounted.touched()
        assert len(touched) == len(names)
        first = len(served.asked)
        served.asked.clear()
        shutil.rmtree(tmp_path / "cache")
        shutil.rmtree(tmp_path / "run")
        async with Mounting(tmp_path, image, served.origin, prefetch=touched) as mounted:
            async with asyncio.timeout(10):
                while not served.asked:  # noqa: ASYNC110 (another thread)
                    await asyncio.sleep(0.02)
            for name in names:
                await read(mounted.target / name)
        assert len(served.asked) < first / 4


def test_the_same_layers_give_the_same_image(tmp_path: Path) -> None:
    one, two = (made(tmp_path / it, "converted")[0] for it in ("one", "two"))
    assert one.metadata == two.metadata
    assert one.table.encode() == two.table.encode()
    other, _ = made(tmp_path / "other", "converted", [LAYERS[0]])
    assert other.table.blobs == one.table.blobs[:1], "a layer's blob is of the layer alone"


def test_most_content_has_one_place_in_an_unmodified_layer(tmp_path: Path) -> None:
    image, blobs = made(tmp_path, "index")
    assert [blob.kind for blob in image.table.blobs] == ["gzip", "gzip", "chunks"]
    windows = {point.window for spans in image.spans.values() for point in spans.points} - {-1}
    own = {it for it in range(len(image.table)) if image.table.place(it).blob == 2}
    assert own == windows, "nothing is stored again but what inflating needs"
    assert all(blobs.path(digest).exists() for digest in image.spans)
    assert hashlib.sha256(BIG[:CHUNK]).digest() in {
        image.table.digest(it) for it in range(len(image.table))
    }
