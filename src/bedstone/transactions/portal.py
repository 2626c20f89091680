"""An event loop in a thread of its own, for callers that have none.

Rules:
- The loop starts with the thread and ends with it; `stop` waits for both.
- What is sent in keeps the caller's context variables.
- The thread is a daemon: a program that forgets to stop it still ends.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from bedstone.errors import InvalidError, UnavailableError

T = TypeVar("T")


def run_in(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in `loop` from another thread, and wait for what it returns.

    Raises:
        InvalidError: this is the loop's own thread, which must not wait.
        UnavailableError: the loop has ended.
    """
    try:
        running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    if running is not None:
        coroutine.close()
        raise InvalidError(
            "a blocking call inside a running event loop would stop the loop",
            hint="use `async with` and `await`, or call from a thread (`asyncio.to_thread`)",
        )
    try:
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError as error:
        coroutine.close()
        raise UnavailableError("the event loop of the transactions has ended") from error
    return future.result()


class Portal:
    """A running event loop in a daemon thread."""

    def __init__(self) -> None:
        ready: Future[asyncio.AbstractEventLoop] = Future()
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(
            target=self._run, args=(ready,), name="bedstone-transactions", daemon=True
        )
        self._thread.start()
        self.loop = ready.result()

    def stop(self) -> None:
        """End the loop, its tasks cancelled, and wait for the thread."""
        if self._stop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self, ready: Future[asyncio.AbstractEventLoop]) -> None:
        async def until_stopped() -> None:
            self._stop = asyncio.Event()
            ready.set_result(asyncio.get_running_loop())
            await self._stop.wait()

        asyncio.run(until_stopped())
