"""Spans as the control plane holds them, and how they are read from and written as OTLP.

One encoding serves the wire from nodes, the store and the export: an OTLP
`ExportTraceServiceRequest` whose resources say whose the spans are:

| attribute | |
|---|---|
| `service.name` | the workload, `gateway` or `operator` |
| `service.namespace` | the app |
| `service.instance.id` | the instance; absent for a gateway's |
| `bedstone.cell`, `bedstone.node` | |
| `bedstone.origin` | `proxy`, `application` or `access-log` |
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

from bedstone.errors import InvalidError
from bedstone.model import traces as model

Origin = Literal["proxy", "application", "access-log"]
ORIGINS: tuple[Origin, ...] = get_args(Origin)
KINDS = ("internal", "internal", "server", "client", "producer", "consumer")
"""OTLP's numbers of kinds; unspecified counts as internal."""
_CLIENT = 3
_ERROR = 2
_STATUS_KEYS = frozenset({"http.response.status_code", "http.status_code"})


class Whose(NamedTuple):
    """What a span's resource says."""

    origin: Origin
    app: str
    cell: str
    service: str
    instance: str
    node: str


@dataclass(frozen=True, slots=True)
class Span:
    """One span.

    Args:
        trace: 16 bytes.
        span: 8 bytes.
        parent: 8 bytes; empty for none.
        whose: its resource.
        name: its name.
        kind: OTLP's number.
        start: nanoseconds since the epoch.
        end: likewise; not before `start`.
        error: whether it failed. By OpenTelemetry's conventions an answer of 4xx is an error to
            the application that called; here it is not, since nobody failed.
        status: of HTTP, if it has one.
        data: the OTLP message.
    """

    trace: bytes
    span: bytes
    parent: bytes
    whose: Whose
    name: str
    kind: int
    start: int
    end: int
    error: bool
    status: int | None
    data: Any

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.end - self.start) / 1e9

    def below(self, parent: bytes) -> Span:
        """The same span with another parent."""
        from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message

        data = Message()
        data.CopyFrom(self.data)
        data.parent_span_id = parent
        return replace(self, parent=parent, data=data)


def decode(body: bytes, node: str | None = None) -> Iterator[Span]:
    """The spans of an encoded request; of `node`, if it is given.

    Raises:
        InvalidError: it is not one.
    """
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    try:
        request = ExportTraceServiceRequest.FromString(body)
    except DecodeError as error:
        raise InvalidError(f"these are no spans: {error}") from error
    for resource in request.resource_spans:
        said = {item.key: item.value.string_value for item in resource.resource.attributes}
        origin = _origin(said.get("bedstone.origin", ""))
        whose = Whose(
            origin,
            said.get("service.namespace", ""),
            said.get("bedstone.cell", ""),
            said.get("service.name", ""),
            said.get("service.instance.id", ""),
            node if node is not None else said.get("bedstone.node", ""),
        )
        for scope in resource.scope_spans:
            for message in scope.spans:
                if len(message.trace_id) == 16 and len(message.span_id) == 8:
                    yield _span(message, whose)


def _origin(text: str) -> Origin:
    for origin in ORIGINS:
        if origin == text:
            return origin
    return "application"


def _span(message: Any, whose: Whose) -> Span:
    status = None
    for item in message.attributes:
        if item.key in _STATUS_KEYS:
            status = item.value.int_value or None
    start = message.start_time_unix_nano
    called = whose.origin == "application" and message.kind == _CLIENT
    answered = called and 400 <= (status or 0) < 500
    return Span(
        message.trace_id,
        message.span_id,
        message.parent_span_id,
        whose,
        message.name,
        message.kind,
        start,
        max(start, message.end_time_unix_nano),
        message.status.code == _ERROR and not answered,
        status,
        message,
    )


def request(spans: Iterable[Span]) -> Any:
    """The spans as one OTLP request."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    made = ExportTraceServiceRequest()
    scopes: dict[Whose, Any] = {}
    for span in spans:
        scope = scopes.get(span.whose)
        if scope is None:
            resource = made.resource_spans.add()
            for key, value in attributes(span.whose).items():
                if value:
                    resource.resource.attributes.add(key=key).value.string_value = value
            scope = scopes[span.whose] = resource.scope_spans.add()
        scope.spans.append(span.data)
    return made


def encode(spans: Iterable[Span]) -> bytes:
    """The spans, encoded."""
    return bytes(request(spans).SerializeToString())


def attributes(whose: Whose) -> dict[str, str]:
    """The attributes of a resource."""
    return {
        "service.name": whose.service,
        "service.namespace": whose.app,
        "service.instance.id": whose.instance,
        "bedstone.cell": whose.cell,
        "bedstone.node": whose.node,
        "bedstone.origin": whose.origin,
    }


def shown(span: Span) -> model.Span:
    """A span as the API gives it."""
    kind = KINDS[span.kind] if span.kind < len(KINDS) else "internal"
    return model.Span.model_validate(
        {
            "span": span.span.hex(),
            "parent": span.parent.hex(),
            "name": span.name,
            "kind": kind,
            "origin": span.whose.origin,
            "app": span.whose.app,
            "service": span.whose.service,
            "instance": span.whose.instance,
            "node": span.whose.node,
            "start": span.start / 1e9,
            "seconds": span.seconds,
            "error": span.error,
            "message": span.data.status.message,
            "attributes": _plain(span.data.attributes),
            "events": [
                {
                    "time": event.time_unix_nano / 1e9,
                    "name": event.name,
                    "attributes": _plain(event.attributes),
                }
                for event in span.data.events
            ],
        }
    )


def _plain(items: Sequence[Any]) -> dict[str, Any]:
    return {item.key: _value(item.value) for item in items}


def _value(value: Any) -> Any:
    match value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return [_value(item) for item in value.array_value.values]
        case "kvlist_value":
            return _plain(value.kvlist_value.values)
        case "bytes_value":
            return value.bytes_value.hex()
        case "double_value" as kind:
            number = getattr(value, kind)
            return number if number == number and abs(number) != float("inf") else str(number)  # noqa: PLR0124 - NaN
        case kind:
            return getattr(value, kind)
