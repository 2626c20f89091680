"""Asks a log until it answers, and knows its clock without asking each time.

Rules:
- A refusal is an answer. What is asked again must be idempotent: `begin`, `decide`, `record` and
  what only reads are.
- Where one attempt may have been applied, the last word is "unknown", never "not applied".
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from bedstone.errors import UnavailableError, UnknownOutcomeError
from bedstone.transactions import machine
from bedstone.transactions.errors import LockConflictError, WaitingError
from bedstone.transactions.model import Log

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[object]]

LONGEST_WAIT: Final = 2.0
"""Seconds between two questions to a log that does not answer."""


class Asker:
    """Asks one log.

    Args:
        log: whom.
        sleep: waits, in seconds.
        jitter: a random number from 0 to 1.

    Invariant: the clock is never ahead of the log's, as long as both run alike since `refresh`.
    """

    def __init__(self, log: Log, *, sleep: Sleep, jitter: Callable[[], float]) -> None:
        self._log = log
        self._sleep = sleep
        self._jitter = jitter
        self._ahead: float | None = None

    async def refresh(self) -> None:
        """Ask what time it is."""
        now = await self._log.now()
        self._ahead = now - asyncio.get_running_loop().time()

    async def now(self) -> float:
        """Seconds since the epoch by the log's clock, asked from it if nobody has yet."""
        if self._ahead is None:
            await self.refresh()
        return self.estimate()

    def estimate(self) -> float:
        """The same; before everything while nobody has asked the log."""
        if self._ahead is None:
            return -math.inf
        return asyncio.get_running_loop().time() + self._ahead

    def local(self, at: float) -> float:
        """The loop's time when the log's clock shows `at`; now, while nobody has asked the log."""
        loop = asyncio.get_running_loop()
        return loop.time() if self._ahead is None else at - self._ahead

    async def insist(
        self,
        attempt: Callable[[], Awaitable[T]],
        until: float = math.inf,
        *,
        worst: UnavailableError | UnknownOutcomeError | None = None,
    ) -> T:
        """Ask the log until it answers, or until a time of the loop.

        Args:
            attempt: the question.
            until: when to give up.
            worst: what it said to the same question before.

        Raises:
            UnknownOutcomeError: it did not, and one attempt may have been applied.
            UnavailableError: it did not, and none was applied.
        """
        failures = 0
        while True:
            try:
                return await attempt()
            except (LockConflictError, WaitingError):
                raise
            except (UnavailableError, UnknownOutcomeError) as error:
                if worst is None or isinstance(error, UnknownOutcomeError):
                    worst = error
            failures += 1
            pause = min(machine.delay(failures, self._jitter()), LONGEST_WAIT)
            if asyncio.get_running_loop().time() + pause > until:
                raise worst
            await self._sleep(pause)
