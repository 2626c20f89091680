"""Spans as they leave the node: whose they are said by us, in few and known attributes.

Rules:
- The resource of a span is ours: app, cell, workload and instance of who sent it, whatever he says.
  Of a proxy's span they follow from the hop that its configuration names.
- A proxy's span, and a request that it wrote down, become the same span: the names and attributes
  of OpenTelemetry's conventions for HTTP, and ours for the hop. No query, no credential.
- What an application sends is bounded: attributes, events and their sizes; from attributes that
  hold a URL the query is taken away. Spans with no identifiers, or of another time, are refused.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from bedstone.node.collector.intake import Sender
from bedstone.telemetry import requests
from bedstone.telemetry.requests import Hop, ProxyRequest

Origin = Literal["proxy", "application", "access-log"]

NAME_LENGTH = 200
VALUE_LENGTH = 1024
ATTRIBUTES = 64
EVENTS = 32
LINKS = 8
PAST, FUTURE = 3600.0, 60.0
"""Seconds before and after now in which a span may have begun."""
_URLS = frozenset({"http.url", "http.target", "url.full", "url.query", "http.request.url"})
_IDENTIFIER = re.compile(
    r"\d+|[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}|(?=[^/]*\d)[0-9a-zA-Z_-]{16,}|[^/]{40,}"
)


class Group(NamedTuple):
    """Whose a span is, and what made it."""

    origin: Origin
    app: str
    cell: str
    service: str
    instance: str = ""
    scope: str = ""


class Told(NamedTuple):
    """A span that leaves the node."""

    group: Group
    span: Any


def shape(path: str) -> str:
    """A path with its identifiers taken out, so that requests of one kind have one name."""
    parts = path[:1000].split("/")
    named = ["{id}" if _IDENTIFIER.fullmatch(part) else part for part in parts[:10]]
    return "/".join(named)[:NAME_LENGTH]


def of_proxy(span: Any) -> Told | None:
    """A span of the proxy's tracer; None if it is of no hop of ours."""
    tags = {item.key: item.value.string_value for item in span.attributes}
    where = requests.hop(tags.get(requests.HOP_TAG, ""))
    if where is None or not _identified(span):
        return None
    source, target = requests.ends(
        where, tags.get("upstream_cluster.name", ""), tags.get(requests.CALLER_TAG, "")
    )
    flags = tags.get("response_flags", "-")
    grpc = tags.get("grpc.status_code", "")
    request = ProxyRequest(
        hop=where,
        source=source,
        target=target,
        method=tags.get("http.method", ""),
        path=_path(tags.get("http.url", "")),
        route=requests.route(tags.get(requests.ROUTE_TAG, "")),
        status=_number(tags.get("http.status_code", "")),
        flags="" if flags == "-" else flags,
        grpc=int(grpc) if grpc.isdigit() else None,
        details="",
        start=span.start_time_unix_nano / 1e9,
        seconds=max(0, span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        bytes_in=_number(tags.get("request_size", "")),
        bytes_out=_number(tags.get("response_size", "")),
        trace="",
        span="",
    )
    made = _made(request)
    made.trace_id, made.span_id = span.trace_id, span.span_id
    made.parent_span_id = span.parent_span_id
    made.start_time_unix_nano = span.start_time_unix_nano
    made.end_time_unix_nano = span.end_time_unix_nano
    return Told(_group(where, "proxy"), made)


def of_request(request: ProxyRequest) -> Told | None:
    """A request that the proxy wrote down, as a span without a parent; None without a trace."""
    if not request.trace or not request.span:
        return None
    made = _made(request)
    made.trace_id, made.span_id = bytes.fromhex(request.trace), bytes.fromhex(request.span)
    made.start_time_unix_nano = round(request.start * 1e9)
    made.end_time_unix_nano = made.start_time_unix_nano + round(request.seconds * 1e9)
    return Told(_group(request.hop, "access-log"), made)


def of_application(sender: Sender, request: Any, now: float) -> Iterator[Told | None]:
    """The spans that an instance sent, each in its bounds; None for each that is refused."""
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            group = Group(
                "application",
                sender.app,
                sender.cell,
                sender.workload,
                sender.instance,
                scope.scope.name[:100],
            )
            for span in scope.spans:
                begun = span.start_time_unix_nano / 1e9
                if not _identified(span) or not now - PAST <= begun <= now + FUTURE:
                    yield None
                else:
                    yield Told(group, _bounded(span))


def _identified(span: Any) -> bool:
    return (
        len(span.trace_id) == 16
        and len(span.span_id) == 8
        and len(span.parent_span_id) in (0, 8)
        and any(span.trace_id)
        and any(span.span_id)
    )


def _group(where: Hop, origin: Origin) -> Group:
    return Group(origin, where.app, where.cell, where.identity, where.instance)


def _made(request: ProxyRequest) -> Any:
    """The span of a request at a hop, less its identifiers and times."""
    called = request.hop.side == "outbound"
    kind = Span.SPAN_KIND_CLIENT if called else Span.SPAN_KIND_SERVER
    where = f"{request.target or '?'}{shape(request.path)}" if called else shape(request.path)
    texts = {
        "http.request.method": request.method,
        "url.path": request.path[:VALUE_LENGTH],
        "http.route": request.route,
        "bedstone.side": request.hop.side,
        "bedstone.caller": request.source,
        "bedstone.callee": request.target,
        "bedstone.flags": request.flags,
        "bedstone.details": request.details[:NAME_LENGTH],
        "error.type": request.kind,
    }
    numbers: dict[str, int | None] = {
        "http.response.status_code": request.status or None,
        "http.request.body.size": request.bytes_in or None,
        "http.response.body.size": request.bytes_out or None,
        "rpc.grpc.status_code": request.grpc,
    }
    made = Span(name=f"{request.method} {where}"[:NAME_LENGTH], kind=kind)
    for key, text in texts.items():
        if text:
            made.attributes.add(key=key).value.string_value = text
    for key, number in numbers.items():
        if number is not None:
            made.attributes.add(key=key).value.int_value = number
    if request.kind:
        made.status.code = Status.STATUS_CODE_ERROR
        made.status.message = request.kind
    return made


def _bounded(span: Any) -> Any:
    """An application's span, in its bounds; it is changed in place."""
    span.name = span.name[:NAME_LENGTH] or "unnamed"
    span.trace_state = ""
    _bound(span)
    span.status.message = span.status.message[:VALUE_LENGTH]
    if len(span.events) > EVENTS:
        del span.events[: len(span.events) - EVENTS]
    for event in span.events:
        event.name = event.name[:NAME_LENGTH]
        _bound(event)
    if len(span.links) > LINKS:
        del span.links[LINKS:]
    for link in span.links:
        link.trace_state = ""
        _bound(link)
    return span


def _bound(holder: Any) -> None:
    kept = [_bounded_attribute(item) for item in holder.attributes[:ATTRIBUTES]]
    del holder.attributes[:]
    holder.attributes.extend(item for item in kept if item is not None)


def _bounded_attribute(item: Any) -> Any:
    kind = item.value.WhichOneof("value")
    if kind == "string_value":
        text = item.value.string_value
        if item.key in _URLS:
            if item.key == "url.query":
                return None
            text = text.partition("?")[0]
        item.value.string_value = text[:VALUE_LENGTH]
    elif kind in ("array_value", "kvlist_value", "bytes_value"):
        size = item.value.ByteSize()
        if size > VALUE_LENGTH:
            cut = KeyValue(key=item.key[:NAME_LENGTH])
            cut.value.string_value = f"({size} bytes)"
            return cut
    item.key = item.key[:NAME_LENGTH]
    return item


def _path(url: str) -> str:
    rest = url.partition("://")[2] if "://" in url else url
    path = rest.partition("/")[2].partition("?")[0]
    return f"/{path}"


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0
