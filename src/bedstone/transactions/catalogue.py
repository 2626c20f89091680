"""What a database says of its tables: what AT needs to take images and to give rows back.

Owns `Table` and `Column`, and the conversations that read them from each dialect's catalogue.

Rules:
- A table's description is kept as long as its `stamp` is the same; the stamp is asked once for
  each table and local transaction, and changes with columns, triggers and foreign keys.
- A value travels as text that the database itself made, or as a tagged text in SQLite, where each
  value has a type of its own: exact, and independent of drivers. `read` and `write` convert.
- What stands in the way of exact undo is a reason in `refusals`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from bedstone.transactions.sql import Dialect, Query, Steps
from bedstone.transactions.statement_text import refused
from bedstone.transactions.statements import Name


@dataclass(frozen=True, slots=True)
class Column:
    """One column that an image holds; generated ones are not.

    Args:
        name: as the catalogue has it.
        read: the expressions that give its value as text; two in SQLite: type and value.
        write: the expression that takes the text back, with one `?`.
        settable: whether an UPDATE may set it.
    """

    name: str
    read: tuple[str, ...]
    write: str
    settable: bool = True


@dataclass(frozen=True, slots=True)
class Reference:
    """A foreign key of another table to this one.

    Args:
        table: the other one, quoted.
        pairs: its columns, quoted, with ours.
        deletes: whether deleting ours changes the other table's rows.
        updates: likewise, changing ours.
    """

    table: str
    pairs: tuple[tuple[str, str], ...]
    deletes: bool
    updates: bool


@dataclass(frozen=True, slots=True)
class Table:
    """A table that can be given back.

    Args:
        dialect: whose.
        schema: where it is.
        name: its own.
        columns: those that images hold.
        order: all columns in the table's order, as INSERT without a list means them.
        key: the primary key's columns.
        unique: other unique keys over plain columns.
        auto: the key's column that the database counts.
        returning: whether INSERT … RETURNING is understood.
        overriding: whether a key is given back only with OVERRIDING SYSTEM VALUE.
        references: foreign keys to it.
        refusals: why no statement may write it.
    """

    dialect: Dialect
    schema: str
    name: str
    columns: tuple[Column, ...] = ()
    order: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    unique: tuple[tuple[str, ...], ...] = ()
    auto: str | None = None
    returning: bool = True
    overriding: bool = False
    references: tuple[Reference, ...] = ()
    refusals: tuple[str, ...] = ()
    by_name: dict[str, Column] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        self.by_name.update({column.name: column for column in self.columns})

    @property
    def full(self) -> str:
        """Schema and name, for people and locks."""
        return f"{self.schema}.{self.name}" if self.schema else self.name

    @property
    def quoted(self) -> str:
        """Schema and name, for statements."""
        parts = [self.schema, self.name] if self.schema else [self.name]
        return ".".join(quote(self.dialect, part) for part in parts)

    def column(self, name: str) -> str:
        """The catalogue's spelling of a column's name; the name itself where there is none."""
        if self.dialect is Dialect.POSTGRES:
            return name
        folded = name.casefold()
        return next((own for own in self.order if own.casefold() == folded), name)


def quote(dialect: Dialect, name: str) -> str:
    """A name in quotes."""
    mark = "`" if dialect is Dialect.MYSQL else '"'
    return mark + name.replace(mark, mark * 2) + mark


def stamp(
    dialect: Dialect, name: Name, settings: tuple[str, ...] = ()
) -> Steps[tuple[tuple[str, ...], dict[str, str]]]:
    """What changes when the table or the session's view of it does; and settings (PostgreSQL)."""
    match dialect:
        case Dialect.POSTGRES:
            shown = "".join(f", current_setting('{setting}')" for setting in settings)
            text = _POSTGRES_STAMP.replace(" AS triggers", shown)
            result = yield Query(text, (_regclass(name),))
        case Dialect.MYSQL:
            result = yield Query(_MYSQL_STAMP, (name.schema, name.table) * 3)
        case Dialect.SQLITE:
            result = yield Query("SELECT CAST(schema_version AS TEXT) FROM pragma_schema_version")
    values = tuple(_text(value) for row in result.rows for value in row)
    first = len(values) - len(settings) if values else 0
    return values[:first], dict(zip(settings, values[first:], strict=bool(values)))


