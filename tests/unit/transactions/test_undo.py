"""The undo record: kept with the work, dropped by CONFIRM, applied by CANCEL, and never twice."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from bedstone.errors import InvalidError
from bedstone.transactions import undo
from bedstone.transactions.connections import SyncConnection, adapt
from bedstone.transactions.errors import StuckError, TransactionDecidedError
from bedstone.transactions.images import Change
from bedstone.transactions.sql import Dialect

SQLITE = Dialect.SQLITE
_CHANGES = (
    Change(1, "", "t", ("i:1",), {"id": "i:1", "a": "t:old"}, {"id": "i:1", "a": "t:mid"}),
    Change(2, "", "t", ("i:1",), {"id": "i:1", "a": "t:mid"}, {"id": "i:1", "a": "t:new"}),
    Change(2, "", "t", ("i:2",), None, {"id": "i:2", "a": None}),
)


@pytest.fixture
def raw() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as raw:
        raw.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a UNIQUE)")
        raw.execute("INSERT INTO t VALUES (1, 'new'), (2, NULL)")
        yield raw


@pytest.fixture
def db(raw: sqlite3.Connection) -> SyncConnection:
    db = adapt(raw)
    assert isinstance(db, SyncConnection)
    for _ in range(2):
        with _transaction(db):
            db.run(undo.ensure(SQLITE))
    return db


@contextmanager
def _transaction(db: SyncConnection) -> Iterator[None]:
    db.begin()
    try:
        yield
        db.commit()
    except BaseException:
        db.rollback()
        raise


def _save(db: SyncConnection, branch: str = "1") -> None:
    with _transaction(db):
        db.run(undo.save(SQLITE, "x", branch, undo.Record(_CHANGES)))


def _cancel(db: SyncConnection) -> None:
    with _transaction(db):
        db.run(undo.cancel(SQLITE, "x", "1", "local:at/bank"))


def _confirm(db: SyncConnection, *branches: str) -> None:
    with _transaction(db):
        db.run(undo.confirm(SQLITE, [("x", branch) for branch in branches]))


def _rows(raw: sqlite3.Connection, text: str = "SELECT * FROM t ORDER BY id") -> list[Any]:
    return raw.execute(text).fetchall()


def test_a_record_is_read_back_as_it_was_written() -> None:
    record = undo.Record(_CHANGES, {"TimeZone": "UTC"})
    assert undo.Record.decoded(record.encoded()) == record


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 2}', '{"version": 1}', "null"])
def test_a_record_that_somebody_changed_is_not_applied(text: str) -> None:
    with pytest.raises(StuckError):
        undo.Record.decoded(text)


def test_cancel_undoes_once(db: SyncConnection, raw: sqlite3.Connection) -> None:
    _save(db)
    _cancel(db)
    assert _rows(raw) == [(1, "old")]
    assert _rows(raw, "SELECT * FROM bedstone_undo") == []
    raw.execute("UPDATE t SET a = 'later'")
    _cancel(db)
    assert _rows(raw) == [(1, "later")]


def test_confirm_drops_the_records_of_many(db: SyncConnection, raw: sqlite3.Connection) -> None:
    for branch in "123":
        _save(db, branch)
    _confirm(db, "1", "3")
    assert _rows(raw, "SELECT branch FROM bedstone_undo") == [("2",)]
    _confirm(db, "1", "2")
    assert _rows(raw, "SELECT branch FROM bedstone_undo") == []


def test_confirm_of_what_never_was_committed_is_stuck(
    db: SyncConnection, raw: sqlite3.Connection
) -> None:
    _save(db)
    with pytest.raises(StuckError, match="never committed"):
        _confirm(db, "1", "2")
    assert _rows(raw, "SELECT branch FROM bedstone_undo") == [("1",)]


def test_a_cancel_that_comes_first_leaves_a_mark(
    db: SyncConnection, raw: sqlite3.Connection
) -> None:
    _cancel(db)
    assert _rows(raw) == [(1, "new"), (2, None)]
    with pytest.raises(TransactionDecidedError, match="suspended"):
        _save(db)


def test_a_record_that_is_gone_is_stuck(db: SyncConnection, raw: sqlite3.Connection) -> None:
    _save(db)
    raw.execute("DELETE FROM bedstone_undo")
    with pytest.raises(StuckError, match="gone"):
        _cancel(db)
    assert _rows(raw) == [(1, "new"), (2, None)]


def test_a_dirty_row_keeps_everything_until_it_is_repaired(
    db: SyncConnection, raw: sqlite3.Connection
) -> None:
    _save(db)
    raw.execute("UPDATE t SET a = 'foreign' WHERE id = 1")
    for _ in range(2):
        with pytest.raises(StuckError, match="somebody else") as raised:
            _cancel(db)
    assert _rows(raw) == [(1, "foreign"), (2, None)]
    report = raised.value.report
    assert json.loads(json.dumps(report)) == report
    assert report["resource"] == "local:at/bank"
    assert report["before"] == {"id": "i:1", "a": "t:old"}
    assert report["after"] == {"id": "i:1", "a": "t:new"}
    assert report["now"] == {"id": "i:1", "a": "t:foreign"}
    assert report["repair"] == ["""UPDATE "t" SET "a" = 'old' WHERE "id" = 1"""]
    raw.execute(report["repair"][0])
    _cancel(db)
    assert _rows(raw) == [(1, "old")]


def test_a_row_that_was_set_back_already_is_skipped(
    db: SyncConnection, raw: sqlite3.Connection
) -> None:
    _save(db)
    raw.execute("UPDATE t SET a = 'old' WHERE id = 1")
    _cancel(db)
    assert _rows(raw) == [(1, "old")]


def test_a_value_in_between_is_dirty(db: SyncConnection, raw: sqlite3.Connection) -> None:
    """Before and after are the whole branch's; what one statement left is neither."""
    _save(db)
    raw.execute("UPDATE t SET a = 'mid' WHERE id = 1")
    with pytest.raises(StuckError):
        _cancel(db)


