"""Quantiles of histograms, as Prometheus computes them (`promql/quantile.go`).

A histogram is the series that agree in all labels but `le`; buckets are cumulative. Within a
bucket, observations are taken to be spread evenly. Buckets that are not there at a step are left
out of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bedstone.control.monitoring.promql.context import Context
from bedstone.control.monitoring.promql.results import LabelMap
from bedstone.control.monitoring.promql.table import NAME, Bools, Floats, Table, grouped

BOUND = "le"


def histogram_quantile(shares: Floats, table: Table, context: Context) -> Table:
    """The quantile of each histogram.

    Args:
        shares: shape (T,).
        table: buckets.
        context: of the evaluation.
    """
    histograms = _histograms(table)
    labels: list[LabelMap] = []
    values = np.full((len(histograms), table.steps), math.nan)
    present = np.zeros((len(histograms), table.steps), dtype=bool)
    # Histograms of the same bounds are computed together; those with holes one pattern at a time.
    alike: dict[tuple[float, ...], list[tuple[int, list[int]]]] = {}
    for index, (name, bounds, rows) in enumerate(histograms):
        labels.append(name)
        there = table.present[rows]
        present[index] = there.any(axis=0)
        if there.all():
            alike.setdefault(tuple(bounds), []).append((index, rows))
        else:
            _with_holes(values[index], bounds, table.values[rows], there, shares)
        context.watch()
    for each, members in alike.items():
        buckets = table.values[np.array([rows for _, rows in members])]
        values[[index for index, _ in members]] = _quantiles(each, buckets, shares)
        context.watch()
    return Table(tuple(labels), np.where(present, values, math.nan), present)


def _histograms(table: Table) -> list[tuple[LabelMap, list[float], list[int]]]:
    """The labels, bounds and rows of each; bounds ascend."""

    def name(labels: LabelMap) -> tuple[object, ...]:
        return tuple(sorted((n, v) for n, v in labels.items() if n not in (BOUND, NAME)))

    found: list[tuple[LabelMap, list[float], list[int]]] = []
    for rows in grouped(table.labels, name).values():
        bounded = sorted(
            (bound, row) for row in rows if (bound := _bound(table.labels[row])) is not None
        )
        if bounded:
            labels = {n: v for n, v in table.labels[rows[0]].items() if n not in (BOUND, NAME)}
            found.append((labels, [b for b, _ in bounded], [row for _, row in bounded]))
    return found


def _bound(labels: LabelMap) -> float | None:
    """A bucket's upper bound; None for what is no bucket."""
    try:
        return float(labels[BOUND])
    except (KeyError, ValueError):
        return None


def _with_holes(
    result: Floats, bounds: Sequence[float], values: Floats, present: Bools, shares: Floats
) -> None:
    patterns, members = np.unique(present, axis=1, return_inverse=True)
    for number in range(patterns.shape[1]):
        rows = patterns[:, number].nonzero()[0].tolist()
        steps = (members.reshape(-1) == number).nonzero()[0]
        if len(rows):
            there = [bounds[row] for row in rows]
            some = values[np.ix_(rows, steps)][None]
            result[steps] = _quantiles(there, some, shares[steps])[0]


def _quantiles(bounds: Sequence[float], counts: Floats, shares: Floats) -> Floats:
    """Quantiles of histograms of the same bounds.

    Args:
        bounds: of B buckets, ascending; equal ones are one bucket.
        counts: shape (H, B, T), cumulative.
        shares: shape (T,).
    """
    upper, counts = _merged(np.asarray(bounds), counts)
    shape = (counts.shape[0], counts.shape[2])
    if len(upper) < 2 or not math.isinf(upper[-1]):
        return _outside(np.full(shape, math.nan), shares)
    counts = np.maximum.accumulate(counts, axis=1)  # what was read between two writes may fall
    total = counts[:, -1, :]
    rank = shares * total
    # The first bucket that holds the rank; the last one if none below does.
    bucket = (counts[:, :-1, :] < rank[:, None, :]).sum(axis=1)
    last = bucket == len(upper) - 1
    below = np.maximum(bucket - 1, 0)
    ends = upper[np.minimum(bucket, len(upper) - 2)]
    starts = np.where(bucket > 0, upper[below], 0.0)
    h, t = np.ogrid[: shape[0], : shape[1]]
    under = np.where(bucket > 0, counts[h, below, t], 0.0)
    inside = counts[h, bucket, t] - under
    with np.errstate(divide="ignore", invalid="ignore"):
        found = starts + (ends - starts) * ((rank - under) / inside)
    found = np.where((bucket == 0) & (upper[0] <= 0), upper[0], found)
    found = np.where(last, upper[-2], found)
    return _outside(np.where(total == 0, math.nan, found), shares)


def _outside(values: Floats, shares: Floats) -> Floats:
    """What Prometheus says of shares that are none."""
    values = np.where(shares < 0, -math.inf, values)
    values = np.where(shares > 1, math.inf, values)
    return np.where(np.isnan(shares), math.nan, values)


def _merged(upper: Floats, counts: Floats) -> tuple[Floats, Floats]:
    """Buckets of equal bounds (`1` and `1.0`) as one."""
    distinct, starts = np.unique(upper, return_index=True)
    if len(distinct) == len(upper):
        return upper, counts
    return distinct, np.add.reduceat(counts, starts, axis=1)
