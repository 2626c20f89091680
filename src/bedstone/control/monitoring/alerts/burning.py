"""How fast an error budget burns: exact increases of counters over long and short windows.

A rate of 1 uses the budget up in exactly its period. Increases are read at a roll-up that fits the
window, so that days cost no more than minutes; a counter that began within the window counts from
zero, and one that ended in it to its last value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bedstone.control.monitoring.alerts.rules import BurnRate
from bedstone.control.monitoring.reading import RESOLUTIONS, Matcher, Reader
from bedstone.model.units import format_span

_POINTS: Final = 400
"""About how many points of each series are read for a window."""


def burning(reader: Reader, source: BurnRate, second: int) -> dict[str, tuple[float, bool, str]]:
    """For each pair of windows, by the long one: the rate over it, whether it holds, how urgent."""
    budget = 1 - source.objective
    known: dict[int, float] = {}

    def rate(window: int) -> float:
        if window not in known:
            errors = increase(reader, source.errors, window, second)
            total = increase(reader, source.total, window, second)
            # Without requests nothing fails; and more failures than requests are all of them.
            known[window] = min(errors / total, 1.0) / budget if total > 0 else 0.0
        return known[window]

    result = {}
    for window in source.windows:
        long = rate(window.long)
        held = long > window.factor and rate(window.short) > window.factor
        result[format_span(window.long)] = (long, held, window.severity)
    return result


def increase(reader: Reader, matchers: Sequence[Matcher], window: int, second: int) -> float:
    """By how much the counters that match grew in a window, all together."""
    import numpy as np

    wanted = max((r for r in RESOLUTIONS if window >= r * _POINTS), default=1)
    resolution = reader.resolution(second - window, wanted)
    # A roll-up's newest point is not there yet: end with the last whole one.
    end = second - second % resolution
    start = end - max(resolution, window - window % resolution)
    selection = reader.select(matchers, start, end, resolution)
    values = selection.values
    if not values.size:
        return 0.0
    present = ~np.isnan(values)
    rows = np.flatnonzero(present.any(axis=1))
    if not rows.size:
        return 0.0
    values, present = values[rows], present[rows]
    first = present.argmax(axis=1)
    last = present.shape[1] - 1 - present[:, ::-1].argmax(axis=1)
    each = np.arange(len(rows))
    # Where the store had data of others before, a series that comes later began at zero.
    begun = (first > 0) & bool(present[:, 0].any())
    before = np.where(begun, 0.0, values[each, first])
    return float((values[each, last] - before).sum())
