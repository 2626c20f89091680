"""What came in over OTLP, from whom, and who takes it.

Rules:
- Who sent it is known from the proxy, which writes the sender into a header on the way here; what
  the sender says of itself (`service.name` and the like) counts for nothing.
- A sink takes what it is given at once and never waits; what it has no room for it drops, counts,
  and says so in its answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from bedstone.errors import InvalidError
from bedstone.node.collector.bounds import Shares
from bedstone.telemetry.requests import ProxyRequest

if TYPE_CHECKING:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
        ExportMetricsServiceRequest,
    )
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

LARGEST = 4 << 20
"""Bytes of one request, also once it is unpacked."""


class Sender(NamedTuple):
    """The instance that sent something."""

    app: str
    cell: str
    workload: str
    instance: str

    @classmethod
    def parse(cls, path: str) -> Sender:
        """From `APP/CELL/WORKLOAD/INSTANCE`.

        Raises:
            InvalidError: it is not that.
        """
        parts = path.split("/")
        if len(parts) != 4 or not all(parts):
            raise InvalidError(
                f"got the sender {path[:200]!r}, expected APP/CELL/WORKLOAD/INSTANCE"
            )
        return cls(*parts)

    def __str__(self) -> str:
        return "/".join(self)


class Spans(Protocol):
    """Takes spans."""

    def spans(self, sender: Sender | None, request: ExportTraceServiceRequest) -> int:
        """Take them; how many were dropped. Without a sender they are the proxy's own."""
        ...


class Logs(Protocol):
    """Takes log records of instances."""

    def logs(self, sender: Sender, request: ExportLogsServiceRequest) -> int:
        """Take them; how many were dropped."""
        ...


class Requests(Protocol):
    """Takes what the proxy wrote down: failed and slow requests, and those that are tapped."""

    def requests(self, records: Sequence[ProxyRequest]) -> None:
        """Take them."""
        ...


class Metrics(Protocol):
    """Takes metrics of instances."""

    def metrics(self, sender: Sender, request: ExportMetricsServiceRequest) -> int:
        """Take them; how many points were dropped."""
        ...


class Discard:
    """Takes everything and keeps nothing, where a part is not there."""

    def spans(self, sender: Sender | None, request: ExportTraceServiceRequest) -> int:
        """Keep nothing."""
        del sender, request
        return 0

    def logs(self, sender: Sender, request: ExportLogsServiceRequest) -> int:
        """Keep nothing."""
        del sender, request
        return 0

    def requests(self, records: Sequence[ProxyRequest]) -> None:
        """Keep nothing."""
        del records

    def metrics(self, sender: Sender, request: ExportMetricsServiceRequest) -> int:
        """Keep nothing."""
        del sender, request
        return 0


@dataclass(frozen=True, slots=True)
class Intake:
    """Who takes what, and how much of it from whom; both receivers share it."""

    spans: Spans
    logs: Logs
    metrics: Metrics
    requests: tuple[Requests, ...] = ()
    shares: Shares = field(default_factory=Shares)