def test_a_unique_value_that_is_taken_is_stuck(db: SyncConnection, raw: sqlite3.Connection) -> None:
    _save(db)
    raw.execute("INSERT INTO t VALUES (7, 'old')")
    with pytest.raises(StuckError, match="can't be given back"):
        _cancel(db)
    assert _rows(raw) == [(1, "new"), (2, None), (7, "old")]
    raw.execute("DELETE FROM t WHERE id = 7")
    _cancel(db)
    assert _rows(raw) == [(1, "old")]


@pytest.mark.parametrize("change", ["ALTER TABLE t ADD COLUMN b", "DROP TABLE t"])
def test_a_table_that_has_changed_is_stuck(
    db: SyncConnection, raw: sqlite3.Connection, change: str
) -> None:
    _save(db)
    raw.execute(change)
    with pytest.raises(StuckError, match="other columns"):
        _cancel(db)


def test_a_trigger_that_changes_what_is_given_back_is_found(
    db: SyncConnection, raw: sqlite3.Connection
) -> None:
    _save(db)
    raw.execute(
        "CREATE TRIGGER meddling AFTER UPDATE ON t WHEN NEW.a = 'old' "
        "BEGIN UPDATE t SET a = 'OLD' WHERE id = NEW.id; END"
    )
    with pytest.raises(StuckError, match="exactly"):
        _cancel(db)
    assert _rows(raw) == [(1, "new"), (2, None)]


def test_inexact_numbers_are_refused() -> None:
    names = undo.settings(Dialect.POSTGRES)
    exact = dict(zip(names, ("ISO, MDY", "postgres", "UTC", "hex", "1"), strict=True))
    assert undo.exact(exact) == exact
    with pytest.raises(InvalidError, match="extra_float_digits"):
        undo.exact(exact | {"extra_float_digits": "0"})
