"""What a manager does now and then: sweep the databases of its participants, and forget the past.

Rules:
- A failure is logged, and tried again at the next round; it stops nothing else.
- What has ended is kept in the log for `retention` seconds, which is longer than barrier rows need
  the log to prove it.
- Several processes may do this at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

from bedstone.errors import InvalidError
from bedstone.transactions.model import Log
from bedstone.transactions.sweeper import Sweeper

if TYPE_CHECKING:
    from bedstone.transactions.databases import Database

EVERY = 60.0
"""Seconds between two rounds, about."""
_BATCH = 1000
_log = logging.getLogger(__name__)


class Housekeeper:
    """One manager's.

    Args:
        log: the log.
        databases: those of the participants there are now.
        grace: seconds that barrier rows stay after a transaction's end.
        retention: seconds that an ended transaction stays in the log.
        sleep: waits, in seconds.
        jitter: a random number from 0 to 1.

    Raises:
        InvalidError: the log would forget before the barriers are swept.
    """

    def __init__(
        self,
        log: Log,
        databases: Callable[[], Iterable[Database]],
        *,
        grace: float,
        retention: float,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        if not 0 <= grace <= retention / 2:
            raise InvalidError(
                f"got a grace of {grace:g} s and a retention of {retention:g} s, expected a "
                "retention of at least twice the grace",
                hint="barrier rows go only while the log still knows that their transaction ended",
            )
        self._log = log
        self._databases = databases
        self._grace = grace
        self._retention = retention
        self._sleep = sleep
        self._jitter = jitter

    async def run(self) -> None:
        """Go round for ever."""
        while True:
            await self._sleep(EVERY * (0.5 + self._jitter()))
            await self.round()

    async def round(self) -> None:
        """Sweep every database once, and forget what is old."""
        for database in list(self._databases()):
            try:
                swept = await Sweeper(database, self._log, self._grace).sweep()
            except Exception as error:  # noqa: BLE001 - a driver's own errors too
                extra = {"database": database.name, "reason": str(error)}
                _log.warning("cannot sweep the barrier", extra=extra)
                continue
            if swept.unknown:
                extra = {"database": database.name, "unknown": ", ".join(swept.unknown[:5])}
                _log.warning("the barrier has transactions that the log does not", extra=extra)
        try:
            before = await self._log.now() - self._retention
            while await self._log.purge(before, _BATCH) >= _BATCH:
                pass
        except Exception as error:  # noqa: BLE001 - likewise
            _log.warning("cannot forget old transactions", extra={"reason": str(error)})
