"""What applications import: the context of the request being served.

Rules: flat, imports fast, pulls in no server code. Without Bedstone around it, `current()` is empty
and everything here works.

The context follows `await`, tasks, `asyncio.to_thread` and the thread pools of ASGI frameworks. It
does not follow a bare `ThreadPoolExecutor`; run `contextvars.copy_context().run` in it.
"""

from bedstone.runtime.errors import DeadlineExceededError
from bedstone.telemetry.context import (
    RequestContext,
    Trace,
    current,
    deadline,
    extract,
    inject,
    shard_key,
    with_transaction,
)

__all__ = [
    "DeadlineExceededError",
    "RequestContext",
    "Trace",
    "current",
    "deadline",
    "extract",
    "inject",
    "instrument",
    "shard_key",
    "with_transaction",
]


def instrument() -> None:
    """Carry the context with calls that this process makes and, of gRPC, that it serves.

    An application that Bedstone serves by `run:` is instrumented already. A program of its own,
    such as a gRPC server, calls this once, before it makes channels and servers.
    """
    from bedstone.runtime import tracing

    tracing.instrument()
