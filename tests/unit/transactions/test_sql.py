"""What is said to databases: parameter marks, and what drivers' errors mean."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedstone.errors import DeniedError, Error, UnavailableError, UnknownOutcomeError
from bedstone.transactions.sql import DuplicateError, Query, Style, rendered
from bedstone.transactions.sql_errors import meaning, number, state


@pytest.mark.parametrize(
    ("text", "numbered", "formatted"),
    [
        ("a = ? AND b = ?", "a = $1 AND b = $2", "a = %s AND b = %s"),
        ("a = '?' AND b = ?", "a = '?' AND b = $1", "a = '?' AND b = %s"),
        ("a = 'it''s ?' OR ?", "a = 'it''s ?' OR $1", "a = 'it''s ?' OR %s"),
        ('"a?" = ?', '"a?" = $1', '"a?" = %s'),
        ("`a?` = ?", "`a?` = $1", "`a?` = %s"),
        ("? -- really?\n, ?", "$1 -- really?\n, $2", "%s -- really?\n, %s"),
        ("/* why? */ ?", "/* why? */ $1", "/* why? */ %s"),
        ("$x$ ? $x$ = ?", "$x$ ? $x$ = $1", "$x$ ? $x$ = %s"),
        ("a LIKE '5%' OR ?", "a LIKE '5%' OR $1", "a LIKE '5%%' OR %s"),
    ],
)
def test_marks(text: str, numbered: str, formatted: str) -> None:
    query = Query(text, (1, 2))
    assert rendered(query, Style.QMARK) == (text, (1, 2))
    assert rendered(query, Style.NUMBERED) == (numbered, (1, 2))
    assert rendered(query, Style.FORMAT) == (formatted, (1, 2))


def test_no_parameters() -> None:
    """Without parameters the text is the driver's, unread."""
    assert rendered(Query("SELECT '%', '?'"), Style.FORMAT) == ("SELECT '%', '?'", ())


@given(
    st.lists(
        st.one_of(
            st.just("?"),
            st.text(alphabet="?%'ab$1", max_size=5).map(lambda s: "'" + s.replace("'", "''") + "'"),
            st.sampled_from([" ", ", ", "a", "=", "(", ")"]),
        ),
        max_size=12,
    )
)
def test_formatted_text_is_the_text(parts: list[str]) -> None:
    """Python's own formatting of what `FORMAT` gives brings the text back, mark by mark."""
    parts = [f"{part} " for part in parts]  # literals that touch would be one
    marks = parts.count("? ")
    text, _ = rendered(Query("".join(parts), ("x",)), Style.FORMAT)
    assert text % (("?",) * marks) == "".join(parts)


class Postgres(Exception):  # noqa: N818 - as a driver has it
    def __init__(self, sqlstate: str | None, text: str = "no") -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


class OperationalError(Exception):
    """A driver's, without a code: the connection is gone."""


class InterfaceError(Exception):
    """A driver's."""


class MySQL(Exception):  # noqa: N818
    __module__ = "pymysql.err"


class Wrapped(Exception):  # noqa: N818
    def __init__(self, orig: Exception, *, connection_invalidated: bool = False) -> None:
        super().__init__(str(orig))
        self.orig = orig
        self.connection_invalidated = connection_invalidated


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Postgres("23505"), DuplicateError),
        (Postgres("40001"), UnavailableError),
        (Postgres("40P01"), UnavailableError),
        (Postgres("55P03"), UnavailableError),
        (Postgres("53300"), UnavailableError),
        (Postgres("57P01"), UnavailableError),
        (Postgres("42501"), DeniedError),
        (Postgres("42P01"), None),
        (Postgres("23503"), None),
        (MySQL(1062, "no"), DuplicateError),
        (MySQL(1213, "no"), UnavailableError),
        (MySQL(1205, "no"), UnavailableError),
        (MySQL(2013, "no"), UnavailableError),
        (MySQL(1142, "no"), DeniedError),
        (MySQL(1146, "no"), None),
        (OperationalError("the connection is lost"), UnavailableError),
        (InterfaceError("cursor already closed"), UnavailableError),
        (InterfaceError("wrong number of arguments"), None),
        (ConnectionResetError(), UnavailableError),
        (Wrapped(MySQL(1062, "no")), DuplicateError),
        (Wrapped(ValueError("x"), connection_invalidated=True), UnavailableError),
        (ValueError("x"), None),
    ],
)
def test_meaning(error: Exception, expected: type[Error] | None) -> None:
    found = meaning(error)
    assert found is None if expected is None else type(found) is expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Postgres("57P01"), UnknownOutcomeError),
        (Postgres("08006"), UnknownOutcomeError),
        (OperationalError("server closed the connection"), UnknownOutcomeError),
        (MySQL(2013, "no"), UnknownOutcomeError),
        (TimeoutError(), UnknownOutcomeError),
        (Postgres("40001"), UnavailableError),
        (Postgres("23505"), DuplicateError),
    ],
)
def test_meaning_while_committing(error: Exception, expected: type[Error]) -> None:
    """A lost answer to COMMIT is no failure; an answer is."""
    assert type(meaning(error, committing=True)) is expected


def test_sqlite() -> None:
    """SQLite's own errors are told by name."""
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE t (a PRIMARY KEY, b NOT NULL)")
    db.execute("INSERT INTO t VALUES (1, 1)")
    for text, expected in (
        ("INSERT INTO t VALUES (1, 1)", DuplicateError),
        ("INSERT INTO t VALUES (2, NULL)", type(None)),
        ("SELECT * FROM nothing", type(None)),
    ):
        with pytest.raises(sqlite3.Error) as caught:
            db.execute(text)
        assert type(meaning(caught.value)) is expected
    db.close()


def test_codes_survive_translation() -> None:
    """Who needs the server's code finds it behind the translated error too."""
    translated = UnavailableError("x")
    translated.__cause__ = Wrapped(MySQL(1205, "no"))
    assert (number(translated), number(MySQL(1397, "no")), number(ValueError(3))) == (
        1205,
        1397,
        None,
    )
    assert (state(Postgres("42704")), state(Wrapped(Postgres("42704"))), state(MySQL(1))) == (
        "42704",
        "42704",
        None,
    )
