"""Group commit for the log: operations that wait together are made durable together.

While one batch is written, further operations queue; the next batch takes them all. So the cost of
a durable write is shared under load, and a lone operation waits for nobody.

Rules:
- Operations take effect in the order they came; later ones see what earlier ones of the batch did.
- A refused operation affects itself only. A failure of the batch as a whole is every member's.
- A caller that is cancelled before its batch is taken takes its operation along; later, the
  operation goes on without it.
- A batch that a database refuses as invalid is written one by one: only the culprit fails.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from bedstone.errors import Error, InvalidError, UnavailableError, UnknownOutcomeError
from bedstone.transactions.errors import LockConflictError
from bedstone.transactions.log_counts import STEPS, steps
from bedstone.transactions.log_rows import Stored, encode_branches, held_locks
from bedstone.transactions.machine import Change
from bedstone.transactions.model import Event, State, Transaction

T = TypeVar("T")

_log = logging.getLogger(__name__)

LARGEST_BATCH: Final = 512
"""Operations in one batch: bounds the time that the first of them waits."""

Outcome = Transaction | Exception
"""What became of one operation: the transaction after it, or what its caller gets raised."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation on one transaction.

    Args:
        xid: the transaction.
        change: what it does to what is there, now; None for nothing; raises to refuse.
        locks: global locks that it may take.
    """

    xid: str
    change: Callable[[Transaction | None, float], Change | None]
    locks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LockChanges:
    """What a batch does to the table of locks: each a key and its transaction."""

    added: list[tuple[str, str]]
    moved: list[tuple[str, str]]
    removed: list[tuple[str, str]]


class Draft:
    """What a batch is going to write: pure; operations see each other through it.

    Args:
        found: the batch's transactions, as far as they exist.
        holders: of the locks that the batch may take, those that are held.
        now: the log's clock.
        placed: locks that were free and that the driver has put down already, for whom.
    """

    def __init__(
        self,
        found: Iterable[Stored],
        holders: Mapping[str, str],
        now: float,
        placed: Mapping[str, str] | None = None,
    ) -> None:
        self._rows = {it.transaction.xid: it for it in found}
        self._old = frozenset(self._rows)
        self._now = now
        self._before: dict[str, str | None] = {**holders, **(placed or {})}
        self._holders: dict[str, str | None] = {**holders, **dict.fromkeys(placed or (), None)}
        self._dirty: dict[str, None] = {}
        self._steps: Counter[str] = Counter()
        self.events: list[tuple[str, int, Event]] = []

    def apply(self, operation: Operation) -> Outcome:
        """Do one operation, or refuse it; what it raises is its outcome and nobody else's."""
        held = self._rows.get(operation.xid)
        try:
            change = operation.change(None if held is None else held.transaction, self._now)
            if change is None:
                return cast("Stored", held).transaction
            self._acquire(change)
        except Exception as error:  # noqa: BLE001 - another's operation must not suffer from it
            return error
        self.put(change)
        return change.refusal or change.after

    def put(self, change: Change) -> Transaction:
        """Take a change in whose locks are free."""
        after, xid = change.after, change.after.xid
        held = self._rows.get(xid)
        position, ended_at = (held.events, held.ended_at) if held is not None else (0, None)
        if ended_at is None and after.state.ended:
            ended_at = self._now
        for offset, event in enumerate(change.events, 1):
            self.events.append((xid, position + offset, event))
        same = held is not None and held.transaction.branches is after.branches
        self._rows[xid] = Stored(
            after,
            cast("Stored", held).branches if same else encode_branches(after.branches),
            position + len(change.events),
            ended_at,
        )
        self._dirty[xid] = None
        self._steps.update(steps(held.transaction.state if held is not None else None, after.state))
        # What commits gave its locks up when that was decided; they may be another's by now.
        if change.releases and (held is None or held.transaction.state is not State.COMMITTING):
            for lock in held_locks(after.branches):
                if lock not in self._holders:
                    self._before[lock] = xid
                    self._holders[lock] = None
                elif self._holders[lock] == xid:
                    self._holders[lock] = None
        return after

    @property
    def empty(self) -> bool:
        """Whether every operation was refused, or changes nothing."""
        return not self._dirty

    @property
    def inserted(self) -> list[Stored]:
        """Transactions that are new, sorted."""
        return [self._rows[xid] for xid in sorted(self._dirty) if xid not in self._old]

    @property
    def updated(self) -> list[Stored]:
        """Transactions that were there and have changed, sorted."""
        return [self._rows[xid] for xid in sorted(self._dirty) if xid in self._old]

    @property
    def counted(self) -> tuple[int, ...]:
        """How many of each of `log_counts.STEPS` it takes; empty where it is none."""
        return tuple(self._steps[step] for step in STEPS) if self._steps else ()

    def locks(self) -> LockChanges:
        """What becomes of the locks."""
        changes = LockChanges([], [], [])
        for lock, after in sorted(self._holders.items()):
            before = self._before.get(lock)
            if before == after:
                continue
            if after is None:
                changes.removed.append((lock, str(before)))
            elif before is None:
                changes.added.append((lock, after))
            else:
                changes.moved.append((lock, after))
        return changes

    def _acquire(self, change: Change) -> None:
        xid = change.after.xid
        for lock in change.acquires:
            holder = self._holders.get(lock)
            if holder not in {None, xid}:
                raise LockConflictError(
                    f"lock {lock!r} is held by {f'transaction {holder}' if holder else 'another'}",
                    hint="nothing was applied; run the transaction again when that one has ended: "
                    "`bedstone tx ls --stuck` says whether it waits for a person",
                )
        self._holders.update(dict.fromkeys(change.acquires, xid))


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    work: Operation | Callable[[], Awaitable[Any]]
    outcome: asyncio.Future[Any]


