"""What must hold in a simulated bank, checked at every commit, at every decision, and at the end.

Owns `Oracle`, which sees what no process sees: what is on each disk now. It knows nothing of how
transactions work; it knows what was promised.

Invariants, by name:
- `money`: what is on accounts, reserved, and between a debit and its credit is constant; no balance
  is below zero.
- `once`: each phase of a branch takes effect at most once; not both ways; not without its try.
- `decided`: nothing is confirmed or cancelled before that decision is on disk; what a caller was
  told is what is there; a decision never turns.
- `owner`: the log takes no write of one who does not own the transaction.
- `unknown`: an id that never was is never answered as if it were.
- `end`: in the end every transaction has ended, its branches all the same way.
- `residue`: in the end no lock, no open or prepared local transaction, no barrier row is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from bedstone.testing.simulation.world import World
from bedstone.testing.transaction_log import MemoryLog
from bedstone.transactions import machine
from bedstone.transactions.model import Outcome, Phase, State, Transaction
from bedstone.transactions.sql import Query

_ALLOWED = {
    Phase.CONFIRM: (State.COMMITTING, State.COMMITTED),
    Phase.CANCEL: (State.ABORTING, State.ABORTED),
}


@dataclass(frozen=True, slots=True)
class Effect:
    """What one local transaction did for one branch; `change` is of all accounts together."""

    xid: str
    branch: str
    phase: Phase
    change: int


@dataclass(slots=True)
class Part:
    """What took effect of one branch.

    Args:
        phases: how often each phase did.
        change: of all accounts together.
    """

    phases: Counter[Phase] = field(default_factory=Counter)
    change: int = 0


class Oracle:
    """Checks a world.

    Args:
        world: whose `violate` hears what is wrong.
        total: the money there is.
        effects: what a local transaction did, by its writes and its change of the money there.
        well_ended: whether an ended transaction's parts are as its end says.
        tries: whether there is a try to each confirmation; a message has none.
    """

    def __init__(
        self,
        world: World,
        total: int,
        effects: Callable[[Sequence[Query], int], Iterable[Effect]],
        well_ended: Callable[[State, Sequence[Part]], bool],
        *,
        tries: bool = True,
    ) -> None:
        self.world = world
        self.total = total
        self.effects = effects
        self.well_ended = well_ended
        self.tries = tries
        self.parts: dict[tuple[str, str], Part] = {}
        self.told: dict[str, State] = {}
        self._between = 0
        self._there = total

    def committed(self, writes: Sequence[Query]) -> None:
        """A local transaction of a bank is on disk."""
        before = self._there
        self._count()
        for effect in self.effects(writes, self._there - before):
            self._effect(effect)
        total = self._there + self._between
        self._check(total == self.total, "money", f"{total} is there instead of {self.total}")

    def tell(self, xid: str, state: State) -> None:
        """A caller was told that a transaction is committed, or is aborted."""
        former = self.told.setdefault(xid, state)
        self._check(former is state, "decided", f"{xid} was told {former}, then {state}")
        now = self._state(xid)
        committed = now in _ALLOWED[Phase.CONFIRM]
        self._check(
            committed is (state is State.COMMITTED),
            "decided",
            f"{xid} was told {state} and is {now}",
        )

    def changed(self, before: Transaction | None, after: Transaction) -> None:
        """The log has written a transaction."""
        if before is None:
            return
        turned = before.state is not after.state and (
            before.state.ended
            or (before.state is State.COMMITTING and after.state is not State.COMMITTED)
            or (before.state is State.ABORTING and after.state is not State.ABORTED)
        )
        self._check(
            not turned, "decided", f"{after.xid} turned from {before.state} to {after.state}"
        )
        alive = self.world.log.world.leases.get(before.owner, 0.0) > self.world.loop.time()
        self._check(
            after.owner == before.owner or not alive,
            "owner",
            f"{after.owner} took {after.xid} from {before.owner}, who is alive",
        )
        decided = before.state is not State.ACTIVE
        added = len(after.branches) > len(before.branches)
        self._check(
            not (decided and added), "decided", f"{after.xid} took a branch while {before.state}"
        )

    def recorded(self, before: Transaction | None, owner: str, epoch: int) -> None:
        """The log has taken a write of an owner."""
        if before is not None:
            self._check(
                (before.owner, before.epoch) == (owner, epoch),
                "owner",
                f"{before.xid} of {before.owner} in epoch {before.epoch} took a write of {owner} "
                f"in epoch {epoch}",
            )

    def answered(self, xid: str, state: State) -> None:
        """Somebody asked for an id that never was, and got an answer."""
        self._check(ok=False, invariant="unknown", detail=f"{xid} never was, and is {state}")

    def finish(self) -> None:
        """Nothing goes on any more: check what is left."""
        log = self.world.log.world
        for transaction in log.transactions.values():
            self._check(transaction.state.ended, "end", _stuck(transaction))
            parts = [part for (xid, _), part in self.parts.items() if xid == transaction.xid]
            told = f"{transaction.xid} is {transaction.state}, and its parts are {parts}"
            if transaction.state.ended:
                self._check(self.well_ended(transaction.state, parts), "end", told)
        for xid, branch in self.parts:
            known = log.transactions.get(xid)
            numbers = () if known is None else [str(it.number) for it in known.branches]
            self._check(branch.partition("/")[0] in numbers, "end", f"{xid}/{branch} is in no log")
        for xid, state in self.told.items():
            known = log.transactions.get(xid)
            same = known.state is state if known else state is State.ABORTED
            self._check(same, "decided", f"{xid} was told {state} and is {known}")
        self._check(self._between == 0, "money", f"{self._between} is between two accounts")
        for lock, holder in log.locks.items():
            self._check(ok=False, invariant="residue", detail=f"{holder} left the lock {lock}")
        for server in self.world.servers.values():
            for what in server.residue(but="janitor"):
                self._check(ok=False, invariant="residue", detail=f"{server.name}: {what}")
            reserved = server.read("SELECT sum(reserved) FROM accounts")[0][0]
            self._check(not reserved, "residue", f"{server.name}: {reserved} is reserved still")

    def rows(self, table: str) -> None:
        """The table must be empty by now in every database."""
        for server in self.world.servers.values():
            for row in server.read(f"SELECT * FROM {table} LIMIT 1"):  # noqa: S608 - ours
                self._check(ok=False, invariant="residue", detail=f"{server.name} {table}: {row}")

    def _effect(self, effect: Effect) -> None:
        xid, branch, phase = effect.xid, effect.branch, effect.phase
        part = self.parts.setdefault((xid, branch), Part())
        part.phases[phase] += 1
        part.change += effect.change
        self._between -= effect.change
        where = f"{phase} of {xid}/{branch}"
        self.world.note(f"effect: {where}")
        self._check(part.phases[phase] == 1, "once", f"{where} took effect twice")
        if phase is Phase.TRY:
            late = part.phases[Phase.CANCEL] + part.phases[Phase.CONFIRM]
            self._check(not late, "once", f"{where} after its end")
            return
        other = Phase.CANCEL if phase is Phase.CONFIRM else Phase.CONFIRM
        self._check(not part.phases[other], "once", f"{where} after {other}")
        tried = part.phases[Phase.TRY] == 1 or not self.tries
        self._check(tried, "once", f"{where} without try")
        state = self._state(xid)
        self._check(state in _ALLOWED[phase], "decided", f"{where} while it is {state}")

    def _count(self) -> None:
        there = 0
        for server in self.world.servers.values():
            for balance, reserved, lowest in server.read(
                "SELECT sum(balance), sum(reserved), min(min(balance), min(reserved)) FROM accounts"
            ):
                there += balance + reserved
                self._check(lowest >= 0, "money", f"{server.name} has an amount of {lowest}")
        self._there = there

    def _state(self, xid: str) -> State | None:
        known = self.world.log.world.transactions.get(xid)
        return None if known is None else known.state

    def _check(self, ok: bool, invariant: str, detail: str) -> None:  # noqa: FBT001 - a condition
        if not ok:
            self.world.violate(invariant, detail)


class WatchedLog(MemoryLog):
    """The log, whose every write the oracle sees."""

    oracle: Oracle | None = None

    def _write(self, change: machine.Change) -> Transaction:
        before = self.world.transactions.get(change.after.xid)
        try:
            return super()._write(change)
        finally:
            after = self.world.transactions.get(change.after.xid)
            if self.oracle is not None and after is not None:
                self.oracle.changed(before, after)

    async def record(
        self, xid: str, owner: str, epoch: int, outcomes: Sequence[Outcome], next_attempt: float
    ) -> Transaction:
        """As `Log.record`."""

        def apply() -> Transaction:
            before, now = self._get(xid), self._clock()
            change = machine.record(before, owner, epoch, outcomes, next_attempt, now)
            if self.oracle is not None:
                self.oracle.recorded(before, owner, epoch)
            return self._write(change)

        return await self._do("record", apply)


def _stuck(transaction: Transaction) -> str:
    errors = [branch.error for branch in transaction.branches if branch.error]
    return f"{transaction.xid} of {transaction.owner} is {transaction.state} for ever: {errors}"
