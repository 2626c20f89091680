"""Which series a query wants, and their points: from the ring what is in it, else from the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bedstone.control.monitoring.catalogue import Catalogue, Entry
from bedstone.control.monitoring.reading import Matcher, SeriesKey
from bedstone.control.monitoring.ring import Ring
from bedstone.control.monitoring.rollups import AGGREGATES, Aggregate, roll_up
from bedstone.control.monitoring.rows import Rows
from bedstone.control.monitoring.sealing import Absence, Columns, rolled
from bedstone.control.monitoring.series_file import SeriesFile

Matrix = NDArray[np.float64]
Times = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chosen:
    """Series, in the order of their metrics, then of their ids.

    Attributes:
        entries: name, labels and kind of each.
        row: where each stands in memory; -1 for nowhere.
        columns: what roll-ups have to know.
    """

    entries: list[Entry]
    row: Times
    columns: Columns

    @property
    def keys(self) -> list[SeriesKey]:
        """What each is called."""
        return [SeriesKey(entry.name, entry.labels, entry.kind) for entry in self.entries]


def choose(
    catalogue: Catalogue, rows: Rows, matchers: Sequence[Matcher], start: int, end: int
) -> Chosen:
    """The series that match and may have a value between two seconds. The lock is held.

    Raises:
        InvalidError: no matcher demands something, or an expression is malformed.
    """
    entries = [catalogue[number] for number in catalogue.match(matchers).tolist()]
    row = np.array([entry.row for entry in entries], np.int64)
    # Of nearly all, the row counts; asking each entry would cost more than all the rest.
    first, last, source = (np.zeros(len(row), np.int64) for _ in range(3))
    here = np.flatnonzero(row >= 0)
    first[here], last[here] = rows.first[row[here]], rows.last[row[here]]
    source[here] = rows.source[row[here]]
    for at in np.flatnonzero(row < 0).tolist():
        entry = entries[at]
        first[at], last[at], source[at] = entry.first, entry.last, entry.source
    metric = np.array([entry.metric for entry in entries], np.int64)
    ids = np.array([entry.id for entry in entries], np.int64)
    some = np.flatnonzero((first > 0) & (first <= end) & (last >= start))
    order = some[np.lexsort((ids[some], metric[some]))]
    chosen = [entries[at] for at in order.tolist()]
    counter = np.array([entry.kind == "counter" for entry in chosen], np.bool_)
    return Chosen(
        chosen,
        row[order],
        Columns(ids[order], metric[order], source[order], first[order], counter),
    )


def read_ring(
    ring: Ring,
    chosen: Chosen,
    times: Times,
    values: Matrix,
    resolution: int,
    aggregate: Aggregate,
    begin: int,
    absence: Absence,
) -> None:
    """Fill in the points of which every second is in the ring. The lock is held.

    Args:
        ring: the seconds.
        chosen: the series.
        times: of the points.
        values: where they go.
        resolution: seconds between them.
        aggregate: what a point says of a gauge's seconds.
        begin: the first second to take from the ring; after a point.
        absence: who was missing.
    """
    here = np.flatnonzero(chosen.row >= 0)
    wanted = np.flatnonzero((times >= begin) & (times <= ring.last))
    if not here.size or not wanted.size:
        return
    start, stop = int(times[wanted[0]]) - resolution, int(times[wanted[-1]])
    # A counter may begin in the point after the last that is wanted.
    seconds = ring.read(chosen.row[here], start + 1, min(stop + resolution, ring.last))
    target = slice(int(wanted[0]), int(wanted[-1]) + 1)
    if resolution == 1:
        values[here, target] = seconds[:, : len(wanted)]
        return
    columns = chosen.columns[here]
    values[here, target] = rolled(seconds, columns, start, resolution, absence)[:, : len(wanted)]
    gauges = np.flatnonzero(~columns.counter)
    if aggregate != "last" and gauges.size:
        whole = seconds[gauges, : len(wanted) * resolution]
        values[here[gauges], target] = roll_up(whole, resolution, aggregate)


def read_file(
    file: SeriesFile,
    chosen: Chosen,
    times: Times,
    values: Matrix,
    resolution: int,
    aggregate: Aggregate,
) -> None:
    """Fill in the points of `times`, the first of the grid, from the file."""
    if not times.size or not chosen.entries:
        return
    edges = np.flatnonzero(np.diff(chosen.columns.metric)) + 1
    span = (int(times[0]), int(times[-1]))
    for rows in np.split(np.arange(len(chosen.entries)), edges):
        number = AGGREGATES.index(aggregate) if resolution > 1 else 0
        last = chosen.columns.counter[rows] if number else np.ones(len(rows), np.bool_)
        for kind, which in ((0, rows[last]), (number, rows[~last])):
            if which.size:
                _read_metric(file, chosen, which, span, values, resolution, kind)


def _read_metric(
    file: SeriesFile,
    chosen: Chosen,
    rows: Times,
    span: tuple[int, int],
    values: Matrix,
    resolution: int,
    aggregate: int,
) -> None:
    ids = chosen.columns.ids[rows]
    metric = int(chosen.columns.metric[rows[0]])
    bounds = (int(ids[0]), int(ids[-1]))
    for block in file.read(resolution, aggregate, metric, bounds, span):
        place = np.searchsorted(block.ids, ids)
        place[place == len(block.ids)] = 0
        found = np.flatnonzero(block.ids[place] == ids)
        if not found.size:
            continue
        first = block.start + resolution
        begin, end = max(span[0], first), min(span[1], block.stop)
        if begin > end:
            continue
        source = slice((begin - first) // resolution, (end - first) // resolution + 1)
        target = slice((begin - span[0]) // resolution, (end - span[0]) // resolution + 1)
        values[rows[found], target] = block.values[place[found], source]
