"""Roll-ups: the points of a coarser grid from seconds.

A point stands for the `step` seconds up to and including its own time: of counters the last value;
of gauges the last, least, greatest, and mean.

A counter that began within a point has its 0 within it too, where the coarser grid does not show
it. So the point before, where it has no value, gets the counter's first value: what it stood at.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Aggregate = Literal["last", "min", "max", "avg"]

AGGREGATES: Final[tuple[Aggregate, ...]] = ("last", "min", "max", "avg")


def roll_up(values: Matrix, step: int, aggregate: Aggregate) -> Matrix:
    """Points from seconds.

    Args:
        values: shape (S, n · step), of whole points.
        step: seconds of a point.
        aggregate: what a point says of them.

    Returns:
        Shape (S, n).
    """
    series, times = values.shape
    seconds = values.reshape(series, times // step, step)
    match aggregate:
        case "last":
            backwards = ~np.isnan(seconds[:, :, ::-1])
            place = step - 1 - backwards.argmax(axis=2)  # where there is none: a NaN all the same
            return np.take_along_axis(seconds, place[:, :, None], axis=2)[:, :, 0]
        case "min":
            return np.fmin.reduce(seconds, axis=2)  # type: ignore[no-any-return]
        case "max":
            return np.fmax.reduce(seconds, axis=2)  # type: ignore[no-any-return]
        case _:
            count = np.count_nonzero(~np.isnan(seconds), axis=2)
            with np.errstate(invalid="ignore"):  # a point without any value, or of both infinities
                return np.nansum(seconds, axis=2) / count  # type: ignore[no-any-return]


def firsts(values: Matrix, step: int) -> Matrix:
    """The first value in each point; the last point may be of fewer seconds. Shape (S, n)."""
    series, times = values.shape
    lacking = -times % step
    padded = np.pad(values, ((0, 0), (0, lacking)), constant_values=np.nan) if lacking else values
    seconds = padded.reshape(series, (times + lacking) // step, step)
    place = (~np.isnan(seconds)).argmax(axis=2)
    return np.take_along_axis(seconds, place[:, :, None], axis=2)[:, :, 0]


def begin(points: Matrix, first: Matrix, begun: NDArray[np.bool_]) -> None:
    """Fill points, in place, before which a counter began in the next.

    Args:
        points: shape (S, n), last values of counters.
        first: shape (S, m), m ≥ n: the first value in each point, and in points after them.
        begun: shape (S, m): whether the series began in that point, rather than came back.
    """
    width = min(points.shape[1], first.shape[1] - 1)
    here, after = points[:, :width], first[:, 1 : width + 1]
    empty = np.isnan(here) & begun[:, 1 : width + 1]
    here[empty] = after[empty]
