"""Scopes: who decides, how failures doom the whole, and what a cancelled task leaves behind."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bedstone.errors import InvalidError, UnavailableError
from bedstone.telemetry import context as telemetry
from bedstone.testing.faults import Fault
from bedstone.testing.transaction_log import MemoryLog, in_turn
from bedstone.transactions.errors import (
    DecisionUnknownError,
    TransactionAbortedError,
    TransactionDecidedError,
    TransactionTimeoutError,
)
from bedstone.transactions.manager import Transactions, current, transaction, use
from bedstone.transactions.model import Branch, Mode, Phase, State, Transaction


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask a log that does not answer for the transaction's own time only."""
    monkeypatch.setattr("bedstone.transactions.coordinator.INSISTENCE", 0.2)


class Recorder:
    """A participant that tells what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, Phase]] = []
        self.contexts: list[telemetry.RequestContext] = []

    async def __call__(self, transaction: Transaction, branch: Branch, phase: Phase) -> None:
        self.asked.append((branch.number, phase))
        self.contexts.append(telemetry.current())


class World:
    def __init__(self, log: MemoryLog, transactions: Transactions) -> None:
        self.log = log
        self.transactions = transactions
        self.recorder = Recorder()
        transactions.participant("it", self.recorder)

    def branch(self) -> Branch:
        return Branch(0, Mode.TCC, self.transactions.resource("it"))

    @property
    def states(self) -> list[State]:
        """What is decided of each; that phase two is recorded is waited for by nobody."""
        ended = {State.COMMITTING: State.COMMITTED, State.ABORTING: State.ABORTED}
        found = [it.state for it in self.log.world.transactions.values()]
        return [ended.get(state, state) for state in found]


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    log = MemoryLog()
    async with Transactions(log, owner="test") as transactions:
        use(transactions)
        yield World(log, transactions)


def run(test: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), world() as it:
            await test(it)

    asyncio.run(main())


def test_a_block_that_ends_well_commits() -> None:
    async def test(it: World) -> None:
        async with transaction("t") as scope:
            (branch,) = await scope.enlist(it.branch())
            assert branch.number == 1
            assert telemetry.current().transaction == scope.xid
            assert current() is scope
            assert 0 < scope.remaining() <= 30
        assert it.states == [State.COMMITTED]
        assert it.recorder.asked == [(1, Phase.CONFIRM)]
        assert telemetry.current() == telemetry.RequestContext()

    run(test)


def test_phase_two_runs_outside_of_the_transaction_and_its_deadline() -> None:
    async def test(it: World) -> None:
        async with transaction() as scope:
            await scope.enlist(it.branch())
        (seen,) = it.recorder.contexts
        assert seen.transaction is None
        assert seen.deadline is None

    run(test)


def test_an_error_in_the_block_aborts_and_comes_out_unchanged() -> None:
    async def test(it: World) -> None:
        error = ValueError("broken")
        with pytest.raises(ValueError, match="broken") as caught:  # noqa: PT012
            async with transaction() as scope:
                await scope.enlist(it.branch(), it.branch())
                raise error
        assert caught.value is error
        assert it.states == [State.ABORTED]
        assert it.recorder.asked == [(2, Phase.CANCEL), (1, Phase.CANCEL)]

    run(test)


def test_an_inner_block_joins_and_its_failure_dooms_the_whole() -> None:
    async def inner(it: World) -> None:
        async with transaction("inner") as scope:
            assert scope.joined
            await scope.enlist(it.branch())
            raise ValueError

    async def test(it: World) -> None:
        with pytest.raises(TransactionAbortedError, match="ValueError"):  # noqa: PT012
            async with transaction("outer"):
                with pytest.raises(ValueError):
                    await inner(it)
        assert it.states == [State.ABORTED]

    run(test)


def test_an_inner_block_that_ends_well_does_not_decide() -> None:
    async def test(it: World) -> None:
        async with transaction("outer") as outer:
            async with transaction("inner") as inner:
                assert inner.xid == outer.xid
            assert it.states == [State.ACTIVE]
        assert it.states == [State.COMMITTED]

    run(test)


def test_rollback_only_aborts_with_its_reason() -> None:
    async def test(it: World) -> None:
        with pytest.raises(TransactionAbortedError, match="no credit"):
            async with transaction() as scope:
                scope.rollback_only("no credit")
        assert it.states == [State.ABORTED]

    run(test)


def test_a_failed_try_dooms_a_block_that_overlooks_it() -> None:
    async def test(it: World) -> None:
        with pytest.raises(TransactionAbortedError, match="KeyError"):  # noqa: PT012
            async with transaction() as scope:
                await scope.enlist(it.branch())
                with pytest.raises(KeyError):
                    async with scope.attempt():
                        raise KeyError("secret value")
        assert it.recorder.asked == [(1, Phase.CANCEL)]
        (xid,) = it.log.world.transactions
        assert "secret" not in str(it.log.world.events[xid])

    run(test)


def test_a_block_that_leaves_a_try_running_aborts() -> None:
    async def test(it: World) -> None:
        started, go = asyncio.Event(), asyncio.Event()

        async def slow() -> None:
            async with current().attempt():
                started.set()
                await go.wait()

        with pytest.raises(InvalidError, match="still running"):  # noqa: PT012
            async with transaction():
                task = asyncio.create_task(slow())
                await started.wait()
        go.set()
        await task
        assert it.states == [State.ABORTED]

    run(test)


def test_a_try_is_cut_off_at_the_deadline() -> None:
    async def test(it: World) -> None:
        with pytest.raises(TransactionTimeoutError, match="deadline"):
            async with transaction(timeout=0.05) as scope, scope.attempt():
                await asyncio.Event().wait()
        assert it.states == [State.ABORTED]

    run(test)


def test_a_request_whose_deadline_passed_begins_nothing() -> None:
    async def test(it: World) -> None:
        token = telemetry.enter(telemetry.RequestContext(deadline=0.0))
        try:
            with pytest.raises(TransactionTimeoutError, match="nothing was done"):
                async with transaction():
                    pytest.fail("entered")
        finally:
            telemetry.leave(token)
        assert it.states == []

    run(test)


def test_a_cancelled_task_aborts() -> None:
    async def test(it: World) -> None:
        entered = asyncio.Event()

        async def work() -> None:
            async with transaction() as scope:
                await scope.enlist(it.branch())
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert it.states == [State.ABORTED]
        assert it.recorder.asked == [(1, Phase.CANCEL)]

    run(test)


def test_a_task_cancelled_while_deciding_is_cancelled_after_the_decision() -> None:
    async def test(it: World) -> None:
        deciding, go = asyncio.Event(), asyncio.Event()

        async def slow(transaction: Transaction, branch: Branch, phase: Phase) -> None:
            deciding.set()
            await go.wait()

        it.transactions.participant("slow", slow)

        async def work() -> None:
            async with transaction() as scope:
                await scope.enlist(Branch(0, Mode.TCC, it.transactions.resource("slow")))

        task = asyncio.create_task(work())
        await deciding.wait()
        task.cancel()
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert it.states == [State.COMMITTED]

    run(test)


def test_a_lost_answer_to_the_decision_is_asked_for_again() -> None:
    async def test(it: World) -> None:
        async with transaction() as scope:
            await scope.enlist(it.branch())
            it.log.plan = in_turn([Fault.APPLIED])
        assert it.states == [State.COMMITTED]

    run(test)


def test_a_log_that_never_answers_leaves_the_decision_unknown(impatient: None) -> None:
    async def test(it: World) -> None:
        with pytest.raises(DecisionUnknownError) as caught:
            async with transaction(timeout=0.2) as scope:
                it.log.plan = lambda _: Fault.APPLIED
        it.log.plan = lambda _: Fault.NONE
        assert scope.xid in str(caught.value)

    run(test)


def test_an_abort_that_cannot_be_written_does_not_hide_the_cause(impatient: None) -> None:
    async def test(it: World) -> None:
        with pytest.raises(ValueError) as caught:  # noqa: PT012
            async with transaction(timeout=0.2):
                it.log.plan = lambda _: Fault.UNAPPLIED
                raise ValueError
        it.log.plan = lambda _: Fault.NONE
        assert "not aborted yet" in caught.value.__notes__[0]

    run(test)


def test_nothing_is_entered_when_the_log_is_away(impatient: None) -> None:
    async def test(it: World) -> None:
        it.log.plan = lambda operation: Fault.UNAPPLIED if operation == "begin" else Fault.NONE
        with pytest.raises(UnavailableError):
            async with transaction(timeout=0.2):
                pytest.fail("entered")
        assert telemetry.current().transaction is None

    run(test)


class TestAnotherService:
    """A handler whose request carried the id of a transaction that somebody else began."""

    def test_it_joins_by_the_header_alone(self) -> None:
        async def test(it: World) -> None:
            begun = await it.transactions.coordinator.begin("remote", 30.0)
            with telemetry.with_transaction(begun.xid):
                scope = current()
                assert (scope.xid, scope.joined) == (begun.xid, True)
                await scope.enlist(it.branch())
                async with transaction("handler") as joined:
                    assert joined.joined
            assert it.states == [State.ACTIVE]
            await it.transactions.coordinator.commit(begun.xid)
            assert it.recorder.asked == [(1, Phase.CONFIRM)]

        run(test)

    def test_its_failure_decides_that_the_whole_aborts(self) -> None:
        async def test(it: World) -> None:
            begun = await it.transactions.coordinator.begin("remote", 30.0)
            with telemetry.with_transaction(begun.xid), pytest.raises(ValueError):  # noqa: PT012
                async with transaction() as scope:
                    await scope.enlist(it.branch())
                    raise ValueError
            with pytest.raises(TransactionAbortedError):
                await it.transactions.coordinator.commit(begun.xid)

        run(test)

    def test_too_late_it_is_refused(self) -> None:
        async def test(it: World) -> None:
            begun = await it.transactions.coordinator.begin("remote", 30.0)
            await it.transactions.coordinator.commit(begun.xid)
            with telemetry.with_transaction(begun.xid), pytest.raises(TransactionDecidedError):
                await current().enlist(it.branch())

        run(test)


def test_outside_there_is_no_current_transaction() -> None:
    with pytest.raises(InvalidError, match="not inside a transaction"):
        current()


def test_a_block_is_entered_once() -> None:
    async def test(it: World) -> None:
        scope = transaction()
        async with scope:
            pass
        with pytest.raises(InvalidError, match="twice"):
            async with scope:
                pytest.fail("entered")

    run(test)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan")])
def test_a_timeout_is_more_than_nothing(timeout: float) -> None:
    with pytest.raises(InvalidError, match="time-out"):
        transaction(timeout=timeout)


def test_a_block_that_is_left_in_another_context_aborts_and_says_why() -> None:
    """So is a blocking dependency of a web framework: what it surrounds does not see it."""

    async def test(it: World) -> None:
        scope = transaction()

        async def enter() -> None:
            await scope.__aenter__()

        async def leave() -> None:
            await scope.__aexit__(None, None, None)

        await asyncio.create_task(enter())
        with pytest.raises(InvalidError, match="left in another context"):
            await asyncio.create_task(leave())
        assert it.states == [State.ABORTED]

    run(test)


def test_a_blocking_one_likewise() -> None:
    log = MemoryLog()
    with Transactions(log) as transactions:
        scope = transactions.transaction()
        contextvars.copy_context().run(scope.__enter__)
        with pytest.raises(InvalidError, match="left in another context"):
            contextvars.copy_context().run(scope.__exit__, None, None, None)
        assert log.world.transactions[scope.xid].state in {State.ABORTING, State.ABORTED}
