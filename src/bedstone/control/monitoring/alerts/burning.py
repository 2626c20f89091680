"""How fast an error budget burns: exact increases of counters over long and short windows.

A rate of 1 uses the budget up in exactly its period. Increases are read at a roll-up that fits the
window, so that days cost no more than minutes.

A counter counts from its last value at or before the window's beginning: what is missing there for
a moment is not "nothing counted yet". Where there is none, it counts from its first value within
the window, which is the zero that every counter begins with. It counts to its last value, whether
it goes on or has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bedstone.control.monitoring.alerts.rules import BurnRate
from bedstone.control.monitoring.reading import RESOLUTIONS, Matcher, Reader
from bedstone.model.units import format_span

_POINTS: Final = 400
"""About how many points of each series are read for a window."""
LOOKBEHIND: Final = 60
"""Seconds that a counter may have been missing at the beginning of a window."""


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
    width = max(1, window // resolution)
    behind = max(1, LOOKBEHIND // resolution)
    selection = reader.select(matchers, end - (width + behind) * resolution, end, resolution)
    values = selection.values
    if not values.size:
        return 0.0
    columns = np.arange(values.shape[1])
    known = ~np.isnan(values)
    within = known & (columns >= behind)
    last = np.where(within, columns, -1).max(axis=1)
    before = np.where(known & (columns <= behind), columns, -1).max(axis=1)
    first = np.where(before >= 0, before, known.argmax(axis=1))
    rows = np.flatnonzero(last >= 0)
    return float((values[rows, last[rows]] - values[rows, first[rows]]).sum())
