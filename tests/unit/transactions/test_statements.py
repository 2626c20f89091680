"""What is understood of a statement, and what is refused."""

from __future__ import annotations

import pytest

from bedstone.errors import InvalidError
from bedstone.transactions.errors import UnsupportedStatementError
from bedstone.transactions.sql import Dialect, Query, Style
from bedstone.transactions.statements import (
    PROJECTION,
    Action,
    Fragment,
    Name,
    Statement,
    analyse,
)

_STYLES = {
    Dialect.POSTGRES: Style.FORMAT,
    Dialect.MYSQL: Style.FORMAT,
    Dialect.SQLITE: Style.QMARK,
}
_EVERY = tuple(Dialect)


def _of(text: str, dialect: Dialect = Dialect.POSTGRES) -> Statement:
    return analyse(text, dialect, _STYLES[dialect])


@pytest.mark.parametrize(
    ("text", "dialects", "reason"),
    [
        ("replace into t values (1)", (Dialect.MYSQL, Dialect.SQLITE), "REPLACE"),
        ("insert or replace into t values (1)", (Dialect.SQLITE,), "alone"),
        ("insert or ignore into t values (1)", (Dialect.SQLITE,), "alone"),
        ("insert ignore into t values (1)", (Dialect.MYSQL,), "alone"),
        ("insert into t (a) values (1) on conflict do nothing", (Dialect.POSTGRES,), "alone"),
        ("insert into t (a) values (1) on duplicate key update a=2", (Dialect.MYSQL,), "alone"),
        ("insert into t select * from u", _EVERY, "SELECT"),
        ("insert into t (a) values ((select max(a) from t))", _EVERY, "read"),
        ("update t set a=1 from u where t.id=u.id", (Dialect.POSTGRES, Dialect.SQLITE), "FROM"),
        ("update t, u set t.a=1 where t.id=u.id", (Dialect.MYSQL,), "plain table"),
        ("update t join u on t.id=u.id set t.a=1", (Dialect.MYSQL,), "plain table"),
        ("update t set a=1 order by id limit 1", (Dialect.MYSQL,), "ORDER"),
        ("update t set a=1 limit 1", (Dialect.MYSQL,), "LIMIT"),
        ("update t set a=1 where id in (select id from u)", (Dialect.POSTGRES,), "subquery"),
        ("update t set a=1 where random() < 0.5", (Dialect.POSTGRES, Dialect.SQLITE), "rand"),
        ("delete from t where rand() < 0.5", (Dialect.MYSQL,), "rand"),
        ("delete from t using u where t.id=u.id", (Dialect.POSTGRES,), "USING"),
        ("delete t from t join u on t.id=u.id", (Dialect.MYSQL,), "it"),
        ("delete from t where current of c", (Dialect.POSTGRES,), "understood"),
        ("with x as (delete from t returning *) select * from x", (Dialect.POSTGRES,), "inside"),
        ("with x as (select 1) update t set a=1", (Dialect.POSTGRES,), "WITH"),
        ("select * into z from t", (Dialect.POSTGRES,), "inside"),
        ("select setval('s', 1)", (Dialect.POSTGRES,), "setval"),
        ("select pg_advisory_xact_lock(1)", (Dialect.POSTGRES,), "pg_advisory"),
        ("select set_config('a.b', 'c', false)", (Dialect.POSTGRES,), "set_config"),
        ("select get_lock('a', 1)", (Dialect.MYSQL,), "get_lock"),
        ("select * from t, u where t.id=u.id for update", (Dialect.POSTGRES,), "several"),
        ("select * from t join u using (id) for update", (Dialect.MYSQL,), "several"),
        ("create table t (a int)", _EVERY, "schema"),
        ("alter table t add b int", _EVERY, "schema"),
        ("drop table t", _EVERY, "schema"),
        ("truncate t", (Dialect.POSTGRES, Dialect.MYSQL), "TRUNCATE"),
        ("copy t from stdin", (Dialect.POSTGRES,), "COPY"),
        ("merge into t using u on t.a=u.a when matched then delete", (Dialect.POSTGRES,), "MERGE"),
        ("call p()", (Dialect.POSTGRES, Dialect.MYSQL), "procedure"),
        ("do $$ begin end $$", (Dialect.POSTGRES,), "block"),
        ("select 1; delete from t", _EVERY, "2 statements"),
        ("set time zone 'UTC'", (Dialect.POSTGRES, Dialect.MYSQL), "session"),
        ("pragma foreign_keys = off", (Dialect.SQLITE,), "session"),
        ("commit", _EVERY, "commit()"),
        ("/* a */ -- b\n COMMIT", _EVERY, "commit()"),
        ("rollback", _EVERY, "rollback()"),
        ("prepare transaction 'x'", (Dialect.POSTGRES,), "prepared"),
        ("xa end 'x'", (Dialect.MYSQL,), "XA"),
        ("explain analyze delete from t", (Dialect.POSTGRES,), "ANALYZE"),
        ("update t set a=1 where b ? 'x'", (Dialect.POSTGRES,), "operator ?"),
        ("update t set a='%s'", (Dialect.POSTGRES,), "parameter"),
        ("vacuum", _EVERY, "schema"),
        ("hocus pocus", _EVERY, "HOCUS"),
        ("", _EVERY, "nothing"),
    ],
)
def test_what_cannot_be_undone_is_refused_with_its_reason(
    text: str, dialects: tuple[Dialect, ...], reason: str
) -> None:
    for dialect in dialects:
        with pytest.raises(UnsupportedStatementError, match="not run") as raised:
            _of(text, dialect)
        assert reason in raised.value.message
        assert raised.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "select * from t where a = 1",
        "  /* x */ (select 1) union select 2",
        "with x as (select 1) select * from x",
        "values (1)",
        "select nextval('s')",
        "select a ?| array['b'] from t",
        "explain select 1",
        "set local lock_timeout = '1s'",
    ],
)
def test_a_read_is_let_through(text: str) -> None:
    assert analyse(text, Dialect.POSTGRES, Style.NUMBERED).action is Action.READ


