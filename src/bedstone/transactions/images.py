"""Rows before and after a statement, and how to give them back: pure conversations.

Owns `Capture`, which takes the images around one statement, and `Change`, what one statement did to
one row.

Rules:
- Before: the rows that the statement will touch are read and locked (`FOR UPDATE`), a bounded
  number; otherwise the statement is refused. After: the same rows are read by primary key.
- The database must report as many rows touched as were read. Where not, others wrote in between,
  and the local transaction must be rolled back.
- A value is text as `catalogue` says, or None for NULL; a row is a mapping of column to value.
- Order is the sequence number of the change, never a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import quote as escaped

from bedstone.errors import UnavailableError
from bedstone.transactions.catalogue import Table, quote
from bedstone.transactions.sql import Dialect, Query, Result, Steps
from bedstone.transactions.statement_text import refused
from bedstone.transactions.statements import PROJECTION, Action, Fragment, Statement

Row: TypeAlias = dict[str, str | None]
Key: TypeAlias = tuple[str, ...]

ROWS = 1000
"""How many rows one statement may touch."""
_CHUNK = 100


@dataclass(frozen=True, slots=True)
class Change:
    """What one statement did to one row.

    Args:
        sequence: the statement's place in its branch, from 1; undo runs from the highest down.
        schema: where the table is.
        table: its name.
        key: the values of the primary key.
        before: the row before; None for one that was inserted.
        after: the row after; None for one that was deleted.
    """

    sequence: int
    schema: str
    table: str
    key: Key
    before: Row | None
    after: Row | None

    def document(self) -> dict[str, object]:
        """As JSON."""
        return {
            "sequence": self.sequence,
            "schema": self.schema,
            "table": self.table,
            "key": list(self.key),
            "before": self.before,
            "after": self.after,
        }


def lock(resource: str, table: str, key: Key) -> str:
    """The name of a row's global lock."""
    return f"{resource}/{table}/{','.join(escaped(_plain(part), safe='') for part in key)}"


def _plain(value: str) -> str:
    return value[2:] if value[1:2] == ":" else value


@dataclass(frozen=True, slots=True)
class Capture:
    """The images around one statement.

    Args:
        table: what it writes.
        statement: what it does.
        before: the rows that it will touch, by key.
        suffix: what must be appended to its text, so that the database tells the keys it makes.
    """

    table: Table
    statement: Statement
    before: dict[Key, Row]
    suffix: str = ""

    def after(
        self, parameters: object, count: int, returned: Result | None
    ) -> Steps[tuple[tuple[Key, Row | None, Row | None], ...]]:
        """Key, row before and row after of each row touched.

        Args:
            parameters: the statement's.
            count: rows touched, as the driver says; -1 when it does not.
            returned: what RETURNING gave.

        Raises:
            UnavailableError: others wrote in between; roll back.
        """
        table, action = self.table, self.statement.action
        if action is Action.INSERT:
            found = yield from _inserted(table, self.statement, parameters, returned)
            _same(len(self.statement.rows), len(found))
            return tuple((key, None, row) for key, row in found.items())
        fewer = table.dialect is Dialect.MYSQL and action is Action.UPDATE  # changed rows only
        if count >= 0 and not (fewer and count <= len(self.before)):
            _same(len(self.before), count)
        if action is Action.DELETE:
            return tuple((key, row, None) for key, row in self.before.items())
        now = yield from rows_of(table, tuple(self.before))
        _same(len(self.before), len(now))
        changes = ((key, row, now[key]) for key, row in self.before.items())
        return tuple(change for change in changes if change[1] != change[2])


def _same(expected: int, got: int) -> None:
    if expected != got:
        raise UnavailableError(
            f"the statement touched {got} rows, expected the {expected} that were read before it",
            hint="others wrote in between; the local transaction is rolled back: run it again",
        )


def capture(
    table: Table, statement: Statement, parameters: object, limit: int = ROWS
) -> Steps[Capture]:
    """Look at a statement and its table, and take the image before.

    Raises:
        UnsupportedStatementError: it can't be undone; it must not run.
    """
    _refuse(table, statement)
    if statement.action is Action.INSERT:
        if len(statement.rows) > limit:
            raise _too_many(limit)
        return Capture(table, statement, {}, _suffix(table, statement))
    where = statement.where.bind(parameters) if statement.where else Query("")
    before = yield from _read(table, statement.source, where, limit)
    if len(before) > limit:
        raise _too_many(limit)
    return Capture(table, statement, before)


