"""Known mistakes, planted into the real code while a simulation runs, to prove that it finds them.

Owns `BUGS`: each is a small replacement of one real function, named for what happened elsewhere.

Rules:
- A bug is planted for the length of one run and taken out again; nothing else ever sees it.
- The same seeds without the bug must pass: else finding it would prove nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from bedstone.errors import ConflictError, Error, InvalidError
from bedstone.testing.simulation.edges import Patch, patches
from bedstone.testing.transaction_log import MemoryLog
from bedstone.transactions import automatic_sessions, barrier, machine, undo, xa_statements
from bedstone.transactions.automatic_sessions import AsyncSession, Policy
from bedstone.transactions.barrier import Entered
from bedstone.transactions.coordinator import Coordinator
from bedstone.transactions.errors import LockConflictError, UnknownTransactionError
from bedstone.transactions.keeping import Keeper
from bedstone.transactions.model import Branch, Log, Outcome, Participant, Phase, State, Transaction
from bedstone.transactions.scope import Scope
from bedstone.transactions.sql import Dialect, Query, Steps
from bedstone.transactions.sweeper import Sweeper, Swept


@dataclass(frozen=True, slots=True)
class Bug:
    """A mistake.

    Args:
        says: what goes wrong, in one line.
        plant: replaces what it must, by the function given.
        mode: in which mode it shows.
    """

    says: str
    plant: Callable[[Patch], None]
    mode: str = "tcc"


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Plant a bug; take it out in the end.

    Raises:
        InvalidError: there is none of that name.
    """
    if name is None:
        yield
        return
    if name not in BUGS:
        raise InvalidError(f"got bug {name!r}, expected one of {', '.join(sorted(BUGS))}")
    with patches() as patch:
        BUGS[name].plant(patch)
        yield


def _answers(phase: Phase, wrong: dict[Entered, Entered]) -> Callable[[Patch], None]:
    """The barrier says one thing for another in a phase."""

    def plant(patch: Patch) -> None:
        real = barrier.enter

        def enter(dialect: Dialect, xid: str, branch: str, asked: Phase) -> Steps[Entered]:
            entered = yield from real(dialect, xid, branch, asked)
            return wrong.get(entered, entered) if asked is phase else entered

        patch(barrier, "enter", enter)

    return plant


def _select_then_insert(patch: Patch) -> None:
    real = barrier.enter

    def enter(dialect: Dialect, xid: str, branch: str, phase: Phase) -> Steps[Entered]:
        if phase is Phase.CONFIRM:
            return (yield from real(dialect, xid, branch, phase))
        other = Phase.CANCEL if phase is Phase.TRY else Phase.TRY
        select = "SELECT phase FROM bedstone_barrier WHERE xid = ? AND branch = ? AND phase = ?"
        insert = "INSERT INTO bedstone_barrier VALUES (?, ?, ?, ?, NULL, julianday('now'))"
        seen = (yield Query(select, (xid, branch, str(other)))).rows
        own = (yield Query(select, (xid, branch, str(phase)))).rows
        if own:
            return Entered.REPEATED
        yield Query(insert, (xid, branch, str(phase), str(phase)))
        if phase is Phase.TRY:
            return Entered.SUSPENDED if seen else Entered.PROCEED
        return Entered.PROCEED if seen else Entered.EMPTY

    patch(barrier, "enter", enter)


def _empty_rollback_for_ever(patch: Patch) -> None:
    real = barrier.enter

    def enter(dialect: Dialect, xid: str, branch: str, phase: Phase) -> Steps[Entered]:
        if phase is Phase.CANCEL and (yield from barrier.tried(dialect, xid, branch)) is None:
            raise ConflictError("there is nothing to cancel")
        return (yield from real(dialect, xid, branch, phase))

    patch(barrier, "enter", enter)


