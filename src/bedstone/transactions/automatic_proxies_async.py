"""Asynchronous connections and cursors that record: psycopg, asyncpg, asyncmy, aiosqlite.

Owns `wrapped_async`. The rules are those of `automatic_proxies`.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Coroutine, Generator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

from bedstone.errors import InvalidError
from bedstone.transactions.automatic_proxies import (
    Buffered,
    Proxy,
    implicit,
    rows_as,
    text_of,
)
from bedstone.transactions.automatic_sessions import WRITES, AsyncSession, Ran, inside
from bedstone.transactions.connections import AsyncConnection
from bedstone.transactions.sql import Dialect, Result, Style
from bedstone.transactions.statement_text import refused

if TYPE_CHECKING:
    from bedstone.transactions.automatic import Automatic


def wrapped_async(owner: Automatic, db: AsyncConnection, module: str) -> Any:
    """A proxy of an asynchronous driver's connection."""
    if module == "asyncpg":
        return AsyncpgProxy(AsyncSession(owner, db, Style.NUMBERED))
    style = Style.QMARK if db.dialect is Dialect.SQLITE else Style.FORMAT
    return AsyncConnectionProxy(AsyncSession(owner, db, style))


class _Later:
    """A cursor that is there when awaited, or inside `async with` (aiosqlite)."""

    def __init__(self, opening: Coroutine[Any, Any, AsyncCursorProxy]) -> None:
        self._opening = opening
        self._cursor: AsyncCursorProxy | None = None

    def __await__(self) -> Generator[Any, None, AsyncCursorProxy]:
        return self._opening.__await__()

    async def __aenter__(self) -> AsyncCursorProxy:
        self._cursor = await self._opening
        return self._cursor

    async def __aexit__(self, *_: object) -> None:
        if self._cursor is not None:
            await self._cursor.close()


class _Blocks(Proxy):
    """What asynchronous connections share: how a local transaction ends."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session.db.raw)
        self._session = session
        self._depth = 0

    async def commit(self) -> None:
        """Commit: inside a transaction as a branch of it.

        Raises:
            LockConflictError: another transaction holds a row; it is rolled back locally.
        """
        if self._session.recording:
            await self._session.commit()
        else:
            self._session.recorder = None
            await self._target.commit()

    async def rollback(self) -> None:
        """Roll back; nothing is enlisted."""
        self._session.recorder = None
        await self._target.rollback()

    async def _say(self, text: str) -> None:
        """Run a statement of ours on the developer's connection, recorded."""

        async def run(changed: str) -> Ran:
            await self._target.execute(changed)
            return -1, None

        await self._session.execute(text, None, run, autocommit=False)

    async def _enter(self) -> str:
        """Begin a block; the name of its savepoint, empty for the outermost."""
        if not self._session.db.in_transaction():
            await self._session.owner.prepare_async(self._session.db)
            await self._session.db.begin()
            return ""
        self._depth += 1
        name = f"bedstone_{self._depth}"
        await self._say(f"SAVEPOINT {name}")
        return name

    async def _leave(self, name: str, *, failed: bool) -> None:
        if not name:
            await (self._session.rollback() if failed else self._session.commit())
            return
        self._depth -= 1
        await self._say(f"ROLLBACK TO {name}" if failed else f"RELEASE {name}")


