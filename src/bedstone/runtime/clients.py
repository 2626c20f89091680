"""Bound outgoing calls by the request's deadline, per client library.

Rules:
- A call after the deadline is not sent: `DeadlineExceededError`. With gRPC too: given a deadline
  that has passed, its own client sometimes sends the call all the same.
- A time-out of the application's only gets shorter, to what remains.
- Each function changes one library in place, once, when that library has been imported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import wrapt

from bedstone.runtime.errors import DeadlineExceededError
from bedstone.telemetry.context import current


def remaining() -> float | None:
    """Seconds that a call may take, None if it is not bounded; raises when none are left."""
    left = current().remaining()
    if left is not None and left <= 0:
        raise DeadlineExceededError(
            "the deadline of the request has passed, so the call was not sent"
        )
    return left


def shorter(timeout: float | None, left: float) -> float:
    """The shorter of the two; None is no time-out."""
    return left if timeout is None else min(timeout, left)


def _install_httpx(module: ModuleType) -> None:
    def clip(request: Any) -> None:
        left = remaining()
        if left is None:
            return
        own: Mapping[str, float | None] = request.extensions.get("timeout") or {}
        request.extensions = {
            **request.extensions,
            "timeout": {
                phase: shorter(own.get(phase), left)
                for phase in ("connect", "read", "write", "pool")
            },
        }

    def sync(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
        clip(args[0] if args else kwargs["request"])
        return wrapped(*args, **kwargs)

    wrapt.wrap_function_wrapper(module, "HTTPTransport.handle_request", sync)
    wrapt.wrap_function_wrapper(module, "AsyncHTTPTransport.handle_async_request", sync)


def _install_requests(module: ModuleType) -> None:
    def clipped(timeout: Any, left: float) -> Any:
        if isinstance(timeout, tuple):
            return tuple(shorter(phase, left) for phase in timeout)
        if timeout is None or isinstance(timeout, int | float):
            return shorter(timeout, left)
        return timeout  # a urllib3.Timeout: the application knows better

    def send(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
        left = remaining()
        if left is not None:
            # send(request, stream=False, timeout=None, …)
            if len(args) > 2:
                args = (*args[:2], clipped(args[2], left), *args[3:])
            else:
                kwargs = {**kwargs, "timeout": clipped(kwargs.get("timeout"), left)}
        return wrapped(*args, **kwargs)

    wrapt.wrap_function_wrapper(module, "adapters.HTTPAdapter.send", send)


def _install_aiohttp(module: ModuleType) -> None:
    client_timeout = module.ClientTimeout

    def request(wrapped: Callable[..., Any], instance: Any, args: Any, kwargs: Any) -> Any:
        left = remaining()
        if left is not None:
            own = kwargs.get("timeout", instance.timeout)
            if own is None or isinstance(own, int | float):
                own = client_timeout(total=own)
            elif not isinstance(own, client_timeout):  # its private "not given"
                own = instance.timeout
            # aiohttp reads 0 as "no time-out", like None.
            total = shorter(own.total or None, left)
            kwargs = {**kwargs, "timeout": _replaced(own, total)}
        return wrapped(*args, **kwargs)

    def _replaced(own: Any, total: float) -> Any:
        if dataclasses.is_dataclass(own) and not isinstance(own, type):
            return dataclasses.replace(own, total=total)
        import attr  # what aiohttp 3 makes its classes with

        return attr.evolve(own, total=total)

    wrapt.wrap_function_wrapper(module, "ClientSession._request", request)


def _install_grpc(module: ModuleType) -> None:
    from bedstone.runtime import grpc_clients, grpc_servers

    grpc_clients.install(module)
    grpc_servers.install(module)


INSTALL: dict[str, Callable[[ModuleType], None]] = {
    "httpx": _install_httpx,
    "requests": _install_requests,
    "aiohttp": _install_aiohttp,
    "grpc": _install_grpc,
}
"""By the name of the library's module."""
