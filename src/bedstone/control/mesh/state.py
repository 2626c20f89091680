"""What the mesh knows, and how a resource's name leads to what the resource is made of.

`recipe(state, key)` is pure: it finds the inputs of one resource. `encode(recipe)` is pure: inputs
to bytes. A resource's version is the digest of its bytes, so it survives a restart of the server,
and a client that comes back is sent only what differs.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bedstone.control.mesh import clusters, listeners, names, proxyless, routes
from bedstone.control.mesh.digests import addresses_digest
from bedstone.control.mesh.names import Caller, Flavour, Key, Service, Type
from bedstone.control.mesh.protos import delta_entry, state_entry
from bedstone.control.mesh.protos import encode as encode_message
from bedstone.control.registry import Registry
from bedstone.model.database_url import Place
from bedstone.model.resources import (
    DEFAULT_CELL,
    Address,
    App,
    DatabaseStatus,
    InstanceStatus,
    Node,
    Phase,
    Revision,
)
from bedstone.model.spec import Gateway, Route, WorkloadSpec

GONE = (Phase.STOPPED, Phase.FAILED)


@dataclass(slots=True)
class State:
    """The latest of each resource that the mesh is made from."""

    domain: str
    leds_threshold: int
    control: Address | None = None
    """Where the server serves ADS; None: gRPC clients inside namespaces cannot reach it."""
    apps: dict[str, App] = field(default_factory=dict)
    revisions: dict[str, Revision] = field(default_factory=dict)
    statuses: dict[str, InstanceStatus] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    databases: dict[str, DatabaseStatus] = field(default_factory=dict)
    externals: dict[str, Place | None] = field(default_factory=dict)
    """Where the URLs of external databases lead; None: to no TCP port."""
    registry: Registry = field(default_factory=Registry)
    large: set[Service] = field(default_factory=set)
    retired: dict[tuple[str, str], WorkloadSpec] = field(default_factory=dict)
    """Workloads that left the manifest; their last instances are still served."""
    routes: dict[str, tuple[Route, ...]] = field(default_factory=dict)
    """By app, the gateway's routes as they are now; see `reroute`."""
    running: defaultdict[tuple[str, str], Counter[str]] = field(
        default_factory=lambda: defaultdict(Counter)
    )
    """By app and workload, how many instances of each revision are alive."""

    def workload(self, app: str, workload: str) -> WorkloadSpec | None:
        """The workload as declared now, or as last declared."""
        declared = self.apps.get(app)
        if declared is not None and workload in declared.spec.workloads:
            return declared.spec.workloads[workload]
        return self.retired.get((app, workload))

    def reroute(self, app: str) -> bool:
        """Follow the declared routes of an app; whether that changed one.

        A route goes on to its old target until the new one has an endpoint, so that a workload
        that takes another's place leaves no request without one.
        """
        declared = self.apps.get(app)
        wanted = declared.spec.gateway.routes if declared and declared.spec.gateway else ()
        before = {(route.host, route.path): route for route in self.routes.get(app, ())}
        now = []
        for route in wanted:
            old = before.get((route.host, route.path))
            waits = (
                old is not None
                and old.to != route.to
                and not self.registry.endpoints((app, DEFAULT_CELL, route.to))
                and self.registry.endpoints((app, DEFAULT_CELL, old.to))
                and self.workload(app, old.to) is not None
            )
            now.append(old if old is not None and waits else route)
        changed = self.routes.get(app, ()) != tuple(now)
        self.routes[app] = tuple(now)
        if not now:
            del self.routes[app]
        return changed

    def gateway(self, app: str) -> Gateway | None:
        """An app's gateway with the routes as they are now."""
        declared = self.apps.get(app)
        if declared is None or declared.spec.gateway is None:
            return None
        return declared.spec.gateway.model_copy(update={"routes": self.routes.get(app, ())})

    def routed(self, app: str) -> set[str]:
        """The workloads that the gateway sends requests to, or will."""
        declared = self.apps.get(app)
        wanted = declared.spec.gateway.routes if declared and declared.spec.gateway else ()
        return {route.to for route in (*wanted, *self.routes.get(app, ()))}

    def uses(self, app: str, workload: str) -> set[str]:
        """What a workload may call: as declared, and as declared by revisions that still run.

        While a new revision is rolled out, the old one's calls must not fail.
        """
        spec = self.workload(app, workload)
        found = set(spec.uses) if spec else set()
        for name in self.running.get((app, workload), ()):
            revision = self.revisions.get(f"{app}/{workload}/{name}")
            if revision is not None:
                found |= set(revision.spec.uses)
        return found

    def workloads(self, app: str) -> set[str]:
        """The workloads of an app: declared ones, and those that still run."""
        declared = self.apps.get(app)
        found = set(declared.spec.workloads) if declared else set()
        return found | {
            name for of, name in self.retired if of == app and self.running.get((of, name))
        }

    def callees(self, caller: Caller) -> tuple[str, ...]:
        """The workloads that an identity may call, sorted."""
        app = self.apps.get(caller.app)
        if app is None:
            return ()
        match caller.identity:
            case names.GATEWAY:
                found = self.routed(caller.app)
            case names.OPERATOR:
                found = set(app.spec.workloads)
            case workload:
                found = self.uses(caller.app, workload)
        return tuple(sorted(found & self.workloads(caller.app)))

    def participants(self, caller: Caller) -> tuple[str, ...]:
        """The workloads that an identity may call for the second phase of a transaction only.

        Whoever shares a transaction log may have to see to its end what another has begun.
        """
        peers = self._sharing(caller.app, caller.identity)
        return tuple(sorted(peers - set(self.callees(caller)) - {caller.identity}))

    def coordinators(self, app: str, workload: str) -> tuple[str, ...]:
        """The SPIFFE ids that may ask a workload for the second phase of a transaction, sorted.

        The operator is one: the server goes on where all of a workload's instances are gone.
        """
        peers = self._sharing(app, workload)
        found = peers | {names.OPERATOR} if peers else set()
        return tuple(sorted(names.spiffe(self.domain, app, identity) for identity in found))

    def _sharing(self, app: str, workload: str) -> set[str]:
        """The workloads that use the transaction log, if this one does."""
        declared = self.apps.get(app)
        log = declared.spec.transactions if declared else None
        if log is None:
            return set()
        found = {name for name in self.workloads(app) if log.database in self.uses(app, name)}
        return found if workload in found else set()

    def callers(self, app: str, workload: str) -> tuple[str, ...]:
        """The SPIFFE ids that may call a workload, sorted."""
        declared = self.apps.get(app)
        if declared is None:
            return ()
        found = {names.OPERATOR}
        found |= {name for name in self.workloads(app) if workload in self.uses(app, name)}
        if workload in self.routed(app):
            found.add(names.GATEWAY)
        return tuple(sorted(names.spiffe(self.domain, app, identity) for identity in found))

    def alive(self, path: str) -> InstanceStatus | None:
        """The status of an instance that the proxy of its node must serve."""
        status = self.statuses.get(path)
        if status is None or status.plumbing is None or status.phase in GONE:
            return None
        return status

    def database(self, path: str) -> Place | None:
        """Where a database is dialled, if it can be yet."""
        if path in self.externals:
            return self.externals[path]
        status = self.databases.get(path)
        if status is None or status.address is None:
            return None
        return Place(status.address.host, status.address.port)

    def running_spec(self, status: InstanceStatus) -> WorkloadSpec | None:
        """What the instance's own revision declares, where known."""
        key = f"{status.app}/{status.workload}/{status.revision}"
        revision = self.revisions.get(key)
        return revision.spec if revision else self.workload(status.app, status.workload)


