"""Scenes of a real node agent: small programs for its instances, and what tests do to them.

A scene is a coroutine that is given a running `World`; `scene` makes one, plays it, and ends it.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bedstone.model.resources import Instance
from bedstone.testing.node import World, node_world

SERVER = """
import http.server, os, signal, sys, time
from pathlib import Path
sick = Path(__file__).with_name("sick")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/exit":
            os._exit(3)
        self.send_response(503 if sick.exists() else 200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *arguments):
        pass
print("starting", os.getpid(), flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
FILES = {
    "server.py": SERVER,
    "crash.py": "print('cannot go on', flush=True); raise SystemExit(3)",
    "prepare.py": "print('preparing', flush=True)",
    "broken.py": "print('no such table: accounts', flush=True); raise SystemExit(4)",
    "lines.py": (
        "import os, socket, time\n"
        "s = socket.create_server(('127.0.0.1', int(os.environ['PORT'])))\n"
        "for i in range(100): print('line', i, flush=True)\n"
        "time.sleep(1000)\n"
    ),
}
WEB: dict[str, Any] = {"command": ["python", "server.py"]}


def scene(play: Callable[[World], Awaitable[None]], limit: float = 60.0) -> None:
    """Play a scene in a world of its own, for so many seconds at most."""

    async def run() -> None:
        async with asyncio.timeout(limit), node_world(FILES) as world:
            await play(world)

    asyncio.run(run())


def pid_of(world: World, instance: Instance) -> int:
    """The process that an instance is reported to run as."""
    status = world.server.status(instance)
    assert status is not None
    assert status.pid is not None
    return status.pid


async def kill_agent(world: World, *, number: int = signal.SIGKILL) -> None:
    """End the agent, and wait until the next one has greeted the server."""
    hellos = len(world.server.hellos)
    await world.supervisor.signal("node", number)
    await world.server.until(lambda: len(world.server.hellos) > hellos)


def is_running(pid: int) -> bool:
    """Whether a process is there, and is no zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"
