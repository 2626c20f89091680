"""The transaction log in memory keeps the promises that the logs on disk make."""

from __future__ import annotations

import asyncio

import pytest

from bedstone.errors import UnavailableError, UnknownOutcomeError
from bedstone.testing.faults import Fault
from bedstone.testing.transaction_log import MemoryLog, World, in_turn
from bedstone.testing.transaction_log_suite import CHECKS, SKIPPED, Subject, run_check
from bedstone.transactions.model import State, Transaction


@pytest.mark.parametrize("check", CHECKS)
def test_memory_log(check: str) -> None:
    world = World()
    subject = Subject(lambda: MemoryLog(world=world))
    if run_check(check, subject) == SKIPPED:
        pytest.skip("does not apply to this driver")


def test_a_write_fails_unapplied_then_applied_with_its_answer_lost() -> None:
    async def run() -> None:
        log = MemoryLog(lambda: 5.0, plan=in_turn([Fault.UNAPPLIED, Fault.APPLIED]))
        new = Transaction("a", "", 10.0, 0.0, "one")
        with pytest.raises(UnavailableError):
            await log.begin(new)
        assert list(await log.list()) == []
        with pytest.raises(UnknownOutcomeError):
            await log.begin(new)
        assert (await log.get("a")).created == 5.0
        await log.begin(new)

    asyncio.run(run())


def test_a_refusal_may_be_lost_too() -> None:
    async def run() -> None:
        log = MemoryLog(lambda: 5.0)
        await log.begin(Transaction("a", "", 4.0, 0.0, "one"))
        log.plan = in_turn([Fault.APPLIED])
        with pytest.raises(UnknownOutcomeError):
            await log.decide("a", State.COMMITTING)
        assert (await log.get("a")).state is State.ABORTED

    asyncio.run(run())


def test_readings_fail_as_unavailable() -> None:
    async def run() -> None:
        log = MemoryLog(plan=lambda operation: Fault.APPLIED)
        with pytest.raises(UnavailableError):
            await log.now()

    asyncio.run(run())
