"""Functions of windows: rate, increase, …_over_time and the like.

`increase` is the exact difference between the last value of the window and the last one at or
before its start; nothing is extrapolated. `rate` is that by the length of the window. A gap does
not change what was counted: the difference over it falls to the window in which the counter is seen
again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np

from bedstone.control.monitoring.promql.context import Context
from bedstone.control.monitoring.promql.selecting import LOOKBEHIND, Aggregate, Windows
from bedstone.control.monitoring.promql.table import Bools, Floats

_AT_ONCE: Final = 1_000_000
"""Points."""
Columns: TypeAlias = tuple[Floats, Bools]
Reduce: TypeAlias = Callable[[Windows, Context, tuple[Floats, ...]], Columns]


@dataclass(frozen=True, slots=True)
class RangeFunction:
    """A function of windows.

    Args:
        reduce: gives values and whether they are there, each of shape (S, T).
        aggregate: what it reads of roll-ups of gauges.
        exact: it gives the same from roll-ups as from seconds (of counters, or without gaps).
        base: it needs the value before the window.
        keeps_name: its result is still a value of the metric.
        window: which of its arguments is the window; the others are numbers.
    """

    reduce: Reduce
    aggregate: Aggregate = "last"
    exact: bool = False
    base: bool = False
    keeps_name: bool = False
    window: int = 0


def reduced(
    function: RangeFunction, windows: Windows, context: Context, parameters: tuple[Floats, ...]
) -> Columns:
    """Apply a function to some series at a time: what it needs in between stays small."""
    size = max(1, _AT_ONCE // max(1, windows.values.shape[1]))
    if len(windows.labels) <= size:
        return function.reduce(windows, context, parameters)
    parts = []
    for first in range(0, len(windows.labels), size):
        context.watch()
        some = slice(first, first + size)
        part = replace(
            windows,
            labels=windows.labels[some],
            counters=windows.counters[some],
            values=windows.values[some],
        )
        parts.append(function.reduce(part, context, parameters))
    return np.concatenate([v for v, _ in parts]), np.concatenate([p for _, p in parts])


def _present(values: Floats, present: Bools) -> Columns:
    return np.where(present, values, np.nan), present


def _ends(windows: Windows) -> tuple[Floats, Floats, Bools]:
    """The value before each window (or its first), its last, and whether both are there."""
    values, ends, begins = windows.values, windows.ends, windows.begins
    last, before = values[:, ends], values[:, begins]
    shape = last.shape
    if not (np.isnan(last).any() or np.isnan(before).any()):
        return before, last, np.ones(shape, dtype=bool)
    known = ~np.isnan(values)
    columns = np.arange(values.shape[1], dtype=np.int64)
    # The last known column at or before each one, and the first known at or after it.
    behind = np.maximum.accumulate(np.where(known, columns, -1), axis=1)
    ahead = np.where(known, columns, len(columns))[:, ::-1]
    ahead = np.minimum.accumulate(ahead, axis=1)[:, ::-1]
    last_column = behind[:, ends]
    before_column = behind[:, begins]
    reach = max(0, LOOKBEHIND // windows.resolution)
    lost = (before_column < 0) | (before_column < begins - reach)
    before_column = np.where(lost, ahead[:, begins + 1], before_column)
    there = (last_column > begins) & (before_column < last_column)
    rows = np.arange(shape[0])[:, None]
    last = values[rows, np.clip(last_column, 0, None)]
    before = values[rows, np.clip(before_column, 0, len(columns) - 1)]
    return before, last, there


def _difference(windows: Windows) -> Columns:
    before, last, there = _ends(windows)
    return _present(last - before, there)


def increase(windows: Windows, context: Context, _: tuple[Floats, ...]) -> Columns:
    """What a counter counted in each window."""
    counters = windows.counters
    if counters.all():
        return _difference(windows)
    # Others may begin anew at zero within a window: what was lost with each fall is added, as
    # Prometheus does.
    values = windows.values.copy()
    rows = (~counters).nonzero()[0]
    for row in rows:
        context.watch()
        known = (~np.isnan(values[row])).nonzero()[0]
        line = values[row, known]
        falls = np.where(line[1:] < line[:-1], line[:-1], 0.0)
        values[row, known[1:]] += np.cumsum(falls)
    return _difference(replace(windows, values=values))


def rate(windows: Windows, context: Context, _: tuple[Floats, ...]) -> Columns:
    """`increase` a second."""
    values, present = increase(windows, context, ())
    return values / windows.seconds, present


def delta(windows: Windows, _: Context, __: tuple[Floats, ...]) -> Columns:
    """How much a gauge has changed over each window."""
    return _difference(windows)


def _last_two(windows: Windows) -> tuple[Floats, Floats, Bools, Floats]:
    """Of each window, with the point before it: the last two values, and the seconds between."""
    values, ends, begins = windows.values, windows.ends, windows.begins
    known = ~np.isnan(values)
    columns = np.arange(values.shape[1], dtype=np.int64)
    behind = np.maximum.accumulate(np.where(known, columns, -1), axis=1)
    last = behind[:, ends]
    rows = np.arange(values.shape[0])[:, None]
    earlier = np.where(last > 0, behind[rows, np.clip(last - 1, 0, None)], -1)
    there = (last > begins) & (earlier >= 0) & (earlier >= begins)
    a = values[rows, np.clip(earlier, 0, None)]
    b = values[rows, np.clip(last, 0, None)]
    apart = (last - earlier).astype(np.float64) * windows.resolution
    return a, b, there, apart


def irate(windows: Windows, _: Context, __: tuple[Floats, ...]) -> Columns:
    """The rate between the last two points of each window."""
    a, b, there, apart = _last_two(windows)
    rise = np.where(b < a, b, b - a)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _present(rise / apart, there)


def idelta(windows: Windows, _: Context, __: tuple[Floats, ...]) -> Columns:
    """The difference between the last two points of each window."""
    a, b, there, _apart = _last_two(windows)
    return _present(b - a, there)


def _bounds(windows: Windows) -> list[tuple[int, int]]:
    """Of each window: the column before its first, and its last."""
    return list(zip(windows.begins.tolist(), windows.ends.tolist(), strict=True))


def _over(windows: Windows, context: Context, reduce: Callable[[Floats, int], Floats]) -> Floats:
    """Reduce each window, of shape (S, W), to one number a series."""
    shape = (windows.values.shape[0], len(windows.ends))
    result = np.empty(shape)
    for step, (begin, end) in enumerate(_bounds(windows)):
        context.watch()
        result[:, step] = reduce(windows.values[:, begin + 1 : end + 1], step)
    return result


def _counts(windows: Windows) -> Floats:
    """How many points have a value in each window."""
    known = np.cumsum(~np.isnan(windows.values), axis=1, dtype=np.int32)
    known = np.concatenate([np.zeros((len(known), 1), dtype=np.int32), known], axis=1)
    counts = known[:, windows.ends + 1] - known[:, windows.begins + 1]
    return counts.astype(np.float64)


def _sums(windows: Windows, context: Context) -> Floats:
    if np.isnan(windows.values).any():
        return _over(windows, context, lambda window, _: np.nansum(window, axis=1))
    return _over(windows, context, lambda window, _: window.sum(axis=1))


def sum_over_time(windows: Windows, context: Context, _: tuple[Floats, ...]) -> Columns:
    """The sum of the seconds' values; a roll-up's point stands for all of its seconds."""
    counts = _counts(windows)
    return _present(_sums(windows, context) * windows.weight, counts > 0)


def avg_over_time(windows: Windows, context: Context, _: tuple[Floats, ...]) -> Columns:
    """The mean."""
    counts = _counts(windows)
    return _present(_sums(windows, context) / np.maximum(counts, 1), counts > 0)


def count_over_time(windows: Windows, _: Context, __: tuple[Floats, ...]) -> Columns:
    """How many seconds have a value."""
    counts = _counts(windows)
    return _present(counts * windows.weight, counts > 0)


def min_over_time(windows: Windows, context: Context, _: tuple[Floats, ...]) -> Columns:
    """The least value."""
    values = _over(windows, context, lambda window, _: np.fmin.reduce(window, axis=1))
    return _present(values, ~np.isnan(values))


def max_over_time(windows: Windows, context: Context, _: tuple[Floats, ...]) -> Columns:
    """The greatest value."""
    values = _over(windows, context, lambda window, _: np.fmax.reduce(window, axis=1))
    return _present(values, ~np.isnan(values))


def last_over_time(windows: Windows, _: Context, __: tuple[Floats, ...]) -> Columns:
    """The last value."""
    columns = np.arange(windows.values.shape[1], dtype=np.int64)
    known = np.where(np.isnan(windows.values), -1, columns)
    last = np.maximum.accumulate(known, axis=1)[:, windows.ends]
    rows = np.arange(windows.values.shape[0])[:, None]
    values = windows.values[rows, np.clip(last, 0, None)]
    return _present(values, last > windows.begins)


def present_over_time(windows: Windows, _: Context, __: tuple[Floats, ...]) -> Columns:
    """1 where there is any value."""
    counts = _counts(windows)
    return _present(np.ones_like(counts), counts > 0)


def quantiles(window: Floats, share: float) -> Floats:
    """The quantile of each row's values, interpolated between neighbours; NaN is no value."""
    ordered = np.sort(window, axis=1)  # NaN last
    counts = (~np.isnan(ordered)).sum(axis=1)
    empty = counts == 0
    if np.isnan(share):
        return np.full(len(window), np.nan)
    if not 0 <= share <= 1:
        return np.where(empty, np.nan, np.copysign(np.inf, share - 0.5))
    rank = share * np.maximum(counts - 1, 0)
    low = np.floor(rank).astype(np.int64)
    high = np.minimum(low + 1, np.maximum(counts - 1, 0))
    weight = rank - low
    rows = np.arange(len(window))
    with np.errstate(invalid="ignore"):
        found: Floats = ordered[rows, low] * (1 - weight) + ordered[rows, high] * weight
    return found


