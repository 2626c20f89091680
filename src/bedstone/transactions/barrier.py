"""The barrier: one row per phase of a branch, in the participant's own database.

Written in the same local transaction as the business rows, it makes phases safe against messages
that come twice, late, or in the wrong order. The method is insert-first: the primary key
`(xid, branch, phase)` decides, never a read before a write.

| asked | rows found | answer |
|---|---|---|
| TRY | none | PROCEED: writes (try, by try) |
| TRY | (try, by try) | REPEATED |
| TRY | (try, by cancel) | SUSPENDED: it came after its cancel and must fail |
| CANCEL | none | EMPTY: writes (try, by cancel) and (cancel); nothing to undo |
| CANCEL | (try, by try) | PROCEED: writes (cancel) |
| CONFIRM | (try, by try) | PROCEED: writes (confirm) |
| CONFIRM | none, or (try, by cancel) | NOT_TRIED: never run it |
| CONFIRM, CANCEL | its own row | REPEATED |

Rules:
- `enter` is the first thing in a local transaction, before any business row: all phases of a
  branch meet at its try row, and take locks in one order (try row, own row, business rows). So two
  phases wait for each other, and never deadlock. (A known failure elsewhere: a locking read of a
  row that is not there yet locks the gap, and two inserts into it deadlock.)
- It is right at READ COMMITTED and above. At REPEATABLE READ and above PostgreSQL may refuse the
  later of two with a serialization failure (`UnavailableError`): the phase is asked again.
- Rows stay until the log has proved that the transaction ended (see `sweeper`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum

from bedstone.errors import InvalidError
from bedstone.transactions import own_tables
from bedstone.transactions.connections import OPENINGS
from bedstone.transactions.model import Phase
from bedstone.transactions.own_tables import NOW
from bedstone.transactions.sql import Dialect, Query, Steps

TABLE = "bedstone_barrier"
LONGEST_BRANCH = 190


class Entered(StrEnum):
    """What the barrier says to a phase."""

    PROCEED = "proceed"
    REPEATED = "repeated"
    EMPTY = "empty"
    SUSPENDED = "suspended"
    NOT_TRIED = "not-tried"


def create_table(dialect: Dialect) -> str:
    """The statement that makes the table, if there is none."""
    text, blob, real, end = _TYPES[dialect]
    return (
        f"CREATE TABLE IF NOT EXISTS {TABLE} ("
        f"xid {text.format(64)} NOT NULL, branch {text.format(LONGEST_BRANCH)} NOT NULL, "
        f"phase {text.format(8)} NOT NULL, written_by {text.format(8)} NOT NULL, "
        f"result {blob}, at {real} NOT NULL, PRIMARY KEY (xid, branch, phase)){end}"
    )


UNDER_WAY = 10
"""Attempts to CONFIRM for which a missing TRY may still be under way, in an open local transaction:
an initiator that did not wait for a call has committed. After that a person is asked."""


def exists(dialect: Dialect) -> Steps[bool]:
    """Whether the table is there."""
    return (yield from own_tables.exists(dialect, TABLE))


def ensure(dialect: Dialect) -> Steps[None]:
    """Make the table where it is missing; in a transaction of its own, that the caller commits.

    An application whose role may not create tables gets its table from a migration:
    `create_table` is the statement.

    Raises:
        InvalidError: the table is missing and can't be made.
    """
    made = yield from own_tables.make(dialect, TABLE, create_table(dialect))
    if made and dialect is Dialect.MYSQL:  # it has committed; give the caller one to commit
        yield Query("START TRANSACTION")
        yield Query(OPENINGS[dialect])


def enter(dialect: Dialect, xid: str, branch: str, phase: Phase) -> Steps[Entered]:
    """Enter a phase of a branch, first thing in the caller's open local transaction.

    Only PROCEED says to run the business. After PROCEED, EMPTY and REPEATED the caller commits;
    after SUSPENDED and NOT_TRIED it rolls back and fails. Idempotent.

    Args:
        dialect: the database's.
        xid: the transaction.
        branch: the branch, perhaps with a part of it, as `1/steps.0`.
        phase: what is asked.

    Raises:
        InvalidError: xid or branch can't be a key.
        UnavailableError: another phase of the branch is under way, or the connection was lost.
    """
    _check(xid, branch)
    match phase:
        case Phase.TRY:
            return _try(dialect, xid, branch)
        case Phase.CONFIRM:
            return _confirm(dialect, xid, branch)
        case Phase.CANCEL:
            return _cancel(dialect, xid, branch)


def enter_once(dialect: Dialect, xid: str, branch: str, value: bytes) -> Steps[bool]:
    """Enter TRY of what has no other phase, with what `result` is to give; whether it is new."""
    _check(xid, branch)
    return (yield from _insert(dialect, xid, branch, Phase.TRY, Phase.TRY, value))


def result(dialect: Dialect, xid: str, branch: str, phase: Phase) -> Steps[bytes | None]:
    """What `store_result` kept; None where nothing was."""
    del dialect
    found = yield Query(
        f"SELECT result FROM {TABLE} WHERE xid = ? AND branch = ? AND phase = ?",  # noqa: S608
        (xid, branch, str(phase)),
    )
    value = found.rows[0][0] if found.rows else None
    return None if value is None else bytes(value)  # type: ignore[call-overload]


def store_result(
    dialect: Dialect, xid: str, branch: str, phase: Phase, value: bytes
) -> Steps[None]:
    """Keep what a phase returned, for when it is asked again; in the phase's own transaction."""
    del dialect
    yield Query(
        f"UPDATE {TABLE} SET result = ? WHERE xid = ? AND branch = ? AND phase = ?",  # noqa: S608
        (value, xid, branch, str(phase)),
    )


