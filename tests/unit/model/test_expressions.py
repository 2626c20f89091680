"""Where the mistake in a PromQL expression is."""

from __future__ import annotations

import pytest

from bedstone.model.expressions import expression_mistake, selector_mistake, value_mistake
from bedstone.model.manifest import parse_manifest
from bedstone.model.positions import ManifestError


@pytest.mark.parametrize(
    "text",
    [
        "x",
        'sum by (le) (rate(x{a=~"b.*"}[5m])) > 0.5',
        "x > 5 and on (a) y unless z",
        "x offset 5m # a comment",
        "1 + 1",
    ],
)
def test_what_is_promql_has_no_mistake(text: str) -> None:
    assert expression_mistake(text) is None
    assert value_mistake(text) is None


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("sum(rate(x[1m])", "(rate(x[1m])"),
        ("rate(x) > 1", "rate(x)"),
        ("foo(x)", "foo(x)"),
        ("sum(x) bye (a)", "bye"),
        ("x > > 5", "> 5"),
        ("x{a=b} > 5", "b}"),
        ("rate(x[5mm])", "5mm"),
        ('x{a="b"} y', "y"),
        ("x > 5 for 5m", "for"),
        ("sum by (le (rate(x[5m])))", "(le"),
        ("x)", ")"),
        ('x{a=~"("}', '("'),
        ("x >", ""),
        ("sum(x) by", ""),
    ],
)
def test_a_mistake_is_where_the_expression_can_no_longer_become_one(text: str, at: str) -> None:
    mistake = expression_mistake(text)
    assert mistake is not None
    assert text[mistake.index :].startswith(at)
    assert bool(text[mistake.index :]) == bool(at)
    assert mistake.message


@pytest.mark.parametrize("text", ["x[5m]", "(x[5m])", "x[5m:1m]", "'a'"])
def test_what_is_not_one_value_a_series_is_refused(text: str) -> None:
    assert expression_mistake(text) is None
    assert value_mistake(text) is not None


def test_only_a_selector_selects() -> None:
    assert selector_mistake('orders_total{shop="a"}') is None
    for text in ("rate(x[5m])", "x offset 5m", "x + y", "x["):
        assert selector_mistake(text) is not None


def place(alert: str) -> str:
    text = f"app: a\nworkloads: {{w: {{command: [x]}}}}\nalerts:\n  slow:\n{alert}"
    with pytest.raises(ManifestError) as caught:
        parse_manifest(text, "m.yaml")
    (problem,) = caught.value.problems
    return f"{problem.position.line}:{problem.position.column}"


def test_a_mistake_is_told_with_its_line_and_column_in_the_manifest() -> None:
    assert place("    when: x > > 5\n") == "5:15"
    assert place("    {when: 'x > > 5'}\n") == "5:17"
    assert place('    when: "x > > 5"\n') == "5:16"
    assert place("    when: |\n      x\n        > > 5\n") == "7:11"


def test_a_mistake_in_folded_text_is_told_with_the_place_of_the_text() -> None:
    assert place("    when: >\n      x\n      > > 5\n") == "5:11"
