"""What the API gives of traces: their list, their spans, and the logs that belong to them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from bedstone.model.resources import Frozen


class TraceSummary(Frozen):
    """One trace in one line; `kept` says why it was not sampled away."""

    trace: str
    """32 hexadecimal digits."""
    app: str
    name: str
    """Of its first span."""
    services: tuple[str, ...] = ()
    start: float
    """Seconds since the epoch."""
    seconds: float
    spans: int
    errors: int = 0
    status: int | None = None
    """HTTP status of its first span, if it has one."""
    kept: Literal["error", "slow", "sampled"] = "sampled"


class TraceList(Frozen):
    """Traces, newest first; `next` is the `before` of those that follow."""

    items: tuple[TraceSummary, ...] = ()
    next: float | None = None


class SamplingRequest(Frozen):
    """Which share of requests begins a sampled trace; None: by their rate."""

    share: float | None = Field(default=None, ge=0, le=1)


class SpanEvent(Frozen):
    """Something that happened within a span."""

    time: float
    name: str
    attributes: dict[str, Any] = Field(default_factory=dict)


class Span(Frozen):
    """One span (OpenTelemetry); `service` is the workload, or `gateway`."""

    span: str
    parent: str = ""
    name: str
    kind: Literal["internal", "server", "client", "producer", "consumer"] = "internal"
    origin: Literal["proxy", "application", "access-log"]
    app: str
    service: str
    instance: str = ""
    node: str = ""
    start: float
    seconds: float
    error: bool = False
    message: str = ""
    attributes: dict[str, Any] = Field(default_factory=dict)
    events: tuple[SpanEvent, ...] = ()


class TraceDetail(Frozen):
    """A whole trace; spans by start."""

    summary: TraceSummary
    spans: tuple[Span, ...] = ()


class StructuredLine(Frozen):
    """One log line; `fields` of one that is a JSON object, `trace` where it names one."""

    time: float
    app: str
    workload: str
    instance: str
    level: str = ""
    text: str
    trace: str = ""
    span: str = ""
    fields: dict[str, Any] = Field(default_factory=dict)


class LogPage(Frozen):
    """Log lines, oldest first."""

    items: tuple[StructuredLine, ...] = ()
    truncated: bool = False
