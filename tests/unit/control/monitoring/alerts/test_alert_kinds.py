"""What each kind of rule says of a second: conditions, budgets, baselines, dead man's switches."""

from __future__ import annotations

import math

import pytest

from bedstone.control.monitoring.alerts.baselines import differs, spread
from bedstone.control.monitoring.alerts.burning import burning, increase
from bedstone.control.monitoring.alerts.evaluation import PATIENCE, Examiner
from bedstone.control.monitoring.alerts.machine import Certainty, Outcome
from bedstone.control.monitoring.alerts.rules import (
    DAY,
    WINDOWS,
    Baseline,
    BurnRate,
    Rule,
    declared,
    selector,
)
from bedstone.errors import InvalidError
from bedstone.model.manifest import parse_manifest
from bedstone.testing.alerts import START, ScriptedEvaluator
from bedstone.testing.series_memory import MemoryReader

WEB = (("workload", "web"),)


def rule(text: str, name: str = "a") -> Rule:
    """The rule that one line of a manifest declares."""
    manifest = (
        "app: shop\n"
        "gateway: {routes: [{path: /api, to: web}]}\n"
        "workloads: {web: {command: [x]}}\n"
        f"alerts:\n  {name}: {text}\n"
    )
    (found,) = declared(parse_manifest(manifest).spec)
    return found


class World:
    """One rule, over seconds that a test makes."""

    def __init__(self, text: str) -> None:
        self.rule = rule(text)
        self.reader = MemoryReader()
        self.evaluator = ScriptedEvaluator()
        self.examiner = Examiner(self.reader, self.evaluator)
        self.reader.finish(START)

    def second(self, missing: dict[str, str] | None = None) -> Outcome:
        """One second more."""
        at = self.reader.last() + 1
        self.reader.finish(at, missing)
        return self.examiner.examine(self.rule, at, self.examiner.certainty(at))


def test_a_condition_holds_for_each_series_it_gives_and_not_for_what_is_no_number() -> None:
    world = World("{when: x > 5, labels: {team: a}}")
    world.evaluator.say("x > 5", {WEB: 7.0, (("workload", "b"),): math.nan})
    outcome = world.second()
    assert {labels: held.value for labels, held in outcome.holds.items()} == {WEB: 7.0}
    assert outcome.certainty is Certainty.WHOLE
    assert outcome.value == 7.0


def test_an_error_of_the_expression_is_the_rules() -> None:
    world = World("{when: x > 5}")
    world.evaluator.say("x > 5", InvalidError("too many series"))
    assert world.second().error == "too many series"

    def broken(_: int) -> None:
        raise ZeroDivisionError("bug")

    world.evaluator.say("x > 5", broken)
    assert "ZeroDivisionError" in world.second().error


def test_certainty_of_a_second_follows_how_long_it_has_been_incomplete() -> None:
    world = World("{when: x > 5}")
    found = [world.second({"n": "away"}).certainty for _ in range(PATIENCE + 3)]
    assert found == [Certainty.NONE] * PATIENCE + [Certainty.PARTLY] * 3
    assert world.second().certainty is Certainty.WHOLE


def put(reader: MemoryReader, name: str, labels: dict[str, str], points: dict[int, float]) -> None:
    for second, value in points.items():
        reader.put(name, labels, "counter", second, value)


def line(start: int, end: int, step: int, rate: float) -> dict[int, float]:
    """A counter that grows evenly from 0 at `start`."""
    return {at: (at - start) * rate for at in range(start, end + 1, step)}


def test_increases_are_exact_over_whole_points_whatever_began_or_ended_within() -> None:
    reader = MemoryReader()
    end = START + 600
    put(reader, "c", {"i": "lives"}, line(START, end, 1, 2.0))
    put(reader, "c", {"i": "died"}, {at: float(at - START) for at in range(START, START + 401)})
    born = {at: float(at - START - 500) for at in range(START + 500, end)}
    put(reader, "c", {"i": "born"}, born)
    reader.finish(end)
    matchers = selector("c")
    assert increase(reader, matchers, 600, end) == 1200 + 400 + 99
    # The one that died counts up to its last value, the one that was born from its zero.
    assert increase(reader, matchers, 300, end) == 600 + 100 + 99
    assert increase(reader, selector('c{i="none"}'), 300, end) == 0