def _branch_after_decision(patch: Patch) -> None:
    real = machine.register

    def register(
        transaction: Transaction, branches: Sequence[Branch], now: float
    ) -> machine.Change:
        active = replace(transaction, state=State.ACTIVE, deadline=now + 1)
        change = real(active, branches, now)
        after = replace(change.after, state=transaction.state, deadline=transaction.deadline)
        return replace(change, after=after)

    patch(machine, "register", register)


def _no_fence(patch: Patch) -> None:
    patch(machine, "_fence", lambda _transaction, _owner, _epoch: None)


def _deadline_turns_decision(patch: Patch) -> None:
    real = machine.due

    def due(transaction: Transaction, now: float) -> machine.Due | None:
        late = transaction.state is State.COMMITTING and transaction.deadline <= now
        return machine.Due(decide=State.ABORTING) if late else real(transaction, now)

    def decide(
        transaction: Transaction, state: State, now: float, reason: str = ""
    ) -> machine.Change | None:
        if transaction.state is State.COMMITTING and state is State.ABORTING:
            transaction = replace(transaction, state=State.ACTIVE)
        return real_decide(transaction, state, now, reason)

    real_decide = machine.decide
    patch(machine, "due", due)
    patch(machine, "decide", decide)


def _reload_drops_failed(patch: Patch) -> None:
    real = machine.claim

    def claim(transaction: Transaction, owner: str, now: float) -> machine.Change:
        change = real(transaction, owner, now)
        if transaction.state is not State.ABORTING:
            return change
        after = replace(change.after, state=State.ABORTED, next_attempt=machine.NEVER)
        return replace(change, after=after, releases=True)

    patch(machine, "claim", claim)


def _decided_before_disk(patch: Patch) -> None:
    real, initialise = Coordinator.commit, Coordinator.__init__
    parts: dict[Coordinator, tuple[Log, Participant]] = {}

    def remember(self: Coordinator, log: Log, call: Participant, **more: Any) -> None:
        parts[self] = log, call
        initialise(self, log, call, **more)

    async def commit(self: Coordinator, xid: str) -> Transaction:
        log, call = parts[self]
        known = await log.get(xid)
        async with asyncio.TaskGroup() as group:
            for branch in known.branches:
                group.create_task(_quietly(call(known, branch, Phase.CONFIRM)))
            group.create_task(_quietly(log.decide(xid, State.COMMITTING)))
        return await real(self, xid)

    patch(Coordinator, "__init__", remember)
    patch(Coordinator, "commit", commit)


async def _quietly(work: Coroutine[Any, Any, object]) -> None:
    with suppress(Error):
        await work


def _unknown_is_finished(patch: Patch) -> None:
    real = MemoryLog._get  # noqa: SLF001 - replaced on purpose

    def get(self: MemoryLog, xid: str) -> Transaction:
        try:
            return real(self, xid)
        except UnknownTransactionError:
            return Transaction(xid, "", 0, 0, "", state=State.COMMITTED)

    patch(MemoryLog, "_get", get)


def _stale_recovery(patch: Patch) -> None:
    async def claim(self: MemoryLog, owner: str, lease: float, limit: int) -> Sequence[Transaction]:
        def apply() -> Sequence[Transaction]:
            world, now = self.world, self._clock()
            world.leases[owner] = now + lease
            others = [xid for other, held in world.open.items() if other != owner for xid in held]
            return tuple(
                self._write(machine.claim(world.transactions[xid], owner, now))
                for xid in others[:limit]
            )

        return await self._do("claim", apply)

    patch(MemoryLog, "claim", claim)


def _restart_strands(patch: Patch) -> None:
    real = Keeper.look

    async def look(self: Keeper, *rest: Any, **more: Any) -> float:
        try:
            return await real(self, *rest, **more)
        except Error:
            await asyncio.Event().wait()  # recovery has died; the lease lives on
            raise

    patch(Keeper, "look", look)


