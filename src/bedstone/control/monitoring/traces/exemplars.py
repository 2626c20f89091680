"""From a measurement to a trace: of each histogram's series, recent kept traces by their bucket.

Bounded: so many series, of each bucket the last few. Nothing is on disk: after a start they come
again with the traffic.
"""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bedstone.control.monitoring.reading import Matcher
from bedstone.control.monitoring.traces.sampler import Decided
from bedstone.control.monitoring.traces.spans import Span
from bedstone.telemetry import names

SERIES = 10_000
EACH = 3
_BOUNDS = [bound / 1000 for bound in names.BUCKETS]

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Observation:
    """One request: how long it took, when it ended, and where it is to be seen."""

    seconds: float
    time: float
    trace: str
    span: str


class ExemplarStore:
    """Remembers; safe to read from other threads.

    Args:
        revision: of an instance by its path; empty if it is unknown.
    """

    def __init__(self, revision: Callable[[str], str]) -> None:
        self._revision = revision
        self._series: OrderedDict[tuple[str, Labels], dict[int, deque[Observation]]] = OrderedDict()
        self._lock = threading.Lock()

    def kept(self, decided: Sequence[Decided]) -> None:
        """Take in kept traces."""
        with self._lock:
            for one in decided:
                for span in one.spans:
                    if span.whose.origin != "application":
                        for metric, labels in self._measured(span):
                            self._note(metric, labels, span)

    def matching(
        self, selectors: Sequence[Sequence[Matcher]], start: float, end: float
    ) -> list[tuple[dict[str, str], list[Observation]]]:
        """The series (labels with `__name__` and `le`) that fulfil all matchers of any selector."""
        found = []
        with self._lock:
            for (metric, labels), buckets in self._series.items():
                for index, observations in buckets.items():
                    le = f"{_BOUNDS[index]:g}" if index < len(_BOUNDS) else "+Inf"
                    series = {"__name__": f"{metric}_bucket", **dict(labels), "le": le}
                    if any(_fulfils(series, matchers) for matchers in selectors):
                        within = [each for each in observations if start <= each.time <= end]
                        if within:
                            found.append((series, within))
        return found

    def _note(self, metric: str, labels: Mapping[str, str], span: Span) -> None:
        key = (metric, tuple(sorted(labels.items())))
        buckets = self._series.setdefault(key, {})
        self._series.move_to_end(key)
        if len(self._series) > SERIES:
            self._series.popitem(last=False)
        index = bisect.bisect_left(_BOUNDS, span.seconds)
        observation = Observation(span.seconds, span.end / 1e9, span.trace.hex(), span.span.hex())
        buckets.setdefault(index, deque(maxlen=EACH)).append(observation)

    def _measured(self, span: Span) -> Iterator[tuple[str, dict[str, str]]]:
        """The histograms in which a hop's request was counted."""
        whose = span.whose
        said: dict[str, Any] = {item.key: item.value.string_value for item in span.data.attributes}
        callee = said.get("bedstone.callee", "")
        if said.get("bedstone.side") == "inbound":
            path = f"{whose.app}/{whose.cell}/{whose.service}/{whose.instance}"
            yield (
                names.REQUEST_SECONDS.name,
                {
                    "app": whose.app,
                    "cell": whose.cell,
                    "workload": whose.service,
                    "revision": self._revision(path),
                    "instance": whose.instance,
                    "node": whose.node,
                },
            )
            return
        if said.get("bedstone.side") == "gateway":
            yield names.GATEWAY_SECONDS.name, {"app": whose.app, "node": whose.node}
            if callee and said.get("http.route"):
                labels = {
                    "app": whose.app,
                    "route": said["http.route"],
                    "to": callee,
                    "node": whose.node,
                }
                yield names.ROUTE_SECONDS.name, labels
        if callee:
            edge = {
                "app": whose.app,
                "cell": whose.cell,
                "caller": whose.service,
                "callee": callee,
                "node": whose.node,
            }
            yield names.EDGE_SECONDS.name, edge


def _fulfils(series: Mapping[str, str], matchers: Sequence[Matcher]) -> bool:
    return all(matcher.matches(series.get(matcher.label, "")) for matcher in matchers)
