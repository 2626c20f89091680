"""Random operations on several transactions never break what the state machine promises.

The model is a log in its simplest form: it applies each change, whole or not at all, and checks
after each that the world is one that could be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bedstone.transactions import machine
from bedstone.transactions.errors import (
    FencedError,
    TransactionDecidedError,
    TransactionTimeoutError,
)
from bedstone.transactions.machine import NEVER, Change
from bedstone.transactions.model import (
    Branch,
    BranchState,
    Event,
    Mode,
    Outcome,
    State,
    Transaction,
)

XIDS = st.sampled_from(["t1", "t2", "t3"])
OWNERS = st.sampled_from(["one", "two"])
PARTS = st.lists(
    st.builds(
        Branch,
        st.just(0),
        st.sampled_from(Mode),
        st.just("local:a"),
        locks=st.lists(st.sampled_from("abcdef"), max_size=2).map(tuple),
    ),
    max_size=3,
)
OUTCOMES = st.lists(
    st.builds(
        Outcome,
        st.integers(1, 5),
        st.sampled_from(BranchState),
        error=st.none() | st.just("no"),
        stuck=st.none() | st.none() | st.just({"a": 1}),
    ),
    max_size=4,
)
TIMES = st.floats(0, 30)
REACHED = {
    State.COMMITTING: BranchState.CONFIRMED,
    State.COMMITTED: BranchState.CONFIRMED,
    State.ABORTING: BranchState.CANCELLED,
    State.ABORTED: BranchState.CANCELLED,
}
WAYS = {
    State.ACTIVE: {
        State.ACTIVE,
        State.COMMITTING,
        State.ABORTING,
        State.COMMITTED,
        State.ABORTED,
    },
    State.COMMITTING: {State.COMMITTING, State.COMMITTED},
    State.ABORTING: {State.ABORTING, State.ABORTED},
    State.COMMITTED: {State.COMMITTED},
    State.ABORTED: {State.ABORTED},
}


class Transactions(RuleBasedStateMachine):
    """Three transactions, two owners, six locks, one clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.known: dict[str, Transaction] = {}
        self.events: dict[str, list[Event]] = {}
        self.locks: dict[str, str] = {}

    def apply(self, make: Callable[[], Change | None]) -> bool:
        """Write a change as a log does; False where it was refused."""
        try:
            change = make()
        except (TransactionDecidedError, FencedError):
            return False
        if change is None:
            return True
        after = change.after
        if any(self.locks.get(lock, after.xid) != after.xid for lock in change.acquires):
            return False
        before = self.known.get(after.xid)
        if before is not None:
            self.check_step(before, after)
        self.known[after.xid] = after
        self.events.setdefault(after.xid, []).extend(change.events)
        self.locks.update(dict.fromkeys(change.acquires, after.xid))
        if change.releases:
            self.locks = {lock: xid for lock, xid in self.locks.items() if xid != after.xid}
        if change.refusal is not None:
            assert isinstance(change.refusal, TransactionTimeoutError | TransactionDecidedError)
            return False
        return True

    @staticmethod
    def check_step(before: Transaction, after: Transaction) -> None:
        """From one to the next: nothing that was reached is lost."""
        assert after.state in WAYS[before.state]
        assert after.epoch >= before.epoch
        assert (after.owner == before.owner) or after.epoch > before.epoch
        assert (after.name, after.deadline, after.created) == (
            before.name,
            before.deadline,
            before.created,
        )
        assert len(after.branches) >= len(before.branches)
        for old, new in zip(before.branches, after.branches, strict=False):
            assert old.state is BranchState.REGISTERED or replace(new, stuck=old.stuck) == old
            same = (old.number, old.mode, old.resource, old.payload, old.locks)
            assert same == (new.number, new.mode, new.resource, new.payload, new.locks)
            assert new.attempts >= old.attempts or before.state is State.ACTIVE
        if len(after.branches) > len(before.branches):
            assert before.state is State.ACTIVE

    @rule(seconds=TIMES)
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(xid=XIDS, owner=OWNERS, parts=PARTS, seconds=TIMES)
    def begin(self, xid: str, owner: str, parts: list[Branch], seconds: float) -> None:
        new = Transaction(xid, "n", self.now + seconds, 0.0, owner, branches=tuple(parts))
        known = self.known.get(xid)
        done = self.apply(lambda: machine.begin(known, new, self.now))
        assert not (done and known is not None and known.owner != owner)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), parts=PARTS)
    def register(self, data: st.DataObject, parts: list[Branch]) -> None:
        known = self.any(data)
        done = self.apply(lambda: machine.register(known, parts, self.now))
        assert not done or (known.state is State.ACTIVE and self.now < known.deadline)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), commit=st.booleans())
    def decide(self, data: st.DataObject, *, commit: bool) -> None:
        known = self.any(data)
        state = State.COMMITTING if commit else State.ABORTING
        done = self.apply(lambda: machine.decide(known, state, self.now))
        after = self.known[known.xid].state
        assert after is not State.ACTIVE
        assert done is (REACHED[after] is REACHED[state])
        late = known.state is State.ACTIVE and known.deadline <= self.now
        assert not late or REACHED[after] is BranchState.CANCELLED

    @precondition(lambda self: self.known)
    @rule(data=st.data(), outcomes=OUTCOMES, seconds=TIMES, stale=st.sampled_from([0, 0, 0, 1]))
    def record(
        self, data: st.DataObject, outcomes: list[Outcome], seconds: float, stale: int
    ) -> None:
        known = self.any(data)
        owner, epoch = known.owner, known.epoch - stale
        at = self.now + seconds
        done = self.apply(lambda: machine.record(known, owner, epoch, outcomes, at, self.now))
        assert done is not bool(stale)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def do_what_is_due(self, data: st.DataObject) -> None:
        """As an honest owner whose participants succeed."""
        known = self.any(data)
        due = machine.due(known, self.now)
        if due is None:
            return
        if due.decide is not None:
            decision = due.decide
            self.apply(lambda: machine.decide(known, decision, self.now))
            return
        reached = REACHED.get(known.state, BranchState.REGISTERED)
        outcomes = [Outcome(branch.number, reached) for branch in due.branches]
        assert all(branch.stuck is None for branch in due.branches)
        self.apply(
            lambda: machine.record(known, known.owner, known.epoch, outcomes, self.now, self.now)
        )
        if known.state is not State.ACTIVE:
            left = [b for b in self.known[known.xid].branches if b.state is not reached]
            assert not left or any(branch.stuck is not None for branch in known.branches)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), seconds=st.none() | TIMES)
    def journal(self, data: st.DataObject, seconds: float | None) -> None:
        known = self.any(data)
        at = None if seconds is None else self.now + seconds
        event = Event(0.0, "step")
        assert self.apply(
            lambda: machine.journal(known, known.owner, known.epoch, [event], at, self.now)
        )
        assert self.events[known.xid][-1].at == self.now

    @precondition(lambda self: self.known)
    @rule(data=st.data(), owner=OWNERS)
    def claim(self, data: st.DataObject, owner: str) -> None:
        known = self.any(data)
        if known.state.ended:
            return
        assert self.apply(lambda: machine.claim(known, owner, self.now))
        outcome = Outcome(1, BranchState.CONFIRMED)
        assert not self.apply(
            lambda: machine.record(
                self.known[known.xid], known.owner, known.epoch, [outcome], 0.0, self.now
            )
        )

    @precondition(lambda self: self.known)
    @rule(
        data=st.data(),
        kind=st.sampled_from(["retried", "repaired", "signal"]),
        outcomes=OUTCOMES,
    )
    def amend(self, data: st.DataObject, kind: str, outcomes: list[Outcome]) -> None:
        known = self.any(data)
        taken = outcomes if kind == "repaired" else []
        done = self.apply(lambda: machine.amend(known, Event(0.0, kind), taken, self.now))
        assert done is not known.state.ended

    @invariant()
    def ended_is_reached_by_all(self) -> None:
        for transaction in self.known.values():
            states = {branch.state for branch in transaction.branches}
            reached = REACHED.get(transaction.state)
            assert states <= {BranchState.REGISTERED, reached}
            if transaction.state.ended:
                assert states <= {reached}
            elif transaction.state is not State.ACTIVE:
                assert BranchState.REGISTERED in states
            numbers = [branch.number for branch in transaction.branches]
            assert numbers == list(range(1, len(numbers) + 1))

    @invariant()
    def locks_are_held_by_those_who_need_them(self) -> None:
        needed = {
            lock: transaction.xid
            for transaction in self.known.values()
            if transaction.state in {State.ACTIVE, State.ABORTING}
            for branch in transaction.branches
            for lock in branch.locks
        }
        assert self.locks == needed

    @invariant()
    def the_next_attempt_is_when_something_is_due(self) -> None:
        for transaction in self.known.values():
            at = transaction.next_attempt
            for time in (self.now, at, at - 0.001, transaction.deadline, NEVER - 1):
                due = machine.due(transaction, time) if time < NEVER else None
                assert (due is not None) is (at <= time < NEVER)

    @invariant()
    def history_tells_the_state(self) -> None:
        for xid, transaction in self.known.items():
            kinds = [event.kind for event in self.events[xid]]
            assert kinds[0] == "begun"
            assert kinds.count("decided") == (transaction.state is not State.ACTIVE)
            assert kinds.count("ended") == transaction.state.ended
            assert kinds.count("registered") == len(transaction.branches)
            assert kinds.count("claimed") == transaction.epoch - 1
            times = [event.at for event in self.events[xid]]
            assert times == sorted(times)

    def any(self, data: st.DataObject) -> Transaction:
        return self.known[data.draw(st.sampled_from(sorted(self.known)))]


TestTransactions = Transactions.TestCase
TestTransactions.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
