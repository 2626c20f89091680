"""The life of alerts, for any course of seconds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bedstone.control.monitoring.alerts.board import recorded, restored
from bedstone.control.monitoring.alerts.groups import FIRST, LONGEST, pause
from bedstone.control.monitoring.alerts.machine import Alert, Certainty, Held, Outcome, step
from bedstone.telemetry.frames import Labels

SETS: list[Labels] = [(), (("i", "a"),), (("i", "b"),)]
TEMPLATE = Alert("shop", "slow", "1", (), "pending", 0.0)
outcomes = st.builds(
    Outcome,
    st.dictionaries(st.sampled_from(SETS), st.builds(Held, st.floats(-5, 5)), max_size=3),
    st.sampled_from(Certainty),
    st.sampled_from(["", "", "", "cannot be evaluated"]),
)
courses = st.lists(st.tuples(outcomes, st.integers(1, 5)), max_size=30)


@given(courses, st.integers(0, 6))
def test_an_alert_fires_exactly_when_it_has_held_for_long_enough(
    course: list[tuple[Outcome, int]], lasting: int
) -> None:
    alerts: dict[Labels, Alert] = {}
    since: dict[Labels, float] = {}
    second = 0.0
    for outcome, seconds in course:
        second += seconds
        before = alerts
        alerts, changed = step(TEMPLATE, lasting, alerts, outcome, second)
        silent = bool(outcome.error) or outcome.certainty is Certainty.NONE
        if silent:
            assert (alerts, changed) == (before, [])
            continue
        for labels in SETS:
            if labels in outcome.holds:
                since.setdefault(labels, second)
                assert alerts[labels].since == since[labels]
                fires = second - since[labels] >= lasting
                assert (alerts[labels].state == "firing") == fires
            elif outcome.certainty is Certainty.WHOLE:
                since.pop(labels, None)
                assert labels not in alerts
            else:
                assert alerts.get(labels) == before.get(labels)
        # What changed says exactly how the former became the latter.
        told = {one.alert.labels: one.what for one in changed}
        for labels in SETS:
            was, is_now = before.get(labels), alerts.get(labels)
            if is_now is None:
                assert told.get(labels) == ("resolved" if was else None)
            else:
                new = was is None or was.state != is_now.state
                assert told.get(labels) == (is_now.state if new else None)


@given(courses, st.integers(0, 6), st.integers(0, 30))
def test_a_restart_between_any_two_seconds_changes_nothing(
    course: list[tuple[Outcome, int]], lasting: int, killed: int
) -> None:
    def run(*, restart: int | None) -> list[dict[Labels, Alert]]:
        alerts: dict[Labels, Alert] = {}
        second = 0.0
        states = []
        for number, (outcome, seconds) in enumerate(course):
            if number == restart:
                kept = [recorded(alert).encode() for alert in alerts.values()]
                record = type(recorded(TEMPLATE))
                alerts = {alert.labels: alert for alert in map(restored, map(record.decode, kept))}
            second += seconds
            alerts, _ = step(TEMPLATE, lasting, alerts, outcome, second)
            states.append(alerts)
        return states

    assert run(restart=killed) == run(restart=None)


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_pauses_grow_and_are_bounded(attempts: int, jitter: float) -> None:
    assert FIRST / 2 <= pause(attempts, jitter) <= LONGEST
    assert pause(attempts, jitter) <= pause(attempts + 1, jitter) or attempts > 8
