"""The conformance suite of readers of series, and the fake for everybody's tests.

A store's tests describe how to write into it with a `Subject`, and run every check:

    @pytest.mark.parametrize("check", CHECKS)
    def test_conformance(check: str, tmp_path: Path) -> None:
        run_check(check, subject_over(tmp_path))

Each check needs a subject of its own, with no data yet. It writes seconds in order, from `START`
on, and finishes each; a series that it does not put in a second has no value there. Failures are
assertion errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bedstone.control.monitoring.reading import RESOLUTIONS, Matcher, Reader, SeriesKey
from bedstone.errors import InvalidError
from bedstone.telemetry.frames import Labels
from bedstone.testing.series_memory import MemoryReader, SeriesWriter

__all__ = [
    "CHECKS",
    "START",
    "MemoryReader",
    "ReaderConformance",
    "SeriesWriter",
    "Subject",
    "run_check",
]

START: Final = 1_800_000_000
"""The first second of the checks; a multiple of every resolution."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One empty store: what writes to it, and what reads it."""

    writer: SeriesWriter
    reader: Reader


class ReaderConformance:
    """The checks, each a method named `check_…`.

    Args:
        subject: an empty store, which the check may write to.
    """

    def __init__(self, subject: Subject) -> None:
        self.writer = subject.writer
        self.reader = subject.reader

    def check_empty(self) -> None:
        """A store in which nothing was finished says so, and answers."""
        _equal(self.reader.last(), 0)
        _equal(self.rows([Matcher("__name__", "=", "x")], START, START + 5), {})
        _equal(self.reader.series([Matcher("__name__", "=", "x")], START, START + 5), [])

    def check_values_and_gaps(self) -> None:
        """What was put comes back in its second; a second without a value is NaN."""
        for offset in range(6):
            self.writer.put("up", {"node": "a"}, "gauge", START + offset, float(offset))
            if offset not in (2, 3):
                self.writer.put("down", {}, "gauge", START + offset, -0.5)
            self.writer.finish(START + offset)
        _equal(self.reader.last(), START + 5)
        got = self.rows([Matcher("__name__", "=~", "up|down")], START, START + 5)
        nan = math.nan
        _same(got["up", (("node", "a"),)], [0, 1, 2, 3, 4, 5])
        _same(got["down", ()], [-0.5, -0.5, nan, nan, -0.5, -0.5])

    def check_grid(self) -> None:
        """A selection has every point of its span, whether there is a value or not."""
        self.fill(30)
        one = self.reader.select([Matcher("__name__", "=", "g")], START - 3, START + 2, 1)
        _equal(one.times.tolist(), list(range(START - 3, START + 3)))
        _equal(one.resolution, 1)
        _equal(one.values.shape, (len(one.names), 6))
        _equal((len(one.labels), len(one.kinds)), (len(one.names), len(one.names)))
        ten = self.reader.select([Matcher("__name__", "=", "g")], START + 1, START + 29, 10)
        _equal(ten.times.tolist(), [START + 10, START + 20])

    def check_matchers(self) -> None:
        """All matchers hold; regular expressions match whole values; an absent label is empty."""
        for labels in ({"code": "2xx"}, {"code": "5xx"}, {"code": "5xx", "cell": "east"}, {}):
            self.writer.put("r", labels, "counter", START, 1)
        self.writer.put("s", {"code": "5xx"}, "counter", START, 1)
        self.writer.finish(START)
        name = Matcher("__name__", "=", "r")
        for more, expected in (
            ([], 4),
            ([Matcher("code", "=", "5xx")], 2),
            ([Matcher("code", "!=", "5xx")], 2),
            ([Matcher("code", "=~", "5.*")], 2),
            ([Matcher("code", "=~", "5")], 0),
            ([Matcher("code", "=~", "2xx|5xx")], 3),
            ([Matcher("code", "!~", "2xx|5xx")], 1),
            ([Matcher("code", "=", "")], 1),
            ([Matcher("cell", "=", ""), Matcher("code", "=~", ".+")], 2),
            ([Matcher("cell", "=~", "east|")], 4),
        ):
            _equal(len(self.rows([name, *more], START, START)), expected, more)
            _equal(len(self.reader.series([name, *more], START, START)), expected, more)
        _equal(len(self.rows([Matcher("code", "=", "5xx")], START, START)), 3)
        others = [Matcher("code", "=", "5xx"), Matcher("__name__", "!=", "r")]
        _equal(len(self.rows(others, START, START)), 1)

    def check_refusals(self) -> None:
        """No matcher that demands something, and a malformed expression, are refused."""
        self.fill(1)
        for matchers in (
            [],
            [Matcher("code", "=", "")],
            [Matcher("code", "=~", ".*")],
            [Matcher("__name__", "=~", "(")],
        ):
            try:
                self.reader.select(matchers, START, START, 1)
            except InvalidError:
                continue
            raise AssertionError(f"got an answer to {matchers}, expected InvalidError")

    def check_rollups_of_counters(self) -> None:
        """A roll-up of a counter is its last value, so an increase over whole points is exact."""
        self.fill(121)
        for resolution in (10, 60):
            for aggregate in ("last", "min", "max", "avg"):
                selection = self.reader.select(
                    [Matcher("__name__", "=", "c")],
                    START + resolution,
                    START + 120,
                    resolution,
                    aggregate,
                )
                _equal(selection.kinds, ("counter",))
                expected = [3.0 * (t - START) for t in selection.times.tolist()]
                _same(selection.values[0].tolist(), expected)

    def check_rollups_of_gauges(self) -> None:
        """A roll-up of a gauge says what it is asked of the seconds up to its own time."""
        self.fill(61)
        for resolution in (10, 60):
            half = (resolution - 1) / 2
            for aggregate, less in (("last", 0), ("max", 0), ("min", 2 * half), ("avg", half)):
                selection = self.reader.select(
                    [Matcher("__name__", "=", "g")],
                    START + resolution,
                    START + 60,
                    resolution,
                    aggregate,  # type: ignore[arg-type] # of the literals
                )
                expected = [t - START - less for t in selection.times.tolist()]
                _same(selection.values[0].tolist(), expected)

    def check_series_within_span(self) -> None:
        """Only the series that have a value in the span are named, with their kinds."""
        self.writer.put("early", {"a": "1"}, "counter", START, 1)
        self.writer.finish(START)
        for offset in range(1, 4):
            self.writer.put("late", {}, "gauge", START + offset, 1)
            self.writer.finish(START + offset)
        every = [Matcher("__name__", "=~", ".+")]
        early = SeriesKey("early", (("a", "1"),), "counter")
        late = SeriesKey("late", (), "gauge")
        _equal(set(self.reader.series(every, START, START + 3)), {early, late})
        _equal(self.reader.series(every, START, START), [early])
        _equal(self.reader.series(every, START + 1, START + 3), [late])

    def check_incomplete(self) -> None:
        """Incomplete seconds are named with what is missing; those in which nobody asked, too."""
        said: dict[int, dict[str, str]] = {1: {"a": "no answer"}, 2: {"a/envoy": "gone"}}
        for offset in (0, 1, 2, 5):
            self.writer.put("up", {}, "gauge", START + offset, 1)
            self.writer.finish(START + offset, said.get(offset))
        got = self.reader.incomplete(START, START + 5)
        _equal(sorted(got), [START + 1, START + 2, START + 3, START + 4])
        _equal(got[START + 1]["a"], "no answer")
        _equal(got[START + 2]["a/envoy"], "gone")
        assert "server" in got[START + 3], got
        assert "server" in got[START + 4], got
        _equal(sorted(self.reader.incomplete(START + 2, START + 3)), [START + 2, START + 3])
        _equal(self.reader.incomplete(START + 5, START + 5), {})

    def check_resolution(self) -> None:
        """The resolution for fresh seconds is the finest one where the step demands that."""
        self.fill(3)
        for step in (1, 7, 15, 60, 3600):
            got = self.reader.resolution(START, step)
            assert got in RESOLUTIONS, (step, got)
            assert step % got == 0, (step, got)

    def fill(self, seconds: int) -> None:
        """A gauge that says its second, and a counter that counts three a second."""
        for offset in range(seconds):
            self.writer.put("g", {}, "gauge", START + offset, float(offset))
            self.writer.put("c", {}, "counter", START + offset, 3.0 * offset)
            self.writer.finish(START + offset)

    def rows(
        self, matchers: Sequence[Matcher], start: int, end: int
    ) -> dict[tuple[str, Labels], list[float]]:
        """Values by series, at the finest resolution, of the series that have any."""
        selection = self.reader.select(matchers, start, end, 1)
        found: dict[tuple[str, Labels], list[float]] = {}
        for name, labels, row in zip(
            selection.names, selection.labels, selection.values.tolist(), strict=True
        ):
            if not all(math.isnan(value) for value in row):
                assert (name, labels) not in found, f"got {name}{labels} twice"
                found[name, labels] = row
        return found


def _equal(got: object, expected: object, where: object = "") -> None:
    assert got == expected, f"{where}: got {got!r}, expected {expected!r}"


def _same(got: Sequence[float], expected: Sequence[float]) -> None:
    """Equal, where NaN equals itself."""
    equal = len(got) == len(expected) and all(
        a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(got, expected, strict=True)
    )
    assert equal, f"got {list(got)!r}, expected {list(expected)!r}"


CHECKS: Final = tuple(name for name in vars(ReaderConformance) if name.startswith("check_"))
"""The names of all checks."""


def run_check(name: str, subject: Subject) -> None:
    """Run one check.

    Raises:
        AssertionError: the store breaks its promise.
    """
    getattr(ReaderConformance(subject), name)()
