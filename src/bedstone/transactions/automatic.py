"""AT: SQL inside a transaction is undone automatically when the transaction aborts.

Owns `automatic`, and `Automatic`, one instrumented database: a resource `at/NAME`.

```python
accounts = automatic("postgresql://…", name="accounts")
async with transaction():
    async with accounts.connect() as connection:  # or accounts.wrap(a connection of yours)
        await connection.execute("UPDATE accounts SET balance = balance - 5 WHERE id = 1")
        await connection.commit()
```

Rules:
- A local commit inside a transaction commits: others see it before the transaction's end. Those who
  must not, read with `SELECT … FOR UPDATE` inside a transaction, which waits for global locks.
- Writes to the same rows that are not instrumented are not prevented; undo finds them, and stops
  with a `StuckError`. Every writer of these tables should be instrumented.
- What can't be undone is refused before it runs (see `statements` and `catalogue`).
- Every process that may own such transactions makes the same `automatic(…, name=…)`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from bedstone.errors import Error, InvalidError, UnavailableError
from bedstone.telemetry import context as telemetry
from bedstone.transactions import barrier, undo
from bedstone.transactions.automatic_sessions import Policy
from bedstone.transactions.connections import AsyncConnection, SyncConnection
from bedstone.transactions.databases import Database, Source, database
from bedstone.transactions.errors import StuckError
from bedstone.transactions.manager import Transactions, process, register
from bedstone.transactions.model import Branch, Phase, Transaction
from bedstone.transactions.recording import Catalogue
from bedstone.transactions.router import neutral
from bedstone.transactions.scope import Scope, innermost
from bedstone.transactions.sql import Dialect

PREFIX = "at/"
_BATCH = 64


class Automatic:
    """One database whose SQL is recorded inside transactions.

    Args:
        source: where phase two gets its connections, and `connect` those that it wraps.
        name: the database's, the same in every process that writes it: global locks begin with it.
        transactions: the manager; by default the process's own, at each use.
        policy: how patient and how bounded.
    """

    def __init__(
        self,
        source: Source,
        name: str,
        *,
        transactions: Transactions | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.name = name
        self.database: Database = database(source)
        self.policy = policy or Policy()
        self._own = transactions
        self._catalogues: dict[Dialect, Catalogue] = {}
        self._prepared = False
        self._confirming = _Confirming(self.database)
        second = self._second_async if self.database.is_async else self._second_sync
        if transactions is None:
            register(PREFIX + name, second, self.database)
        else:
            transactions.participant(PREFIX + name, second, self.database)

    def __repr__(self) -> str:
        return f"Automatic({self.name!r}, {self.database!r})"

    def wrap(self, connection: Any) -> Any:
        """A connection with the same methods, whose SQL is recorded inside transactions.

        Raises:
            InvalidError: the driver is not supported.
        """
        from bedstone.transactions.automatic_proxies import wrapped

        return wrapped(self, connection)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Any]:
        """A wrapped connection of the database's source."""
        async with self.database.connect() as connection:
            await self.prepare_async(_asynchronous(connection))
            yield self.wrap(connection.raw)

    @contextmanager
    def connect_sync(self) -> Iterator[Any]:
        """`connect` for blocking code."""
        with self.database.connect_sync() as connection:
            self.prepare(connection)
            yield self.wrap(connection.raw)

    def scope(self) -> Scope | None:
        """The transaction that the running code is in.

        Raises:
            InvalidError: it is another manager's, who could not reach this participant.
        """
        xid = telemetry.current().transaction
        if xid is None:
            return None
        scope = innermost() or Scope.of_request(self._own or process(), xid)
        if self._own is not None and scope.transactions is not self._own:
            raise InvalidError(
                f"got a transaction of another manager than the database {self.name} has",
                hint="give automatic(…, transactions=…) the manager whose transactions it is in",
            )
        return scope

    def resource(self) -> str:
        """Who does phase two."""
        return (self._own or process()).resource(PREFIX + self.name)

    def catalogue(self, dialect: Dialect) -> Catalogue:
        """What is known of its tables."""
        return self._catalogues.setdefault(dialect, Catalogue(dialect))

    def prepare(self, connection: SyncConnection) -> None:
        """Make Bedstone's tables where they are missing; apart from a transaction that is open.

        A second connection is taken only to make them while the first is in a transaction: a pool
        may have no other one.
        """
        if self._prepared or (connection.in_transaction() and self.prepared(connection)):
            return
        with neutral():
            if not connection.in_transaction():
                self._ensure(connection)
            else:
                with self.database.connect_sync() as other:
                    self._ensure(other)
        self._prepared = True

    def prepared(self, connection: SyncConnection) -> bool:
        """Whether Bedstone's tables are there, as this connection sees it."""
        self._prepared = self._prepared or connection.run(undo.present(connection.dialect))
        return self._prepared

    async def prepare_async(self, connection: AsyncConnection | None) -> None:
        """Likewise."""
        if self._prepared:
            return
        with neutral():
            if connection is not None and not connection.in_transaction():
                await self._ensure_async(connection)
            elif connection is None or not await connection.run(undo.present(connection.dialect)):
                async with self.database.connect() as other:
                    await self._ensure_async(_asynchronous(other))
        self._prepared = True

    def _ensure(self, db: SyncConnection) -> None:
        db.begin()
        try:
            db.run(undo.ensure(db.dialect))
            db.rollback() if db.dialect is Dialect.MYSQL else db.commit()  # it has committed
        except BaseException:
            db.rollback()
            raise

    async def _ensure_async(self, db: AsyncConnection) -> None:
        await db.begin()
        try:
            await db.run(undo.ensure(db.dialect))
            await (db.rollback() if db.dialect is Dialect.MYSQL else db.commit())
        except BaseException:
            await db.rollback()
            raise

    def _second_sync(self, transaction: Transaction, branch: Branch, phase: Phase) -> None:
        number = str(branch.number)
        with self.database.connect_sync() as db:
            self.prepare(db)
            db.begin()
            try:
                if phase is Phase.CONFIRM:
                    with _patient(branch):
                        db.run(undo.confirm(db.dialect, [(transaction.xid, number)]))
                else:
                    db.run(undo.cancel(db.dialect, transaction.xid, number, branch.resource))
                db.commit()
            except BaseException:
                db.rollback()
                raise

    async def _second_async(self, transaction: Transaction, branch: Branch, phase: Phase) -> None:
        number = str(branch.number)
        if phase is Phase.CONFIRM:
            with _patient(branch):
                await self._confirming.confirm((transaction.xid, number))
            return
        async with self.database.connect() as found:
            db = _asynchronous(found)
            await self.prepare_async(db)
            await db.begin()
            try:
                await db.run(undo.cancel(db.dialect, transaction.xid, number, branch.resource))
                await db.commit()
            except BaseException:
                await db.rollback()
                raise


