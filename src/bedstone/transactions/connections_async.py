"""Asynchronous drivers: psycopg, asyncpg, asyncmy, aiosqlite, and SQLAlchemy's."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from bedstone.transactions.connections import (
    OPENINGS,
    AsyncConnection,
    adapt,
    failed_before,
    translated,
)
from bedstone.transactions.connections_sync import (
    bound,
    gathered,
    psycopg_status,
    sqlite_implicit,
)
from bedstone.transactions.sql import Dialect, Query, Result, Style, literal
from bedstone.transactions.sqlalchemy_dialects import NO_PARAMETERS, dialect_of, refuse_autocommit

_GIVES_ROWS = re.compile(
    r"\s*(select|with|values|show|table|explain|fetch)\b|.*\breturning\b", re.IGNORECASE | re.DOTALL
)


class Psycopg(AsyncConnection):
    """`psycopg.AsyncConnection`."""

    dialect = Dialect.POSTGRES

    def __init__(self, raw: Any) -> None:
        super().__init__(raw)
        self._used = False

    def in_transaction(self) -> bool:
        """Ask what the server said last."""
        return psycopg_status(self.raw) in {"INTRANS", "INERROR", "ACTIVE"}

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[AsyncConnection]:
        """Switch to autocommit for the block."""
        before = self.raw.autocommit
        await self.raw.set_autocommit(True)
        try:
            yield self
        finally:
            if not self.in_transaction() and not self.raw.closed:
                await self.raw.set_autocommit(before)

    async def _begin(self) -> None:
        self._used = False  # psycopg begins with the first statement
        if self.raw.autocommit:
            await self.raw.execute("BEGIN")

    async def _prove(self) -> None:
        status = psycopg_status(self.raw)
        if status == "INERROR" or (self._used and status == "IDLE"):
            raise failed_before()

    async def _commit(self) -> None:
        await self.raw.commit()

    async def _rollback(self) -> None:
        await self.raw.rollback()

    async def _execute(self, query: Query) -> Result:
        from psycopg.rows import tuple_row

        text, parameters = bound(query, Style.FORMAT)
        async with self.raw.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(text, parameters)
            self._used = self._begun
            return gathered(cursor, await cursor.fetchall() if cursor.description else ())


class Asyncpg(AsyncConnection):
    """`asyncpg.Connection`, or what its pool gives. No rows, no columns' names.

    A local transaction of ours is entered in asyncpg's own books, so that `raw.transaction()`
    inside it is a savepoint; its BEGIN and COMMIT are sent from here: the one together with what
    follows, the other so that its answer is seen, which is ROLLBACK for one that has failed.
    """

    dialect = Dialect.POSTGRES

    def __init__(self, raw: Any) -> None:
        super().__init__(raw)
        self._transaction: Any = None
        self._due = False

    def in_transaction(self) -> bool:
        """Ask what the server said last."""
        return bool(self.raw.is_in_transaction())

    async def _begin(self) -> None:
        transaction = self.raw.transaction()
        await transaction.start()
        self._transaction = transaction

    async def _begin_with_next(self) -> None:
        self._due = True

    async def _prove(self) -> None:
        if self._begun and not self._due and not self.in_transaction():
            raise failed_before()

    async def _commit(self) -> None:
        if not self._due:
            try:
                answer = await self.raw.execute("COMMIT")
            finally:
                self._ended()
            if answer != "COMMIT":
                raise failed_before()
        self._due = False

    async def _rollback(self) -> None:
        self._due = False
        self._ended()
        if not self.raw.is_closed() and self.in_transaction():
            await self.raw.execute("ROLLBACK")

    def _ended(self) -> None:
        """Take our transaction out of asyncpg's books."""
        transaction, self._transaction = self._transaction, None
        if transaction is not None and transaction._connection._top_xact is transaction:  # noqa: SLF001
            transaction._connection._top_xact = None  # noqa: SLF001

    async def _execute(self, query: Query) -> Result:
        text, parameters = bound(query, Style.NUMBERED)
        if self._due:
            self._due = False
            together = None if query.native or _GIVES_ROWS.match(text) else literal(query)
            if together is not None:
                return await self._open(together)
            await self._begin()
        arguments = tuple(parameters or ())
        if not _GIVES_ROWS.match(text):
            return Result(count=_counted(await self.raw.execute(text, *arguments)))
        records = await self.raw.fetch(text, *arguments)
        columns = tuple(records[0].keys()) if records else ()
        return Result(tuple(tuple(record) for record in records), columns, len(records))

    async def _open(self, text: str) -> Result:
        """Begin, and run a statement without parameters, in one round trip."""
        from asyncpg.transaction import TransactionState  # type: ignore[import-untyped]

        transaction = self._transaction = self.raw.transaction()
        transaction._state = TransactionState.STARTED  # noqa: SLF001
        transaction._connection._top_xact = transaction  # noqa: SLF001
        return Result(count=_counted(await self.raw.execute(f"BEGIN; {text}")))


