"""What the server asks about connected proxies: pure functions of streams and the mesh."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from bedstone.control.mesh import names
from bedstone.control.mesh.delta import DeltaStream
from bedstone.control.mesh.mesh import Mesh
from bedstone.control.mesh.names import Caller, Service, Type
from bedstone.control.mesh.streams import Stream
from bedstone.control.mesh.views import NodeProxy
from bedstone.model.resources import DEFAULT_CELL


def settled(stream: Stream, mesh: Mesh, app: str, workload: str) -> bool:
    """Whether a client has acknowledged a service's current endpoints, if it uses the service.

    A proxy that has just connected has not asked for what it already has: its view counts too.
    """
    names = stream.names(Type.EDS)
    if isinstance(stream.proxy, NodeProxy):
        names = names | mesh.names(stream.proxy, Type.EDS)
    for name in names:
        service_app, _, service_workload = name.split("/", 2)
        if (service_app, service_workload) != (app, workload):
            continue
        if not stream.current(Type.EDS, name) or stream.pending(Type.LEDS):
            return False
    return True


def route_programmed(streams: Iterable[Stream], mesh: Mesh, app: str) -> bool:
    """Whether at least one proxy, and every connected one that shall, serves an app's gateway."""
    name = f"gateway/{app}"
    found = False
    for stream in streams:
        if not isinstance(stream.proxy, NodeProxy):
            continue
        if name not in mesh.names(stream.proxy, Type.LDS):
            continue
        found = True
        if not all(stream.current(kind, needed) for kind, needed in _gateway_needs(mesh, app)):
            return False
    return found


def _gateway_needs(mesh: Mesh, app: str) -> Iterator[tuple[Type, str]]:
    yield Type.LDS, f"gateway/{app}"
    yield Type.RDS, f"gateway/{app}"
    caller = Caller(app, DEFAULT_CELL, names.GATEWAY)
    for callee in mesh.callees(caller):
        yield Type.CDS, names.to_cluster(caller, callee)
        yield Type.EDS, str(Service(app, DEFAULT_CELL, callee))


def listening(streams: Iterable[Stream], mesh: Mesh, node: str) -> frozenset[str]:
    """The instances (by path) of a node whose listeners and routes its proxy has acknowledged.

    An acknowledged listener may not be open yet.
    """
    found: set[str] = set()
    for stream in streams:
        if stream.proxy != NodeProxy(node):
            continue
        for name in mesh.names(stream.proxy, Type.LDS):
            kind, _, path = name.partition("/")
            if kind == "outbound" and all(stream.has(*need) for need in _instance_needs(path)):
                found.add(path)
    return frozenset(found)


def _instance_needs(path: str) -> Iterator[tuple[Type, str]]:
    caller = path.rpartition("/")[0]
    yield Type.LDS, f"outbound/{path}"
    yield Type.LDS, f"inbound/{path}"
    yield Type.RDS, f"outbound/{caller}"
    yield Type.RDS, f"inbound/{path}"
    yield Type.CDS, f"program/{path}"


def repair(
    streams: Iterable[Stream], mesh: Mesh, node: str, reported: Mapping[str, str]
) -> list[str]:
    """Have whatever differs from the truth sent again, or removed again; what that was.

    Args:
        streams: of all clients.
        mesh: the truth.
        node: whose proxy reported.
        reported: by `digests_from_config_dump`.
    """
    proxy = NodeProxy(node)
    mine = [s for s in streams if isinstance(s, DeltaStream) and s.proxy == proxy]
    if not mine:
        return []
    expected = mesh.digests(node)
    repaired = []
    for name in sorted(expected.keys() | reported.keys()):
        if expected.get(name) == reported.get(name):
            continue
        kind_name, _, resource = name.partition("/")
        kind = Type[kind_name]
        # what by-name types lack or have in excess is the client's own choice of names
        if kind in (Type.EDS, Type.RDS) and (name not in expected or name not in reported):
            continue
        if kind is Type.EDS and mesh.is_large(resource):
            continue
        # a loop and not `any`: each stream must be told
        told = [stream.repair(kind, resource) for stream in mine]
        if any(told):
            repaired.append(name)
    return repaired