def keys_of(table: Table, reading: Fragment, parameters: object) -> Steps[tuple[Key, ...]]:
    """The keys that a locking read gives; it takes its locks.

    Raises:
        UnsupportedStatementError: the table has no key.
    """
    if not table.key:
        raise refused(f"the table {table.full} has no primary key")
    query = reading.bind(parameters)
    columns = ", ".join(text for name in table.key for text in table.by_name[name].read)
    marked = quote(table.dialect, PROJECTION)
    text = query.text.replace(marked, columns).replace(PROJECTION, columns)
    result = yield Query(text, query.parameters)
    return tuple(key for key, _ in _decoded(table, result, table.key))


def rows_of(table: Table, keys: Sequence[Key], *, locking: bool = True) -> Steps[dict[Key, Row]]:
    """The rows of these keys, as they are now."""
    found: dict[Key, Row] = {}
    for start in range(0, len(keys), _CHUNK):
        chunk = keys[start : start + _CHUNK]
        condition = " OR ".join([f"({_matching(table)})"] * len(chunk))
        values = tuple(parameter(table, part) for key in chunk for part in key)
        read = yield from _read(
            table, table.quoted, Query(condition, values), len(chunk), locking=locking
        )
        found.update(read)
    return found


def parameter(table: Table, value: str | None) -> object:
    """What to give a driver for a value."""
    if value is None or table.dialect is not Dialect.SQLITE:
        return value
    match value[:2]:
        case "i:":
            return int(value[2:])
        case "r:":
            return float(value[2:])
        case "b:":
            return bytes.fromhex(value[2:])
        case _:
            return value[2:]


def give_back(table: Table, key: Key, before: Row | None, now: Row | None) -> Query | None:
    """The statement that makes a row what it was; None where nothing is to do."""
    if now == before:
        return None
    if before is None:
        return Query(f"DELETE FROM {table.quoted} WHERE {_matching(table)}", _keyed(table, key))  # noqa: S608
    values = {name: parameter(table, value) for name, value in before.items()}
    if now is None:
        names = ", ".join(quote(table.dialect, name) for name in before)
        writes = ", ".join(table.by_name[name].write for name in before)
        overriding = " OVERRIDING SYSTEM VALUE" if table.overriding else ""
        text = f"INSERT INTO {table.quoted} ({names}){overriding} VALUES ({writes})"  # noqa: S608
        return Query(text, tuple(values.values()))
    settable = [n for n in before if table.by_name[n].settable and n not in table.key]
    writes = ", ".join(
        f"{quote(table.dialect, name)} = {table.by_name[name].write}" for name in settable
    )
    return Query(
        f"UPDATE {table.quoted} SET {writes} WHERE {_matching(table)}",  # noqa: S608
        (*(values[name] for name in settable), *_keyed(table, key)),
    )


def literal(table: Table, query: Query) -> str:
    """A statement of `give_back` as text without parameters, for a person."""
    texts = iter(query.parameters)
    return "".join(
        _constant(table.dialect, next(texts)) if part == "?" else part
        for part in _parts(query.text)
    )


def order(tables: Mapping[tuple[str, str], Table], changes: Sequence[Change]) -> Iterator[Change]:
    """One statement's changes, so that none takes a unique value that another has to free first."""
    waiting = list(changes)
    while waiting:
        ready = [
            change
            for change in waiting
            if not _blocked(tables[change.schema, change.table], change, waiting)
        ] or waiting
        yield from ready
        waiting = [change for change in waiting if change not in ready]


def _blocked(table: Table, change: Change, waiting: Iterable[Change]) -> bool:
    if change.before is None:
        return False
    return any(
        other is not change
        and other.after is not None
        and all(
            change.before.get(name) is not None and change.before[name] == other.after.get(name)
            for name in unique
        )
        for unique in table.unique
        for other in waiting
    )


