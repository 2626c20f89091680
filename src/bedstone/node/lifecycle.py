"""The life of one instance as a pure state machine: `step(state, event, facts, now)`.

It owns every decision about an instance (when it may start, when it is ready, when it is started
again, when it is stopped) and does nothing itself: it answers with actions, and what comes of an
action returns as an event. Time is a parameter, so that a test owns it.

Invariants:
- A process is started only when everything that the instance needs is there, its certificate is
  here, its proxy listens and its revision is prepared.
- READY is entered only by a passed probe of the process that runs now.
- After DRAINED, nothing is signalled before `released`.
- At most one process, one probe of a kind and one preparation is under way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from bedstone.model.resources import Phase

FIRST_BACKOFF = 0.1
LAST_BACKOFF = 30.0
LASTING_BACKOFF = 10.0
"""Seconds before it is tried again whether somebody has put right what can't be started."""
STABLE = 30.0
"""Seconds of a run after which the next restart is quick again."""
FAST_PROBE = 0.03
FAST_PROBE_SPAN = 3.0
"""While it starts, it is probed every `FAST_PROBE` s for so long, then every `SLOW_PROBE` s."""
SLOW_PROBE = 0.2


class Stage(StrEnum):
    """Where the machine is; finer than the phase that people see."""

    WAIT = "wait"
    PREPARE = "prepare"
    SPAWN = "spawn"
    START = "start"
    UP = "up"
    KILL = "kill"
    """It is being ended, to be started again."""
    BACKOFF = "backoff"
    DRAIN = "drain"
    STOP = "stop"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Timing:
    """The times of a workload, seconds, and how many failures make a probe fail."""

    ready_interval: float = 1.0
    ready_failures: int = 3
    live: bool = False
    live_interval: float = 1.0
    live_failures: int = 3
    start_timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What the machine cannot decide itself, as it is now.

    Attributes:
        timing: of its workload.
        wanted: it shall run; otherwise it shall be drained.
        released: no proxy sends to it any more.
        needs: what it waits for, for people; empty when everything is there.
        network: its addresses are allotted.
        network_reason: why they could not be so far.
        certified: its certificate is here.
        listening: its proxy has accepted its listeners, and they are open.
        preparation: of its revision in its cell; `none` also when its workload declares none.
        must_prepare: its workload declares `prepare:`.
        preparation_reason: why it failed.
    """

    timing: Timing = Timing()
    wanted: bool = True
    released: bool = False
    needs: str = ""
    network: bool = False
    network_reason: str = ""
    certified: bool = False
    listening: bool = False
    must_prepare: bool = False
    preparation: Literal["none", "running", "done", "failed"] = "none"
    preparation_reason: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """All that the machine remembers of an instance."""

    stage: Stage = Stage.WAIT
    phase: Phase = Phase.PENDING
    reason: str = ""
    pid: int | None = None
    started_at: float | None = None
    ready_at: float | None = None
    restarts: int = 0
    exit_status: str | None = None
    entered: float = 0.0
    """When the stage was entered."""
    attempts: int = 0
    """Failed runs in a row: decides the back-off."""
    failures: int = 0
    live_failures: int = 0
    probing: bool = False
    live_probing: bool = False
    probe_at: float = 0.0
    live_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Look:
    """Nothing happened but time, or a fact changed."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """The process runs; `adopted` if it ran before."""

    pid: int
    started_at: float
    adopted: bool = False


@dataclass(frozen=True, slots=True)
class Exited:
    """The process has ended, or could not be started; `ending` says how, for people.

    `lasting`: it could not be started and never will be until somebody changes something, such as
    the program, which is not there.
    """

    ending: str
    lasting: bool = False


@dataclass(frozen=True, slots=True)
class Probed:
    """A probe answered; `pid` is the process that was probed."""

    pid: int
    kind: Literal["ready", "live"]
    ok: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """What its start waits for, for people."""

    reason: str


Event = Look | Spawned | Exited | Probed | Told


@dataclass(frozen=True, slots=True)
class Prepare:
    """Run the revision's `prepare:`, or await the run that is under way on this node."""


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start the process. Comes back as `Spawned` or `Exited`."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Probe the process. Comes back as `Probed`."""

    kind: Literal["ready", "live"]


@dataclass(frozen=True, slots=True)
class Stop:
    """SIGTERM, then SIGKILL after the workload's `stop_timeout`. Comes back as `Exited`."""


Action = Prepare | Spawn | Probe | Stop


