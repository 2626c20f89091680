"""The plan and the history of a saga: what is next, and what is to be undone."""

from __future__ import annotations

import pytest

from bedstone.errors import InvalidError
from bedstone.transactions import saga_machine as machine
from bedstone.transactions.model import Event
from bedstone.transactions.saga_machine import (
    Done,
    Failed,
    History,
    Kind,
    Leaf,
    Parallel,
    Sequence,
    Wait,
    Work,
)

A, B, C = (Leaf(Kind.LOCAL, name) for name in "abc")
X, Y = (Leaf(Kind.REMOTE, name) for name in "xy")
T, E = Leaf(Kind.TIMER, "t"), Leaf(Kind.EVENT, "e")


def step(path: str, mark: str, **more: object) -> Event:
    return Event(0.0, "step", 1, {"path": path, "mark": mark, **more})


def done(*paths: str) -> list[Event]:
    return [step(path, "done", result=path.upper()) for path in paths]


def paths(leaves: tuple[Leaf, ...]) -> str:
    return "".join(leaf.path for leaf in leaves)


def test_a_sequence_goes_on_only_after_each_part() -> None:
    plan = Sequence((A, Parallel((B, X)), C))
    assert machine.following(plan, History(), 0.0) == Work(run=(A,))
    assert machine.following(plan, machine.replay(done("a")), 0.0) == Work(run=(B, X))
    waits = machine.following(plan, machine.replay(done("a", "b")), 0.0, frozenset("x"))
    assert waits == Wait(None)
    assert machine.following(plan, machine.replay(done("a", "b", "x")), 0.0) == Work(run=(C,))
    assert machine.following(plan, machine.replay(done("a", "b", "x", "c")), 0.0) == Done()


def test_a_timer_is_armed_once_and_passes_at_its_time() -> None:
    plan = Sequence((T, A))
    assert machine.following(plan, History(), 5.0) == Work(arm=(T,))
    armed = machine.replay(
        [Event(0.0, "timer", 1, {"path": "t", "until": at}) for at in (10.0, 99.0)]
    )
    assert machine.following(plan, armed, 9.9) == Wait(10.0)
    assert machine.following(plan, armed, 10.0) == Work(over=((T, None),))


def test_an_event_may_come_before_it_is_waited_for_and_the_first_counts() -> None:
    early = machine.replay(
        [Event(0.0, "signal", 1, {"name": "e", "payload": value}) for value in (1, 2)]
    )
    assert machine.following(E, early, 0.0) == Work(over=((E, 1),))


def test_an_event_that_does_not_come_in_time_is_missed() -> None:
    armed = machine.replay([Event(0.0, "timer", 1, {"path": "e", "until": 3.0})])
    assert machine.following(E, armed, 2.0) == Wait(3.0, ("e",))
    assert machine.following(E, armed, 3.0) == Work(missed=(E,))


def test_nothing_more_is_started_after_a_failure() -> None:
    history = machine.replay([*done("a"), step("b", "failed", error="no")])
    plan = Sequence((A, Parallel((B, C))))
    assert machine.following(plan, history, 0.0) == Failed("b", "no")


def test_local_steps_may_be_ahead_of_the_history_and_remote_ones_may_not() -> None:
    plan = Sequence((A, B, X, C))
    assert paths(machine.undoing(plan, History())) == "ba"
    started = machine.replay([*done("a", "b"), step("x", "started")])
    assert paths(machine.undoing(plan, started)) == "xba"
    assert paths(machine.undoing(plan, machine.replay([*done("a", "b", "x")]))) == "cxba"


def test_parallel_steps_are_undone_in_the_reverse_of_their_ends() -> None:
    plan = Parallel((A, B, C))
    assert paths(machine.undoing(plan, machine.replay(done("b", "c", "a")))) == "acb"
    assert paths(machine.undoing(plan, machine.replay(done("c")))) == "bac"


def test_what_refused_at_once_and_what_is_undone_is_left_alone() -> None:
    plan = Sequence((X, Y))
    lines = [step("x", "started"), *done("x"), step("y", "started")]
    refused = machine.replay([*lines, step("y", "refused", error="no")])
    assert paths(machine.undoing(plan, refused)) == "x"
    failed = [*lines, step("y", "failed", error="late")]
    assert paths(machine.undoing(plan, machine.replay(failed))) == "yx"
    assert paths(machine.undoing(plan, machine.replay([*failed, step("y", "undone")]))) == "x"


def test_a_plan_has_a_version_that_changes_with_it() -> None:
    plan = Sequence((A, Parallel((X, T)), E))
    assert machine.from_json(machine.to_json(plan)) == plan
    assert machine.digest(plan) != machine.digest(Sequence((A, X, T, E)))
    with pytest.raises(InvalidError, match="expected the plan"):
        machine.from_json(["loop", "a"])