def _refuse(table: Table, statement: Statement) -> None:
    if table.refusals:
        raise refused(f"the table {table.full} can't be written: {table.refusals[0]}")
    if not table.key:
        raise refused(
            f"the table {table.full} has no primary key", "add one: a row has no other name"
        )
    if not set(table.key) <= table.by_name.keys():
        raise refused(f"the primary key of {table.full} is generated from other columns")
    named = {table.column(name) for name in statement.columns}
    if statement.action is Action.UPDATE:
        _refuse_update(table, named)
    if statement.action is Action.DELETE:
        for reference in table.references:
            if reference.deletes:
                raise refused(f"rows of {reference.table} change with it by a foreign key")


def _refuse_update(table: Table, named: set[str]) -> None:
    unknown = named - set(table.order)  # SQLite's rowid, or a mistake that the database tells
    if named & set(table.key) or unknown & {"rowid", "oid", "_rowid_"}:
        raise refused("it changes the primary key, which names the row")
    for reference in table.references:
        if reference.updates and named & {own for _, own in reference.pairs}:
            raise refused(f"the change goes on to {reference.table} by a foreign key")


def _too_many(limit: int) -> Exception:
    return refused(f"it touches more than {limit} rows", "change fewer rows with one statement")


def _given(table: Table, statement: Statement) -> dict[str, int]:
    """Where in a row of VALUES each column of the key stands."""
    columns = [table.column(name) for name in statement.columns] or list(table.order)
    return {name: columns.index(name) for name in table.key if name in columns}


def _plainly(statement: Statement, position: int) -> bool:
    return all(len(row) > position and row[position] is not None for row in statement.rows)


def _suffix(table: Table, statement: Statement) -> str:
    """How the keys will be known: by what is given, returned, counted, or asked for here."""
    given = _given(table, statement)
    unknown = [
        name for name in table.key if name not in given or not _plainly(statement, given[name])
    ]
    if not unknown:
        return ""
    if statement.returning is not None:
        names = {table.column(name) for name in statement.returning}
        if "*" in names or names.issuperset(table.key):
            return ""
        raise refused(
            "the database makes the key and the statement does not return it",
            f"add {', '.join(table.key)} to RETURNING",
        )
    if _counted(table, statement, unknown):
        return ""
    if not table.returning:
        raise refused(
            "the database makes the key and does not tell it", "give the key in the statement"
        )
    names = {quote(table.dialect, name) for name in table.key}
    return "\nRETURNING " + ", ".join(sorted(names))


def _counted(table: Table, statement: Statement, unknown: Sequence[str]) -> bool:
    """Whether the session can be asked for the numbers that the database gave."""
    if (
        table.auto is None
        or list(unknown) != [table.auto]
        or table.auto in _listed(table, statement)
    ):
        return False
    return table.dialect is Dialect.MYSQL or len(statement.rows) == 1


def _listed(table: Table, statement: Statement) -> set[str]:
    """The columns that the statement gives values for."""
    if statement.columns:
        return {table.column(name) for name in statement.columns}
    return set(table.order) if any(statement.rows) else set()


def _inserted(
    table: Table, statement: Statement, parameters: object, returned: Result | None
) -> Steps[dict[Key, Row]]:
    given = _given(table, statement)
    plain = {name for name, position in given.items() if _plainly(statement, position)}
    unknown = [name for name in table.key if name not in plain]
    conditions: list[Query] = []
    if unknown and returned is not None and returned.rows:
        positions = _returned(table, statement, returned)
        text = " AND ".join(f"{quote(table.dialect, name)} = ?" for name in table.key)
        conditions = [Query(text, tuple(row[i] for i in positions)) for row in returned.rows]
    else:
        numbers: Iterator[int] = iter(())
        if unknown:
            numbers = yield from _numbers(table, len(statement.rows))
        for row in statement.rows:
            parts = []
            for name in table.key:
                cell = row[given[name]] if name in plain else None
                value = cell.bind(parameters) if cell else Query("?", (next(numbers),))
                own = quote(table.dialect, name)
                parts.append(Query(f"{own} = {value.text}", value.parameters))
            conditions.append(_joined(parts, " AND "))
    found: dict[Key, Row] = {}
    for start in range(0, len(conditions), _CHUNK):
        chunk = [Query(f"({part.text})", part.parameters) for part in conditions[start:][:_CHUNK]]
        read = yield from _read(table, table.quoted, _joined(chunk, " OR "), len(chunk))
        found.update(read)
    return found


