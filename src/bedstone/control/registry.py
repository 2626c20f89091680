"""The registry: which instances are endpoints, derived from what is declared and observed.

An instance is an endpoint exactly when its node reports it READY with its addresses, it is wanted
(`Desired.RUNNING`) on that node, and the node is present (its lease lives).

Rules:
- Where all nodes of a service are absent, their instances count: to call what may be dead is better
  than to call nobody, and a node agent that hangs stops no instance. As soon as one present node
  has an endpoint, those of absent nodes are none.
- The derivation is pure (`endpoint_of`); `Registry` applies it to changes, at a cost that is
  proportional to the change.
- Resources arrive in any order and more than once; the result depends on the latest of each only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from bedstone.model.resources import Desired, Instance, InstanceStatus, Phase, Presence


class Endpoint(NamedTuple):
    """Where one ready instance accepts mutual TLS."""

    instance: str
    node: str
    host: str
    port: int


def endpoint_of(instance: Instance | None, status: InstanceStatus | None) -> Endpoint | None:
    """The endpoint that an instance is if its node is present, or None."""
    if (
        instance is None
        or status is None
        or instance.desired is not Desired.RUNNING
        or status.phase is not Phase.READY
        or status.plumbing is None
        or status.node != instance.node
    ):
        return None
    inbound = status.plumbing.inbound
    return Endpoint(instance.name, status.node, inbound.host, inbound.port)


class Change(NamedTuple):
    """An instance that became an endpoint, ceased to be one, or moved."""

    app: str
    cell: str
    workload: str
    instance: str


class Registry:
    """Instances by path, and the endpoints of each service that follow from them."""

    def __init__(self) -> None:
        self._instances: dict[str, Instance] = {}
        self._statuses: dict[str, InstanceStatus] = {}
        self._present: set[str] = set()
        self._reported: defaultdict[str, set[str]] = defaultdict(set)  # by node, the paths
        self._ready: dict[tuple[str, str, str], dict[str, Endpoint]] = {}  # nodes present or not
        self._live: defaultdict[tuple[str, str, str], set[str]] = defaultdict(set)  # present only
        self._endpoints: dict[tuple[str, str, str], dict[str, Endpoint]] = {}

    def put(self, resource: Instance | InstanceStatus | Presence) -> set[Change]:
        """Take in one resource; what changed of the endpoints."""
        match resource:
            case Instance():
                self._instances[resource.path] = resource
                return self._derive(resource.path)
            case InstanceStatus():
                self._report(resource.path, resource)
                return self._derive(resource.path)
            case Presence():
                self._present.add(resource.node)
                return self._derive_node(resource.node)

    def delete(self, key: str) -> set[Change]:
        """Forget the resource with this key; what changed of the endpoints."""
        kind, _, rest = key.partition("/")
        match kind:
            case "instances":
                self._instances.pop(rest, None)
                return self._derive(rest)
            case "status" if rest.startswith("instances/"):
                path = rest.removeprefix("instances/")
                self._report(path, None)
                return self._derive(path)
            case "presence":
                self._present.discard(rest)
                return self._derive_node(rest)
            case _:
                return set()

    def endpoints(self, service: tuple[str, str, str]) -> Mapping[str, Endpoint]:
        """The endpoints of a service (app, cell, workload), by instance."""
        return self._endpoints.get(service, {})

    def services(self) -> Iterator[tuple[str, str, str]]:
        """The services that have endpoints."""
        return iter(self._endpoints)

    def _report(self, path: str, status: InstanceStatus | None) -> None:
        before = self._statuses.pop(path, None)
        if before is not None:
            self._reported[before.node].discard(path)
            if not self._reported[before.node]:
                del self._reported[before.node]
        if status is not None:
            self._statuses[path] = status
            self._reported[status.node].add(path)

    def _derive_node(self, node: str) -> set[Change]:
        changes: set[Change] = set()
        for path in self._reported.get(node, ()):
            changes |= self._derive(path)
        return changes

    def _derive(self, path: str) -> set[Change]:
        app, cell, workload, name = path.split("/")
        service = (app, cell, workload)
        now = endpoint_of(self._instances.get(path), self._statuses.get(path))
        ready, live = self._ready.setdefault(service, {}), self._live[service]
        had_live = bool(live)
        ready.pop(name, None)
        live.discard(name)
        if now is not None:
            ready[name] = now
            if now.node in self._present:
                live.add(name)
        if had_live and live:
            return self._replace(service, name, now if name in live else None)
        # All nodes of the service have gone, or the first one is back: another rule holds now.
        had = self._endpoints.pop(service, {})
        wanted = {n: ready[n] for n in live} if live else dict(ready)
        if wanted:
            self._endpoints[service] = wanted
        else:
            del self._ready[service], self._live[service]
        changed = {n for n in had.keys() | wanted.keys() if had.get(n) != wanted.get(n)}
        return {Change(*service, n) for n in changed}

    def _replace(
        self, service: tuple[str, str, str], name: str, now: Endpoint | None
    ) -> set[Change]:
        endpoints = self._endpoints[service]
        before = endpoints.pop(name, None)
        if now is not None:
            endpoints[name] = now
        return set() if now == before else {Change(*service, name)}