class Queue:
    """Operations that wait, and what else needs the log's writer to itself.

    Args:
        write: makes one batch durable and returns each operation's outcome, or raises an `Error`
            that holds for all. It is never called twice at once.
    """

    def __init__(
        self, write: Callable[[Sequence[Operation]], Awaitable[Sequence[Outcome]]]
    ) -> None:
        self._write = write
        self._waiting: deque[_Waiting] = deque()
        self._wake = asyncio.Event()
        self._stopped = False

    async def submit(self, operation: Operation) -> Transaction:
        """Wait until the operation is durable.

        Raises:
            Error: the operation's own, or its batch's.
            UnavailableError: the log is closed.
        """
        return cast("Transaction", await self._enqueue(operation))

    async def alone(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run something between two batches, while nothing else is written."""
        return cast("T", await self._enqueue(work))

    def stop(self) -> None:
        """Refuse what is queued and what comes; `run` returns after the batch in flight."""
        self._stopped = True
        self._wake.set()

    async def run(self) -> None:
        """Write batches until stopped."""
        try:
            while not self._stopped:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting and not self._stopped:
                    await self._write_all(self._take())
        finally:
            self._stopped = True
            for waiting in self._waiting:
                _answer(waiting, closed())
            self._waiting.clear()

    async def _enqueue(self, work: Operation | Callable[[], Awaitable[Any]]) -> object:
        if self._stopped:
            raise closed()
        waiting = _Waiting(work, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._wake.set()
        outcome = await waiting.outcome
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _take(self) -> list[_Waiting]:
        """The next batch, or one piece of work that needs to be alone."""
        taken: list[_Waiting] = []
        while self._waiting and len(taken) < LARGEST_BATCH:
            alone = not isinstance(self._waiting[0].work, Operation)
            if alone and taken:
                break
            waiting = self._waiting.popleft()
            if not waiting.outcome.done():
                taken.append(waiting)
            if alone:
                break
        return taken

    async def _write_all(self, batch: Sequence[_Waiting]) -> None:
        try:
            outcomes = await self._outcomes(batch)
        except InvalidError as error:
            if len(batch) > 1:
                for waiting in batch:
                    await self._write_all([waiting])
                return
            outcomes = [error]
        except Error as error:
            outcomes = [_copied(error) for _ in batch]
        except BaseException as error:
            lost = UnknownOutcomeError(f"the log was stopped while it wrote: {error!r}")
            for waiting in batch:
                _answer(waiting, _copied(lost))
            if not isinstance(error, Exception):
                raise
            _log.exception("the transaction log failed")
            return
        for waiting, outcome in zip(batch, outcomes, strict=True):
            _answer(waiting, outcome)

    async def _outcomes(self, batch: Sequence[_Waiting]) -> Sequence[object]:
        if not batch:
            return []
        work = batch[0].work
        if not isinstance(work, Operation):
            return [await work()]
        return await self._write([cast("Operation", waiting.work) for waiting in batch])


def closed() -> UnavailableError:
    """What every use of a log outside its context gets."""
    return UnavailableError("the transaction log is closed", hint="use it inside `async with`")


def _answer(waiting: _Waiting, outcome: object) -> None:
    if not waiting.outcome.done():
        waiting.outcome.set_result(outcome)


def _copied(error: Error) -> Error:
    """The same error for another caller, who adds a traceback of its own."""
    fresh = copy.copy(error).with_traceback(None)
    fresh.__cause__ = error.__cause__
    return fresh
