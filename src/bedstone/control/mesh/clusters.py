"""Clusters and endpoints: whom a proxy can connect to, and how.

Invariants:
- Between proxies it is always HTTP/2 over mutual TLS: the caller's certificate, and exactly the
  callee's SPIFFE id is accepted.
- Endpoints are named by service and not by caller, so all callers' clusters share them.
- An idle connection to a program is closed before the program would close it (servers in Python
  keep one open for 5 s), so that a request never meets a connection that is being closed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

from bedstone.control.mesh import names
from bedstone.control.mesh.names import Caller, Service
from bedstone.control.mesh.protos import (
    Cluster,
    ClusterLoadAssignment,
    HttpProtocolOptions,
    InternalUpstreamTransport,
    LbEndpoint,
    RawBuffer,
    UpstreamTlsContext,
    packed,
    seconds,
    typed,
)
from bedstone.control.registry import Endpoint
from bedstone.model.resources import Address

ADS: dict[str, Any] = {"ads": {}, "resource_api_version": "V3"}
PROGRAM_IDLE = 4.0
CONNECT_TIMEOUT = 2.0
_PROTOCOL_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_PLENTY = 100_000


def secret(name: str) -> dict[str, Any]:
    """An SdsSecretConfig: the node serves the secret, and Envoy takes renewals from it."""
    return {
        "name": name,
        "sds_config": {
            "api_config_source": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": names.SDS_CLUSTER}}],
                "set_node_on_first_message_only": True,
            },
            "resource_api_version": "V3",
            # a missing certificate must not hold back what does not need it
            "initial_fetch_timeout": seconds(3),
        },
    }


def tls(identity: str, alpn: str, accept: str | None = None) -> dict[str, Any]:
    """A CommonTlsContext: this identity's certificate, and peers of the domain only.

    With `accept`, of these only the one with that SPIFFE id.
    """
    default: dict[str, Any] = {}
    if accept is not None:
        default = {
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": accept}}]
        }
    return {
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            # as a client, Envoy offers 1.2 at most unless told
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "tls_certificate_sds_secret_configs": [secret(identity)],
        "combined_validation_context": {
            "default_validation_context": default,
            "validation_context_sds_secret_config": secret(names.BUNDLE_SECRET),
        },
        "alpn_protocols": [alpn],
    }


def socket_address(address: Address) -> dict[str, Any]:
    """A core Address."""
    result: dict[str, Any] = {"address": address.host, "port_value": address.port}
    if address.netns is not None:
        result["network_namespace_filepath"] = address.netns
    return {"socket_address": result}


def _generous() -> dict[str, Any]:
    return {
        "thresholds": [
            {
                "max_connections": {"value": _PLENTY},
                "max_pending_requests": {"value": _PLENTY},
                "max_requests": {"value": _PLENTY},
                "max_retries": {"value": _PLENTY},
            }
        ]
    }


def _http(explicit: dict[str, Any], **common: Any) -> dict[str, Any]:
    options = HttpProtocolOptions(
        explicit_http_config=explicit,
        **({"common_http_protocol_options": common} if common else {}),
    )
    return {_PROTOCOL_OPTIONS: packed(options)}


def to_service(domain: str, caller: Caller, service: Service) -> Any:
    """The cluster by which a caller reaches a service."""
    return Cluster(
        name=names.to_cluster(caller, service.workload),
        type="EDS",
        eds_cluster_config={"eds_config": ADS, "service_name": str(service)},
        connect_timeout=seconds(CONNECT_TIMEOUT),
        lb_policy="LEAST_REQUEST",
        ignore_health_on_host_removal=True,
        circuit_breakers=_generous(),
        outlier_detection={
            "interval": seconds(1),
            "base_ejection_time": seconds(2),
            "max_ejection_time": seconds(30),
            "max_ejection_percent": {"value": 50},
            "consecutive_gateway_failure": {"value": 5},
            "enforcing_consecutive_gateway_failure": {"value": 100},
            "enforcing_consecutive_5xx": {"value": 0},
            "enforcing_success_rate": {"value": 0},
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": {"value": 3},
            "enforcing_local_origin_success_rate": {"value": 0},
        },
        transport_socket=typed(
            "envoy.transport_sockets.tls",
            UpstreamTlsContext(
                common_tls_context=tls(
                    names.spiffe(domain, caller.app, caller.identity),
                    "h2",
                    accept=names.spiffe(domain, service.app, service.workload),
                ),
            ),
        ),
        typed_extension_protocol_options=_http(
            {
                "http2_protocol_options": {
                    "allow_connect": True,
                    # a peer that vanished without a word is found by this, and not by a time-out
                    "connection_keepalive": {
                        "interval": seconds(10),
                        "timeout": seconds(5),
                        "connection_idle_interval": seconds(10),
                    },
                }
            }
        ),
    )


def to_program(path: str, address: Address, protocol: str) -> Any:
    """The cluster of one instance's program, dialled inside its network namespace."""
    local = Address(host=address.host, port=address.port)
    cluster = Cluster(
        name=f"program/{path}",
        type="STATIC",
        connect_timeout=seconds(CONNECT_TIMEOUT),
        circuit_breakers=_generous(),
        load_assignment=_static(f"program/{path}", socket_address(local)),
        typed_extension_protocol_options=_http(
            {"http_protocol_options": {}}
            if protocol == "http"
            else {"http2_protocol_options": {"allow_connect": True}},
            idle_timeout=seconds(PROGRAM_IDLE),
        ),
    )
    if address.netns is not None:
        anywhere = "::" if ":" in address.host else "0.0.0.0"  # noqa: S104 - a source, not a listener
        cluster.upstream_bind_config.source_address.address = anywhere
        cluster.upstream_bind_config.source_address.port_value = 0
        cluster.upstream_bind_config.source_address.network_namespace_filepath = address.netns
    return cluster


