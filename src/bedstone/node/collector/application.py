"""What applications measure of themselves: the last values of what they export, and whose they are.

Rules:
- Whose a series is says the sender that the proxy named, never the application.
- An instance's process is the source's life: when it is another process, all begins anew.
- Processes and meters of one instance that write the same series (workers) are streams of it:
  counters add up over them, also over those that have ended, and a gauge is the last one written.
- A stream that begins to count anew loses nothing: what it had counted stays in the sum. A value
  that comes twice or late counts nothing.
- An instance has at most `MOST` series; of what is beyond, the sender is told, and its log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from bedstone.node.collector.intake import Sender
from bedstone.node.collector.otlp_metrics import Point, Refused, points
from bedstone.telemetry.frames import Labels, Series

if TYPE_CHECKING:
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
        ExportMetricsServiceRequest,
    )

_log = logging.getLogger(__name__)

MOST: Final = 2000
"""Series of one instance."""
STREAMS: Final = 64
"""Processes and meters that write one series."""
ENDED: Final = 60 * 10**9
"""Nanoseconds without a value after which a stream may be taken for one that has ended."""
POINTS: Final = 20_000
"""Points of one request; more would hold up the node."""
SILENCE: Final = 60.0
"""Seconds between two complaints about one instance."""


class Life(NamedTuple):
    """What is known of an instance that runs: its revision, and what tells its process apart."""

    revision: str
    incarnation: str


@dataclass(slots=True)
class _Stream:
    """The part of a series that one process's meter writes."""

    start: int
    time: int
    value: float

    def take(self, point: Point) -> float:
        """Take a value in; what an earlier life of the stream had counted, if it began anew."""
        if point.time <= self.time:
            return 0.0  # it came twice, or late
        before = 0.0
        if point.delta:
            self.value += point.value
        else:
            anew = point.start > self.start > 0
            if point.kind == "counter" and (anew or point.value < self.value):
                before = self.value
            self.value = point.value
        self.start, self.time = point.start, point.time
        return before


@dataclass(slots=True)
class _Value:
    """One series."""

    series: Series
    level: bool
    ended: float = 0.0
    streams: dict[int, _Stream] = field(default_factory=dict)
    last: float = 0.0

    def take(self, point: Point) -> bool:
        """Take a value in; whether there was room for its stream."""
        stream = self.streams.get(point.stream)
        if stream is not None:
            self.ended += stream.take(point)
        elif len(self.streams) < STREAMS or self._end_one(point.time):
            self.streams[point.stream] = _Stream(point.start, point.time, point.value)
        else:
            return False
        if self.level:
            self.last = max(self.streams.values(), key=lambda stream: stream.time).value
        else:
            self.last = self.ended + sum(it.value for it in self.streams.values())
        return True

    def _end_one(self, now: int) -> bool:
        """Take the stream that was silent for longest for one that has ended."""
        oldest = min(self.streams, key=lambda it: self.streams[it].time)
        if now - self.streams[oldest].time < ENDED:
            return False
        value = self.streams.pop(oldest).value
        if self.series.kind == "counter":
            self.ended += value
        return True


@dataclass(slots=True)
class _Instance:
    life: Life
    values: dict[tuple[str, Labels], _Value] = field(default_factory=dict)
    told_at: float = -SILENCE


class ApplicationMetrics:
    """The series of all instances of a node. For the event loop's thread alone.

    Args:
        node: the node's name.
        life: of an instance by its path; None while it does not run here.
        tell: says something in the log of an instance.
        clock: monotonic.
        most: series of one instance.
    """

    def __init__(
        self,
        node: str,
        life: Callable[[str], Life | None],
        tell: Callable[[Sender, str], None],
        clock: Callable[[], float],
        *,
        most: int = MOST,
    ) -> None:
        self._node = node
        self._life = life
        self._tell = tell
        self._clock = clock
        self._most = most
        self._instances: dict[Sender, _Instance] = {}

    def metrics(self, sender: Sender, request: ExportMetricsServiceRequest) -> int:
        """Take what an instance exports; how many points were dropped."""
        refused = Refused()
        every = list(islice(points(request, refused), POINTS + 1))
        if len(every) > POINTS:
            refused.add(1, f"more than {POINTS} points in one request")
            every.pop()
        life = self._life(str(sender))
        if life is None:  # it has just ended, or never was
            return refused.count + len(every)
        instance = self._instances.get(sender)
        if instance is None or instance.life != life:
            instance = self._instances[sender] = _Instance(life)
        for point in every:
            key = (point.name, point.labels)
            value = instance.values.get(key)
            if value is None:
                if len(instance.values) >= self._most:
                    refused.add(1, f"more than {self._most} series")
                    continue
                series = self._series(sender, life, point)
                value = instance.values[key] = _Value(series, point.level)
            elif value.series.kind != point.kind:
                refused.add(1, f"{point.name} is a counter and a gauge")
                continue
            if not value.take(point):
                refused.add(1, f"more than {STREAMS} processes write {point.name}")
        if refused.count and self._clock() - instance.told_at >= SILENCE:
            instance.told_at = self._clock()
            self._tell(sender, f"metrics were dropped: {refused.reason}")
        return refused.count

    def collect(self) -> tuple[Mapping[Series, float], Mapping[str, str]]:
        """The last values of all series, and the incarnation of each of their sources."""
        values: dict[Series, float] = {}
        incarnations: dict[str, str] = {}
        for sender, instance in list(self._instances.items()):
            if self._life(str(sender)) != instance.life:
                del self._instances[sender]
                continue
            incarnations[source_of(sender)] = instance.life.incarnation
            for value in instance.values.values():
                values[value.series] = value.last
        return values, incarnations

    def _series(self, sender: Sender, life: Life, point: Point) -> Series:
        scope = {
            "app": sender.app,
            "cell": sender.cell,
            "workload": sender.workload,
            "revision": life.revision,
            "instance": sender.instance,
            "node": self._node,
        }
        labels = tuple(sorted((*point.labels, *scope.items())))
        return Series(point.name, labels, point.kind, source_of(sender))


def source_of(sender: Sender) -> str:
    """The name of an instance's own metrics among the sources."""
    return f"application/{sender}"
