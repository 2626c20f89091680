"""Serve one ASGI request in its context, and stop working on it when nobody wants the result.

Owns the outermost middleware around an application given by `run:`.

Rules:
- At the deadline the application's task is cancelled. If it has not begun to answer, 504 with
  `x-bedstone-outcome: unknown` is sent at once, without waiting for it: a handler that runs in a
  thread cannot be cancelled, and holds its task until the thread is done. If it has begun, the
  connection is closed, so that the client sees a cut answer and not a short one.
- When the client goes away, a request with a safe method (RFC 9110 §9.2.1) is cancelled. Others go
  on until their deadline: a client may rely on their effect.
- A WebSocket gets its context but no deadline, which is about one answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.trace.span import TraceState

from bedstone.telemetry.context import (
    OUTCOME,
    READ,
    RequestContext,
    Trace,
    enter,
    extract,
    leave,
    mark,
    new_trace,
)

if TYPE_CHECKING:
    from bedstone.runtime.spans import Recorder

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger(__name__)

_READ = frozenset(name.encode() for name in READ)
_SAFE = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))
_TIMED_OUT = (
    b'{"type":"about:blank","title":"Gateway Timeout","status":504,'
    b'"detail":"the deadline passed before the request was answered","code":"unknown_outcome"}'
)
_DISCONNECT = "http.disconnect"


class ContextMiddleware:
    """An ASGI application that runs `app` with `bedstone.runtime.current()` set.

    Args:
        app: the application.
        recorder: begins spans of those requests that are recorded.
    """

    def __init__(self, app: Application, recorder: Recorder | None = None) -> None:
        self._app = app
        self._recorder = recorder
        self._baggage = W3CBaggagePropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope (ASGI 3)."""
        kind = scope["type"]
        if kind not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        context, surroundings = self._read(scope)
        served = None
        if kind == "websocket":
            context = replace(context, deadline=None)
        elif self._recorder is not None and self._recorder.records(context):
            served = await self._recorder.begin(scope, context, surroundings)
        if self._recorder is not None:
            self._recorder.alone(scope)
        if served is not None:
            context = replace(context, trace=_from_span(served.span.get_span_context()))
            surroundings = trace.set_span_in_context(served.span, surroundings)
            send = served.watching(send)
        elif context.trace is None:
            context = replace(context, trace=new_trace())
            surroundings = _within(context, surroundings)
        otel_token, token = otel.attach(surroundings), enter(context)
        failure: BaseException | None = None
        try:
            if kind == "websocket":
                await self._app(scope, receive, send)
            else:
                await _Exchange(self._app, scope, receive, send).run(context.remaining())
        except BaseException as error:
            failure = error
            mark(error, context.trace)
            raise
        finally:
            if served is not None:
                served.end(failure)
            leave(token)
            otel.detach(otel_token)

    def _read(self, scope: Scope) -> tuple[RequestContext, otel.Context]:
        """What the request carries, for us and for OpenTelemetry."""
        headers = scope["headers"]
        context = extract(
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in headers
            if name in _READ
        )
        span = trace.get_current_span().get_span_context()
        if span.is_valid:  # a tracing middleware outside of us has opened the server's span
            context = replace(context, trace=_from_span(span))
            return context, otel.get_current()
        surroundings = otel.get_current()
        for name, value in headers:
            if name == b"baggage":
                surroundings = self._baggage.extract(
                    {"baggage": value.decode("latin-1")}, surroundings
                )
        return context, _within(context, surroundings)


def _within(context: RequestContext, surroundings: otel.Context) -> otel.Context:
    """With the request's position in its trace, if it has one."""
    if context.trace is None:
        return surroundings
    return trace.set_span_in_context(trace.NonRecordingSpan(_to_span(context.trace)), surroundings)


def _from_span(span: trace.SpanContext) -> Trace:
    return Trace(
        trace.format_trace_id(span.trace_id),
        trace.format_span_id(span.span_id),
        span.trace_flags.sampled,
        span.trace_state.to_header(),
    )


def _to_span(position: Trace) -> trace.SpanContext:
    return trace.SpanContext(
        int(position.trace_id, 16),
        int(position.span_id, 16),
        is_remote=True,
        trace_flags=trace.TraceFlags(
            trace.TraceFlags.SAMPLED if position.sampled else trace.TraceFlags.DEFAULT
        ),
        trace_state=TraceState.from_header([position.state]) if position.state else None,
    )


class _Exchange:
    """One request and its answer."""

    def __init__(self, app: Application, scope: Scope, receive: Receive, send: Send) -> None:
        self._app = app
        self._scope = scope
        self._receive = receive
        self._send = send
        self._started = False
        self._complete = False
        self._stopped = False
        self._reply: asyncio.Task[None] | None = None
        self._task: asyncio.Task[Any] | None = None

    async def run(self, seconds: float | None) -> None:
        """Run the application, for `seconds` at most."""
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        receive, watcher = self._receive, None
        if self._scope["method"] in _SAFE:
            messages: asyncio.Queue[Message] = asyncio.Queue(maxsize=1)
            watcher = loop.create_task(self._watch(messages))
            receive = _Replay(messages)
        timer = None if seconds is None else loop.call_later(seconds, self._expire)
        try:
            await self._app(self._scope, receive, self._forward)
        except asyncio.CancelledError:
            if not self._stopped:
                raise
        except Exception:
            if not self._stopped:
                raise
            logger.debug("request.failed_after_cancel", exc_info=True)
        finally:
            if timer is not None:
                timer.cancel()
            if watcher is not None:
                watcher.cancel()
            if self._reply is not None:
                await self._reply
        # Our own cancellation is taken back; one from outside that came with it must go on.
        if self._stopped and self._task is not None and self._task.uncancel() > 0:
            raise asyncio.CancelledError

    async def _forward(self, message: Message) -> None:
        if self._stopped:
            return  # like a send after the client has gone
        if message["type"] == "http.response.start":
            self._started = True
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            self._complete = True
        await self._send(message)

    def _stop(self) -> bool:
        if self._stopped or self._complete or self._task is None:
            return False
        self._stopped = True
        self._task.cancel()
        return True

    def _expire(self) -> None:
        if self._stop():
            logger.warning("request.deadline_exceeded path=%s", self._scope.get("path"))
            if not self._started:
                self._reply = asyncio.get_running_loop().create_task(self._time_out())

    async def _time_out(self) -> None:
        await self._send(
            {
                "type": "http.response.start",
                "status": 504,
                "headers": [
                    (b"content-type", b"application/problem+json"),
                    (b"content-length", str(len(_TIMED_OUT)).encode()),
                    (OUTCOME.encode(), b"unknown"),
                ],
            }
        )
        await self._send({"type": "http.response.body", "body": _TIMED_OUT})

    async def _watch(self, messages: asyncio.Queue[Message]) -> None:
        while True:
            message = await self._receive()
            if message["type"] == _DISCONNECT and self._stop():
                logger.info("request.client_gone path=%s", self._scope.get("path"))
            await messages.put(message)
            if message["type"] == _DISCONNECT:
                return


class _Replay:
    """`receive` for the application, fed by the watcher; a disconnect is repeated for ever."""

    def __init__(self, messages: asyncio.Queue[Message]) -> None:
        self._messages = messages
        self._gone = False

    async def __call__(self) -> Message:
        if self._gone:
            return {"type": _DISCONNECT}
        message = await self._messages.get()
        self._gone = message["type"] == _DISCONNECT
        return message
