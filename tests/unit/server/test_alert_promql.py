"""Rules on the real engine over the real store of series."""

from __future__ import annotations

from pathlib import Path

import pytest

from bedstone.control.monitoring.alerts.evaluation import Examiner
from bedstone.control.monitoring.alerts.rules import Condition, Rule
from bedstone.control.monitoring.series_store import SeriesStore
from bedstone.errors import Error
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
