"""Selectors: from a reader's grid to what stands at each step, or in the window before it.

Rules:
- The value at a time is that of the last point at or before it, on the grid of the resolution. If
  that point has no value, there is none: nothing older is shown in its place.
- A window `[r]` holds the points after `time - r`, up to and including `time`. Functions of
  differences (`rate`) also know the last value at or before the window's start, even if a gap of up
  to `LOOKBEHIND` seconds lies between: so windows that follow one another count everything once.
- A window that is no multiple of the resolution is widened to one, which is said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

import numpy as np
import promql_parser as promql

from bedstone.control.monitoring.promql.context import Context, TooMuchError
from bedstone.control.monitoring.promql.results import LabelMap
from bedstone.control.monitoring.promql.table import NAME, Bools, Floats, Table, Times, filled
from bedstone.control.monitoring.reading import Matcher, Selection
from bedstone.errors import InvalidError

LOOKBEHIND: Final = 60
"""Seconds."""
_SHORT: Final = 300
"""Seconds of a window that one evaluation reads by the second: it is cheap, and a store that is
younger than the first roll-up point has none before a series that has just begun."""
_FINE: Final = 7200
"""Points of a series that are read so that steps lie on points, where they do not lie on coarser
ones; beyond, a step is answered as of the point before it."""

Aggregate = Literal["last", "min", "max", "avg"]
_OPS: Final[tuple[tuple[promql.MatchOp, Literal["=", "!=", "=~", "!~"]], ...]] = (
    (promql.MatchOp.Equal, "="),
    (promql.MatchOp.NotEqual, "!="),
    (promql.MatchOp.Re, "=~"),
    (promql.MatchOp.NotRe, "!~"),
)


@dataclass(frozen=True, slots=True)
class Windows:
    """Series with, for each step, the window of points before it.

    Args:
        labels: of each series.
        counters: shape (S,), whether each is known never to decrease.
        values: shape (S, P), NaN where there is no value.
        begins: shape (T,), the column before the first point of each step's window; at least -1,
            or 0 where the function needs the value before the window.
        ends: shape (T,), the column of its last point.
        seconds: the window's length.
        resolution: seconds between columns.
        ages: shape (T,), how many seconds each step's last point is older than the step.
        weight: seconds that a point stands for; of a subquery's, one value.
        last: shape (T,), the time of each step's last point.
    """

    labels: tuple[LabelMap, ...]
    counters: Bools
    values: Floats
    begins: Times
    ends: Times
    seconds: int
    resolution: int
    ages: Times
    weight: int
    last: Times


def whole_seconds(span: timedelta | None, what: str) -> int:
    """A duration of an expression.

    Raises:
        InvalidError: it has a fraction of a second.
    """
    if span is None:
        return 0
    seconds = span.total_seconds()
    if not seconds.is_integer():
        raise InvalidError(
            f"got {what} of {seconds:g} s, expected whole seconds",
            hint="there is one point a second",
        )
    return int(seconds)


def matchers_of(selector: promql.VectorSelector) -> list[Matcher]:
    """The conditions of a selector.

    Raises:
        InvalidError: it has alternatives (`or`), which are not known here.
    """
    if selector.matchers.or_matchers:
        raise InvalidError(
            "`or` between matchers is not supported", hint='use a regular expression: a=~"1|2"'
        )
    found = [Matcher(NAME, "=", selector.name)] if selector.name else []
    for each in selector.matchers.matchers:
        op = next(ours for theirs, ours in _OPS if each.op == theirs)
        found.append(Matcher(each.name, op, each.value))
    return found


def at_times(context: Context, at: promql.AtModifier | None, offset: timedelta | None) -> Times:
    """The times of the data that a selector or subquery shows at each step."""
    times = context.times
    if at is not None:
        times = np.full_like(times, _fixed(context, at))
    return times - whole_seconds(offset, "an offset")


def _fixed(context: Context, at: promql.AtModifier) -> int:
    match at.at:
        case datetime():
            return math.floor(at.at.timestamp())
        case _ if at.type == promql.AtModifierType.Start:
            return context.start
        case _:
            return context.end


def select(context: Context, selector: promql.VectorSelector) -> tuple[Table, Times]:
    """What a selector shows at each step, and the time of each step's point."""
    times = at_times(context, selector.at, selector.offset)
    first, last = int(times.min()), int(times.max())
    resolution = context.reader.resolution(first, _need(context, times))
    selection = _read(context, selector, first, last, resolution, "last")
    columns = times // resolution - first // resolution
    values = selection.values[:, columns]
    labels = _labels(context, selection)
    table = filled(Table(labels, values, ~np.isnan(values)))
    return table, times // resolution * resolution