def quantile_over_time(
    windows: Windows, context: Context, parameters: tuple[Floats, ...]
) -> Columns:
    """A quantile of the values."""
    shares = parameters[0]
    values = _over(windows, context, lambda window, step: quantiles(window, float(shares[step])))
    return _present(values, _counts(windows) > 0)


def stdvar_over_time(windows: Windows, context: Context, _: tuple[Floats, ...]) -> Columns:
    """The variance of the values, as a whole population."""
    counts = np.maximum(_counts(windows), 1)

    def reduce(window: Floats, step: int) -> Floats:
        mean = np.nansum(window, axis=1) / counts[:, step]
        squares: Floats = np.nansum((window - mean[:, None]) ** 2, axis=1)
        return squares / counts[:, step]

    return _present(_over(windows, context, reduce), _counts(windows) > 0)


def stddev_over_time(windows: Windows, context: Context, _: tuple[Floats, ...]) -> Columns:
    """The standard deviation of the values, as a whole population."""
    values, present = stdvar_over_time(windows, context, ())
    return np.sqrt(values), present


def _neighbours(
    windows: Windows, context: Context, differs: Callable[[Floats, Floats], Bools]
) -> Columns:
    """How many values in each window differ from the one before them in it."""
    values = windows.values
    known = ~np.isnan(values)
    columns = np.arange(values.shape[1], dtype=np.int64)
    behind = np.maximum.accumulate(np.where(known, columns, -1), axis=1)
    before = np.concatenate([np.full((len(values), 1), -1), behind[:, :-1]], axis=1)
    rows = np.arange(len(values))[:, None]
    changed = known & (before >= 0) & differs(values[rows, np.clip(before, 0, None)], values)
    result = np.empty((len(values), len(windows.ends)))
    for step, (begin, end) in enumerate(_bounds(windows)):
        context.watch()
        window = slice(begin + 1, end + 1)
        inside = changed[:, window] & (before[:, window] > begin)
        result[:, step] = inside.sum(axis=1)
    return _present(result, _counts(windows) > 0)


