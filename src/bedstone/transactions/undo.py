"""What AT keeps to undo a branch, and how it is undone: pure conversations.

Owns the table `bedstone_undo(xid, branch, images, at)`: one row for each branch whose local
transaction is committed and whose end is open. `at` is for people; nothing is ordered by it.

Rules:
- `save` runs in the business's own local transaction, with the barrier's TRY: a branch whose CANCEL
  came first can't be committed.
- `confirm` drops the record. `cancel` compares each row: now as after → undone; now as before →
  nothing to do; anything else is dirty: `StuckError` with the report, and nothing is changed.
- Undo runs backwards by sequence number; in the end the rows are read again and must be what they
  were.
- Each is one local transaction of the caller, and may be repeated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from bedstone.errors import Error, InvalidError, UnavailableError
from bedstone.transactions import barrier, own_tables
from bedstone.transactions.barrier import Entered
from bedstone.transactions.catalogue import Table, describe
from bedstone.transactions.errors import (
    StuckError,
    TransactionDecidedError,
    UnsupportedStatementError,
)
from bedstone.transactions.images import (
    Change,
    Key,
    Row,
    give_back,
    literal,
    order,
    parameter,
    rows_of,
)
from bedstone.transactions.model import Phase
from bedstone.transactions.own_tables import NOW
from bedstone.transactions.sql import Dialect, DuplicateError, Query, Steps
from bedstone.transactions.statements import Name

TABLE = "bedstone_undo"
_VERSION = 1
_SETTINGS = ("DateStyle", "IntervalStyle", "TimeZone", "bytea_output", "extra_float_digits")
_TYPES = {
    Dialect.POSTGRES: ("text", "text", "double precision", ""),
    Dialect.MYSQL: (
        "VARCHAR({}) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
        "LONGTEXT CHARACTER SET utf8mb4",
        "DOUBLE",
        " ENGINE=InnoDB",
    ),
    Dialect.SQLITE: ("TEXT", "TEXT", "REAL", ""),
}
_SAVE = f"""
WITH entered AS (
    INSERT INTO {barrier.TABLE} (xid, branch, phase, written_by, at)
    VALUES (?, ?, 'try', 'try', {NOW[Dialect.POSTGRES]}) ON CONFLICT DO NOTHING
    RETURNING xid, branch, at
)
INSERT INTO {TABLE} (xid, branch, images, at)
SELECT xid, branch, CAST(? AS text), at FROM entered RETURNING 1"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Record:
    """What undoes one branch.

    Args:
        changes: in the order they were made.
        settings: of the session, where they say how values are written (PostgreSQL).
    """

    changes: tuple[Change, ...]
    settings: dict[str, str] = field(default_factory=dict)

    def encoded(self) -> str:
        """As JSON."""
        changes = [change.document() for change in self.changes]
        document = {"version": _VERSION, "settings": self.settings, "changes": changes}
        return json.dumps(document, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def decoded(cls, text: str) -> Record:
        """What `encoded` wrote.

        Raises:
            StuckError: it is not understood.
        """
        try:
            document = json.loads(text)
            if document["version"] != _VERSION:
                raise StuckError(
                    f"got an undo record of version {document['version']}, expected {_VERSION}",
                    hint="let a release of Bedstone that knows it go on",
                )
            changes = tuple(
                Change(**{**change, "key": tuple(change["key"])}) for change in document["changes"]
            )
            return cls(changes, document["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise StuckError("the undo record is not understood; somebody changed it") from error


def create_table(dialect: Dialect) -> str:
    """The statement that makes the table, if there is none."""
    text, long, real, end = _TYPES[dialect]
    return (
        f"CREATE TABLE IF NOT EXISTS {TABLE} (xid {text.format(64)} NOT NULL, "
        f"branch {text.format(190)} NOT NULL, images {long} NOT NULL, at {real} NOT NULL, "
        f"PRIMARY KEY (xid, branch)){end}"
    )


def exists(dialect: Dialect) -> Steps[bool]:
    """Whether the table is there."""
    return (yield from own_tables.exists(dialect, TABLE))


def left(dialect: Dialect, after: str = "", limit: int = 100) -> Steps[tuple[str, ...]]:
    """Transactions with a record, by id, from the one after `after`."""
    del dialect
    found = yield Query(
        f"SELECT DISTINCT xid FROM {TABLE} WHERE xid > ? ORDER BY xid LIMIT {limit:d}",  # noqa: S608
        (after,),
    )
    return tuple(str(xid) for (xid,) in found.rows)


def forget(dialect: Dialect, xids: Sequence[str]) -> Steps[int]:
    """Drop the records of transactions whose end the caller has proved; says how many it were.

    What a person has repaired ends without its participant, and so leaves its record.
    """
    del dialect
    gone = 0
    for xid in sorted(xids):
        gone += (yield Query(f"DELETE FROM {TABLE} WHERE xid = ?", (xid,))).count  # noqa: S608
    return gone


def present(dialect: Dialect) -> Steps[bool]:
    """Whether the tables of AT and of the barrier are there."""
    for table in (barrier.TABLE, TABLE):
        if not (yield from own_tables.exists(dialect, table)):
            return False
    return True


def ensure(dialect: Dialect) -> Steps[None]:
    """Make the tables of AT and of the barrier; in a transaction of their own."""
    yield from barrier.ensure(dialect)
    yield from own_tables.make(dialect, TABLE, create_table(dialect))


def settings(dialect: Dialect) -> tuple[str, ...]:
    """The names of what says how the session writes values."""
    return _SETTINGS if dialect is Dialect.POSTGRES else ()


def exact(found: dict[str, str]) -> dict[str, str]:
    """Accept a session's settings.

    Raises:
        InvalidError: it writes values inexactly.
    """
    if not found:
        return found
    if int(found["extra_float_digits"]) < 1:
        raise InvalidError(
            f"got extra_float_digits = {found['extra_float_digits']}, expected 1 or more",
            hint="with less, PostgreSQL rounds floating-point numbers; leave the default",
        )
    return found


def save(dialect: Dialect, xid: str, branch: str, record: Record) -> Steps[None]:
    """Keep the record, in the local transaction that it undoes.

    Raises:
        TransactionDecidedError: the branch is cancelled already; roll back.
    """
    if (
        dialect is Dialect.POSTGRES and (yield Query(_SAVE, (xid, branch, record.encoded()))).rows
    ):  # both rows in one statement; where there is one already, look at it
        return
    entered = yield from barrier.enter(dialect, xid, branch, Phase.TRY)
    if entered is not Entered.PROCEED:
        raise TransactionDecidedError(
            f"branch {branch} of transaction {xid} is {entered.value}; it can't be committed"
        )
    yield Query(
        f"INSERT INTO {TABLE} (xid, branch, images, at) VALUES (?, ?, ?, {NOW[dialect]})",  # noqa: S608
        (xid, branch, record.encoded()),
    )


def confirm(dialect: Dialect, branches: Sequence[tuple[str, str]]) -> Steps[None]:
    """Drop the records of these (xid, branch), in one statement.

    Raises:
        StuckError: a branch was never committed; nothing is dropped for good.
    """
    condition = " OR ".join(["(xid = ? AND branch = ?)"] * len(branches))
    values = tuple(part for branch in branches for part in branch)
    dropped = yield Query(f"DELETE FROM {TABLE} WHERE {condition}", values)  # noqa: S608
    if dropped.count == len(branches):
        return
    for xid, branch in branches:
        written = yield from barrier.tried(dialect, xid, branch)
        if written != Phase.TRY:
            raise StuckError(
                f"branch {branch} of transaction {xid} is to be confirmed, but its local "
                "transaction was never committed here",
                report={"branch": branch, "repair": []},
                hint="its work is missing; do it by hand, then `bedstone tx repair`",
            )


def cancel(dialect: Dialect, xid: str, branch: str, resource: str) -> Steps[None]:
    """Undo a branch; what never was committed can't be any more.

    Raises:
        StuckError: a row is neither as before nor as after; roll back.
    """
    entered = yield from barrier.enter(dialect, xid, branch, Phase.CANCEL)
    if entered is not Entered.PROCEED:
        return
    lock = "" if dialect is Dialect.SQLITE else " FOR UPDATE"  # reads what is committed last
    found = yield Query(
        f"SELECT images FROM {TABLE} WHERE xid = ? AND branch = ?{lock}",  # noqa: S608
        (xid, branch),
    )
    if not found.rows:
        raise StuckError(
            f"the undo record of branch {branch} of transaction {xid} is gone",
            report={"resource": resource, "repair": []},
            hint="somebody deleted it; give the rows back by hand, then `bedstone tx repair`",
        )
    text = found.rows[0][0]
    decoded = text.decode() if isinstance(text, bytes) else str(text)
    yield from apply(dialect, resource, Record.decoded(decoded))
    yield Query(f"DELETE FROM {TABLE} WHERE xid = ? AND branch = ?", (xid, branch))  # noqa: S608


@dataclass(frozen=True, slots=True)
class _Whole:
    """What a branch did to one row, all its statements together."""

    table: Table
    key: Key
    before: Row | None
    after: Row | None


def apply(dialect: Dialect, resource: str, record: Record) -> Steps[None]:
    """Give back what a record holds.

    Raises:
        StuckError: nothing may stay changed; roll back.
    """
    yield from _as_recorded(dialect, record)
    tables = yield from _tables(dialect, resource, record)
    wholes = _wholes(tables, record)
    now = yield from _now(tables, wholes)
    dirty = [
        whole for place, whole in wholes.items() if now[place] not in (whole.after, whole.before)
    ]
    if dirty:
        raise _stuck(resource, dirty, wholes, now, "was changed by somebody else")
    undone = {place for place, whole in wholes.items() if now[place] != whole.before}
    backwards = sorted(record.changes, key=lambda change: -change.sequence)
    for _, group in groupby(backwards, key=lambda change: (change.sequence, change.table)):
        changes = [c for c in group if (c.schema, c.table, c.key) in undone]
        for change in order(tables, changes):
            table = tables[change.schema, change.table]
            try:
                yield from _give_back(table, change)
            except UnavailableError:
                raise
            except Exception as error:
                if not isinstance(error, Error) and not _refused_by_rules(error):
                    raise
                whole = wholes[change.schema, change.table, change.key]
                reason = f"can't be given back: {type(error).__name__}"
                raise _stuck(resource, [whole], wholes, now, reason) from error
    if dialect is Dialect.POSTGRES and undone:
        given = [wholes[place] for place in undone]
        yield from _constrained(resource, given, wholes, now)
    final = yield from _now(tables, wholes)
    wrong = [whole for place, whole in wholes.items() if final[place] != whole.before]
    if wrong:
        raise _stuck(resource, wrong, wholes, now, "would not be given back exactly")


_Place = tuple[str, str, Key]


def _as_recorded(dialect: Dialect, record: Record) -> Steps[None]:
    """Let the session write values as the one that took the images did, until it commits."""
    if dialect is Dialect.POSTGRES:
        for name, value in record.settings.items():
            yield Query("SELECT set_config(CAST(? AS text), CAST(? AS text), true)", (name, value))
        yield Query("SET CONSTRAINTS ALL DEFERRED")


def _tables(dialect: Dialect, resource: str, record: Record) -> Steps[dict[tuple[str, str], Table]]:
    tables: dict[tuple[str, str], Table] = {}
    for change in record.changes:
        place = (change.schema, change.table)
        if place not in tables:
            try:
                tables[place] = yield from describe(
                    dialect, Name(change.schema or None, change.table)
                )
            except UnsupportedStatementError as error:
                raise _changed_table(resource, change) from error
        image = change.before or change.after or {}
        if tables[place].by_name.keys() != image.keys():
            raise _changed_table(resource, change)
    return tables


def _changed_table(resource: str, change: Change) -> StuckError:
    return StuckError(
        f"the table {change.table} has other columns than when the branch wrote it",
        report={**change.document(), "resource": resource, "now": None, "repair": []},
    )


def _wholes(tables: dict[tuple[str, str], Table], record: Record) -> dict[_Place, _Whole]:
    wholes: dict[_Place, _Whole] = {}
    for change in sorted(record.changes, key=lambda change: change.sequence):
        place = (change.schema, change.table, change.key)
        first = wholes[place].before if place in wholes else change.before
        table = tables[change.schema, change.table]
        wholes[place] = _Whole(table, change.key, first, change.after)
    return wholes


def _now(
    tables: dict[tuple[str, str], Table], wholes: dict[_Place, _Whole]
) -> Steps[dict[_Place, Row | None]]:
    now: dict[_Place, Row | None] = dict.fromkeys(wholes)
    for (schema, name), table in tables.items():
        keys = sorted(key for *place, key in wholes if place == [schema, name])
        rows = yield from rows_of(table, keys)
        now.update({(schema, name, key): row for key, row in rows.items()})
    return now


def _give_back(table: Table, change: Change) -> Steps[None]:
    query = give_back(table, change.key, change.before, change.after)
    if query is None:
        return
    if change.before is None:
        for reference in table.references:
            row = change.after or {}
            values = [row.get(own) for _, own in reference.pairs]
            if reference.deletes and None not in values:
                condition = " AND ".join(
                    f"{other} = {table.by_name[own].write}" for other, own in reference.pairs
                )
                found = yield Query(
                    f"SELECT 1 FROM {reference.table} WHERE {condition} LIMIT 1",  # noqa: S608
                    tuple(parameter(table, value) for value in values),
                )
                if found.rows:
                    raise InvalidError(f"rows of {reference.table} refer to it")
    yield query


def _constrained(
    resource: str,
    given: Sequence[_Whole],
    wholes: dict[_Place, _Whole],
    now: dict[_Place, Row | None],
) -> Steps[None]:
    """Check deferred constraints here, not at the commit, where nobody could tell what it was."""
    try:
        yield Query("SET CONSTRAINTS ALL IMMEDIATE")
    except Exception as error:
        if not isinstance(error, DuplicateError) and not _refused_by_rules(error):
            raise
        raise _stuck(resource, given, wholes, now, "breaks a deferred constraint") from error


def _refused_by_rules(error: Exception) -> bool:
    """Whether a constraint refused, by what every driver calls that."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"IntegrityError", "IntegrityConstraintViolationError"})


def _stuck(
    resource: str,
    dirty: Sequence[_Whole],
    wholes: dict[_Place, _Whole],
    now: dict[_Place, Row | None],
    reason: str,
) -> StuckError:
    rows: list[dict[str, object]] = []
    repairs: list[str] = []
    for whole in dirty:
        table = whole.table
        current = now[table.schema, table.name, whole.key]
        query = give_back(table, whole.key, whole.before, current)
        repair = [literal(table, query)] if query else []
        repairs += repair
        rows.append(
            {
                "resource": resource,
                "table": table.full,
                "key": list(whole.key),
                "before": whole.before,
                "after": whole.after,
                "now": current,
                "repair": repair,
            }
        )
    first = rows[0]
    more = f", and {len(rows) - 1} more" if len(rows) > 1 else ""
    return StuckError(
        f"the row {','.join(dirty[0].key)} of {first['table']} {reason}{more}; "
        f"nothing of {len(wholes)} rows is undone",
        report={**first, "repair": repairs, "rows": rows},
        hint="compare before, after and now; run the repair statements, or set the row to what is "
        "right as one of before or after; then `bedstone tx retry`",
    )
