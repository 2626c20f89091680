"""The mesh: takes in resources as they change, and knows what each proxy shall have.

Rules:
- Work is proportional to the change: a change names the resources that it may have altered, and
  these are made anew only when somebody asks for them. One that comes out the same is no change.
- Every resource is encoded once, whoever asks.
- While the view is held (`complete` is False) nobody may be sent anything: an incomplete view would
  take away from proxies what they rightly have.

Not thread-safe: it belongs to one event loop.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from bedstone.control.mesh import names, views
from bedstone.control.mesh.names import Caller, Flavour, Key, Service, Type
from bedstone.control.mesh.state import GONE, Encoded, Recipe, State, encode, recipe
from bedstone.control.mesh.views import GrpcClient, Name, NodeProxy, Proxy, View
from bedstone.control.registry import Change, Endpoint
from bedstone.errors import InvalidError
from bedstone.model.database_url import Place, place_of
from bedstone.model.resources import (
    DEFAULT_CELL,
    Address,
    App,
    Database,
    DatabaseStatus,
    Instance,
    InstanceStatus,
    Node,
    Presence,
    Resource,
    Revision,
)

LEDS_THRESHOLD = 1000
_NAME = re.compile(r"[a-z][-a-z0-9]{0,39}")
_SHRUNK = 0.8  # of the threshold: a service at the threshold does not change form back and forth


@dataclass(slots=True)
class Changes:
    """What a change may have altered.

    Attributes:
        keys: resources whose content may differ.
        views: names that came into or left a node's view.
        apps: apps whose declaration changed, so that views of their gRPC clients may differ.
    """

    keys: set[Key] = field(default_factory=set)
    views: defaultdict[str, set[Name]] = field(default_factory=lambda: defaultdict(set))
    apps: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.keys or self.views or self.apps)


class Mesh:
    """What every proxy of a domain shall have.

    Args:
        domain: the SPIFFE trust domain.
        leds_threshold: services with more endpoints are delivered endpoint by endpoint.
        control: where the server serves ADS.
    """

    def __init__(
        self,
        domain: str,
        *,
        leds_threshold: int = LEDS_THRESHOLD,
        control: Address | None = None,
    ) -> None:
        self._state = State(domain, leds_threshold, control)
        self._views: defaultdict[str, View] = defaultdict(View)
        self._instances_of: defaultdict[str, set[str]] = defaultdict(set)  # by app, paths
        self._made: dict[Key, tuple[Recipe, Encoded]] = {}
        self._made_of: defaultdict[str, set[Key]] = defaultdict(set)  # by app
        self._stale: set[Key] = set()
        self._collections: dict[Service, dict[str, Encoded]] = {}  # until they change
        self._watchers: list[Callable[[Changes], None]] = []
        self._holds = 0

    @property
    def domain(self) -> str:
        """The trust domain."""
        return self._state.domain

    @property
    def complete(self) -> bool:
        """Whether proxies may be sent what the mesh knows."""
        return self._holds == 0

    def instances(self, app: str, workload: str) -> int:
        """How many instances of a workload are alive."""
        return self._state.running.get((app, workload), Counter()).total()

    def hold(self) -> None:
        """Send nothing until `release`; holds are counted."""
        self._holds += 1

    def release(self) -> None:
        """End one hold; the last one lets everything out that changed meanwhile."""
        self._holds -= 1
        if self._holds == 0:
            self._notify(Changes())

    def watch(self, watcher: Callable[[Changes], None]) -> Callable[[], None]:
        """Call `watcher` after every change, and with an empty one when the view is released.

        Returns a function that ends it.
        """
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    def apply(self, upserts: Iterable[Resource] = (), deletes: Iterable[str] = ()) -> Changes:
        """Take in what changed: new versions of resources, and keys of deleted ones."""
        changes = Changes()
        for resource in upserts:
            self._put(resource, changes)
        for key in deletes:
            self._delete(key, changes)
        self._stale |= changes.keys & self._made.keys()
        if changes:
            self._notify(changes)
        return changes

    def get(self, key: Key) -> Encoded | None:
        """The resource as it is now; None if there is no such resource."""
        made = self._made.get(key)
        if made is not None and key not in self._stale:
            return made[1]
        self._stale.discard(key)
        now = recipe(self._state, key)
        app = names.subject_of(key.name)[0]
        if now is None:
            self._made.pop(key, None)
            self._made_of[app].discard(key)
            return None
        if made is None or made[0] != now:
            made = (now, encode(key.name, now))
            if not key.name.startswith(names.DENIED):  # named by the client: any number of them
                self._made[key] = made
                self._made_of[app].add(key)
        return made[1]

    def names(self, proxy: Proxy, kind: Type) -> AbstractSet[str]:
        """The names of a type in a proxy's view, as the proxy knows them.

        For LEDS, which only goes by collections, see `collection`.
        """
        match proxy:
            case NodeProxy(node):
                view = self._views.get(node)
                return view.names[kind] if view is not None else frozenset()
            case GrpcClient(app, workload, cell):
                callees = self._state.callees(Caller(app, cell, workload))
                if kind is Type.LDS:
                    return frozenset(callees)
                if kind in (Type.CDS, Type.EDS):
                    return frozenset(str(Service(app, cell, callee)) for callee in callees)
                return frozenset()

    def key(self, proxy: Proxy, kind: Type, name: str) -> Key | None:
        """The resource that a proxy means by a name; None if it is not in the proxy's view."""
        match proxy:
            case NodeProxy(node) if kind is Type.LEDS:
                service = _service_of(name)
                view = self._views.get(node)
                visible = service and view and str(service) in view.names[Type.EDS]
                return Key(Flavour.ENVOY, kind, name) if visible else None
            case NodeProxy():
                return Key(Flavour.ENVOY, kind, name) if name in self.names(proxy, kind) else None
            case GrpcClient(app, workload, cell):
                if name not in self.names(proxy, kind):
                    if kind is not Type.LDS or not _NAME.fullmatch(name):
                        return None
                    # a gRPC client takes a missing listener for a late one, and waits for it
                    return Key(Flavour.GRPC, kind, f"{names.DENIED}{app}/{cell}/{workload}/{name}")
                full = str(Service(app, cell, name)) if kind is Type.LDS else name
                return Key(Flavour.GRPC, kind, full)

    def collection(self, proxy: Proxy, glob: str) -> Mapping[str, Encoded]:
        """The endpoints, by name, of a glob collection (`xdstp://…/*`) that a proxy may see."""
        service = _service_of(glob)
        if service is None or service not in self._state.large:
            return {}
        if self.key(proxy, Type.LEDS, glob) is None:
            return {}
        members = self._collections.get(service)
        if members is None:
            members = {}
            for instance in self._state.registry.endpoints(service):
                name = names.leds_endpoint(self.domain, service, instance)
                made = self.get(Key(Flavour.ENVOY, Type.LEDS, name))
                if made is not None:
                    members[name] = made
            self._collections[service] = members
        return members

    def callees(self, caller: Caller) -> tuple[str, ...]:
        """The workloads that an identity may call."""
        return self._state.callees(caller)

    def is_large(self, service: str) -> bool:
        """Whether a service (`APP/CELL/WORKLOAD`) is delivered endpoint by endpoint."""
        return Service(*service.split("/", 2)) in self._state.large

    def endpoints(
        self, app: str, workload: str, cell: str = DEFAULT_CELL
    ) -> Mapping[str, Endpoint]:
        """The endpoints of a workload, by instance."""
        return self._state.registry.endpoints((app, cell, workload))

    def digests(self, node: str) -> dict[str, str]:
        """What `digests_from_config_dump` finds in the proxy of a node that is up to date."""
        proxy = NodeProxy(node)
        found = {}
        for kind in (Type.LDS, Type.RDS, Type.CDS, Type.EDS):
            for name in self.names(proxy, kind):
                made = self.get(Key(Flavour.ENVOY, kind, name))
                if made is not None:
                    found[f"{kind.name}/{name}"] = made.comparable
        return found

    def _notify(self, changes: Changes) -> None:
        for watcher in tuple(self._watchers):
            watcher(changes)

    def _put(self, resource: Resource, changes: Changes) -> None:  # noqa: C901 - a table
        state = self._state
        match resource:
            case App():
                before = state.apps.get(resource.name)
                state.apps[resource.name] = resource
                if before is None or before.spec != resource.spec:
                    self._retire(before, resource)
                    state.reroute(resource.name)
                    self._app_changed(resource.name, changes)
            case Instance():
                self._endpoints_changed(state.registry.put(resource), changes)
            case InstanceStatus():
                self._status_changed(resource.path, resource, changes)
                self._endpoints_changed(state.registry.put(resource), changes)
            case Presence():
                self._endpoints_changed(state.registry.put(resource), changes)
            case Revision():
                key = f"{resource.app}/{resource.workload}/{resource.name}"
                if state.revisions.get(key) != resource:
                    state.revisions[key] = resource
                    declared = state.apps.get(resource.app)
                    if declared and resource.workload not in declared.spec.workloads:
                        # As after a restart of the server while the last instances drain.
                        retired = (resource.app, resource.workload)
                        state.retired.setdefault(retired, resource.spec)
                    self._app_changed(resource.app, changes)
            case Node():
                before_node = state.nodes.get(resource.name)
                state.nodes[resource.name] = resource
                if before_node is None or (before_node.gateway, before_node.calls) != (
                    resource.gateway,
                    resource.calls,
                ):
                    self._node_changed(resource.name, changes)
            case Database() | DatabaseStatus():
                self._put_database(resource, changes)
            case _:
                pass

    def _delete(self, key: str, changes: Changes) -> None:
        state = self._state
        match key.split("/"):
            case ["apps", app]:
                state.apps.pop(app, None)
                for retired in [name for name in state.retired if name[0] == app]:
                    del state.retired[retired]
                state.routes.pop(app, None)
                self._app_changed(app, changes)
            case ["instances", *_] | ["presence", _]:
                self._endpoints_changed(state.registry.delete(key), changes)
            case ["status", "instances", *rest]:
                self._status_changed("/".join(rest), None, changes)
                self._endpoints_changed(state.registry.delete(key), changes)
            case ["databases", *rest]:
                before = state.database("/".join(rest))
                state.externals.pop("/".join(rest), None)
                self._database_changed("/".join(rest), before, changes)
            case ["status", "databases", *rest]:
                before = state.database("/".join(rest))
                state.databases.pop("/".join(rest), None)
                self._database_changed("/".join(rest), before, changes)
            case ["revisions", *rest]:
                state.revisions.pop("/".join(rest), None)
            case ["nodes", node]:
                state.nodes.pop(node, None)
                self._node_changed(node, changes)
            case _:
                pass

    def _retire(self, before: App | None, now: App) -> None:
        gone = before.spec.workloads.keys() - now.spec.workloads.keys() if before else ()
        for name in gone:
            if before is not None:
                self._state.retired[now.name, name] = before.spec.workloads[name]
        for name in now.spec.workloads:
            self._state.retired.pop((now.name, name), None)

    def _app_changed(self, app: str, changes: Changes) -> None:
        changes.apps.add(app)
        changes.keys |= self._made_of.get(app, set())
        for path in self._instances_of.get(app, ()):
            self._unit_changed(path, changes)
        for node in self._state.nodes:
            self._gateway_changed(app, node, changes)

    def _node_changed(self, node: str, changes: Changes) -> None:
        for app in self._state.apps:
            self._gateway_changed(app, node, changes)
        for unit in self._views[node].units():
            if not unit.startswith("gateway:"):
                self._set_unit(node, unit, views.instance(self._state, unit, node), changes)
        changes.keys |= {key for key in self._made if key.name.startswith(f"call/{node}/")}

    def _gateway_changed(self, app: str, node: str, changes: Changes) -> None:
        contribution = views.gateway(self._state, app, node)
        self._set_unit(node, f"gateway:{app}", contribution, changes)

    def _status_changed(self, path: str, now: InstanceStatus | None, changes: Changes) -> None:
        state = self._state
        before = state.statuses.pop(path, None)
        alive_before = before is not None and before.phase not in GONE
        if now is not None:
            state.statuses[path] = now
            self._instances_of[now.app].add(path)
        else:
            self._instances_of[path.partition("/")[0]].discard(path)
        alive = now is not None and now.phase not in GONE
        if (
            before is not None
            and now is not None
            and (alive, now.plumbing, now.node, now.revision)
            == (alive_before, before.plumbing, before.node, before.revision)
        ):
            return
        self._running_changed(before if alive_before else None, now if alive else None, changes)
        changes.keys |= {
            Key(Flavour.ENVOY, kind, f"{prefix}/{path}")
            for kind, prefix in (
                (Type.LDS, "outbound"),
                (Type.LDS, "inbound"),
                (Type.LDS, "control"),
                (Type.LDS, "telemetry"),
                (Type.RDS, "inbound"),
                (Type.CDS, "program"),
            )
        }
        for status in (before, now):
            if status is not None and status.plumbing is not None:
                for kind, targets in (
                    ("service", status.plumbing.services),
                    ("database", status.plumbing.databases),
                ):
                    changes.keys |= {
                        Key(Flavour.ENVOY, Type.LDS, f"{kind}/{path}/{target}")
                        for target in targets
                    }
        if before is not None and (now is None or now.node != before.node):
            self._set_unit(before.node, path, frozenset(), changes)
        self._unit_changed(path, changes)

    def _running_changed(
        self, before: InstanceStatus | None, now: InstanceStatus | None, changes: Changes
    ) -> None:
        """Count revisions that run; with the last one of an old revision, what it uses goes too."""
        for status, step in ((before, -1), (now, 1)):
            if status is None:
                continue
            running = self._state.running[status.app, status.workload]
            known = len(running)
            running[status.revision] += step
            if not running[status.revision]:
                del running[status.revision]
            if len(running) == known:
                continue
            spec = self._state.workload(status.app, status.workload)
            revision = self._state.running_spec(status)
            retired = (status.app, status.workload) in self._state.retired
            if retired or (spec and revision and spec.uses != revision.uses):
                self._app_changed(status.app, changes)

    def _unit_changed(self, path: str, changes: Changes) -> None:
        status = self._state.statuses.get(path)
        if status is not None:
            contribution = views.instance(self._state, path, status.node)
            self._set_unit(status.node, path, contribution, changes)

    def _set_unit(
        self, node: str, unit: str, contribution: frozenset[Name], changes: Changes
    ) -> None:
        changed = self._views[node].set(unit, contribution)
        if changed:
            changes.views[node] |= changed

    def _put_database(self, resource: Database | DatabaseStatus, changes: Changes) -> None:
        state = self._state
        before = state.database(resource.path)
        if isinstance(resource, DatabaseStatus):
            state.databases[resource.path] = resource
        else:
            state.externals.pop(resource.path, None)
            if resource.url is not None:
                state.externals[resource.path] = _place(resource.url)
        self._database_changed(resource.path, before, changes)

    def _database_changed(self, path: str, before: Place | None, changes: Changes) -> None:
        if before == self._state.database(path):
            return
        changes.keys.add(Key(Flavour.ENVOY, Type.CDS, f"database/{path}"))
        for instance in self._instances_of.get(path.partition("/")[0], ()):
            self._unit_changed(instance, changes)

    def _endpoints_changed(self, changed: Iterable[Change], changes: Changes) -> None:
        for change in changed:
            service = Service(change.app, change.cell, change.workload)
            self._resize(service)
            self._collections.pop(service, None)
            if service in self._state.large:
                name = names.leds_endpoint(self.domain, service, change.instance)
                changes.keys.add(Key(Flavour.ENVOY, Type.LEDS, name))
            for flavour in Flavour:
                changes.keys.add(Key(flavour, Type.EDS, str(service)))
            self._direct_changed(service, change.instance, changes)
            if self._state.reroute(change.app):
                self._app_changed(change.app, changes)

    def _direct_changed(self, service: Service, instance: str, changes: Changes) -> None:
        """Callers inside namespaces have an address of their own for each gRPC endpoint."""
        spec = self._state.workload(service.app, service.workload)
        if spec is None or spec.protocol != "grpc" or self._state.control is None:
            return
        changes.keys.add(Key(Flavour.ENVOY, Type.CDS, f"direct/{service}/{instance}"))
        for path in self._instances_of[service.app]:
            status = self._state.statuses[path]
            if status.plumbing is None or status.plumbing.app.netns is None:
                continue
            if service.workload in views.direct_callees(self._state, status):
                name = f"direct/{path}/{service.workload}/{instance}"
                changes.keys.add(Key(Flavour.ENVOY, Type.LDS, name))
                self._unit_changed(path, changes)

    def _resize(self, service: Service) -> None:
        size, threshold = len(self._state.registry.endpoints(service)), self._state.leds_threshold
        if size > threshold:
            self._state.large.add(service)
        elif size < threshold * _SHRUNK:
            self._state.large.discard(service)


def _place(url: str) -> Place | None:
    try:
        return place_of(url)
    except InvalidError:
        return None  # its node says so


def _service_of(name: str) -> Service | None:
    match name.split("/"):
        case ["xdstp:", "", _, _, app, cell, workload, _]:
            return Service(app, cell, workload)
        case _:
            return None
