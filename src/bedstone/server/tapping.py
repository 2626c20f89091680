"""The API's live tap: requests as the proxies of all nodes tell them, to one who looks on.

Rules:
- To look on is an operator's right, and stands in the audit: who, at what, since when.
- A reader that is slow loses records, which are counted; it holds up no node and no other reader.
- A node that goes away ends its part only; the stream ends with the last of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Annotated, Final, Protocol

from fastapi import FastAPI, Query
from fastapi.responses import StreamingResponse
from pydantic import TypeAdapter

from bedstone.control.loop import ControlLoop
from bedstone.errors import Error, NotFoundError, UnavailableError
from bedstone.model.messages import Command, Reply
from bedstone.model.monitoring import TapRecord
from bedstone.model.resources import App
from bedstone.server.api import Operator, stream
from bedstone.server.sessions import new_command_id

ROOM: Final = 5000
"""Records that wait for one reader."""
_RECORDS: Final = TypeAdapter(list[TapRecord])

Noted = Callable[[str, str, str, str], Awaitable[object]]
"""Writes the audit: who, action, target, detail."""


class Node(Protocol):
    """The session of one node."""

    def command(self, command: Command) -> AsyncGenerator[Reply, None]:
        """Have the node do something; yields its replies."""
        ...


class Nodes(Protocol):
    """The sessions of all nodes."""

    def get(self, node: str) -> Node:
        """A node's; UnavailableError."""
        ...


class Tapping:
    """Opens taps.

    Args:
        loop: what is declared, and the nodes.
        nodes: their sessions.
        noted: writes the audit.
    """

    def __init__(self, loop: ControlLoop, nodes: Nodes, noted: Noted) -> None:
        self._loop = loop
        self._nodes = nodes
        self._noted = noted

    def add_routes(self, app: FastAPI) -> None:
        """The API's route."""

        @app.get("/v1/apps/{name}/tap", response_class=StreamingResponse, tags=["traffic"])
        async def tap(
            name: str,
            who: Operator,
            *,
            workload: Annotated[str, Query(description="From or to this one only.")] = "",
            errors: Annotated[bool, Query(description="Failed requests only.")] = False,
            share: Annotated[float, Query(gt=0, le=1, description="Of the requests.")] = 1.0,
        ) -> StreamingResponse:
            command = Command(
                id="", action="tap", app=name, subject=workload, errors=errors, share=share
            )
            sessions = self.sessions(name, workload)
            target = f"{name}/{workload}" if workload else name
            await self._noted(who.who, "tap", target, f"share {share:g}")
            return stream(records(sessions, command))

    def sessions(self, app: str, workload: str) -> Sequence[Node]:
        """The nodes that can be asked about an app.

        Raises:
            NotFoundError: there is no such app or workload.
            UnavailableError: no node can be asked.
        """
        snapshot = self._loop.snapshot
        declared = snapshot.get(App, f"apps/{app}")
        if declared is None:
            raise NotFoundError(f"there is no app {app}", hint="see bedstone ps")
        if workload and workload not in {*declared.spec.workloads, "gateway", "operator"}:
            known = ", ".join(sorted(declared.spec.workloads))
            raise NotFoundError(f"app {app} has no workload {workload}, it has {known}")
        found = []
        for name in sorted(snapshot.nodes()):
            try:
                found.append(self._nodes.get(name))
            except UnavailableError:
                continue
        if not found:
            raise UnavailableError("no node can be asked now", retry_after=1.0)
        return found


async def records(nodes: Sequence[Node], command: Command) -> AsyncGenerator[TapRecord, None]:
    """What these nodes tell, as it comes."""
    waiting: deque[TapRecord] = deque()
    came = asyncio.Event()
    left_out = 0

    async def read(node: Node) -> None:
        nonlocal left_out
        try:
            own = command.model_copy(update={"id": new_command_id()})
            async with aclosing(node.command(own)) as replies:
                async for reply in replies:
                    for record in _RECORDS.validate_json(reply.body):
                        if len(waiting) >= ROOM:
                            left_out += 1 + record.left_out
                            continue
                        lost, left_out = left_out + record.left_out, 0
                        waiting.append(record.model_copy(update={"left_out": lost}))
                    came.set()
        except Error:
            return  # the others go on

    # No TaskGroup: one may not be left and entered again around the yields of a generator.
    tasks = [asyncio.create_task(read(node)) for node in nodes]
    ended = asyncio.gather(*tasks, return_exceptions=True)
    ended.add_done_callback(lambda _: came.set())
    try:
        while waiting or not ended.done():
            await came.wait()
            came.clear()
            while waiting:
                yield waiting.popleft()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
