"""Bound gRPC calls, blocking and asyncio, by the request's deadline.

Apart from `clients` because its classes derive from grpc's, so that importing it imports grpc.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import grpc
import grpc.aio
import wrapt

from bedstone.runtime.clients import remaining, shorter

_BEFORE_OPTIONS = 2
"""`secure_channel(target, credentials, options)`: a third argument is the caller's own options."""


class _Fields(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _Details(_Fields, grpc.ClientCallDetails):
    """Call details that an interceptor may pass on."""


def _clipped(details: Any) -> Any:
    left = remaining()
    if left is None:
        return details
    timeout = shorter(details.timeout, left)
    if isinstance(details, grpc.aio.ClientCallDetails):
        return grpc.aio.ClientCallDetails(
            details.method,
            timeout,
            details.metadata,
            details.credentials,
            details.wait_for_ready,
        )
    return _Details(
        details.method,
        timeout,
        details.metadata,
        details.credentials,
        details.wait_for_ready,
        getattr(details, "compression", None),
    )


def _continue(_self: Any, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
    return continuation(_clipped(details), request)


_intercept: Any = _continue  # one function stands in for eight differently typed methods


class _Blocking(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    intercept_unary_unary = _intercept
    intercept_unary_stream = _intercept
    intercept_stream_unary = _intercept
    intercept_stream_stream = _intercept


async def _continue_async(
    _self: Any, continuation: Callable[..., Any], details: Any, request: Any
) -> Any:
    return await continuation(_clipped(details), request)


_intercept_async: Any = _continue_async


# grpc.aio takes an interceptor for one kind of call only, whatever else it can do.
class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    intercept_unary_unary = _intercept_async


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    intercept_unary_stream = _intercept_async


class _StreamUnary(grpc.aio.StreamUnaryClientInterceptor):
    intercept_stream_unary = _intercept_async


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):
    intercept_stream_stream = _intercept_async


def _direct(args: Any, kwargs: Any) -> Any:
    """The channel's options, so that `xds:///NAME` does not go through `http_proxy`.

    grpcio would ask the proxy for the name, although its own xDS client resolves it.
    """
    target = str(args[0] if args else kwargs.get("target", ""))
    if not target.startswith("xds:") or len(args) > _BEFORE_OPTIONS:
        return kwargs
    options = (*(kwargs.get("options") or ()), ("grpc.enable_http_proxy", 0))
    return {**kwargs, "options": options}


def install(module: ModuleType) -> None:
    """Make channels opened from now on bounded, and `xds:///NAME` proxyless."""

    def blocking(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
        return grpc.intercept_channel(wrapped(*args, **kwargs), _Blocking())

    def asynchronous(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
        own = [_UnaryUnary(), _UnaryStream(), _StreamUnary(), _StreamStream()]
        interceptors = [*own, *(kwargs.get("interceptors") or ())]
        return wrapped(*args, **{**kwargs, "interceptors": interceptors})

    def direct(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
        return wrapped(*args, **_direct(args, kwargs))

    # `xds:` needs credentials, so it is only ever opened as a secure channel.
    wrapt.wrap_function_wrapper(module, "secure_channel", direct)
    wrapt.wrap_function_wrapper(module.aio, "secure_channel", direct)
    for name in ("insecure_channel", "secure_channel"):
        wrapt.wrap_function_wrapper(module, name, blocking)
        wrapt.wrap_function_wrapper(module.aio, name, asynchronous)
