"""The transaction state machine: what each function lets through, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bedstone.errors import InvalidError
from bedstone.transactions import machine
from bedstone.transactions.errors import (
    FencedError,
    TransactionDecidedError,
    TransactionTimeoutError,
)
from bedstone.transactions.machine import NEVER, Change, Due
from bedstone.transactions.model import (
    Branch,
    BranchState,
    Event,
    Mode,
    Outcome,
    Phase,
    State,
    Transaction,
)

NOW = 100.0
CONFIRMED, CANCELLED, OPEN = (
    BranchState.CONFIRMED,
    BranchState.CANCELLED,
    BranchState.REGISTERED,
)


def new(*modes: Mode, deadline: float = NOW + 50, **fields: object) -> Transaction:
    branches = tuple(
        Branch(0, mode, f"local:{n}", locks=(f"k{n}", "shared")) for n, mode in enumerate(modes, 1)
    )
    given = Transaction("t", "pay", deadline, 0.0, "one", branches=branches)
    change = machine.begin(None, given, NOW)
    assert change is not None
    return replace(change.after, **fields)  # type: ignore[arg-type]


def decided(state: State, *modes: Mode) -> Transaction:
    change = machine.decide(new(*modes), state, NOW)
    assert change is not None
    return change.after


def recorded(transaction: Transaction, *outcomes: Outcome, at: float = NOW + 1) -> Change:
    owner, epoch = transaction.owner, transaction.epoch
    return machine.record(transaction, owner, epoch, outcomes, at, NOW)


def test_begin_numbers_stamps_and_locks() -> None:
    given = replace(new(), branches=(Branch(7, Mode.TCC, "a", locks=("y", "x")),), created=3.0)
    change = machine.begin(None, given, NOW)
    assert change is not None
    assert change.after.created == NOW
    assert change.after.branches[0].number == 1
    assert change.acquires == ("x", "y")
    assert not change.releases
    assert [event.kind for event in change.events] == ["begun", "registered"]


def test_begin_again_is_no_change_and_another_is_refused() -> None:
    transaction = new(Mode.TCC)
    assert machine.begin(transaction, transaction, NOW + 1) is None
    for other in (
        replace(transaction, name="x"),
        replace(transaction, owner="x"),
        replace(transaction, epoch=2),
        replace(transaction, branches=()),
    ):
        with pytest.raises(TransactionDecidedError):
            machine.begin(transaction, other, NOW)


@pytest.mark.parametrize("xid", ["", "a" * 65, "a b", "ä", "a\n", "a/b"])
def test_begin_refuses_what_is_no_id(xid: str) -> None:
    with pytest.raises(InvalidError):
        machine.begin(None, replace(new(), xid=xid), NOW)


def test_register_only_while_active_and_before_the_deadline() -> None:
    change = machine.register(new(Mode.TCC), [Branch(0, Mode.AT, "b", locks=("k",))], NOW)
    assert [branch.number for branch in change.after.branches] == [1, 2]
    assert change.acquires == ("k",)
    for refused in (
        decided(State.COMMITTING, Mode.TCC),
        decided(State.ABORTING, Mode.TCC),
        decided(State.ABORTING),
        new(deadline=NOW),
    ):
        with pytest.raises(TransactionDecidedError):
            machine.register(refused, [Branch(0, Mode.AT, "b")], NOW)


def test_a_decision_stands() -> None:
    for state, other in (
        (State.COMMITTING, State.ABORTING),
        (State.ABORTING, State.COMMITTING),
    ):
        for transaction in (decided(state, Mode.TCC), decided(state)):
            assert machine.decide(transaction, state, NOW) is None
            with pytest.raises(TransactionDecidedError):
                machine.decide(transaction, other, NOW)
    for none in (State.ACTIVE, State.COMMITTED, State.ABORTED):
        with pytest.raises(InvalidError):
            machine.decide(new(), none, NOW)


def test_commit_at_the_deadline_is_an_abort() -> None:
    change = machine.decide(new(Mode.TCC, deadline=NOW), State.COMMITTING, NOW, "paid")
    assert change is not None
    assert change.after.state is State.ABORTING
    assert isinstance(change.refusal, TransactionTimeoutError)
    assert not change.releases
    assert change.events[0].detail == {"state": "aborting", "late": True, "reason": "paid"}
    in_time = machine.decide(new(deadline=NOW + 0.001), State.COMMITTING, NOW)
    assert in_time is not None
    assert in_time.refusal is None


def test_locks_go_with_the_commit_or_with_the_last_cancel() -> None:
    committing = machine.decide(new(Mode.TCC), State.COMMITTING, NOW)
    aborting = machine.decide(new(Mode.TCC, Mode.TCC), State.ABORTING, NOW)
    empty = machine.decide(new(), State.ABORTING, NOW)
    assert committing is not None
    assert aborting is not None
    assert empty is not None
    assert [it.releases for it in (committing, aborting, empty)] == [True, False, True]
    first = recorded(aborting.after, Outcome(2, CANCELLED))
    assert not first.releases
    last = recorded(first.after, Outcome(1, CANCELLED))
    assert (last.releases, last.after.state) == (True, State.ABORTED)
    assert last.after.next_attempt == NEVER
    assert not recorded(last.after, Outcome(1, CANCELLED)).releases


def test_what_a_try_was_stuck_on_does_not_hold_back_its_cancel() -> None:
    stuck = recorded(new(Mode.SAGA), Outcome(1, OPEN, "no", {"a": 1})).after
    assert machine.due(stuck, NOW + 49) is None
    assert stuck.next_attempt == stuck.deadline
    change = machine.decide(stuck, State.ABORTING, NOW)
    assert change is not None
    due = machine.due(change.after, NOW)
    assert due is not None
    assert due.phase is Phase.CANCEL
    assert [branch.attempts for branch in due.branches] == [0]


def test_record_takes_the_decided_end_alone() -> None:
    transaction = decided(State.ABORTING, Mode.TCC, Mode.TCC)
    change = recorded(transaction, Outcome(1, CONFIRMED), Outcome(2, CANCELLED), Outcome(9, OPEN))
    assert [it.state for it in change.after.branches] == [OPEN, CANCELLED]
    again = recorded(change.after, Outcome(2, OPEN, "late failure"))
    assert again.after.branches == change.after.branches
    assert again.events == ()


def test_record_and_journal_are_fenced() -> None:
    transaction = replace(decided(State.COMMITTING, Mode.TCC), epoch=3)
    for owner, epoch in (("two", 3), ("one", 2), ("one", 4)):
        with pytest.raises(FencedError):
            machine.record(transaction, owner, epoch, [Outcome(1, CONFIRMED)], NOW, NOW)
        with pytest.raises(FencedError):
            machine.journal(transaction, owner, epoch, [Event(0.0, "step")], None, NOW)


def test_claim_raises_the_epoch_and_makes_due_what_may_go_on() -> None:
    for transaction, at in (
        (new(Mode.TCC), NOW + 50),
        (new(Mode.SAGA), NOW + 7),
        (decided(State.COMMITTING, Mode.TCC), NOW + 7),
        (
            recorded(decided(State.COMMITTING, Mode.TCC), Outcome(1, OPEN, "x", {})).after,
            NEVER,
        ),
    ):
        change = machine.claim(transaction, "two", NOW + 7)
        assert (change.after.owner, change.after.epoch) == ("two", 2)
        assert change.after.next_attempt == at
        assert change.after.branches == transaction.branches
        assert not change.releases


def test_amend_frees_what_is_stuck_and_a_signal_does_not() -> None:
    stuck = recorded(decided(State.ABORTING, Mode.TCC), Outcome(1, OPEN, "x", {"a": 1})).after
    assert machine.due(stuck, NOW + 1000) is None
    signalled = machine.amend(stuck, Event(0.0, "signal"), [], NOW + 5).after
    assert signalled.branches == stuck.branches
    assert signalled.next_attempt == NEVER
    change = machine.amend(stuck, Event(0.0, "retried", detail={"by": "ada"}), [], NOW + 5)
    assert change.after.branches[0].stuck is None
    assert change.after.next_attempt == NOW + 5
    assert change.events == (Event(NOW + 5, "retried", detail={"by": "ada"}),)
    repaired = machine.amend(stuck, Event(0.0, "repaired", 1), [Outcome(1, CANCELLED)], NOW + 5)
    assert (repaired.after.state, repaired.releases) == (State.ABORTED, True)
    with pytest.raises(TransactionDecidedError):
        machine.amend(repaired.after, Event(0.0, "retried"), [], NOW)


def test_cancel_is_due_backwards_up_to_what_is_stuck() -> None:
    transaction = decided(State.ABORTING, Mode.TCC, Mode.TCC, Mode.TCC)
    due = machine.due(transaction, NOW)
    assert due is not None
    assert (due.phase, [it.number for it in due.branches]) == (Phase.CANCEL, [3, 2, 1])
    stuck = recorded(transaction, Outcome(2, OPEN, "x", {}), at=NOW).after
    due = machine.due(stuck, NOW)
    assert due is not None
    assert [it.number for it in due.branches] == [3]
    after = recorded(stuck, Outcome(3, CANCELLED), at=NOW).after
    assert machine.due(after, NOW + 1000) is None
    assert after.next_attempt == NEVER


def test_confirm_is_due_around_what_is_stuck() -> None:
    transaction = decided(State.COMMITTING, Mode.TCC, Mode.TCC, Mode.TCC)
    stuck = recorded(transaction, Outcome(2, OPEN, "x", {}), at=NOW).after
    due = machine.due(stuck, NOW)
    assert due is not None
    assert (due.phase, [it.number for it in due.branches]) == (Phase.CONFIRM, [1, 3])
    later = recorded(stuck, Outcome(1, OPEN, "x"), at=NOW + 9).after
    assert machine.due(later, NOW + 8) is None
    assert machine.due(later, NOW + 9) is not None


def test_an_undecided_one_is_due_at_its_deadline_or_for_its_saga() -> None:
    assert machine.due(new(Mode.TCC), NOW + 49) is None
    assert machine.due(new(Mode.TCC), NOW + 50) == Due(decide=State.ABORTING)
    saga = new(Mode.TCC, Mode.SAGA)
    due = machine.due(saga, NOW)
    assert due is not None
    assert (due.phase, [it.number for it in due.branches]) == (Phase.TRY, [2])
    waits = machine.journal(saga, "one", 1, [], NOW + 20, NOW).after
    assert machine.due(waits, NOW + 19) is None
    beyond = machine.journal(saga, "one", 1, [], NOW + 500, NOW).after
    assert beyond.next_attempt == saga.deadline


def test_the_delay_grows_to_its_limit() -> None:
    full = [machine.delay(n, 1.0) for n in range(1, 40)]
    assert full[:4] == [0.1, 0.2, 0.4, 0.8]
    assert full == sorted(full)
    assert full[-1] == machine.delay(10**9, 1.0) == 60.0
    assert machine.delay(3, 0.0) == 0.2
