"""Calls between simulated processes: delayed, reordered, lost, duplicated, cut.

Rules:
- A handler runs as a task of the process that serves; nothing of the caller's context reaches it.
- Who hears nothing in time gets an `UnknownOutcomeError`; only a refused connection, or a refusal
  by the one called, says that nothing was done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any, Final

from bedstone.errors import UnavailableError, UnknownOutcomeError
from bedstone.testing.simulation.faults import Fate, Faults
from bedstone.testing.simulation.loop import PROCESS, Process, SimulationLoop

PATIENCE: Final = 2.0
"""Virtual seconds that a caller waits for an answer."""

Handler = Callable[..., Awaitable[Any]]
Answer = tuple[object, BaseException | None]


class Network:
    """Carries calls, and whatever else takes time between two places.

    Args:
        loop: whose time it is.
        faults: what goes wrong with messages.
    """

    def __init__(self, loop: SimulationLoop, faults: Faults) -> None:
        self.loop = loop
        self.faults = faults
        self._served: dict[str, tuple[Process, Handler]] = {}
        self._cuts: dict[tuple[str, str], bool] = {}
        self._nobody = Context()
        self._nobody.run(PROCESS.set, None)

    def serve(self, process: Process, handler: Handler) -> None:
        """From now on `process` answers to its name."""
        self._served[process.name] = (process, handler)

    def cut(self, one: str, other: str) -> None:
        """Nothing passes between the two."""
        self._cuts[one, other] = self._cuts[other, one] = True

    def heal(self, one: str, other: str) -> None:
        """Messages pass again."""
        self._cuts.pop((one, other), None)
        self._cuts.pop((other, one), None)

    def connected(self, one: str, other: str) -> bool:
        """Whether messages pass between the two."""
        return (one, other) not in self._cuts

    def later(self, delay: float, callback: Callable[..., object], *args: object) -> None:
        """Have something happen in nobody's process."""
        self.loop.call_later(delay, callback, *args, context=self._nobody)

    async def call(
        self, to: str, *request: object, fate: Fate | None = None, patience: float = PATIENCE
    ) -> Any:
        """Have the process named `to` handle a request.

        Args:
            to: whom.
            request: what its handler is called with.
            fate: what becomes of it; by the plan of messages where none is given.
            patience: how long to wait.

        Raises:
            UnavailableError: nobody answers to that name now; nothing was done.
            UnknownOutcomeError: no answer came in time.
            Exception: what the handler raised.
        """
        future: asyncio.Future[Answer] = self.loop.create_future()
        fate = fate or self.faults.message()
        source = _name(PROCESS.get())
        delays = [self.faults.lateness() if fate is Fate.LATE else self.faults.delay()]
        match fate:
            case Fate.LOST:
                delays = []
            case Fate.TWICE:
                delays.append(self.faults.delay() * 50)
            case _:
                pass
        for delay in delays:
            self.later(delay, self._arrive, source, to, request, future, fate)
        timer = self.loop.call_later(patience, _give_up, future, to, context=self._nobody)
        value, error = await future
        timer.cancel()
        if error is not None:
            raise error
        return value

    def _arrive(
        self,
        source: str,
        to: str,
        request: tuple[object, ...],
        future: asyncio.Future[Answer],
        fate: Fate,
    ) -> None:
        if not self.connected(source, to):
            return
        process, handler = self._served.get(to, (None, None))
        if process is None or handler is None or not process.alive:
            refusal = UnavailableError(f"nobody listens at {to}")
            self.later(self.faults.delay(), _answer, future, (None, refusal))
            return
        self.loop.spawn(process, self._handle(handler, source, to, request, future, fate))

    async def _handle(
        self,
        handler: Handler,
        source: str,
        to: str,
        request: tuple[object, ...],
        future: asyncio.Future[Answer],
        fate: Fate,
    ) -> None:
        answer: Answer
        try:
            answer = (await handler(*request), None)
        except Exception as error:  # noqa: BLE001 - whatever it is goes back to the caller
            answer = (None, error)
        if fate is not Fate.UNANSWERED and self.connected(to, source):
            self.later(self.faults.delay(), _answer, future, answer)


def _name(process: Process | None) -> str:
    return "nobody" if process is None else process.name


def _answer(future: asyncio.Future[Answer], answer: Answer) -> None:
    if not future.done():
        future.set_result(answer)


def _give_up(future: asyncio.Future[Answer], to: str) -> None:
    _answer(future, (None, UnknownOutcomeError(f"no answer from {to}")))
