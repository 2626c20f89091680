"""Golden signals: the rate, errors, latency and saturation of everything, over one span of seconds.

`Golden` holds what `bedstone.control.monitoring.measuring` has computed, and is asked by name. What
was not measured is None, which is not zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from bedstone.control.monitoring.layouts import Group
from bedstone.model.monitoring import Signals

QUANTILES = (0.5, 0.9, 0.99, 0.999)


@dataclass(frozen=True, slots=True)
class Span:
    """The seconds that something is said of.

    Args:
        second: the last.
        window: how many, ending there.
        resolution: seconds between the points that are read.
        missing: what was missing in its last second.
        gaps: what was missing in any of them.
    """

    second: int
    window: int
    resolution: int
    missing: Mapping[str, str] = field(default_factory=dict)
    gaps: Mapping[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every second was complete."""
        return not self.gaps

    @property
    def start(self) -> int:
        """The point before the first second: what counters are compared with."""
        return self.second - self.window


@dataclass(slots=True)
class Sums:
    """What a group came to within a span: `failed` and `kinds` are requests, `cpu` is seconds."""

    requests: float = math.nan
    failed: float = math.nan
    kinds: dict[str, float] = field(default_factory=dict)
    latency: tuple[float, ...] = (math.nan,) * len(QUANTILES)
    cpu: float = math.nan
    memory: float = math.nan


@dataclass(frozen=True, slots=True)
class Golden:
    """The signals of everything.

    Args:
        span: over which seconds.
        seconds: how many of them were collected, from the first to the last.
        sums: by group: `app`, `cell`, `workload`, `revision`, `instance`, `node`, `gateway`,
            `route`, `edge`.
        gauges: the last values of others, by the metric's name and the values of labels.
        rates: by app, the requests of each second of the last minute.
    """

    span: Span
    seconds: float
    sums: Mapping[Group, Sums]
    gauges: Mapping[Group, float]
    rates: Mapping[str, tuple[float | None, ...]]

    def of(self, *group: str) -> Signals:
        """The signals of a group."""
        sums = self.sums.get(group)
        if sums is None or not self.seconds:
            return Signals()
        failed = 0.0 if math.isnan(sums.failed) else sums.failed
        # A request that got no answer may be counted as a failure alone.
        asked = failed if math.isnan(sums.requests) else max(sums.requests, failed)
        p50, p90, p99, p999 = map(known, sums.latency)
        return Signals(
            rate=known(sums.requests / self.seconds),
            errors=failed / asked if asked > 0 else None,
            p50=p50,
            p90=p90,
            p99=p99,
            p999=p999,
            cpu=known(sums.cpu / self.seconds),
            memory=known(sums.memory),
            error_kinds={
                kind: count / self.seconds for kind, count in sums.kinds.items() if count > 0
            },
        )

    def gauge(self, *group: str) -> float | None:
        """The last value of a gauge, by its metric's name and the values of its labels."""
        return self.gauges.get(group)

    def groups(self, kind: str) -> list[Group]:
        """The groups of a kind of which something was measured."""
        return [group for group in self.sums if group[0] == kind]


def known(value: float) -> float | None:
    """A number, or None for what is none."""
    return float(value) if math.isfinite(value) else None