def _numbers(table: Table, count: int) -> Steps[Iterator[int]]:
    if table.dialect is Dialect.SQLITE:
        result = yield Query("SELECT last_insert_rowid(), 1")
    else:
        result = yield Query("SELECT LAST_INSERT_ID(), @@SESSION.auto_increment_increment")
    first, step = (int(str(value)) for value in result.rows[0])
    return iter(range(first, first + step * count, step))


def _returned(table: Table, statement: Statement, returned: Result) -> list[int]:
    names = [table.column(name) for name in statement.returning or returned.columns]
    if "*" in names:
        names = [table.column(name) for name in returned.columns]
    return [names.index(name) for name in table.key]


def _joined(parts: Sequence[Query], word: str) -> Query:
    values = tuple(value for part in parts for value in tuple(part.parameters))
    return Query(word.join(part.text for part in parts), values)


def _matching(table: Table) -> str:
    return " AND ".join(
        f"{quote(table.dialect, name)} = {table.by_name[name].write}" for name in table.key
    )


def _keyed(table: Table, key: Key) -> tuple[object, ...]:
    return tuple(parameter(table, part) for part in key)


def _read(
    table: Table, source: str, where: Query, limit: int, *, locking: bool = True
) -> Steps[dict[Key, Row]]:
    """Rows by key, in the key's order; one more than `limit` at most."""
    names = tuple(column.name for column in table.columns)
    reads = ", ".join(text for column in table.columns for text in column.read)
    keys = ", ".join(quote(table.dialect, name) for name in table.key)
    condition = f" WHERE {where.text}" if where.text else ""
    lock_ = " FOR UPDATE" if locking and table.dialect is not Dialect.SQLITE else ""
    result = yield Query(
        f"SELECT {reads} FROM {source}{condition} ORDER BY {keys} LIMIT {limit + 1}{lock_}",  # noqa: S608
        where.parameters,
    )
    return dict(_decoded(table, result, names))


def _decoded(table: Table, result: Result, names: tuple[str, ...]) -> Iterator[tuple[Key, Row]]:
    for cells in result.rows:
        if table.dialect is Dialect.SQLITE:
            pairs = zip(cells[::2], cells[1::2], strict=True)
            values = [_tagged(str(kind), value) for kind, value in pairs]
        else:
            values = [_text(value) for value in cells]
        row = dict(zip(names, values, strict=True))
        key = tuple(row[name] for name in table.key)
        if any(part is None for part in key):
            raise refused(f"a row of {table.full} has NULL in its primary key")
        yield tuple(part for part in key if part is not None), row


def _text(value: object) -> str | None:
    match value:
        case None:
            return None
        case bytes() | bytearray():
            return value.decode()
        case _:
            return str(value)


def _tagged(kind: str, value: object) -> str | None:
    match kind:
        case "null":
            return None
        case "integer":
            return f"i:{value}"
        case "real":
            return f"r:{value!r}"
        case "blob":
            return f"b:{value}"
        case _:
            return f"t:{value}"


def _parts(text: str) -> list[str]:
    """A statement of ours cut at its marks; its names may hold `?`, within quotes."""
    parts, quoted, start = [], "", 0
    for position, character in enumerate(text):
        if quoted:
            quoted = "" if character == quoted else quoted
        elif character in "\"`'":
            quoted = character
        elif character == "?":
            parts += [text[start:position], "?"]
            start = position + 1
    return [*parts, text[start:]]


def _constant(dialect: Dialect, value: object) -> str:
    match value:
        case None:
            return "NULL"
        case bytes():
            return f"X'{value.hex()}'"
        case int():
            return str(value)
        case float():
            return repr(value).replace("inf", "9e999")
        case _:
            text = str(value).replace("'", "''")
            return "'" + (text.replace("\\", "\\\\") if dialect is Dialect.MYSQL else text) + "'"