class AsyncConnectionProxy(_Blocks):
    """An asynchronous connection in the manner of PEP 249."""

    def cursor(self, *args: Any, **kwargs: Any) -> AsyncCursorProxy:
        """A cursor that records."""
        return AsyncCursorProxy(self._session, self._target.cursor(*args, **kwargs), self)

    def execute(self, query: Any, parameters: Any = None, **kwargs: Any) -> _Later:
        """Run a statement in a new cursor (psycopg, aiosqlite)."""
        return _Later(self.cursor().execute(query, parameters, **kwargs))

    def executemany(self, query: Any, parameters: Iterable[Any]) -> _Later:
        """Likewise, once for each set of parameters (aiosqlite)."""
        return _Later(self.cursor().executemany(query, parameters))

    @asynccontextmanager
    async def transaction(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """A block that commits, or a savepoint inside of one (psycopg)."""
        if not inside():
            async with self._target.transaction(*args, **kwargs) as block:
                yield block
            return
        name = await self._enter()
        try:
            yield self
        except BaseException:
            await self._leave(name, failed=True)
            raise
        await self._leave(name, failed=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        try:
            await (self.commit() if error is None else self.rollback())
        finally:
            closing = self._target.close()
            if inspect.isawaitable(closing):
                await closing


class AsyncCursorProxy(Proxy):
    """An asynchronous cursor in the manner of PEP 249."""

    def __init__(self, session: AsyncSession, cursor: Any, connection: _Blocks) -> None:
        super().__init__(cursor)
        self._session = session
        self._buffer = Buffered()
        self._count: int | None = None
        self._opened = not _later(cursor)
        self._connection = connection

    @property
    def connection(self) -> _Blocks:
        """The connection that it came from."""
        return self._connection

    async def _open(self) -> Self:
        if not self._opened:
            self._target = await self._target
            self._opened = True
        return self

    @property
    def rowcount(self) -> int:
        """Rows returned or touched."""
        return int(self._target.rowcount) if self._count is None else self._count

    async def execute(self, query: Any, parameters: Any = None, **kwargs: Any) -> Self:
        """Run a statement."""
        await self._open()
        self._buffer.rows, self._count = None, None
        given = () if parameters is None else (parameters,)
        if not inside():
            await self._target.execute(query, *given, **kwargs)
            return self
        raw = self._session.db.raw
        text = text_of(query, raw)

        async def run(changed: str) -> Ran:
            await self._target.execute(changed, *given, **kwargs)
            writes = self._session.analysed(text, parameters).action in WRITES
            if self._target.description is None or not writes:
                return int(self._target.rowcount), None
            rows = list(await self._target.fetchall())
            self._buffer.rows = rows if changed == text else []
            return int(self._target.rowcount), rows_as(rows, self._target.description)

        await self._session.execute(text, parameters, run, autocommit=not implicit(raw))
        return self

    async def executemany(self, query: Any, parameters: Iterable[Any], **kwargs: Any) -> Self:
        """Run a statement once for each set of parameters."""
        await self._open()
        if not inside():
            self._count = None
            await self._target.executemany(query, parameters, **kwargs)
            return self
        total = 0
        session, sets = self._session, list(parameters)
        alone = bool(sets) and not implicit(session.db.raw) and not session.db.in_transaction()
        if alone:
            await session.owner.prepare_async(session.db)
            await session.db.begin()
        try:
            for each in sets:
                await self.execute(query, each)
                total += max(0, self.rowcount)
            if alone:
                await session.commit()
        except BaseException:
            if alone:
                await session.rollback()
            raise
        self._count = total
        return self

    async def fetchone(self) -> Any:
        """The next row."""
        if self._buffer.rows is None:
            return await self._target.fetchone()
        return next(iter(self._buffer.take(1)), None)

    async def fetchmany(self, size: int | None = None) -> Any:
        """The next rows."""
        if self._buffer.rows is None:
            return await (
                self._target.fetchmany() if size is None else self._target.fetchmany(size)
            )
        return self._buffer.take(size or self._target.arraysize)

    async def fetchall(self) -> Any:
        """The rest of the rows."""
        if self._buffer.rows is None:
            return await self._target.fetchall()
        return self._buffer.take(None)

    async def close(self) -> None:
        """Close it."""
        closing = self._target.close()
        if inspect.isawaitable(closing):
            await closing

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (row := await self.fetchone()) is not None:
            yield row

    def __await__(self) -> Generator[Any, None, Self]:
        return self._open().__await__()

    async def __aenter__(self) -> Self:
        return await self._open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _later(cursor: object) -> bool:
    return type(cursor).__module__.startswith("aiosqlite") and inspect.isawaitable(cursor)


class AsyncpgProxy(_Blocks):
    """A connection of asyncpg."""

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """Run a statement; its command tag."""
        if not inside():
            return str(await self._target.execute(query, *args, timeout=timeout))
        word = query.split(None, 1)[0].upper()
        if word in {"BEGIN", "START", "COMMIT", "END", "ROLLBACK"} and " TO " not in query.upper():
            raise refused(f"{word} passes it by", "use `async with connection.transaction():`")
        status = ""

        async def run(changed: str) -> Ran:
            nonlocal status
            if changed == query and not self._returns(query, args):
                status = str(await self._target.execute(query, *args, timeout=timeout))
                last = status.rpartition(" ")[2]
                return (int(last) if last.isdigit() else -1), None
            records = await self._target.fetch(changed, *args, timeout=timeout)
            status = f"{word} {'0 ' if word == 'INSERT' else ''}{len(records)}"
            return len(records), _result(records)

        await self._session.execute(query, args, run, autocommit=True)
        return status

    async def fetch(self, query: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Run a statement; its rows."""
        if not inside():
            return list(await self._target.fetch(query, *args, **kwargs))
        rows: list[Any] = []

        async def run(changed: str) -> Ran:
            if changed == query and self._writes(query, args) and not self._returns(query, args):
                status = str(await self._target.execute(query, *args))
                return int(status.rpartition(" ")[2]), None
            records = await self._target.fetch(changed, *args, **kwargs)
            rows.extend(records if changed == query else ())
            return len(records), _result(records)

        await self._session.execute(query, args, run, autocommit=True)
        return rows

    async def fetchrow(self, query: str, *args: Any, **kwargs: Any) -> Any:
        """Run a statement; its first row."""
        if not inside():
            return await self._target.fetchrow(query, *args, **kwargs)
        return next(iter(await self.fetch(query, *args, **kwargs)), None)

    async def fetchval(
        self, query: str, *args: Any, column: int = 0, timeout: float | None = None
    ) -> Any:
        """Run a statement; one value of its first row."""
        if not inside():
            return await self._target.fetchval(query, *args, column=column, timeout=timeout)
        row = await self.fetchrow(query, *args, timeout=timeout)
        return None if row is None else row[column]

    async def executemany(self, query: str, args: Iterable[Any], **kwargs: Any) -> None:
        """Run a statement once for each set of arguments, all or nothing."""
        if not inside():
            await self._target.executemany(query, args, **kwargs)
            return
        async with self.transaction():
            for each in args:
                await self.execute(query, *each)

    def transaction(self, **kwargs: Any) -> Any:
        """A block that commits, or a savepoint inside of one; also with `start`, `commit`."""
        return _AsyncpgBlock(self, kwargs) if inside() else self._target.transaction(**kwargs)

    def cursor(self, query: str, *args: Any, **kwargs: Any) -> Any:
        """A cursor over what is read."""
        if inside() and self._session.analysed(query, args).action != "read":
            raise refused("a cursor hides which rows it touches", "use fetch")
        return self._target.cursor(query, *args, **kwargs)

    async def commit(self) -> None:
        """Refuse; asyncpg has blocks."""
        raise InvalidError("asyncpg's connection has no commit", hint="use `transaction()`")

    rollback = commit

    def _writes(self, query: str, args: tuple[Any, ...]) -> bool:
        return self._session.analysed(query, args).action in WRITES

    def _returns(self, query: str, args: tuple[Any, ...]) -> bool:
        return self._session.analysed(query, args).returning is not None


class _AsyncpgBlock:
    """What asyncpg's `transaction()` gives, recorded."""

    def __init__(self, connection: AsyncpgProxy, options: dict[str, Any]) -> None:
        self._connection = connection
        self._options = options
        self._name = ""

    async def start(self) -> None:
        """Begin."""
        connection = self._connection
        level = self._options.get("isolation")
        outermost = not connection._session.db.in_transaction()  # noqa: SLF001
        self._name = await connection._enter()  # noqa: SLF001
        if level and outermost:
            words = level.replace("_", " ").upper()
            await connection._target.execute(f"SET TRANSACTION ISOLATION LEVEL {words}")  # noqa: SLF001

    async def commit(self) -> None:
        """Commit, or release the savepoint."""
        await self._connection._leave(self._name, failed=False)  # noqa: SLF001

    async def rollback(self) -> None:
        """Roll back, perhaps to the savepoint."""
        await self._connection._leave(self._name, failed=True)  # noqa: SLF001

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await (self.commit() if error is None else self.rollback())


def _result(records: list[Any]) -> Result:
    columns = tuple(records[0].keys()) if records else ()
    return Result(tuple(tuple(record) for record in records), columns, len(records))
