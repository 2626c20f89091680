"""The block of code that is one transaction: who enters it, what it enlists, how it ends.

Owns `Scope`, made by `transaction()`.

Rules:
- Who begins a transaction decides it: at the block's end, commit without an error, abort with one.
- Who joins (an inner block, or a service whose request carries the id) never commits. Its failure
  dooms the whole: in the same process by a mark, in another service by an ABORTING in the log,
  so that a caller that overlooks an answer of 500 can't commit the half of it.
- A branch that may be in the log although its enlistment failed (cut off, no answer) dooms the
  whole: nobody would run its TRY.
- A TRY runs inside `attempt()`: it is cut off at the deadline, and when it fails the transaction is
  doomed. A block that ends while a TRY still runs aborts.
- The decision is shielded: a task that is cancelled while deciding is cancelled after it.
- When the abort itself can't be written, the error that caused it still comes out: an undecided
  transaction is aborted at its deadline by whoever owns it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from bedstone.errors import Error, InvalidError, UnknownOutcomeError
from bedstone.telemetry import context as telemetry
from bedstone.transactions.errors import (
    TransactionAbortedError,
    TransactionDecidedError,
    TransactionTimeoutError,
)
from bedstone.transactions.model import Branch, Log, Transaction

T = TypeVar("T")
DEFAULT_TIMEOUT = 30.0
logger = logging.getLogger(__name__)


class Decider(Protocol):
    """What a scope asks of the coordinator."""

    async def begin(
        self, name: str, timeout: float, branches: Sequence[Branch] = ()
    ) -> Transaction:
        """Begin a transaction, under a new id."""

    async def register(self, xid: str, branches: Sequence[Branch]) -> Sequence[Branch]:
        """Append branches; returns them numbered."""

    async def commit(self, xid: str) -> Transaction:
        """Decide to commit; durable when it returns."""

    async def abort(self, xid: str, reason: str = "") -> Transaction:
        """Decide to abort; durable when it returns."""


class Host(Protocol):
    """What a scope asks of the manager that made it."""

    async def ask(self, question: Callable[[Any, Log], Coroutine[Any, Any, T]]) -> T:
        """Run `question(coordinator, log)` in the manager's loop."""

    def ask_sync(self, question: Callable[[Any, Log], Coroutine[Any, Any, T]]) -> T:
        """Likewise from a thread, which waits."""


_scope: ContextVar[Scope | None] = ContextVar("bedstone.transaction", default=None)


def innermost() -> Scope | None:
    """The scope that this code is in, unless the request has left it for another transaction."""
    scope = _scope.get()
    return scope if scope and scope.xid == telemetry.current().transaction else None