def windows(
    context: Context,
    matrix: promql.MatrixSelector,
    aggregate: Aggregate,
    *,
    exact: bool,
    base: bool,
) -> Windows:
    """What a range selector shows at each step.

    Args:
        context: of the evaluation.
        matrix: the range selector.
        aggregate: of roll-ups of gauges.
        exact: the function gives the same from roll-ups as from seconds.
        base: the function needs the value before the window.
    """
    selector = matrix.vector_selector
    wanted = whole_seconds(matrix.range, "a range")
    times = at_times(context, selector.at, selector.offset)
    first, last = int(times.min()), int(times.max())
    resolution = context.reader.resolution(
        first - wanted, _need(context, times, wanted, exact=exact)
    )
    width = -(-wanted // resolution)
    if width * resolution != wanted:
        context.notes.warn(
            f"a range of {wanted} s was widened to {width * resolution} s: "
            f"data of that age is kept every {resolution} s"
        )
    before = (LOOKBEHIND // resolution + 1) if base else 0
    start = (first // resolution - width + 1 - before) * resolution
    # Of what lies before the windows, only the point at their start can change the answer.
    said = start + max(0, before - 1) * resolution
    selection = _read(context, selector, start, last, resolution, aggregate, said)
    ends = times // resolution - start // resolution
    return Windows(
        labels=_labels(context, selection),
        counters=np.array([kind == "counter" for kind in selection.kinds], dtype=bool),
        values=selection.values,
        begins=ends - width,
        ends=ends,
        seconds=width * resolution,
        resolution=resolution,
        ages=times % resolution,
        weight=resolution,
        last=times // resolution * resolution,
    )


def over(table: Table, first: int, step: int, wanted: int, times: Times) -> Windows:
    """Windows over the steps of a subquery.

    Args:
        table: its values.
        first: the time of the first of them.
        step: seconds between them; all are multiples of it.
        wanted: the length of the windows.
        times: when each of them ends.
    """
    return Windows(
        labels=table.labels,
        counters=np.zeros(len(table.labels), dtype=bool),
        values=np.where(table.present, table.values, np.nan),
        begins=(times - wanted) // step - first // step,
        ends=times // step - first // step,
        seconds=wanted,
        resolution=step,
        ages=times % step,
        weight=1,
        last=times // step * step,
    )


def _need(context: Context, times: Times, wanted: int = 0, *, exact: bool = True) -> int:
    """How many seconds may lie between points, that steps and the windows' bounds are points."""
    if not exact or (not context.step and wanted <= _SHORT):
        return 1
    first, last = int(times.min()), int(times.max())
    fine = math.gcd(context.step, wanted, first)
    if (last - first + wanted) // fine <= _FINE:
        return fine
    return math.gcd(context.step or first, wanted)


def _read(
    context: Context,
    selector: promql.VectorSelector,
    start: int,
    end: int,
    resolution: int,
    aggregate: Aggregate,
    said: int | None = None,
) -> Selection:
    """Read whole points that cover the span, if they are not too many.

    Args:
        context: of the evaluation.
        selector: which series.
        start: of the span.
        end: of the span.
        resolution: seconds between points.
        aggregate: of roll-ups.
        said: from where on incomplete seconds are told; `start` by default.
    """
    context.watch()
    start, end = start // resolution * resolution, end // resolution * resolution
    matchers = matchers_of(selector)
    limits = context.limits
    series = len(context.reader.series(matchers, start - resolution + 1, end))
    # What is made of them has a value a step, which may be more.
    points = max((end - start) // resolution + 1, len(context.times))
    if series > limits.series:
        raise InvalidError(
            f"{selector} selects {series} series, expected at most {limits.series}",
            hint="demand more labels",
        )
    if max(1, series) * points > limits.points:
        raise TooMuchError(
            f"{selector} reads {series * points} points ({series} series by {points}), "
            f"expected at most {limits.points}",
            hint="demand more labels, or ask for a shorter range",
        )
    context.notes.read((start if said is None else said) - resolution + 1, end, resolution)
    selection = context.reader.select(matchers, start, end, resolution, aggregate)
    context.watch()
    return selection


def _labels(context: Context, selection: Selection) -> tuple[LabelMap, ...]:
    pairs: Sequence[tuple[str, tuple[tuple[str, str], ...]]] = list(
        zip(selection.names, selection.labels, strict=True)
    )
    return tuple(context.notes.label_map(name, labels) for name, labels in pairs)
