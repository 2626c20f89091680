"""Connections and cursors that look like the driver's own, and record inside a transaction.

Owns `wrapped`: proxies for psycopg, PyMySQL, sqlite3, asyncpg, asyncmy and aiosqlite.

Rules:
- Outside of a transaction everything goes to the driver as it is; attributes are always its own.
- Inside, what would pass by the recording (COPY, scripts, procedures, prepared statements) is
  refused. What is not named here goes to the driver.
- What may commit by itself (`autocommit`, `begin`) is refused while something is recorded.
- Rows that had to be read for the images are given to the developer from memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from bedstone.errors import InvalidError
from bedstone.transactions.automatic_sessions import WRITES, Ran, Session, SyncSession, inside
from bedstone.transactions.connections import SyncConnection, adapt
from bedstone.transactions.sql import Dialect, Result, Style
from bedstone.transactions.statement_text import refused

if TYPE_CHECKING:
    from bedstone.transactions.automatic import Automatic

_UNSEEN = {
    "blobopen",
    "callproc",
    "copy",
    "copy_from_query",
    "copy_from_table",
    "copy_records_to_table",
    "copy_to_table",
    "executescript",
    "load_extension",
    "pipeline",
    "prepare",
    "query",
    "stream",
    "tpc_begin",
}
_COMMITTING = {"autocommit", "begin", "isolation_level", "set_autocommit"}
"""What some driver commits by: the local transaction that is open would pass the recording by."""
_STYLES = {
    Dialect.POSTGRES: Style.FORMAT,
    Dialect.MYSQL: Style.FORMAT,
    Dialect.SQLITE: Style.QMARK,
}
_DRIVERS = {"aiosqlite", "asyncmy", "asyncpg", "psycopg", "pymysql", "sqlalchemy", "sqlite3"}
_CLOSING = {"psycopg", "pymysql", "asyncmy", "aiosqlite"}


def wrapped(owner: Automatic, raw: Any) -> Any:
    """A proxy of a driver's connection.

    Raises:
        InvalidError: the driver is not supported.
    """
    if isinstance(raw, Proxy):
        return raw
    module = _module(raw)
    if module == "sqlalchemy":
        raise InvalidError(
            "got a SQLAlchemy connection, expected a driver's",
            hint="instrument its engine: automatic(engine, name=…)",
        )
    db = adapt(raw)
    if isinstance(db, SyncConnection):
        return ConnectionProxy(SyncSession(owner, db, _STYLES[db.dialect]))
    from bedstone.transactions.automatic_proxies_async import wrapped_async

    return wrapped_async(owner, db, module)


def _module(raw: object) -> str:
    """The driver that a connection or a cursor is of, also one of a class derived from its own."""
    modules = (kind.__module__.partition(".")[0] for kind in type(raw).__mro__)
    return next((module for module in modules if module in _DRIVERS), "")


class Proxy:
    """What goes to the driver, but for what would pass by the recording.

    Args:
        target: the driver's own object.
    """

    def __init__(self, target: Any) -> None:
        self._target = target

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:  # autocommit, row_factory, …
            self._keep_open(name)
            setattr(self._target, name, value)

    def __getattr__(self, name: str) -> Any:
        if name in _UNSEEN and inside():
            raise refused(f"what {name} writes is not seen", "use execute")
        value = getattr(self._target, name)
        if callable(value):
            self._keep_open(name)
        return value

    def _keep_open(self, name: str) -> None:
        """Refuse what may commit, while something is recorded."""
        session: Session | None = self.__dict__.get("_session")
        if name in _COMMITTING and session is not None and session.recording:
            raise refused(f"{name} may commit what is open", "commit or roll back first")


def implicit(raw: Any) -> bool:
    """Whether a statement opens a local transaction that waits for `commit`."""
    match _module(raw):
        case "psycopg":
            return not raw.autocommit
        case "pymysql" | "asyncmy":
            return not raw.get_autocommit()
        case "sqlite3" | "aiosqlite":
            own = getattr(raw, "_conn", raw)
            mode = getattr(own, "autocommit", -1)
            return own.isolation_level is not None if mode == -1 else not mode
        case _:
            return False


def rows_as(rows: list[Any], description: Any) -> Result:
    """Rows of any row factory as tuples."""
    columns = tuple(column[0] for column in description or ())
    found = tuple(
        tuple(row[name] for name in columns) if isinstance(row, Mapping) else tuple(row)
        for row in rows
    )
    return Result(found, columns, len(rows))


def text_of(query: Any, raw: Any) -> str:
    """A statement as text; psycopg also takes bytes and `Composed`."""
    match query:
        case str():
            return query
        case bytes():
            return query.decode()
        case _ if hasattr(query, "as_string"):
            return str(query.as_string(raw))
        case _:
            raise InvalidError(f"got a {type(query).__name__} as statement, expected text")


class Buffered:
    """Rows read ahead for the developer's cursor."""

    def __init__(self) -> None:
        self.rows: list[Any] | None = None

    def take(self, count: int | None) -> list[Any]:
        """The next rows; None for all."""
        rows = self.rows or []
        taken = rows if count is None else rows[:count]
        self.rows = rows[len(taken) :]
        return taken


