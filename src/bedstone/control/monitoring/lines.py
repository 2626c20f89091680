"""Workloads, apps and nodes in a line each: pure, from the picture and the golden signals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from bedstone.control.monitoring.golden import Golden
from bedstone.control.monitoring.health import (
    AppState,
    Placed,
    Revisions,
    WorkloadState,
    app_state,
    node_state,
    worst,
)
from bedstone.control.snapshot import Snapshot
from bedstone.model.monitoring import (
    AppLine,
    Finding,
    Health,
    InstanceLine,
    NodeLine,
    RevisionLine,
    Signals,
    WorkloadLine,
)
from bedstone.model.resources import App, Desired, Instance, Revision
from bedstone.telemetry import names


def states(snapshot: Snapshot, golden: Golden, revisions: Revisions) -> dict[str, AppState]:
    """The state of every app, by name."""
    return {
        name: app_state(
            snapshot,
            app,
            revisions.of(app),
            {workload: golden.of("workload", name, workload) for workload in app.spec.workloads},
        )
        for name, app in sorted(snapshot.apps().items())
    }


def app_line(state: AppState, golden: Golden, findings: Iterable[Finding]) -> AppLine:
    """An app in one line; its health is that of the worst that was found."""
    app, name = state.app, state.app.name
    found: list[Health] = [finding.severity for finding in findings if finding.app == name]
    gateway = app.spec.gateway
    signals = golden.of("app", name)
    if gateway is not None:
        # Requests are those from outside; what the app takes of the machine is all of it.
        outside = golden.of("gateway", name)
        signals = outside.model_copy(
            update={"cpu": signals.cpu, "memory": signals.memory, "saturation": None}
        )
    return AppLine(
        app=name,
        health=worst([*found, *(w.health for w in state.workloads.values())]),
        generation=app.generation,
        ready=state.ready,
        wanted=state.wanted,
        gateway=_url(app),
        signals=signals,
        rates=golden.rates.get(name, ()),
    )


def _url(app: App) -> str | None:
    gateway = app.spec.gateway
    if gateway is None:
        return None
    address = gateway.address
    if address in {"0.0.0.0", "127.0.0.1", "::", "::1"}:  # noqa: S104 - compared, not bound
        address = "localhost"
    return (
        f"http://[{address}]:{gateway.port}"
        if ":" in address
        else f"http://{address}:{gateway.port}"
    )


def workload_line(state: AppState, workload: WorkloadState, golden: Golden) -> WorkloadLine:
    """A workload in one line, without its lists."""
    app, name = state.app, workload.name
    spec = app.spec.workloads.get(name)
    return WorkloadLine(
        app=app.name,
        name=name,
        health=workload.health,
        reason=workload.reason,
        declared=spec.replicas if spec else 0,
        wanted=workload.wanted,
        ready=workload.ready,
        restarts=workload.restarts,
        signals=_limited(state, workload, golden),
    )


def workload_whole(
    state: AppState,
    workload: WorkloadState,
    golden: Golden,
    revisions: Sequence[RevisionLine],
) -> WorkloadLine:
    """A workload with all that is known of it."""
    app, name = state.app, workload.name
    spec = app.spec.workloads.get(name)
    users = [other for other, theirs in app.spec.workloads.items() if name in theirs.uses]
    gateway = app.spec.gateway
    if gateway is not None and any(route.to == name for route in gateway.routes):
        users.insert(0, "gateway")
    return workload_line(state, workload, golden).model_copy(
        update={
            "revisions": tuple(revisions),
            "instances": tuple(
                instance_line(state, workload, placed, golden) for placed in workload.placed
            ),
            "environment": tuple(sorted(spec.env)) if spec else (),
            "uses": spec.uses if spec else (),
            "used_by": tuple(users),
        }
    )


def instance_line(
    state: AppState, workload: WorkloadState, placed: Placed, golden: Golden
) -> InstanceLine:
    """An instance in one line."""
    instance, status = placed.instance, placed.status
    own = golden.of("instance", *_path(instance))
    return InstanceLine(
        name=instance.name,
        cell=instance.cell,
        node=instance.node,
        revision=instance.revision,
        phase=placed.phase,
        reason=placed.reason,
        pid=status.pid if status else None,
        restarts=status.restarts if status else 0,
        started_at=status.started_at if status else None,
        ready_at=status.ready_at if status else None,
        enforced=status.enforced if status else False,
        current=instance.desired is Desired.RUNNING and instance.revision == workload.revision,
        signals=own.model_copy(update={"saturation": _saturation(state.app, workload.name, own)}),
    )


def revision_lines(
    snapshot: Snapshot, app: App, workload: WorkloadState, kept: Mapping[str, bool]
) -> list[RevisionLine]:
    """The revisions of a workload, the present one first, then the latest.

    Args:
        snapshot: the control plane's picture.
        app: the app.
        workload: the workload.
        kept: by name, whether one can be rolled back to.
    """
    running = Counter(placed.instance.revision for placed in workload.placed)
    found = [r for r in snapshot.of(Revision, app.name) if r.workload == workload.name]
    found.sort(
        key=lambda r: (r.name == workload.revision, snapshot.revision_of(r.key)), reverse=True
    )
    return [
        RevisionLine(
            name=revision.name,
            generation=revision.generation,
            current=revision.name == workload.revision,
            instances=running[revision.name],
            can_roll_back=kept.get(revision.name, False),
        )
        for revision in found
    ]


def node_lines(snapshot: Snapshot, golden: Golden) -> list[NodeLine]:
    """The machines, by name."""
    instances = [each for app in snapshot.apps() for each in snapshot.of(Instance, app)]
    placed = Counter(instance.node for instance in instances)
    statuses = [(each.node, status) for each in instances if (status := snapshot.status(each))]
    shared = {node for node, status in statuses if not status.enforced}
    lines = []
    for name, node in sorted(snapshot.nodes().items()):
        health, reason = node_state(node, present=snapshot.present(name))
        total = golden.gauge(names.NODE_MEMORY.name, name, "total")
        available = golden.gauge(names.NODE_MEMORY.name, name, "available")
        measured = total is not None and available is not None
        lines.append(
            NodeLine(
                node=name,
                health=health,
                reason=reason,
                instances=placed[name],
                enforced=node.enforced and name not in shared,
                cores=golden.gauge(names.NODE_CORES.name, name),
                cpu=golden.gauge(names.NODE_CPU.name, name),
                memory=(total or 0.0) - (available or 0.0) if measured else None,
                memory_total=total,
            )
        )
    return lines


def _limited(state: AppState, workload: WorkloadState, golden: Golden) -> Signals:
    """A workload's signals, with the saturation of its fullest instance."""
    own = golden.of("workload", state.app.name, workload.name)
    spec = state.app.spec.workloads.get(workload.name)
    if spec is None or spec.limits is None:
        return own
    shares = [
        share
        for placed in workload.placed
        if (
            share := _saturation(
                state.app, workload.name, golden.of("instance", *_path(placed.instance))
            )
        )
        is not None
    ]
    return own.model_copy(update={"saturation": max(shares, default=None)})


def _path(instance: Instance) -> tuple[str, str, str, str]:
    return instance.app, instance.cell, instance.workload, instance.name


def _saturation(app: App, workload: str, signals: Signals) -> float | None:
    """The share of the narrowest limit that one instance uses."""
    spec = app.spec.workloads.get(workload)
    limits = spec.limits if spec else None
    if limits is None:
        return None
    shares = []
    if limits.cpu is not None and signals.cpu is not None:
        shares.append(signals.cpu / limits.cpu)
    if limits.memory is not None and signals.memory is not None:
        shares.append(signals.memory / limits.memory)
    return max(shares, default=None)