def test_a_counter_that_is_missing_where_a_window_begins_did_not_begin_there() -> None:
    reader = MemoryReader()
    end = START + 600
    points = {at: 1e6 + at - START for at in range(START, end + 1)}
    away = range(end - 300 - 10, end - 300 + 20)
    put(reader, "c", {"i": "away"}, {at: v for at, v in points.items() if at not in away})
    put(reader, "c", {"i": "lives"}, points)
    reader.finish(end)
    # What it counted meanwhile falls to the window in which it is seen again.
    assert increase(reader, selector("c"), 300, end) == 300 + 311
    assert increase(reader, selector("c"), 281, end) == 281 + 311
    assert increase(reader, selector("c"), 280, end) == 280 + 280


def budget(bad: float, since: int, *, total: float = 10.0) -> dict[str, tuple[float, bool, str]]:
    """The rates of an objective of 99.9 % when a share has failed for `since` seconds, to START."""
    reader = MemoryReader()
    first = START - 4 * DAY
    errors = {
        at: max(0.0, at - (START - since)) * total * bad for at in range(first, START + 1, 60)
    }
    errors |= {
        at: max(0.0, at - (START - since)) * total * bad for at in range(START - 4000, START)
    }
    every = line(first, START, 60, total) | {
        at: (at - first) * total for at in range(START - 4000, START + 1)
    }
    labels = {"app": "shop", "workload": "web"}
    put(reader, "bedstone_requests_total", {**labels, "code": "5xx"}, errors)
    every = {at: value - errors[at] for at, value in every.items() if at in errors}
    put(reader, "bedstone_requests_total", {**labels, "code": "2xx"}, every)
    reader.finish(START)
    source = rule("{objective: 99.9%, of: web}").source
    assert isinstance(source, BurnRate)
    return burning(reader, source, START)


def held(rates: dict[str, tuple[float, bool, str]]) -> list[tuple[str, str]]:
    return [(window, severity) for window, (_, holds, severity) in rates.items() if holds]


def test_a_budget_that_burns_fast_pages_and_one_that_burns_slowly_is_a_ticket() -> None:
    assert held(budget(0.0, 0)) == []
    assert held(budget(0.0005, 4 * DAY)) == [], "half of what the budget allows"
    # 0.2 % of errors for days: it burns twice as fast as it may.
    assert held(budget(0.002, 4 * DAY)) == [("3d", "ticket")]
    assert held(budget(0.007, 7 * 3600)) == [("6h", "page")]
    assert held(budget(0.02, 3600)) == [("1h", "page")]


def test_a_burst_that_is_over_does_not_page_for_the_rest_of_the_hour() -> None:
    rates = budget(0.5, 60)
    assert rates["1h"][0] == pytest.approx(0.5 * 60 / 3600 / 0.001, rel=0.01)
    assert held(rates) == []


def test_without_requests_no_budget_burns() -> None:
    reader = MemoryReader()
    reader.finish(START)
    source = rule("{objective: 99.9%, of: gateway}").source
    assert isinstance(source, BurnRate)
    assert {rate for rate, _, _ in burning(reader, source, START).values()} == {0.0}


def test_a_budget_is_of_a_workload_the_gateway_a_route_or_counters_of_its_own() -> None:
    def counters(text: str) -> tuple[str, str]:
        source = rule(text).source
        assert isinstance(source, BurnRate)
        said = [
            ",".join(f"{m.label}{m.op}{m.value}" for m in matchers)
            for matchers in (source.errors, source.total)
        ]
        return said[0], said[1]

    total = "__name__=bedstone_gateway_requests_total,app=shop"
    assert counters("{objective: 99%, of: gateway}") == (f"{total},code=5xx", total)
    total = "__name__=bedstone_route_requests_total,app=shop,route=/api"
    assert counters("{objective: 99%, of: /api}") == (f"{total},code=5xx", total)
    own = """{objective: 99%, errors: bad_total, total: 'all_total{a=~"b.*",c!~"d"}'}"""
    assert counters(own) == ("__name__=bad_total", "__name__=all_total,a=~b.*,c!~d")


def test_windows_are_as_declared_or_scale_with_the_period() -> None:
    def windows(text: str) -> list[tuple[int, int, float, str]]:
        source = rule(text).source
        assert isinstance(source, BurnRate)
        return [(w.long, w.short, w.factor, w.severity) for w in source.windows]

    assert windows("{objective: 99%, of: web}") == [
        (w.long, w.short, w.factor, w.severity) for w in WINDOWS
    ]
    assert windows("{objective: 99%, of: web, period: 15d}")[0] == (1800, 150, 14.4, "page")
    own = "{objective: 99%, of: web, severity: info, windows: [{long: 2h, short: 1m, factor: 3}]}"
    assert windows(own) == [(7200, 60, 3.0, "info")]


