"""What messages are, and what Bedstone asks of a message broker. Pure.

Owns `Message`, the protocols `Broker`, `Subscription` and `Delivery`, and the kind of driver.

Rules:
- A broker delivers at least once: a message may come twice, late, or in another order. Its own
  de-duplication by id is bounded in time; exactly-once effect is the consumer's barrier's.
- A publish returns after the broker has the message on disk.
- What is sent carries the headers of CloudEvents 1.0 (NATS protocol binding, binary mode).
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from urllib.parse import quote

from bedstone.drivers import Kind
from bedstone.errors import InvalidError

ID: Final = "Nats-Msg-Id"


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Args:
        subject: where it goes.
        id: unique for ever; who sends it again sends the same.
        data: the content.
        headers: text by name, without the id.
    """

    subject: str
    id: str
    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        """The content, read as JSON.

        Raises:
            InvalidError: it is none.
        """
        try:
            return json.loads(self.data)
        except ValueError as error:
            raise InvalidError(f"message {self.id}: its content is not JSON") from error


class Delivery(Protocol):
    """A message that a consumer was given, until it is acknowledged."""

    @property
    def message(self) -> Message:
        """The message."""

    @property
    def sequence(self) -> int:
        """Its place in the stream, from 1."""

    @property
    def attempt(self) -> int:
        """How often it has been delivered, this time included."""

    async def ack(self) -> None:
        """It is done; returns after the broker knows.

        Raises:
            UnknownOutcomeError: the broker did not answer; it may come again.
        """

    async def nak(self, delay: float) -> None:
        """Deliver it again, after so many seconds."""


class Subscription(Protocol):
    """A durable consumer's own view: it goes on where it was, after any restart."""

    async def take(self, limit: int, wait: float) -> Sequence[Delivery]:
        """What is there, at most `limit`; none after `wait` seconds without any.

        Raises:
            UnavailableError: the broker does not answer.
        """

    async def floor(self) -> int:
        """Every message up to this sequence is acknowledged.

        Raises:
            UnavailableError: the broker does not answer.
        """


class Broker(Protocol):
    """A message broker; connects at its first use, in the loop that uses it."""

    async def publish(self, message: Message) -> None:
        """Send; durable when it returns. Sending again under the same id is safe.

        Raises:
            InvalidError: the broker never takes such a message.
            UnavailableError: it was not taken.
            UnknownOutcomeError: no answer; send it again.
        """

    async def subscribe(
        self, subject: str, durable: str, *, ack_wait: float = 30.0
    ) -> Subscription:
        """Consume, as `durable`; unacknowledged messages come again after `ack_wait` seconds.

        Raises:
            NotFoundError: no stream has the subject.
            UnavailableError: the broker does not answer.
        """

    async def close(self) -> None:
        """Disconnect."""


BROKERS: Final[Kind[Broker]] = Kind(
    "message-broker", {"nats": "bedstone.transactions.broker_nats:NatsBroker"}
)


def open_broker(url: str) -> Broker:
    """Make the broker that a URL names, as `nats://user:password@host:port`.

    Raises:
        InvalidError: no driver has the URL's scheme.
    """
    return BROKERS.open(url)


def encoded(data: Any) -> tuple[bytes, str]:
    """Content as bytes, with its media type: bytes as they are, everything else as JSON.

    Raises:
        InvalidError: JSON can't hold it.
    """
    if isinstance(data, bytes):
        return data, "application/octet-stream"
    try:
        return json.dumps(data, allow_nan=False).encode(), "application/json"
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidError(
            f"the message can't be written as JSON: {error}",
            hint="pass bytes, or text, numbers, booleans, lists and mappings",
        ) from error


def composed(
    subject: str,
    identity: str,
    data: Any,
    headers: Mapping[str, str],
    *,
    source: str,
    at: float,
) -> Message:
    """A message with CloudEvents headers; those given win, and may not break the lines.

    Raises:
        InvalidError: subject, id, data or a header can't be sent.
    """
    content, media = encoded(data)
    if not subject or any(c in " \t\r\n*>\0" for c in subject):
        raise InvalidError(f"got subject {subject!r}, expected one without spaces and wildcards")
    for name, value in (*headers.items(), ("id", identity)):
        if any(c in f"{name}{value}" for c in "\r\n\0"):
            raise InvalidError(f"header {name!r} holds a line break, expected one line")
    moment = dt.datetime.fromtimestamp(at, dt.UTC).isoformat().replace("+00:00", "Z")
    event = {
        "ce-specversion": "1.0",
        "ce-id": identity,
        "ce-source": quote(source or "/", safe="/:@"),
        "ce-type": quote(subject),
        "ce-time": moment,
        "content-type": media,
    }
    return Message(subject, identity, content, event | dict(headers))


def packed(message: Message) -> bytes:
    """As a branch's payload."""
    return json.dumps(
        {
            "subject": message.subject,
            "id": message.id,
            "data": base64.b64encode(message.data).decode(),
            "headers": dict(message.headers),
        }
    ).encode()


def unpacked(payload: bytes) -> Message:
    """The reverse of `packed`.

    Raises:
        InvalidError: the payload is none of ours.
    """
    try:
        found = json.loads(payload)
        data = base64.b64decode(found["data"], validate=True)
        return Message(found["subject"], found["id"], data, dict(found["headers"]))
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidError("the branch's payload is not a message") from error


def barrier_key(identity: str) -> str:
    """A message's id as the barrier's key: ids of brokers may be longer, and hold any character."""
    return f"msg-{hashlib.sha256(identity.encode()).hexdigest()[:60]}"