class Asyncmy(AsyncConnection):
    """`asyncmy.Connection`."""

    dialect = Dialect.MYSQL

    def in_transaction(self) -> bool:
        """Ask what the server said last."""
        return bool(self.raw.get_transaction_status())

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[AsyncConnection]:
        """Switch to autocommit for the block."""
        before = self.raw.get_autocommit()
        with translated():
            await self.raw.autocommit(True)  # noqa: FBT003 - its signature
        try:
            yield self
        finally:
            if self.raw.connected:
                try:
                    await self.raw.autocommit(before)
                except Exception:  # noqa: BLE001 - lost; the block's own error says more
                    await self.discard()

    async def _begin(self) -> None:
        await self.raw.begin()
        await self._execute(Query(OPENINGS[self.dialect]))

    async def _commit(self) -> None:
        await self.raw.commit()

    async def _rollback(self) -> None:
        await self.raw.rollback()

    async def _execute(self, query: Query) -> Result:
        from asyncmy.cursors import Cursor

        text, parameters = bound(query, Style.FORMAT)
        async with self.raw.cursor(Cursor) as cursor:
            await cursor.execute(text, parameters)
            return gathered(cursor, await cursor.fetchall() if cursor.description else ())


class Aiosqlite(AsyncConnection):
    """`aiosqlite.Connection`."""

    dialect = Dialect.SQLITE

    def in_transaction(self) -> bool:
        """Ask the library; one that opens transactions by itself has none that counts."""
        return bool(self.raw.in_transaction) and (self._begun or not self._implicit())

    def _implicit(self) -> bool:
        return sqlite_implicit(self.raw._conn)  # noqa: SLF001 - it tells nobody else

    async def _begin(self) -> None:
        if not self._implicit():
            await self.raw.execute(OPENINGS[self.dialect])

    async def _commit(self) -> None:
        if self._implicit():
            await self.raw.commit()
        elif self.raw.in_transaction:
            await self.raw.execute("COMMIT")

    async def _rollback(self) -> None:
        if self._implicit():
            await self.raw.rollback()
        elif self.raw.in_transaction:
            await self.raw.execute("ROLLBACK")

    async def _execute(self, query: Query) -> Result:
        text, parameters = bound(query, Style.QMARK)
        async with self.raw.execute(text, parameters or ()) as cursor:
            return gathered(cursor, await cursor.fetchall() if cursor.description else ())


class SQLAlchemy(AsyncConnection):
    """`sqlalchemy.ext.asyncio.AsyncConnection`."""

    def __init__(self, raw: Any) -> None:
        super().__init__(raw)
        self.dialect, self.style = dialect_of(self._bind())

    def in_transaction(self) -> bool:
        """Ask SQLAlchemy."""
        return bool(self.raw.in_transaction())

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[AsyncConnection]:
        """Go to the driver's own connection."""
        pooled = await (await self._connection()).get_raw_connection()
        driver = adapt(pooled.driver_connection)
        if not isinstance(driver, AsyncConnection):
            raise TypeError(f"got {driver!r}, expected an asynchronous driver")
        async with driver.alone() as connection:
            yield connection

    async def _discard(self) -> None:
        await self.raw.invalidate()

    def _bind(self) -> Any:
        return self.raw

    async def _connection(self) -> Any:
        return self.raw

    async def _begin(self) -> None:
        await self.raw.begin()
        connection = await self._connection()
        driver = await connection.get_raw_connection()
        refuse_autocommit(connection.dialect, driver.dbapi_connection)
        if self.dialect in OPENINGS and not await self._sqlite_open():
            await self._execute(Query(OPENINGS[self.dialect]))

    async def _prove(self) -> None:
        if self._begun and self.dialect is Dialect.SQLITE and not await self._sqlite_open():
            raise failed_before()
        await super()._prove()

    async def _sqlite_open(self) -> bool:
        """Whether SQLite has a transaction open, whatever SQLAlchemy believes."""
        if self.dialect is not Dialect.SQLITE:
            return False
        driver = await (await self._connection()).get_raw_connection()
        return bool(driver.driver_connection.in_transaction)

    async def _commit(self) -> None:
        await self.raw.commit()

    async def _rollback(self) -> None:
        await self.raw.rollback()

    async def _execute(self, query: Query) -> Result:
        text, parameters = bound(query, self.style)
        options = None if parameters else NO_PARAMETERS
        connection = await self._connection()
        found = await connection.exec_driver_sql(text, parameters, execution_options=options)
        if not found.returns_rows:
            return Result(count=found.rowcount)
        columns = tuple(found.keys())
        return Result(tuple(tuple(row) for row in found), columns, found.rowcount)


class SQLAlchemySession(SQLAlchemy):
    """`sqlalchemy.ext.asyncio.AsyncSession`."""

    def _bind(self) -> Any:
        return self.raw.get_bind()

    async def _connection(self) -> Any:
        return await self.raw.connection()

    async def _prove(self) -> None:
        await self.raw.flush()
        await super()._prove()


def _counted(tag: str) -> int:
    """The rows touched, from a command tag such as `UPDATE 3`."""
    last = tag.rpartition(" ")[2]
    return int(last) if last.isdigit() else -1
