"""Which instances there shall be, and where: a pure plan for one app.

Owns `Revision`, `Instance` and `Database` records. Rules:

1. A revision is the digest of a workload's specification (less its replicas), its source, its
   restarts and the URLs of the external databases that it uses; the same declaration always gives
   the same revision, and the same instance names. Who uses the database of the transaction log is
   told so by a variable of that specification.
2. New instances of a revision are started beside the old ones, a few at a time; an old one is
   drained only when a new one is ready in its place. A revision that never becomes ready replaces
   nothing.
3. A drained instance is deleted when its node says that it has stopped, or is gone.
4. An instance on a node that is gone is replaced on another node, if there is one.
5. Deleting an app drains everything first; data directories are not touched.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from math import ceil

from bedstone.control.snapshot import Snapshot
from bedstone.model.resources import (
    App,
    Condition,
    Database,
    Desired,
    Instance,
    InstanceStatus,
    Phase,
    Preparation,
    Resource,
    Revision,
)
from bedstone.model.spec import WorkloadSpec
from bedstone.store import Delete, Operation, Put

OPERATOR = "operator"
"""Who the server is to a database that it uses itself; no workload has this name."""
TRANSACTIONS_VARIABLE = "BEDSTONE_TRANSACTIONS_URL"
_HISTORY = 3
"""Revisions of a workload kept besides the present one."""


def revision_name(app: App, workload: str) -> str:
    """The revision that an app's declaration asks for: eight hexadecimal digits."""
    spec = declared_spec(app, workload).model_dump(mode="json", exclude={"replicas"})
    content = [spec, app.root, app.sources.get(workload, ""), app.restarts.get(workload, 0)]
    urls = [
        (name, hashlib.sha256(database.url.encode()).hexdigest())
        for name, database in sorted(app.spec.databases.items())
        if database.url and name in app.spec.workloads[workload].uses
    ]
    if urls:
        content.append(urls)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def declared_spec(app: App, workload: str) -> WorkloadSpec:
    """What a workload is declared to be, with what the app as a whole adds to it."""
    spec, log = app.spec.workloads[workload], app.spec.transactions
    if log is None or log.database not in spec.uses:
        return spec
    reference = f"${{databases.{log.database}.url}}"
    return spec.model_copy(update={"env": spec.env | {TRANSACTIONS_VARIABLE: reference}})


def plan(snapshot: Snapshot, name: str) -> list[Operation]:
    """What to change in the store so that app `name` comes closer to its declaration.

    An empty plan means that the declaration is met, or that a node must act first.
    """
    app = snapshot.apps().get(name)
    if app is None:
        return []
    operations: list[Operation] = []
    wanted = {} if app.deleting else app.spec.workloads
    known = {instance.workload for instance in snapshot.of(Instance, name)}
    for workload in sorted(wanted.keys() | known | _revised(snapshot, name)):
        operations += _plan_workload(snapshot, app, workload, declared=workload in wanted)
    operations += _plan_databases(snapshot, app)
    if app.deleting and not operations and not known:
        operations += _forget(snapshot, app)
    return operations


def _revised(snapshot: Snapshot, app: str) -> set[str]:
    return {revision.workload for revision in snapshot.of(Revision, app)}


def _plan_workload(
    snapshot: Snapshot, app: App, workload: str, *, declared: bool
) -> Iterator[Operation]:
    instances = [i for i in snapshot.of(Instance, app.name) if i.workload == workload]
    if declared:
        spec = declared_spec(app, workload)
        present = Revision(
            app=app.name,
            workload=workload,
            name=revision_name(app, workload),
            spec=spec.model_copy(update={"replicas": 1}),
            root=app.root,
            source=app.sources.get(workload, ""),
            generation=app.generation,
        )
        if snapshot.get(Revision, present.key) is None:
            yield _put(snapshot, present)
        replicas, current = app.replicas(workload), present.name
    elif app.deleting or _served(snapshot, app):
        replicas, current = 0, ""
    else:
        return
    yield from _plan_instances(snapshot, app, workload, instances, current, replicas)
    yield from _prune(snapshot, app, workload, current, {i.revision for i in instances})


def _served(snapshot: Snapshot, app: App) -> bool:
    """Whether every declared workload serves; one may be taking the place of one that left."""
    ready = Counter(i.workload for i in snapshot.of(Instance, app.name) if snapshot.ready(i))
    return all(ready[name] >= app.replicas(name) for name in app.spec.workloads)


