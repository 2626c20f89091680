"""Spans and records of requests, as proxies make them for the node's collector.

Rules:
- What is sampled, written down and tapped is governed by runtime keys (`bedstone.telemetry.
  requests`), so that no listener changes for it.
- A trace is begun, or taken on from outside, with a decision of our own: an outsider's `sampled`
  counts for nothing, his trace id does (W3C Trace Context §3.2.2.5, §4.3). Within the mesh the
  decision is kept. Sampled or not, `traceparent` is passed on, so that each request has a trace.
- Failed and slow requests are written down at every hop, whatever was decided.

How Envoy (1.40) decides: a span is made if the trace that a request belongs to is sampled *and* the
request is traceable. Traceable is the share `tracing.random_sampling` of requests, by the first
digits of their `x-request-id`, and every request that has `x-envoy-force-trace`. The application's
own `x-request-id` passes unchanged: it is put aside where the request enters, and put back by the
route.
"""

from __future__ import annotations

from typing import Any

from bedstone.control.mesh import names
from bedstone.control.mesh.protos import (
    OpenTelemetryAccessLogConfig,
    OpenTelemetryConfig,
    UuidRequestIdConfig,
    packed,
    seconds,
    typed,
)
from bedstone.control.mesh.replies import header
from bedstone.telemetry import requests
from bedstone.telemetry.context import TRACEPARENT

REQUEST_ID = "x-request-id"
_SET_ASIDE = "x-bedstone-request-id"
_FORCE = "x-envoy-force-trace"
OWN_HEADERS = (_SET_ASIDE, _FORCE)
"""Removed before a request leaves the proxy."""
RESTORE: dict[str, Any] = {
    "request_headers_to_remove": [REQUEST_ID],
    "request_headers_to_add": [header(REQUEST_ID, f"%REQ({_SET_ASIDE})%")],
}
"""Options of a virtual host: the application's own request id, as it came."""
_DECIDE_BY = [
    {"append": header(_SET_ASIDE, f"%REQ({REQUEST_ID})%")},
    {"append": header(REQUEST_ID, "%UNIQUE_ID%")},
]
BEGIN = [
    *_DECIDE_BY,
    # version, trace id and span id are 53 characters; the flags after them are ours
    {"append": header(TRACEPARENT, f"%REQ({TRACEPARENT}):53%01", action="OVERWRITE_IF_EXISTS")},
]
"""Mutations of a request from outside: what follows decides whether its trace is sampled."""
CONTINUE = [*_DECIDE_BY, {"append": header(_FORCE, f"%REQ({TRACEPARENT})%")}]
"""Mutations of a request of an instance: one that is part of a trace is sampled as that is."""
_COLLECTOR = {"envoy_grpc": {"cluster_name": names.COLLECTOR_CLUSTER}}
_SPANS_HELD = 4096
_FLUSH = 0.5


def spans(hop: str) -> dict[str, Any]:
    """Options of an HTTP connection manager: its spans, which say at which hop they were made."""
    provider = OpenTelemetryConfig(
        grpc_service=_COLLECTOR, service_name="proxy", max_cache_size={"value": _SPANS_HELD}
    )
    return {
        "tracing": {
            "provider": typed("envoy.tracers.opentelemetry", provider),
            "random_sampling": {"value": 100},
            # a caller's `x-client-trace-id` decides nothing
            "client_sampling": {"value": 0},
            "max_path_tag_length": {"value": 512},
            "custom_tags": [
                {"tag": requests.HOP_TAG, "literal": {"value": hop}},
                {"tag": requests.CALLER_TAG, "value": "%DOWNSTREAM_PEER_URI_SAN%"},
                {"tag": requests.ROUTE_TAG, "value": "%ROUTE_NAME%"},
            ],
        },
        "request_id_extension": {
            "typed_config": packed(UuidRequestIdConfig(pack_trace_reason={"value": False}))
        },
    }


def as_decided() -> dict[str, Any]:
    """An option of an HTTP connection manager: a request is sampled as its trace is."""
    config = UuidRequestIdConfig(
        pack_trace_reason={"value": False}, use_request_id_for_trace_sampling={"value": False}
    )
    return {"request_id_extension": {"typed_config": packed(config)}}


NEVER = {
    "client_sampling": {"numerator": 0},
    "random_sampling": {"numerator": 0},
    "overall_sampling": {"numerator": 0},
}
"""Sampling of a route that carries other requests, each of which has a span of its own."""


def records() -> dict[str, Any]:
    """The access logger that writes failed and slow requests down, and those that are tapped."""
    config = OpenTelemetryAccessLogConfig(
        common_config={
            "log_name": "requests",
            "transport_api_version": "V3",
            "grpc_service": _COLLECTOR,
            "buffer_flush_interval": seconds(_FLUSH),
        },
        disable_builtin_labels=True,
        body={"string_value": requests.RECORD},
    )
    grpc = {"name": "content-type", "string_match": {"prefix": "application/grpc"}}
    failures = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL")
    failed = _any(
        _compared("status_code_filter", 500, "bedstone.failed_status"),
        {"response_flag_filter": {}},
        _compared("duration_filter", requests.SLOW_MILLISECONDS, requests.SLOW_KEY),
        _all(
            {"header_filter": {"header": grpc}},
            {"grpc_status_filter": {"statuses": [*failures, "UNAVAILABLE", "DATA_LOSS"]}},
        ),
    )
    # a tunnel is as slow as it is open; what passes through it is written down by itself
    tunnel = {"name": ":method", "string_match": {"exact": "CONNECT"}, "invert_match": True}
    wanted = _any(
        _all(failed, _share(requests.KEPT_KEY, 100)),
        _share(requests.TAP_KEY, 0),
    )
    return {
        **typed("envoy.access_loggers.open_telemetry", config),
        "filter": _all(wanted, {"header_filter": {"header": tunnel}}),
    }


def _any(*filters: dict[str, Any]) -> dict[str, Any]:
    return {"or_filter": {"filters": list(filters)}}


def _all(*filters: dict[str, Any]) -> dict[str, Any]:
    return {"and_filter": {"filters": list(filters)}}


def _compared(kind: str, value: int, key: str) -> dict[str, Any]:
    return {
        kind: {"comparison": {"op": "GE", "value": {"default_value": value, "runtime_key": key}}}
    }


def _share(key: str, percent: int) -> dict[str, Any]:
    return {
        "runtime_filter": {
            "runtime_key": key,
            "percent_sampled": {"numerator": percent},
            "use_independent_randomness": True,
        }
    }
