"""Keeps a coordinator alive in the log: its lease, what it takes over, what is due.

Owns two endless tasks. One renews the lease and takes over from the dead; the other asks the log's
time, looks for what is due and hands it on. They are two so that a slow read never costs the lease.

Rules:
- A failure is logged and followed by a longer rest; nothing ends these tasks but their owner.
- Renewals follow each other by a third of the lease, however long each takes.
- The lease counts from before the renewal was sent, so that it ends here before it does in the log,
  whose clock need not be known.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from bedstone.errors import Error
from bedstone.transactions import machine
from bedstone.transactions.asking import Asker, Sleep
from bedstone.transactions.model import Log, Transaction

_log = logging.getLogger(__name__)

BATCH: Final = 100
"""Transactions taken over at once."""

GAP: Final = 0.01
"""Seconds between two looks, at least: what is woken for together is looked for together."""

SAFETY: Final = 0.1
"""The part of a lease, at its end, in which nothing new starts."""


class Work(Protocol):
    """Who does what is due."""

    def room(self) -> int:
        """How many to ask the log for, those at work among them; 0 while there are enough."""

    def start_due(self, due: Sequence[Transaction]) -> None:
        """Start what the log named, without those that were at work since it was asked."""


class Rest:
    """A rest that others may end early.

    Args:
        sleep: waits, in seconds.
    """

    def __init__(self, sleep: Sleep) -> None:
        self._sleep = sleep
        self._sleeping: asyncio.Future[object] | None = None
        self._woken = False
        self._times: list[float] = []

    def wake(self) -> None:
        """End this rest, or skip the next."""
        self._woken = True
        self._stir()

    def wake_at(self, time: float) -> None:
        """End a rest at a time of the loop, at the latest."""
        heapq.heappush(self._times, time)
        if self._times[0] == time:
            self._stir()

    async def rest(self, seconds: float) -> None:
        """Wait so many seconds, unless woken before."""
        clock = asyncio.get_running_loop().time
        start = clock()
        while True:
            first = min(start + seconds, self._times[0] if self._times else math.inf)
            left = max(start + GAP, -math.inf if self._woken else first) - clock()
            if left <= 0:
                break
            self._sleeping = asyncio.ensure_future(self._sleep(left))
            try:
                await self._sleeping
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
            finally:
                self._sleeping = None
        self._woken = False
        while self._times and self._times[0] <= clock():
            heapq.heappop(self._times)

    def _stir(self) -> None:
        if self._sleeping is not None:
            self._sleeping.cancel()


class Keeper:
    """The two tasks of one coordinator.

    Args:
        log: where the lease is.
        owner: the coordinator's name.
        lease: seconds.
        poll: seconds between two looks.
        asker: knows the log's clock.
        sleep: waits, in seconds.
        jitter: a random number from 0 to 1.
    """

    def __init__(
        self,
        log: Log,
        owner: str,
        *,
        lease: float,
        poll: float,
        asker: Asker,
        sleep: Sleep,
        jitter: Callable[[], float],
    ) -> None:
        self._log = log
        self._owner = owner
        self._lease = lease
        self._poll = poll
        self._asker = asker
        self._sleep = sleep
        self._jitter = jitter
        self._until = -math.inf
        self._asked = -math.inf
        self._term = 0
        self._looking = Rest(sleep)
        self.wake = self._looking.wake
        self.wake_at = self._looking.wake_at

    def term(self) -> int | None:
        """Which unbroken time under a lease this is; None without one that lasts long enough.

        After a break others may have taken over, so that what began before is not to be gone on
        with, although there is a lease again.
        """
        left = self._until - asyncio.get_running_loop().time()
        return self._term if left > self._lease * SAFETY else None

    async def renew(self, limit: int = BATCH) -> float:
        """Renew the lease, take over at most `limit`; returns seconds until the next renewal."""
        sent = asyncio.get_running_loop().time()
        taken = await self._log.claim(self._owner, self._lease, limit)
        broken = self.term() is None
        self._term += broken
        self._until = sent + self._lease
        for transaction in taken:
            _log.info(
                "took over a transaction",
                extra={"xid": transaction.xid, "owner": self._owner, "epoch": transaction.epoch},
            )
        if taken or broken:
            self.wake()
        if limit and len(taken) >= limit:
            return 0.0
        spent = asyncio.get_running_loop().time() - sent
        return max(0.0, self._lease / 3 - spent)

    async def look(self, work: Work) -> float:
        """Start what is due; returns seconds until the next look."""
        if self.term() is None:
            return min(self._poll, self._lease / 3)
        now = asyncio.get_running_loop().time()
        if now >= self._asked + self._lease / 3:
            await self._asker.refresh()
            self._asked = now
        limit = work.room()
        if limit:
            work.start_due(await self._log.owned(self._owner, limit))
        return self._poll

    async def keep_lease(self) -> None:
        """Renew for ever."""
        await self._for_ever("renew the lease", self.renew, self._sleep, self._lease / 3)

    async def keep_looking(self, work: Work) -> None:
        """Look for what is due, for `work` to do, for ever."""
        await self._for_ever(
            "look for what is due", lambda: self.look(work), self._looking.rest, 5 * self._poll
        )

    async def _for_ever(
        self, what: str, step: Callable[[], Awaitable[float]], rest: Sleep, longest: float
    ) -> None:
        failures = 0
        while True:
            try:
                pause = await step()
            except Exception as error:  # noqa: BLE001 - a bug must not end the loop, and is logged
                failures += 1
                pause = min(machine.delay(failures, self._jitter()), longest)
                extra = {"owner": self._owner, "failures": failures, "reason": str(error)}
                if isinstance(error, Error):
                    _log.warning("cannot %s", what, extra=extra)
                else:
                    _log.exception("cannot %s", what, extra=extra)
            else:
                failures = 0
            await rest(pause)
