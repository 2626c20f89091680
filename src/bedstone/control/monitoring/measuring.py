"""Computes golden signals from a reader of series: everything at once, in a few selections.

One computation says the signals of every app, workload, revision, instance, cell, node, route and
edge. All of it is arrays; the work in Python is proportional to the number of groups, and to the
number of series only when other series are there than before.

Rule: only what was collected is divided by. Two seconds after the start of a server, a rate is over
two seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bedstone.control.monitoring.golden import QUANTILES, Golden, Span, Sums, known
from bedstone.control.monitoring.increases import (
    collected,
    increases,
    last_values,
    quantiles,
    steps,
)
from bedstone.control.monitoring.layouts import Buckets, Group, Layout, Remembered
from bedstone.control.monitoring.reading import Matcher, Reader, Selection
from bedstone.telemetry import names

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MINUTE = 60
_OWN: Mapping[str, tuple[str, ...]] = {
    "app": ("app",),
    "cell": ("app", "cell"),
    "workload": ("app", "workload"),
    "revision": ("app", "workload", "revision"),
    "instance": ("app", "cell", "workload", "instance"),
    "node": ("node",),
}
"""Kinds of groups of an instance's series, each with the labels that tell them apart."""


@dataclass(frozen=True, slots=True)
class _Family:
    """Requests that are counted alike: their metrics, and the groups they are summed by."""

    groups: Mapping[str, tuple[str, ...]]
    requests: names.Metric
    seconds: names.Metric
    errors: names.Metric | None = None
    """None: those that were answered with 5xx are what failed."""


_FAMILIES = (
    _Family(_OWN, names.REQUESTS, names.REQUEST_SECONDS, names.REQUEST_ERRORS),
    _Family({"gateway": ("app",)}, names.GATEWAY_REQUESTS, names.GATEWAY_SECONDS),
    _Family({"route": ("app", "route", "to")}, names.ROUTE_REQUESTS, names.ROUTE_SECONDS),
    _Family(
        {"edge": ("app", "caller", "callee")},
        names.EDGE_REQUESTS,
        names.EDGE_SECONDS,
        names.EDGE_ERRORS,
    ),
)
_GAUGES: tuple[tuple[names.Metric, tuple[str, ...]], ...] = (
    (names.NODE_CORES, ("node",)),
    (names.NODE_MEMORY, ("node", "state")),
    (names.DATABASE_CONNECTIONS, ("app", "database", "workload")),
    (names.TRANSACTIONS_STUCK, ("app",)),
)
_STEADY = (names.INSTANCE_MEMORY, names.NODE_CPU, names.REQUESTS, names.GATEWAY_REQUESTS)
"""Metrics of which some series has a value in every second that is collected."""
_RESTING = frozenset({"idle", "iowait"})


@dataclass(frozen=True, slots=True)
class _Read:
    """A metric's series over a span, and which of its points were collected."""

    found: Selection
    known: NDArray[np.bool_]

    @property
    def grown(self) -> NDArray[np.float64]:
        """How much each counter grew."""
        return increases(self.found.values, self.known)

    @property
    def last(self) -> NDArray[np.float64]:
        """The present value of each gauge; one that the last two points lack is not there."""
        return last_values(self.found.values[:, -2:])


class _Tables:
    """The selections of one span, each read once.

    Attributes:
        known: of each point, whether it was collected.
        seconds: from the first point with values to the last.
    """

    def __init__(self, reader: Reader, span: Span) -> None:
        import numpy as np

        self._reader = reader
        self._span = span
        self._found: dict[str, Selection] = {}
        selections = [self._select(metric.name) for metric in _STEADY]
        values = np.concatenate([selection.values for selection in selections])
        times = selections[0].times
        gaps = np.zeros(len(times), bool)
        if span.resolution == 1 and len(times):
            for second in reader.incomplete(int(times[0]), span.second):
                gaps[second - int(times[0])] = True
        self.known = collected(values, gaps)
        # increases are between values, also where their second misses something else
        points = (~np.isnan(values)).any(axis=0).nonzero()[0]
        self.seconds = float(points[-1] - points[0]) * span.resolution if len(points) else 0.0

    def read(self, name: str) -> _Read:
        """The series of one metric."""
        return _Read(self._select(name), self.known)

    def _select(self, name: str) -> Selection:
        if name not in self._found:
            matcher = Matcher("__name__", "=", name)
            span = self._span
            self._found[name] = self._reader.select(
                [matcher], span.start, span.second, span.resolution
            )
        return self._found[name]


def _step(window: int) -> int:
    """How far apart points may be: a short span is read by the second, to end at the last one."""
    return 1 if window <= 2 * MINUTE else 10 if window <= 30 * MINUTE else MINUTE


