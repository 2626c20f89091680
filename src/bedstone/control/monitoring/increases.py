"""How much counters grew over a span, and what a histogram's growth says: pure, over whole tables.

Rules:
- An increase is the last value less the first: the store has taken resets out, and a gap between
  the two hides nothing.
- A series that began within the span counts from zero, since its source counted from zero, where
  the second before its first value was collected. Where it was not, nobody knows what came before,
  and it counts from its first value.
- No value is NaN, which is not zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def collected(values: NDArray[np.float64], gaps: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of each point, whether it was collected: no gap, and some series has a value.

    Args:
        values: shape (series, points).
        gaps: shape (points), True where a point was not complete.
    """
    import numpy as np

    some = ~np.all(np.isnan(values), axis=0)
    both: NDArray[np.bool_] = np.logical_and(some, ~gaps)
    return both


def increases(values: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How much each series grew from its first point to its last; NaN where it has none.

    Args:
        values: of counters, shape (series, points).
        known: of each point, whether it was collected.
    """
    import numpy as np

    count, points = values.shape
    if not count or not points:
        return np.full(count, np.nan)
    there = ~np.isnan(values)
    first = there.argmax(axis=1)
    last = points - 1 - there[:, ::-1].argmax(axis=1)
    rows = np.arange(count)
    grown = values[rows, last] - values[rows, first]
    began = (first > 0) & known[np.maximum(first - 1, 0)]
    result: NDArray[np.float64] = np.where(began, values[rows, last], grown)
    return result


def steps(values: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How much each series grew in each point after the first, shape (series, points - 1).

    A point without a value, or after one without, is NaN.
    """
    import numpy as np

    grown = np.diff(values, axis=1)
    began = np.isnan(values[:, :-1]) & ~np.isnan(values[:, 1:]) & known[:-1]
    earlier = np.logical_or.accumulate(~np.isnan(values[:, :-1]), axis=1)
    result: NDArray[np.float64] = np.where(began & ~earlier, values[:, 1:], grown)
    return result


def last_values(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The last value that each series has; NaN where it has none."""
    import numpy as np

    count, points = values.shape
    if not count or not points:
        return np.full(count, np.nan)
    last = points - 1 - (~np.isnan(values))[:, ::-1].argmax(axis=1)
    result: NDArray[np.float64] = values[np.arange(count), last]
    return result


def totals(
    groups: NDArray[np.int64], weights: NDArray[np.float64], count: int
) -> NDArray[np.float64]:
    """The sum of each group's weights; NaN for a group of which none is known.

    Args:
        groups: the group of each weight, shape (series); negative: of none.
        weights: what is added, NaN where there is nothing to add.
        count: how many groups there are.
    """
    import numpy as np

    use = (groups >= 0) & ~np.isnan(weights)
    sums = np.bincount(groups[use], weights[use], minlength=count).astype(np.float64)
    seen = np.bincount(groups[use], minlength=count)
    sums[seen == 0] = np.nan
    return sums


def quantiles(
    bounds: NDArray[np.float64], cumulative: NDArray[np.float64], shares: Sequence[float]
) -> NDArray[np.float64]:
    """Quantiles of many histograms, interpolated within a bucket as Prometheus does.

    What lies above the last finite bound counts as that bound.

    Args:
        bounds: upper bounds of the buckets, ascending, the last one infinite; shape (buckets).
        cumulative: how many observations were at most each bound; shape (histograms, buckets).
        shares: the quantiles, 0 to 1.

    Returns:
        Shape (histograms, shares); NaN for a histogram without observations.
    """
    import numpy as np

    count, buckets = cumulative.shape
    result = np.full((count, len(shares)), np.nan)
    if not count or not buckets:
        return result
    # Buckets that were read a moment apart may lie a little below the one before them.
    rising = np.maximum.accumulate(np.nan_to_num(cumulative), axis=1)
    whole = rising[:, -1]
    rows = np.arange(count)
    finite = bounds[np.isfinite(bounds)]
    highest = finite[-1] if len(finite) else np.nan
    for column, share in enumerate(shares):
        rank = share * whole
        at = (rising >= rank[:, None]).argmax(axis=1)
        upper = bounds[at]
        lower = np.where(at > 0, bounds[np.maximum(at - 1, 0)], 0.0)
        below = np.where(at > 0, rising[rows, np.maximum(at - 1, 0)], 0.0)
        inside = rising[rows, at] - below
        with np.errstate(divide="ignore", invalid="ignore"):
            part = np.where(inside > 0, (rank - below) / inside, 1.0)
            value = lower + (upper - lower) * part
        result[:, column] = np.where(np.isfinite(upper), value, highest)
    result[whole <= 0] = np.nan
    return result
