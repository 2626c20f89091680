"""The supervisor's events, heard once and handed to whoever waits for a process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from bedstone.errors import UnavailableError
from bedstone.processes.client import ProcessEvent
from bedstone.processes.spec import ProcessInfo
from bedstone.sandbox.protocol import Processes


class Supervisor(Processes, Protocol):
    """What the node needs of the supervisor."""

    def watch(self) -> AsyncIterator[ProcessEvent]:
        """What is, then what changes."""
        ...


class Watch:
    """Every process by name as last heard, and callbacks by the prefix of a name."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self._listeners: list[tuple[str, Callable[[ProcessInfo], None]]] = []
        self._changed = asyncio.Condition()
        self.synced = asyncio.Event()
        self.latest: dict[str, ProcessInfo] = {}

    def listen(self, prefix: str, listener: Callable[[ProcessInfo], None]) -> None:
        """Call `listener` for every process that ends and whose name has the prefix."""
        self._listeners.append((prefix, listener))

    async def run(self) -> None:
        """Listen until cancelled; UnavailableError when the supervisor is gone."""
        async for event in self.supervisor.watch():
            info = event.process
            if event.kind == "synced":
                self.synced.set()
            elif info is not None:
                if event.kind == "forgotten":
                    self.latest.pop(info.name, None)
                else:
                    self.latest[info.name] = info
                if not info.running and event.kind != "forgotten":
                    for prefix, listener in self._listeners:
                        if info.name.startswith(prefix):
                            listener(info)
            async with self._changed:
                self._changed.notify_all()
        raise UnavailableError("the supervisor is gone")

    async def ended(self, started: ProcessInfo) -> ProcessInfo:
        """Wait for the end of a process that was started."""
        if not started.running:
            return started
        async with self._changed:
            while True:
                now = self.latest.get(started.name)
                if now is not None and now.pid == started.pid and not now.running:
                    return now
                await self._changed.wait()
