"""What a SQL statement will do, before it runs: whether it can be undone, and what it touches.

Pure: text in, `Statement` out. The catalogue is asked later, by `images`.

Rules:
- What can't be undone exactly is refused with its reason (`UnsupportedStatementError`): what is not
  understood is refused too. Nothing is guessed.
- A write has one table, named once; it neither joins nor changes on conflict.
- Under READ COMMITTED a subquery in WHERE may choose other rows the second time, so it is refused
  where the database lets others write meanwhile.
- Fragments of the statement keep its parameters by reference: `Fragment.bind` gives a query with
  the values of one execution. So an analysis serves every execution of the same text.
- A sequence's `nextval` is let through: no rollback undoes it either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from bedstone.errors import InvalidError
from bedstone.transactions.sql import Dialect, Query, Style
from bedstone.transactions.statement_text import MARKER, first_word, marked, outside, refused

if TYPE_CHECKING:
    from sqlglot import exp

PROJECTION = "bedstone_projection"
"""Stands in a locking read for the columns that are asked."""


class Action(StrEnum):
    """What a statement does."""

    READ = "read"
    LOCK = "lock"
    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    BEGIN = "begin"
    SAVEPOINT = "savepoint"
    RELEASE = "release"
    ROLLBACK_TO = "rollback to"


@dataclass(frozen=True, slots=True)
class Name:
    """A table's name as written; folded as the dialect folds it."""

    schema: str | None
    table: str


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of SQL with `?` for parameters.

    Args:
        text: the piece.
        references: for each `?` the position or the name of its parameter.
    """

    text: str
    references: tuple[int | str, ...] = ()

    def bind(self, parameters: object) -> Query:
        """The piece with the values of one execution.

        Raises:
            InvalidError: there are too few parameters.
        """
        source: Any = parameters
        try:
            return Query(self.text, tuple(source[key] for key in self.references))
        except (LookupError, TypeError) as error:
            raise InvalidError(
                f"got parameters without {error}, expected one for each mark of the statement"
            ) from error


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement that may run inside a transaction.

    Args:
        action: what it does.
        name: the one table that it writes or locks.
        source: that table as FROM names it, with its alias.
        columns: INSERT: those given, empty for all; UPDATE: those set.
        where: the condition, without the word; None for all rows.
        rows: INSERT: for each row its values; None where a value is known to the database only.
        returning: what RETURNING gives: names, `*`; None without.
        reading: LOCK: the read itself, with `PROJECTION` for its columns.
        functions: the names of functions that are not part of SQL.
        savepoint: the name of one.
    """

    action: Action
    name: Name | None = None
    source: str = ""
    columns: tuple[str, ...] = ()
    where: Fragment | None = None
    rows: tuple[tuple[Fragment | None, ...], ...] = ()
    returning: tuple[str, ...] | None = None
    reading: Fragment | None = None
    functions: tuple[str, ...] = ()
    savepoint: str = ""


