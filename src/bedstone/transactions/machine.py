"""The state machine of a distributed transaction: pure functions that every log driver shares.

A log driver loads a transaction, calls one of `begin`, `register`, `decide`, `record`, `journal`,
`claim` or `amend`, and writes the `Change` that comes back, all in one local database transaction.
A coordinator asks `due` what to do next.

Invariants:
- A decision, once made, stands: no function leads from COMMITTING to ABORTING or back.
- A transaction ends only when each of its branches has reached the end that was decided.
- A change under an older epoch, or by another owner, is refused.
- `next_attempt` is the one time at which the owner has something to do: `owned` needs no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from bedstone.errors import InvalidError
from bedstone.transactions.errors import (
    FencedError,
    TransactionDecidedError,
    TransactionTimeoutError,
)
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

EVERYWHERE = "*"
"""The group of a coordinator that reaches every participant that has an address."""
FIRST_DELAY = 0.1
LONGEST_DELAY = 60.0

NEVER = 253402300800.0
"""The next attempt of what waits for a person: the year 10000, which every database can store."""


@dataclass(frozen=True, slots=True)
class Change:
    """What to write, all or nothing.

    Args:
        after: the transaction as it is to be.
        events: what to append to its history.
        acquires: global locks to take; if another transaction holds one, nothing is written.
        releases: whether all its global locks go.
        refusal: what to raise once this is written.
    """

    after: Transaction
    events: tuple[Event, ...] = ()
    acquires: tuple[str, ...] = ()
    releases: bool = False
    refusal: TransactionDecidedError | TransactionTimeoutError | None = None


@dataclass(frozen=True, slots=True)
class Due:
    """What a transaction's owner has to do now.

    Args:
        phase: TRY to go on with a saga; CONFIRM in any order; CANCEL in the order given.
        branches: those to call.
        decide: the decision to write first, instead.
    """

    phase: Phase = Phase.CANCEL
    branches: tuple[Branch, ...] = ()
    decide: State | None = None


def begin(existing: Transaction | None, new: Transaction, now: float) -> Change | None:
    """Start a transaction; None where the same one stands already.

    Raises:
        InvalidError: the id is none.
        TransactionDecidedError: the id is taken by another transaction.
    """
    if _XID.fullmatch(new.xid) is None:
        raise InvalidError(
            f"got the transaction id {new.xid[:80]!r}, expected 1 to 64 of A-Z a-z 0-9 . _ -"
        )
    branches = _numbered(new.branches, 0)
    new = _settled(replace(new, state=State.ACTIVE, branches=branches, created=now))
    if existing is not None:
        same = (existing.name, existing.owner) == (new.name, new.owner)
        if same and existing.epoch == new.epoch and existing.branches == branches:
            return None
        raise TransactionDecidedError(
            f"transaction {new.xid} exists already, as {existing.name!r}, {existing.state}",
            hint="every transaction takes a new id",
        )
    events = (Event(now, "begun", detail={"name": new.name, "deadline": new.deadline}),)
    return Change(new, events + _registered(branches, now), _locks(branches))


def register(transaction: Transaction, branches: Sequence[Branch], now: float) -> Change:
    """Append branches.

    Raises:
        TransactionDecidedError: the transaction takes none any more.
    """
    if transaction.state is not State.ACTIVE:
        raise _decided(transaction, "takes no further branch")
    if transaction.deadline <= now:
        raise TransactionDecidedError(
            f"the deadline of transaction {transaction.xid} has passed; it takes no further branch"
        )
    added = _numbered(branches, len(transaction.branches))
    after = _settled(replace(transaction, branches=transaction.branches + added))
    return Change(after, _registered(added, now), _locks(added))


def decide(transaction: Transaction, state: State, now: float, reason: str = "") -> Change | None:
    """Decide the end, once; None where the same decision stands already.

    What stood in the way of a saga's TRY does not stand in the way of its CANCEL.

    Raises:
        InvalidError: the state is no decision.
        TransactionDecidedError: the other decision stands.
    """
    if state not in _ENDS:
        raise InvalidError(f"got the decision {state}, expected committing or aborting")
    if transaction.state in _ENDS[state]:
        return None
    if transaction.state is not State.ACTIVE:
        raise _decided(transaction, f"can't be {_WORDS[state]}")
    refusal = None
    if state is State.COMMITTING and transaction.deadline <= now:
        refusal = TransactionTimeoutError(
            f"transaction {transaction.xid} is aborted: its deadline passed before the decision",
            hint="run it again under a new id; see what took its time with `bedstone tx show`",
        )
        state = State.ABORTING
    detail: dict[str, object] = {"state": str(state), "late": refusal is not None}
    if reason:
        detail["reason"] = reason
    events = [Event(now, "decided", detail=detail)]
    fresh = tuple(
        replace(branch, stuck=None, attempts=0) if branch.attempts else branch
        for branch in transaction.branches
    )
    after = replace(transaction, state=state, next_attempt=now, branches=fresh)
    if not after.branches:
        after = replace(after, state=_ENDED[state])
        events.append(Event(now, "ended", detail={"state": str(after.state)}))
    releases = state is State.COMMITTING or after.state.ended
    return Change(_settled(after), tuple(events), releases=releases, refusal=refusal)


def record(
    transaction: Transaction,
    owner: str,
    epoch: int,
    outcomes: Sequence[Outcome],
    next_attempt: float,
    now: float,
) -> Change:
    """Write what phase two attempts came to.

    Raises:
        FencedError: another owner or epoch holds the transaction.
    """
    _fence(transaction, owner, epoch)
    return _outcomes(transaction, outcomes, next_attempt, now)


def journal(
    transaction: Transaction,
    owner: str,
    epoch: int,
    events: Sequence[Event],
    next_attempt: float | None,
    now: float,
) -> Change:
    """Append a saga's own history.

    Raises:
        FencedError: another owner or epoch holds the transaction.
    """
    _fence(transaction, owner, epoch)
    at = transaction.next_attempt if next_attempt is None else next_attempt
    stamped = tuple(replace(event, at=now) for event in events)
    return Change(_settled(replace(transaction, next_attempt=at)), stamped)


def claim(transaction: Transaction, owner: str, now: float) -> Change:
    """Take over from an owner whose lease has ended. The caller has checked the lease."""
    detail: dict[str, object] = {"from": transaction.owner, "to": owner}
    after = replace(transaction, owner=owner, epoch=transaction.epoch + 1, next_attempt=now)
    event = Event(now, "claimed", detail=detail | {"epoch": after.epoch})
    return Change(_settled(after), (event,))


def heirs(owner: str, dead: Iterable[str], alive: Iterable[str]) -> list[str]:
    """Those of the `dead` that `owner` may take over from.

    What stands before the first `/` of an owner's name is its group: coordinators that reach the
    same participants. One takes over from its own group. The group `*` reaches those of any group
    that has a name, and takes over where nobody of it is left.
    """
    group = group_of(owner)
    if group != EVERYWHERE:
        return [other for other in dead if group_of(other) == group]
    served = {group_of(other) for other in alive} - {EVERYWHERE}
    return [other for other in dead if group_of(other) and group_of(other) not in served]


def group_of(owner: str) -> str:
    """An owner's group; empty for one that has none."""
    group, slash, _ = owner.partition("/")
    return group if slash else ""


