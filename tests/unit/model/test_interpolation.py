from __future__ import annotations

import pytest

from bedstone.errors import InvalidError
from bedstone.model.interpolation import Reference, escape, interpolate, references


def nothing(_: Reference) -> str | None:
    return None


@pytest.mark.parametrize(
    "text",
    [
        "${",
        "${env.A",
        "${}",
        "${A}",
        "${env.}",
        "${env.1A}",
        "${env.A-B}",
        "${env.A:?no}",
        "${databases.ledger}",
        "${databases.ledger.uri}",
        "${databases..url}",
        "${secrets.a.b}",
        "${ env.A }",
    ],
)
def test_a_malformed_reference_is_refused_with_the_way_to_a_plain_dollar(text: str) -> None:
    with pytest.raises(InvalidError) as caught:
        references(text)
    assert caught.value.hint
    assert "$$" in caught.value.hint


def test_an_unset_variable_is_refused_by_name() -> None:
    with pytest.raises(InvalidError, match="environment variable A is not set") as caught:
        interpolate("x${env.A}", nothing)
    assert caught.value.hint == "set it, or write ${env.A:-default}"


def test_a_database_without_value_is_refused() -> None:
    with pytest.raises(InvalidError, match=r"\$\{databases\.ledger\.url\}"):
        interpolate("${databases.ledger.url}", nothing)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("", ""),
        ("plain", "plain"),
        ("$HOME and $5 and $", "$HOME and $5 and $"),
        ("$$", "$"),
        ("$${env.A}", "${env.A}"),
        ("$$$$", "$$"),
        ("$$${env.A}", "$a"),
        ("${env.A}${env.A}", "aa"),
        ("${env.B:-x:-y}", "x:-y"),
        ("${env.B:-}", ""),
        ("${env.EMPTY:-x}", "x"),
        ("${env.EMPTY}", ""),
        ("${databases.ledger.url}?x=1", "postgres://h?x=1"),
    ],
)
def test_each_reference_is_replaced_once(text: str, result: str) -> None:
    values = {("env", "A"): "a", ("env", "EMPTY"): "", ("databases", "ledger"): "postgres://h"}
    assert interpolate(text, lambda r: values.get((r.scope, r.name))) == result


def test_what_is_put_in_is_not_looked_at_again() -> None:
    assert interpolate("${env.A}", lambda _: "${env.B} $$") == "${env.B} $$"


def test_references_are_in_order() -> None:
    found = references("${env.A:-x} ${databases.ledger.port} $${env.C}")
    assert found == (
        Reference("env", "A", default="x", text="${env.A:-x}"),
        Reference("databases", "ledger", "port", text="${databases.ledger.port}"),
    )


def test_escape_is_undone_by_interpolate() -> None:
    text = "a$b$$c${env.A}"
    assert interpolate(escape(text), nothing) == text
