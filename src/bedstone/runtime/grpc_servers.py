"""Serve gRPC calls in their context, blocking and asyncio: what `ContextMiddleware` is for HTTP.

Apart from `clients` because its classes derive from grpc's, so that importing it imports grpc.

Rules:
- The metadata of a call says its context; its own deadline counts where it is earlier.
- A call with no metadata of ours is served in an empty context, never in another call's.
- The interceptor comes first, so that the application's own see the context too.
"""

from __future__ import annotations

import contextvars
import inspect
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import grpc
import grpc.aio
import wrapt

from bedstone.telemetry.context import RequestContext, enter, extract, leave

_MAKE: dict[tuple[bool, bool], tuple[str, Callable[..., Any]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}
_NEVER = 1e8
"""Seconds; a blocking server tells a call without deadline as one of centuries."""


def _context(servicer: Any) -> RequestContext:
    pairs = servicer.invocation_metadata() or ()
    context = extract((key, value) for key, value in pairs if isinstance(value, str))
    left = servicer.time_remaining()
    if left is None or left > _NEVER:
        return context
    until = time.monotonic() + left
    return replace(
        context, deadline=until if context.deadline is None else min(until, context.deadline)
    )


def _blocking(behaviour: Callable[..., Any]) -> Callable[..., Any]:
    def one(request: Any, servicer: Any) -> Any:
        surroundings = contextvars.copy_context()
        surroundings.run(enter, _context(servicer))
        answer = surroundings.run(behaviour, request, servicer)
        return _each(surroundings, answer) if inspect.isgenerator(answer) else answer

    return one


def _each(surroundings: contextvars.Context, answers: Iterator[Any]) -> Iterator[Any]:
    end = object()
    while (answer := surroundings.run(next, answers, end)) is not end:
        yield answer


def _async(behaviour: Callable[..., Any]) -> Callable[..., Any]:
    async def one(request: Any, servicer: Any) -> Any:
        token = enter(_context(servicer))
        try:
            return await behaviour(request, servicer)
        finally:
            leave(token)

    async def many(request: Any, servicer: Any) -> AsyncIterator[Any]:
        token = enter(_context(servicer))
        try:
            async for answer in behaviour(request, servicer):
                yield answer
        finally:
            leave(token)

    return many if inspect.isasyncgenfunction(behaviour) else one


def _served(handler: Any) -> Any:
    """The handler, with its behaviour in the call's context."""
    if handler is None:
        return None
    name, make = _MAKE[bool(handler.request_streaming), bool(handler.response_streaming)]
    behaviour = getattr(handler, name)
    is_async = inspect.iscoroutinefunction(behaviour) or inspect.isasyncgenfunction(behaviour)
    return make(
        (_async if is_async else _blocking)(behaviour),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


class BlockingInterceptor(grpc.ServerInterceptor):
    """For `grpc.server`."""

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """As `grpc.ServerInterceptor`."""
        return _served(continuation(details))


class AsyncInterceptor(grpc.aio.ServerInterceptor):
    """For `grpc.aio.server`."""

    async def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """As `grpc.aio.ServerInterceptor`."""
        return _served(await continuation(details))


def install(module: ModuleType) -> None:
    """Make servers that are made from now on serve each call in its context."""

    def with_ours(position: int, ours: Callable[[], Any]) -> Callable[..., Any]:
        def made(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
            given = args[position] if len(args) > position else kwargs.get("interceptors")
            interceptors = (ours(), *(given or ()))
            if len(args) > position:
                args = (*args[:position], interceptors, *args[position + 1 :])
            else:
                kwargs = {**kwargs, "interceptors": interceptors}
            return wrapped(*args, **kwargs)

        return made

    # server(thread_pool, handlers=None, interceptors=None, …); aio's: (migration_thread_pool, …)
    wrapt.wrap_function_wrapper(module, "server", with_ours(2, BlockingInterceptor))
    wrapt.wrap_function_wrapper(module, "aio.server", with_ours(2, AsyncInterceptor))
