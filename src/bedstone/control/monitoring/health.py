"""What is well and what is not, of workloads, nodes and databases: pure, from the picture.

Rules:
- `error`: requests fail or soon will, and somebody has to act. `warning`: it is worth a look, or is
  on its way. `unknown`: nobody can say. A reason says what a person would say first.
- What only takes its time (a rollout that goes on, an instance that starts) is no error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bedstone.control.scheduling import revision_name
from bedstone.control.snapshot import Snapshot
from bedstone.model.monitoring import Health, Signals
from bedstone.model.resources import (
    App,
    Condition,
    Desired,
    Instance,
    InstanceStatus,
    Node,
    Phase,
    Preparation,
)

FEW, MANY = 0.05, 0.5
"""Shares of requests that fail from which something is a warning, and an error."""
_RANKS: Mapping[Health, int] = {"ok": 0, "unknown": 1, "warning": 2, "error": 3}
_BROKEN = frozenset({Phase.BACKOFF, Phase.FAILED, Phase.UNREADY, Phase.STOPPED})


@dataclass(frozen=True, slots=True)
class Placed:
    """One instance, with what its node says of it, if it does."""

    instance: Instance
    status: InstanceStatus | None
    present: bool
    """Its node is heard from."""
    ready: bool

    @property
    def phase(self) -> Phase:
        """Where it is in its life, as a person should see it."""
        if not self.present:
            return Phase.UNREADY
        phase = self.status.phase if self.status else Phase.PENDING
        leaving = self.instance.desired is Desired.DRAINED and phase is Phase.READY
        return Phase.DRAINING if leaving else phase

    @property
    def reason(self) -> str:
        """What its node says of that."""
        if not self.present:
            return f"node {self.instance.node} is not heard from"
        return self.status.reason if self.status else "not yet taken up by its node"


@dataclass(frozen=True, slots=True)
class WorkloadState:
    """What the control plane knows of a workload, and how well it is."""

    name: str
    wanted: int
    placed: Sequence[Placed]
    revision: str
    health: Health
    reason: str

    @property
    def ready(self) -> int:
        """How many instances may take requests."""
        return sum(placed.ready for placed in self.placed)

    @property
    def restarts(self) -> int:
        """How often those that run now were started again."""
        return sum(placed.status.restarts for placed in self.placed if placed.status)


@dataclass(frozen=True, slots=True)
class AppState:
    """What the control plane knows of an app's workloads."""

    app: App
    workloads: Mapping[str, WorkloadState]
    conditions: Sequence[Condition] = field(default=())

    @property
    def ready(self) -> int:
        """Instances that may take requests."""
        return sum(workload.ready for workload in self.workloads.values())

    @property
    def wanted(self) -> int:
        """Instances that are wanted."""
        return sum(workload.wanted for workload in self.workloads.values())


class Revisions:
    """The present revision of each workload; digests are made once for each state of an app."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[App, dict[str, str]]] = {}

    def of(self, app: App) -> Mapping[str, str]:
        """By workload."""
        held = self._held.get(app.name)
        if held is None or held[0] is not app:
            found = {name: revision_name(app, name) for name in app.spec.workloads}
            held = self._held[app.name] = (app, found)
        return held[1]


def app_state(
    snapshot: Snapshot, app: App, revisions: Mapping[str, str], failing: Mapping[str, Signals]
) -> AppState:
    """The state of an app.

    Args:
        snapshot: the control plane's picture.
        app: the app.
        revisions: the present revision of each workload.
        failing: the signals of its workloads, where there are any.
    """
    placed: dict[str, list[Placed]] = defaultdict(list)
    for instance in snapshot.of(Instance, app.name):
        present = snapshot.present(instance.node)
        placed[instance.workload].append(
            Placed(instance, snapshot.status(instance), present, snapshot.ready(instance))
        )
    conditions = snapshot.of(Condition, app.name)
    said: dict[str, list[Condition]] = defaultdict(list)
    for condition in conditions:
        said[condition.subject].append(condition)
    failed = {
        p.workload: p.reason for p in snapshot.of(Preparation, app.name) if p.state == "failed"
    }
    workloads = {}
    for name in [*app.spec.workloads, *(placed.keys() - app.spec.workloads.keys())]:
        declared = name in app.spec.workloads and not app.deleting
        wanted = app.replicas(name) if declared else 0
        own = said[f"workloads.{name}"]
        health, reason = _workload(
            placed[name], wanted, own, failing.get(name, Signals()), failed.get(name, "")
        )
        workloads[name] = WorkloadState(
            name,
            wanted,
            placed[name],
            revisions[name] if declared else "",
            health,
            reason,
        )
    return AppState(app, workloads, conditions)


def _workload(
    placed: Sequence[Placed],
    wanted: int,
    conditions: Iterable[Condition],
    signals: Signals,
    unprepared: str,
) -> tuple[Health, str]:
    found = list(_complaints(placed, wanted, list(conditions), signals, unprepared))
    if found:
        return max(found, key=lambda complaint: _RANKS[complaint[0]])
    return "ok", "" if wanted else "no instance is wanted"


def _complaints(
    placed: Sequence[Placed],
    wanted: int,
    conditions: Sequence[Condition],
    signals: Signals,
    unprepared: str,
) -> Iterator[tuple[Health, str]]:
    """What is wrong with a workload; of what weighs the same, the first is told."""
    for condition in conditions:
        yield condition.severity, condition.message
    ready = sum(p.ready for p in placed)
    broken = [p for p in placed if p.phase in _BROKEN and p.instance.desired is Desired.RUNNING]
    if broken:
        hopeless = ready == 0 or any(p.phase is Phase.FAILED for p in broken)
        yield "error" if hopeless else "warning", _broken(broken, len(placed), unprepared)
    if signals.errors is not None and signals.errors >= FEW:
        severe = signals.errors >= MANY
        yield "error" if severe else "warning", f"{signals.errors:.0%} of requests fail"
    if ready < wanted:
        yield "warning", f"{ready} of {wanted} instances {'is' if wanted == 1 else 'are'} ready"


def _broken(broken: Sequence[Placed], total: int, unprepared: str) -> str:
    first = broken[0]
    reason = first.reason or unprepared
    words = f"{first.instance.name}: {first.phase}" if total == 1 else ""
    if not words:
        words = f"{len(broken)} of {total} instances: {first.phase}"
    return f"{words}, {reason}" if reason else words


def node_state(node: Node, *, present: bool) -> tuple[Health, str]:
    """How well a machine is."""
    if not present:
        return "error", "it is not heard from"
    if node.proxy is not Phase.READY:
        broken = node.proxy in _BROKEN
        reason = f"its proxy is {node.proxy}"
        if node.proxy_reason:
            reason += f": {node.proxy_reason}"
        return ("error" if broken else "warning"), reason
    return "ok", ""


def database_state(phase: Phase | None, reason: str, *, present: bool) -> tuple[Health, str]:
    """How well a database is."""
    if not present:
        return "unknown", "its node is not heard from"
    match phase:
        case Phase.READY:
            return "ok", ""
        case None | Phase.PENDING | Phase.PREPARING | Phase.STARTING:
            return "warning", reason or "starting"
        case _:
            return "error", reason or str(phase)


def worst(healths: Iterable[Health]) -> Health:
    """The worst of them; ok where there is none."""
    return max(healths, key=_RANKS.__getitem__, default="ok")
