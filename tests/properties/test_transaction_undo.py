"""Any sequence of supported statements, then its undo, gives the table back exactly."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedstone.transactions.connections import SyncConnection, adapt
from bedstone.transactions.errors import StuckError
from bedstone.transactions.recording import Catalogue, Recorder
from bedstone.transactions.sql import Dialect, Query, Result, Style
from bedstone.transactions.statements import Action, analyse
from bedstone.transactions.undo import Record, apply

_TABLES = """
CREATE TABLE plain (id INTEGER PRIMARY KEY, a, b TEXT, c REAL, d BLOB, u INTEGER UNIQUE,
  e INTEGER GENERATED ALWAYS AS (u + 1));
CREATE TABLE pair (x TEXT, y INTEGER, a, PRIMARY KEY (x, y)) WITHOUT ROWID;
"""
_values = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(),
)
_small = st.integers(0, 8)
_statements = st.one_of(
    st.tuples(
        st.just("INSERT INTO plain (id, a, b, c, d, u) VALUES (?, ?, ?, ?, ?, ?)"),
        st.tuples(_small, _values, _values, _values, _values, st.none() | _small),
    ),
    st.tuples(
        st.just("INSERT INTO plain (a, u) VALUES (?, ?), (?, ?)"),
        st.tuples(_values, st.none() | _small, _values, st.none() | _small),
    ),
    st.tuples(st.just("INSERT INTO plain (a) VALUES (?)"), st.tuples(_values)),
    st.tuples(
        st.just("INSERT INTO pair VALUES (:x, :y, :a)"),
        st.fixed_dictionaries({"x": st.sampled_from(["p", "q?", "'"]), "y": _small, "a": _values}),
    ),
    st.tuples(
        st.just("UPDATE plain SET a = ?, c = ? WHERE id < ?"), st.tuples(_values, _values, _small)
    ),
    st.tuples(st.just("UPDATE plain SET u = u + ? WHERE id > ?"), st.tuples(_small, _small)),
    st.tuples(
        st.just("UPDATE pair SET a = ? WHERE y = ? OR y = ?"), st.tuples(_values, _small, _small)
    ),
    st.tuples(st.just("DELETE FROM plain WHERE id = ?"), st.tuples(_small)),
    st.tuples(
        st.just("DELETE FROM plain WHERE id IN (SELECT y FROM pair WHERE y > ?)"), st.tuples(_small)
    ),
    st.tuples(st.just("DELETE FROM pair"), st.just(())),
    st.tuples(st.sampled_from(["SAVEPOINT s", "ROLLBACK TO s", "RELEASE s"]), st.just(())),
)


def _run(db: SyncConnection, recorder: Recorder, text: str, parameters: Any) -> None:
    statement = analyse(text, Dialect.SQLITE, Style.QMARK)
    if statement.action in {Action.SAVEPOINT, Action.ROLLBACK_TO, Action.RELEASE}:
        try:
            db.execute(Query(text))
        except sqlite3.OperationalError:
            return
        recorder.marked(statement)
        return
    taken = db.run(recorder.before(statement, parameters))
    suffix = taken.suffix if taken else ""
    try:
        result: Result = db.execute(Query(text + suffix, parameters, native=True))
    except (sqlite3.IntegrityError, sqlite3.OperationalError, OverflowError):
        return
    if taken is not None:
        count = result.count if not suffix else len(result.rows)
        db.run(recorder.after(taken, parameters, count, result))


def _state(raw: sqlite3.Connection) -> list[Any]:
    plain = raw.execute("SELECT *, typeof(a), typeof(c) FROM plain ORDER BY id").fetchall()
    pair = raw.execute("SELECT *, typeof(a) FROM pair ORDER BY x, y").fetchall()
    signs = [[math.copysign(1, v) for v in row if isinstance(v, float)] for row in plain + pair]
    return [plain, pair, signs]


@contextmanager
def _database() -> Iterator[tuple[sqlite3.Connection, SyncConnection]]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as raw:
        raw.executescript(_TABLES)
        db = adapt(raw)
        assert isinstance(db, SyncConnection)
        yield raw, db


@settings(max_examples=300)
@given(
    st.lists(_statements, max_size=8),
    st.lists(_statements, min_size=1, max_size=12),
    st.lists(_statements, max_size=6),
)
def test_undo_gives_the_table_back_exactly(
    first: list[Any], second: list[Any], third: list[Any]
) -> None:
    """Two branches of one transaction, undone in reverse order, each from its written record."""
    with _database() as (raw, db):
        catalogue = Catalogue(Dialect.SQLITE)
        states, records = [], []
        for statements in (first, second, third):
            states.append(_state(raw))
            recorder = Recorder(catalogue, "x")
            db.begin()
            for text, parameters in statements:
                _run(db, recorder, text, parameters)
            db.commit()
            records.append(recorder.record().encoded())
        for state, record in zip(states[:0:-1], records[:0:-1], strict=True):
            db.begin()
            db.run(apply(Dialect.SQLITE, "local:at/x", Record.decoded(record)))
            assert _state(raw) == state
            db.commit()


@settings(max_examples=100)
@given(st.lists(_statements, min_size=1, max_size=8), _values)
def test_a_row_that_somebody_changed_is_never_touched(statements: list[Any], value: object) -> None:
    """Either the whole branch is undone, or the report tells and everything stays."""
    with _database() as (raw, db):
        raw.execute("INSERT INTO plain (id, a) VALUES (1, 'x'), (2, 'y')")
        recorder = Recorder(Catalogue(Dialect.SQLITE), "x")
        before = _state(raw)
        db.begin()
        for text, parameters in statements:
            _run(db, recorder, text, parameters)
        db.commit()
        raw.execute("UPDATE plain SET a = ? WHERE id = 1", (value,))
        dirty = _state(raw)
        db.begin()
        try:
            db.run(apply(Dialect.SQLITE, "local:at/x", recorder.record()))
        except StuckError as error:
            db.rollback()
            assert _state(raw) == dirty
            repair = error.report["repair"]
            assert isinstance(repair, list)
            for text in repair:
                raw.execute(text)
            db.begin()
            db.run(apply(Dialect.SQLITE, "local:at/x", recorder.record()))
            db.commit()
            assert _state(raw) == before
        else:
            db.commit()
            rest = [row for row in _state(raw)[0] if row[0] != 1]
            assert rest == [row for row in before[0] if row[0] != 1]


def test_an_undo_that_was_done_is_not_done_again() -> None:
    with _database() as (raw, db):
        recorder = Recorder(Catalogue(Dialect.SQLITE), "x")
        db.begin()
        _run(db, recorder, "INSERT INTO plain (id) VALUES (?)", (1,))
        db.commit()
        for _ in range(2):
            db.begin()
            db.run(apply(Dialect.SQLITE, "local:at/x", recorder.record()))
            db.commit()
        assert raw.execute("SELECT count(*) FROM plain").fetchone() == (0,)


def test_a_row_that_comes_back_under_an_inserted_key_is_dirty() -> None:
    with _database() as (raw, db):
        recorder = Recorder(Catalogue(Dialect.SQLITE), "x")
        raw.execute("INSERT INTO plain (id, u) VALUES (1, 5)")
        db.begin()
        _run(db, recorder, "DELETE FROM plain WHERE id = ?", (1,))
        db.commit()
        raw.execute("INSERT INTO plain (id, u) VALUES (9, 5)")
        db.begin()
        with pytest.raises(StuckError, match="can't be given back"):
            db.run(apply(Dialect.SQLITE, "local:at/x", recorder.record()))
