"""Blocks: how points lie on disk, and how more points come to them.

A block is a matrix of the series of one metric by the times of one span, in groups of at most
`GROUP` series by ascending id, so that one series is read without decoding all. Spans of a level
are aligned, and `SPAN` points long: 2 minutes of seconds, 20 minutes at 10 s, 2 hours at 60 s.

Level 0 is *parts*: seconds that are flushed, but not in a block yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Ids = NDArray[np.int64]

SPAN: Final = 120
GROUP: Final = 256
PART: Final = 0


@dataclass(frozen=True, slots=True)
class Points:
    """Points of series of one metric.

    Args:
        level: seconds between them; 0 for a part, whose are seconds.
        aggregate: which, by its place in `rollups.AGGREGATES`.
        metric: the number of the series' name.
        start: the point before the first.
        ids: shape (S,), ascending.
        values: shape (S, T).
    """

    level: int
    aggregate: int
    metric: int
    start: int
    ids: Ids
    values: Matrix

    @property
    def step(self) -> int:
        """Seconds between the points."""
        return max(self.level, 1)

    @property
    def stop(self) -> int:
        """The last point."""
        return self.start + int(self.values.shape[1]) * self.step


def split(points: Points) -> Iterator[Points]:
    """The same points by the spans that they lie in, each from its span's beginning."""
    step = points.step
    span = SPAN * step
    at = points.start
    while at < points.stop:
        begin = at // span * span
        end = min(begin + span, points.stop)
        values = points.values[:, (at - points.start) // step : (end - points.start) // step]
        some = ~np.isnan(values).all(axis=1)
        if some.any():
            lead = (at - begin) // step
            values = np.pad(values[some], ((0, 0), (lead, 0)), constant_values=np.nan)
            yield Points(
                points.level, points.aggregate, points.metric, begin, points.ids[some], values
            )
        at = end


def join(blocks: Iterable[Points]) -> Points:
    """Points of one metric, level, aggregate and span as one; a later one's values count."""
    blocks = list(blocks)
    if len(blocks) == 1:
        return blocks[0]
    first = blocks[0]
    ids = np.unique(np.concatenate([block.ids for block in blocks]))
    values = np.full((len(ids), max(block.values.shape[1] for block in blocks)), np.nan)
    for block in blocks:
        rows = np.searchsorted(ids, block.ids)
        width = block.values.shape[1]
        here = values[rows, :width]
        values[rows, :width] = np.where(np.isnan(block.values), here, block.values)
    return Points(first.level, first.aggregate, first.metric, first.start, ids, values)


def groups(points: Points, size: int = GROUP) -> Iterator[Points]:
    """The same points in groups of series."""
    for begin in range(0, len(points.ids), size):
        part = slice(begin, begin + size)
        yield Points(
            points.level,
            points.aggregate,
            points.metric,
            points.start,
            points.ids[part],
            points.values[part],
        )
