"""Serves one saga in a process: the participant that its transactions' coordinator calls.

Owns `Service`: at most one life of each transaction at a time, and who waits for its end.

Rules:
- A phase that is asked for again while it runs is joined, not run twice; another phase, or another
  epoch, ends it first. An older epoch is refused.
- A caller that waits is told when the decision is durable: success with CONFIRM, failure with the
  first attempt of CANCEL.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bedstone.errors import UnavailableError
from bedstone.transactions.asking import Asker
from bedstone.transactions.errors import (
    FencedError,
    TransactionAbortedError,
    TransactionTimeoutError,
)
from bedstone.transactions.model import Branch, Log, Phase, Transaction
from bedstone.transactions.router import Threads
from bedstone.transactions.saga_plan import Compiled
from bedstone.transactions.saga_run import Life

if TYPE_CHECKING:
    from bedstone.transactions.coordinator import Coordinator
    from bedstone.transactions.manager import Transactions

_log = logging.getLogger(__name__)

_AGAIN = 0.2
"""Seconds until a coordinator that did nothing is asked again."""

_LARGEST = 1000
"""Lives that are remembered between TRY and the decision."""


@dataclass(frozen=True, slots=True)
class _Run:
    phase: Phase
    epoch: int
    task: asyncio.Task[None]


class Service:
    """A `Participant` for one saga.

    Args:
        code: the saga.
        transactions: gives the manager.
        jitter: a random number from 0 to 1.
    """

    def __init__(
        self,
        code: Compiled,
        transactions: Callable[[], Transactions],
        jitter: Callable[[], float],
    ) -> None:
        self._code = code
        self._transactions = transactions
        self._jitter = jitter
        self._threads = Threads()
        self._runs: dict[str, _Run] = {}
        self._ends: dict[str, asyncio.Future[Any]] = {}
        self._fresh: set[str] = set()
        self._mine: set[str] = set()
        self._lives: dict[str, tuple[int, Life]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._asker: tuple[Log, Asker] | None = None

    async def __call__(self, transaction: Transaction, branch: Branch, phase: Phase) -> None:
        """As `Participant`."""
        await self._transactions().ask(lambda _, log: self._call(log, transaction, branch, phase))

    def go(self, coordinator: Coordinator, transaction: Transaction) -> asyncio.Future[Any]:
        """Run one that has just begun; its end, for who waits."""
        end: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        end.add_done_callback(_looked_at)
        self._ends[transaction.xid] = end
        self._fresh.add(transaction.xid)
        self._mine.add(transaction.xid)
        task = asyncio.get_running_loop().create_task(
            self._go(coordinator, transaction), name=f"saga {transaction.xid}"
        )
        self._tasks.add(task)
        task.add_done_callback(lambda _: self._left(task, transaction.xid))
        return end

    async def _go(self, coordinator: Coordinator, transaction: Transaction) -> None:
        """Begin it; again, while the coordinator has no lease and so does nothing."""
        while True:
            await coordinator.resume(transaction)
            if transaction.xid not in self._fresh:
                return
            await asyncio.sleep(_AGAIN)

    def _left(self, task: asyncio.Task[None], xid: str) -> None:
        self._tasks.discard(task)
        self._fresh.discard(xid)
        self._mine.discard(xid)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("not run here", extra={"xid": xid, "reason": str(error)})

    def forget(self, xid: str) -> None:
        """Nobody waits for it any more."""
        self._ends.pop(xid, None)

    async def _call(self, log: Log, transaction: Transaction, branch: Branch, phase: Phase) -> None:
        xid = transaction.xid
        while (run := self._runs.get(xid)) is not None:
            if run.epoch > transaction.epoch:
                raise FencedError(f"transaction {xid} is at work in the later epoch {run.epoch}")
            if (run.phase, run.epoch) == (phase, transaction.epoch):
                break
            run.task.cancel()
            await asyncio.wait([run.task])
        else:
            task = asyncio.get_running_loop().create_task(
                self._phase(log, transaction, branch, phase), name=f"saga {xid} {phase}"
            )
            run = self._runs[xid] = _Run(phase, transaction.epoch, task)
            task.add_done_callback(lambda task: self._ended(xid, task))
        await _joined(run.task, xid)

    def _ended(self, xid: str, task: asyncio.Task[None]) -> None:
        run = self._runs.get(xid)
        if run is not None and run.task is task:
            del self._runs[xid]

    async def _phase(
        self, log: Log, transaction: Transaction, branch: Branch, phase: Phase
    ) -> None:
        xid = transaction.xid
        life = await self._life(log, transaction, branch)
        match phase:
            case Phase.TRY:
                try:
                    await life.forward()
                finally:
                    while len(self._lives) >= _LARGEST:
                        del self._lives[next(iter(self._lives))]
                    self._lives[xid] = transaction.epoch, life
            case Phase.CONFIRM:
                self._lives.pop(xid, None)
                if not life.missing():
                    self._tell(xid, life)  # it need not wait for the history's last lines
                try:
                    await life.complete()
                finally:
                    self._tell(xid, life)
            case Phase.CANCEL:
                try:
                    await life.backward()
                finally:
                    self._tell_aborted(transaction, life)
                self._lives.pop(xid, None)

    async def _life(self, log: Log, transaction: Transaction, branch: Branch) -> Life:
        """What went on here before, if nobody else had it meanwhile; else by its history."""
        if self._asker is None or self._asker[0] is not log:
            asker = Asker(log, sleep=asyncio.sleep, jitter=self._jitter)
            await asker.refresh()
            self._asker = log, asker
        epoch, life = self._lives.pop(transaction.xid, (0, None))
        if life is None or epoch != transaction.epoch:
            life = Life(
                self._code, transaction, branch, log, self._asker[1], self._threads, self._jitter
            )
            if transaction.xid in self._fresh and transaction.epoch == 1:
                self._fresh.discard(transaction.xid)
                return life
        elif transaction.xid in self._mine:
            return life
        await life.write()  # what an earlier phase could not
        await life.read()
        return life

    def _tell(self, xid: str, life: Life) -> None:
        end = self._ends.pop(xid, None)
        if end is None or end.done():
            return
        try:
            end.set_result(life.output())
        except Exception as error:  # noqa: BLE001 - the developer's function raised; it is told
            end.set_exception(error)

    def _tell_aborted(self, transaction: Transaction, life: Life) -> None:
        end = self._ends.pop(transaction.xid, None)
        if end is None or end.done():
            return
        failed = next(iter(life.history.failed.items()), None)
        what = f"saga {transaction.name} of transaction {transaction.xid} is aborted"
        kind = TransactionTimeoutError if life.late else TransactionAbortedError
        told = kind(
            what if failed is None else f"{what}: {failed[0]} failed: {failed[1]}",
            hint="run it again under a new id once the cause is gone",
        )
        told.__cause__ = life.error
        end.set_exception(told)


def _looked_at(end: asyncio.Future[Any]) -> None:
    """Look at a failure, which is nobody's when who waited has gone."""
    if not end.cancelled():
        end.exception()


async def _joined(task: asyncio.Task[None], xid: str) -> None:
    """Wait for a phase; a caller that is cancelled ends it."""
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        if task.cancelled():
            raise UnavailableError(f"the saga {xid} is at work in another phase") from None
        task.cancel()
        await asyncio.wait([task])
        raise
