"""Coordinates transactions: begins them, takes the decision, and sees each to its end.

Owns the tasks that do phase two, and the lease under which they may. The log holds the state; a
coordinator holds nothing that another could not go on from.

Rules:
- A commit is one write; then phase two starts. Who asked waits for the first attempt of the
  `immediate` modes and never for the record of what came of it.
- At most one task of this process works on a transaction.
- What a caller is told is what the log says. An answer that is lost is asked for again; if none
  comes, the caller is told just that.
- Leaving waits a while for what is at work, stops it, and gives the lease back, so that others go
  on at once. Being killed at any moment loses nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

from bedstone.errors import Error, InvalidError, UnknownOutcomeError
from bedstone.transactions import repairs
from bedstone.transactions.asking import Asker, Sleep
from bedstone.transactions.driving import Driver
from bedstone.transactions.errors import (
    DecisionUnknownError,
    TransactionAbortedError,
    TransactionDecidedError,
    TransactionTimeoutError,
)
from bedstone.transactions.keeping import Keeper
from bedstone.transactions.model import (
    Branch,
    BranchState,
    Log,
    Mode,
    Participant,
    State,
    Transaction,
)
from bedstone.transactions.running import Runner

_log = logging.getLogger(__name__)

IMMEDIATE: Final = frozenset({Mode.TCC, Mode.XA})

INSISTENCE: Final = 3.0
"""Seconds for which a caller's question is repeated, at least."""

PRUNE: Final = 1000
"""Deadlines that are kept without a look at which have passed."""


def new_xid() -> str:
    """An id that nobody had: milliseconds since the epoch, then chance; so ids sort by age."""
    return f"{int(time.time() * 1000):011x}{secrets.token_hex(10)}"


