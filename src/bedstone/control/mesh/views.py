"""Views: which resources a proxy may and must have, as sets of names.

A node's view is the sum of what each of its instances contributes, and each app's gateway.
Contributions are counted, so that adding or removing one costs what it contributes.

Invariant: a name is in a node's view exactly if at least one present contribution has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from bedstone.control.mesh import names
from bedstone.control.mesh.names import Caller, Service, Type
from bedstone.control.mesh.state import State
from bedstone.model.resources import DEFAULT_CELL, InstanceStatus

Name = tuple[Type, str]


@dataclass(frozen=True, slots=True)
class NodeProxy:
    """The Envoy of a node."""

    node: str

    def __str__(self) -> str:
        return f"node:{self.node}"


@dataclass(frozen=True, slots=True)
class GrpcClient:
    """A proxyless gRPC client: an instance of a workload."""

    app: str
    workload: str
    cell: str = DEFAULT_CELL

    def __str__(self) -> str:
        return f"{self.app}/{self.cell}/{self.workload}"


Proxy = NodeProxy | GrpcClient


class View:
    """The names of one node's view, and which contribution brought them."""

    def __init__(self) -> None:
        self._units: dict[str, frozenset[Name]] = {}
        self._counts: Counter[Name] = Counter()
        self.names: dict[Type, set[str]] = {kind: set() for kind in Type}

    def set(self, unit: str, contribution: frozenset[Name]) -> set[Name]:
        """Replace a contribution (an empty one removes it); the names that came or went."""
        before = self._units.pop(unit, frozenset())
        if contribution:
            self._units[unit] = contribution
        changed = set()
        for name in contribution - before:
            self._counts[name] += 1
            if self._counts[name] == 1:
                self.names[name[0]].add(name[1])
                changed.add(name)
        for name in before - contribution:
            self._counts[name] -= 1
            if not self._counts[name]:
                del self._counts[name]
                self.names[name[0]].discard(name[1])
                changed.add(name)
        return changed

    def units(self) -> frozenset[str]:
        """The contributions that are present."""
        return frozenset(self._units)


def reach(state: State, caller: Caller) -> Iterable[Name]:
    """What a caller's proxy needs for everything that the caller may reach."""
    for callee in (*state.callees(caller), *state.participants(caller)):
        yield Type.CDS, names.to_cluster(caller, callee)
        yield Type.EDS, str(Service(caller.app, caller.cell, callee))


def instance(state: State, path: str, node: str) -> frozenset[Name]:
    """What one instance contributes to its node's view."""
    status = state.alive(path)
    if status is None or status.plumbing is None or status.node != node:
        return frozenset()
    if state.workload(status.app, status.workload) is None:
        return frozenset()
    caller = Caller(status.app, status.cell, status.workload)
    callees = state.callees(caller)
    own: list[Name] = [
        (Type.LDS, f"inbound/{path}"),
        (Type.RDS, f"inbound/{path}"),
        (Type.CDS, f"program/{path}"),
        (Type.LDS, f"outbound/{path}"),
        (Type.RDS, f"outbound/{caller}"),
        (Type.LDS, f"connect/{caller}"),
        (Type.CDS, f"connect/{caller}"),
    ]
    if status.plumbing.telemetry is not None:
        own.append((Type.LDS, f"telemetry/{path}"))
    for callee in status.plumbing.services:
        if callee in callees:
            own.append((Type.LDS, f"service/{path}/{callee}"))
            own.append((Type.RDS, f"service/{caller}/{callee}"))
    for name in status.plumbing.databases:
        database = f"{status.app}/{status.cell}/{name}"
        if state.database(database) is not None:
            own.append((Type.LDS, f"database/{path}/{name}"))
            own.append((Type.CDS, f"database/{database}"))
    return frozenset(
        chain(own, reach(state, caller), _calls(state, caller, node), _proxyless(state, status))
    )


def _proxyless(state: State, status: InstanceStatus) -> Iterable[Name]:
    """What a gRPC client inside a namespace needs to do without a proxy.

    Its namespace has a loopback only; so the server and each endpoint that it may reach are there
    under the very addresses that ADS tells, and mutual TLS goes from end to end. That can be done
    for endpoints on loopback only: an address of another machine cannot be had inside.
    """
    if status.plumbing is None or status.plumbing.app.netns is None or state.control is None:
        return
    callees = direct_callees(state, status)
    if not callees:
        return
    yield Type.LDS, f"control/{status.path}"
    yield Type.CDS, names.CONTROL
    for callee in callees:
        service = Service(status.app, status.cell, callee)
        for name, endpoint in state.registry.endpoints(service).items():
            if endpoint.host.startswith("127."):
                yield Type.LDS, f"direct/{status.path}/{callee}/{name}"
                yield Type.CDS, f"direct/{service}/{name}"


def direct_callees(state: State, status: InstanceStatus) -> list[str]:
    """The gRPC services that an instance may call."""
    caller = Caller(status.app, status.cell, status.workload)
    found = []
    for callee in state.callees(caller):
        spec = state.workload(status.app, callee)
        if spec is not None and spec.protocol == "grpc":
            found.append(callee)
    return found


def _calls(state: State, caller: Caller, node: str) -> Iterable[Name]:
    """The sockets of `bedstone call` for the instance's workload, and the app's operator."""
    machine = state.nodes.get(node)
    if machine is None or machine.calls is None or caller.cell != DEFAULT_CELL:
        return
    operator = Caller(caller.app, caller.cell, names.OPERATOR)
    for identity in (caller, operator):
        yield Type.LDS, f"call/{node}/{identity}"
        yield Type.RDS, f"outbound/{identity}"
    yield Type.CDS, f"connect/{operator}"
    yield from reach(state, operator)


def gateway(state: State, app: str, node: str) -> frozenset[Name]:
    """What an app's gateway contributes to a node's view."""
    declared, machine = state.apps.get(app), state.nodes.get(node)
    if declared is None or declared.spec.gateway is None or machine is None or not machine.gateway:
        return frozenset()
    caller = Caller(app, DEFAULT_CELL, names.GATEWAY)
    own = ((Type.LDS, f"gateway/{app}"), (Type.RDS, f"gateway/{app}"))
    return frozenset(chain(own, reach(state, caller)))
