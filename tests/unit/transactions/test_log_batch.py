"""Batches of the log: order, refusals, locks that change hands, and callers that give up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from bedstone.errors import InvalidError, UnavailableError, UnknownOutcomeError
from bedstone.transactions import machine
from bedstone.transactions.errors import LockConflictError, TransactionDecidedError
from bedstone.transactions.log_batch import (
    LARGEST_BATCH,
    Draft,
    LockChanges,
    Operation,
    Outcome,
    Queue,
)
from bedstone.transactions.log_rows import Stored, encode_branches
from bedstone.transactions.machine import Change
from bedstone.transactions.model import Branch, BranchState, Mode, State, Transaction
from bedstone.transactions.model import Outcome as Attempt

NOW = 1000.0


def begin(xid: str, *locks: str) -> Operation:
    branches = (Branch(0, Mode.AT, "r", locks=locks),)
    new = Transaction(xid, xid, NOW + 60, 0.0, "one", branches=branches)
    return Operation(xid, lambda found, now: machine.begin(found, new, now), locks)


def decide(xid: str, state: State) -> Operation:
    def change(found: Transaction | None, now: float) -> Change | None:
        assert found is not None
        return machine.decide(found, state, now)

    return Operation(xid, change)


def cancel(xid: str) -> Operation:
    def change(found: Transaction | None, now: float) -> Change | None:
        assert found is not None
        outcomes = [Attempt(1, BranchState.CANCELLED)]
        return machine.record(found, "one", 1, outcomes, now, now)

    return Operation(xid, change)


def held(operation: Operation) -> Stored:
    change = operation.change(None, NOW)
    assert change is not None
    return Stored(change.after, encode_branches(change.after.branches), len(change.events))


def test_operations_see_what_earlier_ones_did() -> None:
    draft = Draft([], {}, NOW)
    first = draft.apply(begin("a", "k"))
    second = draft.apply(decide("a", State.ABORTING))
    assert isinstance(first, Transaction)
    assert isinstance(second, Transaction)
    assert second.state is State.ABORTING
    assert isinstance(draft.apply(decide("a", State.COMMITTING)), TransactionDecidedError)
    (row,) = draft.inserted
    assert row.transaction == second
    assert row.events == 3
    assert not draft.updated
    assert [(xid, position, event.kind) for xid, position, event in draft.events] == [
        ("a", 1, "begun"),
        ("a", 2, "registered"),
        ("a", 3, "decided"),
    ]


def test_history_goes_on_where_it_was() -> None:
    draft = Draft([held(begin("a"))], {}, NOW)
    draft.apply(decide("a", State.ABORTING))
    draft.apply(cancel("a"))
    assert [(position, event.kind) for _, position, event in draft.events] == [
        (3, "decided"),
        (4, "attempt"),
        (5, "ended"),
    ]
    (row,) = draft.updated
    assert (row.ended_at, row.events) == (NOW, 5)
    assert not draft.inserted


def test_a_refusal_leaves_nothing() -> None:
    draft = Draft([], {"k": "other"}, NOW)
    refused = draft.apply(begin("a", "free", "k"))
    assert isinstance(refused, LockConflictError)
    assert "other" in str(refused)
    assert draft.empty
    assert not draft.inserted
    assert draft.locks() == LockChanges([], [], [])


def test_a_defect_is_the_operations_own() -> None:
    def broken(_found: Transaction | None, _now: float) -> Change | None:
        raise ZeroDivisionError

    draft = Draft([], {}, NOW)
    assert isinstance(draft.apply(Operation("x", broken)), ZeroDivisionError)
    assert isinstance(draft.apply(begin("a")), Transaction)


@pytest.mark.parametrize("placed", [False, True])
def test_locks_change_hands_within_a_batch(*, placed: bool) -> None:
    """Given up by one and taken by the next; whoever the driver put them down for meanwhile."""
    down = {"new": "b"} if placed else {}
    draft = Draft([held(begin("a", "k", "gone"))], {"k": "a"}, NOW, down)
    assert isinstance(draft.apply(begin("b", "k", "new")), LockConflictError)
    assert isinstance(draft.apply(decide("a", State.COMMITTING)), Transaction)
    assert isinstance(draft.apply(begin("c", "k", "new")), Transaction)
    assert isinstance(draft.apply(begin("d", "k")), LockConflictError)
    locks = draft.locks()
    assert locks.removed == [("gone", "a")]
    assert locks.moved == [("k", "c"), *([("new", "c")] if placed else [])]
    assert locks.added == ([] if placed else [("new", "c")])


def test_locks_taken_and_given_up_in_one_batch() -> None:
    for placed in ({}, {"k": "a"}):
        draft = Draft([], {}, NOW, placed)
        draft.apply(begin("a", "k"))
        draft.apply(decide("a", State.ABORTING))
        draft.apply(cancel("a"))
        draft.apply(begin("b", "k"))
        draft.apply(decide("b", State.COMMITTING))
        locks = draft.locks()
        assert (locks.added, locks.moved) == ([], [])
        assert locks.removed == list(placed.items())


def test_an_end_gives_up_no_lock_of_another() -> None:
    """A commit gave its locks up with the decision; at its end they are another's."""
    draft = Draft([held(begin("a", "k"))], {"k": "a"}, NOW)
    draft.apply(decide("a", State.COMMITTING))
    (row,) = draft.updated
    later = Draft([row], {}, NOW)

    def confirm(found: Transaction | None, now: float) -> Change | None:
        assert found is not None
        return machine.record(found, "one", 1, [Attempt(1, BranchState.CONFIRMED)], now, now)

    ended = later.apply(Operation("a", confirm))
    assert isinstance(ended, Transaction)
    assert ended.state is State.COMMITTED
    assert later.locks().removed == []


