"""The server's second: asks every node once, keeps what they say, and tells that a second is over.

Rules:
- When a second of the wall clock has ended, every present node is asked for it, all at once. What
  has not answered by the deadline is missing in it. Nobody waits for a slow one: neither the others
  nor the next second.
- A second is finished exactly once, and in order. One that the server slept through, or that a
  clock set forward leaves out, is finished incomplete. When the clock is set back, the seconds go
  on one after another, a little slower, until it has caught up.
- Whatever fails here ends one second, and not the server.
- Counts are cumulative: what a late or missed answer would have said is in the next one.
- A node of which a frame was missed, or whose session is another than before, is asked for a whole
  one.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from typing import Protocol

from bedstone.errors import Error, UnavailableError
from bedstone.model.messages import Command
from bedstone.model.monitoring import Tick
from bedstone.server.sessions import Session, new_command_id
from bedstone.telemetry import frames, names
from bedstone.telemetry.frame_builder import FrameBuilder
from bedstone.telemetry.frames import Frame, Series

DEADLINE = 0.8
"""Seconds after its end until which a second is waited for."""
STEP = 0.25
"""Seconds that the wall clock may be off before it counts as set."""
SLOWER = 0.05
"""By which share seconds are longer while a clock that was set back catches up."""
LEFT_OUT = RECENT = 600
"""So many seconds that were slept through are told one by one, and so many ticks are kept."""
PATIENCE = 0.3
"""Seconds that nodes have at least, also when the server was late to ask."""
PROXY = "envoy"
"""The source of a node whose counts must be exact."""
SERVER = "server"
"""The pseudo node of the server's own series, and what is missing when it was away."""
_log = logging.getLogger(__name__)


class Writer(Protocol):
    """What keeps the series; see `bedstone.control.monitoring.reading.Writer`."""

    def ingest(self, node: str, frame: Frame) -> bool:
        """Take a frame; False if one before it was missed."""
        ...

    def finish(self, second: int, missing: Mapping[str, str]) -> None:
        """End a second."""
        ...

    def last(self) -> int:
        """The last second that was finished."""
        ...

    def incomplete(self, start: int, end: int) -> dict[int, dict[str, str]]:
        """The seconds that are not complete, each with what is missing and why."""
        ...


class Nodes(Protocol):
    """Whom there is to ask."""

    def present(self) -> list[str]:
        """The nodes that live."""
        ...

    def get(self, node: str) -> Session:
        """A node's session; UnavailableError."""
        ...