def _plan_instances(
    snapshot: Snapshot,
    app: App,
    workload: str,
    instances: Sequence[Instance],
    current: str,
    replicas: int,
) -> Iterator[Operation]:
    for instance in instances:
        if instance.desired is Desired.DRAINED and _stopped(snapshot, instance):
            yield Delete(instance.key)
            yield Delete(f"status/instances/{instance.path}")
    running = [i for i in instances if i.desired is Desired.RUNNING]
    others = [n for n in snapshot.nodes() if snapshot.present(n)]
    lost = [i for i in running if others and not snapshot.present(i.node)]
    new = [i for i in running if i.revision == current and i not in lost]
    old = [i for i in running if i.revision != current and i not in lost]
    # Those that serve nobody go first: fewer replicas must not mean none that is ready.
    ranked = sorted(new, key=lambda i: (not snapshot.ready(i), *_ordinal(i)))
    kept_new, surplus = ranked[:replicas], ranked[replicas:]
    ready = sum(snapshot.ready(instance) for instance in kept_new)
    starting = len(kept_new) - ready
    batch = max(2, ceil(replicas / 4)) if old else replicas
    room = min(replicas - len(kept_new), batch - starting)
    if others:
        yield from _create(snapshot, app, workload, current, instances, room, others)

    # Old copies make way one for one as new ones become ready, those that serve nobody first.
    kept = max(0, replicas - ready)
    serving = sorted(old, key=lambda i: (not snapshot.ready(i), *_ordinal(i)))
    for instance in (*surplus, *serving[kept:], *lost):
        yield _put(snapshot, instance.model_copy(update={"desired": Desired.DRAINED}))


def _create(
    snapshot: Snapshot,
    app: App,
    workload: str,
    revision: str,
    existing: Iterable[Instance],
    count: int,
    nodes: Sequence[str],
) -> Iterator[Operation]:
    taken = {instance.name for instance in existing}
    load = Counter(dict.fromkeys(nodes, 0))
    for other in snapshot.apps():
        load.update(i.node for i in snapshot.of(Instance, other) if i.node in load)
    ordinal = 0
    for _ in range(count):
        while (name := f"{workload}-{revision}-{ordinal}") in taken:
            ordinal += 1
        taken.add(name)
        node = min(nodes, key=lambda candidate: (load[candidate], candidate))
        load[node] += 1
        yield _put(
            snapshot,
            Instance(app=app.name, workload=workload, name=name, revision=revision, node=node),
        )


def _ordinal(instance: Instance) -> tuple[int, str]:
    return int(instance.name.rpartition("-")[2]), instance.name


def _stopped(snapshot: Snapshot, instance: Instance) -> bool:
    status = snapshot.status(instance)
    if status and status.phase in {Phase.STOPPED, Phase.FAILED}:
        return True
    return instance.released and not snapshot.present(instance.node)


def _prune(
    snapshot: Snapshot, app: App, workload: str, current: str, used: set[str]
) -> Iterator[Operation]:
    """Delete revisions that nothing runs, but for a short history."""
    idle = [
        revision
        for revision in snapshot.of(Revision, app.name)
        if revision.workload == workload and revision.name not in {current, *used}
    ]
    idle.sort(key=lambda revision: snapshot.revision_of(revision.key), reverse=True)
    gone = {revision.name for revision in idle[_HISTORY if current else 0 :]}
    for revision in idle:
        if revision.name in gone:
            yield Delete(revision.key)
    for preparation in snapshot.of(Preparation, app.name):
        if preparation.workload == workload and preparation.revision in gone:
            yield Delete(preparation.key)


def _plan_databases(snapshot: Snapshot, app: App) -> Iterator[Operation]:
    nodes = [node for node in snapshot.nodes() if snapshot.present(node)]
    held = {database.name: database for database in snapshot.of(Database, app.name)}
    wanted = {} if app.deleting else app.spec.databases
    running = _running_uses(snapshot, app.name)
    for name, spec in sorted(wanted.items()):
        # A copy of an older revision keeps its right until it has gone: a rollout fails no request.
        users = {w for w, s in app.spec.workloads.items() if name in s.uses}
        users |= running.get(name, set())
        if app.spec.transactions is not None and app.spec.transactions.database == name:
            users.add(OPERATOR)  # the server reads the log, and finishes what nobody else does
        before = held.get(name)
        node = before.node if before else None
        if node is None or (spec.url is not None and node not in nodes):
            # An engine stays with its data; any node can look whether an external one answers.
            node = nodes[0] if nodes else node
        if node is None:
            continue
        database = Database(
            app=app.name,
            name=name,
            engine=spec.engine,
            url=spec.url,
            node=node,
            users=sorted(users),
        )
        if database != before:
            yield _put(snapshot, database)
    for name, database in held.items():
        # The engine outlives its last user, so that draining requests can finish.
        if name not in wanted and name not in running:
            yield Delete(database.key)
            yield Delete(f"status/databases/{database.path}")


def _running_uses(snapshot: Snapshot, app: str) -> dict[str, set[str]]:
    """What the revisions that have instances use: for each name, the workloads."""
    uses = {(r.workload, r.name): r.spec.uses for r in snapshot.of(Revision, app)}
    found: dict[str, set[str]] = {}
    for instance in snapshot.of(Instance, app):
        for name in uses.get((instance.workload, instance.revision), ()):
            found.setdefault(name, set()).add(instance.workload)
    return found


def _forget(snapshot: Snapshot, app: App) -> Iterator[Operation]:
    kinds: tuple[type[Resource], ...] = (Preparation, Condition, InstanceStatus)
    for kind in kinds:
        for resource in snapshot.of(kind, app.name):
            yield Delete(resource.key)
    yield Delete(app.key)


def _put(snapshot: Snapshot, resource: Resource) -> Put:
    return Put(resource.key, resource.encode(), expected=snapshot.revision_of(resource.key))