@dataclass(frozen=True, slots=True)
class Decision:
    """The new state, what to do now, and when to look again (None: at the next event)."""

    state: State
    actions: tuple[Action, ...] = ()
    wake: float | None = None


def step(state: State, event: Event, facts: Facts, now: float) -> Decision:
    """The next state; runs on until nothing is left to decide at `now`."""
    state = _absorb(state, event, facts, now)
    actions: list[Action] = []
    while True:
        before = state.stage
        state, more, wake = _advance(state, facts, now)
        actions += more
        if state.stage == before:
            return Decision(state, tuple(actions), wake)


def _enter(state: State, stage: Stage, now: float, phase: Phase, reason: str = "") -> State:
    return replace(state, stage=stage, entered=now, phase=phase, reason=reason)


def _absorb(state: State, event: Event, facts: Facts, now: float) -> State:
    match event:
        case Spawned(pid, started_at, adopted):
            return _spawned(state, pid, started_at, now, adopted=adopted)
        case Exited(ending, lasting):
            return _exited(state, ending, now, lasting=lasting)
        case Told(reason) if state.stage is Stage.SPAWN:
            return replace(state, reason=reason)
        case Probed() if event.pid == state.pid:
            if event.kind == "ready":
                return _probed(state, event, facts.timing, now)
            return _live(state, event, facts.timing, now)
        case _:
            return state


def _spawned(state: State, pid: int, started_at: float, now: float, *, adopted: bool) -> State:
    """The process runs."""
    state = replace(
        state,
        pid=pid,
        started_at=started_at,
        exit_status=None,
        failures=0,
        live_failures=0,
        probing=False,
        live_probing=False,
        probe_at=now,
    )
    if state.stage in (Stage.DRAIN, Stage.STOP):
        return state
    if adopted and state.ready_at is not None and state.ready_at >= started_at:
        # It was ready before this agent was started; a probe decides whether it still is.
        return _enter(state, Stage.UP, now, Phase.UNREADY, "being probed after an agent's restart")
    # A ready_at of an earlier process says nothing of this one.
    return replace(
        _enter(state, Stage.START, now, Phase.STARTING, "its readiness probe has not passed yet"),
        ready_at=None,
    )


def _exited(state: State, ending: str, now: float, *, lasting: bool) -> State:
    state = replace(
        state, pid=None, exit_status=ending, probing=False, live_probing=False, ready_at=None
    )
    match state.stage:
        case Stage.DRAIN | Stage.STOP | Stage.STOPPED:
            return _enter(state, Stage.STOPPED, now, Phase.STOPPED, ending)
        case Stage.KILL:
            return _enter(state, Stage.BACKOFF, now, Phase.BACKOFF, state.reason)
        case _:
            stable = state.started_at is not None and now - state.started_at >= STABLE
            attempts = 1 if stable else state.attempts + 1
            state = replace(state, attempts=attempts)
            phase = Phase.FAILED if lasting else Phase.BACKOFF
            return _enter(state, Stage.BACKOFF, now, phase, ending)


def _probed(state: State, event: Probed, timing: Timing, now: float) -> State:
    state = replace(state, probing=False, probe_at=now + timing.ready_interval)
    if state.stage is Stage.START:
        if event.ok:
            state = replace(state, ready_at=now, failures=0, live_at=now + timing.live_interval)
            return _enter(state, Stage.UP, now, Phase.READY)
        quick = now - state.entered < FAST_PROBE_SPAN
        pause = min(FAST_PROBE if quick else SLOW_PROBE, timing.ready_interval)
        return replace(state, probe_at=now + pause, reason=event.message)
    if state.stage is not Stage.UP:
        return state
    if event.ok:
        return replace(state, failures=0, phase=Phase.READY, reason="")
    failures = state.failures + 1
    if failures < timing.ready_failures and state.phase is Phase.READY:
        return replace(state, failures=failures)
    return replace(state, failures=failures, phase=Phase.UNREADY, reason=event.message)


def _live(state: State, event: Probed, timing: Timing, now: float) -> State:
    failures = 0 if event.ok else state.live_failures + 1
    return replace(
        state,
        live_probing=False,
        live_failures=failures,
        live_at=now + timing.live_interval,
        reason=event.message if failures >= timing.live_failures else state.reason,
    )


def backoff(attempts: int) -> float:
    """Seconds before the next start, after so many failed runs in a row."""
    return min(FIRST_BACKOFF * 2.0 ** (max(attempts, 1) - 1), LAST_BACKOFF)


