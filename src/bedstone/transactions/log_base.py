"""What the log's drivers have in common: operations go through one queue into batches.

A driver loads the rows of a batch, lets a `Draft` apply the operations, and writes what comes out,
all in one local transaction. It does so in `_write`; what it reads, it reads beside the queue.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from bedstone.errors import InvalidError
from bedstone.transactions import log_rows, machine
from bedstone.transactions.errors import UnknownTransactionError
from bedstone.transactions.log_batch import Operation, Outcome, Queue, closed
from bedstone.transactions.machine import Change
from bedstone.transactions.model import Branch, Event, State, Transaction
from bedstone.transactions.model import Outcome as Attempt


@dataclass(slots=True)
class Statistics:
    """What a log has done since it was made, for benchmarks.

    Args:
        operations: those that batches held.
        batches: how often the writer took what waited.
        commits: local transactions that were made durable.
        round_trips: how often the writer waited for its database.
    """

    operations: int = 0
    batches: int = 0
    commits: int = 0
    round_trips: int = 0


class BatchedLog(ABC):
    """The writing half of a `Log`; a driver adds how a batch is written, and the reading half."""

    def __init__(self) -> None:
        self.statistics = Statistics()
        self._queue: Queue | None = None
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._queue is not None:
            raise InvalidError("the log is open already", hint="construct another one")
        await self._connect()
        self._queue = Queue(self._batch)
        self._running = asyncio.create_task(self._queue.run(), name="transaction log")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        running, self._running = self._running, None
        try:
            if running is not None and self._queue is not None:
                self._queue.stop()
                await running
        finally:
            self._queue = None
            await self._disconnect()

    async def begin(self, transaction: Transaction) -> None:
        """As `Log.begin`."""
        log_rows.check_transaction(transaction)
        await self._open.submit(
            Operation(
                transaction.xid,
                lambda found, now: machine.begin(found, transaction, now),
                log_rows.held_locks(transaction.branches),
            )
        )

    async def register(self, xid: str, branches: Sequence[Branch]) -> Transaction:
        """As `Log.register`."""
        log_rows.check_branches(branches)
        return await self._submit(
            xid,
            lambda found, now: machine.register(known(found, xid), branches, now),
            log_rows.held_locks(branches),
        )

    async def decide(self, xid: str, state: State, reason: str = "") -> Transaction:
        """As `Log.decide`."""
        return await self._submit(
            xid, lambda found, now: machine.decide(known(found, xid), state, now, reason)
        )

    async def record(
        self, xid: str, owner: str, epoch: int, outcomes: Sequence[Attempt], next_attempt: float
    ) -> Transaction:
        """As `Log.record`."""
        log_rows.check_outcomes(outcomes)
        log_rows.check_time(next_attempt)
        return await self._submit(
            xid,
            lambda found, now: machine.record(
                known(found, xid), owner, epoch, outcomes, next_attempt, now
            ),
        )

    async def journal(
        self,
        xid: str,
        owner: str,
        epoch: int,
        events: Sequence[Event],
        next_attempt: float | None = None,
    ) -> Transaction:
        """As `Log.journal`."""
        log_rows.check_events(events)
        log_rows.check_time(next_attempt or 0.0)
        return await self._submit(
            xid,
            lambda found, now: machine.journal(
                known(found, xid), owner, epoch, events, next_attempt, now
            ),
        )

    async def amend(self, xid: str, event: Event, outcomes: Sequence[Attempt] = ()) -> Transaction:
        """As `Log.amend`."""
        log_rows.check_events([event])
        log_rows.check_outcomes(outcomes)
        return await self._submit(
            xid, lambda found, now: machine.amend(known(found, xid), event, outcomes, now)
        )

    async def claim(self, owner: str, lease: float, limit: int) -> Sequence[Transaction]:
        """As `Log.claim`."""
        log_rows.check_owner(owner)
        return await self._open.alone(lambda: self._claim(owner, lease, limit))

    async def release(self, owner: str) -> None:
        """As `Log.release`."""
        log_rows.check_owner(owner)
        await self._open.alone(lambda: self._release(owner))

    async def purge(self, older_than: float, limit: int) -> int:
        """As `Log.purge`."""
        return await self._open.alone(lambda: self._purge(older_than, limit))

    @property
    def _open(self) -> Queue:
        if self._queue is None:
            raise closed()
        return self._queue

    async def _submit(
        self,
        xid: str,
        change: Callable[[Transaction | None, float], Change | None],
        locks: tuple[str, ...] = (),
    ) -> Transaction:
        queue = self._open
        if not log_rows.is_xid(xid):
            raise unknown(xid)
        return await queue.submit(Operation(xid, change, locks))

    async def _batch(self, operations: Sequence[Operation]) -> Sequence[Outcome]:
        self.statistics.batches += 1
        self.statistics.operations += len(operations)
        return await self._write(operations)

    @abstractmethod
    async def _connect(self) -> None:
        """Connect, and create what is not there."""

    @abstractmethod
    async def _disconnect(self) -> None:
        """Let go of every connection; never fails."""

    @abstractmethod
    async def _write(self, operations: Sequence[Operation]) -> Sequence[Outcome]:
        """Make a batch durable.

        Raises:
            UnavailableError: nothing was written.
            UnknownOutcomeError: whether it was written is not known.
            InvalidError: the database refuses something in it; nothing was written.
        """

    @abstractmethod
    async def _claim(self, owner: str, lease: float, limit: int) -> Sequence[Transaction]:
        """As `Log.claim`, between two batches."""

    @abstractmethod
    async def _release(self, owner: str) -> None:
        """As `Log.release`, between two batches."""

    @abstractmethod
    async def _purge(self, older_than: float, limit: int) -> int:
        """As `Log.purge`, between two batches."""


def known(found: Transaction | None, xid: str) -> Transaction:
    """The transaction that was found.

    Raises:
        UnknownTransactionError: none was.
    """
    if found is None:
        raise unknown(xid)
    return found


def unknown(xid: str) -> UnknownTransactionError:
    """What asking for an id that the log does not hold gets."""
    return UnknownTransactionError(
        f"no transaction {xid[:80]!a}", hint="`bedstone tx ls` shows those that are known"
    )
