"""An app at one glance: a pure view of the snapshot in the manifest's terms."""

from __future__ import annotations

from collections.abc import Container, Iterator

from bedstone.control.scheduling import revision_name
from bedstone.control.snapshot import Snapshot
from bedstone.errors import InvalidError
from bedstone.model.api import AppStatus, Part
from bedstone.model.database_url import place_of
from bedstone.model.resources import (
    SHARED_USER,
    UNAPPLIED,
    App,
    Condition,
    Database,
    DatabaseStatus,
    Desired,
    Instance,
    InstanceStatus,
    Phase,
    Preparation,
)
from bedstone.processes.spec import COLD_START, UNCONFINED

_UNHEARD = {"state": Phase.PENDING, "detail": "its node is not heard from yet", "pid": None}


def app_status(
    snapshot: Snapshot, app: App, *, programmed: bool, heard: Container[str]
) -> AppStatus:
    """The status of one app.

    Args:
        snapshot: the control plane's picture.
        app: the app.
        programmed: every gateway's proxy has acknowledged the app's routes.
        heard: the nodes that have said hello since the server started. What the store holds of
            another node is what it was, not what it is.
    """
    unheard = {name for name in snapshot.nodes() if snapshot.present(name) and name not in heard}
    parts = tuple(
        part.model_copy(update=_UNHEARD) if unheard and part.kind != "route" else part
        for part in _parts(snapshot, app, programmed=programmed and not unheard)
    )
    waiting = [f"{part.kind} {part.name}" for part in parts if part.state != Phase.READY]
    waiting += _missing(snapshot, app)
    if unheard:
        waiting.insert(0, f"node {', '.join(sorted(unheard))}, not heard from yet")
    conditions = snapshot.of(Condition, app.name)
    every = list(snapshot.nodes().values())
    # One that is not heard from just now enforces what it did.
    nodes = [node for node in every if snapshot.present(node.name)] or every
    gateway = app.spec.gateway
    return AppStatus(
        app=app.name,
        generation=app.generation,
        ready=not waiting and not app.deleting,
        waiting_for=tuple(waiting),
        gateway=f"http://{_shown(gateway.address)}:{gateway.port}" if gateway else None,
        enforced=bool(nodes)
        and all(node.enforced for node in nodes)
        and all(_enforced(snapshot, instance) for instance in snapshot.of(Instance, app.name)),
        parts=parts,
        conditions=tuple(conditions),
        scaled=dict(app.scaled),
    )


def _enforced(snapshot: Snapshot, instance: Instance) -> bool:
    """Whether its node has said so: of one that has not been started nothing is known."""
    status = snapshot.status(instance)
    return status is not None and status.enforced


def _parts(snapshot: Snapshot, app: App, *, programmed: bool) -> Iterator[Part]:
    yield from _proxies(snapshot, app)
    yield from _databases(snapshot, app)
    yield from _certificates(snapshot, app)
    yield from _instances(snapshot, app)
    yield from _routes(snapshot, app, programmed=programmed)


def _shown(address: str) -> str:
    if address in {"0.0.0.0", "127.0.0.1", "::", "::1"}:  # noqa: S104 - compared, not bound
        return "localhost"
    return f"[{address}]" if ":" in address else address


def _proxies(snapshot: Snapshot, app: App) -> Iterator[Part]:
    used = {instance.node for instance in snapshot.of(Instance, app.name)}
    for name, node in snapshot.nodes().items():
        if name in used:
            present = snapshot.present(name)
            yield Part(
                kind="proxy",
                name=name,
                state=node.proxy if present else Phase.STOPPED,
                detail=node.proxy_reason if present else "the node is not heard from",
                pid=node.proxy_pid,
                restarts=node.proxy_restarts,
            )


def _databases(snapshot: Snapshot, app: App) -> Iterator[Part]:
    for database in snapshot.of(Database, app.name):
        status = snapshot.get(DatabaseStatus, f"status/databases/{database.path}")
        detail = "" if status is None else status.reason
        if status and status.address and not detail:
            detail = f"{database.engine} at {status.address.host}:{status.address.port}"
        if database.url and not detail:
            detail = _external(database.url)
        yield Part(
            kind="engine",
            name=database.name,
            state=status.phase if status else Phase.PENDING,
            detail=detail,
            pid=status.pid if status else None,
            since=status.started_at if status else None,
            restarts=status.restarts if status else 0,
            current=database.name in app.spec.databases,
        )


def _external(url: str) -> str:
    """Where a URL leads, without whom it lets in."""
    try:
        place = place_of(url)
    except InvalidError:
        place = None
    return f"external, at {place}" if place else "external"


