"""Kept traces on disk: a SQLite file of whole traces, compressed, with what they are found by.

Rules:
- One connection writes, in whatever one thread its owner gives it; any number of threads read.
- What was written survives SIGKILL of the process (WAL); a power cut may cost the last moments, but
  not the file.
- A file that is damaged is moved aside (`….damaged`) and a new one begun: traces are worth less
  than going on. One trace that cannot be read costs itself only.
- It is bounded by size and by age; the oldest go first.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedstone.control.monitoring.traces.sampler import Decided
from bedstone.control.monitoring.traces.spans import Span, decode, encode, shown
from bedstone.control.monitoring.traces.trace import Kept, summary, whole
from bedstone.errors import InvalidError, NotFoundError, UnavailableError
from bedstone.model.traces import TraceDetail, TraceList, TraceSummary

_log = logging.getLogger(__name__)
SIZE = 1 << 30
AGE = 7 * 86_400.0
_VERSION = 1
_DELETED = 500
"""Traces deleted in one step, so that a writer is held up shortly."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS traces (
    id INTEGER PRIMARY KEY,
    trace BLOB NOT NULL UNIQUE,
    start REAL NOT NULL,
    seconds REAL NOT NULL,
    app TEXT NOT NULL,
    name TEXT NOT NULL,
    services TEXT NOT NULL,
    spans INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    status INTEGER,
    kept TEXT NOT NULL,
    bytes INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS by_start ON traces (start);
