"""The embedded store: one SQLite file, one owning process. `sqlite:///abs/path[?history=N]`.

Rules:
- The owner holds `PATH.lock` (flock), so the kernel releases it however the owner dies; SQLite's
  own exclusive locking keeps every other program from writing behind the owner's memory.
- Write-ahead log with `synchronous=FULL`: a commit is on the disk before it is acknowledged.
- Every SQLite call runs on one thread of its own; the event loop never waits for a disk.

A commit that SQLite refuses (disk full) is rolled back. One that fails with an input/output error
may have left a complete frame in the log, which a later recovery would replay; closing and
reopening the database settles it one way or the other before anybody is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self, TypeVar
from urllib.parse import unquote

from bedstone.errors import Error, InvalidError, UnavailableError, UnknownOutcomeError
from bedstone.store.leases import Clock
from bedstone.store.local import HISTORY, Loaded, LocalStore
from bedstone.store.ownership import acquire, create_private
from bedstone.store.planning import Draft
from bedstone.store.protocol import Entry
from bedstone.store.urls import number, split_options
from bedstone.store.watching import batches

T = TypeVar("T")

APPLICATION: Final = 0x42_44_53_54  # "BDST", in the file's header
SCHEMA: Final = 1

_TABLES: Final = """
BEGIN IMMEDIATE;
CREATE TABLE meta (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    revision INTEGER NOT NULL,
    compacted INTEGER NOT NULL
);
CREATE TABLE entries (
    key TEXT PRIMARY KEY,
    value BLOB NOT NULL,
    revision INTEGER NOT NULL,
    created INTEGER NOT NULL,
    lease TEXT
) WITHOUT ROWID;
CREATE TABLE events (
    revision INTEGER NOT NULL,
    position INTEGER NOT NULL,
    key TEXT NOT NULL,
    value BLOB,
    created INTEGER,
    lease TEXT,
    PRIMARY KEY (revision, position)
) WITHOUT ROWID;
CREATE TABLE leases (lease TEXT PRIMARY KEY, ttl REAL NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES (1, 0, 0);
"""


class SqliteStore(LocalStore):
    """A `Store` in one SQLite file, owned by one process at a time.

    Args:
        path: the database file; its directory exists.
        history: how many revisions a watch can catch up.
        clock: observes the leases.
    """

    def __init__(self, path: Path, *, history: int = HISTORY, clock: Clock | None = None) -> None:
        super().__init__(SqliteJournal(path), history=history, clock=clock)

    @classmethod
    def open(cls, url: str) -> Self:
        """Construct from `sqlite:///abs/path[?history=N]`; the path is percent-decoded.

        Raises:
            InvalidError: the URL has a host, no absolute path, or an unknown option.
        """
        place, options = split_options(url, {"history"})
        path = Path(unquote(place.removeprefix("sqlite://")))
        if not path.is_absolute() or path == Path("/"):
            raise InvalidError(f"got store {place!r}, expected sqlite:///absolute/path")
        return cls(path, history=number(options, "history", HISTORY))


class SqliteJournal:
    """A `Journal` in one SQLite file.

    Args:
        path: the database file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock: int | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._database: sqlite3.Connection | None = None
        self._history = HISTORY

    async def open(self, history: int) -> Loaded:
        """Lock the file, check it, and read it."""
        self._history = history
        self._thread = ThreadPoolExecutor(1, "bedstone-store")
        return await self._call(self._open)

    async def write(self, draft: Draft) -> None:
        """Write a draft in one transaction."""
        await self._call(lambda: self._write(draft))

    async def recover(self) -> Loaded:
        """Reopen the database and settle what its log holds."""
        return await self._call(self._recover)

    async def close(self) -> None:
        """Close the database, then give up the lock."""
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.get_running_loop().run_in_executor(thread, self._release)
            thread.shutdown(wait=True)

    async def _call(self, function: Callable[[], T]) -> T:
        if self._thread is None:
            raise AssertionError("the journal is not open")
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    # Below: on the thread.

    def _open(self) -> Loaded:
        if not self._path.parent.is_dir():
            raise InvalidError(
                f"the store's directory {self._path.parent} does not exist", hint="create it first"
            )
        if self._path.is_dir():
            raise InvalidError(
                f"{self._path} is a directory, expected a file", hint="name a file in it"
            )
        try:
            self._lock = acquire(
                self._path,
                "the store",
                "stop that process, or use the postgres store for several servers",
            )
            create_private(self._path)
            self._connect()
        except (sqlite3.Error, OSError) as error:
            raise _refused(self._path, error) from error
        try:
            return self._load()
        except sqlite3.Error as error:
            raise _refused(self._path, error) from error

    def _connect(self) -> None:
        self._database = database = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=False, timeout=0
        )
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        _check_identity(database, self._path)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        if database.execute("PRAGMA application_id").fetchone()[0] == 0:
            database.executescript(
                f"{_TABLES} PRAGMA application_id = {APPLICATION}; "
                f"PRAGMA user_version = {SCHEMA}; COMMIT;"
            )

    def _load(self) -> Loaded:
        database = self._connected()
        problems = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problems != "ok":
            raise sqlite3.DatabaseError(problems)
        (revision,) = database.execute("SELECT revision FROM meta").fetchone()
        events = database.execute(
            "SELECT revision, key, value, created, lease FROM events "
            "WHERE revision > ? ORDER BY revision, position",
            (revision - self._history,),
        )
        return Loaded(
            revision,
            [
                Entry(*row)
                for row in database.execute(
                    "SELECT key, value, revision, created, lease FROM entries"
                )
            ],
            batches(events),
            dict(database.execute("SELECT lease, ttl FROM leases")),
        )

    def _write(self, draft: Draft) -> None:
        database = self._connected()
        try:
            database.execute("BEGIN IMMEDIATE")
            self._write_draft(database, draft)
        except sqlite3.Error as error:
            self._roll_back()
            raise _not_applied(self._path, error) from error
        try:
            database.execute("COMMIT")
        except sqlite3.Error as error:
            refused = _not_applied(self._path, error)
            # A full disk stops the log before its commit mark; any other error may come after it.
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL and self._roll_back():
                raise refused from error
            raise UnknownOutcomeError(refused.message, hint=refused.hint) from error

    def _write_draft(self, database: sqlite3.Connection, draft: Draft) -> None:
        database.executemany(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)",
            (
                (event.revision, position, event.key, entry.value, entry.created, entry.lease)
                if (entry := event.entry) is not None
                else (event.revision, position, event.key, None, None, None)
                for batch in draft.batches
                for position, event in enumerate(batch)
            ),
        )
        database.executemany(
            "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)",
            (
                (entry.key, entry.value, entry.revision, entry.created, entry.lease)
                for entry in draft.final.values()
                if entry is not None
            ),
        )
        database.executemany(
            "DELETE FROM entries WHERE key = ?",
            ((key,) for key, entry in draft.final.items() if entry is None),
        )
        database.executemany("DELETE FROM leases WHERE lease = ?", ((it,) for it in draft.ended))
        database.executemany("INSERT OR REPLACE INTO leases VALUES (?, ?)", draft.grants.items())
        database.execute("UPDATE meta SET revision = ?", (draft.revision,))
        self._compact(database, draft.revision)

    def _compact(self, database: sqlite3.Connection, revision: int) -> None:
        # In steps of an eighth, so that its cost is shared by the commits that made it necessary.
        (compacted,) = database.execute("SELECT compacted FROM meta").fetchone()
        surplus = revision - compacted - self._history
        if surplus > self._history // 8:
            database.execute("DELETE FROM events WHERE revision <= ?", (compacted + surplus,))
            database.execute("UPDATE meta SET compacted = ?", (compacted + surplus,))

    def _roll_back(self) -> bool:
        try:
            database = self._connected()
            if database.in_transaction:
                database.execute("ROLLBACK")
        except sqlite3.Error:
            return False
        return not database.in_transaction

    def _recover(self) -> Loaded:
        try:
            if self._database is not None:
                self._database.close()
            self._connect()
            # Moves a complete frame out of the log for good, or an incomplete one out of the way.
            busy, *_ = self._connected().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                raise sqlite3.OperationalError("the log could not be written back")
            return self._load()
        except (sqlite3.Error, OSError) as error:
            raise _not_applied(self._path, error) from error

    def _connected(self) -> sqlite3.Connection:
        if self._database is None:
            raise AssertionError("the database is not open")
        return self._database

    def _release(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            with contextlib.suppress(sqlite3.Error):  # what was acknowledged is in the log
                database.close()
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)


