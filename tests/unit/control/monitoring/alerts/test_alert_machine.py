"""The life of an alert, one second after another."""

from __future__ import annotations

from bedstone.control.monitoring.alerts.machine import (
    Alert,
    Certainty,
    Held,
    Outcome,
    Transition,
    step,
)
from bedstone.telemetry.frames import Labels

A: Labels = (("i", "a"),)
B: Labels = (("i", "b"),)
TEMPLATE = Alert("shop", "slow", "1", (), "pending", 0.0)


class Life:
    """The alerts of one rule."""

    def __init__(self, lasting: float) -> None:
        self.lasting = lasting
        self.alerts: dict[Labels, Alert] = {}
        self.second = 0.0

    def next(self, outcome: Outcome, seconds: float = 1.0) -> list[tuple[str, Labels]]:
        self.second += seconds
        self.alerts, changed = step(TEMPLATE, self.lasting, self.alerts, outcome, self.second)
        self.changed: list[Transition] = changed
        return [(one.what, one.alert.labels) for one in changed]


def holds(*labels: Labels, certainty: Certainty = Certainty.WHOLE) -> Outcome:
    return Outcome({one: Held(1.0) for one in labels}, certainty)


def test_it_fires_at_once_without_a_duration_and_after_it_with_one() -> None:
    assert Life(0).next(holds(A)) == [("firing", A)]
    life = Life(2)
    assert life.next(holds(A)) == [("pending", A)]
    assert life.next(holds(A)) == []
    assert life.next(holds(A, B)) == [("firing", A), ("pending", B)]
    assert life.alerts[A].since == 1.0
    assert life.alerts[A].fired_at == 3.0
    assert life.next(holds(B)) == [("resolved", A)]


def test_a_second_that_says_otherwise_begins_a_duration_anew() -> None:
    life = Life(2)
    life.next(holds(A))
    life.next(holds())
    assert life.next(holds(A)) == [("pending", A)]
    assert life.next(holds(A)) == []
    assert life.next(holds(A)) == [("firing", A)]


def test_a_gap_keeps_what_is_pending_and_its_time_counts() -> None:
    life = Life(5)
    life.next(holds(A))
    assert life.next(holds(certainty=Certainty.NONE), 2) == []
    assert life.next(Outcome(error="away"), 2) == []
    assert life.next(holds(A)) == [("firing", A)]


def test_what_is_absent_keeps_its_state_in_a_second_that_is_known_in_part() -> None:
    life = Life(0)
    life.next(holds(A))
    assert life.next(holds(B, certainty=Certainty.PARTLY)) == [("firing", B)]
    assert set(life.alerts) == {A, B}
    assert life.next(holds(B)) == [("resolved", A)]


def test_what_was_pending_only_is_over_without_having_fired() -> None:
    life = Life(5)
    life.next(holds(A))
    assert life.next(holds()) == [("resolved", A)]
    assert life.changed[0].alert.state == "pending"


def test_value_and_severity_are_those_of_the_last_second_in_which_it_held() -> None:
    life = Life(0)
    life.next(Outcome({A: Held(2.0, "page")}))
    assert (life.alerts[A].value, life.alerts[A].severity) == (2.0, "page")
    life.next(Outcome({A: Held(3.0)}))
    assert (life.alerts[A].value, life.alerts[A].severity) == (3.0, "ticket")
    life.next(holds(certainty=Certainty.NONE))
    assert life.alerts[A].value == 3.0
