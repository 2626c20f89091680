"""Does what is due of one transaction, and records what came of it.

Owns the attempts: which participant is called when, and how its answer becomes an outcome.

Rules:
- CONFIRM calls are made side by side; CANCEL calls one by one, in the order that the state machine
  gives, up to the first that fails. What came of them is one write.
- A write whose answer is lost, or that could not be made, is made again until the log answers: what
  a participant has done is never forgotten while this process lives.
- No attempt starts without a lease that has lasted since the work began; a `FencedError` stops the
  work at once. Both only save work: what keeps two owners apart is the log, which refuses the
  writes of the former one.
- A saga's TRY that returns is the whole transaction's TRY only if all branches are sagas; with
  others, its initiator alone knows what belongs to it, so the deadline decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from bedstone.errors import Error
from bedstone.transactions import machine
from bedstone.transactions.asking import Asker
from bedstone.transactions.errors import (
    FencedError,
    StuckError,
    TransactionAbortedError,
    TransactionDecidedError,
    WaitingError,
)
from bedstone.transactions.model import (
    Branch,
    BranchState,
    Log,
    Mode,
    Outcome,
    Participant,
    Phase,
    State,
    Transaction,
)

_log = logging.getLogger(__name__)

PARALLEL: Final = 16
"""Branches of one transaction that are confirmed side by side."""

LONGEST_ERROR: Final = 1000
"""Characters of a participant's error that are kept."""


@dataclass(eq=False, slots=True)
class Run:
    """One transaction at work in this process.

    Args:
        attempted: set once callers need not wait any longer.
        ended: set once nothing is at work any longer.
        trying: a saga's TRY is at work, which may itself ask for the end.
        again: the loop's time to look again, if that is known.
        term: the time under a lease in which it began.
    """

    attempted: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    trying: bool = False
    again: float | None = None
    term: int | None = None


