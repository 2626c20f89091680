"""From a copy of the ring to points for the file: parts, blocks and roll-ups. Pure.

Sealing takes whole minutes. Of the seconds after them it looks at one more minute: a counter that
began there has its 0 in the last roll-up's points that are sealed (see `rollups`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bedstone.control.monitoring.blocks import PART, Points
from bedstone.control.monitoring.rollups import AGGREGATES, begin, firsts, roll_up

Matrix = NDArray[np.float64]
Ids = NDArray[np.int64]

_ROLLED: Final = (10, 60)
_MINUTE: Final = 60


@dataclass(frozen=True, slots=True)
class Columns:
    """What sealing has to know of the rows of a matrix.

    Attributes:
        ids: of the series.
        metric: the number of its name.
        source: the number of its source.
        first: its first second with a value.
        counter: whether it is a counter.
    """

    ids: Ids
    metric: Ids
    source: Ids
    first: Ids
    counter: NDArray[np.bool_]

    def __getitem__(self, rows: NDArray[np.int64]) -> Columns:
        return Columns(
            self.ids[rows],
            self.metric[rows],
            self.source[rows],
            self.first[rows],
            self.counter[rows],
        )


@dataclass(frozen=True, slots=True)
class Absence:
    """Who was missing when, of the multiples of 10 s in a span.

    Attributes:
        missing: by second; nothing for a second that is not there.
        sources: the node and the name of each source, by its number.
    """

    missing: Mapping[int, Mapping[str, str]]
    sources: Sequence[tuple[str, str] | None]

    def of(self, second: int, source: Ids) -> NDArray[np.bool_]:
        """Whether the source of each was missing."""
        missing = self.missing.get(second)
        if not missing:
            return np.zeros(len(source), np.bool_)
        if "server" in missing:
            return np.ones(len(source), np.bool_)
        absent = [
            number
            for number, it in enumerate(self.sources)
            if it is not None and (it[0] in missing or f"{it[0]}/{it[1]}" in missing)
        ]
        return np.isin(source, absent)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of what is to be written.

    Attributes:
        last: the last second.
        begin: the second of the first row of `values`.
        part_from: the first second of the part.
        sealed: up to here, it was sealed before.
        upto: up to here, it is to be sealed; a whole minute, not before `sealed`.
        values: shape (seconds, series).
        columns: of the series.
        absence: who was missing.
    """

    last: int
    begin: int
    part_from: int
    sealed: int
    upto: int
    values: Matrix
    columns: Columns
    absence: Absence


def parts(snapshot: Snapshot) -> Iterator[Points]:
    """The seconds that are not in the file yet, by metric."""
    values = snapshot.values[snapshot.part_from - snapshot.begin :]
    if snapshot.part_from > snapshot.last:
        return
    columns = snapshot.columns
    for rows in _by_metric(columns):
        some = rows[~np.isnan(values[:, rows]).all(axis=0)]
        if some.size:
            yield Points(
                PART,
                0,
                int(columns.metric[some[0]]),
                snapshot.part_from - 1,
                columns.ids[some],
                values[:, some].T,
            )


def seal(snapshot: Snapshot) -> Iterator[Points]:
    """The blocks and roll-ups of the minutes that are to be sealed, by metric."""
    start = max(snapshot.sealed, (snapshot.begin - 1) // _MINUTE * _MINUTE)
    if snapshot.upto <= start:
        return
    # Whole minutes, and one more to look at: what is not there is NaN.
    wanted = snapshot.upto - start + _MINUTE
    values = np.full((wanted, snapshot.values.shape[1]), np.nan)
    there = snapshot.values[max(0, start + 1 - snapshot.begin) :]
    at = max(0, snapshot.begin - start - 1)
    width = min(len(there), wanted - at)
    values[at : at + width] = there[:width]
    for rows in _by_metric(snapshot.columns):
        yield from _seal_metric(
            np.ascontiguousarray(values[:, rows].T), snapshot.columns[rows], start, snapshot
        )


def _seal_metric(
    values: Matrix, columns: Columns, start: int, snapshot: Snapshot
) -> Iterator[Points]:
    sealed = snapshot.upto - start
    yield from _points(1, 0, start, columns, values[:, :sealed])
    for step in _ROLLED:
        points = rolled(values, columns, start, step, snapshot.absence)[:, : sealed // step]
        yield from _points(step, 0, start, columns, points)
        gauges = np.flatnonzero(~columns.counter)
        if gauges.size:
            for number, aggregate in enumerate(AGGREGATES[1:], 1):
                points = roll_up(values[gauges, :sealed], step, aggregate)
                yield from _points(step, number, start, columns[gauges], points)


def rolled(values: Matrix, columns: Columns, start: int, step: int, absence: Absence) -> Matrix:
    """The last values of whole points, with the 0 of counters that began within the next.

    Args:
        values: shape (S, seconds), the first of them that after `start`; the last point may be cut.
        columns: of the series.
        start: a point.
        step: seconds between points.
        absence: who was missing.
    """
    whole = values.shape[1] // step
    points = roll_up(values[:, : whole * step], step, "last")
    counters = np.flatnonzero(columns.counter)
    if counters.size and values.size:
        first = firsts(values[counters], step)
        begun = np.empty(first.shape, np.bool_)
        for number in range(first.shape[1]):
            before = start + number * step
            begun[:, number] = columns.first[counters] > before
            begun[:, number] |= ~absence.of(before, columns.source[counters])
        some = points[counters]
        begin(some, first, begun)
        points[counters] = some
    return points


def _points(
    level: int, aggregate: int, start: int, columns: Columns, values: Matrix
) -> Iterator[Points]:
    some = np.flatnonzero(~np.isnan(values).all(axis=1))
    if some.size:
        yield Points(
            level, aggregate, int(columns.metric[0]), start, columns.ids[some], values[some]
        )


def _by_metric(columns: Columns) -> Iterator[NDArray[np.int64]]:
    """The rows of each metric, by ascending id."""
    order = np.lexsort((columns.ids, columns.metric))
    edges = np.flatnonzero(np.diff(columns.metric[order])) + 1
    for rows in np.split(order, edges):
        if rows.size:
            yield rows