_SESSION = re.compile(
    r"set_config|setval|pg_(try_)?advisory\w*|pg_notify|dblink\w*|lo_\w+|pg_terminate_backend"
    r"|pg_cancel_backend|pg_reload_conf|get_lock|release_(all_)?locks?|load_extension|writefile"
    r"|query_to_xml\w*|pg_import_system_collations|pg_logical_emit_message"
)
_VOLATILE = re.compile(
    r"rand|random|randn|randomblob|uuid|gen_random_uuid|uuid\w*|clock_timestamp|timeofday|nextval"
    r"|sysdate|last_insert_rowid|last_insert_id|changes|total_changes"
)
_READS = {"SELECT", "WITH", "VALUES", "TABLE", "SHOW", "DESCRIBE", "DESC", "EXPLAIN"}
_WRITES = {"INSERT", "UPDATE", "DELETE"}
REASONS = {
    "REPLACE": "REPLACE deletes rows that it does not name",
    "MERGE": "MERGE decides row by row what it does",
    "COPY": "COPY says not which rows it writes",
    "LOAD": "LOAD says not which rows it writes",
    "CALL": "a procedure may do anything",
    "DO": "a block may do anything",
    "EXECUTE": "a prepared statement's text is not known here",
    "PREPARE": "a prepared statement's text is not known later",
    "TRUNCATE": "TRUNCATE keeps no rows to give back",
    "COMMIT": "a local transaction ends with the connection's own `commit()`",
    "END": "a local transaction ends with the connection's own `commit()`",
    "ROLLBACK": "a local transaction ends with the connection's own `rollback()`",
    "ABORT": "a local transaction ends with the connection's own `rollback()`",
    "SET": "it changes the session, which another transaction may use next",
    "RESET": "it changes the session, which another transaction may use next",
    "USE": "it changes the session, which another transaction may use next",
    "DISCARD": "it changes the session, which another transaction may use next",
    "PRAGMA": "it may change the session or the database",
    "LOCK": "locks on tables are not known to other databases' transactions",
    "XA": "XA has its own mode",
}
SCHEMA_CHANGES = {
    "CREATE",
    "ALTER",
    "DROP",
    "GRANT",
    "REVOKE",
    "RENAME",
    "COMMENT",
    "REINDEX",
    "VACUUM",
}
_LOCAL = re.compile(
    r"SET\s+(LOCAL\s+(statement_timeout|lock_timeout)\b|TRANSACTION\b)[^;]*;?\s*", re.IGNORECASE
)
_SAVEPOINT = re.compile(
    r"(?P<verb>SAVEPOINT|RELEASE(\s+SAVEPOINT)?|ROLLBACK(\s+(TRANSACTION|WORK))?\s+TO(\s+SAVEPOINT)?)"
    r"\s+(?P<name>\"[^\"]+\"|`[^`]+`|\w+)\s*;?\s*",
    re.IGNORECASE,
)


@lru_cache(maxsize=1024)
def analyse(text: str, dialect: Dialect, style: Style, *, bound: bool = True) -> Statement:
    """What a statement does.

    Args:
        text: one statement, as the driver is given it.
        dialect: whose SQL.
        style: how parameters are marked; FORMAT is `%s` and `%(x)s`, QMARK also `:x` and `?1`.
        bound: whether parameters are given at all: without, a driver looks for no `%`.

    Raises:
        UnsupportedStatementError: it can't be undone, or is not understood.
    """
    word = first_word(text)
    stripped = text.strip()
    if found := _SAVEPOINT.fullmatch(stripped):
        verb = found["verb"].upper()
        action = Action.SAVEPOINT if verb == "SAVEPOINT" else Action.ROLLBACK_TO
        action = Action.RELEASE if verb.startswith("RELEASE") else action
        return Statement(action, savepoint=found["name"].strip('"`').lower())
    if word in {"BEGIN", "START"}:
        return Statement(Action.BEGIN)
    if dialect is Dialect.POSTGRES and _LOCAL.fullmatch(stripped):
        return Statement(Action.READ)
    if word in SCHEMA_CHANGES:
        raise refused(f"{word} changes the schema, which no image of rows gives back")
    if word in REASONS:
        raise refused(REASONS[word])
    if word == "EXPLAIN" and re.search(r"\banaly[sz]e\b", text, re.IGNORECASE):
        raise refused("EXPLAIN ANALYZE runs the statement")
    if word in {"SHOW", "DESCRIBE", "DESC", "EXPLAIN"} and ";" not in stripped[:-1]:
        return Statement(Action.READ)
    if word not in _READS | _WRITES:
        raise refused(f"got {word or 'nothing'!r}, expected SELECT, INSERT, UPDATE or DELETE")
    named, references = marked(text, dialect, style, bound=bound)
    return _Analysis(_parsed(named, dialect), dialect, references).statement()


def _parsed(text: str, dialect: Dialect) -> exp.Expr:
    import sqlglot
    from sqlglot.errors import SqlglotError

    try:
        trees = [tree for tree in sqlglot.parse(text, read=str(dialect)) if tree is not None]
    except SqlglotError as error:
        raise refused("it is not understood") from error
    if len(trees) != 1:
        raise refused(f"got {len(trees)} statements in one, expected 1", "run them one by one")
    return trees[0]


