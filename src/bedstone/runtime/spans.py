"""Spans of the requests that an application serves, and of the calls that it makes for them.

Rules:
- The proxy before the application decides what is recorded, and says so in `traceparent`; the
  application follows. A request that is not recorded costs one comparison. Only where the
  environment names a sampler (`OTEL_TRACES_SAMPLER`) does that decide instead.
- The tracing library is loaded by the first request that is recorded, on a thread.
- A span has no query string and no header: both may hold secrets.
- An application that has set up tracing itself is left alone.
- FastAPI (from 0.165) makes spans of its own as soon as there is a tracer: a second one of each
  request, with its query string. Where ours is the tracer, it is told not to.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from bedstone.runtime import exporting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.context import Context

    from bedstone.telemetry.context import RequestContext

logger = logging.getLogger(__name__)

_DELAY_VARIABLE = "OTEL_BSP_SCHEDULE_DELAY"
_DELAY = 1000
"""Milliseconds that a span waits to be exported with others."""
_FAILURE = 500
_FASTAPI = "fastapi.telemetry"
"""A key of the ASGI scope: with None, FastAPI makes no telemetry of this request."""

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


def recorder(service: str) -> Recorder | None:
    """What records requests, if the environment names a place to export to."""
    return Recorder(lambda: provide(service)) if exporting.enabled("traces") else None


class Recorder:
    """Begins spans.

    Args:
        provide: loads the tracing library; None if the application has one of its own.
        decide: whether the environment names a sampler, which then decides.
    """

    def __init__(
        self, provide: Callable[[], trace.Tracer | None], *, decide: bool | None = None
    ) -> None:
        self._provide = provide
        self._decide = "OTEL_TRACES_SAMPLER" in os.environ if decide is None else decide
        self._tracer: trace.Tracer | None = None
        self._loading: asyncio.Future[trace.Tracer | None] | None = None

    def records(self, context: RequestContext) -> bool:
        """Whether a request may be recorded."""
        return self._decide or (context.trace is not None and context.trace.sampled)

    def alone(self, scope: MutableMapping[str, Any]) -> None:
        """Let the framework make no spans of a request beside ours."""
        if self._tracer is not None:
            scope.setdefault(_FASTAPI, None)

    async def begin(
        self, scope: MutableMapping[str, Any], context: RequestContext, parent: Context
    ) -> Served | None:
        """A span for a request, as a child of what `parent` holds; None if it is not recorded."""
        if self._tracer is None:
            if self._loading is None:
                # Not `to_thread`: what is started there must not have this request's context.
                loop = asyncio.get_running_loop()
                self._loading = loop.run_in_executor(None, self._load)
            self._tracer = await asyncio.shield(self._loading)
            if self._tracer is None:
                return None
        attributes = {
            "http.request.method": scope["method"],
            "url.path": scope["path"],
            "url.scheme": scope.get("scheme", "http"),
            "network.protocol.version": scope.get("http_version", "1.1"),
        }
        if context.caller is not None:
            attributes["bedstone.caller"] = context.caller
        span = self._tracer.start_span(scope["method"], parent, trace.SpanKind.SERVER, attributes)
        return Served(span, scope)

    def _load(self) -> trace.Tracer | None:
        try:
            return self._provide()
        except Exception as error:  # noqa: BLE001 - versions of foreign libraries differ in any way
            logger.warning("telemetry.no_tracing error=%r", error)
            return None


class Served:
    """The span of one request."""

    def __init__(self, span: trace.Span, scope: MutableMapping[str, Any]) -> None:
        self.span = span
        self._scope = scope
        self._status = 0

    def watching(self, send: Send) -> Send:
        """`send`, that notes the status."""

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._status = message["status"]
            await send(message)

        return watched

    def end(self, error: BaseException | None) -> None:
        """The request is answered, or has failed with what the application did not handle."""
        span = self.span
        if span.is_recording():
            # What a framework has found; it is there only once the request was routed.
            path = getattr(self._scope.get("route"), "path", None)
            if isinstance(path, str):
                span.set_attribute("http.route", path)
                span.update_name(f"{self._scope['method']} {path}")
            if isinstance(error, Exception):
                self._status = self._status or _FAILURE
                span.record_exception(error)
                span.set_attribute("error.type", type(error).__qualname__)
                span.set_status(trace.StatusCode.ERROR, f"{type(error).__name__}: {error}")
            elif error is not None:
                span.set_status(trace.StatusCode.ERROR, "cancelled")
            elif self._status >= _FAILURE:
                span.set_status(trace.StatusCode.ERROR)
            if self._status:
                span.set_attribute("http.response.status_code", self._status)
        span.end()


def provide(service: str) -> trace.Tracer | None:
    """Set up tracing with an exporter; None if the application has done so itself."""
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Told(SpanExporter):
        """The exporter, whose failures are told now and then."""

        def __init__(self, inner: SpanExporter) -> None:
            self._inner = inner
            self._complaints = exporting.Complaints()

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            """Export."""
            result = self._inner.export(spans)
            if result is not SpanExportResult.SUCCESS:
                self._complaints.add("traces", len(spans))
            return result

        def shutdown(self) -> None:
            """End."""
            self._inner.shutdown()

    provider = TracerProvider(resource=exporting.resource(service), shutdown_on_exit=False)
    delay = None if _DELAY_VARIABLE in os.environ else _DELAY
    provider.add_span_processor(
        BatchSpanProcessor(Told(exporting.exporter("traces")), schedule_delay_millis=delay)
    )
    exporting.closing(provider.shutdown)
    trace.set_tracer_provider(provider)
    return provider.get_tracer("bedstone")
