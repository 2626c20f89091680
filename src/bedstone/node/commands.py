"""What the server asks the node to do now: show logs, make a call, name a database, stop that."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, aclosing
from typing import Final, Protocol
from urllib.parse import urlsplit

from pydantic import TypeAdapter

from bedstone.errors import INTERNAL, Error, InvalidError
from bedstone.model.messages import Command, FromNode, Reply
from bedstone.model.monitoring import TapRecord
from bedstone.node.config import NodeConfig
from bedstone.node.http import request
from bedstone.node.logs import show
from bedstone.node.tap import Tap, Wanted
from bedstone.node.tasks import Tasks
from bedstone.telemetry.frames import Frame, encode
from bedstone.telemetry.lines import Filter

TAP_PERIOD: Final = 0.1
"""Seconds between two answers to a tap."""
TAP_SILENCE: Final = 1.0
"""Seconds without a record after which that is said."""
_RECORDS: Final = TypeAdapter(list[TapRecord])


class Databases(Protocol):
    """What commands need of the node's databases."""

    def operator_url(self, path: str, user: str) -> str:
        """The URL of the ready database APP/CELL/NAME with the credentials of `user`."""
        ...


class Collector(Protocol):
    """What commands need of the node's collector."""

    async def collect(self, second: int, *, full: bool) -> Frame:
        """The frame of one second."""
        ...


class Sampling(Protocol):
    """What commands need of who governs the share of sampled traces."""

    def fix(self, value: float | None) -> None:
        """Keep to one share (0 to 1); None for what the rate of requests asks for."""
        ...


class Tapping(Protocol):
    """What commands need of the node's taps."""

    def open(self, wanted: Wanted) -> AbstractContextManager[Tap]:
        """A tap, until it is left."""
        ...


class Commands:
    """The commands that are being answered."""

    def __init__(
        self,
        config: NodeConfig,
        send: Callable[[FromNode], bool],
        drained: Callable[[], Awaitable[None]],
        tasks: Tasks,
        databases: Databases,
        collector: Collector,
        sampling: Sampling,
        taps: Tapping,
    ) -> None:
        """Args: the node's, how to answer, how to wait until answers have left, where to work."""
        self._config = config
        self._send = send
        self._drained = drained
        self._tasks = tasks
        self._databases = databases
        self._collector = collector
        self._sampling = sampling
        self._taps = taps
        self._running: dict[str, asyncio.Task[object]] = {}

    def stop(self) -> None:
        """Stop answering what the server asked on an earlier stream."""
        for task in self._running.values():
            task.cancel()
        self._running.clear()

    def handle(self, command: Command) -> None:
        """Begin to answer, or stop."""
        if command.action == "cancel":
            task = self._running.pop(command.subject, None)
            if task is not None:
                task.cancel()
            return
        task = self._tasks.start(self._answer(command))
        self._running[command.id] = task
        task.add_done_callback(lambda _: self._running.pop(command.id, None))

    async def _answer(self, command: Command) -> None:
        try:
            match command.action:
                case "call":
                    await self._call(command)
                case "logs":
                    await self._logs(command)
                case "database":
                    url = self._databases.operator_url(command.subject, command.identity)
                    self._send(Reply(id=command.id, final=True, body=url))
                case "metrics":
                    await self._metrics(command)
                case "sampling":
                    self._sampling.fix(float(command.subject) if command.subject else None)
                    self._send(Reply(id=command.id, final=True))
                case "tap":
                    await self._tap(command)
        except Error as error:
            self._send(Reply(id=command.id, final=True, error=error.code, message=str(error)))
        except Exception as error:  # whoever asked must hear of it, and not wait for ever
            message = f"an error of ours: {type(error).__name__}"
            self._send(Reply(id=command.id, final=True, error=INTERNAL, message=message))
            raise

    async def _logs(self, command: Command) -> None:
        batches = show(
            self._config.logs,
            command.subject,
            since=command.since,
            until=command.until,
            tail=command.tail,
            follow=command.follow,
            wanted=Filter(command.trace, command.level, command.text),
        )
        async with aclosing(batches):
            async for lines in batches:
                if not self._send(Reply(id=command.id, lines=tuple(lines))):
                    return  # the stream broke, and with it the command
                await self._drained()
        self._send(Reply(id=command.id, final=True))

    async def _tap(self, command: Command) -> None:
        wanted = Wanted(command.app, command.subject, command.errors, command.share)
        with self._taps.open(wanted) as tap:
            while True:
                records = await tap.next(TAP_SILENCE)
                body = _RECORDS.dump_json(records).decode()
                # Sent without records too: that is how the end of the stream is noticed.
                if not self._send(Reply(id=command.id, body=body)):
                    return
                await self._drained()
                await asyncio.sleep(TAP_PERIOD)

    async def _metrics(self, command: Command) -> None:
        frame = await self._collector.collect(int(command.since or 0), full=command.full)
        body = base64.b64encode(encode(frame)).decode()
        self._send(Reply(id=command.id, final=True, body=body))

    async def _call(self, command: Command) -> None:
        """One request into the mesh, as the command's identity."""
        url = urlsplit(command.url)
        if not url.hostname:
            raise InvalidError(f"got {command.url!r}, expected http://WORKLOAD/PATH")
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        headers = [item for item in command.headers if item[0].lower() != "host"]
        answer = await request(
            str(self._config.calls / f"{command.app}.{command.identity}.sock"),
            command.method,
            path,
            headers=[("host", url.netloc), *headers],
            body=base64.b64decode(command.body),
            timeout=command.timeout,
        )
        self._send(
            Reply(
                id=command.id,
                final=True,
                status=answer.status,
                headers=answer.headers,
                body=base64.b64encode(answer.body).decode(),
            )
        )
