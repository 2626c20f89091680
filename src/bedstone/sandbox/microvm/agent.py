"""The host's side of the agent protocol, over asyncio: one connection, many requests at once.

Rules:
- A connection begins with a nonce that the agent sends back. What comes before is left from an
  earlier connection through the same port, and is dropped; where that was cut within a frame, no
  greeting can be read, and the connection is made again.
- A guest is not trusted: what it sends is bounded by the credit it was granted, and what does not
  belong to the protocol ends the connection with an error for every request that waits.
- What an `exec` started ends with its connection.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bedstone.errors import DeniedError, Error, UnavailableError, from_code
from bedstone.sandbox.microvm import wire
from bedstone.sandbox.microvm.wire import Frame, Kind

STDIN, STDOUT, STDERR = 0, 1, 2

_GREETING = 2.0
"""Seconds after which a connection without a greeting is made again."""


class Stream:
    """One request, from its start until its answer, with bytes in both directions."""

    def __init__(self, link: _Link, number: int) -> None:
        self._link = link
        self.number = number
        loop = asyncio.get_running_loop()
        self.started: asyncio.Future[Mapping[str, Any]] = loop.create_future()
        self.answer: asyncio.Future[Mapping[str, Any]] = loop.create_future()
        self.answer.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.started.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._credit = wire.WINDOW
        self._room = asyncio.Event()
        self._chunks: deque[tuple[int, bytes]] = deque()
        self._open = {STDOUT: wire.WINDOW, STDERR: wire.WINDOW}
        self._more = asyncio.Event()

    async def write(self, data: bytes) -> None:
        """Send on channel 0 as there is room; an empty `data` is its end.

        Once the request is answered nothing is sent any more.
        """
        if not data:
            self._link.send(Kind.DATA, self.number, bytes([STDIN]))
            return
        view = memoryview(data)
        while view and not self.answer.done():
            if self._credit <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            part = view[: min(wire.CHUNK, self._credit)]
            self._credit -= len(part)
            self._link.send(Kind.DATA, self.number, bytes([STDIN]) + part)
            await self._link.drained()
            view = view[len(part) :]

    def taken(self, count: int) -> None:
        """So much of what may be written on channel 0 is there already."""
        self._credit -= count

    async def read(self) -> tuple[int, bytes] | None:
        """The next bytes with their channel, empty for the channel's end; None after the answer.

        Raises:
            Error: the request failed.
        """
        while not self._chunks:
            if self.answer.done():
                self.answer.result()
                return None
            self._more.clear()
            await self._more.wait()
        channel, data = self._chunks.popleft()
        if data:
            self._open[channel] += len(data)
            self._link.send_window(self.number, channel, len(data))
        return channel, data

    def take(self, frame: Frame) -> None:
        """A frame that came for it.

        Raises:
            UnavailableError: the protocol does not allow it.
        """
        match frame.kind:
            case Kind.RESULT:
                self._resolve(self.answer, _object(frame.payload))
            case Kind.ERROR:
                self.fail(_error(_object(frame.payload)))
            case Kind.EVENT:
                self._resolve(self.started, _object(frame.payload))
            case Kind.WINDOW:
                channel, count = wire.read_window(frame.payload)
                if channel == STDIN:
                    self._credit += count
                    self._room.set()
            case Kind.DATA if frame.payload and frame.payload[0] in self._open:
                channel, data = frame.payload[0], frame.payload[1:]
                self._open[channel] -= len(data)
                if self._open[channel] < 0:
                    raise UnavailableError("the guest's agent sent more than it was granted")
                self._chunks.append((channel, data))
            case _:
                raise UnavailableError(f"the guest's agent sent an unexpected {frame.kind.name}")
        self._more.set()

    def fail(self, error: Error) -> None:
        """End it with an error."""
        for future in (self.started, self.answer):
            if not future.done():
                future.set_exception(error)
        self._room.set()
        self._more.set()

    def _resolve(self, future: asyncio.Future[Mapping[str, Any]], value: Mapping[str, Any]) -> None:
        if not future.done():
            future.set_result(value)
        if future is self.answer:
            if not self.started.done():
                self.started.set_result(value)
            self._room.set()


class _Link(asyncio.Protocol):
    def __init__(self) -> None:
        self._decoder = wire.Decoder()
        self._transport: asyncio.Transport | None = None
        self._nonce = os.urandom(16)
        self._writable = asyncio.Event()
        self._writable.set()
        self.greeting: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.streams: dict[int, Stream] = {}
        self._last = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - for the type checker
        self._transport = transport
        self.send(Kind.HELLO, wire.VERSION, self._nonce)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                self._take(frame)
        except UnavailableError as error:
            self.give_up(error)

    def _take(self, frame: Frame) -> None:
        if not self.greeting.done():
            if frame.kind is Kind.HELLO and frame.payload == self._nonce:
                self.greeting.set_result(frame.id)
        elif stream := self.streams.get(frame.id):
            stream.take(frame)
            if frame.kind in (Kind.RESULT, Kind.ERROR):
                del self.streams[frame.id]
        # Frame 0 is an event of the guest as a whole; one for a request that is done is let go.

    def connection_lost(self, exc: Exception | None) -> None:
        self.give_up(UnavailableError(f"the guest's agent is gone{f': {exc}' if exc else ''}"))
        if not self.closed.done():
            self.closed.set_result(None)

    def give_up(self, error: Error) -> None:
        if not self.greeting.done():
            self.greeting.set_exception(error)
            self.greeting.exception()  # whoever waits for it has its own reference
        for stream in self.streams.values():
            stream.fail(error)
        self.streams.clear()
        self._writable.set()
        if self._transport is not None:
            self._transport.abort()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def drained(self) -> None:
        await self._writable.wait()

    def send(self, kind: Kind, number: int, payload: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(wire.encode(kind, number, payload))

    def send_window(self, number: int, channel: int, count: int) -> None:
        if self._transport is not None and number in self.streams:
            self._transport.write(wire.window(number, channel, count))

    def open(self, request: Mapping[str, Any]) -> Stream:
        if self._transport is None or self._transport.is_closing():
            raise UnavailableError("the guest's agent is gone")
        self._last += 1
        stream = self.streams[self._last] = Stream(self, self._last)
        self.send(Kind.REQUEST, self._last, json.dumps(request).encode())
        return stream


class Agent:
    """A connection to a guest's agent. Use `connect`, and `close` it or leave its block."""

    def __init__(self, link: _Link) -> None:
        self._link = link

    @classmethod
    async def connect(cls, path: Path, patience: float = 30.0) -> Agent:
        """Connect to a socket and wait for the agent's greeting, `patience` seconds at most.

        Raises:
            UnavailableError: nobody greets.
        """
        loop = asyncio.get_running_loop()
        deadline = time.monotonic() + patience
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        # A socket's path has at most 107 bytes, wherever the box's folder is.
        short = f"/proc/self/fd/{folder}/{path.name}"
        try:
            while True:
                problem: Exception
                try:
                    _, link = await loop.create_unix_connection(_Link, short)
                except OSError as error:
                    problem = error
                else:
                    left = max(0.05, min(_GREETING, deadline - time.monotonic()))
                    try:
                        version = await asyncio.wait_for(asyncio.shield(link.greeting), left)
                    except (TimeoutError, UnavailableError) as error:
                        problem = error
                        link.give_up(UnavailableError("the guest's agent did not greet"))
                    except BaseException:
                        link.give_up(UnavailableError("the connection was given up"))
                        raise
                    else:
                        if version == wire.VERSION:
                            return cls(link)
                        link.give_up(UnavailableError("another version"))
                        raise UnavailableError(
                            f"the guest's agent speaks version {version} of the protocol, "
                            f"expected {wire.VERSION}"
                        )
                if time.monotonic() >= deadline:
                    raise UnavailableError(
                        f"the guest's agent does not answer: {str(problem) or 'no greeting'}"
                    ) from problem
                await asyncio.sleep(0.01)
        finally:
            os.close(folder)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of it; what its `exec` started is ended by the agent."""
        self._link.give_up(UnavailableError("the connection to the guest was closed"))
        await asyncio.shield(self._link.closed)

    @property
    def lost(self) -> asyncio.Future[None]:
        """Done once the connection has ended."""
        return self._link.closed

    async def request(self, operation: str, **fields: Any) -> Mapping[str, Any]:
        """Ask for something that has one answer.

        Raises:
            DeniedError: the policy, as the guest has it, refuses; names the field.
            Error: any other refusal.
            UnavailableError: the connection ended.
        """
        return await self._link.open({"op": operation, **fields}).answer

    async def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        user: int = 0,
        group: int = 0,
        groups: Sequence[int] = (),
        capabilities: Sequence[str] = (),
        tty: bool = False,
        size: tuple[int, int] = (24, 80),
        stdin: bool = False,
        main: bool = False,
    ) -> Program:
        """Start a program; it runs when this returns.

        Raises:
            DeniedError: the policy refuses.
            NotFoundError: no such program, or folder.
            UnavailableError: it could not be started.
        """
        stream = self._link.open(
            {
                "op": "exec",
                "argv": list(argv),
                "env": dict(env or {}),
                "cwd": cwd,
                "user": user,
                "group": group,
                "groups": list(groups),
                "capabilities": list(capabilities),
                "tty": tty,
                "rows": size[0],
                "columns": size[1],
                "stdin": stdin,
                "main": main,
            }
        )
        started = await stream.started
        return Program(self, stream, int(started["pid"]))

    async def adopt(self) -> Program:
        """Take over the box's command, in a guest that is a copy of another.

        Raises:
            NotFoundError: it has ended, or has its host.
        """
        stream = self._link.open({"op": "adopt"})
        started = await stream.started
        stream.taken(int(started["waiting"]))
        return Program(self, stream, int(started["pid"]))

    async def put(self, path: str, records: AsyncIterator[bytes]) -> None:
        """Send files into a folder, as records (see `archive`).

        Raises:
            Error: it failed; what was written before stays.
        """
        stream = self._link.open({"op": "put", "path": path})
        async for part in records:
            await stream.write(part)
            if stream.answer.done():
                break
        await stream.write(b"")
        await stream.answer

    async def get(self, path: str) -> AsyncIterator[bytes]:
        """Files of a path, as records.

        Raises:
            Error: it failed; what came before may be cut.
        """
        stream = self._link.open({"op": "get", "path": path})
        while (item := await stream.read()) is not None:
            if item[1]:
                yield item[1]


class Program:
    """A program that runs in the guest, and its standard streams."""

    def __init__(self, agent: Agent, stream: Stream, pid: int) -> None:
        self._agent = agent
        self._stream = stream
        self.pid = pid

    async def write(self, data: bytes) -> None:
        """Send to its standard input, as fast as it reads; empty is the end."""
        await self._stream.write(data)

    async def read(self) -> tuple[int, bytes] | None:
        """The next output with its channel; see `Stream.read`."""
        return await self._stream.read()

    async def wait(self) -> int:
        """Its exit status, or 128 + N after signal N; may be awaited many times."""
        return int((await asyncio.shield(self._stream.answer))["exit"])

    @property
    def ended(self) -> bool:
        """Whether its end is known."""
        return self._stream.answer.done()

    async def signal(self, number: int) -> None:
        """Signal it and all of its process group; nothing happens when it has ended."""
        await self._ask("signal", signal=number, group=True)

    async def resize(self, rows: int, columns: int) -> None:
        """Its terminal has another size now."""
        await self._ask("resize", rows=rows, columns=columns)

    async def _ask(self, operation: str, **fields: Any) -> None:
        try:
            await self._agent.request(operation, pid=self.pid, **fields)
        except Error as error:
            if error.code != "not_found":
                raise


def _object(payload: bytes) -> dict[str, Any]:
    try:
        value = json.loads(payload)
    except ValueError as error:
        raise UnavailableError("the guest's agent sent what is no JSON") from error
    if not isinstance(value, dict):
        raise UnavailableError("the guest's agent sent what is no object")
    return value


def _error(value: Mapping[str, Any]) -> Error:
    code, field = str(value.get("code")), str(value.get("field") or "")
    message = str(value.get("message"))
    if code == "denied" and field:
        return DeniedError(f"the guest refused: {message}", hint=f"see the policy's field {field}")
    where = f" ({field})" if field and field not in message else ""
    return from_code(code, f"{message}{where}")