class ConnectionProxy(Proxy):
    """A blocking connection of PEP 249."""

    def __init__(self, session: SyncSession) -> None:
        super().__init__(session.db.raw)
        self._session = session
        self._depth = 0

    def cursor(self, *args: Any, **kwargs: Any) -> CursorProxy:
        """A cursor that records."""
        return CursorProxy(self._session, self._target.cursor(*args, **kwargs), self)

    def execute(self, query: Any, parameters: Any = None, **kwargs: Any) -> CursorProxy:
        """Run a statement in a new cursor (psycopg, sqlite3)."""
        return self.cursor().execute(query, parameters, **kwargs)

    def executemany(self, query: Any, parameters: Any) -> CursorProxy:
        """Likewise, once for each set of parameters (sqlite3)."""
        cursor = self.cursor()
        cursor.executemany(query, parameters)
        return cursor

    def commit(self) -> None:
        """Commit: inside a transaction as a branch of it.

        Raises:
            LockConflictError: another transaction holds a row; it is rolled back locally.
        """
        if self._session.recording:
            self._session.commit()
        else:
            self._session.recorder = None
            self._target.commit()

    def rollback(self) -> None:
        """Roll back; nothing is enlisted."""
        self._session.recorder = None
        self._target.rollback()

    @contextmanager
    def transaction(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """A block that commits, or a savepoint inside of one (psycopg)."""
        if not inside():
            with self._target.transaction(*args, **kwargs) as block:
                yield block
            return
        db = self._session.db
        if not db.in_transaction():
            self._session.owner.prepare(db)
            db.begin()
            with self._outermost():
                yield self
            return
        self._depth += 1
        name = f"bedstone_{self._depth}"
        self.execute(f"SAVEPOINT {name}")
        try:
            yield self
        except BaseException:
            self.execute(f"ROLLBACK TO {name}")
            raise
        else:
            self.execute(f"RELEASE {name}")
        finally:
            self._depth -= 1

    @contextmanager
    def _outermost(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.rollback()
            raise
        self._session.commit()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is None:
                self.commit()
            else:
                self.rollback()
        finally:
            if _module(self._target) in _CLOSING:
                self._target.close()


class CursorProxy(Proxy):
    """A blocking cursor of PEP 249."""

    def __init__(self, session: SyncSession, cursor: Any, connection: ConnectionProxy) -> None:
        super().__init__(cursor)
        self._session = session
        self._buffer = Buffered()
        self._count: int | None = None
        self._connection = connection

    @property
    def connection(self) -> ConnectionProxy:
        """The connection that it came from."""
        return self._connection

    @property
    def rowcount(self) -> int:
        """Rows returned or touched."""
        return int(self._target.rowcount) if self._count is None else self._count

    def execute(self, query: Any, parameters: Any = None, *args: Any, **kwargs: Any) -> Self:
        """Run a statement."""
        self._buffer.rows, self._count = None, None
        given = () if parameters is None else (parameters, *args)
        if not inside():
            self._target.execute(query, *given, **kwargs)
            return self
        raw = self._session.db.raw
        text = text_of(query, raw)

        def run(changed: str) -> Ran:
            self._target.execute(changed, *given, **kwargs)
            writes = self._session.analysed(text, parameters).action in WRITES
            return self._gathered(text, changed, writes=writes)

        self._session.execute(text, parameters, run, autocommit=not implicit(raw))
        return self

    def _gathered(self, text: str, changed: str, *, writes: bool) -> Ran:
        """What the statement gave; rows that only we asked for are not shown."""
        if self._target.description is None or not writes:
            return int(self._target.rowcount), None
        rows = list(self._target.fetchall())
        self._buffer.rows = rows if changed == text else []
        return int(self._target.rowcount), rows_as(rows, self._target.description)

    def executemany(self, query: Any, parameters: Any, **kwargs: Any) -> Any:
        """Run a statement once for each set of parameters."""
        if not inside():
            self._count = None
            return self._target.executemany(query, parameters, **kwargs)
        total = 0
        session, sets = self._session, list(parameters)
        alone = bool(sets) and not implicit(session.db.raw) and not session.db.in_transaction()
        if alone:
            session.owner.prepare(session.db)
            session.db.begin()
        try:
            for each in sets:
                self.execute(query, each)
                total += max(0, self.rowcount)
            if alone:
                session.commit()
        except BaseException:
            if alone:
                session.rollback()
            raise
        self._count = total
        return total if _module(self._target) == "pymysql" else self

    def fetchone(self) -> Any:
        """The next row."""
        if self._buffer.rows is None:
            return self._target.fetchone()
        return next(iter(self._buffer.take(1)), None)

    def fetchmany(self, size: int | None = None) -> Any:
        """The next rows."""
        if self._buffer.rows is None:
            return self._target.fetchmany() if size is None else self._target.fetchmany(size)
        return self._buffer.take(size or self._target.arraysize)

    def fetchall(self) -> Any:
        """The rest of the rows."""
        return self._target.fetchall() if self._buffer.rows is None else self._buffer.take(None)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._target if self._buffer.rows is None else self._buffer.take(None))

    def __next__(self) -> Any:
        row = self.fetchone()
        if row is None:
            raise StopIteration
        return row

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._target.close()
