"""Selectors alone: of a `match[]`, and those within an expression."""

from __future__ import annotations

import promql_parser as promql

from bedstone.control.monitoring.promql.checking import parsed, selectors_of
from bedstone.control.monitoring.promql.selecting import matchers_of
from bedstone.control.monitoring.reading import Matcher
from bedstone.errors import InvalidError


def single(text: str) -> list[Matcher]:
    """The conditions of a text that is one selector.

    Raises:
        InvalidError: it is something else.
    """
    tree = parsed(text)
    if not isinstance(tree, promql.VectorSelector) or tree.offset or tree.at:
        raise InvalidError(f"got {text!r}, expected a selector of series")
    return matchers_of(tree)


def within(expression: str) -> list[list[Matcher]]:
    """The conditions of each selector of an expression."""
    return [matchers for _, matchers in each_within(expression)]


def each_within(expression: str) -> list[tuple[str, list[Matcher]]]:
    """Each selector of an expression as PromQL, with its conditions."""
    return [(each.prettify(), matchers_of(each)) for each in selectors_of(parsed(expression))]
