"""Parsing, and refusing what is not supported, before anything is read."""

from __future__ import annotations

import promql_parser as promql

from bedstone.control.monitoring.promql import aggregation, functions, operators, ranges
from bedstone.control.monitoring.promql.selecting import matchers_of, whole_seconds
from bedstone.errors import InvalidError
from bedstone.model.expressions import excess, parsing

_OTHERS = (
    *("time", "pi", "vector", "scalar", "timestamp", "absent", "absent_over_time"),
    *("histogram_quantile", "label_replace", "label_join", "sort", "sort_desc"),
)
SUPPORTED = frozenset((*ranges.FUNCTIONS, *functions.ELEMENTWISE, *functions.DATES, *_OTHERS))
"""The functions that are known here."""


def parsed(expression: str) -> promql.Expr:
    """The tree of an expression that can be evaluated.

    Raises:
        InvalidError: it is malformed, too long, or uses what is not supported.
    """
    if message := excess(expression):
        raise InvalidError(message)
    try:
        with parsing():
            tree = promql.parse(expression)
            _supported(tree)
    except ValueError as error:
        raise InvalidError(f"the expression cannot be parsed: {error}") from error
    return tree


def check(expression: str) -> None:
    """Refuse what `parsed` refuses."""
    parsed(expression)


def _supported(node: promql.Expr) -> None:
    """Refuse what is not supported, in it and in its parts."""
    match node:
        case promql.Call():
            _named(node.func.name in SUPPORTED, f"the function {node.func.name}")
        case promql.AggregateExpr():
            _named(str(node.op) in aggregation.NAMES, f"the aggregation {node.op}")
        case promql.BinaryExpr():
            _operator(node)
        case promql.VectorSelector():
            _selector(node)
        case promql.MatrixSelector():
            whole_seconds(node.range, "a range")
        case promql.SubqueryExpr():
            for span, what in ((node.range, "a range"), (node.step, "a step")):
                whole_seconds(span, what)
            _placed(node)
        case _:
            pass
    for part in _parts(node):
        _supported(part)


def _parts(node: promql.Expr) -> list[promql.Expr]:
    """What a node consists of. Look at each once: a look copies it."""
    match node:
        case promql.Call():
            return list(node.args)
        case promql.AggregateExpr():
            return [node.expr, *([] if node.param is None else [node.param])]
        case promql.BinaryExpr():
            return [node.lhs, node.rhs]
        case promql.UnaryExpr() | promql.ParenExpr() | promql.SubqueryExpr():
            return [node.expr]
        case promql.MatrixSelector():
            return [node.vector_selector]
        case _:
            return []


def selectors_of(node: promql.Expr) -> list[promql.VectorSelector]:
    """The selectors within an expression."""
    if isinstance(node, promql.VectorSelector):
        return [node]
    return [found for part in _parts(node) for found in selectors_of(part)]


def _named(known: bool, what: str) -> None:  # noqa: FBT001 - it reads as a condition
    if not known:
        raise InvalidError(f"{what} is not supported", hint="see the reference on metrics")


def _operator(node: promql.BinaryExpr) -> None:
    _named(str(node.op) in operators.NAMES, f"the operator {node.op}")
    fills = node.modifier.fill_values if node.modifier else None
    if fills is not None and (fills.lhs is not None or fills.rhs is not None):
        raise InvalidError("fill, fill_left and fill_right are not supported")


def _selector(node: promql.VectorSelector) -> None:
    for matcher in matchers_of(node):
        matcher.matches("")  # a malformed expression is refused here
    _placed(node)


def _placed(node: promql.VectorSelector | promql.SubqueryExpr) -> None:
    whole_seconds(node.offset, "an offset")
    if node.at is not None:
        _ = node.at.at  # a time that is out of range is refused here