def describe(dialect: Dialect, name: Name) -> Steps[Table]:
    """Read a table's description.

    Raises:
        UnsupportedStatementError: there is no such table.
    """
    match dialect:
        case Dialect.POSTGRES:
            return (yield from _postgres(name))
        case Dialect.MYSQL:
            return (yield from _mysql(name))
        case Dialect.SQLITE:
            return (yield from _sqlite(name))


def effects(dialect: Dialect, functions: Iterable[str]) -> Steps[str | None]:
    """The first of these functions that may write."""
    names = ",".join(functions)
    if not names or dialect is Dialect.SQLITE:
        return None
    text = _POSTGRES_EFFECTS if dialect is Dialect.POSTGRES else _MYSQL_EFFECTS
    result = yield Query(text, (names,))
    return _text(result.rows[0][0]) if result.rows else None


def _text(value: object) -> str:
    match value:
        case None:
            return ""
        case bytes() | bytearray():
            return value.decode()
        case _:
            return str(value)


def _strings(rows: Iterable[tuple[object, ...]]) -> list[tuple[str, ...]]:
    return [tuple(_text(value) for value in row) for row in rows]


def _missing(name: Name) -> Exception:
    return refused(f"there is no table {name.table} in the catalogue", "see the table's name")


def _grouped(rows: list[tuple[str, ...]]) -> dict[str, list[tuple[str, ...]]]:
    groups: dict[str, list[tuple[str, ...]]] = {}
    for first, *rest in rows:
        groups.setdefault(first, []).append(tuple(rest))
    return groups


# PostgreSQL

_POSTGRES_STAMP = """
SELECT c.oid::text, c.xmin::text, current_setting('search_path'),
  (SELECT count(*)::text || ':' || coalesce(max(t.oid::bigint), 0)::text
   FROM pg_trigger t WHERE t.tgrelid = c.oid) AS triggers
FROM pg_class c WHERE c.oid = to_regclass(CAST(? AS text))"""
_POSTGRES_TABLE = """
SELECT c.oid::text, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text,
  c.relhasrules::int::text, (c.relhassubclass AND c.relkind = 'r')::int::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = to_regclass(CAST(? AS text))"""
_POSTGRES_COLUMNS = """
SELECT attname::text, format_type(atttypid, atttypmod), attgenerated::text, attidentity::text
FROM pg_attribute WHERE attrelid = CAST(CAST(? AS text) AS oid)
AND attnum > 0 AND NOT attisdropped ORDER BY attnum"""
_POSTGRES_KEYS = """
SELECT i.indexrelid::text, i.indisprimary::int::text, a.attname::text
FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k(number, position)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
WHERE i.indrelid = CAST(CAST(? AS text) AS oid) AND i.indisunique AND i.indexprs IS NULL
AND k.position <= i.indnkeyatts ORDER BY i.indexrelid, k.position"""
_POSTGRES_TRIGGERS = """
SELECT tgname::text FROM pg_trigger WHERE NOT tgisinternal AND tgenabled <> 'D'
AND (tgtype::int & 28) <> 0 AND (tgrelid = CAST(CAST(? AS text) AS oid) OR tgrelid IN
  (SELECT relid FROM pg_partition_tree(CAST(CAST(? AS text) AS oid)::regclass))) LIMIT 1"""
