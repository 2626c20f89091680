"""What one node has to know: a pure selection from the snapshot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from bedstone.control.snapshot import Snapshot
from bedstone.model.monitoring_spec import MonitoringSpec
from bedstone.model.resources import App, Database, Instance, Preparation, Resource, Revision


@dataclass
class Assignment:
    """Resources by key, with the store revision of each, and the availability of workloads."""

    resources: dict[str, tuple[int, Resource]] = field(default_factory=dict)
    available: dict[str, bool] = field(default_factory=dict)

    def add(
        self, snapshot: Snapshot, resource: Resource | None, shown: Resource | None = None
    ) -> None:
        """Take in a resource that is there, or what of it is to be shown."""
        if resource is not None:
            revision = snapshot.revision_of(resource.key)
            self.resources[resource.key] = (revision, shown or resource)


def assignment(snapshot: Snapshot, node: str, apps: Iterable[str]) -> Assignment:
    """All that `node` needs for its instances and databases of `apps`."""
    found = Assignment()
    for name in apps:
        app = snapshot.get(App, f"apps/{name}")
        instances = [i for i in snapshot.of(Instance, name) if i.node == node]
        databases = [
            database
            for database in snapshot.of(Database, name)
            if database.node == node or {i.workload for i in instances} & set(database.users)
        ]
        if app is None or not (instances or databases):
            continue
        found.add(snapshot, app, _without_secrets(app))
        used: set[str] = set()
        for instance in instances:
            found.add(snapshot, instance)
            key = f"revisions/{name}/{instance.workload}/{instance.revision}"
            revision = snapshot.get(Revision, key)
            found.add(snapshot, revision)
            if revision:
                used |= set(revision.spec.uses)
            where = f"{name}/{instance.cell}/{instance.workload}/{instance.revision}"
            found.add(snapshot, snapshot.get(Preparation, f"preparations/{where}"))
        for database in databases:
            found.add(snapshot, database)
        ready = {i.workload for i in snapshot.of(Instance, name) if snapshot.ready(i)}
        for workload in used & app.spec.workloads.keys():
            found.available[f"{name}/default/{workload}"] = workload in ready
    return found


def _without_secrets(app: App) -> App:
    """An app less whom the server tells of alerts and sends measurements: a node needs none of it.

    Their credentials would be readable on every machine that runs one instance.
    """
    monitoring = app.spec.monitoring
    kept = MonitoringSpec(traces=monitoring.traces) if monitoring else None
    spec = app.spec.model_copy(update={"alerts": {}, "receivers": {}, "monitoring": kept})
    return app.model_copy(update={"spec": spec})