def test_an_update_tells_its_table_columns_and_condition() -> None:
    found = _of(
        'UPDATE Bank.Accounts AS a SET Balance = a.balance - %s, (x, "Y") = (1, 2)'
        " WHERE a.id = %s AND note <> '100%%'"
    )
    assert found.action is Action.UPDATE
    assert found.name == Name("bank", "accounts")
    assert found.source == "Bank.Accounts AS a"
    assert found.columns == ("balance", "x", "Y")
    assert found.where == Fragment("a.id = ? AND note <> '100%'", (1,))


def test_a_field_of_a_composite_column_is_that_column() -> None:
    assert _of("update t set e.f = 3, d[1] = 2").columns == ("e", "d")


def test_an_insert_tells_plain_values_and_leaves_the_others_to_the_database() -> None:
    found = _of("insert into t (id, b) values (%s, now()), (-2, DEFAULT) returning id, b as c, *")
    assert found.columns == ("id", "b")
    assert found.rows == ((Fragment("?", (0,)), None), (Fragment("-2"), None))
    assert found.returning == ("id", "b", "*")


def test_an_insert_of_defaults_is_one_row() -> None:
    assert _of("insert into t default values").rows == ((),)
    assert _of("insert into t () values ()", Dialect.MYSQL).rows == ((),)


def test_a_locking_read_asks_for_other_columns() -> None:
    found = _of("select a, b from t where id = %s order by a for update")
    assert found.action is Action.LOCK
    assert found.reading == Fragment(f"SELECT {PROJECTION} FROM t WHERE id = ? FOR UPDATE", (0,))


@pytest.mark.parametrize(
    ("text", "dialect", "style", "parameters", "bound"),
    [
        ("delete from t where a = %s and b = %s", Dialect.MYSQL, Style.FORMAT, (1, 2), (1, 2)),
        (
            "delete from t where a = %(x)s and b = %(y)s",
            Dialect.POSTGRES,
            Style.FORMAT,
            {"y": 2, "x": 1},
            (1, 2),
        ),
        ("delete from t where a = $2 and b = $1", Dialect.POSTGRES, Style.NUMBERED, (2, 1), (1, 2)),
        ("delete from t where a = ? and b = ?", Dialect.SQLITE, Style.QMARK, (1, 2), (1, 2)),
        ("delete from t where a = ?2 and b = ?1", Dialect.SQLITE, Style.QMARK, (2, 1), (1, 2)),
        (
            "delete from t where a = :x and b = @y",
            Dialect.SQLITE,
            Style.QMARK,
            {"x": 1, "y": 2},
            (1, 2),
        ),
    ],
)
def test_every_style_of_parameters_is_bound_in_order(
    text: str, dialect: Dialect, style: Style, parameters: object, bound: tuple[int, ...]
) -> None:
    where = analyse(text, dialect, style).where
    assert where is not None
    assert where.bind(parameters) == Query("a = ? AND b = ?", bound)


def test_what_is_quoted_or_commented_is_no_parameter() -> None:
    text = "delete from t where a = '?' and \"b?\" = ? -- ?\n /* ? */ and [c:d] = 'it''s :x'"
    found = analyse(text, Dialect.SQLITE, Style.QMARK).where
    assert found is not None
    assert found.references == (0,)
    text = "delete from t where a = $$ $1 $$ and b = E'\\'$2' and c = $1::int"
    found = analyse(text, Dialect.POSTGRES, Style.NUMBERED).where
    assert found is not None
    assert found.references == (0,)


def test_without_parameters_a_percent_sign_is_one() -> None:
    found = analyse("delete from t where a % 2 = 0", Dialect.POSTGRES, Style.FORMAT, bound=False)
    assert found.where == Fragment("a % 2 = 0")


def test_a_subquery_is_let_through_where_nobody_writes_meanwhile() -> None:
    assert _of("delete from t where id in (select id from u)", Dialect.SQLITE).where is not None


def test_too_few_parameters_are_refused() -> None:
    with pytest.raises(InvalidError, match="one for each mark"):
        Fragment("a = ?", (1,)).bind((1,))


@pytest.mark.parametrize(
    ("text", "action", "name"),
    [
        ("savepoint A", Action.SAVEPOINT, "a"),
        ('SAVEPOINT "b";', Action.SAVEPOINT, "b"),
        ("rollback to savepoint a", Action.ROLLBACK_TO, "a"),
        ("ROLLBACK WORK TO a", Action.ROLLBACK_TO, "a"),
        ("release a", Action.RELEASE, "a"),
    ],
)
def test_savepoints_are_told(text: str, action: Action, name: str) -> None:
    assert _of(text) == Statement(action, savepoint=name)
