"""The file of series: one SQLite database, in which the blocks and the state stand together.

Rules:
- What belongs together is written in one transaction: parts or blocks, what the counters stand at,
  new series, and which seconds were incomplete. So a kill at any moment leaves a state and values
  that agree.
- Write-ahead log, `synchronous=NORMAL`: a killed process loses nothing that was committed; a
  machine that loses power may lose the last seconds, and never the file.
- One process owns the file (`PATH.lock`). A file that is damaged is moved aside, one such is kept,
  and a new one is begun.
- Everything but `read` runs on one thread. `read` has a connection of its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from bedstone.control.monitoring.blocks import PART, Points, groups, join, split
from bedstone.control.monitoring.codec import pack, unpack
from bedstone.control.monitoring.gaps import Run
from bedstone.control.monitoring.series_batch import (
    Batch,
    Cache,
    DamagedError,
    Loaded,
    Retention,
)
from bedstone.errors import InvalidError, UnavailableError
from bedstone.store.ownership import acquire, create_private

_log = logging.getLogger(__name__)

APPLICATION: Final = 0x42_44_53_4D  # "BDSM": Bedstone, series of the monitoring
SCHEMA: Final = 1
LEVELS: Final = (1, 10, 60)

_TABLES: Final = """
BEGIN IMMEDIATE;
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE metrics (number INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    labels TEXT NOT NULL,
    kind TEXT NOT NULL,
    first INTEGER NOT NULL DEFAULT 0,
    last INTEGER NOT NULL DEFAULT 0,
    "offset" REAL NOT NULL DEFAULT 0,
    raw REAL NOT NULL DEFAULT 0,
    source INTEGER NOT NULL DEFAULT -1,
    live INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE blocks (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    level INTEGER NOT NULL,
    metric INTEGER NOT NULL,
    aggregate INTEGER NOT NULL,
    start INTEGER NOT NULL,
    stop INTEGER NOT NULL,
    low INTEGER NOT NULL,
    high INTEGER NOT NULL,
    size INTEGER NOT NULL,
    data BLOB NOT NULL
);
CREATE INDEX blocks_by_metric ON blocks (level, metric, aggregate, start, stop, low, high);
CREATE INDEX blocks_by_start ON blocks (level, start, stop, size);
CREATE TABLE runs (first INTEGER PRIMARY KEY, last INTEGER NOT NULL, missing TEXT NOT NULL);
"""


_WANTED: Final = (
    "SELECT id, start FROM blocks WHERE level = ? AND metric = ? AND aggregate = ? "
    "AND start < ? AND stop >= ? AND low <= ? AND high >= ? ORDER BY start"
)
_NONE: Final = np.empty(0, np.int64)
_NOTHING: Final = np.empty((0, 0))


class SeriesFile:
    """The database.

    Args:
        path: of the file; its directory exists.
        retention: how long points are kept.
        cache: bytes of decoded blocks to keep.
    """

    def __init__(self, path: Path, retention: Retention, cache: int) -> None:
        self.path = path
        self.floors: dict[int, int] = dict.fromkeys(LEVELS, 0)
        """For each level, the last point that was let go."""
        self._retention = retention
        self._lock: int | None = None
        self._writing: sqlite3.Connection | None = None
        self._reading: sqlite3.Connection | None = None
        self._guard = threading.Lock()  # of the reading connection
        self._cache = Cache(cache)

    def open(self) -> Loaded:
        """Own the file and read it; a damaged one is moved aside.

        Raises:
            UnavailableError: another process has it, or the disk refuses.
        """
        try:
            if self._lock is None:
                self._lock = acquire(
                    self.path,
                    "the monitoring's file",
                    "stop that process, or give this one another state directory",
                )
            try:
                return self._load()
            except (DamagedError, InvalidError) as error:
                self.set_aside(str(error))
                return self._load()
        except (sqlite3.Error, OSError) as error:
            raise _refused(self.path, error) from error

    def set_aside(self, why: str) -> None:
        """Move the file out of the way; the next `open` begins a new one."""
        self._disconnect()
        name = f"{self.path.name}.damaged-"
        for older in self.path.parent.glob(f"{name}*"):
            older.unlink(missing_ok=True)
        moved = self.path.with_name(name + time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self.path}{suffix}").rename(f"{moved}{suffix}")
        self._cache.clear()
        self.floors = dict.fromkeys(LEVELS, 0)
        _log.error("monitoring file damaged", extra={"reason": why, "moved_to": str(moved)})

    def _load(self) -> Loaded:
        create_private(self.path)
        try:
            self._connect()
            database = self._connected()
            loaded = Loaded(
                dict(database.execute("SELECT key, value FROM meta")),
                dict(database.execute("SELECT name, number FROM metrics")),
                database.execute("SELECT * FROM series ORDER BY id").fetchall(),
                [
                    _decode(PART, metric, 0, start, data)
                    for metric, start, data in database.execute(
                        "SELECT metric, start, data FROM blocks WHERE level = ? ORDER BY start, id",
                        (PART,),
                    )
                ],
                [
                    Run(first, last, json.loads(missing))
                    for first, last, missing in database.execute(
                        "SELECT first, last, missing FROM runs ORDER BY first"
                    )
                ],
            )
            floors = json.loads(loaded.meta.get("floors", b"{}"))
            self.floors |= {int(level): floor for level, floor in floors.items()}
            return loaded
        except sqlite3.DatabaseError as error:
            if _transient(error):
                raise
            raise DamagedError(str(error)) from error
        except (ValueError, TypeError) as error:
            raise DamagedError(f"its contents are not understood: {error}") from error

    def _connect(self) -> None:
        self._disconnect()
        self._writing = database = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, timeout=1.0
        )
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (schema,) = database.execute("PRAGMA user_version").fetchone()
        if application not in {0, APPLICATION} or schema > SCHEMA:
            raise DamagedError("it is of another program, or of a newer version")
        if application == 0:
            database.execute("PRAGMA page_size = 8192")
            database.execute("PRAGMA auto_vacuum = INCREMENTAL")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA journal_size_limit = 16777216")
        if application == 0:
            database.executescript(
                f"{_TABLES} PRAGMA application_id = {APPLICATION}; "
                f"PRAGMA user_version = {SCHEMA}; COMMIT;"
            )
        with self._guard:
            self._reading = sqlite3.connect(
                self.path, isolation_level=None, check_same_thread=False, timeout=1.0
            )
            self._reading.execute("PRAGMA query_only = 1")

    def write(self, batch: Batch) -> None:
        """Write a batch, whole or not at all.

        Raises:
            UnavailableError: the disk refuses; nothing was written.
            DamagedError: the file is damaged; set it aside.
        """
        try:
            database = self._connected()
            database.execute("BEGIN IMMEDIATE")
            floors = self._write(database, batch)
            database.execute("COMMIT")
            self.floors = floors
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error, AssertionError):
                if self._connected().in_transaction:
                    self._connected().execute("ROLLBACK")
            if _transient(error):
                raise _refused(self.path, error) from error
            raise DamagedError(str(error)) from error
        if batch.retain:
            # It is written, whatever comes of this. As a script: each page that is given back is a
            # row without columns, of which `execute` would take the first alone.
            with contextlib.suppress(sqlite3.Error):
                database.executescript("PRAGMA incremental_vacuum(4096)")

    def _write(self, database: sqlite3.Connection, batch: Batch) -> dict[int, int]:
        many = database.executemany
        many(
            "INSERT OR REPLACE INTO metrics VALUES (?, ?)",
            ((b, a) for a, b in batch.metrics.items()),
        )
        many(
            "INSERT OR REPLACE INTO series (id, name, labels, kind) VALUES (?, ?, ?, ?)",
            batch.series,
        )
        many(
            'UPDATE series SET first = ?, last = ?, "offset" = ?, raw = ?, source = ?, live = ? '
            "WHERE id = ?",
            batch.parked,
        )
        many("DELETE FROM series WHERE id = ?", ((number,) for number in batch.forgotten))
        for points in batch.points:
            if points.level == PART:
                for group in groups(points, 8192):
                    self._insert(database, group)
            else:
                for block in split(points):
                    self._join(database, block)
        database.execute("DELETE FROM blocks WHERE level = ? AND stop <= ?", (PART, batch.sealed))
        if batch.runs_from is not None:
            database.execute("DELETE FROM runs WHERE last >= ?", (batch.runs_from,))
            many(
                "INSERT OR REPLACE INTO runs VALUES (?, ?, ?)",
                ((run.first, run.last, json.dumps(dict(run.missing))) for run in batch.runs),
            )
        floors = dict(self.floors)
        if batch.retain:
            self._retain(database, batch.last, floors)
        meta = batch.meta | {"floors": json.dumps(floors).encode()}
        many("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta.items())
        return floors

    def _join(self, database: sqlite3.Connection, points: Points) -> None:
        """Add points to their block."""
        found = database.execute(
            "SELECT id, data FROM blocks "
            "WHERE level = ? AND metric = ? AND aggregate = ? AND start = ?",
            (points.level, points.metric, points.aggregate, points.start),
        ).fetchall()
        if found:
            database.executemany("DELETE FROM blocks WHERE id = ?", ((row[0],) for row in found))
            there = [
                block
                for number, data in found
                if (block := self._readable(number, points, data)) is not None
            ]
            points = join((*there, points))
        for group in groups(points):
            self._insert(database, group)

    def _readable(self, number: int, like: Points, data: bytes) -> Points | None:
        try:
            return _decode(like.level, like.metric, like.aggregate, like.start, data)
        except InvalidError as error:
            _log.error("block damaged", extra={"block": number, "reason": error.message})
            return None

    def _insert(self, database: sqlite3.Connection, points: Points) -> None:
        data = pack(points.ids, points.values)
        database.execute(
            "INSERT INTO blocks (level, metric, aggregate, start, stop, low, high, size, data) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(points.level, points.metric, points.aggregate, points.start, points.stop),
                *(int(points.ids[0]), int(points.ids[-1]), len(data), data),
            ),
        )

    def _retain(self, database: sqlite3.Connection, last: int, floors: dict[int, int]) -> None:
        for level in LEVELS:
            before = last - self._retention.seconds[level]
            self._let_go(database, level, before, floors)
        longest = max(self._retention.seconds.values())
        database.execute("DELETE FROM runs WHERE last < ?", (last - longest,))
        while self._used(database) > self._retention.size:
            sizes = dict(
                database.execute(
                    "SELECT level, sum(size) FROM blocks WHERE level > 0 GROUP BY level"
                )
            )
            if not sizes:
                return
            level = max(sizes, key=lambda level: sizes[level] / self._retention.share(level))
            (stop,) = database.execute(
                "SELECT stop FROM blocks WHERE level = ? ORDER BY start LIMIT 1", (level,)
            ).fetchone()
            self._let_go(database, level, stop, floors)

    def _let_go(
        self, database: sqlite3.Connection, level: int, upto: int, floors: dict[int, int]
    ) -> None:
        (stop,) = database.execute(
            "SELECT max(stop) FROM blocks WHERE level = ? AND stop <= ?", (level, upto)
        ).fetchone()
        if stop is not None:
            database.execute("DELETE FROM blocks WHERE level = ? AND stop <= ?", (level, upto))
            floors[level] = max(floors[level], stop)

    def _used(self, database: sqlite3.Connection) -> int:
        numbers = [
            database.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        ]
        return int((numbers[0] - numbers[1]) * numbers[2])

    def size(self) -> int:
        """Bytes on disk, with the log."""
        return sum(
            file.stat().st_size
            for suffix in ("", "-wal")
            if (file := Path(f"{self.path}{suffix}")).exists()
        )

    def read(
        self, level: int, aggregate: int, metric: int, ids: tuple[int, int], times: tuple[int, int]
    ) -> Iterator[Points]:
        """The blocks that may hold points of series, by ascending time. From any thread.

        A block that cannot be read is left out, and said.

        Args:
            level: seconds between points.
            aggregate: its number.
            metric: its number.
            ids: the least and the greatest.
            times: the first and the last.
        """
        parameters = (level, metric, aggregate, times[1], times[0], ids[1], ids[0])
        for number, start, there in self._fetch(parameters):
            points = there if isinstance(there, Points) else None
            if isinstance(there, bytes):
                like = Points(level, aggregate, metric, start, _NONE, _NOTHING)
                points = self._readable(number, like, there)
                if points is not None:
                    self._cache.put(number, points)
            if points is not None:
                yield points

    def _fetch(self, parameters: tuple[int, ...]) -> list[tuple[int, int, Points | bytes]]:
        """Blocks as of one moment: those that are not in the cache are still to be decoded."""
        found: list[tuple[int, int, Points | bytes]] = []
        with self._guard:
            database = self._reading
            if database is None:
                return []
            try:
                database.execute("BEGIN")
                for number, start in database.execute(_WANTED, parameters).fetchall():
                    there: Points | bytes | None = self._cache.get(number)
                    if there is None:
                        (there,) = database.execute(
                            "SELECT data FROM blocks WHERE id = ?", (number,)
                        ).fetchone()
                    found.append((number, start, there))
            except sqlite3.Error as error:
                _log.error("monitoring file not read", extra={"reason": str(error)})
            finally:
                with contextlib.suppress(sqlite3.Error):
                    database.execute("COMMIT")
        return found

    def close(self) -> None:
        """Give the file up."""
        self._disconnect()
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def _disconnect(self) -> None:
        with self._guard:
            for database in (self._reading, self._writing):
                if database is not None:
                    with contextlib.suppress(sqlite3.Error):
                        database.close()
            self._reading = self._writing = None

    def _connected(self) -> sqlite3.Connection:
        if self._writing is None:
            raise AssertionError("the file is not open")
        return self._writing


def _decode(level: int, metric: int, aggregate: int, start: int, data: bytes) -> Points:
    ids, values = unpack(data)
    return Points(level, aggregate, metric, start, ids, values)


def _transient(error: sqlite3.Error) -> bool:
    """Whether the disk refuses, rather than the file being damaged."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    return code not in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}


def _refused(path: Path, error: Exception) -> UnavailableError:
    return UnavailableError(
        f"the monitoring's file {path} cannot be used: {error}",
        retry_after=10.0,
        hint="free some space on the disk, and check the file's permissions; "
        "the monitoring goes on in memory, and by itself once the disk does",
    )
