"""Routes: which requests go to which service, what is retried, and how long it may take.

Rules:
- Workloads that share a transaction log reach each other's `/.bedstone/transactions/`, and only
  they do: whoever owns a transaction must be able to end it, whatever `uses` says.
- What services serve each other below `/.bedstone/` is closed to the gateway.
- Default deny: a name that the caller does not declare in `uses` is answered with 403.
- An idempotent request (RFC 9110 §9.2.2) is tried three times, on another instance where there is
  one, after any failure of the mesh or the program's connection. Any other is tried again only
  where it was surely not applied.
- A deadline that the caller sends (`x-envoy-upstream-rq-timeout-ms`, `grpc-timeout`) bounds all
  tries together; without one, the callee's `timeout` does.
- What an inbound proxy's answer says of the outcome comes from the mesh only: a program's own
  `x-bedstone-outcome` is removed, because a program that passes on the answer of a service behind
  it may itself have applied something.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from bedstone.control.mesh import counting, names, tracing
from bedstone.control.mesh.names import Caller
from bedstone.control.mesh.protos import (
    PreviousHostsPredicate,
    RBACPerRoute,
    RouteConfiguration,
    packed,
    seconds,
    typed,
)
from bedstone.control.mesh.replies import NOT_APPLIED, body, header
from bedstone.model.spec import Gateway
from bedstone.telemetry.context import CALLER, OUTCOME, TIMEOUT_IN, TRANSACTION

DEFAULT_TIMEOUT = 60.0
RBAC_FILTER = "envoy.filters.http.rbac"
_IDEMPOTENT = {
    "name": ":method",
    "string_match": {"safe_regex": {"regex": "GET|HEAD|PUT|DELETE|OPTIONS|TRACE"}},
}
_NO_TRANSACTION = {"name": TRANSACTION, "present_match": False}
"""Done twice inside a transaction, a request is two branches of it: both would be committed."""
_NOT_APPLIED = [{"name": OUTCOME, "string_match": {"exact": NOT_APPLIED}}]
ORIGIN = "x-bedstone-origin"
"""Set and removed within one proxy; see `listeners`."""
_PROXY_HEADERS = ("proxy-authorization", "proxy-connection")
_OWN_HEADERS = (ORIGIN, "x-envoy-internal", *tracing.OWN_HEADERS)
_PHASE_TWO = {"prefix": "/.bedstone/transactions/"}
"""Where services take part in transactions; see `bedstone.transactions.web`."""
_DEADLINE = "x-bedstone-deadline"
_SEND_DEADLINE = header(_DEADLINE, f"%REQ({TIMEOUT_IN})%")
"""How a deadline passes between proxies: the receiving one would take away Envoy's own header. It
is enforced where the call begins, and the end of the stream tells everybody behind."""


class Callee(NamedTuple):
    """What routes depend on of a workload, so that nothing else of it changes them."""

    protocol: str
    timeout: float | None


def _retry(on: str) -> dict[str, Any]:
    return {
        "retry_on": on,
        "num_retries": {"value": 2},
        "retriable_headers": _NOT_APPLIED,
        "retry_host_predicate": [
            typed("envoy.retry_host_predicates.previous_hosts", PreviousHostsPredicate())
        ],
        "host_selection_retry_max_attempts": 5,
        "retry_back_off": {"base_interval": seconds(0.01), "max_interval": seconds(0.25)},
    }


def _retry_idempotent() -> dict[str, Any]:
    return _retry("connect-failure,refused-stream,reset,gateway-error,retriable-headers")


def _retry_unapplied() -> dict[str, Any]:
    return _retry("connect-failure,refused-stream,reset-before-request,retriable-headers")


def _action(cluster: str, timeout: float | None, **more: Any) -> dict[str, Any]:
    limit = DEFAULT_TIMEOUT if timeout is None else timeout
    return {"cluster": cluster, "timeout": seconds(limit), **more}


def service_routes(
    cluster: str,
    callee: Callee,
    *,
    match: dict[str, Any] | None = None,
    timeout: float | None = None,
    counted: str = "",
    **more: Any,
) -> list[dict[str, Any]]:
    """The routes to one service, for requests that `match` (default: all).

    `counted` is their name, in statistics and spans.
    """
    match = match or {"prefix": "/"}
    timeout = callee.timeout if timeout is None else timeout
    idempotent = {**match, "headers": [_IDEMPOTENT, _NO_TRANSACTION]}
    routes: list[dict[str, Any]] = []
    if callee.protocol != "http":
        # a gRPC stream may be long: its own `grpc-timeout` bounds it, and a declared timeout
        routes.append(
            {
                "match": {**match, "grpc": {}},
                "route": {
                    "cluster": cluster,
                    "timeout": seconds(timeout or 0),
                    "max_stream_duration": {"grpc_timeout_header_max": seconds(timeout or 0)},
                    "retry_policy": _retry_unapplied(),
                    **more,
                },
            }
        )
    routes += [
        {
            "match": idempotent,
            "route": _action(cluster, timeout, retry_policy=_retry_idempotent(), **more),
        },
        {
            "match": match,
            "route": _action(cluster, timeout, retry_policy=_retry_unapplied(), **more),
        },
    ]
    return (
        [{**route, "name": counted, "stat_prefix": counted} for route in routes]
        if counted
        else routes
    )


def _denied(caller: Caller) -> dict[str, Any]:
    matches: tuple[dict[str, Any], ...] = ({"prefix": "/"}, {"connect_matcher": {}})
    return {
        "name": "denied",
        "domains": ["*"],
        "routes": [
            {
                "match": match,
                "direct_response": {
                    "status": 403,
                    "body_format": body(
                        "denied",
                        f'"{caller.identity}" does not declare "%REQ(:AUTHORITY)%" in uses',
                        f"add it to workloads.{caller.identity}.uses",
                    ),
                },
            }
            for match in matches
        ],
    }


def outbound(
    caller: Caller,
    callees: tuple[tuple[str, Callee], ...],
    participants: tuple[tuple[str, Callee], ...] = (),
) -> Any:
    """The routes of a caller's HTTP proxy: by the host name of the request.

    `participants` are reached for the second phase of transactions only.
    """
    denied = _denied(caller)
    hosts = [
        {
            "name": name,
            "domains": [name],
            **tracing.RESTORE,
            "routes": [
                {
                    "match": {"connect_matcher": {}},
                    "route": {
                        "cluster": f"connect/{caller}",
                        "timeout": seconds(0),
                        "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
                    },
                    "tracing": tracing.NEVER,
                },
                *service_routes(names.to_cluster(caller, name), spec),
            ],
        }
        for name, spec in callees
    ]
    hosts += [
        {
            "name": name,
            "domains": [name],
            **tracing.RESTORE,
            "routes": [
                *service_routes(names.to_cluster(caller, name), spec, match=_PHASE_TWO),
                *denied["routes"],
            ],
        }
        for name, spec in participants
    ]
    return RouteConfiguration(
        name=f"outbound/{caller}",
        ignore_port_in_host_matching=True,
        request_headers_to_add=[_SEND_DEADLINE],
        request_headers_to_remove=(*_PROXY_HEADERS, *_OWN_HEADERS),
        validate_clusters={"value": False},
        virtual_hosts=[*hosts, denied],
    )


def service(caller: Caller, callee: str, spec: Callee) -> Any:
    """The routes of an address that goes to one service, whatever the host name."""
    return RouteConfiguration(
        name=f"service/{caller}/{callee}",
        request_headers_to_add=[_SEND_DEADLINE],
        request_headers_to_remove=_OWN_HEADERS,
        validate_clusters={"value": False},
        virtual_hosts=[
            {
                "name": callee,
                "domains": ["*"],
                **tracing.RESTORE,
                "routes": service_routes(names.to_cluster(caller, callee), spec),
            }
        ],
    )


def _only(allowed: tuple[str, ...], workload: str) -> dict[str, Any]:
    """The filter configuration that lets in certificates with one of these SPIFFE ids."""
    policies = {}
    if allowed:
        policies[workload] = {
            "permissions": [{"any": True}],
            "principals": [
                {"authenticated": {"principal_name": {"exact": identity}}} for identity in allowed
            ],
        }
    rules = {"action": "ALLOW", "policies": policies}
    return {RBAC_FILTER: packed(RBACPerRoute(rbac={"rules": rules}))}


def inbound(
    path: str,
    protocol: str,
    allowed: tuple[str, ...],
    workload: str,
    coordinators: tuple[str, ...] = (),
) -> Any:
    """The routes to an instance's program, for callers with one of the `allowed` SPIFFE ids.

    `coordinators` alone may ask for the second phase of transactions. The identities are here and
    not in the listener, so that a change of them drains nothing.
    """
    route = {
        # what a route adds comes before what the whole configuration removes
        "request_headers_to_add": [
            header(CALLER, "%DOWNSTREAM_PEER_URI_SAN%"),
            header(TIMEOUT_IN, f"%REQ({_DEADLINE})%"),
        ],
        "route": {
            "cluster": f"program/{path}",
            # the caller's proxy enforces the deadline
            "timeout": seconds(0),
            **(
                {"max_stream_duration": {"grpc_timeout_header_max": seconds(0)}}
                if protocol != "http"
                else {}
            ),
        },
    }
    routes: list[dict[str, Any]] = [{"match": {"prefix": "/"}, **route}]
    if coordinators:
        second = _only(coordinators, workload)
        routes.insert(0, {"match": _PHASE_TWO, **route, "typed_per_filter_config": second})
    return RouteConfiguration(
        name=f"inbound/{path}",
        validate_clusters={"value": False},
        request_headers_to_remove=[_DEADLINE],
        response_headers_to_remove=[OUTCOME],
        typed_per_filter_config=_only(allowed, workload),
        virtual_hosts=[{"name": path, "domains": ["*"], "routes": routes}],
    )


def _gateway_match(path: str) -> list[dict[str, Any]]:
    prefix = path.rstrip("/")
    if not prefix:
        return [{"prefix": "/"}]
    return [{"path_separated_prefix": prefix}]


def gateway(caller: Caller, declared: Gateway, workloads: tuple[tuple[str, Callee], ...]) -> Any:
    """The routes of requests from outside: the longest path wins, at a segment's boundary."""
    specs = dict(workloads)
    by_host: dict[str | None, list[dict[str, Any]]] = {}
    for route in sorted(declared.routes, key=lambda r: len(r.path.rstrip("/")), reverse=True):
        if route.to not in specs:
            continue
        more: dict[str, Any] = {}
        if route.strip and route.path.rstrip("/"):
            # "/api" and "/api/x" become "/" and "/x"
            more["regex_rewrite"] = {
                "pattern": {"regex": f"^{_escaped(route.path.rstrip('/'))}/*"},
                "substitution": "/",
            }
        where = f"{route.host or ''}{route.path}"
        for match in _gateway_match(route.path):
            by_host.setdefault(route.host, []).extend(
                service_routes(
                    names.to_cluster(caller, route.to),
                    specs[route.to],
                    match=match,
                    timeout=route.timeout,
                    counted=counting.route_prefix(caller.app, route.to, where),
                    **more,
                )
            )
    anywhere = by_host.pop(None, [])
    hosts: list[dict[str, Any]] = [
        # a route without a host is for every host, also for those that others name
        {
            # without dots, which would end a part of the name of a statistic
            "name": str(host).replace(".", "/"),
            "domains": [host],
            **tracing.RESTORE,
            "routes": [_internal(), *_merged(routes, anywhere)],
        }
        for host, routes in sorted(by_host.items(), key=lambda item: str(item[0]))
    ]
    everywhere = [_internal(), *anywhere, _unrouted()]
    hosts.append({"name": "any", "domains": ["*"], **tracing.RESTORE, "routes": everywhere})
    return RouteConfiguration(
        name=f"gateway/{caller.app}",
        ignore_port_in_host_matching=True,
        validate_clusters={"value": False},
        request_headers_to_add=[_SEND_DEADLINE],
        request_headers_to_remove=tracing.OWN_HEADERS,
        response_headers_to_remove=["x-envoy-upstream-service-time"],
        virtual_hosts=hosts,
    )


def _escaped(path: str) -> str:
    return "".join(c if c.isalnum() or c in "/_-" else f"\\{c}" for c in path)


def _merged(mine: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def length(route: dict[str, Any]) -> int:
        return len(route["match"].get("path_separated_prefix", ""))

    return [*sorted([*mine, *others], key=length, reverse=True), _unrouted()]


def _internal() -> dict[str, Any]:
    """Refuse, before anything else, what services serve each other; also behind a stripped path.

    Who calls is also checked there, so a spelling that this doesn't match is refused all the same.
    """
    return {
        "match": {"safe_regex": {"regex": r".*/\.bedstone(/.*)?"}},
        "direct_response": {
            "status": 403,
            "body_format": body(
                "denied",
                "addresses below .bedstone are not for requests from outside",
                "call it from a workload of the app",
            ),
        },
    }


def _unrouted() -> dict[str, Any]:
    return {
        "match": {"prefix": "/"},
        "direct_response": {
            "status": 404,
            "body_format": body(
                "not_found", "no route of the gateway matches", "add one to gateway.routes"
            ),
        },
    }
