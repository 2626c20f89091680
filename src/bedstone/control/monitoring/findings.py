"""What is not well in the whole installation, in the order in which a person should look: pure.

Each finding says what to do, and leads to the page of the console that shows the cause.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote, urlencode

from bedstone.control.monitoring.golden import Golden
from bedstone.control.monitoring.health import AppState, database_state, node_state
from bedstone.control.snapshot import Snapshot
from bedstone.model.alerts import AlertLine
from bedstone.model.monitoring import Finding
from bedstone.model.resources import Condition, Database, DatabaseStatus
from bedstone.telemetry import names

_MOST = 200
"""Findings that are told; more than a person reads."""
RESTARTED = 600
"""Seconds within which a restart is worth a look."""


def findings(
    snapshot: Snapshot,
    states: Mapping[str, AppState],
    golden: Golden,
    alerts: Iterable[AlertLine],
    restarts: Mapping[tuple[str, str], float],
) -> list[Finding]:
    """All that is not well, errors first.

    Args:
        snapshot: the control plane's picture.
        states: of the apps, by name.
        golden: the signals of the last seconds.
        alerts: those that there are, in whatever state.
        restarts: by app and workload, how often an instance was started again lately.
    """
    found = [
        *_nodes(snapshot),
        *_missing(golden),
        *(finding for state in states.values() for finding in _app(snapshot, state)),
        *_alerts(alerts),
        *_stuck(golden),
        *_restarts(states, restarts),
    ]
    found.sort(key=lambda finding: finding.severity != "error")
    return found[:_MOST]


def _nodes(snapshot: Snapshot) -> Iterator[Finding]:
    for name, node in sorted(snapshot.nodes().items()):
        health, reason = node_state(node, present=snapshot.present(name))
        if health in {"warning", "error"}:
            yield Finding(
                severity="error" if health == "error" else "warning",
                app="",
                subject=f"node {name}",
                message=reason,
                hint="see bedstone ps, and bedstone logs engine:node",
                page="/",
            )


def _missing(golden: Golden) -> Iterator[Finding]:
    for source, reason in sorted(golden.span.missing.items()):
        yield Finding(
            severity="warning",
            app="",
            subject=f"monitoring of {source}",
            message=f"it did not answer in the last second: {reason}",
            hint="figures leave out what is missing; counts catch up when it answers",
            page="/",
        )


def _app(snapshot: Snapshot, state: AppState) -> Iterator[Finding]:
    app = state.app.name
    told = set()
    for condition in state.conditions:
        told.add(condition.subject)
        yield _condition(app, condition)
    for name, workload in state.workloads.items():
        if workload.health in {"warning", "error"} and f"workloads.{name}" not in told:
            yield Finding(
                severity="error" if workload.health == "error" else "warning",
                app=app,
                subject=name,
                message=workload.reason,
                hint=f"see bedstone logs {name}",
                page=_page("workloads", app, name),
            )
    for database in snapshot.of(Database, app):
        yield from _database(snapshot, database)


def _condition(app: str, condition: Condition) -> Finding:
    kind, _, name = condition.subject.partition(".")
    page = _page("traffic", app)
    if kind == "workloads" and name:
        page = _page("workloads", app, name)
    return Finding(
        severity=condition.severity,
        app=app,
        subject=condition.subject.removeprefix("workloads."),
        message=condition.message,
        hint=condition.hint,
        since=condition.since or None,
        page=page,
    )


def _database(snapshot: Snapshot, database: Database) -> Iterator[Finding]:
    status = snapshot.get(DatabaseStatus, f"status/databases/{database.path}")
    present = database.node is None or snapshot.present(database.node)
    health, reason = database_state(
        status.phase if status else None, status.reason if status else "", present=present
    )
    if health in {"warning", "error"}:
        yield Finding(
            severity="error" if health == "error" else "warning",
            app=database.app,
            subject=f"database {database.name}",
            message=reason,
            hint="see bedstone ps",
            page=f"{_page('map', database.app)}?{urlencode({'pick': f'database:{database.name}'})}",
        )


def _alerts(alerts: Iterable[AlertLine]) -> Iterator[Finding]:
    for alert in alerts:
        if alert.state != "firing" or alert.silenced_until is not None:
            continue
        labels = ", ".join(f"{name} {value}" for name, value in sorted(alert.labels.items()))
        yield Finding(
            severity="error" if alert.severity == "page" else "warning",
            app=alert.app,
            subject=f"alert {alert.rule}",
            message=alert.summary or (f"it fires for {labels}" if labels else "it fires"),
            since=alert.fired_at or alert.since,
            page=f"/alerts?{urlencode({'app': alert.app, 'rule': alert.rule})}",
        )


def _stuck(golden: Golden) -> Iterator[Finding]:
    for (kind, *labels), value in sorted(golden.gauges.items()):
        if kind == names.TRANSACTIONS_STUCK.name and value > 0:
            app, number = labels[0], int(value)
            words = "transaction waits" if number == 1 else "transactions wait"
            yield Finding(
                severity="error",
                app=app,
                subject="transactions",
                message=f"{number} {words} for a person",
                hint="see bedstone tx ls --stuck",
                page=f"{_page('transactions', app)}?stuck=1",
            )


def _restarts(
    states: Mapping[str, AppState], restarts: Mapping[tuple[str, str], float]
) -> Iterator[Finding]:
    for (app, workload), count in sorted(restarts.items()):
        state = states.get(app)
        known = state.workloads.get(workload) if state else None
        if count >= 1 and known is not None and known.health == "ok":
            times = "once" if count < 2 else f"{int(count)} times"
            yield Finding(
                severity="warning",
                app=app,
                subject=workload,
                message=f"an instance was started again {times} in the last ten minutes",
                hint=f"see bedstone logs {workload}",
                page=f"{_page('workloads', app, workload)}?tab=logs",
            )


def _page(*parts: str) -> str:
    return "/" + "/".join(quote(part, safe="") for part in parts)