def daily(day: int, now: float, noise: float = 2.0) -> ScriptedEvaluator:
    """Around 100 at this time of each day since `day` days ago, and `now` today."""
    evaluator = ScriptedEvaluator()

    def value(at: int) -> dict[tuple[tuple[str, str], ...], float] | None:
        age = (START + 1 - at) / DAY
        if age < 0.5:
            return {WEB: now}
        return {WEB: 100 + noise * ((at // 120) % 3 - 1)} if age < day + 0.5 else None

    evaluator.say("orders", value)
    return evaluator


@pytest.mark.parametrize(
    ("text", "now", "told"),
    [
        ("{series: orders}", 101.0, False),
        ("{series: orders}", 150.0, True),
        ("{series: orders}", 50.0, True),
        ("{series: orders, direction: above}", 50.0, False),
        ("{series: orders, direction: below}", 50.0, True),
        ("{series: orders, direction: below}", 150.0, False),
        ("{series: orders, deviates: 60%}", 150.0, False),
        ("{series: orders, deviates: 20%}", 150.0, True),
        ("{series: orders, deviates: 30}", 150.0, False),
    ],
)
def test_a_value_is_compared_with_this_time_of_earlier_days(
    text: str, now: float, told: object
) -> None:
    world = World(text)
    world.evaluator.script = daily(5, now).script
    outcome = world.second()
    assert outcome.error == ""
    assert bool(outcome.holds) is told
    assert outcome.value == now


def test_a_baseline_without_enough_seasons_is_unknown_and_says_what_it_needs() -> None:
    world = World("{series: orders}")
    world.evaluator.script = daily(2, 500.0).script
    assert world.second().error == "it needs 3 days to compare with, and has 2"
    weekly = World("{series: orders, season: 1w}")
    weekly.evaluator.script = daily(8, 500.0).script
    assert weekly.second().error == "it needs 2 weeks to compare with, and has 1"


def test_the_history_of_a_baseline_is_read_once_a_minute() -> None:
    world = World("{series: orders}")
    world.evaluator.script = daily(7, 100.0).script
    for _ in range(50):
        world.second()
    assert len(world.evaluator.asked) < 50 + 2 * 7 * 5 + 1


def test_one_bad_day_does_not_draw_the_expectation_away() -> None:
    middle, sigma = spread([100, 101, 99, 100, 5000, 100, 98])
    assert middle == 100
    assert sigma < 3
    source = Baseline("x", DAY, 3.0, 0.0, above=True, below=True)
    assert not differs(100.5, 100.0, 0.0, source), "what never varied has a floor"
    assert differs(104.0, 100.0, 0.0, source)


def test_a_dead_mans_switch_fires_when_nothing_comes_for_long_enough() -> None:
    world = World("{expects: beat, within: 5s}")
    world.evaluator.say("beat", lambda at: {(): 1.0} if at <= START + 2 else None)
    found = [bool(world.second().holds) for _ in range(9)]
    assert found == [False] * 6 + [True] * 3
    world.evaluator.say("beat", {(): 1.0})
    assert not world.second().holds


def test_a_dead_mans_switch_counts_incomplete_seconds_but_none_without_a_server() -> None:
    world = World("{expects: beat, within: 5s}")
    world.evaluator.say("beat", lambda at: {(): 1.0} if at <= START + 1 else None)
    world.second()
    world.reader.finish(world.reader.last() + 100)
    outcome = world.examiner.examine(world.rule, world.reader.last(), Certainty.WHOLE)
    assert not outcome.holds
    assert outcome.value == 1
    found = [bool(world.second({"n": "away"}).holds) for _ in range(4)]
    assert found == [False, False, False, True]


def test_a_dead_mans_switch_remembers_over_a_restart_what_the_series_say() -> None:
    world = World("{expects: beat, within: 10s}")
    world.evaluator.say("beat", lambda at: {(): 1.0} if at <= START + 1 else None)
    for _ in range(8):
        world.second()
    world.examiner = Examiner(world.reader, world.evaluator)
    found = [bool(world.second().holds) for _ in range(4)]
    assert found == [False, False, True, True]


def test_a_workload_is_expected_to_get_requests() -> None:
    expected = rule("{expects: web}").expression
    assert 'bedstone_requests_total{app="shop",workload="web"}' in expected


def test_the_version_of_a_rule_follows_what_decides_and_nothing_else() -> None:
    first = rule("{when: x > 5, for: 5s}").version
    assert rule("{when: x > 5, for: 5s, summary: y, severity: page}").version == first
    assert rule("{when: x > 6, for: 5s}").version != first
    assert rule("{when: x > 5, for: 6s}").version != first
    assert rule("{when: x > 5, for: 5s}", "b").version != first
