"""XA: the database prepares a local transaction, and ends it as the log says.

Owns `XA`, what a developer opens, and its phase two.

Rules:
- The branch is in the log before anything is begun, so that nothing prepared is ever unknown.
- At the block's end the local transaction is prepared; what it wrote is invisible, and locked,
  until phase two. With an error it is rolled back, and the whole transaction aborts.
- Phase two uses any connection to the same database, from any process.
- MariaDB keeps a prepared transaction with the connection that prepared it: that one is closed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from bedstone.errors import Error, InvalidError
from bedstone.transactions import xa_statements as statements
from bedstone.transactions.barrier import Entered
from bedstone.transactions.connections import AsyncConnection, SyncConnection, proving
from bedstone.transactions.databases import Database, Source
from bedstone.transactions.databases import database as as_database
from bedstone.transactions.errors import TransactionDecidedError, UnknownTransactionError
from bedstone.transactions.model import Branch, Log, Mode, Phase, State, Transaction
from bedstone.transactions.sql import Dialect

PREFIX = "xa/"


class Host(Protocol):
    """What XA asks of the manager."""

    def participant(self, name: str, function: Any, *databases: Database) -> None:
        """Let `function` do phase two for the resource `name`."""

    def resource(self, name: str) -> str:
        """What a branch's phase two is reached by."""


class XA:
    """A database whose local transactions are branches. Made by `xa`.

    Example:
        >>> bank = xa("postgresql://localhost/bank")
        >>> async def pay() -> None:
        ...     async with transaction():
        ...         async with bank.xa() as db:
        ...             await db.execute("UPDATE accounts SET balance = balance - 5 WHERE id = 1")

    Args:
        database: PostgreSQL, MariaDB or MySQL.
        name: its name in the log; it must not change while transactions that have it are open.
        transactions: the manager; by default the process's own, at each use.
    """

    def __init__(self, database: Database, name: str, transactions: Host | None = None) -> None:
        self.name = PREFIX + name
        self.database = database
        self._own = transactions
        self._prepared = False
        second = self._second_async if database.is_async else self._second_sync
        if transactions is None:
            from bedstone.transactions.manager import register

            register(self.name, second, database)
        else:
            transactions.participant(self.name, second, database)

    def __repr__(self) -> str:
        return f"XA({self.name!r}, {self.database!r})"

    def xa(self) -> Block:
        """A local transaction that becomes a branch, for `async with` or `with`.

        It gives the database's own connection.

        Raises:
            InvalidError: not inside a transaction; or the server can't prepare; or the local
                transaction was ended, or has failed, inside the block.
            TransactionDecidedError: too late; nothing was done.
        """
        return Block(self)

    def resource(self) -> str:
        """What a branch's phase two is reached by."""
        if self._own is not None:
            return self._own.resource(self.name)
        from bedstone.transactions.manager import process

        return process().resource(self.name)

    @asynccontextmanager
    async def asynchronous(self) -> AsyncIterator[Any]:
        """The block for asynchronous code."""
        from bedstone.transactions.manager import current

        scope = current()
        async with self.database.connect() as db:
            if not isinstance(db, AsyncConnection):
                raise self._mismatch("`with`")
            await self._ready(db)
            (branch,) = await scope.enlist(Branch(0, Mode.XA, self.resource()))
            async with scope.attempt():
                try:
                    if db.dialect is Dialect.MYSQL:
                        await db.execute(statements.start(scope.xid, branch.number))
                    else:
                        await db.begin(ours=True)
                    tried = statements.tried(db.dialect, scope.xid, branch.number)
                    entered = await db.run(tried)
                    _check(entered, scope.xid, branch.number)
                    yield db.raw
                    with proving():
                        await db.run(statements.prepare(db.dialect, scope.xid, branch.number))
                finally:
                    await self._leave(db)

    @contextmanager
    def blocking(self) -> Iterator[Any]:
        """The block for blocking code."""
        from bedstone.transactions.manager import current

        scope = current()
        if self.database.is_async:
            raise self._mismatch("`async with`")
        with self.database.connect_sync() as db:
            self._ready_sync(db)
            (branch,) = scope.enlist_sync(Branch(0, Mode.XA, self.resource()))
            with scope.attempt_sync():
                try:
                    if db.dialect is Dialect.MYSQL:
                        db.execute(statements.start(scope.xid, branch.number))
                    else:
                        db.begin()
                    entered = db.run(statements.tried(db.dialect, scope.xid, branch.number))
                    _check(entered, scope.xid, branch.number)
                    scope.check_time()  # a thread may have been paused, past its own CANCEL
                    yield db.raw
                    with proving():
                        db.run(statements.prepare(db.dialect, scope.xid, branch.number))
                finally:
                    self._leave_sync(db)

    async def _ready(self, db: AsyncConnection) -> None:
        if not self._prepared:
            async with db.alone() as plain:
                await plain.run(statements.ready(plain.dialect))
            if db.in_transaction():  # SQLAlchemy began one of its own for this
                await db.rollback()
            self._prepared = True

    def _ready_sync(self, db: SyncConnection) -> None:
        if not self._prepared:
            with db.alone() as plain:
                plain.run(statements.ready(plain.dialect))
            if db.in_transaction():
                db.rollback()
            self._prepared = True

    async def _leave(self, db: AsyncConnection) -> None:
        """Let the connection go: MariaDB then rolls back, unless it has prepared."""
        if db.dialect is Dialect.MYSQL:
            await db.discard()
            return
        try:
            await db.rollback()
        except Error:
            await db.discard()

    def _leave_sync(self, db: SyncConnection) -> None:
        if db.dialect is Dialect.MYSQL:
            db.discard()
            return
        try:
            db.rollback()
        except Error:
            db.discard()

    async def _second_async(self, transaction: Transaction, branch: Branch, phase: Phase) -> None:
        async with self.database.connect() as db:
            if not isinstance(db, AsyncConnection):
                raise self._mismatch("`with`")
            await self._ready(db)
            async with db.alone() as plain:
                await plain.run(
                    statements.finish(plain.dialect, transaction.xid, branch.number, phase)
                )

    def _second_sync(self, transaction: Transaction, branch: Branch, phase: Phase) -> None:
        with self.database.connect_sync() as db:
            self._ready_sync(db)
            with db.alone() as plain:
                plain.run(statements.finish(plain.dialect, transaction.xid, branch.number, phase))

    def _mismatch(self, block: str) -> InvalidError:
        return InvalidError(
            f"{self.name}: the block doesn't fit the database {self.database.name}",
            hint=f"write {block}, or pass another engine, pool or function",
        )