_POSTGRES_REFERENCES = """
SELECT c.oid::text, c.conrelid::regclass::text, c.confdeltype::text, c.confupdtype::text,
  quote_ident(o.attname), a.attname::text
FROM pg_constraint c CROSS JOIN LATERAL unnest(c.conkey, c.confkey) AS k(other, own)
JOIN pg_attribute o ON o.attrelid = c.conrelid AND o.attnum = k.other
JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.own
WHERE c.confrelid = CAST(CAST(? AS text) AS oid) AND c.contype = 'f' ORDER BY c.oid, k.other"""
_POSTGRES_EFFECTS = """
SELECT p.proname::text FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE p.proname = ANY(string_to_array(CAST(? AS text), ',')) AND p.provolatile = 'v'
AND l.lanname NOT IN ('internal', 'c') AND n.nspname <> 'pg_catalog' LIMIT 1"""
_POSTGRES_KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}


def _regclass(name: Name) -> str:
    parts = [name.schema, name.table] if name.schema else [name.table]
    return ".".join(quote(Dialect.POSTGRES, part) for part in parts)


def _postgres(name: Name) -> Steps[Table]:
    found = _strings((yield Query(_POSTGRES_TABLE, (_regclass(name),))).rows)
    if not found:
        raise _missing(name)
    oid, schema, table, kind, persistence, rules, inherited = found[0]
    columns = _strings((yield Query(_POSTGRES_COLUMNS, (oid,))).rows)
    keys = _grouped(_strings((yield Query(_POSTGRES_KEYS, (oid,))).rows))
    triggers = _strings((yield Query(_POSTGRES_TRIGGERS, (oid, oid))).rows)
    references = _grouped(_strings((yield Query(_POSTGRES_REFERENCES, (oid,))).rows))
    refusals = [
        reason
        for reason, holds in (
            (f"it is {_POSTGRES_KINDS.get(kind, 'no table')}", kind not in "rp"),
            ("it is temporary, and gone before it could be undone", persistence == "t"),
            ("it has rules", rules == "1"),
            ("other tables inherit from it", inherited == "1"),
            (f"it has the trigger {triggers[0][0] if triggers else ''}", bool(triggers)),
        )
        if holds
    ]
    primary = [rows for rows in keys.values() if rows[0][0] == "1"]
    return Table(
        Dialect.POSTGRES,
        schema,
        table,
        columns=tuple(
            Column(
                column,
                (f"CAST({quote(Dialect.POSTGRES, column)} AS text)",),
                f"CAST(CAST(? AS text) AS {kind_})",
                settable=identity != "a",
            )
            for column, kind_, generated, identity in columns
            if not generated
        ),
        order=tuple(column for column, *_ in columns),
        key=tuple(column for _, column in primary[0]) if primary else (),
        unique=tuple(
            tuple(column for _, column in rows) for rows in keys.values() if rows[0][0] != "1"
        ),
        overriding=any(identity == "a" for *_, identity in columns),
        references=tuple(
            Reference(
                rows[0][0],
                tuple((other, own) for *_, other, own in rows),
                deletes=rows[0][1] in "cnd",
                updates=rows[0][2] in "cnd",
            )
            for rows in references.values()
        ),
        refusals=tuple(refusals),
    )


# MySQL and MariaDB

_MYSQL_STAMP = """
SELECT DATABASE(),
  (SELECT CONCAT(COUNT(*), ':',
     SUM(CRC32(CONCAT(ordinal_position, column_name, column_type, extra))))
   FROM information_schema.columns
   WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?),
  (SELECT COUNT(*) FROM information_schema.triggers
   WHERE event_object_schema = COALESCE(?, DATABASE()) AND event_object_table = ?),
  (SELECT CONCAT(COUNT(*), ':', SUM(CRC32(CONCAT(constraint_name, delete_rule, update_rule))))
   FROM information_schema.referential_constraints
   WHERE unique_constraint_schema = COALESCE(?, DATABASE()) AND referenced_table_name = ?)"""