class _Analysis:
    """One tree being looked at."""

    def __init__(self, tree: exp.Expr, dialect: Dialect, references: tuple[int | str, ...]) -> None:
        self._tree = tree
        self._dialect = dialect
        self._references = references

    def statement(self) -> Statement:
        from sqlglot import exp

        tree = self._tree
        functions = self._functions(tree)
        for name in functions:
            if _SESSION.fullmatch(name):
                raise refused(f"the function {name} has effects beside the rows of a table")
        bare = outside(self._text(tree), self._dialect)
        if len(self._used(bare)) != len(self._references):
            raise refused("a parameter stands where its meaning is not understood")
        match tree:
            case exp.Insert():
                return self._insert(tree, functions)
            case exp.Update():
                return self._update(tree, functions)
            case exp.Delete():
                return self._delete(tree, functions)
            case exp.Query() | exp.Values():
                return self._read(tree, functions)
            case _:
                raise refused("it is not understood")

    def _read(self, tree: exp.Expr, functions: tuple[str, ...]) -> Statement:
        from sqlglot import exp

        if tree.find(exp.DML, exp.Into, exp.Command) is not None:
            raise refused("a write inside a read hides which rows it touches")
        if tree.find(exp.Lock) is None:
            return Statement(Action.READ, functions=functions)
        source = tree.args.get("from_")
        simple = isinstance(tree, exp.Select) and source is not None and not tree.args.get("joins")
        if not simple or tree.find(exp.With, exp.Subquery) or tree.args.get("laterals"):
            raise refused(
                "a locking read of several tables does not tell which global locks it needs",
                "lock each table with a statement of its own",
            )
        name, table = self._table(source.this if source is not None else None)
        reading = tree.copy()
        reading.set("expressions", [exp.column(PROJECTION)])
        if not reading.args.get("limit"):
            reading.set("order", None)
        reading_text = self._fragment(reading)
        return Statement(Action.LOCK, name, table, reading=reading_text, functions=functions)

    def _insert(self, tree: exp.Insert, functions: tuple[str, ...]) -> Statement:
        from sqlglot import exp

        if tree.args.get("conflict") or tree.args.get("ignore") or tree.args.get("alternative"):
            raise refused("whether it inserts, changes or skips a row is known to it alone")
        self._refuse_parts(tree, "with_", "overwrite", "exists", "partition", "is_function")
        target = tree.this
        columns: tuple[str, ...] = ()
        if isinstance(target, exp.Schema):
            columns = tuple(self._fold(column) for column in target.expressions)
            target = target.this
        name, source = self._table(target)
        values = tree.args.get("expression")
        rows: list[tuple[Fragment | None, ...]] = []
        if tree.args.get("default"):
            rows.append(())
        elif isinstance(values, exp.Values):
            for row in values.expressions:
                cells = row.expressions if isinstance(row, exp.Tuple) else [row]
                rows.append(tuple(self._plain(cell) for cell in cells))
            if values.find(exp.Query):
                raise refused("a value that is read may differ the second time")
        else:
            raise refused("INSERT … SELECT does not tell which rows it writes")
        returning = self._returning(tree)
        return Statement(
            Action.INSERT,
            name,
            source,
            columns=columns,
            rows=tuple(rows),
            returning=returning,
            functions=functions,
        )

    def _update(self, tree: exp.Update, functions: tuple[str, ...]) -> Statement:
        self._refuse_parts(tree, "with_", "from_", "order", "limit", "joins", "options")
        name, source = self._table(tree.this)
        columns: list[str] = []
        for assignment in tree.expressions:
            columns.extend(self._targets(assignment.this, name, source))
        return Statement(
            Action.UPDATE,
            name,
            source,
            columns=tuple(columns),
            where=self._where(tree),
            returning=self._returning(tree),
            functions=functions,
        )

    def _delete(self, tree: exp.Delete, functions: tuple[str, ...]) -> Statement:
        self._refuse_parts(tree, "with_", "using", "tables", "order", "limit", "cluster")
        name, source = self._table(tree.this)
        return Statement(
            Action.DELETE,
            name,
            source,
            where=self._where(tree),
            returning=self._returning(tree),
            functions=functions,
        )

    def _refuse_parts(self, tree: exp.Expr, *parts: str) -> None:
        for part in parts:
            if tree.args.get(part):
                word = part.strip("_").upper()
                raise refused(f"with {word} it does not tell which rows of one table it writes")

    def _table(self, node: object) -> tuple[Name, str]:
        from sqlglot import exp

        if not isinstance(node, exp.Table) or not isinstance(node.this, exp.Identifier):
            raise refused("it names no plain table")
        for part in ("joins", "catalog", "partition", "sample", "laterals", "pivots", "when"):
            if node.args.get(part):
                raise refused("it names more than one plain table")
        schema = node.args.get("db")
        name = Name(self._fold(schema) if schema is not None else None, self._fold(node.this))
        return name, node.sql(dialect=str(self._dialect), comments=False)

    def _fold(self, node: exp.Expr) -> str:
        if self._dialect is Dialect.POSTGRES and not node.args.get("quoted"):
            return node.name.lower()
        return node.name

    def _targets(self, node: exp.Expr, name: Name, source: str) -> list[str]:
        from sqlglot import exp

        match node:
            case exp.Tuple() | exp.Paren():
                inner = node.expressions or [node.this]
                return [found for one in inner for found in self._targets(one, name, source)]
            case exp.Bracket() | exp.Dot():
                return self._targets(node.this, name, source)
            case exp.Column():
                table = node.args.get("table")
                # PostgreSQL: `SET a.b` sets the field b of the column a, never a table's column.
                whole = self._dialect is Dialect.POSTGRES and table is not None
                return [self._fold(table if whole and table is not None else node.this)]
            case exp.Identifier():
                return [self._fold(node)]
            case _:
                raise refused("it is not understood which columns it sets")

    def _where(self, tree: exp.Expr) -> Fragment | None:
        from sqlglot import exp

        where = tree.args.get("where")
        if where is None:
            return None
        for name in self._functions(where):
            if _VOLATILE.fullmatch(name):
                raise refused(f"{name} in WHERE chooses other rows each time")
        if self._dialect is not Dialect.SQLITE and where.find(exp.Query):
            raise refused(
                "a subquery in WHERE may choose other rows the second time",
                "read the keys first, with FOR UPDATE, and name them in WHERE",
            )
        return self._fragment(where.this)

    def _returning(self, tree: exp.Expr) -> tuple[str, ...] | None:
        from sqlglot import exp

        returning = tree.args.get("returning")
        if returning is None:
            return None
        if returning.args.get("into"):
            raise refused("RETURNING … INTO is not understood")
        names: list[str] = []
        for node in returning.expressions:
            match node:
                case exp.Star() | exp.Column(this=exp.Star()):
                    names.append("*")
                case exp.Column():
                    names.append(self._fold(node.this))
                case exp.Alias(this=exp.Column() as column):
                    names.append(self._fold(column.this))
                case _:
                    names.append("")
        return tuple(names)

    def _plain(self, node: exp.Expr) -> Fragment | None:
        """A value that is the same each time it is evaluated."""
        from sqlglot import exp

        bare = node
        while isinstance(bare, exp.Cast | exp.Paren | exp.Neg):
            bare = bare.this
        if isinstance(bare, exp.Literal | exp.Boolean):
            return self._fragment(node)
        if isinstance(bare, exp.Column) and MARKER.fullmatch(bare.name):
            return self._fragment(node)
        return None

    def _functions(self, tree: exp.Expr) -> tuple[str, ...]:
        from sqlglot import exp

        names: set[str] = set()
        for node in tree.find_all(exp.Func):
            if not isinstance(node, exp.Cast | exp.Connector | exp.Case | exp.If):
                name = node.name if isinstance(node, exp.Anonymous) else node.sql_name()
                names.add(name.lower())
        return tuple(sorted(names))

    def _fragment(self, node: exp.Expr) -> Fragment:
        text = self._text(node)
        if "?" in outside(text, self._dialect):
            raise refused(
                "the operator ? can't be told from a parameter",
                "use the function: jsonb_exists, jsonb_exists_any or jsonb_exists_all",
            )
        return Fragment(MARKER.sub("?", text), self._used(text))

    def _text(self, node: exp.Expr) -> str:
        return node.sql(dialect=str(self._dialect), comments=False)

    def _used(self, text: str) -> tuple[int | str, ...]:
        numbers = (int(found[1]) for found in MARKER.finditer(text))
        return tuple(self._references[number] for number in numbers)


def parameters_of(parameters: object) -> Sequence[object] | Mapping[str, object]:
    """The parameters of one execution; none is an empty sequence."""
    match parameters:
        case None:
            return ()
        case Mapping():
            return parameters
        case _:
            return tuple(parameters)  # type: ignore[arg-type]
