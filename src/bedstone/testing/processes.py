"""A real supervisor and small processes for tests.

`supervised` starts a supervisor in a folder, and ends it in good order; it may have said nothing.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from bedstone.processes.client import (
    RunInfo,
    SupervisorClient,
    start_supervisor,
)
from bedstone.processes.identity import ProcessIdentity
from bedstone.processes.spec import ProcessSpec

ENV = {"PATH": os.environ["PATH"]}


def program(name: str, *argv: str, **fields: object) -> ProcessSpec:
    """A process that is asked for."""
    return replace(ProcessSpec(name, argv, env=ENV), **fields)  # type: ignore[arg-type]


def script(name: str, text: str, **fields: object) -> ProcessSpec:
    """A process that runs a text of Python."""
    return program(name, sys.executable, "-I", "-S", "-c", text, **fields)


@asynccontextmanager
async def supervised(
    folder: Path, *processes: ProcessSpec, detached: bool = False
) -> AsyncIterator[tuple[RunInfo, SupervisorClient]]:
    """A supervisor with its state in a folder, and a client of it."""
    run = await start_supervisor(
        folder / ".bedstone", processes, detached=detached, log=folder / "supervisor.log"
    )
    try:
        async with SupervisorClient(run.socket) as client:
            yield run, client
    finally:
        run.identity.send_signal(signal.SIGTERM)
        await until(lambda: not run.alive())
        assert (folder / "supervisor.log").read_text() == ""


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 20.0) -> None:
    """Wait for a condition that nobody announces."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found if isinstance(found, bool) else await found:
            return
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.01)


def written(path: Path) -> bool:
    """Whether a file has something in it."""
    return path.exists() and path.read_text().strip() != ""


def gone(process: ProcessIdentity) -> bool:
    """Whether a process has ended."""
    return not process.alive()


async def end_of(client: SupervisorClient, name: str) -> str:
    """How a process of the supervisor ended, when it has."""

    async def ended() -> bool:
        return not (await client.get(name)).running

    await until(ended)
    return (await client.get(name)).ending()
