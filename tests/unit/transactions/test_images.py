"""Images of rows: what is read around a statement, and what gives a row back."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

import pytest

from bedstone.errors import UnavailableError
from bedstone.transactions.catalogue import Column, Table, describe, stamp
from bedstone.transactions.connections import SyncConnection, adapt
from bedstone.transactions.errors import UnsupportedStatementError
from bedstone.transactions.images import (
    Change,
    Row,
    capture,
    give_back,
    literal,
    lock,
    order,
)
from bedstone.transactions.sql import Dialect, Query, Result, Style
from bedstone.transactions.statements import Name, Statement, analyse


@pytest.fixture
def raw() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as raw:
        raw.executescript(
            """
            CREATE TABLE t (id INTEGER PRIMARY KEY, a, u UNIQUE, "odd""? name" TEXT);
            INSERT INTO t VALUES (1, 1.5, 'x', 'it''s'), (2, x'00', 'y', '?'), (3, 9, 'z', NULL);
            CREATE TABLE child (id INTEGER PRIMARY KEY, t REFERENCES t (u) ON DELETE CASCADE);
            CREATE TABLE watched (id INTEGER PRIMARY KEY);
            CREATE TRIGGER watching AFTER DELETE ON watched BEGIN SELECT 1; END;
            CREATE TABLE loose (x TEXT PRIMARY KEY, y);
            CREATE VIEW seen AS SELECT * FROM t;
            """
        )
        yield raw


@pytest.fixture
def db(raw: sqlite3.Connection) -> SyncConnection:
    db = adapt(raw)
    assert isinstance(db, SyncConnection)
    return db


def _table(db: SyncConnection, name: str) -> Table:
    return db.run(describe(Dialect.SQLITE, Name(None, name)))


def _statement(text: str) -> Statement:
    return analyse(text, Dialect.SQLITE, Style.QMARK)


def test_the_image_before_holds_exact_values(db: SyncConnection) -> None:
    statement = _statement("UPDATE t SET a = 0 WHERE id <= ?")
    taken = db.run(capture(_table(db, "T"), statement, (2,)))
    assert taken.before == {
        ("i:1",): {"id": "i:1", "a": "r:1.5", "u": "t:x", 'odd"? name': "t:it's"},
        ("i:2",): {"id": "i:2", "a": "b:00", "u": "t:y", 'odd"? name': "t:?"},
    }
    assert lock("bank", "t", ("i:1", "t:a/b,c")) == "bank/t/1,a%2Fb%2Cc"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("t", "DELETE FROM t WHERE id = 1", "change with it by a foreign key"),
        ("t", "UPDATE t SET ID = 5", "primary key"),
        ("t", "UPDATE t SET rowid = 5", "primary key"),
        ("t", "UPDATE t SET a = 5", "more than 2 rows"),
        ("t", "INSERT INTO t (a) VALUES (1), (2), (3)", "more than 2 rows"),
        ("watched", "INSERT INTO watched VALUES (1)", "trigger watching"),
        ("seen", "UPDATE seen SET a = 1", "no plain table"),
        ("loose", "INSERT INTO loose VALUES (random(), 1) RETURNING y", "does not return"),
    ],
)
def test_what_the_table_forbids_is_refused(
    db: SyncConnection, name: str, text: str, reason: str
) -> None:
    with pytest.raises(UnsupportedStatementError) as raised:
        db.run(capture(_table(db, name), _statement(text), (), limit=2))
    assert reason in raised.value.message


def test_a_key_that_is_null_names_no_row(db: SyncConnection, raw: sqlite3.Connection) -> None:
    raw.execute("INSERT INTO loose VALUES (NULL, 1)")
    with pytest.raises(UnsupportedStatementError, match="NULL in its primary key"):
        db.run(capture(_table(db, "loose"), _statement("DELETE FROM loose"), ()))


def test_other_rows_than_were_read_are_an_error(db: SyncConnection) -> None:
    """Somebody wrote between the image and the statement."""
    taken = db.run(capture(_table(db, "t"), _statement("UPDATE t SET a = 0 WHERE id < 3"), ()))
    with pytest.raises(UnavailableError, match="touched 3 rows, expected the 2"):
        db.run(taken.after((), 3, None))


def test_an_update_that_changes_nothing_leaves_no_change(db: SyncConnection) -> None:
    taken = db.run(capture(_table(db, "t"), _statement("UPDATE t SET a = a"), ()))
    assert db.run(taken.after((), 3, None)) == ()


def test_the_key_that_the_database_makes_is_asked_for(db: SyncConnection) -> None:
    one = db.run(capture(_table(db, "t"), _statement("INSERT INTO t (a) VALUES (1)"), ()))
    assert one.suffix == ""
    two = db.run(capture(_table(db, "t"), _statement("INSERT INTO t (a) VALUES (1), (2)"), ()))
    assert two.suffix == '\nRETURNING "id"'
    null = db.run(capture(_table(db, "t"), _statement("INSERT INTO t VALUES (?, 1, 2, 3)"), (7,)))
    assert null.suffix == ""


@pytest.mark.parametrize(
    ("before", "now"), [("one", "two"), ("one", None), (None, "one"), ("two", "one")]
)
def test_what_is_given_back_is_what_was_also_as_text(
    db: SyncConnection, raw: sqlite3.Connection, before: str | None, now: str | None
) -> None:
    """The repair statement for a person does the same as the undo."""
    table = _table(db, "t")
    rows: dict[str | None, Row | None] = {
        None: None,
        "one": {"id": "i:9", "a": "b:00ff", "u": "t:it's ?", 'odd"? name': None},
        "two": {"id": "i:9", "a": "r:inf", "u": "i:-3", 'odd"? name': "t:"},
    }

    def state() -> list[Any]:
        return raw.execute("SELECT *, typeof(a) FROM t WHERE id = 9").fetchall()

    def make(row: Row | None) -> list[Any]:
        raw.execute("DELETE FROM t WHERE id = 9")
        query = give_back(table, ("i:9",), row, None)
        if query is not None:
            db.execute(query)
        return state()

    expected = make(rows[before])
    query = give_back(table, ("i:9",), rows[before], rows[now])
    assert query is not None
    make(rows[now])
    db.execute(query)
    assert state() == expected
    make(rows[now])
    raw.execute(literal(table, query))
    assert state() == expected


def test_a_unique_value_is_freed_before_it_is_taken(db: SyncConnection) -> None:
    """One statement moved x→y→z→w; backwards it must begin where a value is free."""
    table = _table(db, "t")
    steps = [("1", "x", "y"), ("2", "y", "z"), ("3", "z", "w")]
    changes = [
        Change(1, "", "t", (f"i:{n}",), {"u": f"t:{old}"}, {"u": f"t:{new}"})
        for n, old, new in steps
    ]
    found = list(order({("", "t"): table}, changes[::-1]))
    assert [change.key for change in found] == [("i:1",), ("i:2",), ("i:3",)]


def test_the_stamp_changes_with_the_schema(db: SyncConnection, raw: sqlite3.Connection) -> None:
    first = db.run(stamp(Dialect.SQLITE, Name(None, "t")))
    assert db.run(stamp(Dialect.SQLITE, Name(None, "t"))) == first
    raw.execute("ALTER TABLE t ADD COLUMN more")
    assert db.run(stamp(Dialect.SQLITE, Name(None, "t"))) != first


def _asked(steps: Generator[Query, Result, Any], *answers: Result) -> list[Query]:
    """What a conversation asks."""
    return [next(steps), *(steps.send(answer) for answer in answers)]


@pytest.mark.parametrize("dialect", [Dialect.POSTGRES, Dialect.MYSQL])
def test_rows_are_locked_and_bounded_where_others_write_meanwhile(dialect: Dialect) -> None:
    table = Table(dialect, "s", "t", (Column("id", ("id",), "?"),), ("id",), ("id",))
    statement = analyse("DELETE FROM t WHERE id > 3", dialect, Style.FORMAT)
    (query,) = _asked(capture(table, statement, (), limit=7))
    assert query.text.startswith("SELECT id FROM t WHERE id > 3 ORDER BY ")
    assert query.text.endswith(" LIMIT 8 FOR UPDATE")


def test_rows_numbered_by_mysql_are_found_by_its_counter() -> None:
    columns = (Column("id", ("id",), "?"), Column("a", ("a",), "?"))
    table = Table(Dialect.MYSQL, "s", "t", columns, ("id", "a"), ("id",), auto="id")
    text = "INSERT INTO t (a) VALUES (%s), (%s)"
    statement = analyse(text, Dialect.MYSQL, Style.FORMAT)
    with pytest.raises(StopIteration) as end:
        next(capture(table, statement, (1, 2)))
    asked = _asked(end.value.value.after((1, 2), 2, None), Result(((5, 2),)))
    assert asked[0].text.startswith("SELECT LAST_INSERT_ID()")
    assert asked[1].parameters == (5, 7)
