"""The one stream to the server: opened by the node, kept open, opened again when it breaks.

Each attempt makes a channel of its own, so that a renewed certificate is used and gRPC's own
back-off, which grows to minutes, plays no part.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import grpc
import grpc.aio
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from bedstone.model.messages import (
    SESSION_METHOD,
    FromNode,
    FromServer,
    decode_from_server,
    encode,
)
from bedstone.node.reports import Reports
from bedstone.trust.svid import Svid

_log = logging.getLogger(__name__)

FIRST_BACKOFF = 0.05
LAST_BACKOFF = 1.0
QUEUE_BOUND = 16
_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    # A proxy variable in the agent's environment is not for the control plane.
    ("grpc.enable_http_proxy", 0),
)


class Session:
    """The stream. `send` is for messages that need the stream that is open now."""

    def __init__(
        self,
        address: Callable[[], str],
        identity: Callable[[], Svid],
        reports: Reports,
        receive: Callable[[FromServer], None],
        failed: Callable[[], Awaitable[None]],
        opened: Callable[[], None],
        *,
        heartbeat: float = 3.0,
    ) -> None:
        """Args: where, as whom, what to tell, who hears, what to do when it fails and opens."""
        self._address = address
        self._identity = identity
        self._reports = reports
        self._receive = receive
        self._failed = failed
        self._opened = opened
        self._heartbeat = heartbeat
        self._outbox: asyncio.Queue[FromNode] = asyncio.Queue()
        self.connected = asyncio.Event()

    def send(self, message: FromNode) -> bool:
        """Queue a message for the open stream; False if none is open."""
        if not self.connected.is_set():
            return False
        self._outbox.put_nowait(message)
        return True

    async def drained(self) -> None:
        """Wait until few messages are queued, so that a flood of output takes no memory."""
        while self._outbox.qsize() > QUEUE_BOUND:  # noqa: ASYNC110 - a queue tells no length
            await asyncio.sleep(0.005)

    async def run(self) -> None:
        """Keep the stream open until cancelled."""
        pause = FIRST_BACKOFF
        while True:
            worked = await self._once()
            if worked:
                pause = FIRST_BACKOFF
            else:
                await self._failed()
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311
            pause = min(pause * 2, LAST_BACKOFF)

    async def _once(self) -> bool:
        """One stream, until it breaks; whether it ever carried a message from the server."""
        svid = self._identity()
        credentials = grpc.ssl_channel_credentials(
            svid.bundle.encode(), svid.key.encode(), svid.chain.encode()
        )
        heard = False
        channel = grpc.aio.secure_channel(self._address(), credentials, options=_OPTIONS)
        try:
            # What is sent is encoded here: gRPC would log an error in that and hide its kind.
            method: Any = channel.stream_stream(
                SESSION_METHOD, response_deserializer=decode_from_server
            )
            call = method()
            await call.write(encode(self._reports.hello()))
            self._outbox = asyncio.Queue()

            async def read() -> None:
                nonlocal heard
                while (message := await call.read()) is not grpc.aio.EOF:
                    if not heard:
                        heard = True
                        self.connected.set()
                        self._opened()
                        _log.info("session open", extra={"server": self._address()})
                    self._receive(message)

            await _first_to_end(read(), self._write(call))
            _log.info("session closed", extra={"reason": "the server ended it"})
        except grpc.aio.AioRpcError as error:
            if heard or error.code() is not grpc.StatusCode.UNAVAILABLE:
                reason = f"{error.code().name}: {error.details()}"
                _log.info("session closed", extra={"reason": reason})
        except (
            asyncio.InvalidStateError,
            grpc.aio.UsageError,
            ValidationError,
            PydanticSerializationError,
            UnicodeError,
        ) as error:
            reason = f"{type(error).__name__}: {error}"
            _log.warning("session closed", extra={"reason": reason})
        finally:
            self.connected.clear()
            await channel.close(None)
        return heard

    async def _write(self, call: Any) -> None:
        """Tell changes at once, and be heard of regularly, whatever else there is to send."""
        now = asyncio.get_running_loop().time
        due = now() + self._heartbeat
        while True:
            if now() >= due or (self._outbox.empty() and self._reports.changed.is_set()):
                await call.write(encode(self._reports.take()))
                due = now() + self._heartbeat
            elif not self._outbox.empty():
                await call.write(encode(self._outbox.get_nowait()))
            else:
                change = asyncio.ensure_future(self._reports.changed.wait())
                queued = asyncio.ensure_future(self._outbox.get())
                done, _ = await asyncio.wait(
                    (change, queued), timeout=due - now(), return_when=asyncio.FIRST_COMPLETED
                )
                change.cancel()
                queued.cancel()
                if queued in done:
                    await call.write(encode(queued.result()))


async def _first_to_end(
    reading: Coroutine[Any, Any, None], writing: Coroutine[Any, Any, None]
) -> None:
    """Read and write until either ends: the server would wait long for one that never writes."""
    tasks = [asyncio.ensure_future(work) for work in (reading, writing)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:  # what the reader says of a broken stream says more
        if task in done and not task.cancelled():
            task.result()