def test_a_lock_with_an_unknown_holder_is_held() -> None:
    draft = Draft([], {"k": ""}, NOW)
    assert isinstance(draft.apply(begin("a", "k")), LockConflictError)


class Writer:
    """Answers each operation with its transaction, when it is let to."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go = asyncio.Semaphore(0)
        self.failures: list[Exception | None] = []

    async def write(self, operations: Sequence[Operation]) -> Sequence[Outcome]:
        self.batches.append([operation.xid for operation in operations])
        await self.go.acquire()
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        if len(operations) > 1 and any(operation.xid == "bad" for operation in operations):
            raise InvalidError("one is bad")
        draft = Draft([], {}, NOW)
        return [
            InvalidError("bad") if operation.xid == "bad" else draft.apply(operation)
            for operation in operations
        ]


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_what_waits_together_is_written_together() -> None:
    async def run() -> None:
        writer = Writer()
        queue = Queue(writer.write)
        running = asyncio.ensure_future(queue.run())
        first = asyncio.ensure_future(queue.submit(begin("a")))
        await settle()
        rest = [asyncio.ensure_future(queue.submit(begin(f"b{n}"))) for n in range(600)]
        given_up = rest.pop(3)
        await settle()
        given_up.cancel()
        for _ in range(3):
            writer.go.release()
        assert (await first).xid == "a"
        answers = await asyncio.gather(*rest)
        assert [it.xid for it in answers] == [f"b{n}" for n in range(600) if n != 3]
        assert [len(batch) for batch in writer.batches] == [1, LARGEST_BATCH, 87]
        assert "b3" not in writer.batches[1]
        queue.stop()
        await running
        with pytest.raises(UnavailableError, match="closed"):
            await queue.submit(begin("z"))

    asyncio.run(run())


def test_a_caller_that_leaves_late_takes_nothing_along() -> None:
    async def run() -> None:
        writer = Writer()
        queue = Queue(writer.write)
        running = asyncio.ensure_future(queue.run())
        both = [asyncio.ensure_future(queue.submit(begin(it))) for it in "ab"]
        await settle()
        both[0].cancel()
        await settle()
        writer.go.release()
        assert (await both[1]).xid == "b"
        assert writer.batches == [["a", "b"]]
        queue.stop()
        await running

    asyncio.run(run())


def test_a_failed_batch_is_everybodys_and_the_next_goes_on() -> None:
    async def run() -> None:
        writer = Writer()
        writer.failures = [UnavailableError("away"), UnknownOutcomeError("lost"), KeyError("bug")]
        for _ in range(10):
            writer.go.release()
        queue = Queue(writer.write)
        running = asyncio.ensure_future(queue.run())
        for kind in (UnavailableError, UnknownOutcomeError, UnknownOutcomeError):
            both = await asyncio.gather(
                queue.submit(begin("a")), queue.submit(begin("b")), return_exceptions=True
            )
            assert [type(it) for it in both] == [kind, kind]
            assert both[0] is not both[1]
        assert (await queue.submit(begin("a"))).xid == "a"
        queue.stop()
        await running

    asyncio.run(run())


def test_only_the_culprit_of_an_invalid_batch_fails() -> None:
    async def run() -> None:
        writer = Writer()
        for _ in range(10):
            writer.go.release()
        queue = Queue(writer.write)
        running = asyncio.ensure_future(queue.run())
        good, bad, other = await asyncio.gather(
            *(queue.submit(begin(it)) for it in ("good", "bad", "other")), return_exceptions=True
        )
        assert isinstance(good, Transaction)
        assert isinstance(bad, InvalidError)
        assert isinstance(other, Transaction)
        assert writer.batches == [["good", "bad", "other"], ["good"], ["bad"], ["other"]]
        queue.stop()
        await running

    asyncio.run(run())


def test_work_that_needs_to_be_alone_keeps_its_place() -> None:
    async def run() -> None:
        writer = Writer()
        order: list[str] = []

        async def claim() -> int:
            order.append(f"after {len(writer.batches)}")
            return 7

        async def fail() -> int:
            raise UnavailableError("away")

        for _ in range(10):
            writer.go.release()
        queue = Queue(writer.write)
        running = asyncio.ensure_future(queue.run())
        results = await asyncio.gather(
            queue.submit(begin("a")),
            queue.alone(claim),
            queue.alone(fail),
            queue.submit(begin("b")),
            return_exceptions=True,
        )
        assert results[1] == 7
        assert isinstance(results[2], UnavailableError)
        assert order == ["after 1"]
        assert writer.batches == [["a"], ["b"]]
        queue.stop()
        await running

    asyncio.run(run())


def test_stopping_answers_everybody() -> None:
    async def run() -> None:
        writer = Writer()
        queue = Queue(writer.write)
        running = asyncio.ensure_future(queue.run())
        first = asyncio.ensure_future(queue.submit(begin("a")))
        await settle()
        second = asyncio.ensure_future(queue.submit(begin("b")))
        await settle()
        queue.stop()
        writer.go.release()
        assert (await first).xid == "a"
        with pytest.raises(UnavailableError, match="closed"):
            await second
        await running

    asyncio.run(run())


def test_a_writer_that_is_cancelled_tells_that_nothing_is_known() -> None:
    async def run() -> None:
        queue = Queue(Writer().write)
        running = asyncio.ensure_future(queue.run())
        first = asyncio.ensure_future(queue.submit(begin("a")))
        await settle()
        second = asyncio.ensure_future(queue.submit(begin("b")))
        await settle()
        running.cancel()
        with pytest.raises(UnknownOutcomeError):
            await first
        with pytest.raises(UnavailableError):
            await second
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(run())