def _advance(  # noqa: PLR0911 - one answer a stage reads best
    state: State, facts: Facts, now: float
) -> tuple[State, tuple[Action, ...], float | None]:
    """One transition, or the same stage with what it does and when it looks again."""
    if not facts.wanted:
        return _ending(state, facts, now)
    match state.stage:
        case Stage.WAIT:
            reason = waits_for(facts)
            if reason:
                return replace(state, phase=Phase.PENDING, reason=reason), (), None
            if facts.must_prepare and facts.preparation != "done":
                entered = _enter(state, Stage.PREPARE, now, Phase.PREPARING, "prepare runs")
                return entered, (Prepare(),), None
            return _enter(state, Stage.SPAWN, now, Phase.STARTING), (Spawn(),), None
        case Stage.PREPARE:
            return _preparing(state, facts, now)
        case Stage.START if now - state.entered >= facts.timing.start_timeout:
            reason = f"not ready within {facts.timing.start_timeout:g} s: {state.reason}"
            killed = replace(state, attempts=state.attempts + 1)
            return _enter(killed, Stage.KILL, now, Phase.BACKOFF, reason), (Stop(),), None
        case Stage.START | Stage.UP:
            return _running(state, facts, now)
        case Stage.BACKOFF:
            lasting = state.phase is Phase.FAILED
            wake = state.entered + (LASTING_BACKOFF if lasting else backoff(state.attempts))
            if now < wake:
                return state, (), wake
            again = replace(state, restarts=state.restarts + 1)
            return _enter(again, Stage.WAIT, now, Phase.PENDING), (), None
        case _:
            return state, (), None


def waits_for(facts: Facts) -> str:
    """What keeps the instance from being started, for people; empty if nothing does."""
    if not facts.network:
        return f"waiting for its network: {facts.network_reason}".removesuffix(": ")
    if facts.needs:
        return f"waiting for {facts.needs}"
    if not facts.certified:
        return "waiting for its certificate"
    if not facts.listening:
        return "waiting for its proxy"
    return ""


def _preparing(
    state: State, facts: Facts, now: float
) -> tuple[State, tuple[Action, ...], float | None]:
    match facts.preparation:
        case "done":
            return _enter(state, Stage.WAIT, now, Phase.PENDING), (), None
        case "failed":
            reason = f"prepare failed: {facts.preparation_reason}"
            return _enter(state, Stage.FAILED, now, Phase.FAILED, reason), (), None
        case _:
            return state, (), None


def _running(
    state: State, facts: Facts, now: float
) -> tuple[State, tuple[Action, ...], float | None]:
    timing = facts.timing
    if timing.live and state.live_failures >= timing.live_failures:
        reason = f"its liveness probe failed: {state.reason}"
        killed = replace(state, attempts=state.attempts + 1, live_failures=0)
        return _enter(killed, Stage.KILL, now, Phase.BACKOFF, reason), (Stop(),), None
    actions: list[Action] = []
    wakes: list[float] = []
    if not state.probing:
        if state.probe_at <= now:
            actions.append(Probe("ready"))
            state = replace(state, probing=True)
        else:
            wakes.append(state.probe_at)
    if timing.live and state.stage is Stage.UP and not state.live_probing:
        if state.live_at <= now:
            actions.append(Probe("live"))
            state = replace(state, live_probing=True)
        else:
            wakes.append(state.live_at)
    if state.stage is Stage.START:
        wakes.append(state.entered + timing.start_timeout)
    return state, tuple(actions), min(wakes, default=None)


def _ending(  # noqa: PLR0911 - likewise
    state: State, facts: Facts, now: float
) -> tuple[State, tuple[Action, ...], float | None]:
    match state.stage:
        case Stage.STOPPED | Stage.STOP:
            return state, (), None
        case Stage.KILL:
            # It is being ended already; what comes after differs.
            return _enter(state, Stage.STOP, now, Phase.DRAINING, "stopping"), (), None
        case Stage.SPAWN:
            # Its start is under way and comes back as an event; only then can it be stopped.
            if state.pid is None:
                return state, (), None
            return _enter(state, Stage.DRAIN, now, Phase.DRAINING), (), None
        case _ if state.pid is None:
            return _enter(state, Stage.STOPPED, now, Phase.STOPPED, "stopped"), (), None
        case Stage.DRAIN if facts.released:
            return _enter(state, Stage.STOP, now, Phase.DRAINING, "stopping"), (Stop(),), None
        case Stage.DRAIN:
            return state, (), None
        case _:
            reason = "waiting for the proxies to stop sending to it"
            return _enter(state, Stage.DRAIN, now, Phase.DRAINING, reason), (), None