def _certificates(snapshot: Snapshot, app: App) -> Iterator[Part]:
    for workload in app.spec.workloads:
        statuses = [
            status
            for instance in snapshot.of(Instance, app.name)
            if instance.workload == workload and (status := snapshot.status(instance))
        ]
        if statuses:
            held = [s.certificate_until for s in statuses if s.certificate_until]
            yield Part(
                kind="certificate",
                name=workload,
                state=Phase.READY if held else Phase.PENDING,
                since=min(held) if held else None,
                workload=workload,
            )


def _instances(snapshot: Snapshot, app: App) -> Iterator[Part]:
    current = {
        workload: revision_name(app, workload)
        for workload in app.spec.workloads
        if not app.deleting
    }
    failed = {
        (p.workload, p.revision): p.reason
        for p in snapshot.of(Preparation, app.name)
        if p.state == "failed"
    }
    for instance in snapshot.of(Instance, app.name):
        status = snapshot.status(instance)
        state = status.phase if status else Phase.PENDING
        detail = status.reason if status else "not yet taken up by its node"
        if not snapshot.present(instance.node):
            state, detail = Phase.UNREADY, f"node {instance.node} is not heard from"
        elif instance.desired is Desired.DRAINED and state is Phase.READY:
            replaced = current.get(instance.workload, instance.revision) != instance.revision
            state = Phase.DRAINING
            detail = "making way for the next revision" if replaced else "stopping"
        yield Part(
            kind="instance",
            name=instance.name,
            state=state,
            detail=detail or failed.get((instance.workload, instance.revision), ""),
            since=status.ready_at or status.started_at if status else None,
            restarts=status.restarts if status else 0,
            pid=status.pid if status else None,
            revision=instance.revision,
            workload=instance.workload,
            current=instance.desired is Desired.RUNNING
            and instance.revision == current.get(instance.workload),
            shared_user=_note(status, SHARED_USER),
            cold_start=_note(status, COLD_START),
            isolation=status.isolation if status else "",
            unapplied=(*_notes(status, UNAPPLIED), *_notes(status, UNCONFINED)),
            enforced=_enforced(snapshot, instance),
        )


def _note(status: InstanceStatus | None, beginning: str) -> str:
    """What follows a beginning, in the first of the notes on an instance that has it."""
    return next(_notes(status, beginning), "")


def _notes(status: InstanceStatus | None, beginning: str) -> Iterator[str]:
    notes = status.limits if status else ()
    return (note.removeprefix(beginning) for note in notes if note.startswith(beginning))


def _routes(snapshot: Snapshot, app: App, *, programmed: bool) -> Iterator[Part]:
    gateway = app.spec.gateway
    rejected = {
        condition.subject: condition
        for condition in snapshot.of(Condition, app.name)
        if condition.severity == "error"
    }
    for route in gateway.routes if gateway and not app.deleting else ():
        ready = any(
            snapshot.ready(instance)
            for instance in snapshot.of(Instance, app.name)
            if instance.workload == route.to
        )
        state, detail = Phase.READY, ""
        if "gateway" in rejected:
            state, detail = Phase.FAILED, rejected["gateway"].message
        elif app.replicas(route.to) == 0:
            word = "scaled to" if route.to in app.scaled else "declared with"
            detail = f"{route.to} is {word} no replica"
        elif not ready:
            state, detail = Phase.PENDING, f"{route.to} has no ready instance"
        elif not programmed:
            state, detail = Phase.PENDING, "not yet acknowledged by the proxy"
        where = f"{route.host or ''}{route.path}"
        yield Part(kind="route", name=f"{where} → {route.to}", state=state, detail=detail)


def _missing(snapshot: Snapshot, app: App) -> Iterator[str]:
    """What is declared and has no record yet, and the other way round."""
    if app.deleting:
        return
    counts: dict[str, int] = {}
    for instance in snapshot.of(Instance, app.name):
        if instance.desired is Desired.RUNNING:
            counts[instance.workload] = counts.get(instance.workload, 0) + 1
    for workload in app.spec.workloads:
        if counts.get(workload, 0) < app.replicas(workload):
            yield f"workload {workload}, not yet placed on a node"
        elif counts.get(workload, 0) > app.replicas(workload):
            yield f"workload {workload}, which has more instances than it shall"
    held = {database.name for database in snapshot.of(Database, app.name)}
    for database in sorted(app.spec.databases.keys() - held):
        yield f"database {database}, not yet placed on a node"
