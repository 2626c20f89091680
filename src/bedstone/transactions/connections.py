"""Connections: one face for every supported driver, blocking or asynchronous.

`adapt` recognises a developer's own connection and wraps it; the connection stays theirs.

Rules:
- Nothing is imported to recognise a connection, except the adapter of the driver that made it.
- `begin` refuses a connection that is in a transaction; what is in it would be committed too.
- `commit` returns only after the server has committed. A local transaction that the server has
  given up (PostgreSQL answers COMMIT with ROLLBACK then, MySQL starts another one) is an error.
- Errors are translated (see `sql_errors`), with the driver's own as `__cause__`; what is not
  recognised, and what a native query raises, passes through.
"""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeAlias, TypeVar

from bedstone.errors import InvalidError
from bedstone.transactions.sql import Dialect, Query, Result, Steps
from bedstone.transactions.sql_errors import meaning, number, state

T = TypeVar("T")

_SYNC = "bedstone.transactions.connections_sync"
_ASYNC = "bedstone.transactions.connections_async"
_ADAPTERS = {
    ("psycopg", "Connection"): (_SYNC, "Psycopg"),
    ("pymysql", "Connection"): (_SYNC, "PyMySQL"),
    ("sqlite3", "Connection"): (_SYNC, "SQLite"),
    ("sqlalchemy", "Connection"): (_SYNC, "SQLAlchemy"),
    ("sqlalchemy", "Session"): (_SYNC, "SQLAlchemySession"),
    ("sqlalchemy", "scoped_session"): (_SYNC, "SQLAlchemySession"),
    ("psycopg", "AsyncConnection"): (_ASYNC, "Psycopg"),
    ("asyncpg", "Connection"): (_ASYNC, "Asyncpg"),
    ("asyncpg", "PoolConnectionProxy"): (_ASYNC, "Asyncpg"),
    ("asyncmy", "Connection"): (_ASYNC, "Asyncmy"),
    ("aiosqlite", "Connection"): (_ASYNC, "Aiosqlite"),
    ("sqlalchemy", "AsyncConnection"): (_ASYNC, "SQLAlchemy"),
    ("sqlalchemy", "AsyncSession"): (_ASYNC, "SQLAlchemySession"),
    ("sqlalchemy", "async_scoped_session"): (_ASYNC, "SQLAlchemySession"),
}
OPENINGS = {
    Dialect.MYSQL: "SAVEPOINT bedstone_begin",
    Dialect.SQLITE: "BEGIN IMMEDIATE",  # a read that turns into a write would not wait
}
"""What follows a driver's own begin."""
PROOFS = {
    Dialect.POSTGRES: "SELECT 1",  # fails in a failed transaction, where COMMIT does not
    Dialect.MYSQL: "RELEASE SAVEPOINT bedstone_begin",  # gone with the transaction
}
_FAILED = "25P02"  # in_failed_sql_transaction
_NO_SAVEPOINT = 1305  # ER_SP_DOES_NOT_EXIST

SUPPORTED = (
    "psycopg, asyncpg, PyMySQL, asyncmy, sqlite3, aiosqlite, or a SQLAlchemy Connection, Session, "
    "AsyncConnection or AsyncSession"
)


class SyncConnection(ABC):
    """A blocking connection. Used by one thread at a time.

    Args:
        raw: the developer's own connection.
    """

    dialect: Dialect

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self._begun = False

    def begin(self) -> None:
        """Open a local transaction, at the latest with the next statement.

        Raises:
            InvalidError: one is open.
            UnavailableError: the database could not.
        """
        _refuse_open(open_=self.in_transaction())
        with translated():
            self._begin()
        self._begun = True

    def commit(self) -> None:
        """Commit; it is durable when this returns.

        Raises:
            UnknownOutcomeError: the connection was lost; it is committed or not.
            UnavailableError: nothing is committed; the same may succeed later.
            InvalidError: a statement in it had failed, and the error was dropped; roll back.
        """
        with translated(), proving():
            self._prove()
        with translated(committing=True):
            self._commit()
        self._begun = False

    def rollback(self) -> None:
        """Roll back; nothing happens when no transaction is open."""
        self._begun = False
        with translated():
            self._rollback()

    @contextmanager
    def alone(self) -> Iterator[SyncConnection]:
        """A connection, for the block, on which each statement stands alone; no SQLAlchemy.

        What must not stand in a transaction goes there, and explicit BEGIN and COMMIT.
        """
        yield self

    def discard(self) -> None:
        """Close it for good: a pool must not pass it on."""
        with suppress(Exception):  # it is gone then
            self._discard()

    def execute(self, query: Query) -> Result:
        """Run one statement.

        Raises:
            DuplicateError: a unique key exists.
            UnavailableError: deadlock, serialization failure, lock time-out or lost connection.
        """
        with translated(native=query.native):
            return self._execute(query)

    def run(self, steps: Steps[T]) -> T:
        """Have a conversation; an error is thrown into it at the query that failed."""
        try:
            query = next(steps)
            while True:
                try:
                    result = self.execute(query)
                except Exception as error:  # noqa: BLE001 - the conversation decides
                    query = steps.throw(error)
                else:
                    query = steps.send(result)
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            steps.close()

    def _prove(self) -> None:
        """Raise unless the transaction that was begun can still be committed."""
        if self._begun and not self.in_transaction():
            raise failed_before()
        if self._begun and (proof := PROOFS.get(self.dialect)):
            self._execute(Query(proof))

    @abstractmethod
    def in_transaction(self) -> bool:
        """Whether a local transaction is open, failed or not."""

    @abstractmethod
    def _begin(self) -> None: ...

    @abstractmethod
    def _commit(self) -> None: ...

    @abstractmethod
    def _rollback(self) -> None: ...

    def _discard(self) -> None:
        self.raw.close()

    @abstractmethod
    def _execute(self, query: Query) -> Result: ...