class Driver:
    """Drives one transaction after the other, any number side by side.

    Args:
        log: where outcomes go.
        call: who does phase two.
        owner: the coordinator's name.
        asker: asks it again where it does not answer, and knows its clock.
        term: which unbroken time under a lease this is; None without a lease.
        jitter: a random number from 0 to 1.
        immediate: modes whose first CONFIRM a caller waits for.
        patience: seconds that one call of a participant may take.
    """

    def __init__(
        self,
        log: Log,
        call: Participant,
        owner: str,
        asker: Asker,
        *,
        term: Callable[[], int | None],
        jitter: Callable[[], float],
        immediate: frozenset[Mode],
        patience: float,
    ) -> None:
        self._log = log
        self._call = call
        self._owner = owner
        self._asker = asker
        self._term = term
        self._jitter = jitter
        self._immediate = immediate
        self._patience = patience

    async def drive(self, transaction: Transaction, run: Run) -> None:
        """Do what is due now.

        Raises:
            FencedError: another coordinator owns it.
            UnknownTransactionError: there is none of that id any more.
        """
        run.term = self._term()
        following: Transaction | None = transaction
        while following is not None and following.owner == self._owner and self._may_go_on(run):
            if following.next_attempt >= machine.NEVER:
                return
            now = max(self._asker.estimate(), following.next_attempt)
            due = machine.due(following, now)
            if due is None:
                return
            following = await self._do(following, due, run)

    def _may_go_on(self, run: Run) -> bool:
        return run.term is not None and self._term() == run.term

    async def _do(self, transaction: Transaction, due: machine.Due, run: Run) -> Transaction | None:
        """Do it; returns the transaction if there is more to do now."""
        if due.decide is not None:
            return await self._decide(transaction.xid, due.decide, "its deadline passed")
        if due.phase is Phase.TRY:
            run.trying = True
            try:
                return await self._try(transaction, due.branches, run)
            except TransactionDecidedError:
                return await self._changed(transaction)
            except TransactionAbortedError as error:
                reason = error.message[:LONGEST_ERROR]
                return await self._decide(transaction.xid, State.ABORTING, reason)
            finally:
                run.trying = False
        if due.phase is Phase.CONFIRM:
            outcomes = await self._confirm(transaction, due.branches, run)
        else:
            outcomes = await self._cancel(transaction, due.branches, run)
        run.attempted.set()
        if outcomes:
            await self._record(transaction, outcomes, run)
        return None

    async def _decide(self, xid: str, state: State, reason: str = "") -> Transaction:
        """Decide, or learn what was decided."""
        try:
            return await self._asker.insist(lambda: self._log.decide(xid, state, reason))
        except (TransactionDecidedError, TransactionAbortedError):
            return await self._asker.insist(lambda: self._log.get(xid))

    async def _confirm(
        self, transaction: Transaction, branches: Sequence[Branch], run: Run
    ) -> list[Outcome]:
        awaited = sum(branch.mode in self._immediate for branch in branches)
        if not awaited:
            run.attempted.set()
        if len(branches) == 1:
            return [await self._attempt(transaction, branches[0], Phase.CONFIRM)]
        outcomes: list[Outcome] = []
        bound = asyncio.Semaphore(PARALLEL)

        async def one(branch: Branch) -> None:
            nonlocal awaited
            async with bound:
                if self._may_go_on(run):
                    outcomes.append(await self._attempt(transaction, branch, Phase.CONFIRM))
            if branch.mode in self._immediate:
                awaited -= 1
                if not awaited:
                    run.attempted.set()

        try:
            async with asyncio.TaskGroup() as tasks:
                for branch in branches:
                    tasks.create_task(one(branch))
        except* FencedError as fenced:
            raise fenced.exceptions[0] from None
        return sorted(outcomes, key=lambda outcome: outcome.number)

    async def _cancel(
        self, transaction: Transaction, branches: Sequence[Branch], run: Run
    ) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for branch in branches:
            if not self._may_go_on(run):
                break
            outcomes.append(await self._attempt(transaction, branch, Phase.CANCEL))
            if outcomes[-1].error is not None:
                break
        return outcomes

    async def _try(
        self, transaction: Transaction, branches: Sequence[Branch], run: Run
    ) -> Transaction | None:
        """Go on with sagas; returns the transaction if there is more to do now.

        One that waits is asked a second time after its waiting was written: a signal that came
        between its look and that write would be lost otherwise.

        Raises:
            TransactionDecidedError: it is no longer ACTIVE.
            TransactionAbortedError: it can't succeed.
        """
        waited: float | None = None
        while True:
            outcomes: list[Outcome] = []
            until: list[float] = []
            for branch in branches:
                try:
                    outcomes.append(await self._attempt(transaction, branch, Phase.TRY))
                except WaitingError as error:
                    until.append(error.until)
            if any(outcome.error is not None for outcome in outcomes):
                await self._record(transaction, outcomes, run)
                return None
            if not until and all(it.mode is Mode.SAGA for it in transaction.branches):
                return await self._decide(transaction.xid, State.COMMITTING)
            at = min(until, default=machine.NEVER)
            if at == waited:
                return None
            waited = at
            transaction = await self._wait(transaction, at, run)
            if transaction.state is not State.ACTIVE:
                return transaction
            if not until:
                return None

    async def _wait(self, transaction: Transaction, at: float, run: Run) -> Transaction:
        xid, owner, epoch = transaction.xid, transaction.owner, transaction.epoch
        after = await self._asker.insist(lambda: self._log.journal(xid, owner, epoch, (), at))
        run.again = self._asker.local(after.next_attempt)
        return after

    async def _changed(self, transaction: Transaction) -> Transaction | None:
        """The transaction as it is now, unless it is as we know it."""
        found = await self._asker.insist(lambda: self._log.get(transaction.xid))
        return found if found.state is not transaction.state else None

    async def _attempt(self, transaction: Transaction, branch: Branch, phase: Phase) -> Outcome:
        """Call a participant once.

        Raises:
            FencedError: it found that another coordinator owns the transaction.
            WaitingError, TransactionDecidedError, TransactionAbortedError: of TRY alone.
        """
        stuck: dict[str, object] | None = None
        patience = None if phase is Phase.TRY else self._patience
        try:
            async with asyncio.timeout(patience):
                await self._call(transaction, branch, phase)
        except FencedError:
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            error = "the participant cancelled itself"
        except StuckError as failure:
            error, stuck = failure.message, failure.report
        except Exception as failure:
            special = WaitingError, TransactionDecidedError, TransactionAbortedError
            if phase is Phase.TRY and isinstance(failure, special):
                raise
            error = _told(failure, self._patience)
        else:
            return Outcome(branch.number, _REACHED[phase])
        return Outcome(branch.number, BranchState.REGISTERED, error[:LONGEST_ERROR], stuck)

    async def _record(
        self, transaction: Transaction, outcomes: Sequence[Outcome], run: Run
    ) -> None:
        """Write what attempts came to, and when to go on: the later, the more have failed."""
        at = await self._asker.insist(self._asker.now)
        numbers = {outcome.number for outcome in outcomes if outcome.error is not None}
        failures = [it.attempts + 1 for it in transaction.branches if it.number in numbers]
        if failures:
            at += machine.delay(min(failures), self._jitter())
        xid, owner, epoch = transaction.xid, transaction.owner, transaction.epoch
        after = await self._asker.insist(lambda: self._log.record(xid, owner, epoch, outcomes, at))
        if after.next_attempt < machine.NEVER:
            run.again = self._asker.local(after.next_attempt)
        for outcome in outcomes:
            if outcome.error is not None:
                _log.warning(
                    "a branch %s: xid=%s branch=%d reason=%s",
                    "is stuck" if outcome.stuck is not None else "failed",
                    xid,
                    outcome.number,
                    outcome.error,
                )


_REACHED: Final = {
    Phase.TRY: BranchState.REGISTERED,
    Phase.CONFIRM: BranchState.CONFIRMED,
    Phase.CANCEL: BranchState.CANCELLED,
}


def _told(error: Exception, patience: float) -> str:
    """What a participant's failure says, for people."""
    match error:
        case Error():
            return error.message
        case TimeoutError() if not str(error):
            return f"no answer within {patience:g} s"
        case _:
            return f"{type(error).__name__}: {error}"
