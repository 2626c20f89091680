"""The blob server: answers the kernel's reads of one image's device with verified chunks.

    python -m bedstone.images.lazy.server DIRECTORY DESCRIPTOR [--resend] [--wait]

It is started by the keeper (`bedstone.images.lazy.keeper`), which holds the FUSE descriptor. It
keeps no state that a successor would need: killed at any moment, the next one goes on with what
the kernel then asks again. When the keeper dies, which it sees by the end of its input, it becomes
one itself.

A read whose chunk does not verify, or that no source has for as long as the patience, fails with
EIO; only that read. Each refused chunk is a line in DIRECTORY/events.jsonl.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import json
import os
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from bedstone.errors import Error
from bedstone.images.lazy import fuse
from bedstone.images.lazy.chunks import Chunks, Counts, Rejected
from bedstone.images.lazy.erofs import BLOCK
from bedstone.images.lazy.spec import DEVICE, Spec

_DRAIN = 10.0  # seconds for the reads under way when told to stop
_REPORT = 2.0  # seconds between writes of the state, if it has changed
_LEARNED = 60.0  # seconds from the mount in which what is touched counts as needed for a start
_TRIM = 64 << 20  # bytes fetched, after which the cache is looked at


class BlobServer:
    """Serves one device over a FUSE descriptor until the mount is gone or it is told to stop.

    Args:
        descriptor: of /dev/fuse, INIT answered.
        chunks: the device's content.
    """

    def __init__(self, descriptor: int, chunks: Chunks) -> None:
        self._descriptor = descriptor
        self._chunks = chunks
        self._tree = fuse.Tree([fuse.File(DEVICE, chunks.table.addresses()[1] * BLOCK)])
        self._buffer = bytearray(fuse.BUFFER)
        self._reads: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Take no further request."""
        self._stop.set()

    async def run(self, *, resend: bool) -> None:
        """Serve. With `resend`, what a predecessor read and did not answer comes first."""
        loop = asyncio.get_running_loop()
        os.set_blocking(self._descriptor, False)
        if resend:
            self._write([fuse.resend()])
        loop.add_reader(self._descriptor, self._readable)
        try:
            await self._stop.wait()
        finally:
            loop.remove_reader(self._descriptor)
            if self._reads:
                await asyncio.wait(self._reads, timeout=_DRAIN)

    def _readable(self) -> None:
        try:
            length = os.readv(self._descriptor, [self._buffer])
        except (BlockingIOError, InterruptedError, FileNotFoundError):
            return  # taken back by the kernel in the meantime: the caller was interrupted
        except OSError:  # ENODEV: unmounted
            self._stop.set()
            return
        asked = fuse.request(memoryview(self._buffer)[:length])
        answer = self._tree.answer(asked)
        match answer:
            case fuse.ReadFile():
                self._read(asked.unique, answer)
            case list():
                self._write(answer)

    def _read(self, unique: int, wanted: fuse.ReadFile) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(unique, wanted))
        self._reads.add(task)
        task.add_done_callback(self._reads.discard)

    async def _answer(self, unique: int, wanted: fuse.ReadFile) -> None:
        try:
            pieces = await self._chunks.read(wanted.offset, wanted.length)
        except (Error, OSError):
            self._write(fuse.refusal(unique, errno.EIO))
        else:
            self._write(fuse.reply(unique, pieces))

    def _write(self, pieces: list[bytes | memoryview]) -> None:
        with contextlib.suppress(FileNotFoundError):  # ENOENT: nobody waits any more
            os.writev(self._descriptor, pieces)


class Journal:
    """What a server leaves in its directory for whoever looks: events, counts, touched chunks."""

    def __init__(self, directory: Path) -> None:
        self._events = directory / "events.jsonl"
        self._state = directory / "state.json"
        self._touched = directory / "touched.json"
        self._last = 0
        self._counts: Counts | None = None
        self._until = _LEARNED
        with contextlib.suppress(OSError):
            self._until += (directory / "spec.json").stat().st_mtime
        self._before = self.touched()

    def touched(self) -> list[int]:
        """The chunks that servers of this mount were asked for, in order of the first time."""
        try:
            found = json.loads(self._touched.read_text())
        except (OSError, ValueError):
            return []
        return [it for it in found if isinstance(it, int)]

    def reject(self, rejected: Rejected) -> None:
        """Note a chunk that did not verify."""
        line = json.dumps({"event": "chunk rejected", "time": time.time(), **asdict(rejected)})
        with self._events.open("a") as file:
            file.write(line + "\n")

    def write(self, chunks: Chunks) -> None:
        """Write the counts, and the touched chunks if there are more."""
        if chunks.counts != self._counts:
            self._counts = replace(chunks.counts)
            _replace(self._state, json.dumps({"pid": os.getpid(), **asdict(chunks.counts)}))
        if len(chunks.touched) != self._last and time.time() < self._until:
            self._last = len(chunks.touched)
            # A predecessor's come first, each once.
            _replace(self._touched, json.dumps([*dict.fromkeys([*self._before, *chunks.touched])]))


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


async def _serve(directory: Path, descriptor: int, *, resend: bool, wait: bool) -> bool:
    """Serve; whether the end is the keeper's death."""
    spec = Spec.load(directory)
    journal = Journal(directory)
    chunks = spec.chunks(journal.reject)
    server = BlobServer(descriptor, chunks)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    with contextlib.suppress(BrokenPipeError):  # the keeper is gone: seen below
        os.write(1, b"ready\n")
    orphaned = False
    if wait:
        told = os.read(0, 16)  # the keeper's word; without it, the keeper is gone
        orphaned = not told

        def bereaved() -> None:
            nonlocal orphaned
            orphaned = True
            loop.remove_reader(0)
            server.stop()

        if orphaned:
            server.stop()
        else:
            loop.add_reader(0, bereaved)

    async def report() -> None:
        looked = -_TRIM
        while True:
            journal.write(chunks)
            if chunks.counts.fetched - looked >= _TRIM:
                looked = chunks.counts.fetched
                await asyncio.to_thread(chunks.cache.trim, spec.cache_limit)
            await asyncio.sleep(_REPORT)

    async with asyncio.TaskGroup() as group:
        others = [group.create_task(report())]
        if spec.prefetch:
            others.append(group.create_task(chunks.ahead(spec.prefetch)))
        await server.run(resend=resend)
        for task in others:
            task.cancel()
    journal.write(chunks)
    return orphaned


def main() -> None:
    """Run the server of a directory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("descriptor", type=int)
    parser.add_argument("--resend", action="store_true")
    parser.add_argument("--wait", action="store_true")
    given = parser.parse_args()
    directory, descriptor = given.directory, given.descriptor
    if asyncio.run(_serve(directory, descriptor, resend=given.resend, wait=given.wait)):
        os.set_blocking(descriptor, True)
        keeper = ["-m", "bedstone.images.lazy.keeper", str(directory), "--descriptor"]
        os.execv(sys.executable, [sys.executable, *keeper, str(descriptor)])  # noqa: S606


if __name__ == "__main__":
    main()
