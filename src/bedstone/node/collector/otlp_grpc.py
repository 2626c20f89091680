"""OTLP over gRPC on a Unix socket of mode 0600: for the node's proxy, and through it for instances.

A request without the sender's header is the proxy's own: nobody else of another user reaches the
socket, and what instances send passes a listener that always sets the header.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from bedstone.errors import Error, InvalidError, UnavailableError
from bedstone.node.collector.bounds import Shares, refuse_many
from bedstone.node.collector.intake import LARGEST, Intake, Sender
from bedstone.telemetry.context import SENDER
from bedstone.telemetry.requests import ProxyRequest, parse

if TYPE_CHECKING:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

_SERVICES = "opentelemetry.proto.collector"
_OPTIONS = (
    ("grpc.max_receive_message_length", LARGEST),
    # The proxy pings every few seconds, with jitter.
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
)


async def serve(intake: Intake, path: Path) -> grpc.aio.Server:
    """Serve on a Unix socket; the caller stops the server.

    Raises:
        UnavailableError: the socket cannot be made.
    """
    from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace

    def take_spans(sender: Sender | None, request: Any) -> Any:
        dropped = intake.spans.spans(sender, request)
        partial = trace.ExportTracePartialSuccess(rejected_spans=dropped)
        return trace.ExportTraceServiceResponse(partial_success=partial if dropped else None)

    def take_logs(sender: Sender | None, request: Any) -> Any:
        dropped = 0
        if sender is None:
            written = records(request)
            for sink in intake.requests:
                sink.requests(written)
        else:
            dropped = intake.logs.logs(sender, request)
        partial = logs.ExportLogsPartialSuccess(rejected_log_records=dropped)
        return logs.ExportLogsServiceResponse(partial_success=partial if dropped else None)

    def take_metrics(sender: Sender | None, request: Any) -> Any:
        dropped = 0 if sender is None else intake.metrics.metrics(sender, request)
        partial = metrics.ExportMetricsPartialSuccess(rejected_data_points=dropped)
        return metrics.ExportMetricsServiceResponse(partial_success=partial if dropped else None)

    shares = intake.shares
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers(
        (
            _handler("trace.v1.TraceService", take_spans, trace.ExportTraceServiceRequest, shares),
            _handler("logs.v1.LogsService", take_logs, logs.ExportLogsServiceRequest, shares),
            _handler(
                "metrics.v1.MetricsService",
                take_metrics,
                metrics.ExportMetricsServiceRequest,
                shares,
            ),
        )
    )
    path.unlink(missing_ok=True)
    mask = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise UnavailableError(f"the collector cannot listen on {path}") from error
    finally:
        os.umask(mask)
    await server.start()
    return server


def records(request: ExportLogsServiceRequest) -> list[ProxyRequest]:
    """What a proxy wrote down of requests."""
    found = []
    for resource in request.resource_logs:
        for scope in resource.scope_logs:
            for record in scope.log_records:
                read = parse(
                    record.body.string_value,
                    start=record.time_unix_nano / 1e9,
                    trace=record.trace_id.hex(),
                    span=record.span_id.hex(),
                )
                if read is not None:
                    found.append(read)
    return found


def _decoded(request: Any, body: bytes) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return request.FromString(body)
    except DecodeError as error:
        raise InvalidError(f"the body is no OTLP request: {error}") from error


def _handler(
    service: str, take: Callable[[Sender | None, Any], Any], request: Any, shares: Shares
) -> grpc.GenericRpcHandler:
    """One OTLP service: its one method, `Export`."""

    def read(sender: Sender | None, body: bytes) -> Any:
        if sender is None:
            return take(None, request.FromString(body))
        with shares.turn(str(sender)):
            message = _decoded(request, body)
            refuse_many(message)
            return take(sender, message)

    async def export(body: bytes, context: Any) -> Any:
        said = [value for key, value in context.invocation_metadata() if key == SENDER]
        try:
            return read(Sender.parse(said[0]) if said else None, body)
        except UnavailableError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, error.message)
        except Error as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)

    method: Any = grpc.unary_unary_rpc_method_handler(
        export,
        request_deserializer=None,  # not before it is known whose turn it is
        response_serializer=lambda answer: answer.SerializeToString(),
    )
    return grpc.method_handlers_generic_handler(f"{_SERVICES}.{service}", {"Export": method})
