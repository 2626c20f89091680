"""Work in the background of one owner: nothing is lost, nothing outlives the owner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from bedstone.errors import Error, NotFoundError

FIRST_PAUSE = 0.1
LAST_PAUSE = 10.0
_log = logging.getLogger(__name__)


class Tasks:
    """A set of tasks. One that fails unexpectedly is logged: it is a bug of ours.

    Args:
        failed: called then, by an owner that cannot go on without each of its tasks.
    """

    def __init__(self, failed: Callable[[], None] | None = None) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failed = failed

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run it in the background."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("task failed", exc_info=error)
            if self._failed is not None:
                self._failed()

    async def close(self) -> None:
        """Cancel everything and wait for it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def insist(
    action: str,
    what: str,
    attempt: Callable[[], Awaitable[object]],
    needed: Callable[[], bool] = lambda: True,
) -> None:
    """Do what may fail until it works, its object is gone, or it is needed no more.

    Args:
        action: a verb, for the log.
        what: its object, likewise.
        attempt: does it.
        needed: asked before each attempt.
    """
    pause = FIRST_PAUSE
    while needed():
        try:
            await attempt()
        except NotFoundError:
            return
        except Error as error:
            _log.warning(f"cannot {action}", extra={"what": what, "reason": error.message})
        else:
            return
        await asyncio.sleep(pause)
        pause = min(pause * 2, LAST_PAUSE)
