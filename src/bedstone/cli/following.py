"""Follows an app's status, through a server's restart, and waits for it to become ready."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bedstone.cli.progress import (
    Line,
    Shown,
    failures,
    news,
    of_workload,
    settled,
    troubled,
    unready,
)
from bedstone.cli.terminal import Terminal, Waiting, brief, clean, seconds
from bedstone.errors import Error, NotFoundError, UnavailableError

if TYPE_CHECKING:
    from bedstone.client.api import Client
    from bedstone.model.api import AppStatus

_RETRY = 0.2
_SETTLE = 1.0
"""Seconds for which a failure must last before it is believed."""
_ASK = 1.0
"""Seconds between looks at the processes of the run."""
_TAIL = 10


@dataclass
class Feed:
    """Shows what becomes of an app.

    Args:
        terminal: where it is shown.
        started: when the clock of its lines began (`time.monotonic`).
        last: the latest status.
        clock: lines show the time of day, not the time since the start.
        workload: what is shown, and waited for, is of this one only.
    """

    terminal: Terminal
    started: float = field(default_factory=time.monotonic)
    last: AppStatus | None = None
    clock: bool = False
    workload: str | None = None
    waiting: Waiting | None = None
    _shown: Shown = field(default_factory=dict)

    def step(self, kind: str, name: str, state: str, detail: str = "") -> None:
        """One line of the command's own."""
        self._show(Line(kind, name, state, detail))

    def prime(self, status: AppStatus) -> None:
        """Take a status as known, without a line."""
        _, self._shown = news(self._shown, self._view(status))

    def update(self, status: AppStatus) -> None:
        """The lines for what changed."""
        status = self._view(status)
        lines, self._shown = news(self._shown, status)
        for line in lines:
            self._show(line)
        self.last = status
        if self.waiting is not None and status.waiting_for:
            first, *rest = status.waiting_for
            more = f" and {len(rest)} more" if rest else ""
            self.waiting.update(f"waiting for {clean(first)}{more}")

    def _view(self, status: AppStatus) -> AppStatus:
        return status if self.workload is None else of_workload(status, self.workload)

    def _show(self, line: Line) -> None:
        elapsed = seconds(time.monotonic() - self.started)
        self.terminal.say(line.text(time.strftime("%H:%M:%S") if self.clock else elapsed))
        if self.waiting is not None:
            self.waiting.touched()


class Statuses:
    """The statuses of one app, as they come.

    A server that cannot be reached is tried again for as long as `alive` says that it may return.
    """

    def __init__(self, client: Client, app: str, alive: Callable[[], bool]) -> None:
        self._client = client
        self._app = app
        self._alive = alive
        self._queue: asyncio.Queue[AppStatus | Error] = asyncio.Queue()
        self.connected = False

    async def read(self) -> None:
        """Feed `next` for ever."""
        while True:
            try:
                async with aclosing(self._client.watch(self._app)) as statuses:
                    async for status in statuses:
                        self.connected = True
                        self._queue.put_nowait(status)
            except UnavailableError as error:
                if not self._alive():
                    self._queue.put_nowait(error)
                    return
            except Error as error:
                self._queue.put_nowait(error)
                return
            self.connected = False
            await asyncio.sleep(_RETRY)

    async def next(self, patience: float) -> AppStatus | None:
        """The next status; None if there is none within `patience` seconds."""
        try:
            async with asyncio.timeout(patience):
                found = await self._queue.get()
        except TimeoutError:
            return None
        if isinstance(found, Error):
            raise found
        return found


async def known(client: Client, app: str) -> AppStatus | None:
    """An app's status, if there is such an app."""
    try:
        return await client.app_status(app)
    except NotFoundError:
        return None


@asynccontextmanager
async def statuses(
    client: Client, app: str, alive: Callable[[], bool] = lambda: False
) -> AsyncIterator[Statuses]:
    """Follow an app for as long as the context lasts."""
    following = Statuses(client, app, alive)
    reader = asyncio.get_running_loop().create_task(following.read())
    try:
        yield following
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


async def until_ready(
    client: Client,
    following: Statuses,
    feed: Feed,
    generation: int,
    timeout: float,
    ailment: Callable[[], Awaitable[Error | None]] | None = None,
) -> AppStatus:
    """Wait until an app, or the feed's workload, is ready at a generation.

    Args:
        client: of the server.
        following: of the app.
        feed: where progress is shown.
        generation: the app's, at least.
        timeout: seconds.
        ailment: asked every second why all this can never work.

    Raises:
        UnavailableError: a part cannot become ready, or the time is over; says which and why.
        Error: the ailment.
    """
    deadline = time.monotonic() + timeout
    failing, asking = _Lasting(_SETTLE), _Lasting(_ASK)
    status = feed.last
    with feed.terminal.waiting("waiting for the server") as waiting:
        feed.waiting = waiting
        try:
            while True:
                current = status is not None and status.generation >= generation
                if status is not None and current and settled(status):
                    return status
                if status is not None and failing.since(current and bool(failures(status))):
                    raise await _failed(client, status)
                if ailment is not None and asking.since(holds=True):
                    asking.restart()
                    if error := await ailment():
                        raise error
                left = deadline - time.monotonic()
                if left <= 0:
                    raise await _late(client, status, timeout)
                fresh = await following.next(min(0.25, left))
                if fresh is not None:
                    feed.update(fresh)
                    status = feed.last
                waiting.tick()
        finally:
            feed.waiting = None


class _Lasting:
    """Whether something has held for some seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began: float | None = None

    def since(self, holds: bool) -> bool:  # noqa: FBT001 - what it is about
        """Note whether it holds now; True if it has for long enough."""
        if not holds:
            self._began = None
            return False
        if self._began is None:
            self._began = time.monotonic()
        return time.monotonic() - self._began >= self._seconds

    def restart(self) -> None:
        """Forget how long it has held."""
        self._began = None


async def _failed(client: Client, status: AppStatus) -> Error:
    lines = [
        f"\n  {line.kind} {clean(line.name)}: {brief(line.detail) or line.state}"
        for line in failures(status)
    ]
    text = f"{status.app} cannot become ready:{''.join(lines)}"
    return UnavailableError(text + await _output(client, status), hint=_advice(status))


async def _late(client: Client, status: AppStatus | None, timeout: float) -> Error:
    if status is None:
        return UnavailableError(
            f"the server says nothing of the app after {timeout:g} s", hint="see `bedstone ps`"
        )
    lines = [f"\n  {text}" for text in unready(status)] or ["\n  older revisions to end"]
    text = f"{status.app} is not ready after {timeout:g} s, it waits for:{''.join(lines)}"
    return UnavailableError(text + await _output(client, status), hint=_advice(status))


def _advice(status: AppStatus) -> str:
    workload = troubled(status)
    look = f"`bedstone logs {workload}`" if workload else "`bedstone ps`"
    return f"it goes on in the background; look with {look}, end it with `bedstone down`"


async def _output(client: Client, status: AppStatus) -> str:
    """The last lines that the workload in trouble wrote."""
    workload = troubled(status)
    if workload is None:
        return ""
    lines: list[str] = []
    try:
        async with (
            asyncio.timeout(3),
            aclosing(client.logs(status.app, workload, tail=_TAIL)) as found,
        ):
            async for line in found:
                lines.append(f"\n  {clean(line.source)} | {clean(line.text)}")  # noqa: PERF401 - kept when the time is over
    except (Error, TimeoutError):
        pass
    return f"\nlast output of {workload}:{''.join(lines[-_TAIL:])}" if lines else ""