def tried(dialect: Dialect, xid: str, branch: str) -> Steps[str | None]:
    """Who wrote the branch's try row, `try` or `cancel`; None if it is not there. No lock."""
    del dialect
    found = yield Query(f"{_READ}", _try_key(xid, branch))
    return str(found.rows[0][0]) if found.rows else None


def pending(
    dialect: Dialect, older_than: float, *, after: str = "", limit: int = 100
) -> Steps[tuple[str, ...]]:
    """Transactions whose last row was written before a time, by id, from the one after `after`.

    Without what consumers of messages keep there (`broker.barrier_key`): they purge their own.
    """
    del dialect
    found = yield Query(
        f"SELECT xid FROM {TABLE} WHERE xid > ? AND xid NOT LIKE 'msg-%' "  # noqa: S608
        f"GROUP BY xid HAVING max(at) < ? "
        f"ORDER BY xid LIMIT {limit:d}",
        (after, older_than),
    )
    return tuple(str(row[0]) for row in found.rows)


def forget(dialect: Dialect, xids: Sequence[str]) -> Steps[int]:
    """Delete the rows of transactions that have ended, and say how many rows it were.

    The caller has proved the end: a late TRY of a forgotten transaction would not be refused.
    """
    del dialect
    gone = 0
    for xid in sorted(xids):
        keys = yield Query(
            f"SELECT branch, phase FROM {TABLE} WHERE xid = ? ORDER BY branch, phase",  # noqa: S608
            (xid,),
        )
        for branch, phase in keys.rows:  # by the whole key: that locks no gap
            deleted = yield Query(
                f"DELETE FROM {TABLE} WHERE xid = ? AND branch = ? AND phase = ?",  # noqa: S608
                (xid, branch, phase),
            )
            gone += deleted.count
    return gone


_ASCII = "VARCHAR({}) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
_TYPES = {
    Dialect.POSTGRES: ("text", "bytea", "double precision", ""),
    Dialect.MYSQL: (_ASCII, "LONGBLOB", "DOUBLE", " ENGINE=InnoDB"),
    Dialect.SQLITE: ("TEXT", "BLOB", "REAL", ""),
}
_XID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_BRANCH = re.compile(rf"[ -~]{{1,{LONGEST_BRANCH}}}")
_READ = f"SELECT written_by FROM {TABLE} WHERE xid = ? AND branch = ? AND phase = ?"  # noqa: S608


def _check(xid: str, branch: str) -> None:
    """Refuse what a column would cut: MySQL's INSERT IGNORE cuts without an error."""
    if not _XID.fullmatch(xid):
        raise InvalidError(f"got transaction id {xid!r}, expected 1 to 64 of [A-Za-z0-9._-]")
    if not _BRANCH.fullmatch(branch):
        raise InvalidError(
            f"got branch {branch!r}, expected 1 to {LONGEST_BRANCH} printable ASCII characters"
        )


