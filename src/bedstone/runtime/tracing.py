"""Carry the request context with every outgoing call, without code in the application.

Owns the propagator and the instrumentation of client libraries.

Rules:
- A client library costs nothing until the application imports it: its instrumentation is loaded by
  a hook that runs when its import ends.
- Where nothing is recorded (`bedstone.runtime.spans`), trace ids are those of the incoming request,
  or new ones, and pass through unchanged.
"""

from __future__ import annotations

import importlib
import logging
from types import ModuleType

import wrapt
from opentelemetry import propagate
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

from bedstone.runtime import meters
from bedstone.telemetry.context import SHARD_KEY, TIMEOUT_OUT, TRANSACTION, carried, current

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
            instrumentor = getattr(importlib.import_module(where), what)()
            instrumentor.instrument(**meters.without_metrics())
        clients = importlib.import_module("bedstone.runtime.clients")
        clients.INSTALL[name](module)
    except Exception as error:  # noqa: BLE001  # versions of foreign libraries differ in any way
        logger.warning("context.not_carried library=%s error=%r", name, error)
