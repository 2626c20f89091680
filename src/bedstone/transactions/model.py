"""What a distributed transaction is: its branches, its states, and the protocols around it.

Every mode has the same two phases. Phase one is `TRY`; phase two is `CONFIRM` or `CANCEL`, as the
one decision says:

| mode | TRY | CONFIRM | CANCEL |
|---|---|---|---|
| TCC | reserve | take | give back |
| saga | all steps | nothing | their compensations |
| AT | local commit with undo record | drop the undo record | apply it |
| XA | prepare | commit prepared | roll back prepared |
| message | nothing | deliver | nothing |

Rules:
- `ACTIVE` → `COMMITTING` → `COMMITTED`, or `ACTIVE` → `ABORTING` → `ABORTED`; nothing else, ever.
- A branch is registered before its TRY runs, and only while the transaction is `ACTIVE`.
- CONFIRM and CANCEL are repeated until they succeed: participants make them idempotent.
- CANCEL runs in the reverse order of registration, one at a time; CONFIRM may run in parallel.
- Only a saga's TRY may be run again, by whoever owns the transaction: it goes on where it was.
- Global locks are held until COMMITTING is decided, or until ABORTED is reached.
- Times are seconds since the epoch by the log's clock, the one clock that all coordinators share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class Mode(StrEnum):
    """How a branch does and undoes its part."""

    TCC = "tcc"
    SAGA = "saga"
    AT = "at"
    XA = "xa"
    MESSAGE = "message"


class State(StrEnum):
    """Where a transaction is."""

    ACTIVE = "active"
    COMMITTING = "committing"
    ABORTING = "aborting"
    COMMITTED = "committed"
    ABORTED = "aborted"

    @property
    def ended(self) -> bool:
        """Whether every branch has reached its end."""
        return self in {State.COMMITTED, State.ABORTED}


class Phase(StrEnum):
    """What a participant is asked to do."""

    TRY = "try"
    CONFIRM = "confirm"
    CANCEL = "cancel"


class BranchState(StrEnum):
    """Where a branch is. What REGISTERED has done is unknown: TRY may have run or not."""

    REGISTERED = "registered"
    CONFIRMED = "confirmed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Branch:
    """One participant's part.

    Args:
        number: its place in the order of registration, from 1.
        mode: how it is done and undone.
        resource: who does phase two: `local:NAME` for a participant that every process with the
            application's code registers by that name, or an `http://` URL to post to.
        payload: what phase two needs, as UTF-8 JSON.
        locks: global locks it takes, each `resource/table/primary key`.
        state: where it is.
        attempts: phase two attempts so far.
        error: what the last failed attempt said.
        stuck: a `StuckError`'s report, while a person is needed.
    """

    number: int
    mode: Mode
    resource: str
    payload: bytes = b"{}"
    locks: tuple[str, ...] = ()
    state: BranchState = BranchState.REGISTERED
    attempts: int = 0
    error: str | None = None
    stuck: dict[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Transaction:
    """One distributed transaction as the log holds it.

    Args:
        xid: its id: 1 to 64 characters of `[A-Za-z0-9._-]`, unique for ever.
        name: what it is for, for people.
        deadline: when an undecided one is aborted.
        created: when it began.
        owner: the coordinator that drives it.
        epoch: grows with every change of owner; a write under an older one is refused.
        next_attempt: when its owner goes on: with phase two, with a saga's TRY, or with the abort
            at the deadline. The state machine keeps it: what is due is what has it in the past.
    """

    xid: str
    name: str
    deadline: float
    created: float
    owner: str
    epoch: int = 1
    state: State = State.ACTIVE
    branches: tuple[Branch, ...] = ()
    next_attempt: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one phase two attempt of one branch came to.

    Args:
        number: the branch.
        state: CONFIRMED or CANCELLED when it succeeded; REGISTERED when it did not.
        error: why not.
        stuck: the report, when only a person can go on.
    """

    number: int
    state: BranchState
    error: str | None = None
    stuck: dict[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a transaction's history; appended with the change it tells, never altered.

    `kind`: begun, registered, decided, attempt, ended, claimed, stuck, proposed, repaired, retried;
    of a saga also step, timer (`Log.journal`) and signal (`Log.amend`).
    """

    at: float
    kind: str
    branch: int | None = None
    detail: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Counts:
    """What a log has done, and what it holds open, all as of one moment.

    What has begun is ended or open: `begun` = `committed` + `cancelled` + the sum of `open`.

    Args:
        log: the log's identity; another one has counted from zero.
        events: how many have `begun`, are `committed` and are `cancelled`, ever; never less.
        open: how many are in each state that is no end.
        stuck: how many of these wait for a person.
    """

    log: str
    events: Mapping[str, int]
    open: Mapping[State, int]
    stuck: int


class Log(Protocol):
    """The coordinators' durable log: one for all coordinators of a domain.

    Durability: a method returns after the change is on disk. Concurrency: each method is atomic and
    linearizable; any number of coordinators may use one log. Errors, beside those named:
    `UnavailableError` when nothing was written, `UnknownOutcomeError` when that is not known.
    """

    async def now(self) -> float:
        """The log's clock."""

    async def begin(self, transaction: Transaction) -> None:
        """Write a new ACTIVE transaction with its first branches and their locks.

        Idempotent for the same content.

        Raises:
            ConflictError: the id exists with other content.
            LockConflictError: another transaction holds one of the locks.
        """

    async def register(self, xid: str, branches: Sequence[Branch]) -> Transaction:
        """Append branches, numbered on from the last, with their locks: all or nothing.

        Raises:
            UnknownTransactionError: there is none of that id.
            TransactionDecidedError: it is not ACTIVE, or its deadline has passed.
            LockConflictError: another transaction holds one of the locks.
        """

    async def decide(self, xid: str, state: State, reason: str = "") -> Transaction:
        """Decide COMMITTING or ABORTING, once. Idempotent for the same decision.

        COMMITTING after the deadline is refused, and decides ABORTING. The reason is for people,
        and stands in the history.

        Raises:
            UnknownTransactionError: there is none of that id.
            TransactionDecidedError: the other decision stands.
            TransactionTimeoutError: the deadline has passed; ABORTING is decided now.
        """

    async def record(
        self, xid: str, owner: str, epoch: int, outcomes: Sequence[Outcome], next_attempt: float
    ) -> Transaction:
        """Write phase two outcomes; the transaction ends with its last branch, and its locks go.

        Raises:
            UnknownTransactionError: there is none of that id.
            FencedError: another owner or epoch holds it.
        """

    async def journal(
        self,
        xid: str,
        owner: str,
        epoch: int,
        events: Sequence[Event],
        next_attempt: float | None = None,
    ) -> Transaction:
        """Append what the owner did in a saga's TRY or CANCEL; perhaps say when it goes on.

        Raises:
            UnknownTransactionError: there is none of that id.
            FencedError: another owner or epoch holds it.
        """

    async def claim(self, owner: str, lease: float, limit: int) -> Sequence[Transaction]:
        """Renew the owner's lease of `lease` seconds, and take over from owners whose lease ended.

        Only from those of which it is an heir (`machine.heirs`).
        Returns at most `limit` transactions taken over now, epoch raised, oldest first. An owner
        that has no lease counts as one whose lease has ended.
        """

    async def release(self, owner: str) -> None:
        """End an owner's lease now, so that others take over at once. Idempotent."""

    async def leases(self) -> dict[str, float]:
        """When each owner's lease ends or ended."""

    async def owned(self, owner: str, limit: int) -> Sequence[Transaction]:
        """What `owner` holds, has not ended, and has its next attempt due; longest due first."""

    async def get(self, xid: str) -> Transaction:
        """The transaction.

        Raises:
            UnknownTransactionError: there is none of that id.
        """

    async def list(
        self,
        states: Sequence[State] = (),
        *,
        stuck: bool = False,
        after: str = "",
        limit: int = 100,
    ) -> Sequence[Transaction]:
        """By id, from the one after `after`; of any state where none is given."""

    async def events(self, xid: str) -> Sequence[Event]:
        """The transaction's history, oldest first.

        Raises:
            UnknownTransactionError: there is none of that id.
        """

    async def amend(self, xid: str, event: Event, outcomes: Sequence[Outcome] = ()) -> Transaction:
        """Append what came from outside, with its outcomes; the next attempt is now.

        `retried` and `repaired` are a person's: they make stuck branches due again. `proposed` is a
        repair that waits for a second person. `signal` is an external event that a saga waits for.

        Raises:
            UnknownTransactionError: there is none of that id.
            TransactionDecidedError: it has ended.
        """

    async def ends(self, xids: Sequence[str]) -> dict[str, float | None]:
        """When each of these ended, or None while it goes on; without those that it does not know.

        What is missing is unknown: never to be read as ended.
        """

    async def locked(self, locks: Sequence[str]) -> dict[str, str]:
        """Which of these locks are held, by which transaction."""

    async def counts(self) -> Counts:
        """How many transactions have begun and ended since the log was made, and are open.

        They equal what the log did exactly: a change is counted in the write that makes it. What
        `purge` forgets stays counted. The cost does not grow with the transactions.
        """

    async def purge(self, older_than: float, limit: int) -> int:
        """Forget at most `limit` transactions that ended before a time, and how many it were.

        What has not ended is never forgotten. Leases that ended before that time go too, where
        their owners hold nothing.
        """


class Participant(Protocol):
    """Does phase two of a branch. Called again until it returns; so it must be idempotent."""

    async def __call__(self, transaction: Transaction, branch: Branch, phase: Phase) -> None:
        """Confirm or cancel; TRY only for a saga that goes on under a new owner.

        Raises:
            StuckError: only a person can go on.
            WaitingError: TRY only: nothing to do before a time, or before a signal.
            TransactionAbortedError: TRY only: it can't succeed; the transaction aborts.
            Exception: anything else is tried again later.
        """