def _try_key(xid: str, branch: str) -> tuple[str, str, str]:
    return xid, branch, str(Phase.TRY)


def _insert(
    dialect: Dialect, xid: str, branch: str, phase: Phase, by: Phase, value: bytes | None = None
) -> Steps[bool]:
    """Insert a row; whether it was not there. Waits while another transaction inserts it."""
    ignore = "IGNORE " if dialect is Dialect.MYSQL else ""
    clause = "" if dialect is Dialect.MYSQL else " ON CONFLICT DO NOTHING"
    column, mark, values = ("", "", ()) if value is None else ("result, ", "?, ", (value,))
    inserted = yield Query(
        f"INSERT {ignore}INTO {TABLE} (xid, branch, phase, written_by, {column}at) "  # noqa: S608
        f"VALUES (?, ?, ?, ?, {mark}{NOW[dialect]}){clause}",
        (xid, branch, str(phase), str(by), *values),
    )
    return inserted.count == 1


def _writer(
    dialect: Dialect, xid: str, branch: str, lock: str = " FOR UPDATE"
) -> Steps[str | None]:
    """Who wrote the try row, as committed now.

    MySQL's plain read may show what was before this transaction's first read, so it locks the row;
    that also has two CONFIRMs go one after the other. After a duplicate TRY the row is locked
    shared already; two that asked for more would deadlock.
    """
    if dialect is not Dialect.MYSQL:
        lock = ""
    found = yield Query(f"{_READ}{lock}", _try_key(xid, branch))
    return str(found.rows[0][0]) if found.rows else None


def _try(dialect: Dialect, xid: str, branch: str) -> Steps[Entered]:
    if (yield from _insert(dialect, xid, branch, Phase.TRY, Phase.TRY)):
        return Entered.PROCEED
    writer = yield from _writer(dialect, xid, branch, " LOCK IN SHARE MODE")
    return Entered.SUSPENDED if writer == Phase.CANCEL else Entered.REPEATED


def _confirm(dialect: Dialect, xid: str, branch: str) -> Steps[Entered]:
    if dialect is not Dialect.MYSQL:
        # Mostly all is as it should be, and one statement is enough; whatever it is otherwise is
        # looked at from the beginning: the TRY may have come between.
        inserted = yield Query(
            f"INSERT INTO {TABLE} (xid, branch, phase, written_by, at) "  # noqa: S608
            f"SELECT xid, branch, 'confirm', 'confirm', {NOW[dialect]} FROM {TABLE} "
            "WHERE xid = ? AND branch = ? AND phase = ? AND written_by = 'try' "
            "ON CONFLICT DO NOTHING",
            _try_key(xid, branch),
        )
        if inserted.count == 1:
            return Entered.PROCEED
    if (yield from _writer(dialect, xid, branch)) != Phase.TRY:
        return Entered.NOT_TRIED
    fresh = yield from _insert(dialect, xid, branch, Phase.CONFIRM, Phase.CONFIRM)
    return Entered.PROCEED if fresh else Entered.REPEATED


def _cancel(dialect: Dialect, xid: str, branch: str) -> Steps[Entered]:
    if dialect is Dialect.MYSQL:
        # A duplicate found by INSERT IGNORE is locked shared, with the gap before it: two CANCELs
        # would both hold it and both insert into it. This form locks exclusively.
        yield Query(
            f"INSERT INTO {TABLE} (xid, branch, phase, written_by, at) "  # noqa: S608
            f"VALUES (?, ?, ?, ?, {NOW[dialect]}) ON DUPLICATE KEY UPDATE xid = xid",
            (*_try_key(xid, branch), str(Phase.CANCEL)),
        )
    else:
        yield from _insert(dialect, xid, branch, Phase.TRY, Phase.CANCEL)
    writer = yield from _writer(dialect, xid, branch)
    if not (yield from _insert(dialect, xid, branch, Phase.CANCEL, Phase.CANCEL)):
        return Entered.REPEATED
    return Entered.EMPTY if writer == Phase.CANCEL else Entered.PROCEED
