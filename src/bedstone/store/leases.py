"""Leases without clocks: a lease ends only after its time was seen to pass.

No wall-clock time is ever stored. A lease has a time to live and a renewal counter; each running
store watches the counters with its own monotonic clock.

Invariants:
- A lease lapses when one `Observer` has seen the same counter for at least its time to live.
- Only observed time counts: a step between two observations counts as `longest_step` at most. So
  neither a stopped process, nor a suspended machine, nor a database that was away ends a lease.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from bedstone.errors import Error
from bedstone.store.planning import Request, Revoke

_log = logging.getLogger(__name__)

INTERVAL: Final = 0.5
"""Seconds between two observations."""


class Clock(Protocol):
    """Time that only grows, and waiting for it; tests own both."""

    def monotonic(self) -> float:
        """Seconds since some moment."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The machine's monotonic clock."""

    def monotonic(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


@dataclass(frozen=True, slots=True)
class _Seen:
    ttl: float
    renewal: int
    since: float  # in observed time


class Observer:
    """What one running store has seen of the leases' counters.

    Args:
        now: the monotonic clock's present reading.
        longest_step: seconds that may count between two observations.
    """

    def __init__(self, now: float, longest_step: float = 2 * INTERVAL) -> None:
        self._last = now
        self._longest_step = longest_step
        self._observed = 0.0
        self._seen: dict[str, _Seen] = {}

    def __contains__(self, lease: str) -> bool:
        return lease in self._seen

    def renewal(self, lease: str) -> int | None:
        """The counter last seen; None for an unknown lease."""
        seen = self._seen.get(lease)
        return None if seen is None else seen.renewal

    def ttl(self, lease: str) -> float:
        """The time to live of a known lease."""
        return self._seen[lease].ttl

    def see(self, lease: str, ttl: float, renewal: int, now: float) -> None:
        """Note a lease's counter; a counter that differs starts its time anew."""
        self._advance(now)
        seen = self._seen.get(lease)
        if seen is None or seen.renewal != renewal:
            self._seen[lease] = _Seen(ttl, renewal, self._observed)

    def see_all(self, leases: Mapping[str, tuple[float, int]], now: float) -> None:
        """Note all leases that there are: name to time to live and counter."""
        self._advance(now)
        for lease in self._seen.keys() - leases.keys():
            del self._seen[lease]
        for lease, (ttl, renewal) in leases.items():
            self.see(lease, ttl, renewal, now)

    def forget(self, lease: str) -> None:
        """Note that a lease has ended."""
        self._seen.pop(lease, None)

    def lapsed(self, now: float) -> list[tuple[str, int]]:
        """The leases whose time has passed, each with the counter that it lapsed at."""
        self._advance(now)
        return [
            (lease, seen.renewal)
            for lease, seen in self._seen.items()
            if self._observed - seen.since >= seen.ttl
        ]

    def _advance(self, now: float) -> None:
        self._observed += min(max(now - self._last, 0.0), self._longest_step)
        self._last = now


async def end_lapsed(
    lapsed: Sequence[tuple[str, int]], submit: Callable[[Request], Awaitable[int]]
) -> None:
    """End the leases that lapsed, unless they were renewed since; one that fails stays lapsed."""

    async def end(lease: str, renewal: int) -> None:
        try:
            await submit(Revoke(lease, renewal))
        except Error as error:
            _log.warning("store.lease.not_ended", extra={"lease": lease, "error": str(error)})

    async with asyncio.TaskGroup() as tasks:  # together, so that they share a group
        for lease, renewal in lapsed:
            tasks.create_task(end(lease, renewal), name=f"end lease {lease}")