def _rolling_restart_strands(patch: Patch) -> None:
    async def release(self: MemoryLog, owner: str) -> None:
        self.world.leases[owner] = machine.NEVER  # it shut down in order, so nothing is left of it

    patch(MemoryLog, "release", release)


def _only_own_version(patch: Patch) -> None:
    real = machine.claim

    def claim(transaction: Transaction, owner: str, now: float) -> machine.Change:
        older = int(transaction.owner.rpartition(".")[2]) < int(owner.rpartition(".")[2])
        return machine.Change(transaction) if older else real(transaction, owner, now)

    patch(machine, "claim", claim)


def _unlock_swallowed(patch: Patch) -> None:
    real = machine.record

    def record(
        transaction: Transaction,
        owner: str,
        epoch: int,
        outcomes: Sequence[Outcome],
        next_attempt: float,
        now: float,
    ) -> machine.Change:
        change = real(transaction, owner, epoch, outcomes, next_attempt, now)
        again = any(branch.attempts for branch in transaction.branches)
        return replace(change, releases=change.releases and not again)

    patch(machine, "record", record)


def _purged_too_early(patch: Patch) -> None:
    real = Sweeper.__init__

    def initialise(self: Sweeper, source: object, log: Log, grace: float = 0.0) -> None:
        real(self, source, log, min(grace, 0.0))

    async def swept(
        self: Sweeper, db: Any, page: Iterable[str], _before: float, known: Swept
    ) -> Swept:
        await self._forget(db, list(page))
        return known

    patch(Sweeper, "__init__", initialise)
    patch(Sweeper, "_swept", swept)


def _never_purged(patch: Patch) -> None:
    async def forget(_self: Sweeper, _db: object, _xids: list[str]) -> int:
        return 0

    patch(Sweeper, "_forget", forget)


def _lock_conflict_commits(patch: Patch) -> None:
    real = automatic_sessions.registered

    async def registered(policy: Policy, scope: Scope, branch: Branch) -> Branch:
        try:
            return await real(policy, scope, branch)
        except LockConflictError:
            return branch

    async def enlist(self: AsyncSession) -> None:
        recorder, scope = self.ending()
        branch = await registered(self.owner.policy, scope, self.branch(recorder))
        if branch.number:
            record = recorder.record()
            await self.db.run(undo.save(self.dialect, scope.xid, str(branch.number), record))
        await self.db.commit()

    patch(AsyncSession, "enlist", enlist)


def _no_global_locks(patch: Patch) -> None:
    patch(machine, "_locks", lambda _branches: ())


def _unlocked_at_abort(patch: Patch) -> None:
    real = machine.decide

    def decide(
        transaction: Transaction, state: State, now: float, reason: str = ""
    ) -> machine.Change | None:
        change = real(transaction, state, now, reason)
        return None if change is None else replace(change, releases=True)

    patch(machine, "decide", decide)


def _undo_forwards(patch: Patch) -> None:
    real = undo.apply

    def apply(dialect: Dialect, resource: str, record: undo.Record) -> Steps[None]:
        seconds = tuple(replace(change, sequence=0) for change in record.changes)
        return (yield from real(dialect, resource, replace(record, changes=seconds)))

    patch(undo, "apply", apply)


def _prepared_too_late(patch: Patch) -> None:
    def marked(_dialect: Dialect, _xid: str, _number: int) -> Steps[None]:
        yield from ()

    patch(xa_statements, "_marked", marked)


def _prepared_is_committed(patch: Patch) -> None:
    real = xa_statements.finish

    def finish(dialect: Dialect, xid: str, number: int, phase: Phase) -> Steps[None]:
        if phase is Phase.CONFIRM:
            return
        yield from real(dialect, xid, number, phase)

    patch(xa_statements, "finish", finish)


