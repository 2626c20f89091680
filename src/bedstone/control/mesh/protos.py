"""The xDS messages that the mesh builds, and how they are encoded.

`xds-protos` has no type information, so the messages are `Any` to the type checker from here on;
the protobuf runtime refuses unknown fields and wrong types.

Rule: encoding is deterministic, because a resource's version is the digest of its bytes.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

from datetime import timedelta
from typing import Any

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_components_pb2 import LbEndpoint
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.config.trace.v3.opentelemetry_pb2 import OpenTelemetryConfig
from envoy.extensions.access_loggers.open_telemetry.v3.logs_service_pb2 import (
    OpenTelemetryAccessLogConfig,
)
from envoy.extensions.access_loggers.stats.v3.stats_pb2 import Config as StatsLogger
from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBAC, RBACPerRoute
from envoy.extensions.filters.http.router.v3.router_pb2 import Router
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (  # noqa: E501 - a module's name
    HttpConnectionManager,
)
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy
from envoy.extensions.http.early_header_mutation.header_mutation.v3.header_mutation_pb2 import (
    HeaderMutation as EarlyHeaderMutation,
)
from envoy.extensions.http.original_ip_detection.custom_header.v3.custom_header_pb2 import (
    CustomHeaderConfig,
)
from envoy.extensions.request_id.uuid.v3.uuid_pb2 import UuidRequestIdConfig
from envoy.extensions.retry.host.previous_hosts.v3.previous_hosts_pb2 import PreviousHostsPredicate
from envoy.extensions.transport_sockets.internal_upstream.v3.internal_upstream_pb2 import (
    InternalUpstreamTransport,
)
from envoy.extensions.transport_sockets.raw_buffer.v3.raw_buffer_pb2 import RawBuffer
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import (
    DownstreamTlsContext,
    UpstreamTlsContext,
)
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions
from envoy.service.discovery.v3.discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
    Resource,
)
from google.protobuf.any_pb2 import Any as AnyMessage

__all__ = [
    "RBAC",
    "AnyMessage",
    "Cluster",
    "ClusterLoadAssignment",
    "CustomHeaderConfig",
    "DeltaDiscoveryRequest",
    "DeltaDiscoveryResponse",
    "DiscoveryRequest",
    "DiscoveryResponse",
    "DownstreamTlsContext",
    "EarlyHeaderMutation",
    "HttpConnectionManager",
    "HttpProtocolOptions",
    "InternalUpstreamTransport",
    "LbEndpoint",
    "Listener",
    "OpenTelemetryAccessLogConfig",
    "OpenTelemetryConfig",
    "PreviousHostsPredicate",
    "RBACPerRoute",
    "RawBuffer",
    "RouteConfiguration",
    "Router",
    "StatsLogger",
    "TcpProxy",
    "UpstreamTlsContext",
    "UuidRequestIdConfig",
    "delta_entry",
    "encode",
    "packed",
    "seconds",
    "state_entry",
    "typed",
]


def packed(message: Any) -> AnyMessage:
    """The message in an `Any`."""
    result = AnyMessage()
    result.Pack(message, deterministic=True)
    return result


def encode(message: Any) -> bytes:
    """The message in an encoded `Any`, always the same bytes for the same content."""
    return packed(message).SerializeToString(deterministic=True)


def typed(name: str, message: Any) -> dict[str, Any]:
    """An extension: its registered name and its configuration."""
    return {"name": name, "typed_config": packed(message)}


def seconds(value: float) -> timedelta:
    """A protobuf duration."""
    return timedelta(seconds=value)


def delta_entry(name: str, version: str, data: bytes) -> bytes:
    """A resource (an encoded `Any`) as one `resources` field of a `DeltaDiscoveryResponse`.

    Encoded messages that are concatenated are merged, so a response is a join of its entries.
    """
    resource = Resource(name=name, version=version, resource=AnyMessage.FromString(data))
    return bytes(DeltaDiscoveryResponse(resources=[resource]).SerializeToString())


def state_entry(data: bytes) -> bytes:
    """A resource (an encoded `Any`) as one `resources` field of a `DiscoveryResponse`."""
    return bytes(DiscoveryResponse(resources=[AnyMessage.FromString(data)]).SerializeToString())
