"""Carry the request context with every outgoing call, without code in the application.

Owns the propagator and the set-up of OpenTelemetry in a served application.

Rules:
- A client library costs nothing until the application imports it: its instrumentation is loaded by
  a hook that runs when its import ends.
- Without an exporter no tracing SDK is loaded. Trace ids are then those of the incoming request, or
  new ones, and pass through unchanged.
- Only what is missing is set: an application that configures OpenTelemetry itself is left alone.
"""

from __future__ import annotations

import importlib
import logging
import os
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt
from opentelemetry import propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from bedstone.telemetry.context import SHARD_KEY, TIMEOUT_OUT, TRANSACTION, carried, current

if TYPE_CHECKING:
    from bedstone.runtime.asgi import Application

logger = logging.getLogger(__name__)


class RequestPropagator(TextMapPropagator):
    """Writes deadline, transaction id and shard key of the current request."""

    def extract(
        self,
        carrier: CarrierT,  # noqa: ARG002  # OpenTelemetry's signature
        context: Context | None = None,
        getter: Getter[CarrierT] = default_getter,  # noqa: ARG002
    ) -> Context:
        """Add nothing: incoming requests are read by `ContextMiddleware`."""
        return Context() if context is None else context

    def inject(
        self,
        carrier: CarrierT,
        context: Context | None = None,  # noqa: ARG002
        setter: Setter[CarrierT] = default_setter,
    ) -> None:
        """Write the headers into an outgoing call."""
        for name, value in carried(current()).items():
            setter.set(carrier, name, value)

    @property
    def fields(self) -> set[str]:
        """What `inject` may write."""
        return {TIMEOUT_OUT, TRANSACTION, SHARD_KEY}


_INSTRUMENTORS = {
    "httpx": ("opentelemetry.instrumentation.httpx:HTTPXClientInstrumentor",),
    "requests": ("opentelemetry.instrumentation.requests:RequestsInstrumentor",),
    "aiohttp": ("opentelemetry.instrumentation.aiohttp_client:AioHttpClientInstrumentor",),
    "grpc": (
        "opentelemetry.instrumentation.grpc:GrpcInstrumentorClient",
        "opentelemetry.instrumentation.grpc:GrpcAioInstrumentorClient",
    ),
}


def instrument() -> None:
    """Make every call of a known client library carry the context, now or when it is imported."""
    propagate.set_global_textmap(
        CompositePropagator(
            [TraceContextTextMapPropagator(), W3CBaggagePropagator(), RequestPropagator()]
        )
    )
    for library in _INSTRUMENTORS:
        wrapt.register_post_import_hook(_imported, library)


def _imported(module: ModuleType) -> None:
    """Instrument `module`; a failure is logged and costs context, not the application."""
    name = module.__name__
    try:
        for target in _INSTRUMENTORS[name]:
            where, _, what = target.partition(":")
            getattr(importlib.import_module(where), what)().instrument()
        clients = importlib.import_module("bedstone.runtime.clients")
        clients.INSTALL[name](module)
    except Exception as error:  # noqa: BLE001  # versions of foreign libraries differ in any way
        logger.warning("context.not_carried library=%s error=%r", name, error)


_EXPORTERS = {
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
}


def traced(app: Application, service: str) -> Application:
    """`app` with a span for each request, exported as `OTEL_EXPORTER_OTLP_ENDPOINT` says.

    `app` itself if that is not set, or if no exporter is installed.
    """
    if not (
        os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    ):
        return app
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    module = _EXPORTERS.get(protocol)
    if module is None or not _installed(module):
        logger.warning("tracing.no_exporter protocol=%s", protocol)
        return app
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = os.environ.get("OTEL_SERVICE_NAME", service)
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    exporter = importlib.import_module(module).OTLPSpanExporter()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    middleware: Any = OpenTelemetryMiddleware(app, exclude_spans=["send", "receive"])
    return middleware  # type: ignore[no-any-return]


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
