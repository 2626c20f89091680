"""A program of a box with its standard streams, as pipes of the caller's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from bedstone.sandbox.box import Exec, Stdio
from bedstone.sandbox.boxes import Boxes, Running

_BLOCK: Final = 1 << 16
_WAITING: Final = 16
"""Chunks that are read before somebody takes them; the program then waits."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some bytes of a program's output, or of its error output."""

    data: bytes
    error: bool = False


class Program:
    """A program that runs; iterate over it for its output, until it has closed it.

    Output that nobody takes makes the program wait.
    """

    def __init__(
        self,
        running: Running,
        stdin: asyncio.StreamWriter,
        streams: tuple[asyncio.StreamReader, asyncio.StreamReader],
    ) -> None:
        self._running = running
        self._stdin = stdin
        self._chunks: asyncio.Queue[Chunk | None] = asyncio.Queue(_WAITING)
        self._readers = [
            asyncio.ensure_future(self._read(stream, error=place == 1))
            for place, stream in enumerate(streams)
        ]
        self._left = len(self._readers)

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        while self._left:
            chunk = await self._chunks.get()
            if chunk is not None:
                return chunk
            self._left -= 1
        raise StopAsyncIteration

    async def write(self, data: bytes) -> None:
        """Send to its input, as fast as it reads; what it does not want is dropped."""
        with contextlib.suppress(ConnectionError):
            self._stdin.write(data)
            await self._stdin.drain()

    async def close(self) -> None:
        """End its input."""
        with contextlib.suppress(ConnectionError):
            self._stdin.close()
            await self._stdin.wait_closed()

    async def wait(self) -> int:
        """Its exit status, or 128 + N after signal N; may be awaited many times."""
        return (await self._running.wait()).code

    async def signal(self, number: int) -> None:
        """Signal it; nothing happens when it has ended."""
        await self._running.signal(number)

    async def end(self) -> None:
        """Kill it, if it has not ended, and let go of its streams."""
        for reader in self._readers:
            reader.cancel()
        ending = asyncio.ensure_future(self._running.wait())
        await asyncio.wait({ending}, timeout=0)
        if not ending.done():
            await self._running.signal(signal.SIGKILL)
        await ending

    async def _read(self, stream: asyncio.StreamReader, *, error: bool) -> None:
        while data := await stream.read(_BLOCK):
            await self._chunks.put(Chunk(data, error))
        await self._chunks.put(None)


@asynccontextmanager
async def running(boxes: Boxes, box: str, program: Exec) -> AsyncIterator[Program]:
    """Run a program in a box; at the end of the block it is killed, if it has not ended.

    Raises:
        Error: as `Boxes.exec`.
    """
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        given, feed = os.pipe()
        theirs = [given]
        stack.callback(_close, theirs)
        transport, protocol = await loop.connect_write_pipe(
            lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), os.fdopen(feed, "wb", 0)
        )
        stack.callback(_abort, transport)
        stdin = asyncio.StreamWriter(transport, protocol, None, loop)
        streams = []
        for _ in range(2):
            ours, other = os.pipe()
            theirs.append(other)
            reader = asyncio.StreamReader(_BLOCK)
            reading, _ = await loop.connect_read_pipe(
                lambda reader=reader: asyncio.StreamReaderProtocol(reader),  # type: ignore[misc]
                os.fdopen(ours, "rb", 0),
            )
            stack.callback(reading.close)
            streams.append(reader)
        started = await boxes.exec(box, program, Stdio(*theirs))
        _close(theirs)
        found = Program(started, stdin, (streams[0], streams[1]))
        try:
            yield found
        finally:
            await asyncio.shield(found.end())


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


def _abort(transport: asyncio.WriteTransport) -> None:
    # One that is closed already has no loop, and fails.
    if not transport.is_closing() or transport.get_write_buffer_size():
        transport.abort()