class Scope:
    """One transaction, for the length of a `with` or `async with` block. Entered once.

    Example:
        >>> async def transfer(source: str, target: str, amount: int) -> None:
        ...     async with transaction("transfer", timeout=5.0) as scope:
        ...         await debit(account=source, amount=amount)
        ...         await credit(account=target, amount=amount)

    Args:
        transactions: the manager.
        name: what it is for, for people.
        timeout: seconds for the whole, from here to the decision.
        branches: to enlist with the beginning, in the same log write.
    """

    def __init__(
        self,
        transactions: Host,
        name: str = "",
        *,
        timeout: float = DEFAULT_TIMEOUT,
        branches: Sequence[Branch] = (),
    ) -> None:
        if not timeout > 0:
            raise InvalidError(f"got a time-out of {timeout} s, expected more than 0")
        self.transactions: Any = transactions
        self.name = name
        self.xid = ""
        self.joined = False
        self.branches: tuple[Branch, ...] = ()
        self._timeout = timeout
        self._first = tuple(branches)
        self._root = self
        self._trying = 0
        self._counting = threading.Lock()
        self._doomed = ""
        self._inside = False
        self._entered = ExitStack()

    @classmethod
    def of_request(cls, transactions: Host, xid: str) -> Self:
        """The transaction that the request carries, without a block around it."""
        scope = cls(transactions)
        scope.xid, scope.joined = xid, True
        return scope

    def remaining(self) -> float:
        """Seconds until the deadline, at least 0."""
        left = telemetry.current().remaining()
        return self._timeout if left is None else left

    async def enlist(self, *branches: Branch) -> tuple[Branch, ...]:
        """Register branches, in one log write, before their TRY runs; returns them numbered.

        Raises:
            TransactionDecidedError: too late; don't do the work.
            LockConflictError: another transaction holds one of their locks.
        """
        self.check_time()
        xid = self._id()
        try:
            found = await self.transactions.ask(
                lambda coordinator, _: coordinator.register(xid, branches)
            )
        except BaseException as error:
            if not _refused(error):
                await whole(self.doom(error))
            raise
        return tuple(found)

    def enlist_sync(self, *branches: Branch) -> tuple[Branch, ...]:
        """`enlist` for blocking code."""
        self.check_time()
        xid = self._id()
        try:
            found = self.transactions.ask_sync(
                lambda coordinator, _: coordinator.register(xid, branches)
            )
        except BaseException as error:
            if not _refused(error):
                self.doom_sync(error)
            raise
        return tuple(found)

    def rollback_only(self, reason: str) -> None:
        """Make the block's end an abort.

        Raises:
            InvalidError: there is no block around it here; raise an error instead.
        """
        if not self._inside and self._root is self:
            raise InvalidError(
                "the transaction belongs to the caller of this service, expected a block of it",
                hint="put `async with transaction():` around it, or raise an error",
            )
        self._root._doomed = self._root._doomed or reason or "marked for rollback"  # noqa: SLF001

    def _tries(self, more: int) -> None:
        with self._counting:  # blocking calls come from several threads
            self._trying += more

    @asynccontextmanager
    async def attempt(self) -> AsyncIterator[None]:
        """Around a TRY: cut off at the deadline; its failure dooms the transaction.

        Raises:
            TransactionTimeoutError: the deadline passed.
        """
        self.check_time()
        self._root._tries(1)  # noqa: SLF001
        try:
            async with asyncio.timeout(self.remaining()) as timer:
                yield
        except BaseException as error:
            await whole(self.doom(error))
            if isinstance(error, TimeoutError) and timer.expired():
                raise self._late() from error
            raise
        finally:
            self._root._tries(-1)  # noqa: SLF001

    @contextmanager
    def attempt_sync(self) -> Iterator[None]:
        """`attempt` for blocking code, which can't be cut off: the time is checked before it."""
        self.check_time()
        self._root._tries(1)  # noqa: SLF001
        try:
            yield
        except BaseException as error:
            self.doom_sync(error)
            raise
        finally:
            self._root._tries(-1)  # noqa: SLF001

    async def __aenter__(self) -> Self:
        if not self._join():
            timeout = self._bound()
            begun = await self.transactions.ask(
                lambda coordinator, _: coordinator.begin(self.name, timeout, self._first)
            )
            self._begun(begun)
        elif self._first:
            self.branches = await self.enlist(*self._first)
        self._enter()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        left = self.remaining()
        torn = self._leave()
        if self.joined:
            cause = error or torn or self._mark()
            if cause is not None:
                await whole(self.doom(cause))
            if error is None and cause is not None and (torn or self._root is self):
                raise cause
            return
        if error is not None:
            await whole(self._abandon(error))
            return
        refusal = torn or self._refusal(left)
        if refusal is not None:
            await whole(self._abandon(refusal))
            raise refusal
        await whole(self._commit())

    def __enter__(self) -> Self:
        if not self._join():
            timeout = self._bound()
            begun = self.transactions.ask_sync(
                lambda coordinator, _: coordinator.begin(self.name, timeout, self._first)
            )
            self._begun(begun)
        elif self._first:
            self.branches = self.enlist_sync(*self._first)
        self._enter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        left = self.remaining()
        torn = self._leave()
        if self.joined:
            cause = error or torn or self._mark()
            if cause is not None:
                self.doom_sync(cause)
            if error is None and cause is not None and (torn or self._root is self):
                raise cause
            return
        refusal = error or torn or self._refusal(left)
        if refusal is None:
            self.transactions.ask_sync(lambda coordinator, _: self._committed(coordinator))
            return
        try:
            self.transactions.ask_sync(
                lambda coordinator, _: coordinator.abort(self.xid, _reason(refusal))
            )
        except Error as failed:
            self._undecided(refusal, failed)
        if error is None:
            raise refusal

    def _join(self) -> bool:
        if self.xid:
            raise InvalidError(
                "a transaction block is entered twice", hint="call `transaction()` for each"
            )
        outer = innermost()
        xid = telemetry.current().transaction
        if xid is None:
            return False
        self.xid, self.joined = xid, True
        if outer is not None:
            self._root = outer._root  # noqa: SLF001
        return True

    def _bound(self) -> float:
        """Seconds that the new transaction has: what was asked, or what the request has left."""
        left = telemetry.current().remaining()
        if left is None:
            return self._timeout
        if left <= 0:
            raise TransactionTimeoutError(
                "the request's deadline passed before the transaction began; nothing was done"
            )
        return min(self._timeout, left)

    def _begun(self, transaction: Transaction) -> None:
        self.xid, self.branches = transaction.xid, transaction.branches

    def _enter(self) -> None:
        self._inside = True
        token = _scope.set(self)
        self._entered.callback(_scope.reset, token)
        if not self.joined:
            self._entered.enter_context(telemetry.with_transaction(self.xid))
        left = telemetry.current().remaining()
        if left is None or left > 0:
            self._entered.enter_context(telemetry.deadline(self._timeout))

    def _leave(self) -> InvalidError | None:
        """Leave the context; an error where it is not the one that was entered."""
        try:
            self._entered.close()
        except ValueError:
            return InvalidError(
                f"the block of transaction {self.xid} is left in another context than it was "
                "entered in: what ran in between was no part of it",
                hint="write the block around the calls themselves; a dependency that blocks is "
                "entered in a thread of its own, so make it `async def`",
            )
        return None

    def _id(self) -> str:
        if not self.xid:
            raise InvalidError("the transaction block is not entered yet, expected to be inside")
        return self.xid

    def check_time(self) -> None:
        """Refuse to go on after the deadline.

        Blocking code asks again once its TRY holds the barrier's row: a process that was paused
        before that may wake after the CANCEL, and after its mark was swept.

        Raises:
            TransactionTimeoutError: the deadline has passed.
        """
        if self.remaining() <= 0:
            raise self._late()

    def _late(self) -> TransactionTimeoutError:
        return TransactionTimeoutError(
            f"the deadline of transaction {self.xid} has passed",
            hint="give `transaction(timeout=…)` more, or see `bedstone tx show` for what took long",
        )

    def _refusal(self, left: float) -> Error | None:
        """Why a block that ended well can't commit all the same."""
        mark = self._mark()
        if mark is not None:
            return mark
        if self._trying:
            return InvalidError(
                f"the block of transaction {self.xid} ended while {self._trying} calls in it were "
                "still running; it is aborted",
                hint="await every call inside the block, for example with asyncio.TaskGroup",
            )
        return self._late() if left <= 0 else None

    def _mark(self) -> TransactionAbortedError | None:
        if not self._root._doomed:  # noqa: SLF001
            return None
        return TransactionAbortedError(
            f"transaction {self.xid} is aborted: {self._root._doomed}",  # noqa: SLF001
            hint="run it again under a new id once the cause is gone",
        )

    async def _commit(self) -> None:
        await self.transactions.ask(lambda coordinator, _: self._committed(coordinator))

    async def _committed(self, coordinator: Decider) -> None:
        try:
            await coordinator.commit(self.xid)
        except TransactionDecidedError as error:
            raise TransactionAbortedError(
                f"transaction {self.xid} is aborted: {error.message}", hint=error.hint
            ) from error

    async def _abandon(self, cause: BaseException) -> None:
        try:
            await self.transactions.ask(
                lambda coordinator, _: coordinator.abort(self.xid, _reason(cause))
            )
        except Error as failed:
            self._undecided(cause, failed)

    def _undecided(self, cause: BaseException, failed: Error) -> None:
        """Say beside the cause that the abort is not written yet."""
        cause.add_note(
            f"transaction {self.xid} is not aborted yet ({failed}); it will be at its deadline"
        )
        logger.warning("transaction.abort_failed xid=%s error=%s", self.xid, failed)

    async def doom(self, cause: BaseException) -> None:
        """See to it that the whole aborts, because a part failed: by a mark, or in the log."""
        if self._begun_here():
            self.rollback_only(_reason(cause))
            return
        try:
            await self.transactions.ask(
                lambda coordinator, _: coordinator.abort(self.xid, _reason(cause))
            )
        except Error as failed:
            self._vetoed(cause, failed)

    def doom_sync(self, cause: BaseException) -> None:
        """`doom` for blocking code."""
        if self._begun_here():
            self.rollback_only(_reason(cause))
            return
        try:
            self.transactions.ask_sync(
                lambda coordinator, _: coordinator.abort(self.xid, _reason(cause))
            )
        except Error as failed:
            self._vetoed(cause, failed)

    def _vetoed(self, cause: BaseException, failed: Error) -> None:
        if not isinstance(failed, TransactionDecidedError):
            self._undecided(cause, failed)

    def _begun_here(self) -> bool:
        return not self._root.joined


def _refused(error: BaseException) -> bool:
    """Whether a registration that failed has certainly left nothing in the log."""
    return isinstance(error, Error) and not isinstance(error, UnknownOutcomeError)


def _reason(cause: BaseException) -> str:
    """For people; without the values that a foreign error's text may hold."""
    return str(cause)[:300] if isinstance(cause, Error) else type(cause).__name__


async def whole(work: Awaitable[T]) -> T:
    """Finish `work` also when this task is cancelled meanwhile; then be cancelled."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
        except BaseException:
            if not task.done():  # not the task's: this coroutine is being closed
                raise
    if cancelled is not None:
        failed = None if task.cancelled() else task.exception()
        raise cancelled from failed
    return task.result()
