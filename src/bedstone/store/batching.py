"""Group commit: writes that wait together are written together.

While one group is being written, further requests queue; the next group takes all of them. So the
cost of making a write durable is shared under load, and a lone write waits for nobody.

Rules:
- One group is in flight at a time; requests are taken in the order they came.
- Each request has its own outcome. An error of the group as a whole is every member's.
- A caller that is cancelled before its group is taken takes its request along; later, the request
  goes on without it.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from bedstone.errors import Error, UnavailableError, UnknownOutcomeError
from bedstone.store.planning import Outcome, Request

LARGEST_GROUP: Final = 512
"""Requests in one group: bounds the time that the first of them waits."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    request: Request
    outcome: asyncio.Future[Outcome]


class Batcher:
    """Queues requests and writes them in groups.

    Args:
        write: makes one group durable and returns each request's outcome, or raises an `Error`
            that holds for all. It is never called twice at once.
    """

    def __init__(self, write: Callable[[Sequence[Request]], Awaitable[Sequence[Outcome]]]) -> None:
        self._write = write
        self._queue: deque[_Waiting] = deque()
        self._wake = asyncio.Event()
        self._stopped = False

    async def submit(self, request: Request) -> int:
        """Wait until the request is durable.

        Raises:
            Error: the request's own outcome, or its group's.
            UnavailableError: the store is closed.
        """
        if self._stopped:
            raise closed()
        waiting = _Waiting(request, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._wake.set()
        outcome = await waiting.outcome
        if isinstance(outcome, Error):
            raise outcome
        return outcome

    def stop(self) -> None:
        """Refuse what is queued and what comes; `run` returns after the group in flight."""
        self._stopped = True
        self._wake.set()

    async def run(self) -> None:
        """Write groups until stopped."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._queue and not self._stopped:
                    await self._write_group(self._take())
                if self._stopped:
                    return
        finally:
            self._stopped = True
            for waiting in self._take(len(self._queue)):
                waiting.outcome.set_result(closed())

    def _take(self, limit: int = LARGEST_GROUP) -> list[_Waiting]:
        count = min(limit, len(self._queue))
        taken = [self._queue.popleft() for _ in range(count)]
        return [waiting for waiting in taken if not waiting.outcome.done()]

    async def _write_group(self, group: Sequence[_Waiting]) -> None:
        if not group:
            return
        outcomes: Sequence[Outcome]
        try:
            outcomes = await self._write([waiting.request for waiting in group])
        except Error as error:
            outcomes = [copy.copy(error).with_traceback(None) for _ in group]
            for each in outcomes:
                if isinstance(each, Error):
                    each.__cause__ = error.__cause__
        except BaseException:
            for waiting in group:
                if not waiting.outcome.done():
                    waiting.outcome.set_result(
                        UnknownOutcomeError("the store was stopped while it wrote")
                    )
            raise
        for waiting, outcome in zip(group, outcomes, strict=True):
            if not waiting.outcome.done():
                waiting.outcome.set_result(outcome)


def closed() -> UnavailableError:
    """What every use of a store outside its context gets."""
    return UnavailableError(
        "the store is closed", hint="use it inside `async with`, while the server runs"
    )