class Block:
    """A local transaction that becomes a branch. Entered once, by `async with` or `with`."""

    def __init__(self, owner: XA) -> None:
        self._owner = owner
        self._async: AbstractAsyncContextManager[Any] | None = None
        self._sync: AbstractContextManager[Any] | None = None

    async def __aenter__(self) -> Any:
        self._async = self._owner.asynchronous()
        return await self._async.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        assert self._async is not None  # noqa: S101 - it was entered
        return await self._async.__aexit__(kind, error, trace)

    def __enter__(self) -> Any:
        self._sync = self._owner.blocking()
        return self._sync.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        assert self._sync is not None  # noqa: S101
        return self._sync.__exit__(kind, error, trace)


def xa(source: Source, *, name: str = "", transactions: Host | None = None) -> XA:
    """Make a database's local transactions branches.

    Args:
        source: see `databases.Source`.
        name: the participant's name in the log; by default the database's.
        transactions: the manager; by default the process's own.
    """
    database = as_database(source)
    return XA(database, name or database.name.rpartition("/")[2], transactions)


@dataclass(frozen=True, slots=True)
class Leftover:
    """A prepared transaction that no coordinator will end.

    Args:
        xid: the transaction.
        number: the branch.
        state: how it ended by the log; None when the log never knew it.
    """

    xid: str
    number: int
    state: State | None


async def leftovers(source: Source, log: Log) -> tuple[Leftover, ...]:
    """Prepared transactions of ours whose transaction has ended, or is none of the log's.

    They hold locks. Another domain's that uses the same database counts as unknown here, so a
    person decides: `ROLLBACK PREPARED 'bedstone:XID:BRANCH'`, or `XA ROLLBACK`.
    """
    database = as_database(source)
    before = await _listed(database)
    states: dict[str, State | None] = {}
    for xid, _ in before:
        if xid not in states:
            try:
                states[xid] = (await log.get(xid)).state
            except UnknownTransactionError:
                states[xid] = None
    still = set(await _listed(database))  # phase two may have ended some meanwhile
    return tuple(
        Leftover(xid, number, state)
        for xid, number in before
        if (xid, number) in still and ((state := states[xid]) is None or state.ended)
    )


async def _listed(database: Database) -> tuple[tuple[str, int], ...]:
    async with database.connect() as db:
        if isinstance(db, AsyncConnection):
            async with db.alone() as plain:
                return await plain.run(statements.leftovers(plain.dialect))
        with db.alone() as blocking:
            return blocking.run(statements.leftovers(blocking.dialect))


def _check(entered: Entered, xid: str, number: int) -> None:
    if entered is Entered.SUSPENDED:
        raise TransactionDecidedError(
            f"branch {number} of transaction {xid} was cancelled before it began; nothing was done"
        )
    if entered is not Entered.PROCEED:
        raise InvalidError(f"branch {number} of transaction {xid} was tried before")
