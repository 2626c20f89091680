"""Blocking drivers: psycopg, PyMySQL, sqlite3, and SQLAlchemy's Connection and Session."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bedstone.transactions.connections import (
    OPENINGS,
    SyncConnection,
    adapt,
    failed_before,
    translated,
)
from bedstone.transactions.sql import Dialect, Query, Result, Style, rendered
from bedstone.transactions.sqlalchemy_dialects import NO_PARAMETERS, dialect_of, refuse_autocommit


class Psycopg(SyncConnection):
    """`psycopg.Connection`."""

    dialect = Dialect.POSTGRES

    def __init__(self, raw: Any) -> None:
        super().__init__(raw)
        self._used = False

    def in_transaction(self) -> bool:
        """Ask what the server said last."""
        return psycopg_status(self.raw) in {"INTRANS", "INERROR", "ACTIVE"}

    @contextmanager
    def alone(self) -> Iterator[SyncConnection]:
        """Switch to autocommit for the block."""
        before = self.raw.autocommit
        self.raw.autocommit = True
        try:
            yield self
        finally:
            if not self.in_transaction() and not self.raw.closed:
                self.raw.autocommit = before

    def _begin(self) -> None:
        self._used = False  # psycopg begins with the first statement
        if self.raw.autocommit:
            self.raw.execute("BEGIN")

    def _prove(self) -> None:
        status = psycopg_status(self.raw)
        if status == "INERROR" or (self._used and status == "IDLE"):
            raise failed_before()

    def _commit(self) -> None:
        self.raw.commit()

    def _rollback(self) -> None:
        self.raw.rollback()

    def _execute(self, query: Query) -> Result:
        from psycopg.rows import tuple_row

        text, parameters = bound(query, Style.FORMAT)
        with self.raw.cursor(row_factory=tuple_row) as cursor:
            cursor.execute(text, parameters)
            self._used = self._begun
            return gathered(cursor, cursor.fetchall() if cursor.description else ())


class PyMySQL(SyncConnection):
    """`pymysql.Connection`."""

    dialect = Dialect.MYSQL

    def in_transaction(self) -> bool:
        """Ask what the server said last."""
        return bool(self.raw.server_status & 1)  # SERVER_STATUS_IN_TRANS

    @contextmanager
    def alone(self) -> Iterator[SyncConnection]:
        """Switch to autocommit for the block."""
        before = self.raw.get_autocommit()
        with translated():
            self.raw.autocommit(True)  # noqa: FBT003 - its signature
        try:
            yield self
        finally:
            if self.raw.open:
                try:
                    self.raw.autocommit(before)
                except Exception:  # noqa: BLE001 - lost; the block's own error says more
                    self.discard()

    def _begin(self) -> None:
        self.raw.begin()
        self._execute(Query(OPENINGS[self.dialect]))

    def _commit(self) -> None:
        self.raw.commit()

    def _rollback(self) -> None:
        self.raw.rollback()

    def _execute(self, query: Query) -> Result:
        from pymysql.cursors import Cursor

        text, parameters = bound(query, Style.FORMAT)
        with self.raw.cursor(Cursor) as cursor:
            cursor.execute(text, parameters)
            return gathered(cursor, cursor.fetchall() if cursor.description else ())


class SQLite(SyncConnection):
    """`sqlite3.Connection`."""

    dialect = Dialect.SQLITE

    def in_transaction(self) -> bool:
        """Ask the library; one that opens transactions by itself has none that counts."""
        return bool(self.raw.in_transaction) and (self._begun or not sqlite_implicit(self.raw))

    def _begin(self) -> None:
        if not sqlite_implicit(self.raw):
            self.raw.execute(OPENINGS[self.dialect])

    def _commit(self) -> None:
        if sqlite_implicit(self.raw):
            self.raw.commit()
        elif self.raw.in_transaction:
            self.raw.execute("COMMIT")

    def _rollback(self) -> None:
        if sqlite_implicit(self.raw):
            self.raw.rollback()
        elif self.raw.in_transaction:
            self.raw.execute("ROLLBACK")

    def _execute(self, query: Query) -> Result:
        text, parameters = bound(query, Style.QMARK)
        cursor = sqlite3.Cursor(self.raw)
        try:
            cursor.row_factory = None
            cursor.execute(text, parameters or ())
            return gathered(cursor, cursor.fetchall() if cursor.description else ())
        finally:
            cursor.close()


class SQLAlchemy(SyncConnection):
    """`sqlalchemy.Connection`."""

    def __init__(self, raw: Any) -> None:
        super().__init__(raw)
        self.dialect, self.style = dialect_of(self._bind())

    def in_transaction(self) -> bool:
        """Ask SQLAlchemy."""
        return bool(self.raw.in_transaction())

    @contextmanager
    def alone(self) -> Iterator[SyncConnection]:
        """Go to the driver's own connection."""
        driver = adapt(self._connection().connection.driver_connection)
        if not isinstance(driver, SyncConnection):
            raise TypeError(f"got {driver!r}, expected a blocking driver")
        with driver.alone() as connection:
            yield connection

    def _discard(self) -> None:
        self.raw.invalidate()

    def _bind(self) -> Any:
        return self.raw

    def _connection(self) -> Any:
        return self.raw

    def _begin(self) -> None:
        self.raw.begin()
        driver = self._connection().connection
        refuse_autocommit(self._connection().dialect, driver.dbapi_connection)
        if self.dialect in OPENINGS and not self._sqlite_open():
            self._execute(Query(OPENINGS[self.dialect]))

    def _prove(self) -> None:
        if self._begun and self.dialect is Dialect.SQLITE and not self._sqlite_open():
            raise failed_before()
        super()._prove()

    def _sqlite_open(self) -> bool:
        """Whether SQLite has a transaction open, whatever SQLAlchemy believes."""
        if self.dialect is not Dialect.SQLITE:
            return False
        return bool(self._connection().connection.driver_connection.in_transaction)

    def _commit(self) -> None:
        self.raw.commit()

    def _rollback(self) -> None:
        self.raw.rollback()

    def _execute(self, query: Query) -> Result:
        text, parameters = bound(query, self.style)
        options = None if parameters else NO_PARAMETERS
        found = self._connection().exec_driver_sql(text, parameters, execution_options=options)
        if not found.returns_rows:
            return Result(count=found.rowcount)
        columns = tuple(found.keys())
        return Result(tuple(tuple(row) for row in found), columns, found.rowcount)


class SQLAlchemySession(SQLAlchemy):
    """`sqlalchemy.orm.Session`."""

    def _bind(self) -> Any:
        return self.raw.get_bind()

    def _connection(self) -> Any:
        return self.raw.connection()

    def _prove(self) -> None:
        self.raw.flush()
        super()._prove()


def psycopg_status(raw: Any) -> str:
    """What the server said of the transaction last: IDLE, INTRANS, INERROR, ACTIVE or UNKNOWN."""
    name: str = raw.info.transaction_status.name
    return name


def sqlite_implicit(raw: Any) -> bool:
    """Whether the connection keeps a transaction open always (Python 3.12, `autocommit=False`)."""
    return getattr(raw, "autocommit", None) is False


def bound(query: Query, style: Style) -> tuple[str, Any]:
    """The text and the parameters for a driver; None for none, so that it looks for no marks."""
    if query.native:
        return query.text, query.parameters or None
    text, parameters = rendered(query, style)
    return text, parameters or None


def gathered(cursor: Any, rows: Any) -> Result:
    """What a PEP 249 cursor holds."""
    columns = tuple(column[0] for column in cursor.description or ())
    return Result(tuple(tuple(row) for row in rows), columns, cursor.rowcount)
