"""An enlistment that is cut off, or gets no answer, never ends in a commit without its TRY."""

from __future__ import annotations

import asyncio

import pytest

from bedstone.errors import UnknownOutcomeError
from bedstone.telemetry import context as telemetry
from bedstone.testing.faults import Fault
from bedstone.testing.transaction_log import MemoryLog
from bedstone.transactions.errors import TransactionAbortedError
from bedstone.transactions.manager import Transactions
from bedstone.transactions.model import Branch, Mode, Phase, State, Transaction
from bedstone.transactions.scope import Scope

ASKED: list[Phase] = []


async def participant(transaction: Transaction, branch: Branch, phase: Phase) -> None:
    ASKED.append(phase)


def branch(transactions: Transactions) -> Branch:
    return Branch(0, Mode.TCC, transactions.resource("it"))


class SlowLog(MemoryLog):
    """Registers, and answers late: as where the caller's patience ends during the write."""

    def __init__(self) -> None:
        super().__init__()
        self.written = asyncio.Event()

    async def register(self, xid: str, branches: object) -> Transaction:
        after = await super().register(xid, branches)  # type: ignore[arg-type]
        self.written.set()
        await asyncio.Event().wait()
        return after


def test_a_cancelled_enlistment_dooms_the_block_that_goes_on() -> None:
    async def main() -> None:
        log = SlowLog()
        async with Transactions(log) as transactions:
            transactions.participant("it", participant)
            with pytest.raises(TransactionAbortedError, match="CancelledError"):  # noqa: PT012
                async with transactions.transaction() as scope:
                    work = asyncio.create_task(scope.enlist(branch(transactions)))
                    await log.written.wait()
                    work.cancel()
                    await asyncio.wait([work])
            assert (await log.get(scope.xid)).state in {State.ABORTING, State.ABORTED}

    ASKED.clear()
    asyncio.run(main())
    assert ASKED == [Phase.CANCEL]


def test_in_a_service_it_is_aborted_in_the_log() -> None:
    async def main() -> None:
        log = SlowLog()
        async with Transactions(log) as transactions:
            transactions.participant("it", participant)
            begun = await transactions.coordinator.begin("t", 30.0)
            with telemetry.with_transaction(begun.xid):
                scope = Scope.of_request(transactions, begun.xid)
                work = asyncio.create_task(scope.enlist(branch(transactions)))
                await log.written.wait()
                work.cancel()
                await asyncio.wait([work])
            assert (await log.get(begun.xid)).state in {State.ABORTING, State.ABORTED}

    asyncio.run(main())


@pytest.mark.parametrize("blocking", [False, True])
def test_an_enlistment_without_an_answer_dooms_the_block_that_goes_on(*, blocking: bool) -> None:
    """Also where the coordinator could not abort it at once."""
    faults = {"register": Fault.APPLIED}
    log = MemoryLog(plan=lambda operation: faults.pop(operation, Fault.NONE))
    manager = Transactions(log)
    manager.participant("it", participant)

    async def main() -> None:
        async with manager:
            with pytest.raises(TransactionAbortedError):  # noqa: PT012
                async with manager.transaction() as scope:
                    with pytest.raises(UnknownOutcomeError):
                        await scope.enlist(branch(manager))
                    assert scope._doomed

    if not blocking:
        asyncio.run(main())
        return
    with manager, pytest.raises(TransactionAbortedError), manager.transaction() as scope:  # noqa: PT012
        with pytest.raises(UnknownOutcomeError):
            scope.enlist_sync(branch(manager))
        assert scope._doomed
