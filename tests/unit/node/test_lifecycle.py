"""The machine of an instance's life, in virtual time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedstone.model.resources import Phase
from bedstone.node.lifecycle import (
    LASTING_BACKOFF,
    STABLE,
    Action,
    Event,
    Exited,
    Facts,
    Look,
    Prepare,
    Probe,
    Probed,
    Spawn,
    Spawned,
    Stage,
    State,
    Stop,
    Timing,
    Told,
    backoff,
    step,
)

READY = Facts(network=True, certified=True, listening=True)


@dataclass
class Life:
    """An instance, and a clock that moves only when told."""

    facts: Facts = READY
    state: State = field(default_factory=State)
    now: float = 1000.0
    wake: float | None = None

    def tell(self, event: Event | None = None, **facts: Any) -> tuple[Action, ...]:
        self.facts = replace(self.facts, **facts)
        decision = step(self.state, event or Look(), self.facts, self.now)
        self.state, self.wake = decision.state, decision.wake
        return decision.actions

    def phase(self) -> Phase:
        return self.state.phase

    def sleep(self, seconds: float) -> tuple[Action, ...]:
        self.now += seconds
        return self.tell()

    def sleep_until_woken(self) -> tuple[Action, ...]:
        assert self.wake is not None
        self.now = max(self.now, self.wake)
        return self.tell()

    def spawned(self, pid: int = 7) -> tuple[Action, ...]:
        return self.tell(Spawned(pid, self.now))

    def up(self, pid: int = 7) -> None:
        assert self.tell() == (Spawn(),)
        assert self.spawned(pid) == (Probe("ready"),)
        assert self.tell(Probed(pid, "ready", ok=True)) == ()
        assert self.phase() is Phase.READY


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ({"network": False}, "network"),
        ({"needs": "database ledger"}, "database ledger"),
        ({"certified": False}, "certificate"),
        ({"listening": False}, "proxy"),
    ],
)
def test_nothing_starts_before_everything_is_there(missing: dict[str, Any], reason: str) -> None:
    life = Life()
    assert life.tell(**missing) == ()
    assert life.phase() is Phase.PENDING
    assert reason in life.state.reason
    assert life.wake is None, "it waits for events, not for time"
    assert life.tell(network=True, needs="", certified=True, listening=True) == (Spawn(),)


def test_only_a_passed_probe_of_the_process_that_runs_makes_ready() -> None:
    life = Life()
    life.tell()
    assert life.spawned(7) == (Probe("ready"),)
    life.tell(Probed(6, "ready", ok=True))
    assert life.phase() is Phase.STARTING, "the answer was another process's"
    life.tell(Probed(7, "ready", ok=False, message="connection refused"))
    assert life.phase() is Phase.STARTING
    assert life.sleep(0.05) == (Probe("ready"),), "probed quickly while it starts"
    life.tell(Probed(7, "ready", ok=True))
    assert life.phase() is Phase.READY
    assert life.state.ready_at == life.now


def test_prepare_runs_first_and_once() -> None:
    life = Life(replace(READY, must_prepare=True))
    assert life.tell() == (Prepare(),)
    assert life.phase() is Phase.PREPARING
    assert life.tell(preparation="running") == ()
    assert life.tell(preparation="done") == (Spawn(),)


def test_failed_prepare_ends_it_with_the_reason() -> None:
    life = Life(replace(READY, must_prepare=True))
    life.tell()
    assert life.tell(preparation="failed", preparation_reason="exit status 3\nno table") == ()
    assert life.phase() is Phase.FAILED
    assert "exit status 3" in life.state.reason
    assert life.wake is None, "only another revision can help"
    life.tell(wanted=False)
    assert life.phase() is Phase.STOPPED


def test_backoff_grows_and_is_quick_again_after_a_stable_run() -> None:
    life = Life()
    life.tell()
    pauses = []
    for pid in range(10, 22):
        life.spawned(pid)
        life.tell(Exited("exit status 1"))
        assert life.phase() is Phase.BACKOFF
        assert life.wake is not None
        pauses.append(life.wake - life.now)
        assert life.sleep_until_woken() == (Spawn(),)
    assert pauses[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert pauses[-1] == pytest.approx(30.0)
    life.spawned(50)
    life.tell(Probed(50, "ready", ok=True))
    life.now += STABLE
    life.tell(Exited("killed by SIGKILL"))
    assert life.wake is not None
    assert life.wake - life.now == pytest.approx(0.1)
    assert life.state.restarts == 12


def test_start_that_fails_is_retried_like_an_end() -> None:
    life = Life()
    life.tell()
    life.tell(Exited("program not found: gunicorn"))
    assert life.phase() is Phase.BACKOFF
    assert life.state.reason == "program not found: gunicorn"
    assert life.sleep_until_woken() == (Spawn(),)


def test_what_cannot_be_started_has_failed_at_once_and_is_tried_again_slowly() -> None:
    life = Life()
    life.tell()
    for _ in range(3):
        life.tell(Exited("program not found: gunicorn", lasting=True))
        assert life.phase() is Phase.FAILED
        assert life.state.reason == "program not found: gunicorn"
        assert life.wake is not None
        assert life.wake - life.now == pytest.approx(LASTING_BACKOFF)
        assert life.sleep_until_woken() == (Spawn(),)
    life.spawned(7)
    life.tell(Probed(7, "ready", ok=True))
    assert life.phase() is Phase.READY


def test_a_network_that_cannot_be_had_says_why() -> None:
    life = Life(replace(READY, network=False))
    life.tell()
    assert life.state.reason == "waiting for its network"
    life.tell(network_reason="No space left on device")
    assert life.state.reason == "waiting for its network: No space left on device"


def test_what_cannot_be_started_can_be_drained() -> None:
    life = Life()
    life.tell()
    life.tell(Exited("program not found: gunicorn", lasting=True))
    life.tell(wanted=False)
    assert life.phase() is Phase.STOPPED


def test_one_that_never_becomes_ready_is_ended_and_started_again() -> None:
    life = Life(replace(READY, timing=Timing(start_timeout=5.0)))
    life.tell()
    life.spawned()
    life.tell(Probed(7, "ready", ok=False, message="port 8080: connection refused"))
    actions = life.sleep(5.0)
    assert Stop() in actions
    assert life.phase() is Phase.BACKOFF
    assert "not ready within 5 s" in life.state.reason
    assert "connection refused" in life.state.reason
    life.tell(Exited("killed by SIGTERM"))
    assert life.sleep_until_woken() == (Spawn(),)


def test_readiness_is_lost_after_several_failures_and_found_with_one_success() -> None:
    life = Life()
    life.up()
    for failure in range(3):
        assert life.phase() is Phase.READY, f"after {failure} failures"
        assert life.sleep_until_woken() == (Probe("ready"),)
        life.tell(Probed(7, "ready", ok=False, message="GET /healthz answered 503"))
    assert life.phase() is Phase.UNREADY
    assert life.state.reason == "GET /healthz answered 503"
    assert life.sleep_until_woken() == (Probe("ready"),), "it is not restarted for that"
    life.tell(Probed(7, "ready", ok=True))
    assert life.phase() is Phase.READY


def test_liveness_failures_restart() -> None:
    life = Life(replace(READY, timing=Timing(live=True, live_failures=2, ready_interval=99)))
    life.up()
    for _ in range(2):
        assert life.sleep_until_woken() == (Probe("live"),)
        actions = life.tell(Probed(7, "live", ok=False, message="no answer"))
    assert actions == (Stop(),)
    assert life.phase() is Phase.BACKOFF
    assert "liveness" in life.state.reason


def test_drain_waits_for_release_then_stops() -> None:
    life = Life()
    life.up()
    assert life.tell(wanted=False) == ()
    assert life.phase() is Phase.DRAINING
    assert life.sleep(3600) == (), "only the release counts"
    assert life.tell(released=True) == (Stop(),)
    assert life.tell() == (), "asked once"
    life.tell(Exited("exit status 0"))
    assert life.phase() is Phase.STOPPED


def test_drain_during_a_start_still_stops_what_was_started() -> None:
    life = Life()
    assert life.tell() == (Spawn(),)
    assert life.tell(wanted=False, released=True) == ()
    assert life.spawned() == (Stop(),)
    life.tell(Exited("killed by SIGTERM"))
    assert life.phase() is Phase.STOPPED


def test_drain_of_what_never_ran_is_immediate() -> None:
    life = Life(replace(READY, needs="workload risk"))
    life.tell()
    life.tell(wanted=False)
    assert life.phase() is Phase.STOPPED


def test_an_end_during_a_drain_is_the_end() -> None:
    life = Life()
    life.up()
    life.tell(wanted=False)
    life.tell(Exited("killed by SIGKILL"))
    assert life.phase() is Phase.STOPPED
    assert life.sleep(100) == ()


def test_adopted_is_ready_after_a_probe_and_without_a_restart() -> None:
    life = Life(state=State(pid=7, started_at=900.0, ready_at=901.0, restarts=2))
    assert life.tell(Spawned(7, 900.0, adopted=True)) == (Probe("ready"),)
    life.tell(Probed(7, "ready", ok=True))
    assert life.phase() is Phase.READY
    assert life.state.ready_at == 901.0
    assert life.state.restarts == 2


def test_adopted_that_was_starting_goes_on_starting() -> None:
    life = Life(state=State(pid=7, started_at=900.0))
    life.tell(Spawned(7, 900.0, adopted=True))
    assert life.state.stage is Stage.START


def test_backoff_is_bounded() -> None:
    assert backoff(0) == pytest.approx(0.1)
    assert backoff(1000) == pytest.approx(30.0)


_EVENTS = st.one_of(
    st.just(Look()),
    st.builds(Spawned, st.integers(1, 3), st.just(0.0), st.booleans()),
    st.builds(Exited, st.just("exit status 1")),
    st.builds(
        Probed, st.integers(1, 3), st.sampled_from(["ready", "live"]), st.booleans(), st.just("")
    ),
)
_FACTS = st.builds(
    Facts,
    wanted=st.booleans(),
    released=st.booleans(),
    needs=st.sampled_from(["", "database x"]),
    network=st.booleans(),
    certified=st.booleans(),
    listening=st.booleans(),
    must_prepare=st.booleans(),
    preparation=st.sampled_from(["none", "running", "done", "failed"]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(_EVENTS, _FACTS, st.floats(0, 50)), max_size=30))
def test_invariants_hold_whatever_happens(
    history: list[tuple[Event, Facts, float]],
) -> None:
    """In any order of events: no start while incomplete or unwanted, no stop before a release."""
    state, now = State(), 0.0
    spawning = False
    for event, facts, pause in history:
        if isinstance(event, Spawned | Exited) and not spawning and state.pid is None:
            continue  # nothing was started, so nothing can come of it
        if isinstance(event, Spawned) and state.pid is not None:
            continue
        now += pause
        drained = not facts.wanted
        before = state
        decision = step(state, event, facts, now)
        state = decision.state
        spawning = (spawning and not isinstance(event, Spawned | Exited)) or (
            Spawn() in decision.actions
        )
        if Spawn() in decision.actions:
            assert facts.wanted
            assert facts.network
            assert facts.certified
            assert facts.listening
            assert not facts.needs
            assert not facts.must_prepare or facts.preparation == "done"
            assert state.pid is None
        if Stop() in decision.actions and drained and before.stage is not Stage.KILL:
            assert facts.released
        if state.phase is Phase.READY:
            assert state.pid is not None
            assert state.ready_at is not None
        assert len(decision.actions) == len(set(decision.actions))
        assert decision.wake is None or decision.wake >= now


def test_what_a_start_waits_for_is_shown_and_nothing_else_is_changed() -> None:
    starting = State(stage=Stage.SPAWN, phase=Phase.STARTING)
    told = step(starting, Told("pulling x:1"), Facts(), 0.0)
    assert told.state == replace(starting, reason="pulling x:1")
    assert told.actions == ()
    running = State(stage=Stage.UP, phase=Phase.READY, pid=1, probe_at=9.0)
    assert step(running, Told("late"), Facts(), 0.0).state == running
