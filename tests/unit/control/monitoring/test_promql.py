"""Queries: exact increases, gaps, resolutions, and what is refused.

Functions and operators are tested beside a real Prometheus, in tests/e2e.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Sequence

import pytest

from bedstone.control.monitoring.promql import (
    Engine,
    Limits,
    Matrix,
    Scalar,
    String,
    check,
    evaluate,
    evaluate_range,
    ranges,
)
from bedstone.control.monitoring.promql.text import number, plain
from bedstone.errors import InvalidError, UnavailableError
from bedstone.model.expressions import expression_mistake
from bedstone.testing.series import START, MemoryReader


def counter(values: Sequence[float | None], name: str = "c", **labels: str) -> MemoryReader:
    """A counter by the second from `START` on; None is a gap."""
    memory = MemoryReader()
    fill(memory, values, name, **labels)
    for offset in range(len(values)):
        memory.finish(START + offset)
    return memory


def fill(memory: MemoryReader, values: Sequence[float | None], name: str, **labels: str) -> None:
    for offset, value in enumerate(values):
        if value is not None:
            memory.put(name, labels, "counter", START + offset, value)


def value(memory: MemoryReader, expression: str, at: int) -> float | None:
    """The only value of an expression, if there is one."""
    samples = Engine(memory).instant(expression, at).vector().samples
    assert len(samples) <= 1
    return samples[0].value if samples else None


# Differences.


def test_an_increase_is_the_exact_difference_from_before_the_window() -> None:
    memory = counter([0, 3, 7, 7, 12, 20])
    assert value(memory, "increase(c[1s])", START + 2) == 4
    assert value(memory, "increase(c[3s])", START + 5) == 13
    assert value(memory, "increase(c[5s])", START + 5) == 20
    assert value(memory, "rate(c[5s])", START + 5) == 4


def test_windows_that_follow_one_another_count_everything_once_over_a_gap() -> None:
    memory = counter([0, 5, 6, None, None, None, 20, 21, 30])
    series = evaluate_range(memory, "increase(c[2s])", START, START + 8, 2).series[0]
    assert dict(zip(series.times, series.values, strict=True)) == {
        START + 2: 6.0,
        START + 6: 14.0,
        START + 8: 10.0,
    }, "nothing at START+4, which lies in the gap: its count falls to the window after"


def test_a_gap_of_more_than_a_minute_is_not_bridged() -> None:
    values = [0, 1, *([None] * 70), 50, 52]
    memory = counter(values)
    assert value(memory, "increase(c[2s])", START + 73) == 2


def test_a_counter_that_began_while_it_was_watched_counts_from_zero() -> None:
    memory = counter([None, None, None, 0, 4, 6])
    assert value(memory, "increase(c[10s])", START + 5) == 6


def test_a_counter_of_which_one_value_is_known_has_no_increase() -> None:
    memory = counter([None, None, 9])
    assert value(memory, "increase(c[10s])", START + 2) is None


def test_what_ended_within_the_window_still_counts() -> None:
    memory = counter([0, 4, 8, None, None])
    assert value(memory, "increase(c[4s])", START + 4) == 8
    assert value(memory, "rate(c[4s])", START + 4) == 2


def test_a_gauge_that_falls_is_taken_for_a_counter_that_began_anew() -> None:
    memory = MemoryReader()
    for offset, level in enumerate((5, 9, 2, 4)):
        memory.put("g", {}, "gauge", START + offset, level)
        memory.finish(START + offset)
    assert value(memory, "increase(g[3s])", START + 3) == 4 + 2 + 2
    assert value(memory, "delta(g[3s])", START + 3) == -1
    assert value(memory, "resets(g[4s])", START + 3) == 1


# Times.


def test_a_gap_stays_a_gap() -> None:
    memory = counter([1, None, 3])
    assert [value(memory, "c", START + offset) for offset in range(3)] == [1, None, 3]
    assert value(memory, "absent(c)", START + 1) == 1
    assert value(memory, "last_over_time(c[2s])", START + 1) == 1


def test_a_query_of_now_is_of_the_last_finished_second() -> None:
    memory = counter([1, 2, 3])
    assert value(memory, "c", START + 5) == 3
    assert value(memory, "increase(c[1s])", START + 12) == 1
    assert value(memory, "c", START + 13) is None
    assert Engine(memory).instant("c").vector().at == START + 2
    series = evaluate_range(memory, "c", START, START + 5, 1).series[0]
    assert series.times == (START, START + 1, START + 2), "a range repeats nothing"


def test_a_series_may_follow_another_of_the_same_labels() -> None:
    memory = counter([1, 2, None, None], name="a", app="x")
    fill(memory, [None, None, 3, 4], "b", app="x")
    (series,) = evaluate_range(memory, '-{__name__=~"a|b"}', START, START + 3, 1).series
    assert series.values == (-1, -2, -3, -4)


def test_two_series_of_the_same_labels_at_one_time_are_refused() -> None:
    memory = counter([1, 2], name="a")
    fill(memory, [1, 2], "b")
    with pytest.raises(InvalidError, match="the same labels"):
        evaluate(memory, '-{__name__=~"a|b"}', START)


# Resolutions.


def rolled() -> MemoryReader:
    """Ten minutes, of which the older half is kept by the minute only."""
    memory = MemoryReader(kept={1: 300, 10: 300})
    for offset in range(601):
        memory.put("c", {}, "counter", START + offset, 2.0 * offset)
        memory.put("g", {}, "gauge", START + offset, float(offset % 60))
        memory.finish(START + offset)
    return memory


def test_old_data_are_read_at_the_resolution_that_is_kept() -> None:
    memory = rolled()
    answer = Engine(memory).range("increase(c[2m])", START + 180, START + 240, 60)
    assert answer.resolution == 60
    assert answer.matrix().series[0].values == (240.0, 240.0)
    assert answer.warnings == ()


def test_a_window_that_is_shorter_than_a_point_is_widened_and_said() -> None:
    answer = Engine(rolled()).range("rate(c[5s])", START + 120, START + 240, 60)
    assert answer.matrix().series[0].values == (2.0, 2.0, 2.0)
    assert answer.warnings == (
        "a range of 5 s was widened to 60 s: data of that age is kept every 60 s",
    )


def test_steps_between_points_are_exact_over_hours_and_as_of_the_point_before_beyond() -> None:
    memory = MemoryReader()
    for offset in range(10_000):
        memory.put("c", {}, "counter", START + offset, float(offset))
        memory.finish(START + offset)
    engine = Engine(memory)
    near = engine.range("increase(c[1m])", START + 67, START + 67 + 120, 60)
    assert near.resolution == 1
    assert engine.range("c", START + 67, START + 67, 60).matrix().series[0].values == (67,)
    aligned = engine.range("increase(c[1m])", START + 60, START + 180, 60)
    assert aligned.resolution == 60
    far = engine.range("c", START + 67, START + 67 + 9_000, 60)
    assert (far.resolution, far.matrix().series[0].values[:2]) == (60, (60, 120))


def test_roll_ups_of_gauges_say_what_was_asked() -> None:
    memory = rolled()

    def at(expression: str) -> float:
        return evaluate_range(memory, expression, START + 240, START + 240, 60).series[0].values[0]

    assert at("max_over_time(g[1m])") == 59
    assert at("min_over_time(g[1m])") == 0
    assert at("avg_over_time(g[2m])") == 29.5
    assert at("count_over_time(g[2m])") == 120
    assert at("sum_over_time(g[2m])") == 2 * sum(range(60))


def test_incomplete_seconds_that_were_read_are_named() -> None:
    memory = MemoryReader()
    for offset in range(20):
        memory.put("c", {}, "counter", START + offset, 1.0)
        memory.finish(START + offset, {"local/envoy": "no answer"} if offset in (3, 9) else None)
    answer = Engine(memory).instant("sum_over_time(c[4s])", START + 10)
    assert answer.incomplete == {START + 9: {"local/envoy": "no answer"}}
    assert Engine(memory).instant("c", START + 10).incomplete == {}


def test_incomplete_seconds_before_a_window_are_not_its_own() -> None:
    memory = MemoryReader()
    for offset in range(100):
        memory.put("c", {}, "counter", START + offset, float(offset))
        memory.finish(START + offset, {"local": "no answer"} if offset in (80, 89, 90) else None)
    answer = Engine(memory).instant("increase(c[10s])", START + 99)
    assert sorted(answer.incomplete or {}) == [START + 89, START + 90], "its start counts"


def test_a_long_outage_is_not_named_second_by_second() -> None:
    memory = MemoryReader(kept={1: 10, 10: 10})
    memory.put("c", {}, "counter", START, 1.0)
    memory.finish(START)
    for offset in range(3):
        memory.put("c", {}, "counter", START + 864_000 + offset, 1.0)
        memory.finish(START + 864_000 + offset)
    answer = Engine(memory).range("c", START, START + 864_000, 3600)
    assert len(answer.incomplete or {}) <= 86_400
    assert answer.warnings == ("more seconds are incomplete than are named here: older ones, too",)


# Limits.


def wide(series: int, seconds: int) -> MemoryReader:
    memory = MemoryReader()
    for offset in range(seconds):
        for each in range(series):
            memory.put("x", {"n": f"{each:03}"}, "gauge", START + offset, float(each))
        memory.finish(START + offset)
    return memory


def test_too_many_series_are_refused_before_they_are_read() -> None:
    with pytest.raises(InvalidError, match="selects 30 series, expected at most 29") as failure:
        Engine(wide(30, 2), Limits(series=29)).instant("sum(x)", START)
    assert failure.value.hint


def test_a_range_that_reads_too_much_at_once_is_read_in_parts() -> None:
    memory = wide(10, 120)
    limited = Engine(memory, Limits(points=500))
    for expression in ("sum by (n) (x)", "avg_over_time(x[5s])", "topk(2, x)", "x @ end() > 3"):
        expected = evaluate_range(memory, expression, START, START + 119, 3)
        assert limited.range(expression, START, START + 119, 3).value == expected


def test_functions_of_some_series_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = wide(10, 30)
    expressions = [
        f"{name}(x[5s])"
        for name in ranges.FUNCTIONS
        if not name.startswith(("quantile", "predict"))
    ]
    expressions.append("quantile_over_time(0.5, x[5s])")
    whole = [evaluate_range(memory, it, START, START + 29, 2) for it in expressions]
    monkeypatch.setattr(ranges, "_AT_ONCE", 100)
    assert [evaluate_range(memory, it, START, START + 29, 2) for it in expressions] == whole
    assert all(matrix.series for matrix in whole)


def test_a_window_that_is_too_much_by_itself_is_refused() -> None:
    limited = Engine(wide(10, 60), Limits(points=200))
    with pytest.raises(InvalidError, match=r"reads 600 points \(10 series by 60\)"):
        limited.range("avg_over_time(x[60s])", START, START + 59, 29)


@pytest.mark.parametrize("expression", ["nothing", "rate(nothing[5m])", "c", "absent(nothing)"])
def test_a_span_of_all_times_takes_no_more_than_others(expression: str) -> None:
    engine = Engine(counter([1, 2]), Limits(points=1_000_000))
    answer = engine.range(expression, 0, 1 << 36, 1 << 25)
    assert isinstance(answer.value, Matrix)
    with pytest.raises(InvalidError, match="points"):
        engine.instant("sum_over_time(nothing[100y])", START)


def test_a_result_that_is_too_large_is_refused() -> None:
    with pytest.raises(InvalidError, match="the result has more than 100 points"):
        Engine(wide(10, 60), Limits(given=100)).range("x", START, START + 59, 1)
    with pytest.raises(InvalidError, match="the result has more than 100 points"):
        Engine(wide(10, 60), Limits(points=50, given=100)).range("x", START, START + 59, 1)
    with pytest.raises(InvalidError, match="the result has more than 100 points"):
        Engine(wide(10, 60), Limits(given=100)).instant("x[60s]", START + 59)
    Engine(wide(10, 60), Limits(given=600)).range("x", START, START + 59, 1)


def test_a_reader_s_query_gives_what_fits_into_memory_four_times() -> None:
    """A point of a result takes about 100 bytes until it is sent."""
    assert Limits().given * Limits().queries * 100 <= 2 << 30


def test_many_steps_of_one_moment_are_as_much_as_of_many() -> None:
    with pytest.raises(InvalidError, match="the result has more than 100 points"):
        Engine(wide(10, 2), Limits(given=100)).range("x @ start()", START, START + 59, 1)
    with pytest.raises(InvalidError, match="a subquery has 3600 steps, expected at most 10"):
        Engine(wide(1, 2), Limits(points=100)).instant("sum_over_time(vector(1)[1h:])", START)
    with pytest.raises(InvalidError, match="count_values gives more than 30 points"):
        Engine(wide(10, 2), Limits(points=30)).range(
            'count_values("v", 100 * x + time())', START, START + 1, 1
        )


def test_too_many_steps_are_refused() -> None:
    with pytest.raises(InvalidError, match="got 11001 steps"):
        Engine(MemoryReader()).range("1", 0, 11_000, 1)
    for start, end, step in ((0, 5, 0), (5, 0, 1)):
        with pytest.raises(InvalidError):
            Engine(MemoryReader()).range("1", start, end, step)


def test_a_query_that_takes_too_long_is_ended() -> None:
    ticks = iter(range(1000))
    engine = Engine(wide(2, 9), Limits(seconds=5), clock=lambda: float(next(ticks)))
    with pytest.raises(UnavailableError, match="took longer than 5 s"):
        engine.range("max_over_time(x[5s])", START, START + 8, 1)


def test_a_query_that_nobody_waits_for_is_ended() -> None:
    gone = threading.Event()
    gone.set()
    with pytest.raises(UnavailableError, match="cancelled"):
        Engine(wide(1, 2)).instant("x", START, gone)

    async def leave() -> None:
        engine = Engine(MemoryReader())
        started, ended = threading.Event(), threading.Event()

        def work(cancelled: threading.Event) -> None:
            started.set()
            if cancelled.wait(20):
                ended.set()

        task = asyncio.create_task(engine.in_thread(work))
        await asyncio.to_thread(started.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(ended.wait, 20)

    asyncio.run(leave())


@pytest.mark.parametrize(
    "expression",
    [
        "1" + "+1" * 9_000,
        "(" * 5_000 + "x" + ")" * 5_000,
        "-" * 10_000 + "x",
        "abs(" * 100 + "x" + ")" * 100,
        "x" + " and x" * 4_000,
        '# "\n' + "1+" * 9_000 + "1",
        "x" * 30_000,
    ],
)
def test_what_the_parser_would_not_survive_is_refused(expression: str) -> None:
    began = time.monotonic()
    with pytest.raises(InvalidError):
        check(expression)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    "expression",
    ["x @ 1e18", "x @ -1e18", "x @ 1e12", "x @ NaN", "x offset 99999999999999y", "NaN offset Inf"],
)
def test_numbers_that_are_out_of_range_are_refused(expression: str) -> None:
    """For some of them the parser panics, which is no `Exception`."""
    with pytest.raises(InvalidError):
        check(expression)


def test_a_manifest_with_a_number_that_is_out_of_range_is_refused() -> None:
    mistake = expression_mistake("NaN offset Inf")
    assert mistake is not None


def test_what_cannot_be_computed_is_not_a_number() -> None:
    memory = counter([1, 2])
    for expression in ("predict_linear(c[2s], Inf)", "minute(vector(1e300))", "0 / vector(0)"):
        Engine(memory).instant(expression, START + 1).vector()
        Engine(memory).range(expression, START, START + 1, 1).matrix()


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        ("limitk(1, x)", "limitk"),
        ("histogram_count(x)", "histogram_count"),
        ("x[500ms]", "a range of 0.5 s"),
        ("x offset 1500ms", "an offset of 1.5 s"),
        ('x{a="1" or a="2"}', "`or` between matchers"),
        ("nope(x)", "nope"),
        ('x{a=~"("}', "regex"),
        ("sum(", "cannot be parsed"),
        ("", "cannot be parsed"),
    ],
)
def test_what_is_not_supported_is_named(expression: str, named: str) -> None:
    with pytest.raises(InvalidError) as failure:
        check(expression)
    assert named in f"{failure.value.message}"


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|aa)*", "(x*y)*", "((a+))+", "(.*)*", "(a{1,9})+"]
)
def test_label_replace_refuses_what_may_take_forever(pattern: str) -> None:
    memory = counter([1], long="a" * 500)
    expression = f'label_replace(c, "b", "$1", "long", "{pattern}")'
    with pytest.raises(InvalidError, match="a repetition within a repetition"):
        evaluate(memory, expression, START)


@pytest.mark.parametrize(
    "pattern",
    ["a*a*a*b", "a?" * 30 + "a" * 500, "(a|a)" * 30 + "b", "(?:.*),(.*),(.*)", ".{0,99}" * 4],
)
def test_label_replace_refuses_too_many_ways_for_the_length(pattern: str) -> None:
    memory = counter([1], long="a" * 500, short="a" * 5)
    began = time.monotonic()
    with pytest.raises(InvalidError, match="too many ways"):
        evaluate(memory, f'label_replace(c, "b", "$1", "long", "{pattern}")', START)
    assert time.monotonic() - began < 1


def test_label_replace_takes_what_people_write() -> None:
    memory = counter([1], instance="accounts-7f3c9a21-0", host="db-1.example.org:5432")
    for source, pattern, template, expected in (
        ("instance", "(.*)-([^-]*)-([0-9]+)", "$1/$3", "accounts/0"),
        ("host", "([^:]+)(?::[0-9]+)?", "$1", "db-1.example.org"),
        ("host", "(?P<name>db|web)-.*", "${name}", "db"),
        ("host", "nothing", "x", ""),
    ):
        expression = f'label_replace(c, "new", "{template}", "{source}", "{pattern}")'
        (sample,) = Engine(memory).instant(expression, START).vector().samples
        assert sample.labels.get("new", "") == expected


@pytest.mark.parametrize(
    "pattern", ["(?=a)a", r"(.)\\1", "(", "a{", "(?x)(a+) +b", "(?ix:(a+) +)b"]
)
def test_label_replace_has_the_syntax_of_matchers(pattern: str) -> None:
    with pytest.raises(InvalidError):
        evaluate(counter([1]), f'label_replace(c, "b", "$1", "a", "{pattern}")', START)


@pytest.mark.parametrize(
    "pattern",
    [
        "(?:.{0,100}){0,100}",
        "(?:[ab]{0,200}){0,200}",
        "(?:(?:\\\\w{0,30}){0,30}){0,30}",
        "(?:a{0,40}){0,40}" * 3,
        "[a{9}]{1002}",
        "[]}]{0,1002}",
        "(?i)(a|b){502}",
        "a{1002,}",
        "a{99999999999}",
    ],
)
def test_matchers_refuse_counted_repetitions_that_grow_beyond_bounds(pattern: str) -> None:
    with pytest.raises(InvalidError):
        evaluate(counter([1], long="a" * 500), f'c{{long=~"{pattern}"}}', START)


@pytest.mark.parametrize(
    "pattern",
    [
        "a{500}",
        "(?i)A{400,}.*",
        "|".join(f"pod-{number}" for number in range(2_000)) + "|a+",
        "[[:alpha:]]{1,500}",
        "(?:(?P<x>a{1,5}){1,5}){0,20}",
        "\\\\x{61}{500}",
        "\\\\p{Ll}{5}a*",
    ],
)
def test_matchers_take_counted_repetitions_within_bounds(pattern: str) -> None:
    vector = evaluate(counter([1], long="a" * 500), f'c{{long=~"{pattern}"}}', START)
    assert len(vector.samples) == 1  # type: ignore[union-attr]


def test_matchers_take_linear_time() -> None:
    memory = counter([1], long="a" * 5_000)
    began = time.monotonic()
    assert value(memory, 'c{long=~"(a+)+b"}', START) is None
    assert time.monotonic() - began < 1


# Values.


def test_scalars_texts_and_windows() -> None:
    memory = counter([1, 2, 3])
    assert evaluate(memory, "2 * 3", START) == Scalar(START, 6.0)
    assert evaluate(memory, '"a"', START) == String(START, "a")
    window = evaluate(memory, "c[2s]", START + 2)
    assert isinstance(window, Matrix)
    assert window.series[0].times == (START + 1, START + 2)
    assert Engine(memory).instant("7").vector().samples[0].value == 7
    with pytest.raises(InvalidError, match="expected a vector"):
        Engine(memory).instant("c[2s]").vector()
    with pytest.raises(InvalidError, match="a range query gives numbers"):
        Engine(memory).range('"a"', START, START, 1)


def test_an_empty_store_answers() -> None:
    memory = MemoryReader()
    for expression in (
        "x",
        "sum(x)",
        "rate(x[5s])",
        "topk(3, x)",
        "histogram_quantile(0.9, x)",
        "quantile(0.5, x)",
        "x + x",
        "x or x",
        "sort(x)",
        'count_values("v", x)',
        "max_over_time(x[5s:1s])",
        "stddev_over_time(x[5s])",
        "deriv(x[5s])",
        "changes(x[5s])",
        'label_join(x, "a", "b", "c")',
    ):
        assert Engine(memory).instant(expression, START).vector().samples == (), expression
        assert Engine(memory).range(expression, START, START + 9, 3).value == Matrix(())


@pytest.mark.parametrize(
    ("given", "short", "long"),
    [
        (0.0, "0", "0"),
        (-0.0, "-0", "-0"),
        (3.0, "3", "3"),
        (-2.5, "-2.5", "-2.5"),
        (1e21, "1e+21", "1" + "0" * 21),
        (1.5e-7, "1.5e-07", "0.00000015"),
        (0.1, "0.1", "0.1"),
        (math.nan, "NaN", "NaN"),
        (math.inf, "+Inf", "+Inf"),
        (-math.inf, "-Inf", "-Inf"),
    ],
)
def test_numbers_are_written_as_prometheus_does(given: float, short: str, long: str) -> None:
    assert number(given) == short
    assert plain(given) == long