def _check_identity(database: sqlite3.Connection, path: Path) -> None:
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (schema,) = database.execute("PRAGMA user_version").fetchone()
    (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != APPLICATION and (application or tables):
        raise InvalidError(
            f"{path} is a database of another program, expected a bedstone store",
            hint="name another file",
        )
    if schema > SCHEMA:
        raise InvalidError(
            f"{path} has schema {schema}, expected at most {SCHEMA}: a newer version wrote it",
            hint="upgrade bedstone, or restore a backup made by this version",
        )


def _refused(path: Path, error: Exception) -> Error:
    """Why a store cannot be opened."""
    if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
        return InvalidError(
            f"{path} is damaged or is no database: {error}", hint="restore it from a backup"
        )
    if isinstance(error, PermissionError):
        return UnavailableError(
            f"the store {path} cannot be opened: {error.strerror}",
            hint="give this user the right to read and write the file and its directory",
        )
    return _not_applied(path, error)


def _not_applied(path: Path, error: Exception) -> UnavailableError:
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    hints = {
        sqlite3.SQLITE_FULL: "free some space on the disk; the store goes on by itself",
        sqlite3.SQLITE_IOERR: "check the disk (dmesg); the store goes on once it works again",
        sqlite3.SQLITE_BUSY: "another program has the file open; close it",
        sqlite3.SQLITE_READONLY: "make the file and its directory writable",
        sqlite3.SQLITE_CORRUPT: "stop, and restore the store from a backup",
    }
    return UnavailableError(
        f"the store {path} cannot be used: {error}",
        retry_after=1.0,
        hint=hints.get(primary or 0, "check the disk and the file's permissions"),
    )