_MYSQL_TABLE = """
SELECT table_schema, table_name, table_type, engine, VERSION() FROM information_schema.tables
WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?"""
_MYSQL_COLUMNS = """
SELECT column_name, data_type, extra, COALESCE(generation_expression, '')
FROM information_schema.columns WHERE table_schema = ? AND table_name = ?
ORDER BY ordinal_position"""
_MYSQL_KEYS = """
SELECT index_name, column_name, COALESCE(sub_part, 0) FROM information_schema.statistics
WHERE table_schema = ? AND table_name = ? AND non_unique = 0 ORDER BY index_name, seq_in_index"""
_MYSQL_TRIGGERS = """
SELECT trigger_name FROM information_schema.triggers
WHERE event_object_schema = ? AND event_object_table = ? LIMIT 1"""
_MYSQL_REFERENCES = """
SELECT CONCAT(k.constraint_schema, '/', k.constraint_name), k.table_schema, k.table_name,
  r.delete_rule, r.update_rule, k.column_name, k.referenced_column_name
FROM information_schema.key_column_usage k JOIN information_schema.referential_constraints r
ON r.constraint_schema = k.constraint_schema AND r.constraint_name = k.constraint_name
AND r.table_name = k.table_name
WHERE k.referenced_table_schema = ? AND k.referenced_table_name = ?
ORDER BY 1, k.ordinal_position"""
_MYSQL_EFFECTS = """
SELECT routine_name FROM information_schema.routines WHERE routine_schema = DATABASE()
AND routine_type = 'FUNCTION' AND sql_data_access <> 'NO SQL'
AND sql_data_access <> 'READS SQL DATA' AND FIND_IN_SET(LOWER(routine_name), ?) LIMIT 1"""
_BINARY = {
    "binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob", "geometry", "point",
    "linestring", "polygon", "multipoint", "multilinestring", "multipolygon", "geometrycollection",
    "geomcollection",
}  # fmt: skip


def _mysql_column(name: str, kind: str) -> Column:
    own = quote(Dialect.MYSQL, name)
    if kind in _BINARY:
        return Column(name, (f"HEX({own})",), "UNHEX(?)")
    if kind == "bit":
        return Column(name, (f"CAST({own} + 0 AS CHAR)",), "CAST(? AS UNSIGNED)")
    if kind == "timestamp":  # the session's time zone has no part in it
        return Column(name, (f"CAST(UNIX_TIMESTAMP({own}) AS CHAR)",), "FROM_UNIXTIME(?)")
    if kind in {"float", "double"}:  # as a double: a float alone shows six digits
        return Column(name, (f"CAST({own} * 1E0 AS CHAR)",), "?")
    return Column(name, (f"CAST({own} AS CHAR)",), "?")


def _mysql(name: Name) -> Steps[Table]:
    found = _strings((yield Query(_MYSQL_TABLE, (name.schema, name.table))).rows)
    if not found:
        raise _missing(name)
    schema, table, kind, engine, version = found[0]
    columns = _strings((yield Query(_MYSQL_COLUMNS, (schema, table))).rows)
    keys = _grouped(_strings((yield Query(_MYSQL_KEYS, (schema, table))).rows))
    triggers = _strings((yield Query(_MYSQL_TRIGGERS, (schema, table))).rows)
    references = _grouped(_strings((yield Query(_MYSQL_REFERENCES, (schema, table))).rows))
    refusals = []
    if kind != "BASE TABLE":
        refusals.append(f"it is a {kind.lower()}")
    elif engine.lower() != "innodb":
        refusals.append(f"its engine {engine} rolls nothing back")
    if triggers:
        refusals.append(f"it has the trigger {triggers[0][0]}")
    primary = tuple(column for column, _ in keys.pop("PRIMARY", []))
    auto = [column for column, _, extra, _ in columns if "auto_increment" in extra.lower()]
    return Table(
        Dialect.MYSQL,
        schema,
        table,
        columns=tuple(
            _mysql_column(column, data.lower()) for column, data, _, made in columns if not made
        ),
        order=tuple(column for column, *_ in columns),
        key=primary,
        unique=tuple(
            tuple(column for column, _ in rows)
            for rows in keys.values()
            if all(part == "0" for _, part in rows)
        ),
        auto=auto[0] if auto and auto[0] in primary else None,
        returning="mariadb" in version.lower(),
        references=tuple(
            Reference(
                f"{quote(Dialect.MYSQL, rows[0][0])}.{quote(Dialect.MYSQL, rows[0][1])}",
                tuple((quote(Dialect.MYSQL, other), own) for *_, other, own in rows),
                deletes=rows[0][2] in {"CASCADE", "SET NULL", "SET DEFAULT"},
                updates=rows[0][3] in {"CASCADE", "SET NULL", "SET DEFAULT"},
            )
            for rows in references.values()
        ),
        refusals=tuple(refusals),
    )