class Recipe(NamedTuple):
    """How to make one resource: a pure function and its inputs, which are compared by value."""

    build: Callable[..., Any]
    inputs: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A resource as sent: an encoded `Any`, and the digest that is its version.

    `entry` is the resource as a field of a `DeltaDiscoveryResponse`, `state` of a
    `DiscoveryResponse`; both are encoded once for all clients. `comparable` is what the same
    resource's digest is in a proxy's own configuration dump.
    """

    data: bytes
    version: str
    comparable: str
    entry: bytes
    state: bytes


def encode(name: str, recipe: Recipe) -> Encoded:
    """Make the resource that clients know by this name."""
    data = encode_message(recipe.build(*recipe.inputs))
    version = hashlib.sha256(data).hexdigest()[:16]
    comparable = version
    if recipe.build is clusters.assignment:
        comparable = addresses_digest((e.host, e.port) for e in recipe.inputs[1])
    return Encoded(data, version, comparable, delta_entry(name, version, data), state_entry(data))


def recipe(state: State, key: Key) -> Recipe | None:  # noqa: PLR0911 - a table
    """What a resource is made of now; None if there is no such resource."""
    if key.flavour is Flavour.GRPC:
        return _grpc(state, key)
    match key.type, key.name.split("/"):
        case Type.EDS, [app, cell, workload]:
            return _assignment(state, Service(app, cell, workload))
        case Type.LEDS, ["xdstp:", "", _, _, app, cell, workload, instance]:
            endpoint = state.registry.endpoints((app, cell, workload)).get(instance)
            return Recipe(clusters.lb_endpoint, (endpoint,)) if endpoint else None
        case Type.CDS, parts:
            return _cluster(state, parts)
        case Type.LDS, parts:
            return _listener(state, parts)
        case Type.RDS, parts:
            return _routes(state, parts)
        case _:
            return None


def _assignment(state: State, service: Service, *, whole: bool = False) -> Recipe | None:
    if state.workload(service.app, service.workload) is None:
        return None
    if service in state.large and not whole:
        return Recipe(clusters.collection, (state.domain, service))
    endpoints = state.registry.endpoints(service)
    return Recipe(
        clusters.assignment, (service, tuple(endpoints[name] for name in sorted(endpoints)))
    )


def _cluster(state: State, parts: list[str]) -> Recipe | None:  # noqa: PLR0911 - a table
    match parts:
        case ["to", app, cell, identity, callee]:
            if state.workload(app, callee) is None:
                return None
            service = Service(app, cell, callee)
            return Recipe(clusters.to_service, (state.domain, Caller(app, cell, identity), service))
        case ["program", *rest]:
            status = state.alive("/".join(rest))
            spec = state.running_spec(status) if status else None
            if status is None or status.plumbing is None or spec is None:
                return None
            return Recipe(clusters.to_program, (status.path, status.plumbing.app, spec.protocol))
        case [names.CONTROL] if state.control is not None:
            return Recipe(clusters.to_address, (names.CONTROL, state.control))
        case ["direct", app, cell, callee, instance]:
            endpoint = state.registry.endpoints((app, cell, callee)).get(instance)
            if endpoint is None:
                return None
            address = Address(host=endpoint.host, port=endpoint.port)
            return Recipe(clusters.to_address, ("/".join(parts), address))
        case ["connect", app, cell, identity]:
            return Recipe(clusters.to_connect, (Caller(app, cell, identity),))
        case ["database", *rest]:
            place = state.database("/".join(rest))
            return Recipe(clusters.to_place, ("/".join(parts), *place)) if place else None
        case _:
            return None


def _listener(state: State, parts: list[str]) -> Recipe | None:  # noqa: PLR0911 - a table
    match parts:
        case ["gateway", app]:
            declared = state.apps.get(app)
            if declared is None or declared.spec.gateway is None:
                return None
            gateway = declared.spec.gateway
            return Recipe(listeners.gateway, (app, gateway.address, gateway.port))
        case ["connect", app, cell, identity]:
            return Recipe(listeners.connect, (Caller(app, cell, identity),))
        case ["call", node, app, cell, identity]:
            machine = state.nodes.get(node)
            if machine is None or machine.calls is None:
                return None
            socket = f"{machine.calls}/{app}.{identity}.sock"
            return Recipe(listeners.call, (node, Caller(app, cell, identity), socket))
        case [kind, app, cell, workload, instance, *more]:
            status = state.alive(f"{app}/{cell}/{workload}/{instance}")
            if status is None or status.plumbing is None:
                return None
            return _instance_listener(state, kind, status, *more)
        case _:
            return None


def _instance_listener(  # noqa: PLR0911 - a table
    state: State, kind: str, status: InstanceStatus, target: str = "", endpoint: str = ""
) -> Recipe | None:
    plumbing = status.plumbing
    if plumbing is None:
        return None
    caller = Caller(status.app, status.cell, status.workload)
    address: Address | None
    match kind:
        case "outbound":
            inputs = (status.path, plumbing.outbound, f"outbound/{caller}", plumbing.credential)
            return Recipe(listeners.outbound, inputs)
        case "inbound":
            return Recipe(listeners.inbound, (state.domain, status.path, plumbing.inbound))
        case "service" if address := plumbing.services.get(target):
            routed = f"service/{caller}/{target}"
            return Recipe(listeners.service, (status.path, target, address, routed))
        case "database" if address := plumbing.databases.get(target):
            cluster = f"database/{status.app}/{status.cell}/{target}"
            return Recipe(
                listeners.passed_on, (f"database/{status.path}/{target}", address, cluster)
            )
        case "telemetry" if address := plumbing.telemetry:
            return Recipe(listeners.telemetry, (status.path, address))
        case "control" if state.control is not None:
            inside = state.control.model_copy(update={"netns": plumbing.app.netns})
            name = f"control/{status.path}"
            return Recipe(listeners.passed_on, (name, inside, names.CONTROL))
        case "direct":
            service = (status.app, status.cell, target)
            found = state.registry.endpoints(service).get(endpoint)
            if found is None:
                return None
            inside = Address(host=found.host, port=found.port, netns=plumbing.app.netns)
            name = f"direct/{status.path}/{target}/{endpoint}"
            cluster = f"direct/{'/'.join(service)}/{endpoint}"
            return Recipe(listeners.passed_on, (name, inside, cluster))
        case _:
            return None


def _routes(state: State, parts: list[str]) -> Recipe | None:  # noqa: PLR0911 - a table
    match parts:
        case ["outbound", app, cell, identity]:
            caller = Caller(app, cell, identity)
            callees = _specs(state, caller, state.callees(caller))
            participants = _specs(state, caller, state.participants(caller))
            return Recipe(routes.outbound, (caller, callees, participants))
        case ["service", app, cell, identity, callee]:
            spec = state.workload(app, callee)
            if spec is None:
                return None
            target = routes.Callee(spec.protocol, spec.timeout)
            return Recipe(routes.service, (Caller(app, cell, identity), callee, target))
        case ["inbound", app, cell, workload, instance]:
            status = state.alive(f"{app}/{cell}/{workload}/{instance}")
            spec = state.running_spec(status) if status else None
            if status is None or spec is None:
                return None
            allowed = state.callers(app, workload)
            coordinators = state.coordinators(app, workload)
            return Recipe(
                routes.inbound, (status.path, spec.protocol, allowed, workload, coordinators)
            )
        case ["gateway", app]:
            gateway = state.gateway(app)
            if gateway is None:
                return None
            caller = Caller(app, DEFAULT_CELL, names.GATEWAY)
            specs = _specs(state, caller, state.callees(caller))
            return Recipe(routes.gateway, (caller, gateway, specs))
        case _:
            return None


def _specs(
    state: State, caller: Caller, callees: tuple[str, ...]
) -> tuple[tuple[str, routes.Callee], ...]:
    found = []
    for name in callees:
        spec = state.workload(caller.app, name)
        if spec is not None:
            found.append((name, routes.Callee(spec.protocol, spec.timeout)))
    return tuple(found)


def _grpc(state: State, key: Key) -> Recipe | None:
    match key.type, key.name.split("/"):
        case Type.LDS, [app, cell, workload]:
            spec = state.workload(app, workload)
            service = Service(app, cell, workload)
            return Recipe(proxyless.listener, (service, spec.timeout)) if spec else None
        case Type.LDS, ["denied", _, _, _, name]:
            return Recipe(proxyless.denied, (name,))
        case Type.CDS, [app, cell, workload] if state.workload(app, workload):
            return Recipe(proxyless.cluster, (state.domain, Service(app, cell, workload)))
        case Type.EDS, [app, cell, workload]:
            return _assignment(state, Service(app, cell, workload), whole=True)
        case _:
            return None
