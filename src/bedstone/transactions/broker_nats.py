"""The broker NATS, with JetStream: streams on disk, acknowledged one by one.

Rules:
- It connects at its first use, and for as long as it is used: a server that comes back is found.
- A publish without an answer is an `UnknownOutcomeError`: the server may have it.
- Messages name neither user nor password.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from bedstone.errors import (
    DeniedError,
    Error,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnknownOutcomeError,
)
from bedstone.transactions.broker import ID, Delivery, Message

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

_log = logging.getLogger(__name__)

_REST: Final = 0.02
"""Seconds to wait for messages that are there, and that another consumer may take."""


class NatsBroker:
    """One NATS server or cluster.

    Args:
        url: `nats://user:password@host:port`.
        timeout: seconds for an answer.
    """

    def __init__(self, url: str, *, timeout: float = 2.0) -> None:
        self._url = url
        self._timeout = timeout
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._guard = asyncio.Lock()

    @classmethod
    def open(cls, url: str) -> Self:
        """As `Kind.open` asks."""
        return cls(url)

    async def __aenter__(self) -> Self:
        await self._connected()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def declare(
        self, stream: str, *subjects: str, duplicate_window: float = 120.0, replicas: int = 1
    ) -> None:
        """Make a stream on disk, unless it is there with the same settings.

        Raises:
            InvalidError: the server refuses it.
            UnavailableError: the server does not answer.
        """
        from nats.js.api import StorageType, StreamConfig

        config = StreamConfig(
            name=stream,
            subjects=list(subjects),
            storage=StorageType.FILE,
            duplicate_window=duplicate_window,
            num_replicas=replicas,
        )
        context = await self._context()
        async with _translated("declaring a stream", reading=True):
            await context.add_stream(config)

    async def publish(self, message: Message) -> None:
        """As `Broker.publish`."""
        context = await self._context()
        async with _translated("publishing"):
            await context.publish(
                message.subject,
                message.data,
                timeout=self._timeout,
                headers={**message.headers, ID: message.id},
            )

    async def subscribe(
        self, subject: str, durable: str, *, ack_wait: float = 30.0
    ) -> NatsSubscription:
        """As `Broker.subscribe`."""
        from nats.js.api import AckPolicy, ConsumerConfig

        context = await self._context()
        config = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, ack_wait=ack_wait, max_deliver=-1)
        async with _translated("subscribing", reading=True):
            pulled = await context.pull_subscribe(subject, durable, config=config)
        return NatsSubscription(pulled, self._timeout)

    async def close(self) -> None:
        """As `Broker.close`."""
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            with suppress(OSError):  # the server has gone first
                await client.close()

    async def _context(self) -> JetStreamContext:
        return (await self._connected()).jetstream(timeout=self._timeout)

    async def _connected(self) -> Client:
        import nats

        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._client, self._loop, self._guard = None, loop, asyncio.Lock()
        async with self._guard:
            if self._client is None or self._client.is_closed:
                async with _translated("connecting", reading=True):
                    self._client = await asyncio.wait_for(
                        nats.connect(
                            self._url,
                            connect_timeout=2,
                            reconnect_time_wait=0.1,
                            max_reconnect_attempts=-1,
                            error_cb=_noted,
                        ),
                        self._timeout * 2,
                    )
            return self._client


class NatsSubscription:
    """A durable pull consumer. Made by `NatsBroker.subscribe`."""

    def __init__(self, pulled: JetStreamContext.PullSubscription, timeout: float) -> None:
        self._pulled = pulled
        self._timeout = timeout

    async def take(self, limit: int, wait: float) -> Sequence[Delivery]:
        """As `Subscription.take`."""
        async with _translated("taking messages", reading=True):
            try:
                found = await self._pulled.fetch(1, timeout=wait)
            except TimeoutError:
                return ()
            # Asked for several, the client waits its whole time for the last of them.
            more = min(limit - 1, found[0].metadata.num_pending)
            if more > 0:
                with suppress(TimeoutError):  # another consumer was quicker
                    found += await self._pulled.fetch(more, timeout=_REST)
        return tuple(NatsDelivery.of(message, self._timeout) for message in found)

    async def floor(self) -> int:
        """As `Subscription.floor`."""
        async with _translated("asking for the consumer", reading=True):
            info = await self._pulled.consumer_info()
        return info.ack_floor.stream_seq if info.ack_floor is not None else 0


@dataclass(frozen=True, slots=True)
class NatsDelivery:
    """One delivery of JetStream."""

    message: Message
    sequence: int
    attempt: int
    raw: Msg
    timeout: float

    @classmethod
    def of(cls, raw: Msg, timeout: float) -> Self:
        """What was delivered; a message that was sent without an id gets one by its place."""
        about = raw.metadata
        headers = dict(raw.headers or {})
        identity = headers.pop(ID, "") or f"{about.stream}/{about.sequence.stream}"
        message = Message(raw.subject, identity, raw.data, headers)
        return cls(message, about.sequence.stream, about.num_delivered, raw, timeout)

    async def ack(self) -> None:
        """As `Delivery.ack`."""
        async with _translated("acknowledging"):
            await self.raw.ack_sync(self.timeout)

    async def nak(self, delay: float) -> None:
        """As `Delivery.nak`."""
        async with _translated("refusing a message"):
            await self.raw.nak(delay)


async def _noted(error: Exception) -> None:
    _log.debug("nats: %s", type(error).__name__)


@asynccontextmanager
async def _translated(what: str, *, reading: bool = False) -> AsyncIterator[None]:
    """Foreign errors as ours; what was only read, or is idempotent by name, is never unknown."""
    from nats import errors
    from nats.js import errors as jetstream

    lost: type[Error] = UnavailableError if reading else UnknownOutcomeError
    try:
        yield
    except (errors.AuthorizationError, errors.InvalidUserCredentialsError) as error:
        raise DeniedError(f"{what}: nats refuses this user") from error
    except jetstream.NoStreamResponseError as error:
        raise UnavailableError(
            f"{what}: no stream of nats takes the subject, or JetStream is not up",
            hint="make a stream that has the subject (`NatsBroker.declare`)",
        ) from error
    except jetstream.NotFoundError as error:
        raise NotFoundError(f"{what}: nats has no such stream or consumer") from error
    except jetstream.BadRequestError as error:
        raise InvalidError(f"{what}: nats refuses: {error.description}") from error
    except jetstream.APIError as error:
        raise UnavailableError(f"{what}: nats says: {error.description}") from error
    except (errors.MaxPayloadError, errors.BadSubjectError, errors.BadHeaderError) as error:
        raise InvalidError(f"{what}: nats can't take it: {type(error).__name__}") from error
    except errors.MsgAlreadyAckdError:
        return
    except (errors.Error, OSError) as error:  # TimeoutError among them
        raise lost(f"{what}: nats gave no answer: {type(error).__name__}") from error
