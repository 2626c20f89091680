"""Names of the mesh's xDS resources, and the headers and clusters that parts must agree on.

Every name is a path, so that it says whose it is without a look-up:

| type | name | what |
|---|---|---|
| LDS | `outbound/APP/CELL/WORKLOAD/INSTANCE` | the instance's HTTP proxy |
| LDS | `service/APP/CELL/WORKLOAD/INSTANCE/CALLEE` | goes to CALLEE without proxy support |
| LDS | `database/APP/CELL/WORKLOAD/INSTANCE/DATABASE` | goes to a database |
| LDS | `direct/APP/CELL/WORKLOAD/INSTANCE/CALLEE/ENDPOINT` | an endpoint, inside a namespace |
| LDS | `control/APP/CELL/WORKLOAD/INSTANCE` | the ADS, inside a namespace |
| LDS | `telemetry/APP/CELL/WORKLOAD/INSTANCE` | goes to the node's collector |
| LDS | `inbound/APP/CELL/WORKLOAD/INSTANCE` | mutual TLS for the instance |
| LDS | `connect/APP/CELL/CALLER` | inside the proxy: what arrives through CONNECT |
| LDS | `gateway/APP`, `call/NODE/APP/CELL/CALLER` | from outside; from `bedstone call` |
| RDS | `outbound/APP/CELL/CALLER`, `service/APP/CELL/CALLER/CALLEE` | whom a caller may reach |
| RDS | `inbound/APP/CELL/WORKLOAD/INSTANCE`, `gateway/APP` | |
| CDS | `to/APP/CELL/CALLER/CALLEE` | CALLEE, reached with CALLER's certificate |
| CDS | `program/APP/CELL/WORKLOAD/INSTANCE` | the program itself |
| CDS | `connect/APP/CELL/CALLER`, `database/APP/CELL/DATABASE` | |
| EDS | `APP/CELL/WORKLOAD` | shared by the clusters of all callers |

A proxyless gRPC client has names of its own: LDS `CALLEE`, CDS and EDS `APP/CELL/CALLEE`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

GATEWAY = "gateway"
OPERATOR = "operator"

SDS_CLUSTER = "bedstone_sds"
"""The static cluster of every proxy's bootstrap that is the node's secret service."""

COLLECTOR_CLUSTER = "bedstone_collector"
"""The static cluster that is the node's collector, as OTLP over gRPC."""

TELEMETRY_CLUSTER = "bedstone_telemetry"
"""The static cluster that is the node's collector, as OTLP over HTTP."""

BUNDLE_SECRET = "bundle"  # noqa: S105 - the name of a secret is public
"""The SDS secret with the domain's trust bundle; a certificate's secret is named by its id."""


DENIED = "denied/"
"""How the names of listeners begin that a gRPC client asked for and may not have."""

CONTROL = "control"
"""The cluster that is the server's own address, for gRPC clients inside network namespaces."""

_OF_WORKLOAD = (
    *("outbound", "inbound", "service", "connect"),
    *("program", "direct", "control", "telemetry"),
)


class Type(StrEnum):
    """The xDS types the mesh serves, as type URLs; also their short names by `.name`."""

    CDS = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
    EDS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
    LEDS = "type.googleapis.com/envoy.config.endpoint.v3.LbEndpoint"
    LDS = "type.googleapis.com/envoy.config.listener.v3.Listener"
    RDS = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"


class Flavour(StrEnum):
    """The kinds of client; resources are translated for each."""

    ENVOY = "envoy"
    GRPC = "grpc"


class Key(NamedTuple):
    """One resource, as one kind of client sees it."""

    flavour: Flavour
    type: Type
    name: str


class Service(NamedTuple):
    """The instances of a workload in one cell."""

    app: str
    cell: str
    workload: str

    def __str__(self) -> str:
        return f"{self.app}/{self.cell}/{self.workload}"


class Caller(NamedTuple):
    """An identity that calls, within a cell: a workload, `gateway` or `operator`."""

    app: str
    cell: str
    identity: str

    def __str__(self) -> str:
        return f"{self.app}/{self.cell}/{self.identity}"


def spiffe(domain: str, app: str, identity: str) -> str:
    """The SPIFFE id of a workload (or `gateway`, `operator`) of an app."""
    return f"spiffe://{domain}/{app}/{identity}"


def to_cluster(caller: Caller, callee: str) -> str:
    """Name of the cluster by which a caller reaches a service."""
    return f"to/{caller}/{callee}"


def leds_collection(domain: str, service: Service) -> str:
    """The glob collection (xDS TP1) with one resource for every endpoint of a large service."""
    return f"xdstp://{domain}/envoy.config.endpoint.v3.LbEndpoint/{service}/*"


def leds_endpoint(domain: str, service: Service, instance: str) -> str:
    """The name of one endpoint in its collection."""
    return f"xdstp://{domain}/envoy.config.endpoint.v3.LbEndpoint/{service}/{instance}"


def subject_of(name: str) -> tuple[str, str]:  # noqa: PLR0911 - a table
    """The app and the part of its manifest that a resource is about.

    The part is `gateway` or `workloads.NAME`; both are empty where a name is not of the mesh.
    """
    match name.split("/"):
        case ["gateway", app] | ["to", app, _, "gateway", *_]:
            return app, "gateway"
        case ["call", _, app, *_]:
            return app, ""
        case ["denied", app, _, workload, _]:
            return app, f"workloads.{workload}"
        case [kind, app, _, workload, *_] if kind in _OF_WORKLOAD:
            return app, f"workloads.{workload}"
        case ["database", app, _, database]:
            return app, f"databases.{database}"
        case ["database", app, _, workload, *_] | ["to", app, _, workload, *_]:
            return app, f"workloads.{workload}"
        case [app, _, workload]:
            return app, f"workloads.{workload}"
        case ["xdstp:", "", _, _, app, _, workload, *_]:
            return app, f"workloads.{workload}"
        case _:
            return "", ""
