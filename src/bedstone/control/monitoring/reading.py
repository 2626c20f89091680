"""How series are read and written: what a query asks of a store of series, and what it gets.

Rules:
- Times are whole seconds since the epoch. Values stand on a grid of one resolution: 1 s, or a
  roll-up of 10 s or 60 s, whose points stand for the seconds up to and including their own time.
- NaN is "no value": the series did not exist, or its second was not collected. A gap stays a gap.
- Counters never decrease: the store has taken resets out. A roll-up of a counter is its last value,
  so an increase over any span of whole points is exact.
- A counter that began while its source was watched has a 0 at the second before its first value:
  what it counted in its first second is an increase, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from bedstone.control.monitoring import patterns
from bedstone.telemetry.frames import Frame, Labels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESOLUTIONS = (1, 10, 60)
"""Seconds between the points of each level."""


@dataclass(frozen=True, slots=True)
class Matcher:
    """A condition on one label; `__name__` is the metric's name. A label that is absent is ''.

    Regular expressions match the whole value, as Prometheus's do.
    """

    label: str
    op: Literal["=", "!=", "=~", "!~"]
    value: str

    def matches(self, value: str) -> bool:
        """Whether a label's value fulfils it.

        Raises:
            InvalidError: a regular expression that is malformed or too large.
        """
        match self.op:
            case "=":
                return value == self.value
            case "!=":
                return value != self.value
            case "=~":
                return patterns.compiled(self.value).isinstance_python(value)
            case _:
                return not patterns.compiled(self.value).isinstance_python(value)


@dataclass(frozen=True, slots=True)
class Selection:
    """Series on one grid.

    Args:
        names: the metric's name of each series.
        labels: the labels of each.
        kinds: what the values of each mean.
        times: shape (T,), int64, seconds, ascending by `resolution`.
        values: shape (S, T), float64, NaN where there is no value.
        resolution: seconds between points.
    """

    names: tuple[str, ...]
    labels: tuple[Labels, ...]
    kinds: tuple[Literal["counter", "gauge"], ...]
    times: NDArray[np.int64]
    values: NDArray[np.float64]
    resolution: int


@dataclass(frozen=True, slots=True)
class SeriesKey:
    """One series' name, labels and kind."""

    name: str
    labels: Labels
    kind: Literal["counter", "gauge"]


class Reader(Protocol):
    """A store of series, for reading. Safe to call from other threads than the writer's."""

    def select(
        self,
        matchers: Sequence[Matcher],
        start: int,
        end: int,
        resolution: int,
        aggregate: Literal["last", "min", "max", "avg"] = "last",
    ) -> Selection:
        """The series that match, at the points of `resolution` with start ≤ time ≤ end.

        Args:
            matchers: all must hold; at least one must not match the empty string.
            start: first second.
            end: last second.
            resolution: one of `RESOLUTIONS`.
            aggregate: what a roll-up's point says of a gauge's seconds; of counters always `last`.

        Raises:
            InvalidError: no matcher, or a malformed regular expression.
        """
        ...

    def series(self, matchers: Sequence[Matcher], start: int, end: int) -> list[SeriesKey]:
        """The series that match and have a value between `start` and `end`."""
        ...

    def resolution(self, start: int, step: int) -> int:
        """The finest resolution that is kept back to `start` and is not finer than `step` needs."""
        ...

    def last(self) -> int:
        """The last second that was finished, complete or not; 0 before the first."""
        ...

    def incomplete(self, start: int, end: int) -> dict[int, dict[str, str]]:
        """The seconds that are not complete, each with what is missing and why.

        What is missing is a `NODE`, or a source of one, `NODE/SOURCE`; in a second in which nobody
        asked, because the server was away, it is `server`.
        """
        ...


class Writer(Protocol):
    """A store of series, for the one who collects. Called by one thread; never waits for a disk."""

    def ingest(self, node: str, frame: Frame) -> bool:
        """Take a node's frame; it counts for `frame.second`, if that is not finished yet.

        The server's own series come as the node `server`.

        Returns:
            False if one before it was missed, and nothing was taken: ask for a complete frame.
        """
        ...

    def finish(self, second: int, missing: Mapping[str, str]) -> None:
        """No more comes for a second: what was ingested for it is what is known of it.

        Seconds that were left out since the last one are incomplete: `server`. A second that is not
        later than the last one changes nothing.

        Args:
            second: since the epoch.
            missing: for each node that should have answered and did not, why. Sources that did not
                answer are taken from the frames.
        """
        ...
