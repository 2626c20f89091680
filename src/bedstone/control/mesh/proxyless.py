"""What a proxyless gRPC client gets: only what the stock `grpcio` xDS client supports.

Rules (gRFCs A27, A28, A29, A31): the listener carries its routes inline; mutual TLS comes from the
bootstrap's certificate provider `default`, and not from SDS; the load-balancing policy is round
robin, as an unknown one rejects the whole answer; a time-out is `max_stream_duration`.
"""

from __future__ import annotations

from typing import Any

from bedstone.control.mesh import names
from bedstone.control.mesh.clusters import ADS
from bedstone.control.mesh.names import Service
from bedstone.control.mesh.protos import (
    Cluster,
    HttpConnectionManager,
    Listener,
    Router,
    UpstreamTlsContext,
    packed,
    seconds,
    typed,
)

PROVIDER = "default"
"""The certificate provider instance that the client's bootstrap must name so."""


def listener(service: Service, timeout: float | None) -> Any:
    """`xds:///WORKLOAD`."""
    duration: dict[str, Any] = {"grpc_timeout_header_max": seconds(timeout or 0)}
    if timeout is not None:
        duration["max_stream_duration"] = seconds(timeout)
    route = {"cluster": str(service), "max_stream_duration": duration}
    manager = HttpConnectionManager(
        route_config={
            "name": service.workload,
            "virtual_hosts": [
                {
                    "name": service.workload,
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": ""}, "route": route}],
                }
            ],
        },
        http_filters=[typed("envoy.filters.http.router", Router())],
    )
    return Listener(name=service.workload, api_listener={"api_listener": packed(manager)})


def denied(name: str) -> Any:
    """A name that the client does not declare in `uses`: every call fails at once."""
    manager = HttpConnectionManager(
        route_config={"name": "not declared in uses"},
        http_filters=[typed("envoy.filters.http.router", Router())],
    )
    return Listener(name=name, api_listener={"api_listener": packed(manager)})


def cluster(domain: str, service: Service) -> Any:
    """The service, with mutual TLS by the client's own certificate."""
    accept = names.spiffe(domain, service.app, service.workload)
    context = UpstreamTlsContext(
        common_tls_context={
            "tls_certificate_provider_instance": {"instance_name": PROVIDER},
            "validation_context": {
                "ca_certificate_provider_instance": {"instance_name": PROVIDER},
                "match_subject_alt_names": [{"exact": accept}],
            },
        }
    )
    return Cluster(
        name=str(service),
        type="EDS",
        eds_cluster_config={"eds_config": ADS, "service_name": str(service)},
        lb_policy="ROUND_ROBIN",
        transport_socket=typed("envoy.transport_sockets.tls", context),
    )