def amend(
    transaction: Transaction, event: Event, outcomes: Sequence[Outcome], now: float
) -> Change:
    """Write what came from outside: a person's retry or repair, or a signal.

    Raises:
        TransactionDecidedError: the transaction has ended.
    """
    if transaction.state.ended:
        raise _decided(transaction, f"takes no {event.kind}")
    if event.kind in {"retried", "repaired"}:
        freed = tuple(replace(branch, stuck=None) for branch in transaction.branches)
        transaction = replace(transaction, branches=freed)
    change = _outcomes(transaction, outcomes, now, now)
    return replace(change, events=(replace(event, at=now), *change.events))


def due(transaction: Transaction, now: float) -> Due | None:
    """What the owner has to do now; None for nothing before `next_attempt` or the deadline."""
    open_branches = [b for b in transaction.branches if b.state is BranchState.REGISTERED]
    if transaction.state is State.ACTIVE:
        if transaction.deadline <= now:
            return Due(decide=State.ABORTING)
        sagas = _sagas(transaction)
        return Due(Phase.TRY, sagas) if sagas and transaction.next_attempt <= now else None
    if transaction.next_attempt > now:
        return None
    if transaction.state is State.COMMITTING:
        ready = tuple(branch for branch in open_branches if branch.stuck is None)
        return Due(Phase.CONFIRM, ready) if ready else None
    if transaction.state is State.ABORTING:
        backwards = list(reversed(open_branches))
        stuck = next((i for i, b in enumerate(backwards) if b.stuck is not None), len(backwards))
        return Due(Phase.CANCEL, tuple(backwards[:stuck])) if stuck else None
    return None