def _outcome_before_attempt(patch: Patch) -> None:
    """A failed branch is written down as done."""
    real = machine.record

    def record(
        transaction: Transaction,
        owner: str,
        epoch: int,
        outcomes: Sequence[Outcome],
        next_attempt: float,
        now: float,
    ) -> machine.Change:
        end = machine._REACHED.get(transaction.state)  # noqa: SLF001
        done = [replace(it, state=end) if end else it for it in outcomes]
        return real(transaction, owner, epoch, done, next_attempt, now)

    patch(machine, "record", record)


BUGS: Final[dict[str, Bug]] = {
    "barrier-select-then-insert": Bug(
        "a barrier looks before it inserts: a late try reserves for ever", _select_then_insert
    ),
    "confirm-without-try": Bug(
        "a confirmation of what was never tried is accepted",
        _answers(Phase.CONFIRM, {Entered.NOT_TRIED: Entered.PROCEED}),
    ),
    "cancel-not-idempotent": Bug(
        "a cancellation that comes twice gives back twice",
        _answers(Phase.CANCEL, {Entered.REPEATED: Entered.PROCEED}),
    ),
    "confirm-not-idempotent": Bug(
        "a confirmation that comes twice takes twice",
        _answers(Phase.CONFIRM, {Entered.REPEATED: Entered.PROCEED}),
    ),
    "late-try": Bug(
        "a try that comes after its cancellation reserves for ever",
        _answers(Phase.TRY, {Entered.SUSPENDED: Entered.PROCEED}),
    ),
    "empty-rollback-undone": Bug(
        "a cancellation of what was never tried gives back what nobody took",
        _answers(Phase.CANCEL, {Entered.EMPTY: Entered.PROCEED}),
    ),
    "empty-rollback-for-ever": Bug(
        "a cancellation of what was never tried fails, and is tried for ever",
        _empty_rollback_for_ever,
    ),
    "branch-after-decision": Bug(
        "a branch is registered after the decision", _branch_after_decision
    ),
    "decided-before-disk": Bug(
        "phase two starts before the decision is on disk", _decided_before_disk
    ),
    "deadline-turns-decision": Bug(
        "a deadline aborts what was committed already", _deadline_turns_decision
    ),
    "unknown-is-finished": Bug("an unknown id is answered as finished", _unknown_is_finished),
    "no-epoch-check": Bug("a former owner's writes are taken", _no_fence),
    "stale-recovery": Bug("recovery runs work of an owner who is alive", _stale_recovery),
    "reload-drops-failed": Bug(
        "a reload ends what had failed, with its locks", _reload_drops_failed
    ),
    "failure-recorded-as-done": Bug(
        "a branch that failed is recorded as done", _outcome_before_attempt
    ),
    "log-restart-strands": Bug(
        "recovery ends with the first error of its database, and its lease goes on",
        _restart_strands,
    ),
    "rolling-restart-strands": Bug(
        "who leaves in order keeps its work for ever", _rolling_restart_strands
    ),
    "barrier-purged-too-early": Bug(
        "barrier rows go by their age, before their transaction has ended", _purged_too_early
    ),
    "barrier-never-purged": Bug("barrier rows stay for ever", _never_purged),
    "lock-conflict-commits": Bug(
        "a lock conflict clears the id, and the work is committed without it",
        _lock_conflict_commits,
        mode="at",
    ),
    "no-global-locks": Bug("rows are written without their locks", _no_global_locks, mode="at"),
    "unlocked-at-abort": Bug("locks go before the rows are undone", _unlocked_at_abort, mode="at"),
    "unlock-swallowed": Bug(
        "an unlock fails, and nobody does it again", _unlock_swallowed, mode="at"
    ),
    "undo-order": Bug(
        "changes of the same second are undone in the wrong order", _undo_forwards, mode="at"
    ),
    "prepared-too-late": Bug(
        "what is prepared after its roll-back stays prepared for ever",
        _prepared_too_late,
        mode="xa",
    ),
    "prepared-is-committed": Bug(
        "what is prepared is taken as committed", _prepared_is_committed, mode="xa"
    ),
    "only-own-version": Bug("nobody recovers the work of another version", _only_own_version),
}
