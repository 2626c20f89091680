"""What a value was at this time in the seasons before, and whether it differs now.

The expectation is the median of the values at the same time of up to `DEPTH` earlier seasons, and
shortly before and after it; the spread is their median absolute deviation, times 1.4826, which is
the standard deviation of a normal distribution, and unlike it not drawn away by one bad day. Both
are kept for `KEPT` seconds, so that a second costs one query.

Rules:
- Fewer seasons than `LEAST` are too few to tell: the rule is unknown until then, and says so.
- A spread below 1 % of the expectation counts as 1 %: what never varied is not alarming by a hair.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from bedstone.control.monitoring.alerts.machine import Held
from bedstone.control.monitoring.alerts.rules import DAY, Baseline
from bedstone.control.monitoring.reading import Reader
from bedstone.errors import UnavailableError
from bedstone.telemetry.frames import Labels

if TYPE_CHECKING:
    from bedstone.control.monitoring.alerts.evaluation import Measured

DEPTH: Final = {DAY: 7, 7 * DAY: 4}
LEAST: Final = {DAY: 3, 7 * DAY: 2}
KEPT: Final = 60
_AROUND: Final = (-240, -120, 0, 120, 240)
_NORMAL: Final = 1.4826
_FLOOR: Final = 0.01

Expected = dict[Labels, tuple[float, float]]
"""Median and spread, by labels."""


class Baselines:
    """Expectations by rule.

    Args:
        reader: the series, for how far back they go.
        measure: the values of an expression at a time.
    """

    def __init__(self, reader: Reader, measure: Callable[[str, int], Sequence[Measured]]) -> None:
        self._reader = reader
        self._measure = measure
        self._expected: dict[str, tuple[int, Expected]] = {}

    def forget(self, version: str) -> None:
        """Drop what is known for a rule."""
        self._expected.pop(version, None)

    def compare(
        self, version: str, source: Baseline, second: int
    ) -> tuple[dict[Labels, Held], float | None]:
        """Which series differ, and the value where there is one.

        Raises:
            UnavailableError: there are too few seasons to compare with.
        """
        at, expected = self._expected.get(version, (-KEPT, {}))
        if not at <= second < at + KEPT:
            expected = self._expect(source, second)
            self._expected[version] = (second, expected)
        now = self._measure(source.expression, second)
        holds = {
            measured.labels: Held(measured.value)
            for measured in now
            if measured.labels in expected
            and differs(measured.value, *expected[measured.labels], source)
        }
        return holds, now[0].value if len(now) == 1 else None

    def _expect(self, source: Baseline, second: int) -> Expected:
        found: defaultdict[Labels, list[float]] = defaultdict(list)
        seasons: defaultdict[Labels, set[int]] = defaultdict(set)
        for back in range(1, DEPTH[source.season] + 1):
            for around in _AROUND:
                at = second - back * source.season + around
                for measured in self._measure(source.expression, at):
                    found[measured.labels].append(measured.value)
                    seasons[measured.labels].add(back)
        least = LEAST[source.season]
        deepest = max(map(len, seasons.values()), default=0)
        if deepest < least:
            unit = "days" if source.season == DAY else "weeks"
            raise UnavailableError(f"it needs {least} {unit} to compare with, and has {deepest}")
        return {
            labels: spread(values)
            for labels, values in found.items()
            if len(seasons[labels]) >= least
        }


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The median and the robust standard deviation."""
    middle = statistics.median(values)
    deviation = statistics.median(abs(value - middle) for value in values)
    return middle, deviation * _NORMAL


def differs(value: float, expected: float, sigma: float, source: Baseline) -> bool:
    """Whether a value is too far from what is expected, to a side that counts."""
    if source.share:
        allowed = abs(expected) * source.share
    else:
        allowed = source.sigmas * max(sigma, abs(expected) * _FLOOR)
    apart = value - expected
    if math.isclose(apart, 0, abs_tol=1e-12) or abs(apart) <= allowed:
        return False
    return source.above if apart > 0 else source.below
