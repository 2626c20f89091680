"""The barrier on SQLite in memory: any order of any messages has one outcome."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedstone.errors import InvalidError, UnavailableError
from bedstone.transactions import barrier
from bedstone.transactions.barrier import Entered
from bedstone.transactions.connections_sync import SQLite
from bedstone.transactions.model import Phase
from bedstone.transactions.sql import Dialect, DuplicateError, Query, Result


def _database(raw: sqlite3.Connection) -> SQLite:
    db = SQLite(raw)
    db.begin()
    db.run(barrier.ensure(Dialect.SQLITE))
    db.run(barrier.ensure(Dialect.SQLITE))
    db.commit()
    return db


@given(st.lists(st.tuples(st.sampled_from(Phase), st.booleans()), max_size=10))
def test_any_order(messages: list[tuple[Phase, bool]]) -> None:
    """TRY, CONFIRM and CANCEL each have an effect at most once, and only in an order that can be.

    Each message's local transaction commits, or fails after the barrier and is rolled back.
    """
    effects: list[Phase] = []
    empty = False
    with closing(sqlite3.connect(":memory:")) as raw:
        db = _database(raw)
        for phase, commits in messages:
            db.begin()
            entered = db.run(barrier.enter(Dialect.SQLITE, "x", "1", phase))
            keep = commits and entered not in {Entered.SUSPENDED, Entered.NOT_TRIED}
            if keep and entered is Entered.PROCEED:
                effects.append(phase)
            empty = empty or (keep and entered is Entered.EMPTY)
            if keep:
                db.commit()
            else:
                db.rollback()
            if entered is Entered.REPEATED:
                assert phase in effects or (phase is Phase.CANCEL and empty)
            if entered is Entered.SUSPENDED:
                assert empty
                assert phase is Phase.TRY
            if entered is Entered.NOT_TRIED:
                assert Phase.TRY not in effects
    assert len(effects) == len(set(effects))
    assert not effects or effects[0] is Phase.TRY
    assert not (empty and effects)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["1", "1/steps.0"])), max_size=6))
def test_branches_are_apart(keys: list[tuple[str, str]]) -> None:
    """A branch's rows say nothing of another's."""
    seen: set[tuple[str, str]] = set()
    with closing(sqlite3.connect(":memory:")) as raw:
        db = _database(raw)
        for xid, branch in keys:
            db.begin()
            entered = db.run(barrier.enter(Dialect.SQLITE, xid, branch, Phase.TRY))
            db.commit()
            assert entered is (Entered.REPEATED if (xid, branch) in seen else Entered.PROCEED)
            seen.add((xid, branch))
        xids = db.run(barrier.pending(Dialect.SQLITE, 9e9))
        assert list(xids) == sorted({xid for xid, _ in seen})
        assert db.run(barrier.pending(Dialect.SQLITE, 9e9, after="a")) == xids[len(xids) :] or (
            "b" in xids
        )
        assert db.run(barrier.pending(Dialect.SQLITE, 0.0)) == ()
        assert db.run(barrier.forget(Dialect.SQLITE, xids)) == len(seen)
        assert db.run(barrier.pending(Dialect.SQLITE, 9e9)) == ()


@pytest.mark.parametrize("dialect", Dialect)
def test_insert_first(dialect: Dialect) -> None:
    """Nothing is read before the insert, in no dialect: a read first would lock a gap, or race."""
    for phase in (Phase.TRY, Phase.CANCEL):
        steps = barrier.enter(dialect, "x", "1", phase)
        assert next(steps).text.startswith("INSERT ")
        steps.close()


@pytest.mark.parametrize("bad", ["", "a'b", "x" * 65, "a b", "é"])
def test_bad_xid(bad: str) -> None:
    with pytest.raises(InvalidError, match="transaction id"):
        barrier.enter(Dialect.MYSQL, bad, "1", Phase.TRY)


@pytest.mark.parametrize("bad", ["", "b" * 191, "a\n", "é"])
def test_bad_branch(bad: str) -> None:
    with pytest.raises(InvalidError, match="branch"):
        barrier.enter(Dialect.MYSQL, "x", bad, Phase.TRY)


def test_errors_pass() -> None:
    """A failure of the database is the caller's to see; the barrier swallows none."""
    for error in (UnavailableError("deadlock"), DuplicateError("?")):
        steps = barrier.enter(Dialect.POSTGRES, "x", "1", Phase.CANCEL)
        next(steps)
        with pytest.raises(type(error)):
            steps.throw(error)


def test_table_missing_and_not_allowed() -> None:
    """The error holds the statement that the schema's owner runs."""
    from bedstone.errors import DeniedError

    steps = barrier.ensure(Dialect.POSTGRES)
    next(steps)
    steps.send(Result())
    assert steps.send(Result()) == Query(barrier.create_table(Dialect.POSTGRES))
    with pytest.raises(InvalidError) as caught:
        steps.throw(DeniedError("permission denied"))
    assert "CREATE TABLE" in str(caught.value.hint)