# SQLite

_SQLITE_TABLE = """
SELECT name, type, sql FROM sqlite_master
WHERE lower(name) = lower(?) AND type IN ('table', 'view')"""
_SQLITE_COLUMNS = "SELECT name, hidden, pk FROM pragma_table_xinfo(?) ORDER BY cid"
_SQLITE_KEYS = """
SELECT l.name, l.origin, i.name FROM pragma_index_list(?) l, pragma_index_info(l.name) i
WHERE l."unique" ORDER BY l.name, i.seqno"""
_SQLITE_TRIGGERS = """
SELECT name FROM sqlite_master WHERE type = 'trigger' AND lower(tbl_name) = lower(?)
UNION ALL SELECT name FROM sqlite_temp_master WHERE lower(tbl_name) = lower(?) LIMIT 1"""
_SQLITE_REFERENCES = """
SELECT m.name || '/' || f.id, m.name, f.on_delete, f.on_update, f."from", f."to", f.seq
FROM sqlite_master m, pragma_foreign_key_list(m.name) f
WHERE m.type = 'table' AND lower(f."table") = lower(?) ORDER BY 1, f.seq"""
_SQLITE_CHANGES = {"CASCADE", "SET NULL", "SET DEFAULT"}


def _sqlite(name: Name) -> Steps[Table]:
    found = _strings((yield Query(_SQLITE_TABLE, (name.table,))).rows)
    if not found or (name.schema or "main").lower() != "main":
        raise _missing(name)
    table, kind, text = found[0]
    columns = _strings((yield Query(_SQLITE_COLUMNS, (table,))).rows)
    keys = _grouped(_strings((yield Query(_SQLITE_KEYS, (table,))).rows))
    triggers = _strings((yield Query(_SQLITE_TRIGGERS, (table, table))).rows)
    references = _grouped(_strings((yield Query(_SQLITE_REFERENCES, (table,))).rows))
    refusals = []
    if kind != "table" or text.upper().lstrip().startswith("CREATE VIRTUAL"):
        refusals.append("it is no plain table")
    if triggers:
        refusals.append(f"it has the trigger {triggers[0][0]}")
    ranked = sorted((int(pk), column) for column, _, pk in columns if pk != "0")
    key = tuple(column for _, column in ranked)
    counted = len(key) == 1 and not any(rows[0][0] == "pk" for rows in keys.values())
    return Table(
        Dialect.SQLITE,
        "",
        table,
        columns=tuple(_sqlite_column(column) for column, hidden, _ in columns if hidden == "0"),
        order=tuple(column for column, hidden, _ in columns if hidden == "0"),
        key=key,
        unique=tuple(
            tuple(column for _, column in rows)
            for rows in keys.values()
            if rows[0][0] != "pk" and all(column for _, column in rows)
        ),
        auto=key[0] if counted else None,
        references=tuple(
            Reference(
                quote(Dialect.SQLITE, rows[0][0]),
                tuple(
                    (quote(Dialect.SQLITE, other), own or key[int(seq)])
                    for *_, other, own, seq in rows
                ),
                deletes=rows[0][1] in _SQLITE_CHANGES,
                updates=rows[0][2] in _SQLITE_CHANGES,
            )
            for rows in references.values()
        ),
        refusals=tuple(refusals),
    )


def _sqlite_column(name: str) -> Column:
    own = quote(Dialect.SQLITE, name)
    return Column(
        name,
        (f"typeof({own})", f"CASE typeof({own}) WHEN 'blob' THEN hex({own}) ELSE +{own} END"),
        "?",
    )
