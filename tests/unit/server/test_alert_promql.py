"""Rules on the real engine over the real store of series."""

from __future__ import annotations

from pathlib import Path

import pytest

from bedstone.control.monitoring.alerts.burning import burning, increase
from bedstone.control.monitoring.alerts.evaluation import Examiner
from bedstone.control.monitoring.alerts.rules import BurnRate, Condition, Rule, declared
from bedstone.control.monitoring.series_store import SeriesStore
from bedstone.errors import Error
from bedstone.model.manifest import parse_manifest
from bedstone.server.alert_promql import PromqlEvaluator
from bedstone.telemetry.frames import Frame, Series

START = 1_800_000_000
LABELS = (("app", "shop"), ("code", "5xx"))


@pytest.mark.parametrize("after", range(10))
def test_errors_hold_for_their_window_without_a_break_in_a_store_just_begun(
    tmp_path: Path, after: int
) -> None:
    """A counter that began seconds ago, in a store that did: whatever the second's number is."""
    first = START + after
    with SeriesStore(tmp_path / "m.sqlite", clock=lambda: first) as store:
        examiner = Examiner(store, PromqlEvaluator(store))
        rule = Rule("shop", "a", Condition('increase(errors_total{app="shop"}[10s]) > 0'))
        found = []
        for offset in range(20):
            at = first + offset
            new = {1: Series("up", (), "gauge", "envoy")} if offset == 0 else {}
            values = {1: 1.0} if offset == 0 else {}
            if offset == 3:
                new, values = {2: Series("errors_total", LABELS, "counter", "envoy")}, {2: 0.0}
            if offset == 4:
                values = {2: 3.0}
            life = {"envoy": "1"} if offset == 0 else {}
            assert store.ingest("n", Frame(at, offset, new, (), life, values, {}))
            store.finish(at, {})
            outcome = examiner.examine(rule, at, examiner.certainty(at))
            assert outcome.error == ""
            found.append(bool(outcome.holds))
        assert found == [False] * 4 + [True] * 10 + [False] * 6
        (held,) = PromqlEvaluator(store).instant("errors_total", first + 5)
        assert (held.labels, held.value) == (LABELS, 3.0)


def test_what_the_engine_refuses_is_the_rules_error(tmp_path: Path) -> None:
    with SeriesStore(tmp_path / "m.sqlite", clock=lambda: START) as store:
        store.finish(START, {})
        with pytest.raises(Error, match="expected a vector"):
            PromqlEvaluator(store).instant("up[5m]", START)


def test_a_budget_burns_by_what_the_real_store_counted(tmp_path: Path) -> None:
    """One in four fails for ten minutes, in a store just begun; half of it is on disk only."""
    spec = parse_manifest(
        "app: shop\nworkloads: {web: {command: [x]}}\nalerts:\n"
        "  a: {objective: 90%, of: web, windows: [{long: 5m, short: 1m, factor: 2.4},"
        " {long: 2h, short: 1h, factor: 2.4}]}\n"
    ).spec
    (rule,) = declared(spec)
    assert isinstance(rule.source, BurnRate)
    clock = START
    for part in range(2):
        with SeriesStore(tmp_path / "m.sqlite", clock=lambda at=clock: at) as store:  # type: ignore[misc]
            for offset in range(300):
                at = clock + offset
                count = part * 300 + offset
                new, life = {}, {}
                if offset == 0:
                    life = {"envoy": "1"}
                    new = {
                        number: Series(
                            "bedstone_requests_total",
                            (("app", "shop"), ("code", code), ("workload", "web")),
                            "counter",
                            "envoy",
                        )
                        for number, code in enumerate(("2xx", "5xx"))
                    }
                values = {0: 3.0 * count, 1: 1.0 * count}
                assert store.ingest("n", Frame(at, offset, new, (), life, values, {}))
                store.finish(at, {})
            rates = burning(store, rule.source, clock + 299)
            assert rates["5m"][0] == pytest.approx(2.5)
            assert rates["2h"][0] == pytest.approx(2.5)
            assert rates["5m"][1]
            assert increase(store, rule.source.errors, 7200, clock + 299) == pytest.approx(
                part * 300 + 299, abs=11
            )
        clock += 300
