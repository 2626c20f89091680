"""Listeners: where a proxy accepts connections, and as whom.

Rules:
- A listener depends only on addresses and identities; what is allowed and where it goes is in
  routes. So a change of the manifest drains no connection.
- A port has one owner: `SO_REUSEPORT` is off, so a taken port is rejected and reported, and never
  shared in silence with another proxy of the same user.
- The gateway removes every internal header from outside; the inbound listener demands a
  certificate of the domain.
"""

from __future__ import annotations

from typing import Any

from bedstone.control.mesh import counting, names, tracing
from bedstone.control.mesh.clusters import ADS, socket_address, tls
from bedstone.control.mesh.names import Caller
from bedstone.control.mesh.protos import (
    RBAC,
    CustomHeaderConfig,
    DownstreamTlsContext,
    EarlyHeaderMutation,
    HttpConnectionManager,
    Listener,
    Router,
    TcpProxy,
    seconds,
    typed,
)
from bedstone.control.mesh.replies import forbidden, header, local_replies, proxy_credential
from bedstone.control.mesh.routes import ORIGIN, RBAC_FILTER
from bedstone.model.resources import Address
from bedstone.telemetry.context import SENDER

_INTERNAL_HEADERS = ("x-envoy-", "x-bedstone-")
_DISGUISED = r"x_(envoy|bedstone).*|x-(envoy|bedstone).*_.*|x[-_]forwarded[-_]client[-_]cert"
"""Names that WSGI and CGI programs cannot tell from those of internal headers (RFC 3875 §4.1.18:
`-` and `_` both become `_`), so that they would read a caller's word as the mesh's."""
_STREAM_IDLE = 3600.0
_TELEMETRY_TIMEOUT = 10.0
_LOOPBACK = "127.0.0.1"


def _router() -> dict[str, Any]:
    return typed("envoy.filters.http.router", Router())


def _http(name: str, routes: str, **options: Any) -> dict[str, Any]:
    """The filter that speaks HTTP/1.1 and HTTP/2 and takes its routes from RDS."""
    common: dict[str, Any] = {
        "stat_prefix": name,
        "codec_type": "AUTO",
        "rds": {"route_config_name": routes, "config_source": ADS},
        "http_filters": [_router()],
        "access_log": [counting.exceptional(name), tracing.records()],
        "http2_protocol_options": {"allow_connect": True},
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "stream_idle_timeout": seconds(_STREAM_IDLE),
        "local_reply_config": local_replies(),
        # the request's identifiers belong to the application: they pass unchanged
        "generate_request_id": {"value": False},
        "server_header_transformation": "PASS_THROUGH",
        "normalize_path": {"value": False},
        "skip_xff_append": True,
        **tracing.spans(name),
    }
    return typed(
        "envoy.filters.network.http_connection_manager",
        HttpConnectionManager(**{**common, **options}),
    )


def _without(*mutations: dict[str, Any]) -> dict[str, Any]:
    """Options that remove disguised internal headers, and others, before anything reads them."""
    disguised = {"remove_on_match": {"key_matcher": {"safe_regex": {"regex": _DISGUISED}}}}
    clean = EarlyHeaderMutation(mutations=[disguised, *mutations])
    return {
        "early_header_mutation_extensions": [
            typed("envoy.http.early_header_mutation.header_mutation", clean)
        ]
    }


def _trusted() -> dict[str, Any]:
    """Options by which a request counts as an instance's, whatever `x-forwarded-for` it carries.

    Envoy takes the deadline headers away from any other, also where the peer is known by its
    certificate or its own listener. What counts is the address in a header that is always set here.
    """
    origin = {"append": header(ORIGIN, _LOOPBACK)}
    mark = EarlyHeaderMutation(mutations=[origin, *tracing.CONTINUE])
    return {
        "early_header_mutation_extensions": [
            typed("envoy.http.early_header_mutation.header_mutation", mark)
        ],
        "original_ip_detection_extensions": [
            typed(
                "envoy.http.original_ip_detection.custom_header",
                CustomHeaderConfig(
                    header_name=ORIGIN, allow_extension_to_set_address_as_trusted=True
                ),
            )
        ],
        "internal_address_config": {
            "cidr_ranges": [{"address_prefix": _LOOPBACK, "prefix_len": {"value": 32}}]
        },
    }


def _listener(name: str, address: dict[str, Any], filters: list[Any], **chain: Any) -> Any:
    return Listener(
        name=name,
        address=address,
        enable_reuse_port={"value": False},
        per_connection_buffer_limit_bytes={"value": 1 << 20},
        filter_chains=[{"name": name, "filters": filters, **chain}],
    )


def outbound(path: str, address: Address, routes: str, credential: str | None) -> Any:
    """An instance's HTTP proxy; with `credential`, for whoever proves to be that instance."""
    options: dict[str, Any] = {
        **_trusted(),
        "upgrade_configs": [{"upgrade_type": "websocket"}, {"upgrade_type": "CONNECT"}],
    }
    if credential is not None:
        exact = {"name": "proxy-authorization", "string_match": {"exact": credential}}
        policy = {"permissions": [{"header": exact}], "principals": [{"any": True}]}
        options |= {
            "http_filters": [
                typed(
                    RBAC_FILTER,
                    RBAC(rules={"action": "ALLOW", "policies": {"instance": policy}}),
                ),
                _router(),
            ],
            "local_reply_config": local_replies(proxy_credential(credential)),
        }
    name = f"outbound/{path}"
    return _listener(name, socket_address(address), [_http(name, routes, **options)])


