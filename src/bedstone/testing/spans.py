"""Spans for tests of traces: made briefly, and read back from their encoding."""

from __future__ import annotations

from typing import Any

from bedstone.control.monitoring.traces.spans import Origin, Span, Whose, decode, encode

SECOND = 1_000_000_000
BEGIN = 1_800_000_000 * SECOND


def trace_id(number: int) -> bytes:
    """The identifier of a trace."""
    return number.to_bytes(16, "big")


def span_id(number: int) -> bytes:
    """The identifier of a span; empty for 0."""
    return number.to_bytes(8, "big") if number else b""


def span(
    trace: int = 1,
    number: int = 1,
    parent: int = 0,
    *,
    service: str = "web",
    instance: str = "",
    origin: Origin = "proxy",
    name: str = "GET /",
    kind: int = 2,
    start: float = 0.0,
    seconds: float = 0.01,
    error: bool = False,
    status: int | None = None,
    said: dict[str, str] | None = None,
) -> Span:
    """A span; `start` is in seconds after the beginning, `said` are attributes `bedstone.…`."""
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message

    begun = BEGIN + round(start * SECOND)
    data: Any = Message(
        trace_id=trace_id(trace),
        span_id=span_id(number),
        parent_span_id=span_id(parent),
        name=name,
        kind=kind,  # type: ignore[arg-type]
        start_time_unix_nano=begun,
        end_time_unix_nano=begun + round(seconds * SECOND),
    )
    for key, text in (said or {}).items():
        data.attributes.add(key=f"bedstone.{key}").value.string_value = text
    if status is not None:
        data.attributes.add(key="http.response.status_code").value.int_value = status
    if error:
        data.status.code = 2
    whose = Whose(origin, "bank", "default", service, instance, "n1")
    raw = Span(
        data.trace_id,
        data.span_id,
        data.parent_span_id,
        whose,
        name,
        kind,
        begun,
        begun + round(seconds * SECOND),
        error,
        status,
        data,
    )
    (read,) = decode(encode([raw]))
    assert read == raw
    return read