class _Confirming:
    """Drops the records of branches that are confirmed at the same time in one local transaction.

    Whoever comes first works for all that came meanwhile.
    """

    def __init__(self, source: Database) -> None:
        self._database = source
        self._waiting: list[tuple[tuple[str, str], asyncio.Future[None]]] = []
        self._turn = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def confirm(self, branch: tuple[str, str]) -> None:
        """Drop one branch's record, with others'."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._turn, self._waiting = loop, asyncio.Lock(), []
        place = (branch, loop.create_future())
        done = place[1]
        self._waiting.append(place)
        try:
            async with self._turn:
                while not done.done():
                    await self._next()
            await done
        finally:
            done.cancel()
            if place in self._waiting:
                self._waiting.remove(place)

    async def _next(self) -> None:
        batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
        try:
            try:
                await self._drop([branch for branch, _ in batch])
            except StuckError:
                await self._one_by_one(batch)
        except BaseException as error:
            told = error if isinstance(error, Exception) else _interrupted()
            for _, done in batch:
                _fail(done, told)
            if not isinstance(error, Exception):
                raise
        for _, done in batch:
            _succeed(done)

    async def _one_by_one(
        self, batch: Sequence[tuple[tuple[str, str], asyncio.Future[None]]]
    ) -> None:
        """Find out whose record is missing; the others' are dropped."""
        for branch, done in batch:
            try:
                await self._drop([branch])
            except StuckError as error:
                _fail(done, error)

    async def _drop(self, branches: list[tuple[str, str]]) -> None:
        async with self._database.connect() as found:
            db = _asynchronous(found)
            await db.begin()
            try:
                await db.run(undo.confirm(db.dialect, branches))
                await db.commit()
            except BaseException:
                await db.rollback()
                raise


@contextmanager
def _patient(branch: Branch) -> Iterator[None]:
    """A local transaction that is not there yet may still be under way."""
    try:
        yield
    except StuckError as error:
        if branch.attempts >= barrier.UNDER_WAY:
            raise
        raise UnavailableError(f"{error.message}; it may be under way") from error


def _interrupted() -> Error:
    return UnavailableError("the confirmation was interrupted; it is asked again")


def _fail(done: asyncio.Future[None], error: Exception) -> None:
    if not done.done():
        done.set_exception(error)


def _succeed(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def _asynchronous(connection: SyncConnection | AsyncConnection) -> AsyncConnection:
    if not isinstance(connection, AsyncConnection):
        raise InvalidError(f"got a blocking connection from {connection.raw!r}, expected another")
    return connection


def automatic(
    source: Source,
    *,
    name: str,
    transactions: Transactions | None = None,
    lock_wait: float = 0.0,
    rows: int = Policy().rows,
) -> Automatic:
    """Record and undo the SQL of a database.

    A SQLAlchemy engine is instrumented: all its connections and sessions are recorded, and are used
    as before. Of other sources take connections with `connect`, or `wrap` yours.

    Args:
        source: a URL, an engine, a pool, or a function that gives connections.
        name: the database's, the same in every process that writes it.
        transactions: the manager; by default the process's own.
        lock_wait: seconds to wait for a row that another transaction holds.
        rows: how many rows one statement may touch.

    Raises:
        InvalidError: the source is not supported, or the name is taken.
    """
    policy = Policy(lock_wait=lock_wait, rows=rows)
    made = Automatic(source, name, transactions=transactions, policy=policy)
    if type(source).__module__.startswith("sqlalchemy"):
        from bedstone.transactions.automatic_sqlalchemy import instrument

        instrument(made, source)
    return made
