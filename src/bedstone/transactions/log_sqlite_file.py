"""One SQLite file that holds a log: its thread, its transactions, and what its failures mean.

Rules:
- Write-ahead log with `synchronous=FULL`: what was committed is on the disk.
- A writer that finds the file held by another process waits, `BUSY` seconds at most.
- A commit that failed otherwise than by a full disk may be on the disk or not: that is said, and
  the file is opened anew and written to, so that what is not there will not come later.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from bedstone.errors import Error, InvalidError, UnavailableError, UnknownOutcomeError
from bedstone.transactions.log_batch import closed

T = TypeVar("T")

APPLICATION: Final = 0x42_44_54_58  # "BDTX", in the file's header
SCHEMA: Final = 2
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

# Version 2 counts, from what the log still knows. The file has one writer at a time: one row does.
_COUNTS: Final = """
CREATE TABLE counts (
    log TEXT NOT NULL,
    begun INTEGER NOT NULL,
    committing INTEGER NOT NULL,
    aborting INTEGER NOT NULL,
    committed INTEGER NOT NULL,
    cancelled INTEGER NOT NULL
);
INSERT INTO counts SELECT
    lower(hex(randomblob(8))),
    count(*),
    count(*) FILTER (WHERE state IN ('committing', 'committed')),
    count(*) FILTER (WHERE state IN ('aborting', 'aborted')),
    count(*) FILTER (WHERE state = 'committed'),
    count(*) FILTER (WHERE state = 'aborted')
FROM transactions;
"""


class File:
    """One connection, and the one thread that uses it.

    Args:
        path: the database file.
        name: the thread's.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name
        self._thread: ThreadPoolExecutor | None = None
        self._database: sqlite3.Connection | None = None

    async def open(self, *, create: bool) -> None:
        """Connect; perhaps create the file and its tables.

        Raises:
            UnavailableError: the file can't be used.
            InvalidError: it is no log of ours, or a later version's.
        """
        self._thread = ThreadPoolExecutor(1, self._name)
        await self._run(lambda: self._prepare(create=create))

    async def close(self) -> None:
        """Disconnect, and end the thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.get_running_loop().run_in_executor(thread, self._release)
            thread.shutdown(wait=False)

    async def call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Read.

        Raises:
            UnavailableError: the file can't be used.
        """
        return await self._run(lambda: self._call(work))

    async def change(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Write in one transaction that nobody else's writes come between.

        Raises:
            UnavailableError: nothing was written.
            UnknownOutcomeError: whether it was written is not known.
            InvalidError: SQLite refuses a value; nothing was written.
        """
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
            self._database = _connect(self._path)
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


def _connect(path: Path) -> sqlite3.Connection:
    end = time.monotonic() + BUSY
    while True:
        database = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=BUSY
        )
        try:
            _check_identity(database, path)
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
        except BaseException as error:
            database.close()
            # While another process makes the file a WAL file, SQLite refuses without waiting.
            busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return database


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
    database.execute("BEGIN")  # another process may be making the tables
    with database:
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
            database.execute("PRAGMA user_version = 1")
        if database.execute("PRAGMA user_version").fetchone()[0] == 1:
            for statement in _COUNTS.split(";\n"):
                database.execute(statement)
            database.execute("PRAGMA user_version = 2")
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