class Coordinator:
    """Drives the transactions of one process. Enter it before use.

    Args:
        log: the durable log, entered.
        call: does phase two: finds the participant by the branch's resource, and calls it.
        owner: this coordinator's name, never used by another nor by an earlier start of this one.
        lease: seconds after which others take over from a silent owner.
        poll: seconds between two looks for what is due.
        patience: seconds that one phase two call of a participant may take.
        grace: seconds that leaving waits for what is at work.
        second_person: whether a repair needs another person's name.
        immediate: modes whose first CONFIRM `commit` waits for.
        sleep: waits, in seconds.
        jitter: a random number from 0 to 1.
        new_id: an id for a transaction.
    """

    def __init__(
        self,
        log: Log,
        call: Participant,
        *,
        owner: str,
        lease: float = 10.0,
        poll: float = 1.0,
        patience: float = 30.0,
        grace: float = 3.0,
        second_person: bool = False,
        immediate: frozenset[Mode] = IMMEDIATE,
        sleep: Sleep = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        new_id: Callable[[], str] = new_xid,
    ) -> None:
        if not owner or lease <= 0 or poll <= 0:
            raise InvalidError(
                f"got owner {owner!r}, lease {lease}, poll {poll}, "
                "expected a name and positive seconds"
            )
        self.owner = owner
        self._log = log
        self._grace = grace
        self._second_person = second_person
        self._new_id = new_id
        self._asker = Asker(log, sleep=sleep, jitter=jitter)
        self._keeper = Keeper(
            log,
            owner,
            lease=lease,
            poll=poll,
            asker=self._asker,
            sleep=sleep,
            jitter=jitter,
        )
        driver = Driver(
            log,
            call,
            owner,
            self._asker,
            term=self._keeper.term,
            jitter=jitter,
            immediate=immediate,
            patience=patience,
        )
        self._runner = Runner(driver, owner, self._keeper.wake_at)
        self._keeping: list[asyncio.Task[None]] = []
        self._deadlines: dict[str, float] = {}
        self._prune_at = PRUNE

    async def __aenter__(self) -> Self:
        try:
            await self._keeper.renew(limit=0)
        except Error as error:
            _log.warning("no lease yet", extra={"owner": self.owner, "reason": error.message})
        self._runner.open = True
        loop = asyncio.get_running_loop()
        self._keeping = [
            loop.create_task(self._keeper.keep_lease(), name="transactions lease"),
            loop.create_task(self._keeper.keep_looking(self._runner), name="transactions due"),
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._keeping:
            task.cancel()
        try:
            await self._runner.stop(self._grace if kind is None else 0.0)
        finally:
            await asyncio.gather(*self._keeping, return_exceptions=True)
            try:
                async with asyncio.timeout(max(self._grace, 1.0)):
                    await self._log.release(self.owner)
            except (Error, TimeoutError) as failure:
                extra = {"owner": self.owner, "reason": str(failure)}
                _log.warning("the lease is not given back; it runs out by itself", extra=extra)

    async def begin(
        self,
        name: str,
        timeout: float,
        branches: Sequence[Branch] = (),
        *,
        xid: str | None = None,
        deadline: float | None = None,
    ) -> Transaction:
        """Begin a transaction, durably.

        Args:
            name: what it is for, for people.
            timeout: seconds until it is aborted, unless it is decided before.
            branches: its first ones, with their locks; numbers are given here.
            xid: its id, where the caller has one already.
            deadline: instead of `timeout`, by the log's clock.

        Raises:
            LockConflictError: another transaction holds one of the locks.
            ConflictError: the id is taken.
            UnavailableError: the log can't be written; nothing was.
            UnknownOutcomeError: it may have begun; left alone it is aborted at its deadline.
        """
        self._demand_open()
        now = await self._asker.now()
        deadline = now + timeout if deadline is None else deadline
        numbered = tuple(replace(branch, number=n) for n, branch in enumerate(branches, 1))
        new = Transaction(
            xid or self._new_id(),
            name,
            deadline,
            now,
            self.owner,
            branches=numbered,
            next_attempt=deadline,
        )
        try:
            await self._log.begin(new)
        except UnknownOutcomeError as unknown:
            await self._begin_again(new, unknown)
        self._deadlines[new.xid] = self._asker.local(deadline)
        if len(self._deadlines) > self._prune_at:
            self._prune()
        return new

    async def register(self, xid: str, branches: Sequence[Branch]) -> Sequence[Branch]:
        """Append branches, durably, before their TRY runs; returns them with their numbers.

        Where it is not known whether they were appended, the transaction is aborted: a branch that
        nobody tried could not be confirmed.

        Raises:
            UnknownTransactionError: there is none of that id.
            TransactionDecidedError: it takes none any more.
            LockConflictError: another transaction holds one of the locks.
            UnavailableError: the log can't be written; nothing was.
            UnknownOutcomeError: they may be appended.
        """
        try:
            transaction = await self._log.register(xid, branches)
        except UnknownOutcomeError as unknown:
            try:
                await self._decide(xid, State.ABORTING, "a registration got no answer")
            except Error as error:
                _log.warning("not aborted", extra={"xid": xid, "reason": error.message})
            self._keeper.wake()
            raise UnknownOutcomeError(
                f"the log gave no answer to a registration in transaction {xid}",
                hint="run the whole again under a new id",
            ) from unknown
        return transaction.branches[len(transaction.branches) - len(branches) :]

    async def commit(self, xid: str) -> Transaction:
        """Decide to commit, durably, and start phase two.

        Raises:
            TransactionTimeoutError: its deadline had passed; it is aborted.
            TransactionAbortedError: it was aborted before.
            UnknownTransactionError: there is none of that id.
            UnavailableError: the log can't be written; it is aborted at its deadline.
            DecisionUnknownError: the log gave no answer; the decision may stand.
        """
        self._demand_open()
        try:
            return await self._end(xid, State.COMMITTING)
        except TransactionTimeoutError:
            self._keeper.wake()
            raise
        except TransactionDecidedError as refused:
            raise await self._aborted(xid, refused) from refused

    async def abort(self, xid: str, reason: str = "") -> Transaction:
        """Decide to abort, durably, and attempt every CANCEL once; failures are tried again later.

        Raises:
            TransactionDecidedError: it was committed before.
            UnknownTransactionError: there is none of that id.
            UnavailableError: the log can't be written; it is aborted at its deadline.
            DecisionUnknownError: the log gave no answer; it is aborted, now or at its deadline.
        """
        self._demand_open()
        return await self._end(xid, State.ABORTING, reason)

    async def resume(self, transaction: Transaction) -> None:
        """Do now what is due of a transaction of ours, without waiting for its next attempt."""
        self._demand_open()
        now = await self._asker.now()
        run = self._runner.start(replace(transaction, next_attempt=now))
        if run is not None:
            await run.ended.wait()

    def wake(self) -> None:
        """Look now for what is due: something came from outside."""
        self._keeper.wake()

    async def retry(self, xid: str, by: str, why: str) -> Transaction:
        """As `repairs.retry`."""
        after = await repairs.retry(self._log, xid, by, why)
        self._keeper.wake()
        return after

    async def repair(
        self,
        xid: str,
        number: int,
        to: BranchState,
        *,
        by: str,
        why: str,
        second: str | None = None,
    ) -> Transaction:
        """As `repairs.repair`, under this coordinator's policy about a second person."""
        after = await repairs.repair(
            self._log,
            xid,
            number,
            to,
            by=by,
            why=why,
            second=second,
            second_person=self._second_person,
        )
        self._keeper.wake()
        return after

    async def _begin_again(self, new: Transaction, unknown: UnknownOutcomeError) -> None:
        """Ask until the log says that it has begun; another may have taken it over by then."""
        until = asyncio.get_running_loop().time() + INSISTENCE
        try:
            await self._asker.insist(lambda: self._log.begin(new), until, worst=unknown)
        except TransactionDecidedError:
            found = await self._asker.insist(lambda: self._log.get(new.xid), until, worst=unknown)
            if (found.name, found.deadline) != (new.name, new.deadline) or found.epoch == 1:
                raise

    async def _decide(self, xid: str, state: State, reason: str = "") -> Transaction:
        until = asyncio.get_running_loop().time() + INSISTENCE
        deadline = self._deadlines.pop(xid, until)
        if state is State.COMMITTING:
            until = max(until, deadline)
        try:
            return await self._asker.insist(lambda: self._log.decide(xid, state, reason), until)
        except UnknownOutcomeError as unknown:
            self._keeper.wake()
            raise DecisionUnknownError(
                f"the log gave no answer to the decision of transaction {xid}",
                hint=f"`bedstone tx show {xid}` tells it once the log is there",
            ) from unknown

    async def _aborted(self, xid: str, refused: TransactionDecidedError) -> TransactionAbortedError:
        """Why a commit was refused."""
        try:
            transaction = await self._log.get(xid)
            decision = next(e for e in reversed(await self._log.events(xid)) if e.kind == "decided")
        except (Error, StopIteration):
            return TransactionAbortedError(refused.message)
        if decision.at >= transaction.deadline:
            return TransactionTimeoutError(
                f"transaction {xid} is aborted: its deadline passed before the decision"
            )
        reason = decision.detail.get("reason")
        return TransactionAbortedError(
            f"transaction {xid} is aborted: {reason}" if reason else refused.message,
            hint="run the whole again under a new id",
        )

    async def _end(self, xid: str, state: State, reason: str = "") -> Transaction:
        """Decide, and wait for the first attempt of what a caller waits for."""
        self._runner.ask(xid)
        transaction: Transaction | None = None
        try:
            transaction = await self._decide(xid, state, reason)
        finally:
            run = self._runner.start_answer(transaction, xid)
        if run is not None and not run.trying:
            await run.attempted.wait()
        return transaction

    def _prune(self) -> None:
        """Forget deadlines of what was decided elsewhere."""
        now = asyncio.get_running_loop().time()
        self._deadlines = {xid: at for xid, at in self._deadlines.items() if at > now}
        self._prune_at = PRUNE + 2 * len(self._deadlines)

    def _demand_open(self) -> None:
        if not self._runner.open:
            raise InvalidError(
                "the coordinator is not running", hint="enter it: `async with Coordinator(...)`"
            )
