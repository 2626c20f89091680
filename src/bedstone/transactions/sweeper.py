"""The janitor: deletes barrier rows and undo records whose transaction the log proves ended.

Rules:
- Age alone deletes nothing: the log is asked for each transaction.
- A transaction that the log doesn't know is kept and reported: it may be another domain's, or the
  log was restored; its rows still keep a late TRY out.
- The log must remember an ended transaction for longer than `grace`; else its rows stay for ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from bedstone.transactions import barrier, undo
from bedstone.transactions.connections import AsyncConnection, SyncConnection
from bedstone.transactions.databases import Source
from bedstone.transactions.databases import database as as_database
from bedstone.transactions.sql import Steps

T = TypeVar("T")

GRACE = 3600.0
_PAGE = 100
_FORGET = 10
"""Transactions forgotten in one local transaction: few, as their rows are locked meanwhile."""
logger = logging.getLogger(__name__)


class Ends(Protocol):
    """What the janitor asks the log; see `Log`."""

    async def now(self) -> float:
        """The log's clock."""

    async def ends(self, xids: Sequence[str]) -> dict[str, float | None]:
        """When each of these ended, or None; without those that it does not know."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep did.

    Args:
        rows: barrier rows deleted.
        ended: transactions whose rows were deleted.
        open: transactions that go on; kept.
        unknown: transactions that the log has none of; kept.
        undone: undo records dropped, of transactions that a person has brought to their end.
    """

    rows: int = 0
    ended: int = 0
    open: int = 0
    unknown: tuple[str, ...] = ()
    undone: int = 0


class Sweeper:
    """Sweeps one database's barrier.

    Args:
        source: see `databases.Source`.
        log: tells what has ended, by its own clock.
        grace: seconds that rows stay after the last of them was written, at least, and after the
            transaction's end; longer than any message is late.
    """

    def __init__(self, source: Source, log: Ends, grace: float = GRACE) -> None:
        self._database = as_database(source)
        self._log = log
        self._grace = grace

    async def sweep(self) -> Swept:
        """Look at every transaction in the barrier once. May run in several processes at once.

        Raises:
            UnavailableError: the database or the log could not; what was swept stays swept.
        """
        if self._database.is_async:
            return await self._sweep()
        # A blocking database blocks a thread, not the loop.
        across = _Across(self._log, asyncio.get_running_loop())
        other = Sweeper(self._database, across, self._grace)
        return await asyncio.to_thread(lambda: asyncio.run(other._sweep()))

    async def _sweep(self) -> Swept:
        before = await self._log.now() - self._grace
        swept, after = Swept(), ""
        async with self._database.connect() as db:
            if not await _alone(db, barrier.exists(db.dialect)):
                return swept
            swept = replace(swept, undone=await self._undone(db))
            while page := await self._pending(db, before, after):
                swept = await self._swept(db, page, before, swept)
                after = page[-1]
        return swept

    async def run(
        self, every: float, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        """Sweep for ever; a failure is logged, and the next sweep goes on where it can."""
        while True:
            try:
                swept = await self.sweep()
            except Exception as error:  # noqa: BLE001 - also a driver's own, as no table yet
                logger.warning("barrier.sweep_failed error=%s", error)
            else:
                for xid in swept.unknown:
                    logger.warning("barrier.unknown_transaction xid=%s", xid)
            await sleep(every)

    async def _swept(
        self,
        db: SyncConnection | AsyncConnection,
        page: Iterable[str],
        before: float,
        swept: Swept,
    ) -> Swept:
        xids = list(page)
        ends = await self._log.ends(xids)
        ended = [xid for xid in xids if (ends.get(xid) or before) < before]
        rows = swept.rows
        for start in range(0, len(ended), _FORGET):
            rows += await self._forget(db, ended[start : start + _FORGET])
        unknown = tuple(xid for xid in xids if xid not in ends)
        return replace(
            swept,
            rows=rows,
            ended=swept.ended + len(ended),
            open=swept.open + len(xids) - len(ended) - len(unknown),
            unknown=swept.unknown + unknown,
        )

    async def _pending(
        self, db: SyncConnection | AsyncConnection, before: float, after: str
    ) -> tuple[str, ...]:
        return await _alone(db, barrier.pending(db.dialect, before, after=after, limit=_PAGE))

    async def _forget(self, db: SyncConnection | AsyncConnection, xids: list[str]) -> int:
        return await _alone(db, barrier.forget(db.dialect, xids))

    async def _undone(self, db: SyncConnection | AsyncConnection) -> int:
        """Drop undo records of transactions that have ended."""
        if not await _alone(db, undo.exists(db.dialect)):
            return 0
        gone, after = 0, ""
        while page := await _alone(db, undo.left(db.dialect, after, _PAGE)):
            ends = await self._log.ends(page)
            ended = [xid for xid in page if ends.get(xid) is not None]
            if ended:
                gone += await _alone(db, undo.forget(db.dialect, ended))
            after = page[-1]
        return gone


async def _alone(db: SyncConnection | AsyncConnection, steps: Steps[T]) -> T:
    """Run in a local transaction of its own."""
    if isinstance(db, AsyncConnection):
        await db.begin()
        found = await db.run(steps)
        await db.commit()
        return found
    db.begin()
    result = db.run(steps)
    db.commit()
    return result


class _Across:
    """A log of another thread's event loop."""

    def __init__(self, log: Ends, loop: asyncio.AbstractEventLoop) -> None:
        self._log = log
        self._loop = loop

    async def now(self) -> float:
        sent = asyncio.run_coroutine_threadsafe(self._log.now(), self._loop)
        return await asyncio.wrap_future(sent)

    async def ends(self, xids: Sequence[str]) -> dict[str, float | None]:
        sent = asyncio.run_coroutine_threadsafe(self._log.ends(xids), self._loop)
        return await asyncio.wrap_future(sent)
