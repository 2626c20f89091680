"""Counts of the apps' logs as series: exact, named, and never waited for too long."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from bedstone.errors import UnavailableError
from bedstone.server.transaction_counts import Counted, Reading, TransactionCounts
from bedstone.testing.transaction_log import MemoryLog
from bedstone.testing.transaction_log_subject import begun, branch
from bedstone.transactions.model import Counts, State


class Slow:
    """A log that answers when it is let."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.asked = 0

    async def counts(self) -> Counts:
        self.asked += 1
        await self.may.wait()
        return Counts("slow", {"begun": self.asked}, {}, 0)


class Fixed:
    """A log that says what it is told."""

    def __init__(self, counts: Counts | Exception) -> None:
        self.said = counts

    async def counts(self) -> Counts:
        if isinstance(self.said, Exception):
            raise self.said
        return self.said


def _values(reading: Reading) -> Mapping[str, float]:
    return {
        series.name + "".join(f" {value}" for _, value in series.labels): value
        for series, value in reading.series
    }


def test_what_the_log_did_is_what_is_counted() -> None:
    async def run() -> None:
        log = MemoryLog()
        reader = TransactionCounts(lambda: {"bank": log})
        await begun(log, "a", branch())
        await begun(log, "b")
        await log.decide("b", State.COMMITTING)
        await log.purge(await log.now() + 1, 10)
        reading = await reader.read()
        assert _values(reading) == {
            "bedstone_transactions_total bank begun": 2,
            "bedstone_transactions_total bank committed": 1,
            "bedstone_transactions_total bank cancelled": 0,
            "bedstone_transactions_open bank active": 1,
            "bedstone_transactions_open bank committing": 0,
            "bedstone_transactions_open bank aborting": 0,
            "bedstone_transactions_stuck bank": 0,
        }
        assert reading.incarnations == {"transactions/bank": log.world.identity}
        assert reading.missing == {}

    asyncio.run(run())


def test_a_log_that_fails_is_named_and_the_others_answer() -> None:
    async def run() -> None:
        logs: dict[str, Counted | str] = {
            "away": Fixed(UnavailableError("the database is away")),
            "bug": Fixed(ZeroDivisionError()),
            "closed": "its log is being opened",
            "well": MemoryLog(),
        }
        reading = await TransactionCounts(lambda: logs).read()
        assert reading.missing == {
            "transactions/away": "the database is away",
            "transactions/bug": "an error of ours: ZeroDivisionError",
            "transactions/closed": "its log is being opened",
        }
        assert set(reading.incarnations) == {"transactions/well"}

    asyncio.run(run())


def test_a_slow_log_is_asked_once_and_its_late_answer_dropped() -> None:
    async def run() -> None:
        log = Slow()
        reader = TransactionCounts(lambda: {"bank": log}, patience=0.01)
        for _ in range(3):
            reading = await reader.read()
            assert set(reading.missing) == {"transactions/bank"}
            assert reading.series == ()
        assert log.asked == 1
        log.may.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        reading = await reader.read()
        assert log.asked == 2
        assert _values(reading)["bedstone_transactions_total bank begun"] == 2
        await reader.close()

    asyncio.run(run())


def test_a_question_that_was_cut_off_is_asked_again() -> None:
    class CutOff(Slow):
        async def counts(self) -> Counts:
            if not self.asked:
                await super().counts()
            return Counts("log", {"begun": 1}, {}, 0)

    async def run() -> None:
        reader = TransactionCounts(lambda: {"bank": CutOff()}, patience=0.01)
        assert (await reader.read()).missing
        reader._asking["bank"].cancel()
        await asyncio.sleep(0)
        log = CutOff()
        log.asked = 1
        reader._logs = lambda: {"bank": log}
        assert not (await reader.read()).missing

    asyncio.run(run())


def test_a_log_is_called_the_same_by_the_next_server_also_if_it_was_restored() -> None:
    """Else all that a restored log counts would count once more after each start."""

    async def run() -> None:
        log = Fixed(Counts("x", {"begun": 5}, {}, 0))
        logs: dict[str, Fixed] = {"bank": log}

        async def incarnation(reader: TransactionCounts) -> str:
            return (await reader.read()).incarnations["transactions/bank"]

        one = TransactionCounts(lambda: logs)
        first = await incarnation(one)
        log.said = Counts("x", {"begun": 4}, {}, 0)
        assert await incarnation(one) == await incarnation(TransactionCounts(lambda: logs))
        log.said = Counts("y", {"begun": 4}, {}, 0)
        assert await incarnation(one) != first

    asyncio.run(run())


def test_an_app_that_is_gone_is_forgotten() -> None:
    async def run() -> None:
        log = Slow()
        logs: dict[str, Slow] = {"bank": log}
        reader = TransactionCounts(lambda: logs, patience=0.01)
        await reader.read()
        logs.clear()
        assert await reader.read() == Reading()
        logs["bank"] = log
        await reader.read()
        assert log.asked == 2
        await reader.close()

    asyncio.run(run())
