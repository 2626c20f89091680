"""The janitor: deletes barrier rows whose transaction the log proves to have ended.

Rules:
- Age alone deletes nothing: the log is asked for each transaction.
- A transaction that the log doesn't know is kept and reported: it may be another domain's, or the
  log was restored; its rows still keep a late TRY out.
- The log must remember an ended transaction for longer than `grace`; else its rows stay for ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from bedstone.transactions import barrier
from bedstone.transactions.connections import AsyncConnection, SyncConnection
from bedstone.transactions.databases import Source
from bedstone.transactions.databases import database as as_database
from bedstone.transactions.errors import UnknownTransactionError
from bedstone.transactions.model import Log

GRACE = 3600.0
_PAGE = 100
_FORGET = 10
"""Transactions forgotten in one local transaction: few, as their rows are locked meanwhile."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep did.

    Args:
        rows: barrier rows deleted.
        ended: transactions whose rows were deleted.
        open: transactions that go on; kept.
        unknown: transactions that the log has none of; kept.
    """

    rows: int = 0
    ended: int = 0
    open: int = 0
    unknown: tuple[str, ...] = ()


class Sweeper:
    """Sweeps one database's barrier.

    Args:
        source: see `databases.Source`.
        log: tells what has ended, by its own clock.
        grace: seconds that rows stay after the last of them was written, at least, and after the
            transaction's end; longer than any message is late.
    """

    def __init__(self, source: Source, log: Log, grace: float = GRACE) -> None:
        self._database = as_database(source)
        self._log = log
        self._grace = grace

    async def sweep(self) -> Swept:
        """Look at every transaction in the barrier once. May run in several processes at once.

        Raises:
            UnavailableError: the database or the log could not; what was swept stays swept.
        """
        before = await self._log.now() - self._grace
        swept, after = Swept(), ""
        async with self._database.connect() as db:
            while True:
                page = await self._pending(db, before, after)
                if not page:
                    return swept
                swept = await self._swept(db, page, before, swept)
                after = page[-1]

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
        ended, unknown, going = [], list(swept.unknown), swept.open
        for xid in page:
            try:
                found = await self._log.get(xid)
                over = found.state.ended and await self._end(xid) < before
            except UnknownTransactionError:
                unknown.append(xid)
                continue
            if over:
                ended.append(xid)
            else:
                going += 1
        rows = swept.rows
        for start in range(0, len(ended), _FORGET):
            rows += await self._forget(db, ended[start : start + _FORGET])
        return Swept(rows, swept.ended + len(ended), going, tuple(unknown))

    async def _end(self, xid: str) -> float:
        """When a transaction ended, by the log's clock."""
        return (await self._log.events(xid))[-1].at

    async def _pending(
        self, db: SyncConnection | AsyncConnection, before: float, after: str
    ) -> tuple[str, ...]:
        steps = barrier.pending(db.dialect, before, after=after, limit=_PAGE)
        if isinstance(db, AsyncConnection):
            await db.begin()
            found = await db.run(steps)
            await db.rollback()
            return found
        db.begin()
        listed = db.run(steps)
        db.rollback()
        return listed

    async def _forget(self, db: SyncConnection | AsyncConnection, xids: list[str]) -> int:
        steps = barrier.forget(db.dialect, xids)
        if isinstance(db, AsyncConnection):
            await db.begin()
            gone = await db.run(steps)
            await db.commit()
            return gone
        db.begin()
        deleted = db.run(steps)
        db.commit()
        return deleted
