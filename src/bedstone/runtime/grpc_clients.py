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


def install(module: ModuleType) -> None:
    """Make channels opened from now on bounded."""

    def blocking(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
        return grpc.intercept_channel(wrapped(*args, **kwargs), _Blocking())

    def asynchronous(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
        own = [_UnaryUnary(), _UnaryStream(), _StreamUnary(), _StreamStream()]
        interceptors = [*own, *(kwargs.get("interceptors") or ())]
        return wrapped(*args, **{**kwargs, "interceptors": interceptors})

    for name in ("insecure_channel", "secure_channel"):
        wrapt.wrap_function_wrapper(module, name, blocking)
        wrapt.wrap_function_wrapper(module.aio, name, asynchronous)
