"""A coordinator's lease is renewed in time, whatever else of the log is slow."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from bedstone.testing.transaction_log import MemoryLog
from bedstone.transactions.asking import Asker
from bedstone.transactions.keeping import Keeper
from bedstone.transactions.model import Transaction

LEASE = 9.0


class SlowLog(MemoryLog):
    """Whose writes take a while by the loop's clock, and whose reads take for ever."""

    takes = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.time = 100.0

    async def claim(self, owner: str, lease: float, limit: int) -> Sequence[Transaction]:
        self.time += self.takes
        return await super().claim(owner, lease, limit)

    async def now(self) -> float:
        await asyncio.Event().wait()
        raise AssertionError


def keeper(log: SlowLog) -> Keeper:
    asker = Asker(log, sleep=asyncio.sleep, jitter=lambda: 0.5)
    return Keeper(
        log, "a", lease=LEASE, poll=1.0, asker=asker, sleep=asyncio.sleep, jitter=lambda: 0.5
    )


@pytest.mark.parametrize(("takes", "pause"), [(0.0, LEASE / 3), (2.0, LEASE / 3 - 2.0), (5.0, 0.0)])
def test_renewals_follow_each_other_however_long_they_take(takes: float, pause: float) -> None:
    async def main() -> None:
        log = SlowLog()
        log.takes = takes
        asyncio.get_running_loop().time = lambda: log.time  # type: ignore[method-assign]
        kept = keeper(log)
        assert await kept.renew() == pytest.approx(pause)
        assert kept.term() is not None

    asyncio.run(main())