class Measuring:
    """Computes `Golden`. Not for several threads at once."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._layouts: Remembered[Layout] = Remembered()
        self._buckets: Remembered[Buckets] = Remembered()

    def span(self, at: int | None, window: int) -> Span:
        """The span of so many seconds that ends at a second; by default the last one finished."""
        last = self._reader.last()
        second = last if at is None else min(at, last)
        resolution = self._reader.resolution(second - window, _step(window))
        # Roll-ups stand on whole multiples of themselves.
        second -= second % resolution
        window = max(window - window % resolution, resolution)
        gaps = self._reader.incomplete(second - window + 1, second)
        every = {source: why for found in gaps.values() for source, why in found.items()}
        return Span(second, window, resolution, gaps.get(second, {}), every)

    def measure(self, span: Span) -> Golden:
        """The signals of everything over a span."""
        sums: dict[Group, Sums] = {}
        tables = _Tables(self._reader, span)
        self._processor(tables, sums)
        for family in _FAMILIES:
            self._family(family, tables, sums)
        gauges = {**self._gauges(tables), **self._machines(tables)}
        return Golden(span, tables.seconds, sums, gauges, self._minute(span))

    def restarts(self, second: int, window: int) -> dict[tuple[str, str], float]:
        """How often an instance was started again within a span, by app and workload."""
        import numpy as np

        end = second - second % 10
        matcher = Matcher("__name__", "=", names.INSTANCE_RESTARTS.name)
        found = self._reader.select([matcher], end - window, end, 10)
        # One that is new has counted none: it is compared with its own first value.
        read = _Read(found, np.zeros(len(found.times), bool))
        layout = self._layout(read, "restarts", ("app", "workload"))
        counts = zip(layout.keys, layout.totals(read.grown), strict=True)
        return {(app, workload): count for (_, app, workload), count in counts if count > 0}

    def _family(self, family: _Family, tables: _Tables, sums: dict[Group, Sums]) -> None:
        """Add a family's sums."""
        read = tables.read(family.requests.name)
        grown = read.grown
        for kind, by in family.groups.items():
            layout = self._layout(read, kind, by)
            for key, asked in zip(layout.keys, layout.totals(grown), strict=True):
                sums.setdefault(key, Sums()).requests = asked
        if family.errors is None:
            self._failures(family, read, "code", sums)
        else:
            self._failures(family, tables.read(family.errors.name), "kind", sums)
        self._latency(family, tables, sums)

    def _failures(self, family: _Family, read: _Read, label: str, sums: dict[Group, Sums]) -> None:
        """Add what failed: all that is counted by kind, or the answers of class 5xx."""
        grown = read.grown
        for kind, by in family.groups.items():
            layout = self._layout(read, kind, (*by, label))
            for key, count in zip(layout.keys, layout.totals(grown), strict=True):
                if math.isnan(count) or (label == "code" and key[-1] != "5xx"):
                    continue
                group = sums.setdefault(key[:-1], Sums())
                group.failed = count + (0.0 if math.isnan(group.failed) else group.failed)
                group.kinds[key[-1] if label == "kind" else "answer"] = count

    def _latency(self, family: _Family, tables: _Tables, sums: dict[Group, Sums]) -> None:
        read = tables.read(f"{family.seconds.name}_bucket")
        labels, grown = read.found.labels, read.grown
        if not labels:
            return
        name = family.seconds.name
        buckets = self._buckets.get((name,), labels, lambda: Buckets.of(labels))
        for kind, by in family.groups.items():
            layout = self._layout(read, kind, by)
            found = quantiles(buckets.bounds, buckets.cumulative(layout, grown), QUANTILES)
            for key, values in zip(layout.keys, found.tolist(), strict=True):
                sums.setdefault(key, Sums()).latency = tuple(values)

    def _processor(self, tables: _Tables, sums: dict[Group, Sums]) -> None:
        """Add processor time and memory."""
        cpu = tables.read(names.INSTANCE_CPU.name)
        memory = tables.read(names.INSTANCE_MEMORY.name)
        grown, held = cpu.grown, memory.last
        for kind, by in _OWN.items():
            layout = self._layout(cpu, kind, by)
            for key, used in zip(layout.keys, layout.totals(grown), strict=True):
                sums.setdefault(key, Sums()).cpu = used
            layout = self._layout(memory, kind, by)
            for key, size in zip(layout.keys, layout.totals(held), strict=True):
                sums.setdefault(key, Sums()).memory = size

    def _gauges(self, tables: _Tables) -> dict[Group, float]:
        """What machines and databases say of themselves."""
        found: dict[Group, float] = {}
        for metric, by in _GAUGES:
            read = tables.read(metric.name)
            layout = self._layout(read, metric.name, by)
            values = zip(layout.keys, layout.totals(read.last), strict=True)
            found |= {key: value for key, value in values if not math.isnan(value)}
        return found

    def _machines(self, tables: _Tables) -> dict[Group, float]:
        """The processors that are busy, by node, under the name of their metric."""
        name = names.NODE_CPU.name
        read = tables.read(name)
        layout = self._layout(read, name, ("node", "mode"))
        busy: dict[Group, float] = {}
        for (_, node, mode), used in zip(layout.keys, layout.totals(read.grown), strict=True):
            if mode not in _RESTING and not math.isnan(used) and tables.seconds:
                busy[name, node] = busy.get((name, node), 0.0) + used / tables.seconds
        return busy

    def _minute(self, span: Span) -> dict[str, tuple[float | None, ...]]:
        """Requests of each second of the last minute, by app: its gateway's, or of all of it."""
        if span.resolution != 1:
            return {}
        tables = _Tables(self._reader, Span(span.second, MINUTE, 1))
        rates: dict[str, tuple[float | None, ...]] = {}
        for metric in (names.REQUESTS, names.GATEWAY_REQUESTS):
            read = tables.read(metric.name)
            layout = self._layout(read, "minute", ("app",))
            rows = layout.each(steps(read.found.values, read.known))
            rates |= {
                key[1]: tuple(map(known, row)) for key, row in zip(layout.keys, rows, strict=False)
            }
        return rates

    def _layout(self, read: _Read, kind: str, by: Sequence[str]) -> Layout:
        found = read.found
        key = (*found.names[:1], kind, *by)
        return self._layouts.get(key, found.labels, lambda: Layout.of(found.labels, kind, by))
