"""What an evaluation gives, as the records of `results`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import promql_parser as promql

from bedstone.control.monitoring.promql.checking import parsed
from bedstone.control.monitoring.promql.context import Context, Notes, TooMuchError
from bedstone.control.monitoring.promql.evaluation import bare, evaluate, windows_of
from bedstone.control.monitoring.promql.results import (
    Matrix,
    Sample,
    Scalar,
    Series,
    String,
    Value,
    Vector,
)
from bedstone.control.monitoring.promql.table import Steps, Table, Text, filled
from bedstone.control.monitoring.reading import Reader
from bedstone.errors import InvalidError

if TYPE_CHECKING:
    from bedstone.control.monitoring.promql.engine import Limits

__all__ = ["TooMuchError", "context", "instant", "narrowed", "parsed", "ranged"]


def context(
    reader: Reader,
    times: Sequence[int],
    step: int,
    limits: Limits,
    watch: Callable[[], None],
    start: int,
    end: int | None = None,
) -> Context:
    """The context of a whole query."""
    return Context(
        reader=reader,
        times=np.asarray(times, dtype=np.int64),
        step=step,
        start=start,
        end=start if end is None else end,
        limits=limits,
        watch=watch,
        notes=Notes(),
    )


def narrowed(whole: Context, times: Sequence[int]) -> Context:
    """The same, for some of the steps."""
    return replace(whole, times=np.asarray(times, dtype=np.int64))


def instant(expression: promql.Expr, context: Context, at: int) -> Value:
    """Evaluate at the only time of the context; the result is said to be of `at`."""
    with np.errstate(all="ignore"):  # what cannot be computed is NaN or infinite, as IEEE 754 says
        return _instant(expression, context, at)


def _instant(expression: promql.Expr, context: Context, at: int) -> Value:
    match bare(expression):
        case promql.MatrixSelector() | promql.SubqueryExpr() as ranged_expression:
            return _window(ranged_expression, context)
        case _:
            pass
    match evaluate(expression, context):
        case Steps(values):
            return Scalar(at, float(values[0]))
        case Text(value):
            return String(at, value)
        case Table() as table:
            found = filled(table)
            numbers = found.values[:, 0].tolist()
            pairs = zip(found.labels, numbers, strict=True)
            return Vector(at, tuple(Sample(labels, value) for labels, value in pairs))


def ranged(expression: promql.Expr, context: Context, left: int) -> Matrix:
    """Evaluate at all times of the context; `left` is how many points the result may still have."""
    times = context.times.tolist()
    with np.errstate(all="ignore"):
        operand = evaluate(expression, context)
    match operand:
        case Steps(values):
            return Matrix((Series({}, tuple(times), tuple(values.tolist())),))
        case Text():
            raise InvalidError("a range query gives numbers, got a text")
        case Table() as table:
            return _matrix(filled(table), times, left, context.limits.given)


def _matrix(table: Table, times: Sequence[int], left: int, given: int) -> Matrix:
    if int(table.present.sum()) > left:
        raise InvalidError(
            f"the result has more than {given} points",
            hint="sum the series, or ask for a longer step or a shorter span",
        )
    moments = np.asarray(times, dtype=np.int64)
    every = tuple(times)
    whole = np.flatnonzero(table.present.all(axis=1)).tolist()
    found = []
    complete = frozenset(whole)
    for row, labels in enumerate(table.labels):
        if row in complete:
            found.append(Series(labels, every, tuple(table.values[row].tolist())))
            continue
        there = table.present[row]
        found.append(
            Series(labels, tuple(moments[there].tolist()), tuple(table.values[row][there].tolist()))
        )
    return Matrix(tuple(found))


def _window(expression: promql.Expr, context: Context) -> Matrix:
    """A window itself, as its points."""
    found = windows_of(expression, context, "last", exact=False, base=False)
    begin, end = int(found.begins[0]), int(found.ends[0])
    values = found.values[:, begin + 1 : end + 1]
    last = int(found.last[0])
    times = [last - found.resolution * back for back in range(end - begin - 1, -1, -1)]
    most = context.limits.given
    return _matrix(filled(Table(found.labels, values, ~np.isnan(values))), times, most, most)
