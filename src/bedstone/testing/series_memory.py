"""Series in memory, for tests: what is put is what is read.

Owns `MemoryReader`, a `Reader` that needs no store, and `SeriesWriter`, how checks write series.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from bedstone.control.monitoring.reading import RESOLUTIONS, Matcher, Selection, SeriesKey
from bedstone.errors import InvalidError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class SeriesWriter(Protocol):
    """How a check writes into a store."""

    def put(
        self,
        name: str,
        labels: Mapping[str, str],
        kind: Literal["counter", "gauge"],
        second: int,
        value: float,
    ) -> None:
        """Say the value of one series at the end of one second, which is not finished yet."""
        ...

    def finish(self, second: int, missing: Mapping[str, str] | None = None) -> None:
        """End a second: what was not put has no value in it.

        Args:
            second: later than every one that was finished.
            missing: `NODE` or `NODE/SOURCE` that did not answer, with why.
        """
        ...


@dataclass(slots=True)
class MemoryReader:
    """A reader and writer of series in memory; keeps everything at every resolution.

    Args:
        kept: how far back, in seconds before the last, each resolution is said to be kept.
    """

    kept: Mapping[int, int] = field(default_factory=dict)
    _values: dict[SeriesKey, dict[int, float]] = field(default_factory=dict)
    _missing: dict[int, dict[str, str]] = field(default_factory=dict)
    _last: int = 0

    def put(
        self,
        name: str,
        labels: Mapping[str, str],
        kind: Literal["counter", "gauge"],
        second: int,
        value: float,
    ) -> None:
        """Say the value of one series at the end of one second."""
        key = SeriesKey(name, tuple(sorted(labels.items())), kind)
        self._values.setdefault(key, {})[second] = value

    def finish(self, second: int, missing: Mapping[str, str] | None = None) -> None:
        """End a second; those that were left out since the last one had no server."""
        for absent in range(self._last + 1 if self._last else second, second):
            self._missing[absent] = {"server": "nobody asked"}
        if missing:
            self._missing[second] = dict(missing)
        self._last = second

    def select(
        self,
        matchers: Sequence[Matcher],
        start: int,
        end: int,
        resolution: int,
        aggregate: Literal["last", "min", "max", "avg"] = "last",
    ) -> Selection:
        """The series that match, on one grid."""
        import numpy as np

        found = [key for key in self._matching(matchers) if self._alive(key, start, end)]
        first = -(-start // resolution) * resolution
        times = np.arange(first, end + 1, resolution, dtype=np.int64)
        values = np.full((len(found), len(times)), math.nan)
        for row, key in enumerate(found):
            how = "last" if key.kind == "counter" else aggregate
            values[row] = _on_grid(self._values[key], times, resolution, how)
        return Selection(
            names=tuple(key.name for key in found),
            labels=tuple(key.labels for key in found),
            kinds=tuple(key.kind for key in found),
            times=times,
            values=values,
            resolution=resolution,
        )

    def series(self, matchers: Sequence[Matcher], start: int, end: int) -> list[SeriesKey]:
        """The series that match and have a value in the span."""
        return [key for key in self._matching(matchers) if self._alive(key, start, end)]

    def resolution(self, start: int, step: int) -> int:
        """The coarsest that divides the step, or the finest that is kept if that is coarser."""
        finest = next(
            (r for r in RESOLUTIONS if start >= self._last - self.kept.get(r, self._last)),
            RESOLUTIONS[-1],
        )
        return max([finest, *(r for r in RESOLUTIONS if step and step % r == 0)])

    def last(self) -> int:
        """The last second that was finished."""
        return self._last

    def incomplete(self, start: int, end: int) -> dict[int, dict[str, str]]:
        """The seconds that are not complete."""
        return {s: why for s, why in sorted(self._missing.items()) if start <= s <= end}

    def _matching(self, matchers: Sequence[Matcher]) -> list[SeriesKey]:
        if all(matcher.matches("") for matcher in matchers):
            raise InvalidError(
                "got no matcher that demands something, expected at least one",
                hint="name a metric, or demand a label that is not empty",
            )
        return [
            key
            for key in self._values
            if all(
                matcher.matches(
                    key.name
                    if matcher.label == "__name__"
                    else dict(key.labels).get(matcher.label, "")
                )
                for matcher in matchers
            )
        ]

    def _alive(self, key: SeriesKey, start: int, end: int) -> bool:
        return any(start <= second <= end for second in self._values[key])


def _on_grid(
    values: Mapping[int, float], times: NDArray[np.int64], resolution: int, how: str
) -> list[float]:
    """The point of each time, of the seconds up to and including it."""
    if resolution == 1:
        return [values.get(time, math.nan) for time in times.tolist()]
    points = []
    for time in times.tolist():
        seconds = range(time - resolution + 1, time + 1)
        known = [values[second] for second in seconds if second in values]
        match how:
            case _ if not known:
                points.append(math.nan)
            case "min":
                points.append(min(known))
            case "max":
                points.append(max(known))
            case "avg":
                points.append(math.fsum(known) / len(known))
            case _:
                points.append(known[-1])
    return points
