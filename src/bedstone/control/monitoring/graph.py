"""The map of an app and its traffic: pure, from the declaration, the picture and golden signals.

Rule: what is declared is shown though nothing flows, and what flows though it is not declared: a
call that was refused, or one of the operator. Of a past minute the declaration of now is shown,
with the traffic of then.
"""

from __future__ import annotations

from collections.abc import Iterator

from bedstone.control.monitoring.golden import Golden
from bedstone.control.monitoring.health import AppState, database_state
from bedstone.control.snapshot import Snapshot
from bedstone.model.monitoring import (
    Graph,
    GraphEdge,
    GraphNode,
    Health,
    PolicyLine,
    RouteLine,
    Signals,
    Traffic,
)
from bedstone.model.resources import App, Database, DatabaseStatus
from bedstone.telemetry import names

GATEWAY = "gateway"


def graph(snapshot: Snapshot, state: AppState, golden: Golden) -> Graph:
    """The map of an app."""
    app, span = state.app, golden.span
    nodes = {node.id: node for node in _nodes(snapshot, state, golden)}
    edges: dict[tuple[str, str], GraphEdge] = {}
    for source, target in _declared(app):
        edges[source, target] = _edge(app, source, target, golden, declared=True)
    for _, owner, caller, callee in golden.groups("edge"):
        if owner != app.name:
            continue
        source, target = _id(app, caller), _id(app, callee)
        if (source, target) not in edges:
            edge = _edge(app, source, target, golden, declared=caller == "operator")
            if edge.signals.rate:
                edges[source, target] = edge
                for end, name in ((source, caller), (target, callee)):
                    nodes.setdefault(end, GraphNode(id=end, kind="external", name=name))
    return Graph(
        app=app.name,
        second=span.second,
        window=span.window,
        complete=span.complete,
        missing=dict(span.gaps),
        nodes=tuple(nodes.values()),
        edges=tuple(edges.values()),
    )


def _nodes(snapshot: Snapshot, state: AppState, golden: Golden) -> Iterator[GraphNode]:
    app = state.app
    gateway = app.spec.gateway
    if gateway is not None:
        health, reason = _gateway_health(state)
        yield GraphNode(
            id=f"{GATEWAY}:{GATEWAY}",
            kind="gateway",
            name=GATEWAY,
            health=health,
            reason=reason,
            ready=1 if health == "ok" else 0,
            wanted=1,
            signals=golden.of("gateway", app.name),
        )
    for name, workload in state.workloads.items():
        yield GraphNode(
            id=f"workload:{name}",
            kind="workload",
            name=name,
            health=workload.health,
            reason=workload.reason,
            ready=workload.ready,
            wanted=workload.wanted,
            signals=golden.of("workload", app.name, name),
        )
    for database in snapshot.of(Database, app.name):
        status = snapshot.get(DatabaseStatus, f"status/databases/{database.path}")
        present = database.node is None or snapshot.present(database.node)
        health, reason = database_state(
            status.phase if status else None, status.reason if status else "", present=present
        )
        yield GraphNode(
            id=f"database:{database.name}",
            kind="database",
            name=database.name,
            cell=database.cell,
            health=health,
            reason=reason,
            ready=1 if health == "ok" else 0,
            wanted=1,
        )


def _gateway_health(state: AppState) -> tuple[Health, str]:
    for condition in state.conditions:
        if condition.subject.partition(".")[0] == GATEWAY:
            return condition.severity, condition.message
    return "ok", ""


def _declared(app: App) -> Iterator[tuple[str, str]]:
    if app.spec.gateway is not None:
        for name in dict.fromkeys(route.to for route in app.spec.gateway.routes):
            yield f"{GATEWAY}:{GATEWAY}", f"workload:{name}"
    for name, spec in app.spec.workloads.items():
        for used in spec.uses:
            yield f"workload:{name}", _id(app, used)


def _id(app: App, name: str) -> str:
    """The node of a name in `uses`, or of a caller."""
    if name == GATEWAY:
        return f"{GATEWAY}:{GATEWAY}"
    if name in app.spec.workloads:
        return f"workload:{name}"
    return f"database:{name}" if name in app.spec.databases else f"external:{name}"


def _edge(app: App, source: str, target: str, golden: Golden, *, declared: bool) -> GraphEdge:
    caller, callee = source.partition(":")[2], target.partition(":")[2]
    connections = None
    signals = Signals()
    if target.startswith("database:"):
        connections = golden.gauge(names.DATABASE_CONNECTIONS.name, app.name, callee, caller)
    else:
        signals = golden.of("edge", app.name, caller, callee)
    return GraphEdge(
        source=source, target=target, declared=declared, signals=signals, connections=connections
    )


def traffic(state: AppState, golden: Golden, url: str | None) -> Traffic:
    """The routes and policies of an app."""
    app = state.app
    routes = [
        RouteLine(
            route=f"{route.host or ''}{route.path}",
            to=route.to,
            timeout=route.timeout,
            strip=route.strip,
            signals=golden.of("route", app.name, f"{route.host or ''}{route.path}", route.to),
        )
        for route in (app.spec.gateway.routes if app.spec.gateway else ())
    ]
    return Traffic(
        app=app.name,
        second=golden.span.second,
        gateway=url,
        routes=tuple(routes),
        policies=tuple(_policy(app, name, golden) for name in app.spec.workloads),
    )


def _policy(app: App, workload: str, golden: Golden) -> PolicyLine:
    """Who may call a workload: the callers that declare it, and the gateway where it routes to it.

    The operator may always, by `bedstone call`.
    """
    allowed = [name for name, spec in app.spec.workloads.items() if workload in spec.uses]
    gateway = app.spec.gateway
    if gateway is not None and any(route.to == workload for route in gateway.routes):
        allowed.insert(0, GATEWAY)
    signals = golden.of("workload", app.name, workload)
    denied = signals.error_kinds.get("denied", 0.0) if signals.rate is not None else None
    return PolicyLine(workload=workload, allowed=tuple(allowed), denied=denied)