def service(path: str, callee: str, address: Address, routes: str) -> Any:
    """An address that goes to one service."""
    name = f"service/{path}/{callee}"
    return _listener(name, socket_address(address), [_http(name, routes, **_trusted())])


def connect(caller: Caller) -> Any:
    """What arrives through CONNECT: HTTP/1.1 or HTTP/2 with the caller's own routes."""
    name = f"connect/{caller}"
    return Listener(
        name=name,
        internal_listener={},
        filter_chains=[
            {"name": name, "filters": [_http(name, f"outbound/{caller}", **_trusted())]}
        ],
    )


def call(node: str, caller: Caller, socket: str) -> Any:
    """The Unix socket through which `bedstone call` enters the mesh as an identity."""
    name = f"call/{node}/{caller}"
    return _listener(
        name,
        {"pipe": {"path": socket, "mode": 0o600}},
        [_http(name, f"outbound/{caller}", **_trusted())],
    )


def passed_on(name: str, address: Address, cluster: str) -> Any:
    """An address inside an instance's network namespace whose bytes go to a cluster as they are."""
    proxy = typed(
        "envoy.filters.network.tcp_proxy",
        TcpProxy(stat_prefix=name, cluster=cluster, idle_timeout=seconds(0)),
    )
    return _listener(name, socket_address(address), [proxy])


def telemetry(path: str, address: Address) -> Any:
    """Where an instance's own traces, metrics and logs go: to the node's collector.

    Who sends them is said here, over whatever the sender says of itself.
    """
    name = f"telemetry/{path}"
    to_grpc = {"cluster": names.COLLECTOR_CLUSTER, "timeout": seconds(_TELEMETRY_TIMEOUT)}
    to_http = {"cluster": names.TELEMETRY_CLUSTER, "timeout": seconds(_TELEMETRY_TIMEOUT)}
    manager = HttpConnectionManager(
        stat_prefix=name,
        codec_type="AUTO",
        route_config={
            "name": name,
            "request_headers_to_add": [header(SENDER, path)],
            "virtual_hosts": [
                {
                    "name": "collector",
                    "domains": ["*"],
                    "routes": [
                        {"match": {"prefix": "/", "grpc": {}}, "route": to_grpc},
                        {"match": {"prefix": "/"}, "route": to_http},
                    ],
                }
            ],
        },
        http_filters=[_router()],
        generate_request_id={"value": False},
        stream_idle_timeout=seconds(_TELEMETRY_TIMEOUT),
        request_timeout=seconds(_TELEMETRY_TIMEOUT),  # also of a sender that trickles
    )
    filters = [typed("envoy.filters.network.http_connection_manager", manager)]
    return _listener(name, socket_address(address), filters)


def inbound(domain: str, path: str, address: Address) -> Any:
    """Where an instance accepts mutual TLS, for the identities that its route allows."""
    app, _, workload, _ = path.split("/")
    name = f"inbound/{path}"
    denied = forbidden(
        f'"%DOWNSTREAM_PEER_URI_SAN%" does not declare "{workload}" in uses',
        "declare it in the manifest",
    )
    manager = _http(
        name,
        name,
        # without rules of its own; the route's apply. A missing route denies by itself
        http_filters=[
            typed(RBAC_FILTER, RBAC(rules={"action": "ALLOW", "policies": {}})),
            _router(),
        ],
        local_reply_config=local_replies(denied),
        forward_client_cert_details="SANITIZE",
        **tracing.as_decided(),
        **_without(),
    )
    return _listener(
        name,
        socket_address(address),
        [manager],
        transport_socket=typed(
            "envoy.transport_sockets.tls",
            DownstreamTlsContext(
                common_tls_context=tls(names.spiffe(domain, app, workload), "h2"),
                require_client_certificate={"value": True},
                # a resumed session would outlive the certificate it was made with
                disable_stateless_session_resumption=True,
                disable_stateful_session_resumption=True,
            ),
        ),
    )


def gateway(app: str, address: str, port: int) -> Any:
    """Where requests from outside enter."""
    name = f"gateway/{app}"
    internal = [
        {"remove_on_match": {"key_matcher": {"prefix": prefix, "ignore_case": True}}}
        for prefix in _INTERNAL_HEADERS
    ]
    manager = _http(
        name,
        name,
        **_without(*internal, *tracing.BEGIN),
        use_remote_address={"value": True},
        skip_xff_append=False,
        normalize_path={"value": True},
        merge_slashes=True,
        path_with_escaped_slashes_action="KEEP_UNCHANGED",
        request_headers_timeout=seconds(30),
        common_http_protocol_options={
            "idle_timeout": seconds(300),
            "headers_with_underscores_action": "ALLOW",
        },
        http2_protocol_options={
            "allow_connect": True,
            "max_concurrent_streams": {"value": 100},
            "initial_stream_window_size": {"value": 1 << 16},
            "initial_connection_window_size": {"value": 1 << 20},
        },
    )
    where = {"socket_address": {"address": address, "port_value": port}}
    return _listener(name, where, [manager])