CREATE INDEX IF NOT EXISTS by_app ON traces (app, start);
CREATE TABLE IF NOT EXISTS bodies (id INTEGER PRIMARY KEY, body BLOB NOT NULL);
"""
_BEGINNING = re.compile("[0-9a-fA-F]{8,32}")
_LISTED = (
    "SELECT trace, start, seconds, app, name, services, spans, errors, status, kept FROM traces"
)


@dataclass(frozen=True, slots=True)
class Query:
    """Which traces: all of what is given must hold.

    Args:
        app: of the first span.
        service: among those that took part.
        name: a part of the first span's name, in any case of letters.
        errors: only those with an error.
        shortest: seconds, at least.
        longest: seconds, at most.
        start: begun at or after, seconds since the epoch.
        end: begun before.
        limit: at most so many.
    """

    app: str = ""
    service: str = ""
    name: str = ""
    errors: bool = False
    shortest: float | None = None
    longest: float | None = None
    start: float | None = None
    end: float | None = None
    limit: int = 100


class TraceStore:
    """One file of traces. Open it, and close it."""

    def __init__(self, path: Path, *, size: int = SIZE, age: float = AGE) -> None:
        self._path = path
        self._size = size
        self._age = age
        self._bytes = 0
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._generation = 0
        self._writer: sqlite3.Connection | None = self._begin()

    @property
    def bytes(self) -> int:
        """What all bodies take."""
        return self._bytes

    def close(self) -> None:
        """Close it; what was written stays."""
        for reader in self._readers:
            reader.close()
        if self._writer is not None:
            self._writer.close()

    def write(self, decided: Sequence[Decided], now: float) -> list[TraceSummary]:
        """Keep traces, join late spans to theirs, and let go of what is too old or too much.

        All of it or nothing. What is told of each trace now.

        Raises:
            UnavailableError: the disk does not take it; nothing was written, try again later.
        """
        try:
            try:
                return self._write(decided, now)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                self._move_aside()
                return self._write(decided, now)
        except (sqlite3.Error, OSError) as error:
            raise UnavailableError(
                f"traces cannot be written: {error}", hint=f"see that {self._path.parent} has room"
            ) from error

    def search(self, query: Query) -> TraceList:
        """The traces that fit, newest first."""
        where, values = _condition(query)
        sql = f"{_LISTED} {where} ORDER BY start DESC LIMIT ?"
        rows = self._read(sql, [*values, query.limit + 1])
        items = tuple(_summary(row) for row in rows[: query.limit])
        more = len(rows) > query.limit
        return TraceList(items=items, next=items[-1].start if more else None)

    def get(self, trace: str) -> TraceDetail:
        """A whole trace, by its id or the beginning of it that logs show.

        Raises:
            InvalidError: that is not a trace's id, or several that are kept begin so.
            NotFoundError: it is not kept, or damaged.
        """
        if not _BEGINNING.fullmatch(trace):
            expected = "expected 32 hexadecimal digits, or at least the first 8 of them"
            raise InvalidError(f"got trace {trace[:64]!r}, {expected}")
        rows = self._read(
            "SELECT trace, kept, body FROM traces JOIN bodies USING (id) "
            "WHERE trace BETWEEN ? AND ? LIMIT 2",
            [bytes.fromhex(trace.ljust(32, "0")), bytes.fromhex(trace.ljust(32, "f"))],
        )
        if len(rows) > 1:
            raise InvalidError(
                f"more than one trace that is kept begins with {trace}",
                hint="give more of its digits: bedstone trace ls shows them",
            )
        if not rows:
            raise NotFoundError(
                f"the trace {trace} is not kept",
                hint="it was sampled away or is too old; traces with errors and slow ones are kept",
            )
        key, kept, body = rows[0]
        spans = whole(_unpacked(key, body))
        if not spans:
            raise NotFoundError(
                f"the trace {trace} was kept, but is damaged on the disk",
                hint="look for another one: bedstone trace ls",
            )
        return TraceDetail(summary=summary(spans, kept), spans=tuple(shown(s) for s in spans))

    def _write(self, decided: Sequence[Decided], now: float) -> list[TraceSummary]:
        if self._writer is None:  # it was closed, and could not be begun anew then
            self._writer = self._begin()
        writer = self._writer
        writer.execute("BEGIN IMMEDIATE")
        before = self._bytes
        try:
            told = [self._put(writer, one) for one in decided]
            gone = self._let_go(writer, now)
            writer.execute("COMMIT")
        except BaseException:
            self._bytes = before
            with suppress(sqlite3.Error):
                writer.execute("ROLLBACK")
            raise
        if gone:
            # As a script: each page that is given back is a row without columns, of which `execute`
            # would take the first alone.
            with suppress(sqlite3.Error):
                writer.executescript("PRAGMA incremental_vacuum(1000)")
        return told

    def _put(self, writer: sqlite3.Connection, one: Decided) -> TraceSummary:
        found = writer.execute(
            "SELECT id, kept, bytes, body FROM traces JOIN bodies USING (id) WHERE trace = ?",
            [one.trace],
        ).fetchone()
        spans, kept = one.spans, one.kept
        if found is not None:
            spans = [*_unpacked(one.trace, found[3]), *spans]
            kept = _weightier(found[1], kept)
            self._bytes -= found[2]
        spans = whole(spans)
        said = summary(spans, kept)
        body = zlib.compress(encode(spans), 6)
        self._bytes += len(body)
        row = (
            *(one.trace, said.start, said.seconds, said.app, said.name),
            f",{','.join(said.services)},",
            *(said.spans, said.errors, said.status, said.kept, len(body)),
        )
        cursor = writer.execute(
            "INSERT OR REPLACE INTO traces (id, trace, start, seconds, app, name, services, spans,"
            " errors, status, kept, bytes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (found[0] if found else None, *row),
        )
        writer.execute(
            "INSERT OR REPLACE INTO bodies (id, body) VALUES (?, ?)", (cursor.lastrowid, body)
        )
        return said

    def _let_go(self, writer: sqlite3.Connection, now: float) -> int:
        """Delete some of what is too old or too much; how many traces."""
        old = writer.execute(
            "SELECT id, bytes FROM traces WHERE start < ? ORDER BY start LIMIT ?",
            [now - self._age, _DELETED],
        ).fetchall()
        if not old and self._bytes > self._size:
            over = self._bytes - self._size
            for number, size in writer.execute(
                "SELECT id, bytes FROM traces ORDER BY start LIMIT ?", [_DELETED]
            ):
                if over <= 0:
                    break
                old.append((number, size))
                over -= size
        for number, size in old:
            writer.execute("DELETE FROM traces WHERE id = ?", [number])
            writer.execute("DELETE FROM bodies WHERE id = ?", [number])
            self._bytes -= size
        return len(old)

    def _begin(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return self._opened()
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise UnavailableError(
                    f"traces cannot be opened: {error}", hint=f"see {self._path}"
                ) from error
            _aside(self._path)
            return self._opened()

    def _opened(self) -> sqlite3.Connection:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.close(descriptor)
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _VERSION):
                raise sqlite3.DatabaseError("malformed: another version's")
            connection.executescript(_SCHEMA)
            connection.execute(f"PRAGMA user_version = {_VERSION}")
            total = connection.execute("SELECT coalesce(sum(bytes), 0) FROM traces").fetchone()
        except BaseException:
            connection.close()
            raise
        self._bytes = int(total[0])
        self._generation += 1
        return connection

    def _move_aside(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        _aside(self._path)
        self._writer = self._opened()

    def _read(self, sql: str, values: Sequence[Any]) -> list[Any]:
        try:
            return self._reader().execute(sql, values).fetchall()
        except sqlite3.Error as error:
            self._local.connection = None
            raise UnavailableError(f"traces cannot be read: {error}") from error

    def _reader(self) -> sqlite3.Connection:
        """This thread's own connection, to the file that is there now."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None or self._local.generation != self._generation:
            # closed by whoever closes the store, which may be another thread
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA query_only = ON")
            self._readers.append(connection)
            self._local.connection = connection
            self._local.generation = self._generation
        return connection


def _unpacked(trace: bytes, body: bytes) -> list[Span]:
    """The spans of a body; none, and that is said, where the disk has changed it."""
    try:
        return list(decode(zlib.decompress(body)))
    except (zlib.error, InvalidError) as error:
        _log.error("trace damaged", extra={"trace": trace.hex(), "reason": str(error)})
        return []


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    text = str(error)
    return any(part in text for part in ("malformed", "not a database", "no such table"))


def _aside(path: Path) -> None:
    """Keep a damaged file for whoever wants to look at it; the last one only."""
    path.replace(path.with_name(f"{path.name}.damaged"))
    for suffix in ("-wal", "-shm"):
        path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)


def _weightier(one: Kept, other: Kept) -> Kept:
    order: tuple[Kept, ...] = ("sampled", "slow", "error")
    return max(one, other, key=order.index)


def _condition(query: Query) -> tuple[str, list[Any]]:
    parts: list[tuple[str, Any]] = []
    if query.app:
        parts.append(("app = ?", query.app))
    if query.service:
        parts.append(("instr(services, ?)", f",{query.service},"))
    if query.name:
        parts.append(("instr(lower(name), ?)", query.name.lower()))
    if query.errors:
        parts.append(("errors > ?", 0))
    if query.shortest is not None:
        parts.append(("seconds >= ?", query.shortest))
    if query.longest is not None:
        parts.append(("seconds <= ?", query.longest))
    if query.start is not None:
        parts.append(("start >= ?", query.start))
    if query.end is not None:
        parts.append(("start < ?", query.end))
    where = " AND ".join(text for text, _ in parts)
    return (f"WHERE {where}" if where else ""), [value for _, value in parts]


def _summary(row: Iterable[Any]) -> TraceSummary:
    trace, start, seconds, app, name, services, spans, errors, status, kept = row
    return TraceSummary(
        trace=trace.hex(),
        app=app,
        name=name,
        services=tuple(part for part in services.split(",") if part),
        start=start,
        seconds=seconds,
        spans=spans,
        errors=errors,
        status=status,
        kept=kept,
    )