def to_connect(caller: Caller) -> Any:
    """The cluster behind CONNECT: the caller's internal listener in the same proxy."""
    name = f"connect/{caller}"
    return Cluster(
        name=name,
        type="STATIC",
        connect_timeout=seconds(CONNECT_TIMEOUT),
        circuit_breakers=_generous(),
        load_assignment=_static(name, {"envoy_internal_address": {"server_listener_name": name}}),
        transport_socket=typed(
            "envoy.transport_sockets.internal_upstream",
            InternalUpstreamTransport(
                transport_socket=typed("envoy.transport_sockets.raw_buffer", RawBuffer())
            ),
        ),
    )


def to_address(name: str, address: Address) -> Any:
    """One address, as a cluster for listeners inside network namespaces that pass bytes on."""
    return Cluster(
        name=name,
        type="STATIC",
        connect_timeout=seconds(CONNECT_TIMEOUT),
        circuit_breakers=_generous(),
        load_assignment=_static(name, socket_address(address)),
    )


def to_place(name: str, host: str, port: int) -> Any:
    """`to_address`, for a host that may also be given by its name."""
    address = Address(host=host, port=port)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        # LOGICAL: open connections stay when the name comes to mean another address
        return Cluster(
            name=name,
            type="LOGICAL_DNS",
            dns_lookup_family="ALL",
            connect_timeout=seconds(CONNECT_TIMEOUT),
            circuit_breakers=_generous(),
            load_assignment=_static(name, socket_address(address)),
        )
    return to_address(name, address)


def _static(name: str, address: dict[str, Any]) -> dict[str, Any]:
    return {
        "cluster_name": name,
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
    }


def lb_endpoint(endpoint: Endpoint) -> Any:
    """One endpoint."""
    return LbEndpoint(
        endpoint={
            "address": {"socket_address": {"address": endpoint.host, "port_value": endpoint.port}}
        }
    )


def assignment(service: Service, endpoints: Iterable[Endpoint]) -> Any:
    """All endpoints of a service in one resource."""
    result = ClusterLoadAssignment(cluster_name=str(service))
    # one locality with a weight, which gRPC demands (gRFC A27: a locality without one is ignored)
    locality = result.endpoints.add(
        locality={"sub_zone": service.cell}, load_balancing_weight={"value": 1}
    )
    locality.lb_endpoints.extend(lb_endpoint(endpoint) for endpoint in endpoints)
    return result


def collection(domain: str, service: Service) -> Any:
    """The assignment of a large service, whose endpoints are delivered one by one (LEDS)."""
    return ClusterLoadAssignment(
        cluster_name=str(service),
        endpoints=[
            {
                "locality": {"sub_zone": service.cell},
                "load_balancing_weight": {"value": 1},
                "leds_cluster_locality_config": {
                    "leds_config": ADS,
                    "leds_collection_name": names.leds_collection(domain, service),
                },
            }
        ],
    )
