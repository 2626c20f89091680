"""Fault injection: a store whose writes fail, a connection that is cut, and time that tests own.

Every failure here is one that happens: nothing was applied, or it was and the answer was lost.
"""

from __future__ import annotations

import asyncio
import enum
import heapq
import itertools
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, Self, TypeVar

from bedstone.errors import UnavailableError, UnknownOutcomeError
from bedstone.store import CompactedError, Entry, Event, Listing, Operation, Store

T = TypeVar("T")

PATIENCE: Final = 10.0
"""Real seconds that a virtual clock waits for those whom it woke."""


class VirtualClock:
    """A clock (see `bedstone.store.leases.Clock`) that moves only when told to."""

    def __init__(self) -> None:
        self._now = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        """Virtual seconds since the clock was made."""
        return self._now

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock was advanced by so much."""
        waiter = asyncio.get_running_loop().create_future()
        item = (self._now + seconds, next(self._order), waiter)
        heapq.heappush(self._sleepers, item)
        try:
            await waiter
        finally:
            if item in self._sleepers:
                self._sleepers.remove(item)
                heapq.heapify(self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Let time pass, waking each sleeper at its moment.

        After each moment, waits until those woken sleep again (real seconds, `PATIENCE` at most),
        so that loops around `sleep` see every moment however slow their work is.
        """
        await asyncio.sleep(0.002)  # tasks that were just started come to their first sleep
        target = self._now + seconds
        while self._sleepers and self._sleepers[0][0] <= target:
            count = len(self._sleepers)
            self._now = max(self._now, self._sleepers[0][0])
            while self._sleepers and self._sleepers[0][0] <= self._now:
                _, _, waiter = heapq.heappop(self._sleepers)
                if not waiter.done():
                    waiter.set_result(None)
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    while len(self._sleepers) < count:  # noqa: ASYNC110 - theirs, no event of ours
                        await asyncio.sleep(0.001)
        self._now = target

    def jump(self, seconds: float) -> None:
        """Let time pass unseen, as for a process that was stopped."""
        self._now += seconds


class Fault(enum.Enum):
    """What happens to one write."""

    NONE = enum.auto()
    UNAPPLIED = enum.auto()
    """Not applied: `UnavailableError`."""
    APPLIED = enum.auto()
    """Applied, but the answer is lost: `UnknownOutcomeError`."""


def each_write_fails_twice() -> Iterable[Fault]:
    """Every write fails once unapplied, its retry once applied, and the next try succeeds."""
    return itertools.cycle((Fault.UNAPPLIED, Fault.APPLIED, Fault.NONE))


class FaultyStore:
    """A `Store` around another one, whose writes fail by plan.

    Args:
        inner: an entered store; leaving this one does not leave it.
        faults: what happens to each write, in order; nothing once it is exhausted.
    """

    def __init__(self, inner: Store, faults: Iterable[Fault] | None = None) -> None:
        self._inner = inner
        self._faults = iter(each_write_fails_twice() if faults is None else faults)
        self._watches: weakref.WeakSet[_BreakableWatch] = weakref.WeakSet()
        self.injected: list[Fault] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    async def get(self, key: str) -> Entry | None:
        """As the inner store."""
        return await self._inner.get(key)

    async def list(self, prefix: str) -> Listing:
        """As the inner store."""
        return await self._inner.list(prefix)

    async def commit(self, operations: Sequence[Operation]) -> int:
        """As the inner store, or the next fault."""
        return await self._write(lambda: self._inner.commit(operations))

    async def grant(self, lease: str, ttl: float) -> None:
        """As the inner store, or the next fault."""
        await self._write(lambda: self._inner.grant(lease, ttl))

    async def keep_alive(self, lease: str) -> None:
        """As the inner store, or the next fault."""
        await self._write(lambda: self._inner.keep_alive(lease))

    async def revoke(self, lease: str) -> None:
        """As the inner store, or the next fault."""
        await self._write(lambda: self._inner.revoke(lease))

    def watch(self, prefix: str, after: int) -> AsyncIterator[Sequence[Event]]:
        """As the inner store, until `break_watches`."""
        watch = _BreakableWatch(self._inner.watch(prefix, after))
        self._watches.add(watch)
        return watch

    def break_watches(self) -> None:
        """Make every watch that there is raise `CompactedError`, as after a long outage."""
        for watch in list(self._watches):
            watch.broken.set()

    async def _write(self, write: Callable[[], Awaitable[T]]) -> T:
        fault = next(self._faults, Fault.NONE)
        self.injected.append(fault)
        if fault is Fault.UNAPPLIED:
            raise UnavailableError("injected: not applied", retry_after=0.0)
        result = await write()
        if fault is Fault.APPLIED:
            raise UnknownOutcomeError("injected: applied, and the answer was lost")
        return result


class _BreakableWatch:
    def __init__(self, inner: AsyncIterator[Sequence[Event]]) -> None:
        self._inner = inner
        self.broken = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[Event]:
        following = asyncio.ensure_future(anext(self._inner))
        broken = asyncio.ensure_future(self.broken.wait())
        try:
            await asyncio.wait((following, broken), return_when=asyncio.FIRST_COMPLETED)
            if self.broken.is_set():
                raise CompactedError("injected: the history is gone")
            return await following
        finally:
            for task in (following, broken):
                task.cancel()
            await asyncio.gather(following, broken, return_exceptions=True)


class CuttingProxy:
    """A TCP proxy on loopback that cuts connections where a test wants it.

    Args:
        host: where the server is.
        port: its port.

    Attributes:
        refusing: new connections are cut at once.
        struck: set once a `cut_at` has happened.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._connections: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._pattern: bytes | None = None
        self._deliver = False
        self.refusing = False
        self.struck = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._server.wait_closed()

    def cut(self) -> None:
        """Cut every connection now."""
        for writer in self._connections:
            writer.transport.abort()

    def cut_at(self, pattern: bytes, *, deliver: bool) -> None:
        """Cut, once, when a client sends a pattern.

        Args:
            pattern: bytes within one write of the client.
            deliver: let the server have them and answer; the answer is lost.
        """
        self._pattern = pattern
        self._deliver = deliver
        self.struck.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        if (task := asyncio.current_task()) is not None:
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
        try:
            if self.refusing:
                return
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            try:
                async with asyncio.TaskGroup() as tasks:
                    answers = tasks.create_task(self._pump(far_reader, writer))
                    tasks.create_task(self._pump_client(reader, far_writer, far_reader, answers))
            finally:
                far_writer.transport.abort()
        except* OSError:  # cut
            pass
        finally:
            writer.transport.abort()
            self._connections.discard(writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError

    async def _pump_client(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answers: asyncio.StreamReader,
        pump: asyncio.Task[None],
    ) -> None:
        while data := await reader.read(1 << 16):
            if self._pattern is not None and self._pattern in data:
                self._pattern = None
                self.struck.set()
                if self._deliver:
                    pump.cancel()
                    await asyncio.gather(pump, return_exceptions=True)
                    writer.write(data)
                    await answers.read(1)
                raise ConnectionResetError
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError
