"""The log in one SQLite file: for all coordinators of one machine. `sqlite:///abs/path`.

Rules:
- A batch is one `BEGIN IMMEDIATE` transaction: what it read can't change before it is written, so
  any number of processes share the file.
- The clock is the machine's, read inside the transaction.
- Writes run on one thread and reads on another; the event loop never waits for a disk.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from urllib.parse import unquote

from bedstone.errors import InvalidError
from bedstone.transactions import log_counts, log_rows, machine
from bedstone.transactions.log_base import BatchedLog, unknown
from bedstone.transactions.log_batch import Draft, Operation, Outcome, closed
from bedstone.transactions.log_sqlite_file import File
from bedstone.transactions.model import Counts, Event, State, Transaction

T = TypeVar("T")

_FIND: Final = f"SELECT {log_rows.READ} FROM transactions "  # noqa: S608 - our own columns
_PUT: Final = f"INSERT OR REPLACE INTO transactions ({log_rows.WRITTEN}) VALUES "  # noqa: S608
_ADD: Final = f"INSERT INTO events ({log_rows.EVENT}) VALUES (?, ?, ?, ?, ?, ?)"  # noqa: S608
_SUM: Final = ", ".join(f"{step} = {step} + ?" for step in log_counts.STEPS)
_COUNT: Final = f"UPDATE counts SET {_SUM}"  # noqa: S608
_COUNTS: Final = (
    f"SELECT log, (SELECT count(*) FROM transactions WHERE stuck), {', '.join(log_counts.STEPS)} "  # noqa: S608
    "FROM counts"
)
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
        self._writer = File(path, "bedstone-log-writer")
        self._reader = File(path, "bedstone-log-reader")

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

    async def ends(self, xids: Sequence[str]) -> dict[str, float | None]:
        """As `Log.ends`."""
        marks = ", ".join("?" * len(xids))
        query = f"SELECT xid, ended_at FROM transactions WHERE xid IN ({marks})"  # noqa: S608
        return dict(await self._read(query, tuple(xids)))

    async def locked(self, locks: Sequence[str]) -> dict[str, str]:
        """As `Log.locked`."""
        log_rows.check_locks(locks)
        self._check_open()
        return await self._reader.call(lambda database: _holders(database, locks))

    async def leases(self) -> dict[str, float]:
        """As `Log.leases`."""
        return dict(await self._read("SELECT owner, until FROM owners", ()))

    async def counts(self) -> Counts:
        """As `Log.counts`."""
        ((log, stuck, *numbers),) = await self._read(_COUNTS, ())
        return log_counts.counts(log, numbers, stuck)

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
            dead = [it for (it,) in database.execute(_ORPHANED, (owner, now)).fetchall()]
            alive = database.execute("SELECT owner FROM owners WHERE until > ?", (now,))
            orphaned = machine.heirs(owner, dead, [it for (it,) in alive.fetchall()])
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
    if draft.counted:
        database.execute(_COUNT, draft.counted)
