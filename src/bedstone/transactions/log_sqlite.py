"""The log in one SQLite file: for all coordinators of one machine. `sqlite:///abs/path`.

Rules:
- Write-ahead log with `synchronous=FULL`: a batch is on the disk before it is acknowledged.
- A batch is one `BEGIN IMMEDIATE` transaction: what it read can't change before it is written, so
  any number of processes share the file; one that finds it held waits, `BUSY` seconds at most.
- The clock is the machine's, read inside the transaction.
- Writes run on one thread and reads on another; the event loop never waits for a disk.
- A commit that failed otherwise than by a full disk may be on the disk or not: that is said, and
  the file is opened anew and written to, so that what is not there will not come later.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from urllib.parse import unquote

from bedstone.errors import Error, InvalidError, UnavailableError, UnknownOutcomeError
from bedstone.transactions import log_rows, machine
from bedstone.transactions.log_base import BatchedLog, unknown
from bedstone.transactions.log_batch import Draft, Operation, Outcome, closed
from bedstone.transactions.model import Event, State, Transaction

T = TypeVar("T")

APPLICATION: Final = 0x42_44_54_58  # "BDTX", in the file's header
SCHEMA: Final = 1
BUSY: Final = 10.0

_TABLES: Final = """
CREATE TABLE transactions (
    xid TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    deadline REAL NOT NULL,
    created REAL NOT NULL,
    ended_at REAL,
    owner TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    next_attempt REAL NOT NULL,
    branches TEXT NOT NULL,
    events INTEGER NOT NULL,
    stuck INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX transactions_due ON transactions (owner, next_attempt) WHERE ended_at IS NULL;
CREATE INDEX transactions_age ON transactions (owner, created) WHERE ended_at IS NULL;
CREATE INDEX transactions_stuck ON transactions (xid) WHERE stuck;
CREATE INDEX transactions_ended ON transactions (ended_at) WHERE ended_at IS NOT NULL;
CREATE TABLE locks (key TEXT PRIMARY KEY, xid TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE events (
    xid TEXT NOT NULL,
    position INTEGER NOT NULL,
    at REAL NOT NULL,
    kind TEXT NOT NULL,
    branch INTEGER,
    detail TEXT NOT NULL,
    PRIMARY KEY (xid, position)
) WITHOUT ROWID;
CREATE TABLE owners (owner TEXT PRIMARY KEY, until REAL NOT NULL) WITHOUT ROWID;
"""
_FIND: Final = f"SELECT {log_rows.READ} FROM transactions "  # noqa: S608 - our own columns
_PUT: Final = f"INSERT OR REPLACE INTO transactions ({log_rows.WRITTEN}) VALUES "  # noqa: S608
_ADD: Final = f"INSERT INTO events ({log_rows.EVENT}) VALUES (?, ?, ?, ?, ?, ?)"  # noqa: S608
# Each owner is found by one step in the index, however much it holds.
_ORPHANED: Final = """
WITH RECURSIVE holders (owner) AS (
    SELECT min(owner) FROM transactions WHERE ended_at IS NULL
    UNION ALL
    SELECT (SELECT min(owner) FROM transactions
            WHERE ended_at IS NULL AND owner > holders.owner)
    FROM holders WHERE holders.owner IS NOT NULL
)
SELECT owner FROM holders WHERE owner IS NOT NULL AND owner <> ?
    AND owner NOT IN (SELECT owner FROM owners WHERE until > ?)
"""


class SqliteLog(BatchedLog):
    """A `Log` in one SQLite file, shared by the processes of one machine.

    Args:
        path: the database file; its directory exists.
        clock: the machine's clock, in seconds since the epoch.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._path = path
        self._clock = clock
        self._writer = _File(path, "bedstone-log-writer")
        self._reader = _File(path, "bedstone-log-reader")

    @classmethod
    def open(cls, url: str) -> Self:
        """Construct from `sqlite:///abs/path`; the path is percent-decoded.

        Raises:
            InvalidError: the URL has a host, options, or no absolute path.
        """
        place = url.removeprefix("sqlite://")
        path = Path(unquote(place))
        if not path.is_absolute() or path == Path("/") or "?" in place or "\0" in str(path):
            raise InvalidError(f"got log {url!r}, expected sqlite:///absolute/path")
        return cls(path)

    async def now(self) -> float:
        """As `Log.now`."""
        self._check_open()
        return self._clock()

    async def owned(self, owner: str, limit: int) -> Sequence[Transaction]:
        """As `Log.owned`."""
        log_rows.check_owner(owner)
        return await self._transactions(
            "WHERE ended_at IS NULL AND owner = ? AND next_attempt <= ? "
            "ORDER BY next_attempt, xid LIMIT ?",
            (owner, self._clock(), limit),
        )

    async def get(self, xid: str) -> Transaction:
        """As `Log.get`."""
        found = await self._transactions("WHERE xid = ?", (xid,)) if log_rows.is_xid(xid) else ()
        if not found:
            raise unknown(xid)
        return found[0]

    async def list(
        self,
        states: Sequence[State] = (),
        *,
        stuck: bool = False,
        after: str = "",
        limit: int = 100,
    ) -> Sequence[Transaction]:
        """As `Log.list`."""
        conditions, order = ["xid > ?"], "xid"
        if states:
            conditions.append(f"state IN ({','.join('?' * len(states))})")
            if not any(state.ended for state in states):
                # Sorted apart, so as not to look for the few among all that have ended.
                conditions, order = ["+xid > ?", *conditions[1:], "ended_at IS NULL"], "+xid"
        if stuck:
            conditions.append("stuck")
        return await self._transactions(
            f"WHERE {' AND '.join(conditions)} ORDER BY {order} LIMIT ?",
            (after, *(state.value for state in states), limit),
        )

    async def events(self, xid: str) -> Sequence[Event]:
        """As `Log.events`."""
        rows = await self._read(
            "SELECT at, kind, branch, detail FROM events WHERE xid = ? ORDER BY position", (xid,)
        )
        if not rows:
            raise unknown(xid)
        return tuple(map(log_rows.event, rows))

    async def locked(self, locks: Sequence[str]) -> dict[str, str]:
        """As `Log.locked`."""
        log_rows.check_locks(locks)
        self._check_open()
        return await self._reader.call(lambda database: _holders(database, locks))

    async def leases(self) -> dict[str, float]:
        """As `Log.leases`."""
        return dict(await self._read("SELECT owner, until FROM owners", ()))

    async def _transactions(
        self, condition: str, values: Sequence[object]
    ) -> Sequence[Transaction]:
        rows = await self._read(_FIND + condition, values)
        return tuple(log_rows.stored(row).transaction for row in rows)

    async def _read(self, query: str, values: Sequence[object]) -> Sequence[Any]:
        self._check_open()
        return await self._reader.call(lambda database: database.execute(query, values).fetchall())

    def _check_open(self) -> None:
        if self._queue is None:
            raise closed()

    async def _connect(self) -> None:
        try:
            await self._writer.open(create=True)
            await self._reader.open(create=False)
        except BaseException:
            await self._disconnect()
            raise

    async def _disconnect(self) -> None:
        await self._reader.close()
        await self._writer.close()

    async def _write(self, operations: Sequence[Operation]) -> Sequence[Outcome]:
        def work(database: sqlite3.Connection) -> Sequence[Outcome]:
            draft = _draft(database, operations, self._clock())
            outcomes = [draft.apply(operation) for operation in operations]
            _put(database, draft)
            return outcomes

        return await self._change(work)

    async def _claim(self, owner: str, lease: float, limit: int) -> Sequence[Transaction]:
        def work(database: sqlite3.Connection) -> Sequence[Transaction]:
            now = self._clock()
            database.execute("INSERT OR REPLACE INTO owners VALUES (?, ?)", (owner, now + lease))
            orphaned = [it for (it,) in database.execute(_ORPHANED, (owner, now)).fetchall()]
            rows = [
                row
                for other in orphaned
                for row in database.execute(
                    f"{_FIND} WHERE ended_at IS NULL AND owner = ? ORDER BY created LIMIT ?",
                    (other, limit),
                )
            ]
            found = sorted(map(log_rows.stored, rows), key=log_rows.age)[:limit]
            draft = Draft(found, {}, now)
            taken = [draft.put(machine.claim(it.transaction, owner, now)) for it in found]
            _put(database, draft)
            return taken

        return await self._change(work)

    async def _release(self, owner: str) -> None:
        await self._change(
            lambda database: database.execute("DELETE FROM owners WHERE owner = ?", (owner,))
        )

    async def _purge(self, older_than: float, limit: int) -> int:
        def work(database: sqlite3.Connection) -> int:
            old = database.execute(
                "SELECT xid FROM transactions WHERE ended_at < ? ORDER BY ended_at, xid LIMIT ?",
                (older_than, limit),
            ).fetchall()
            database.executemany("DELETE FROM events WHERE xid = ?", old)
            database.executemany("DELETE FROM transactions WHERE xid = ?", old)
            database.execute(
                "DELETE FROM owners WHERE until < ? AND NOT EXISTS (SELECT 1 FROM transactions "
                "WHERE ended_at IS NULL AND transactions.owner = owners.owner)",
                (older_than,),
            )
            return len(old)

        return await self._change(work)

    async def _change(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self.statistics.round_trips += 1
        self.statistics.commits += 1
        return await self._writer.change(work)


class _File:
    """One connection, and the one thread that uses it."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name
        self._thread: ThreadPoolExecutor | None = None
        self._database: sqlite3.Connection | None = None

    async def open(self, *, create: bool) -> None:
        self._thread = ThreadPoolExecutor(1, self._name)
        await self._run(lambda: self._prepare(create=create))

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.get_running_loop().run_in_executor(thread, self._release)
            thread.shutdown(wait=False)

    async def call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Read."""
        return await self._run(lambda: self._call(work))

    async def change(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Write in one transaction that nobody else's writes come between."""
        return await self._run(lambda: self._change(work))

    async def _run(self, work: Callable[[], T]) -> T:
        if self._thread is None:
            raise closed()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # Below: on the thread.

    def _prepare(self, *, create: bool) -> None:
        if not self._path.parent.is_dir():
            raise InvalidError(
                f"the log's directory {self._path.parent} does not exist", hint="create it first"
            )
        try:
            if create:
                _create_private(self._path)
            database = self._connected()
            if create:
                _create_tables(database, self._path)
        except (sqlite3.Error, OSError) as error:
            self._release()
            raise _refused(self._path, error) from error
        except Error:
            self._release()
            raise

    def _call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return work(self._connected())
        except (sqlite3.Error, OverflowError, UnicodeEncodeError) as error:
            raise _refused(self._path, error) from error

    def _change(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            database = self._connected()
            database.execute("BEGIN IMMEDIATE")
            result = work(database)
        except (sqlite3.Error, OverflowError, UnicodeEncodeError) as error:
            self._roll_back()
            raise _refused(self._path, error) from error
        except BaseException:
            self._roll_back()
            raise
        try:
            database.execute("COMMIT")
        except sqlite3.Error as error:
            refused = _refused(self._path, error)
            # A full disk stops the log before its commit mark; any other error may come after it.
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL and self._roll_back():
                raise refused from error
            self._release()
            with contextlib.suppress(sqlite3.Error):  # overwrite what it may have left in the log
                self._connected().execute(f"PRAGMA user_version = {SCHEMA}")
            raise UnknownOutcomeError(refused.message, hint=refused.hint) from error
        return result

    def _connected(self) -> sqlite3.Connection:
        if self._database is None:
            database = sqlite3.connect(
                self._path, isolation_level=None, check_same_thread=False, timeout=BUSY
            )
            try:
                _check_identity(database, self._path)
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = FULL")
            except BaseException:
                database.close()
                raise
            self._database = database
        return self._database

    def _roll_back(self) -> bool:
        database = self._database
        try:
            if database is not None and database.in_transaction:
                database.execute("ROLLBACK")
        except sqlite3.Error:
            self._release()  # closing rolls back
        return self._database is not None

    def _release(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            with contextlib.suppress(sqlite3.Error):  # what was acknowledged is in the log
                database.close()


def _draft(database: sqlite3.Connection, operations: Sequence[Operation], now: float) -> Draft:
    xids = {operation.xid for operation in operations}
    found = [log_rows.stored(row) for row in _select(database, f"{_FIND} WHERE xid", xids)]
    wanted = {lock for operation in operations for lock in operation.locks}
    return Draft(found, _holders(database, wanted), now)


def _holders(database: sqlite3.Connection, locks: Iterable[str]) -> dict[str, str]:
    return dict(_select(database, "SELECT key, xid FROM locks WHERE key", locks))


def _select(database: sqlite3.Connection, query: str, keys: Iterable[str]) -> list[Any]:
    """All rows with one of these keys, in pieces as large as a statement may be."""
    every = sorted(keys)
    rows: list[Any] = []
    for start in range(0, len(every), 500):
        some = every[start : start + 500]
        rows += database.execute(f"{query} IN ({','.join('?' * len(some))})", some)
    return rows


def _put(database: sqlite3.Connection, draft: Draft) -> None:
    rows = [log_rows.row(it) for it in (*draft.inserted, *draft.updated)]
    database.executemany(f"{_PUT} ({','.join('?' * 12)})", rows)
    database.executemany(_ADD, [log_rows.event_row(*event) for event in draft.events])
    locks = draft.locks()
    database.executemany("DELETE FROM locks WHERE key = ? AND xid = ?", locks.removed)
    database.executemany("INSERT OR REPLACE INTO locks VALUES (?, ?)", locks.added + locks.moved)


def _create_private(path: Path) -> None:
    """Create the file for its owner only, and make its name durable."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _check_identity(database: sqlite3.Connection, path: Path) -> None:
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (schema,) = database.execute("PRAGMA user_version").fetchone()
    (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != APPLICATION and (application or tables):
        raise InvalidError(
            f"{path} is a database of another program, expected a transaction log of bedstone",
            hint="name another file",
        )
    if schema > SCHEMA:
        raise InvalidError(
            f"{path} has schema {schema}, expected at most {SCHEMA}: a newer version wrote it",
            hint="upgrade bedstone",
        )


def _create_tables(database: sqlite3.Connection, path: Path) -> None:
    database.execute("BEGIN IMMEDIATE")
    with database:  # commits, or rolls back
        if database.execute("PRAGMA application_id").fetchone()[0] == 0:
            for statement in _TABLES.split(";\n"):
                database.execute(statement)
            database.execute(f"PRAGMA application_id = {APPLICATION}")
            database.execute(f"PRAGMA user_version = {SCHEMA}")
    _check_identity(database, path)


def _refused(path: Path, error: Exception) -> Error:
    """What a failure that applied nothing means for the caller."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    if primary == sqlite3.SQLITE_NOTADB:
        return InvalidError(
            f"{path} is damaged or is no database: {error}", hint="name another file"
        )
    if not isinstance(error, sqlite3.OperationalError | sqlite3.DatabaseError | OSError) or (
        primary in {sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH}
    ):
        return InvalidError(f"the transaction log {path} can't hold this: {error}")
    hints = {
        sqlite3.SQLITE_FULL: "free some space on the disk; the log goes on by itself",
        sqlite3.SQLITE_IOERR: "check the disk (dmesg); the log goes on once it works again",
        sqlite3.SQLITE_BUSY: "another program holds the file for too long; find out which",
        sqlite3.SQLITE_READONLY: "make the file and its directory writable",
        sqlite3.SQLITE_CORRUPT: "stop, and restore the log from a backup",
    }
    return UnavailableError(
        f"the transaction log {path} can't be used: {error}",
        retry_after=1.0,
        hint=hints.get(primary or 0, "check the disk and the file's permissions"),
    )
