"""Where a participant gets its connections: a URL, an engine, a pool, or a function.

Rules:
- A connection is taken for one use and given back after it; what was left open in it is rolled
  back first, so that a pool never passes on half a transaction.
- A URL opens a new connection for each use. Services with load pass their engine or pool.
- Messages name a database without its password.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any, TypeAlias
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from bedstone.errors import InvalidError
from bedstone.transactions.connections import (
    SUPPORTED,
    AsyncConnection,
    SyncConnection,
    adapt,
    supported,
    translated,
)

Source: TypeAlias = Any
"""A URL (postgresql, mysql, mariadb or sqlite), a SQLAlchemy Engine or AsyncEngine, a pool of
psycopg_pool or asyncpg, or a function without arguments that gives a connection or a (perhaps
asynchronous) context manager of one. What a function gives as a connection is closed after use."""


class Database:
    """One database that connections come from.

    Args:
        name: for messages, without secrets.
        opening: gives a connection, a context manager of one, or an awaitable of either.
        is_async: whether its connections are asynchronous.
    """

    def __init__(self, name: str, opening: Callable[[], Any], *, is_async: bool) -> None:
        self.name = name
        self.is_async = is_async
        self._opening = opening

    def __repr__(self) -> str:
        return f"Database({self.name!r})"

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[SyncConnection | AsyncConnection]:
        """Take a connection. A blocking database's is taken and used in the calling thread.

        Raises:
            UnavailableError: the database can't be reached.
        """
        async with AsyncExitStack() as stack:
            with translated():
                connection = await _entered(self._opening(), stack)
            try:
                yield connection
            finally:
                if connection.in_transaction():
                    with suppress(Exception):  # a connection that can't is closed or discarded
                        await _maybe(connection.rollback())

    @contextmanager
    def connect_sync(self) -> Iterator[SyncConnection]:
        """Take a blocking connection, in the calling thread.

        Raises:
            InvalidError: the database's connections are asynchronous.
            UnavailableError: the database can't be reached.
        """
        if self.is_async:
            raise InvalidError(
                f"database {self.name} gives asynchronous connections, expected blocking ones",
                hint="use `async with`, or pass a blocking engine, pool or function",
            )
        with ExitStack() as stack:
            with translated():
                connection = _entered_sync(self._opening(), stack)
            try:
                yield connection
            finally:
                if connection.in_transaction():
                    with suppress(Exception):
                        connection.rollback()


def database(source: Source, *, is_async: bool | None = None) -> Database:
    """Make a database of what the developer has.

    Args:
        source: see `Source`; a `Database` is returned as it is.
        is_async: whether a function gives asynchronous connections, where that can't be seen.

    Raises:
        InvalidError: it is none of the supported sources.
    """
    if isinstance(source, Database):
        return source
    if isinstance(source, str):
        return _of_url(source)
    method = _method(source)
    if method is not None:
        name, known = method
        return Database(type(source).__name__, getattr(source, name), is_async=known)
    if callable(source):
        seen = _gives_async(source) if is_async is None else is_async
        return Database(getattr(source, "__name__", repr(type(source))), source, is_async=seen)
    raise InvalidError(
        f"got a {type(source).__module__}.{type(source).__qualname__}, expected a database",
        hint="pass a URL, a SQLAlchemy engine, a pool of psycopg_pool or asyncpg, or a function "
        f"that gives a connection of {SUPPORTED}",
    )


_METHODS = {
    ("sqlalchemy", "Engine"): ("connect", False),
    ("sqlalchemy", "AsyncEngine"): ("connect", True),
    ("sqlalchemy", "sessionmaker"): ("__call__", False),
    ("sqlalchemy", "async_sessionmaker"): ("__call__", True),
    ("psycopg_pool", "ConnectionPool"): ("connection", False),
    ("psycopg_pool", "AsyncConnectionPool"): ("connection", True),
    ("asyncpg", "Pool"): ("acquire", True),
    ("asyncmy", "Pool"): ("acquire", True),
}


def _method(source: object) -> tuple[str, bool] | None:
    for kind in type(source).__mro__:
        found = _METHODS.get((kind.__module__.partition(".")[0], kind.__name__))
        if found is not None:
            return found
    return None


def _gives_async(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    inner = inspect.unwrap(function)
    return inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)


async def _entered(
    given: Any, stack: AsyncExitStack, *, awaited: bool = False
) -> SyncConnection | AsyncConnection:
    if isinstance(given, SyncConnection | AsyncConnection):
        return given
    if supported(given):
        if not awaited:
            given = await _maybe(given)  # aiosqlite's is awaited to be opened, and only once
        stack.push_async_callback(_close, given)
        return adapt(given)
    if hasattr(given, "__aenter__"):
        return adapt(await stack.enter_async_context(given))
    if hasattr(given, "__enter__"):
        return adapt(stack.enter_context(given))
    if inspect.isawaitable(given):
        return await _entered(await given, stack, awaited=True)
    return adapt(given)


def _entered_sync(given: Any, stack: ExitStack) -> SyncConnection:
    if not isinstance(given, SyncConnection | AsyncConnection) and supported(given):
        stack.callback(_close_sync, given)
    elif hasattr(given, "__enter__"):
        given = stack.enter_context(given)
    connection = adapt(given)
    if isinstance(connection, AsyncConnection):
        raise InvalidError(
            f"got an asynchronous {type(given).__name__}, expected a blocking connection",
            hint="say database(..., is_async=True)",
        )
    return connection


async def _maybe(given: Any) -> Any:
    return await given if inspect.isawaitable(given) else given


async def _close(raw: Any) -> None:
    with suppress(Exception):  # one that can't be closed is closed
        await _maybe(raw.close())


def _close_sync(raw: Any) -> None:
    with suppress(Exception):
        raw.close()


def _of_url(url: str) -> Database:
    parts = urlsplit(url)
    match parts.scheme:
        case "postgres" | "postgresql":
            return Database(_shown(parts), lambda: _postgres(url), is_async=True)
        case "mysql" | "mariadb":
            return _mysql(parts)
        case "sqlite":
            return _sqlite(parts)
    raise InvalidError(
        f"got a database URL of scheme {parts.scheme!r}, expected postgresql, mysql, mariadb or "
        "sqlite"
    )


def _postgres(url: str) -> Any:
    import psycopg

    return psycopg.AsyncConnection.connect(url)


def _mysql(parts: SplitResult) -> Database:
    options: dict[str, Any] = {
        "host": parts.hostname or "localhost",
        "port": parts.port or 3306,
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "charset": "utf8mb4",
        "connect_timeout": 10,
    }
    if name := unquote(parts.path.strip("/")):
        options["database"] = name
    if socket := parse_qs(parts.query).get("unix_socket"):
        options["unix_socket"] = socket[0]
    if importlib.util.find_spec("asyncmy") is not None:
        return Database(_shown(parts), lambda: _asyncmy(options), is_async=True)
    return Database(_shown(parts), lambda: _pymysql(options), is_async=False)


def _asyncmy(options: dict[str, Any]) -> Any:
    import asyncmy

    return asyncmy.connect(**options)


def _pymysql(options: dict[str, Any]) -> Any:
    try:
        import pymysql
    except ImportError as error:
        raise InvalidError(
            "no driver for MySQL is installed", hint="install asyncmy or pymysql"
        ) from error
    return pymysql.connect(**options)


def _sqlite(parts: SplitResult) -> Database:
    path = unquote(parts.path)[1:] or ":memory:"  # sqlite:///relative, sqlite:////absolute
    if importlib.util.find_spec("aiosqlite") is not None:
        return Database(_shown(parts), lambda: _aiosqlite(path), is_async=True)
    return Database(_shown(parts), lambda: _sqlite3(path), is_async=False)


def _aiosqlite(path: str) -> Any:
    import aiosqlite

    return aiosqlite.connect(path)


def _sqlite3(path: str) -> Any:
    import sqlite3

    return sqlite3.connect(path)


def _shown(parts: SplitResult) -> str:
    """The URL without user, password and options."""
    address = f"{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}"
    return f"{parts.scheme}://{address}{parts.path}"
