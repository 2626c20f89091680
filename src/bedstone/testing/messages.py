"""A message broker in memory that duplicates, reorders and loses acknowledgements, by seed.

Owns `MemoryBroker`: it keeps every promise that `Broker` makes, and no other.

Rules: what was acknowledged to the publisher is never lost; a message that is not acknowledged
comes again; nothing depends on time, so that a seed gives the same run each time.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from bedstone.errors import UnavailableError, UnknownOutcomeError
from bedstone.transactions.broker import Delivery, Message


@dataclass(frozen=True, slots=True)
class Chances:
    """How often each thing happens, from 0 to 1.

    Args:
        refused: a publish is not taken.
        unanswered: a publish is taken, and its answer lost.
        duplicated: a message that is taken is in the stream twice, as after the window.
        lost_ack: an acknowledgement is lost, and its sender told so.
        reordered: a batch is shuffled.
    """

    refused: float = 0.0
    unanswered: float = 0.0
    duplicated: float = 0.0
    lost_ack: float = 0.0
    reordered: float = 0.0


@dataclass(eq=False)
class MemoryBroker:
    """One stream for all subjects.

    Args:
        seed: what happens.
        chances: how often.
        deduplicate: whether a second publish of an id is dropped, as within the window.
    """

    seed: int = 0
    chances: Chances = field(default_factory=Chances)
    deduplicate: bool = True
    stream: list[Message] = field(default_factory=list)
    down: bool = False

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)  # noqa: S311 - repeatable
        self._consumers: dict[tuple[str, str], MemorySubscription] = {}

    def happens(self, chance: float) -> bool:
        """Throw the dice; none is thrown for what never happens."""
        return chance > 0 and self.random.random() < chance

    async def publish(self, message: Message) -> None:
        """As `Broker.publish`."""
        self.check()
        if self.happens(self.chances.refused):
            raise UnavailableError("the broker refuses")
        if not (self.deduplicate and any(it.id == message.id for it in self.stream)):
            self.stream.append(message)
            if self.happens(self.chances.duplicated):
                self.stream.append(message)
        if self.happens(self.chances.unanswered):
            raise UnknownOutcomeError("the broker's answer is lost")

    async def subscribe(
        self, subject: str, durable: str, *, ack_wait: float = 30.0
    ) -> MemorySubscription:
        """As `Broker.subscribe`; the same durable goes on where it was."""
        del ack_wait
        self.check()
        found = self._consumers.setdefault((subject, durable), MemorySubscription(self, subject))
        found.in_flight.clear()
        return found

    async def close(self) -> None:
        """As `Broker.close`."""

    def check(self) -> None:
        """Refuse while it is down."""
        if self.down:
            raise UnavailableError("the broker is down")


@dataclass(eq=False)
class MemorySubscription:
    """A durable consumer. Made by `MemoryBroker.subscribe`."""

    broker: MemoryBroker
    subject: str
    acked: set[int] = field(default_factory=set)
    attempts: dict[int, int] = field(default_factory=dict)
    in_flight: set[int] = field(default_factory=set)
    naks: list[float] = field(default_factory=list)

    async def take(self, limit: int, wait: float) -> Sequence[Delivery]:
        """As `Subscription.take`; what was taken and neither acked nor refused comes again last."""
        del wait
        self.broker.check()
        ready = self._open() - self.in_flight
        if not ready:
            self.in_flight.clear()  # the time for their acknowledgement has passed
            ready = self._open()
        places = sorted(ready)
        if self.broker.happens(self.broker.chances.reordered):
            self.broker.random.shuffle(places)
        found: list[Delivery] = []
        for place in places[:limit]:
            self.in_flight.add(place)
            self.attempts[place] = self.attempts.get(place, 0) + 1
            message = self.broker.stream[place - 1]
            found.append(MemoryDelivery(message, place, self.attempts[place], self))
        return tuple(found)

    async def floor(self) -> int:
        """As `Subscription.floor`."""
        self.broker.check()
        return min(self._open(), default=len(self.broker.stream) + 1) - 1

    def _open(self) -> set[int]:
        return {
            place
            for place, message in enumerate(self.broker.stream, 1)
            if message.subject == self.subject and place not in self.acked
        }


@dataclass(frozen=True, slots=True)
class MemoryDelivery:
    """One delivery of `MemoryBroker`."""

    message: Message
    sequence: int
    attempt: int
    subscription: MemorySubscription

    async def ack(self) -> None:
        """As `Delivery.ack`."""
        broker = self.subscription.broker
        broker.check()
        if broker.happens(broker.chances.lost_ack):
            raise UnknownOutcomeError("the acknowledgement is lost")
        self.subscription.acked.add(self.sequence)

    async def nak(self, delay: float) -> None:
        """As `Delivery.nak`; it may come again at once."""
        self.subscription.broker.check()
        self.subscription.naks.append(delay)
        self.subscription.in_flight.discard(self.sequence)