def changes(windows: Windows, context: Context, _: tuple[Floats, ...]) -> Columns:
    """How often the value has changed."""
    return _neighbours(windows, context, lambda before, value: before != value)


def resets(windows: Windows, context: Context, _: tuple[Floats, ...]) -> Columns:
    """How often the value has fallen."""
    return _neighbours(windows, context, lambda before, value: value < before)


def _line(windows: Windows, context: Context) -> tuple[Floats, Floats, Bools]:
    """The line of least squares through each window: its slope, its value at the step, if any."""
    counts = _counts(windows)
    slopes = np.empty_like(counts)
    levels = np.empty_like(counts)
    for step, (begin, end) in enumerate(_bounds(windows)):
        context.watch()
        window = windows.values[:, begin + 1 : end + 1]
        known = ~np.isnan(window)
        seconds = np.arange(begin - end + 1, 1, dtype=np.float64) * windows.resolution
        many = np.maximum(counts[:, step], 1)
        times = np.where(known, seconds - windows.ages[step], 0.0)
        mid_time = times.sum(axis=1) / many
        mid = np.nansum(window, axis=1) / many
        apart = np.where(known, times - mid_time[:, None], 0.0)
        rise = np.where(known, window - mid[:, None], 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes[:, step] = (apart * rise).sum(axis=1) / (apart**2).sum(axis=1)
        levels[:, step] = mid - slopes[:, step] * mid_time
    return slopes, levels, counts > 1


def deriv(windows: Windows, context: Context, _: tuple[Floats, ...]) -> Columns:
    """The slope, a second, of the line of least squares."""
    slopes, _levels, there = _line(windows, context)
    return _present(slopes, there)


def predict_linear(windows: Windows, context: Context, parameters: tuple[Floats, ...]) -> Columns:
    """Where the line of least squares is, so many seconds after the step."""
    slopes, levels, there = _line(windows, context)
    return _present(levels + slopes * parameters[0], there)


FUNCTIONS: Final[dict[str, RangeFunction]] = {
    "rate": RangeFunction(rate, exact=True, base=True),
    "increase": RangeFunction(increase, exact=True, base=True),
    "delta": RangeFunction(delta, exact=True, base=True),
    "irate": RangeFunction(irate, base=True),
    "idelta": RangeFunction(idelta, base=True),
    "deriv": RangeFunction(deriv, "avg"),
    "predict_linear": RangeFunction(predict_linear, "avg"),
    "changes": RangeFunction(changes),
    "resets": RangeFunction(resets),
    "sum_over_time": RangeFunction(sum_over_time, "avg", exact=True),
    "avg_over_time": RangeFunction(avg_over_time, "avg", exact=True),
    "count_over_time": RangeFunction(count_over_time, exact=True),
    "min_over_time": RangeFunction(min_over_time, "min", exact=True),
    "max_over_time": RangeFunction(max_over_time, "max", exact=True),
    "last_over_time": RangeFunction(last_over_time, exact=True, keeps_name=True),
    "present_over_time": RangeFunction(present_over_time, exact=True),
    "quantile_over_time": RangeFunction(quantile_over_time, "avg", window=1),
    "stddev_over_time": RangeFunction(stddev_over_time, "avg"),
    "stdvar_over_time": RangeFunction(stdvar_over_time, "avg"),
}
"""Functions of windows, by name; `absent_over_time`, which needs the selector, is elsewhere."""
