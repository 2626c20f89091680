"""Gaps, the catalogue's index, the ring, and roll-ups."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedstone.control.monitoring.blocks import Points, groups, join, split
from bedstone.control.monitoring.catalogue import Catalogue
from bedstone.control.monitoring.gaps import Gaps, Run
from bedstone.control.monitoring.reading import Matcher
from bedstone.control.monitoring.ring import Ring
from bedstone.control.monitoring.rollups import begin, firsts, roll_up
from bedstone.errors import InvalidError

nan = float("nan")


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12), st.sampled_from("abc")), max_size=12)
)
def test_gaps_are_as_a_dictionary_of_seconds(spans: list[tuple[int, int, str]]) -> None:
    gaps, seconds = Gaps(), dict[int, dict[str, str]]()
    for first, length, what in spans:
        gaps.add(first, first + length, {what: "late"})
        for second in range(first, first + length + 1):
            seconds.setdefault(second, {})[what] = "late"
    for start, end in ((0, 60), (5, 20), (13, 13)):
        said = {
            second: dict(run.missing)
            for run in gaps.within(start, end)
            for second in range(run.first, run.last + 1)
        }
        assert said == {it: why for it, why in seconds.items() if start <= it <= end}
    for second in range(60):
        assert gaps.at(second) == seconds.get(second, {})
    runs = list(gaps)
    assert all(a.last < b.first for a, b in itertools.pairwise(runs))


def test_equal_seconds_are_one_run() -> None:
    gaps = Gaps()
    for second in range(1000):
        gaps.add(second, second, {"n": "away"})
    assert list(gaps) == [Run(0, 999, {"n": "away"})]


def test_too_many_runs_are_joined_and_never_called_complete() -> None:
    gaps = Gaps(most=10)
    for second in range(0, 100, 2):
        gaps.add(second, second, {f"n{second}": "away"})
    assert len(gaps) <= 10
    for second in range(0, 100, 2):
        assert f"n{second}" in gaps.at(second)


@given(
    st.lists(
        st.dictionaries(st.sampled_from("ab"), st.sampled_from(["", "1", "2"])),
        unique_by=lambda it: str(sorted(it.items())),
    ),
    st.lists(
        st.builds(
            Matcher,
            st.sampled_from(["a", "b", "__name__"]),
            st.sampled_from(["=", "!=", "=~", "!~"]),
            st.sampled_from(["", "1", "1|2", ".*", ".+", "m"]),
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_the_index_finds_what_trying_each_series_does(
    series: list[dict[str, str]], matchers: list[Matcher]
) -> None:
    catalogue = Catalogue()
    entries = [catalogue.add("m", tuple(sorted(it.items())), "gauge") for it in series]
    if all(matcher.matches("") for matcher in matchers):
        with pytest.raises(InvalidError):
            catalogue.match(matchers)
        return
    expected = [
        entry.id
        for entry in entries
        if all(
            it.matches({"__name__": "m", **dict(entry.labels)}.get(it.label, "")) for it in matchers
        )
    ]
    assert catalogue.match(matchers).tolist() == expected
    catalogue.forget(entries[::2])
    kept = {entry.id for entry in entries[1::2]}
    assert catalogue.match(matchers).tolist() == [it for it in expected if it in kept]


def test_the_ring_keeps_its_seconds_and_no_older_ones() -> None:
    ring = Ring(5, chunk=2)
    for second in (10, 11, 14):
        ring.advance(second)
        ring.write(second, np.array([1.0, 2.0, 3.0]) * second)
    assert ring.read(np.array([0, 2]), 10, 14).tolist()[1][::4] == [30.0, 42.0]
    ring.fill(13, np.array([1]), np.array([7.0]))
    ring.fill(9, np.array([1]), np.array([9.0]))
    ring.fill(14, np.array([1]), np.array([8.0]))
    row = ring.read(np.array([1]), 12, 14)[0]
    assert (np.isnan(row[0]), row[1], row[2]) == (True, 7.0, 28.0)
    ring.advance(100)
    assert np.isnan(ring.copy(96, 100)).all()


def test_roll_ups_say_the_last_least_greatest_and_mean_of_what_is_there() -> None:
    values = np.array([[1, nan, 3, nan, nan, nan, 9, 8, 7]])
    assert np.array_equal(roll_up(values, 3, "last"), [[3, nan, 7]], equal_nan=True)
    assert np.array_equal(roll_up(values, 3, "min"), [[1, nan, 7]], equal_nan=True)
    assert np.array_equal(roll_up(values, 3, "max"), [[3, nan, 9]], equal_nan=True)
    assert np.array_equal(roll_up(values, 3, "avg"), [[2, nan, 8]], equal_nan=True)


def test_a_counter_that_began_within_a_point_has_its_zero_in_the_point_before() -> None:
    values = np.array([[nan, nan, nan, 0, 5], [nan, nan, 3, 3, 4], [nan, nan, nan, 3, 4]])
    points = roll_up(values[:, :4], 2, "last")
    begin(points, firsts(values, 2), np.array([[True] * 3, [True] * 3, [False] * 3]))
    expected = np.array([[0.0, 0.0], [3.0, 3.0], [nan, 3.0]])
    assert np.array_equal(points, expected, equal_nan=True)


@given(st.integers(0, 400), st.integers(1, 400), st.sampled_from([1, 10]))
def test_points_that_are_split_by_spans_and_joined_are_the_same(
    start: int, count: int, level: int
) -> None:
    values = np.arange(count * 3.0).reshape(3, count)
    points = Points(level, 0, 1, start * level, np.array([3, 5, 9]), values)
    back = {}
    for block in split(points):
        assert block.start % (120 * level) == 0
        assert block.stop <= block.start + 120 * level
        whole = join([*groups(block, 2), block])
        for at, column in enumerate(whole.values.T, 1):
            if not np.isnan(column).all():
                back[block.start + at * level] = column.tolist()
    times = [start * level + (at + 1) * level for at in range(count)]
    assert back == dict(zip(times, values.T.tolist(), strict=True))


def test_a_search_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = Catalogue()
    for number in range(10):
        catalogue.add("m", (("a", f"value{number}"),), "gauge")
    ticks = itertools.count()
    monkeypatch.setattr("time.thread_time", lambda: next(ticks) * 0.3)
    with pytest.raises(InvalidError, match="take too long"):
        catalogue.match([Matcher("a", "=~", "value.*")])
    assert len(catalogue.match([Matcher("__name__", "=", "m")])) == 10