class Reading(Protocol):
    """What sources said of one moment.

    Each series with its value, the incarnations of those that answered, and why others did not.
    """

    @property
    def series(self) -> Iterable[tuple[Series, float]]: ...  # noqa: D102
    @property
    def incarnations(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def missing(self) -> Mapping[str, str]: ...  # noqa: D102


class OwnSource(Protocol):
    """Series of the server's own that another part counts."""

    async def read(self) -> Reading:
        """Ask; never fails, and keeps to a time-out shorter than `DEADLINE`."""
        ...


class SteadyClock:
    """Seconds since the epoch that never go back, as near to the wall clock as that allows."""

    def __init__(
        self, wall: Callable[[], float], monotonic: Callable[[], float], after: float = 0.0
    ) -> None:
        """`after`: what an earlier run of the clock has come to."""
        self._wall = wall
        self._monotonic = monotonic
        self._last = monotonic()
        self._origin = max(wall(), after) - self._last

    def now(self) -> float:
        """The time; it leaps forward with the wall clock, and lets it catch up when set back."""
        monotonic, wall = self._monotonic(), self._wall()
        ahead = self._origin + monotonic - wall
        if ahead < -STEP:
            _log.warning("the clock was set forward", extra={"seconds": -ahead})
            self._origin -= ahead
        elif ahead > 0:
            self._origin -= min(ahead, SLOWER * (monotonic - self._last))
        self._last = monotonic
        return self._origin + monotonic


class Collecting:
    """Asks the nodes, once a second.

    Args:
        nodes: whom to ask.
        writer: keeps what they say.
        clock: seconds since the epoch, never back.
        incarnation: of this server.
        own: more series of the server's.
        sleep: waits some seconds.
        admitted: of a node's frame, what it may say.
    """

    def __init__(
        self,
        nodes: Nodes,
        writer: Writer,
        clock: Callable[[], float],
        incarnation: str,
        own: tuple[OwnSource, ...] = (),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        admitted: Callable[[str, Frame], Frame] = lambda _, frame: frame,
    ) -> None:
        self._nodes = nodes
        self._writer = writer
        self._clock = clock
        self._incarnation = incarnation
        self._own = own
        self._sleep = sleep
        self._admitted = admitted
        self._builder = FrameBuilder()
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._known: dict[str, Session] = {}
        self._lives: dict[str, str] = {}
        self._lost: dict[str, str] = {}
        self._finished = {"complete": 0, "incomplete": 0}
        self._last = Tick(second=0, complete=False)
        self._recent: deque[Tick] = deque([self._last], maxlen=RECENT)
        self._ticked = asyncio.Event()

    async def run(self) -> None:
        """Collect until cancelled."""
        second = max(int(self._clock()), self._writer.last() + 1)
        try:
            while True:
                await self._until(second + 1)
                # how many seconds ended while this loop did not run
                late = int(self._clock()) - (second + 1)
                for left_out in range(second, second + late)[-LEFT_OUT:]:
                    self._finish(left_out, {SERVER: "it did not ask in time"})
                second += late
                try:
                    await self._collect(second)
                except Exception as error:  # noqa: BLE001 - the control plane goes on
                    _log.error("collecting failed", exc_info=error)
                second += 1
        finally:
            for task in self._asking.values():
                task.cancel()
            await asyncio.gather(*self._asking.values(), return_exceptions=True)

    async def ticks(self) -> AsyncGenerator[Tick, None]:
        """Each second as it is finished; who does not read for minutes misses some."""
        seen = self._last.second
        while True:
            ticked = self._ticked
            for tick in [tick for tick in self._recent if tick.second > seen]:
                seen = tick.second
                yield tick
            await ticked.wait()

    def add(self, own: OwnSource) -> None:
        """Collect more series of the server's, from the next second on."""
        self._own = (*self._own, own)

    @property
    def last(self) -> Tick:
        """The last second that was finished."""
        return self._last

    async def _until(self, moment: float) -> None:
        while (left := moment - self._clock()) > 0:
            await self._sleep(min(left, 1.0))

    async def _collect(self, second: int) -> None:
        """One second: ask, wait until the deadline, finish."""
        missing: dict[str, str] = {}
        asked: dict[str, asyncio.Task[None]] = {}
        for node in self._nodes.present():
            before = self._asking.get(node)
            if before is not None and not before.done():
                missing[node] = "it still has not answered for an earlier second"
                continue
            asked[node] = self._asking[node] = asyncio.create_task(self._ask(node, second))
        asked[SERVER] = asyncio.create_task(self._ingest_own(second))
        left = max(PATIENCE, second + 1 + DEADLINE - self._clock())
        await asyncio.wait(asked.values(), timeout=left)
        for node, task in asked.items():
            if not task.done():
                missing[node] = f"no answer within {DEADLINE:g} s"
                task.cancel()
            elif task.cancelled():
                missing[node] = "what it was asked was cut off"
            elif (error := task.exception()) is not None:
                missing[node] = error.message if isinstance(error, Error) else repr(error)
                if not isinstance(error, Error):
                    _log.error("collecting failed", exc_info=error)
        self._finish(second, {**self._lost, **missing})
        self._lost.clear()

    async def _ask(self, node: str, second: int) -> None:
        session = self._nodes.get(node)
        # what a cancelled question was told is lost: the node has to say everything again
        known = self._known.pop(node, None) is session
        taken = known and await self._take(session, node, second, full=False)
        if not (taken or await self._take(session, node, second, full=True)):
            raise UnavailableError("its whole frame was refused")
        self._known[node] = session

    async def _take(self, session: Session, node: str, second: int, *, full: bool) -> bool:
        command = Command(id=new_command_id(), action="metrics", since=float(second), full=full)
        async with contextlib.aclosing(session.command(command)) as replies:
            async for reply in replies:
                try:
                    frame = frames.decode(base64.b64decode(reply.body, validate=True))
                except binascii.Error as error:
                    raise UnavailableError("it sent what is not base64") from error
                if frame.second != second:
                    raise UnavailableError(f"it answered for second {frame.second}")
                taken = self._writer.ingest(node, self._admitted(node, frame))
                if taken:
                    self._note_lives(node, frame)
                return taken
        raise UnavailableError("it did not answer")

    def _note_lives(self, node: str, frame: Frame) -> None:
        """A proxy that began anew took with it what it had counted since it was last asked."""
        life = frame.incarnations.get(PROXY)
        if life is not None:
            if self._lives.get(node, life) != life:
                self._lost[f"{node}/{PROXY}"] = "it began anew, and what it counted last is lost"
            self._lives[node] = life

    async def _ingest_own(self, second: int) -> None:
        values: dict[Series, float] = {
            names.MONITORING_SECONDS.series(SERVER, state=state): float(count)
            for state, count in self._finished.items()
        }
        incarnations = {SERVER: self._incarnation}
        missing: dict[str, str] = {}
        for said in await asyncio.gather(*(own.read() for own in self._own)):
            values |= dict(said.series)
            incarnations |= said.incarnations
            missing |= said.missing
        frame = self._builder.build(second, values, incarnations, missing)
        if not self._writer.ingest(SERVER, frame):
            frame = self._builder.build(second, values, incarnations, missing, full=True)
            self._writer.ingest(SERVER, frame)

    def _finish(self, second: int, missing: Mapping[str, str]) -> None:
        self._writer.finish(second, missing)
        found = self._writer.incomplete(second, second).get(second, {})
        self._finished["incomplete" if found else "complete"] += 1
        self._last = Tick(second=second, complete=not found, missing=found)
        self._recent.append(self._last)
        ticked, self._ticked = self._ticked, asyncio.Event()
        ticked.set()
