"""A transaction log in memory, whose writes fail by plan, under a clock that its maker owns.

It is what the logs on disk are, without the disk: the same pure functions decide, the same errors
are raised, and several coordinators may share one world. It is for tests and for simulation: what
it holds goes with the process.

Rules:
- An operation is applied between two pauses, in one step, so that tasks really interleave around
  it: one that is cancelled at the first pause was not applied, one at the second was.
- A fault happens to one operation: nothing was applied (`UnavailableError`), or it was and the
  answer is lost (`UnknownOutcomeError`). A reading that fails is just unavailable.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self, TypeVar

from bedstone.errors import Error, UnavailableError, UnknownOutcomeError
from bedstone.testing.faults import Fault
from bedstone.transactions import log_counts, machine
from bedstone.transactions.errors import LockConflictError, UnknownTransactionError
from bedstone.transactions.model import Branch, Counts, Event, Outcome, State, Transaction

T = TypeVar("T")
Plan = Callable[[str], Fault]
"""What happens to an operation of that name."""

READS: Final = frozenset(
    {"now", "owned", "get", "list", "events", "ends", "locked", "leases", "counts"}
)


def no_faults(_operation: str) -> Fault:
    """The plan of a log that never fails."""
    return Fault.NONE


def in_turn(faults: Iterable[Fault], *, reads: bool = False) -> Plan:
    """A plan: these faults one after the other, by default for writes alone; then none."""
    rest = iter(faults)

    def plan(operation: str) -> Fault:
        return Fault.NONE if operation in READS and not reads else next(rest, Fault.NONE)

    return plan


@dataclass(slots=True)
class World:
    """What logs in memory hold, and may share."""

    transactions: dict[str, Transaction] = field(default_factory=dict)
    events: dict[str, list[Event]] = field(default_factory=dict)
    locks: dict[str, str] = field(default_factory=dict)
    leases: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    open: dict[str, dict[str, None]] = field(default_factory=dict)
    """By owner, the ids of what has not ended."""
    held: dict[str, list[str]] = field(default_factory=dict)
    """By transaction, its locks."""
    steps: Counter[str] = field(default_factory=Counter)
    """How often each of `log_counts.STEPS` was taken."""
    identity: str = field(default_factory=lambda: secrets.token_hex(8))


class MemoryLog:
    """A `Log` in memory.

    Args:
        clock: the log's clock, in seconds since the epoch.
        world: what it holds; given to several logs, they are one log reached in several ways.
        plan: what happens to each operation. The attribute may be set at any time.
        pause: awaited before and after each operation, where a network would be.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        *,
        world: World | None = None,
        plan: Plan = no_faults,
        pause: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.world = World() if world is None else world
        self.plan = plan
        self._clock = clock
        self._pause = pause

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    async def now(self) -> float:
        """The log's clock."""
        return await self._do("now", self._clock)

    async def begin(self, transaction: Transaction) -> None:
        """As `Log.begin`."""

        def apply() -> None:
            existing = self.world.transactions.get(transaction.xid)
            change = machine.begin(existing, transaction, self._clock())
            if change is not None:
                self._write(change)

        await self._do("begin", apply)

    async def register(self, xid: str, branches: Sequence[Branch]) -> Transaction:
        """As `Log.register`."""
        return await self._do(
            "register",
            lambda: self._write(machine.register(self._get(xid), branches, self._clock())),
        )

    async def decide(self, xid: str, state: State, reason: str = "") -> Transaction:
        """As `Log.decide`."""

        def apply() -> Transaction:
            transaction = self._get(xid)
            change = machine.decide(transaction, state, self._clock(), reason)
            return transaction if change is None else self._write(change)

        return await self._do("decide", apply)

    async def record(
        self, xid: str, owner: str, epoch: int, outcomes: Sequence[Outcome], next_attempt: float
    ) -> Transaction:
        """As `Log.record`."""

        def apply() -> Transaction:
            now = self._clock()
            transaction = self._get(xid)
            return self._write(
                machine.record(transaction, owner, epoch, outcomes, next_attempt, now)
            )

        return await self._do("record", apply)

    async def journal(
        self,
        xid: str,
        owner: str,
        epoch: int,
        events: Sequence[Event],
        next_attempt: float | None = None,
    ) -> Transaction:
        """As `Log.journal`."""

        def apply() -> Transaction:
            now = self._clock()
            transaction = self._get(xid)
            return self._write(
                machine.journal(transaction, owner, epoch, events, next_attempt, now)
            )

        return await self._do("journal", apply)

    async def amend(self, xid: str, event: Event, outcomes: Sequence[Outcome] = ()) -> Transaction:
        """As `Log.amend`."""
        return await self._do(
            "amend",
            lambda: self._write(machine.amend(self._get(xid), event, outcomes, self._clock())),
        )

    async def claim(self, owner: str, lease: float, limit: int) -> Sequence[Transaction]:
        """As `Log.claim`."""

        def apply() -> Sequence[Transaction]:
            world, now = self.world, self._clock()
            world.leases[owner] = now + lease
            dead = [it for it in world.open if it != owner and world.leases.get(it, 0.0) <= now]
            alive = [it for it, until in world.leases.items() if until > now]
            orphans = sorted(
                (
                    world.transactions[xid]
                    for other in machine.heirs(owner, dead, alive)
                    for xid in world.open[other]
                ),
                key=lambda transaction: (transaction.created, transaction.xid),
            )
            return tuple(
                self._write(machine.claim(orphan, owner, now)) for orphan in orphans[:limit]
            )

        return await self._do("claim", apply)

    async def release(self, owner: str) -> None:
        """As `Log.release`."""

        def apply() -> None:
            self.world.leases.pop(owner, None)

        await self._do("release", apply)

    async def leases(self) -> dict[str, float]:
        """As `Log.leases`."""
        return await self._do("leases", lambda: dict(self.world.leases))

    async def owned(self, owner: str, limit: int) -> Sequence[Transaction]:
        """As `Log.owned`."""

        def apply() -> Sequence[Transaction]:
            now = self._clock()
            held = (self.world.transactions[xid] for xid in self.world.open.get(owner, ()))
            ready = (transaction for transaction in held if transaction.next_attempt <= now)
            return tuple(sorted(ready, key=lambda it: (it.next_attempt, it.xid))[:limit])

        return await self._do("owned", apply)

    async def get(self, xid: str) -> Transaction:
        """As `Log.get`."""
        return await self._do("get", lambda: self._get(xid))

    async def list(
        self,
        states: Sequence[State] = (),
        *,
        stuck: bool = False,
        after: str = "",
        limit: int = 100,
    ) -> Sequence[Transaction]:
        """As `Log.list`."""

        def apply() -> Sequence[Transaction]:
            found = (
                transaction
                for xid, transaction in sorted(self.world.transactions.items())
                if xid > after
                and (not states or transaction.state in states)
                and (not stuck or any(it.stuck is not None for it in transaction.branches))
            )
            return tuple(found)[:limit]

        return await self._do("list", apply)

    async def events(self, xid: str) -> Sequence[Event]:
        """As `Log.events`."""

        def apply() -> Sequence[Event]:
            self._get(xid)
            return tuple(self.world.events[xid])

        return await self._do("events", apply)

    async def ends(self, xids: Sequence[str]) -> dict[str, float | None]:
        """As `Log.ends`."""
        world = self.world
        return await self._do(
            "ends", lambda: {it: world.ended.get(it) for it in xids if it in world.transactions}
        )

    async def locked(self, locks: Sequence[str]) -> dict[str, str]:
        """As `Log.locked`."""
        held = self.world.locks
        return await self._do("locked", lambda: {it: held[it] for it in locks if it in held})

    async def counts(self) -> Counts:
        """As `Log.counts`."""

        def apply() -> Counts:
            world = self.world
            stuck = sum(
                any(branch.stuck is not None for branch in transaction.branches)
                for transaction in world.transactions.values()
            )
            numbers = (world.steps[step] for step in log_counts.STEPS)
            return log_counts.counts(world.identity, numbers, stuck)

        return await self._do("counts", apply)

    async def purge(self, older_than: float, limit: int) -> int:
        """As `Log.purge`."""

        def apply() -> int:
            world = self.world
            old = sorted((at, xid) for xid, at in world.ended.items() if at < older_than)[:limit]
            for _, xid in old:
                del world.transactions[xid], world.events[xid], world.ended[xid]
            for owner in [it for it, until in world.leases.items() if until < older_than]:
                if not world.open.get(owner):
                    del world.leases[owner]
            return len(old)

        return await self._do("purge", apply)

    def _get(self, xid: str) -> Transaction:
        found = self.world.transactions.get(xid)
        if found is None:
            raise UnknownTransactionError(
                f"no transaction {xid!r}", hint="`bedstone tx ls` shows those that are known"
            )
        return found

    def _write(self, change: machine.Change) -> Transaction:
        """Apply a change, whole or not at all."""
        world, after = self.world, change.after
        for lock in change.acquires:
            holder = world.locks.get(lock, after.xid)
            if holder != after.xid:
                raise LockConflictError(f"transaction {holder} holds the lock {lock}")
        before = world.transactions.get(after.xid)
        if before is not None:
            world.open[before.owner].pop(after.xid, None)
        if not after.state.ended:
            world.open.setdefault(after.owner, {})[after.xid] = None
        elif before is None or not before.state.ended:
            world.ended[after.xid] = change.events[-1].at
        for lock in change.acquires:
            world.locks[lock] = after.xid
            world.held.setdefault(after.xid, []).append(lock)
        if change.releases:
            for lock in world.held.pop(after.xid, ()):
                world.locks.pop(lock, None)
        world.steps.update(log_counts.steps(before.state if before else None, after.state))
        world.transactions[after.xid] = after
        world.events.setdefault(after.xid, []).extend(change.events)
        if change.refusal is not None:
            raise change.refusal
        return after

    async def _do(self, operation: str, apply: Callable[[], T]) -> T:
        await self._wait()
        fault = self.plan(operation)
        if fault is Fault.UNAPPLIED or (fault is Fault.APPLIED and operation in READS):
            raise UnavailableError(f"injected: {operation} not applied")
        lost = fault is Fault.APPLIED
        try:
            result = apply()
        except Error:
            await self._wait()
            if not lost:
                raise
        else:
            await self._wait()
            if not lost:
                return result
        raise UnknownOutcomeError(f"injected: {operation} applied, and its answer was lost")

    async def _wait(self) -> None:
        await (asyncio.sleep(0) if self._pause is None else self._pause())