class AsyncConnection(ABC):
    """An asynchronous connection. Used by one task at a time. See `SyncConnection`.

    Args:
        raw: the developer's own connection.
    """

    dialect: Dialect

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self._begun = False

    async def begin(self, *, ours: bool = False) -> None:
        """Open a local transaction, at the latest with the next statement.

        Args:
            ours: the next statement comes by `execute`; drivers that can send both together.

        Raises:
            InvalidError: one is open.
            UnavailableError: the database could not.
        """
        _refuse_open(open_=self.in_transaction())
        with translated():
            await (self._begin_with_next() if ours else self._begin())
        self._begun = True

    async def commit(self) -> None:
        """Commit; it is durable when this returns.

        Raises:
            UnknownOutcomeError: the connection was lost; it is committed or not.
            UnavailableError: nothing is committed; the same may succeed later.
            InvalidError: a statement in it had failed, and the error was dropped; roll back.
        """
        with translated(), proving():
            await self._prove()
        with translated(committing=True):
            await self._commit()
        self._begun = False

    async def rollback(self) -> None:
        """Roll back; nothing happens when no transaction is open."""
        self._begun = False
        with translated():
            await self._rollback()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[AsyncConnection]:
        """A connection, for the block, on which each statement stands alone; no SQLAlchemy.

        What must not stand in a transaction goes there, and explicit BEGIN and COMMIT.
        """
        yield self

    async def discard(self) -> None:
        """Close it for good: a pool must not pass it on."""
        with suppress(Exception):  # it is gone then
            await self._discard()

    async def execute(self, query: Query) -> Result:
        """Run one statement.

        Raises:
            DuplicateError: a unique key exists.
            UnavailableError: deadlock, serialization failure, lock time-out or lost connection.
        """
        with translated(native=query.native):
            return await self._execute(query)

    async def run(self, steps: Steps[T]) -> T:
        """Have a conversation; an error is thrown into it at the query that failed."""
        try:
            query = next(steps)
            while True:
                try:
                    result = await self.execute(query)
                except Exception as error:  # noqa: BLE001 - the conversation decides
                    query = steps.throw(error)
                else:
                    query = steps.send(result)
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            steps.close()

    async def _prove(self) -> None:
        """Raise unless the transaction that was begun can still be committed."""
        if self._begun and not self.in_transaction():
            raise failed_before()
        if self._begun and (proof := PROOFS.get(self.dialect)):
            await self._execute(Query(proof))

    @abstractmethod
    def in_transaction(self) -> bool:
        """Whether a local transaction is open, failed or not."""

    @abstractmethod
    async def _begin(self) -> None: ...

    async def _begin_with_next(self) -> None:
        await self._begin()

    @abstractmethod
    async def _commit(self) -> None: ...

    @abstractmethod
    async def _rollback(self) -> None: ...

    async def _discard(self) -> None:
        closing = self.raw.close()
        if inspect.isawaitable(closing):
            await closing

    @abstractmethod
    async def _execute(self, query: Query) -> Result: ...


def adapt(raw: Any) -> SyncConnection | AsyncConnection:
    """Wrap a connection of any supported driver; one that is wrapped already is returned.

    Raises:
        InvalidError: it is of none.
    """
    if isinstance(raw, SyncConnection | AsyncConnection):
        return raw
    adapter = _adapter(raw)
    if adapter is not None:
        return adapter(raw)
    raise InvalidError(
        f"got a {type(raw).__module__}.{type(raw).__qualname__}, expected a connection",
        hint=f"pass a connection of {SUPPORTED}",
    )


def supported(raw: Any) -> bool:
    """Whether `adapt` knows a connection."""
    return _adapter(raw) is not None


class translated:  # noqa: N801 - a word in a `with`; a class, for it is around every statement
    """Give a driver's errors their meaning."""

    __slots__ = ("_committing", "_native")

    def __init__(self, *, committing: bool = False, native: bool = False) -> None:
        self._committing = committing
        self._native = native

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not self._native:
            known = meaning(error, committing=self._committing)
            if known is not None:
                raise known from error


class proving:  # noqa: N801
    """Tell a transaction that the server has given up from other errors."""

    __slots__ = ()

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and (
            state(error) == _FAILED or number(error) == _NO_SAVEPOINT
        ):
            raise failed_before() from error


def failed_before() -> InvalidError:
    """The error of a commit whose transaction has failed or is over."""
    return InvalidError(
        "the local transaction had failed, or was ended, before its commit; nothing is committed "
        "now",
        hint="let a failed statement's error pass, or run the statement in a savepoint; leave "
        "commit and rollback to Bedstone",
    )


def _adapter(raw: Any) -> _Adapter | None:
    kind = type(raw)
    if kind not in _known:
        names = [(it.__module__.partition(".")[0], it.__name__) for it in kind.__mro__]
        found = next((_ADAPTERS[name] for name in names if name in _ADAPTERS), None)
        _known[kind] = found and getattr(importlib.import_module(found[0]), found[1])
    return _known[kind]


def _refuse_open(*, open_: bool) -> None:
    if open_:
        raise InvalidError(
            "the connection is in a transaction, expected one that is not",
            hint="commit or roll back first, or use a connection of its own",
        )


_Adapter: TypeAlias = Callable[[Any], SyncConnection | AsyncConnection]
_known: dict[type, _Adapter | None] = {}
"""Adapters of the kinds of connections that have been seen."""
