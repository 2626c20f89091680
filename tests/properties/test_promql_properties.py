"""Queries over any counters and gaps: what was counted is counted once."""

from __future__ import annotations

import contextlib
import math

from hypothesis import given
from hypothesis import strategies as st

from bedstone.control.monitoring.promql import Engine, Limits, evaluate_range
from bedstone.errors import Error
from bedstone.testing.series import START, MemoryReader

COUNTS = st.lists(st.one_of(st.none(), st.integers(0, 9)), min_size=2, max_size=60)


def store(counts: list[int | None], name: str = "c") -> tuple[MemoryReader, int]:
    """A counter that counts so much each second, and what it is known to have counted at the end.

    None is a second in which nobody answered; what was counted in it, 1, is in the next answer.
    """
    memory = MemoryReader()
    total = 0
    memory.put(name, {}, "counter", START, 0.0)
    memory.finish(START)
    seen = 0
    for offset, count in enumerate(counts, 1):
        total += 1 if count is None else count
        if count is not None:
            memory.put(name, {}, "counter", START + offset, float(total))
            seen = total
        memory.finish(START + offset)
    return memory, seen


@given(COUNTS, st.integers(1, 20))
def test_increases_of_windows_in_a_row_sum_to_the_count(
    counts: list[int | None], window: int
) -> None:
    memory, seen = store(counts)
    windows = -(-len(counts) // window)
    end = START + windows * window
    found = evaluate_range(memory, f"increase(c[{window}s])", START + window, end, window)
    assert sum(value for series in found.series for value in series.values) == seen


@given(COUNTS, st.integers(1, 20), st.integers(0, 60))
def test_rate_is_increase_by_the_window(counts: list[int | None], window: int, offset: int) -> None:
    memory, _ = store(counts)
    engine = Engine(memory)
    increase = engine.instant(f"increase(c[{window}s])", START + offset).vector()
    rate = engine.instant(f"rate(c[{window}s]) * {window}", START + offset).vector()
    assert len(increase.samples) == len(rate.samples)
    for a, b in zip(increase.samples, rate.samples, strict=True):
        assert math.isclose(a.value, b.value, abs_tol=1e-9)


@given(COUNTS, st.integers(1, 9), st.integers(1, 9), st.integers(70, 200))
def test_parts_give_what_the_whole_gives(
    counts: list[int | None], window: int, step: int, points: int
) -> None:
    memory, _ = store(counts)
    for expression in (f"rate(c[{window}s])", "c > 5", f"sum_over_time(c[{window}s:2s])"):
        whole = evaluate_range(memory, expression, START, START + len(counts), step)
        parts = Engine(memory, Limits(points=points)).range(
            expression, START, START + len(counts), step
        )
        assert parts.value == whole


@given(
    st.lists(st.floats(0.001, 100), min_size=1, max_size=50),
    st.lists(st.floats(0.01, 90), min_size=1, max_size=8, unique=True),
    st.floats(0.001, 1),
)
def test_a_quantile_lies_in_the_bucket_of_the_exact_one(
    observed: list[float], bounds: list[float], share: float
) -> None:
    """Merged over two instances, with a bucket's width as its only error."""
    memory = MemoryReader()
    upper = [*sorted(bounds), math.inf]
    for instance in (0, 1):
        mine = observed[instance::2]
        for bound in upper:
            count = float(sum(value <= bound for value in mine))
            labels = {"le": "+Inf" if math.isinf(bound) else repr(bound), "i": str(instance)}
            memory.put("h_bucket", labels, "counter", START, count)
    memory.finish(START)
    query = f"histogram_quantile({share!r}, sum by (le) (h_bucket))"
    (found,) = Engine(memory).instant(query, START).vector().samples
    exact = sorted(observed)[max(0, math.ceil(share * len(observed)) - 1)]
    high = next(bound for bound in upper if exact <= bound)
    if math.isinf(high):
        assert found.value == upper[-2]
        return
    low = max([0.0, *(bound for bound in upper if bound < exact)])
    assert low - 1e-9 <= found.value <= high + 1e-9


TOKENS = [
    "x",
    "c",
    '{a="1"}',
    '{a=~".*"}',
    "[5s]",
    "[5s:1s]",
    "(",
    ")",
    "+",
    "-",
    "*",
    "/",
    "%",
    "^",
    "==",
    "!=",
    ">",
    "bool",
    "on",
    "ignoring",
    "(a)",
    "group_left",
    "by",
    "without",
    "sum",
    "topk",
    "rate",
    "offset",
    "@",
    "5s",
    "1",
    "0.5",
    "NaN",
    "Inf",
    '"a"',
    "start()",
    "end()",
    "and",
    "or",
    "unless",
    ",",
    "quantile",
    "absent",
    "histogram_quantile",
    "label_replace",
    "time()",
    "vector",
    "scalar",
    "1e300",
    "99999y",
    "-1e18",
    "atan2",
    "count_values",
    "sort",
    "sum_over_time",
    "é",
    "#",
    "`",
    "\\",
]


@given(st.lists(st.sampled_from(TOKENS), min_size=1, max_size=9).map(" ".join))
def test_whatever_is_asked_is_answered_or_refused(expression: str) -> None:
    memory, _ = store([1, 2, None, 4])
    engine = Engine(memory, Limits(points=10_000, seconds=5))
    with contextlib.suppress(Error):
        engine.instant(expression, START + 4)
    with contextlib.suppress(Error):
        engine.range(expression, START, START + 4, 2)