def delay(attempts: int, jitter: float) -> float:
    """Seconds to wait after the `attempts`-th failure in a row.

    Args:
        attempts: from 1.
        jitter: a random number from 0 to 1, so that what failed together does not return together.
    """
    full = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(attempts - 1, 16))
    return full * (0.5 + jitter / 2)


_ENDS = {
    State.COMMITTING: (State.COMMITTING, State.COMMITTED),
    State.ABORTING: (State.ABORTING, State.ABORTED),
}
_ENDED = {State.COMMITTING: State.COMMITTED, State.ABORTING: State.ABORTED}
_XID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_WORDS = {State.COMMITTING: "committed", State.ABORTING: "aborted"}
_REACHED = {State.COMMITTING: BranchState.CONFIRMED, State.ABORTING: BranchState.CANCELLED}


def _settled(transaction: Transaction) -> Transaction:
    """Set the next attempt to when `due` first has something, if that is another time."""
    at = transaction.next_attempt
    if transaction.state is State.ACTIVE:
        at = min(at, transaction.deadline) if _sagas(transaction) else transaction.deadline
    elif transaction.state.ended or due(transaction, at) is None:
        at = NEVER
    return transaction if at == transaction.next_attempt else replace(transaction, next_attempt=at)


def _sagas(transaction: Transaction) -> tuple[Branch, ...]:
    """Those whose TRY may go on."""
    return tuple(
        branch
        for branch in transaction.branches
        if branch.mode is Mode.SAGA
        and branch.state is BranchState.REGISTERED
        and branch.stuck is None
    )


def _numbered(branches: Sequence[Branch], after: int) -> tuple[Branch, ...]:
    return tuple(
        branch if branch.number == number else replace(branch, number=number)
        for number, branch in enumerate(branches, after + 1)
    )


def _locks(branches: Sequence[Branch]) -> tuple[str, ...]:
    return tuple(sorted({lock for branch in branches for lock in branch.locks}))


def _registered(branches: Sequence[Branch], now: float) -> tuple[Event, ...]:
    return tuple(
        Event(now, "registered", b.number, {"mode": str(b.mode), "resource": b.resource})
        for b in branches
    )


def _fence(transaction: Transaction, owner: str, epoch: int) -> None:
    if (transaction.owner, transaction.epoch) != (owner, epoch):
        raise FencedError(
            f"transaction {transaction.xid} belongs to {transaction.owner} in epoch "
            f"{transaction.epoch}, got a write of {owner} in epoch {epoch}"
        )


def _decided(transaction: Transaction, refused: str) -> TransactionDecidedError:
    return TransactionDecidedError(
        f"transaction {transaction.xid} is {transaction.state} and {refused}"
    )


def _outcomes(
    transaction: Transaction, outcomes: Sequence[Outcome], next_attempt: float, now: float
) -> Change:
    """Take outcomes in; one that is not the decided end leaves its branch where it is."""
    branches = {branch.number: branch for branch in transaction.branches}
    reached = _REACHED.get(transaction.state)
    events: list[Event] = []
    for outcome in outcomes:
        branch = branches.get(outcome.number)
        if branch is None or branch.state is not BranchState.REGISTERED:
            continue
        ends = outcome.state is reached
        branches[branch.number] = replace(
            branch,
            state=outcome.state if ends else branch.state,
            attempts=branch.attempts + 1,
            error=outcome.error,
            stuck=outcome.stuck,
        )
        detail: dict[str, object] = {"state": str(outcome.state)}
        if outcome.error is not None:
            detail["error"] = outcome.error
        events.append(
            Event(now, "stuck" if outcome.stuck is not None else "attempt", branch.number, detail)
        )
    after = replace(transaction, branches=tuple(branches.values()), next_attempt=next_attempt)
    ended = reached is not None and all(b.state is reached for b in after.branches)
    if ended:
        after = replace(after, state=_ENDED[transaction.state])
        events.append(Event(now, "ended", detail={"state": str(after.state)}))
    return Change(_settled(after), tuple(events), releases=ended)
