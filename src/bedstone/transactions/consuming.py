"""Consumers whose effect is exactly once, from brokers that deliver at least once.

Owns `Consumer`.

Rules:
- One delivery is one local transaction: barrier row first (key: the message's id, branch: the
  consumer), then the handler, then the commit; the acknowledgement comes after it. A duplicate
  finds the row, and is acknowledged without effect.
- A handler that fails leaves nothing behind; the message comes again, later each time. After
  `deliveries` it is parked in `bedstone_dead`, with the reason, and never dropped in silence. A
  database or a service that does not answer is no fault of the message: that parks nothing.
- A barrier row goes only when its message is acknowledged, by the broker's own word, and it is
  older than `window`, within which publishers may send again.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from bedstone.errors import Error, InvalidError, UnavailableError, UnknownOutcomeError
from bedstone.transactions import barrier
from bedstone.transactions import message_tables as tables
from bedstone.transactions.broker import Broker, Delivery, Message, Subscription, barrier_key
from bedstone.transactions.connections import AsyncConnection
from bedstone.transactions.databases import Source
from bedstone.transactions.databases import database as as_database
from bedstone.transactions.message_tables import DeadLetter
from bedstone.transactions.model import Phase
from bedstone.transactions.sql import Dialect, Query, Steps
from bedstone.transactions.sql_errors import meaning

Handler = Callable[[Any, Message], Awaitable[object]]
PREFIX: Final = "consume/"
FIRST_DELAY: Final = 0.1
LONGEST_DELAY: Final = 60.0
PURGE: Final = 60.0
"""Seconds between two looks for what can't come again."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
_log = logging.getLogger(__name__)


class Consumer:
    """Runs a handler on each message of a subject, with its effect exactly once.

    Example:
        >>> async def placed(db, message):
        ...     item = message.json()["item"]
        ...     await db.execute("INSERT INTO parcels (item) VALUES (%s)", (item,))
        >>> async def main() -> None:
        ...     await Consumer(database, broker, "orders.placed", "parcels", placed).run()

    Args:
        database: an asynchronous one, where the handler works.
        broker: where from.
        subject: what.
        durable: the consumer's name, for ever; processes that share it share the messages.
        handler: gets the database's own connection, in an open local transaction, and the message.
        deliveries: after so many failures a message is parked.
        batch: how many messages are taken at once; they are handled one after the other.
        ack_wait: seconds after which what is not acknowledged comes again.
        window: seconds that publishers may send again within.
        clock: seconds since the epoch.
        sleep: waits.
    """

    def __init__(
        self,
        database: Source,
        broker: Broker,
        subject: str,
        durable: str,
        handler: Handler,
        *,
        deliveries: int = 10,
        batch: int = 16,
        ack_wait: float = 30.0,
        window: float = 7 * 86400.0,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._database = as_database(database)
        if not self._database.is_async or not inspect.iscoroutinefunction(handler):
            raise InvalidError(
                "a consumer needs an asynchronous database and an `async def` handler"
            )
        if _NAME.fullmatch(durable) is None:
            raise InvalidError(f"got consumer {durable!r}, expected 1 to 100 of A-Z a-z 0-9 _ -")
        self._broker = broker
        self._subject = subject
        self._durable = durable
        self._branch = PREFIX + durable
        self._handler = handler
        self._deliveries = deliveries
        self._batch = batch
        self._ack_wait = ack_wait
        self._window = window
        self._clock = clock
        self._sleep = sleep
        self._subscription: Subscription | None = None
        self._prepared = False

    async def run(self) -> None:
        """Consume for ever, until cancelled; what fails is logged, and tried again."""
        failures, purged = 0, self._clock()
        while True:
            try:
                await self.step(1.0)
                if self._clock() - purged >= PURGE:
                    purged = self._clock()
                    await self.purge()
                failures = 0
            except Error as error:
                self._subscription = None
                failures += 1
                _log.warning("consumer waits", extra={"reason": error.message})
                await self._sleep(_delay(failures))

    async def step(self, wait: float = 1.0) -> int:
        """Take and handle what is there; returns how many deliveries it were.

        Raises:
            UnavailableError: the broker does not answer.
        """
        found = await (await self._subscribed()).take(self._batch, wait)
        for delivery in found:
            await self._handle(delivery)
        return len(found)

    async def dead(self, limit: int = 100) -> tuple[DeadLetter, ...]:
        """What is parked, oldest first."""
        async with self._database.connect() as db:
            await self._prepare(_checked(db))
            await _checked(db).begin()
            return await _checked(db).run(tables.buried(self._durable, limit))

    async def purge(self, limit: int = 1000) -> int:
        """Forget messages that can't come again; returns how many.

        Raises:
            UnavailableError: broker or database does not answer; nothing is forgotten then.
        """
        floor = await (await self._subscribed()).floor()
        async with self._database.connect() as found:
            db = _checked(found)
            await self._prepare(db)
            await db.begin()
            gone = await db.run(_purge(self._branch, floor, self._clock() - self._window, limit))
            await db.commit()
        return gone

    async def _handle(self, delivery: Delivery) -> None:
        try:
            await self._apply(delivery)
        except Exception as error:  # noqa: BLE001 - the handler's may be any; it is kept or retried
            if not await self._failed(delivery, error):
                return
        try:
            await delivery.ack()
        except Error as error:  # it comes again, and finds its row
            _log.info("not acknowledged", extra={"reason": error.message})

    async def _apply(self, delivery: Delivery) -> None:
        async with self._database.connect() as found:
            db = _checked(found)
            await self._prepare(db)
            await db.begin(ours=True)
            if await db.run(_enter(db.dialect, self._branch, delivery)):
                await self._handler(db.raw, delivery.message)
            await db.commit()

    async def _failed(self, delivery: Delivery, error: Exception) -> bool:
        """Park the message, or have it come again; whether it is parked."""
        # The handler works with the driver, so that an outage may come as the driver's own error.
        outside = isinstance(meaning(error) or error, UnavailableError | UnknownOutcomeError)
        try:
            if not outside and delivery.attempt >= self._deliveries:
                await self._park(delivery, error)
                return True
            await delivery.nak(_delay(delivery.attempt))
        except Error as failed:  # it comes again after `ack_wait`
            _log.warning("neither parked nor refused", extra={"reason": failed.message})
        _log.warning(
            "a message was not handled",
            extra={"id": delivery.message.id, "reason": _reason(error)},
        )
        return False

    async def _park(self, delivery: Delivery, error: Exception) -> None:
        letter = DeadLetter(
            self._durable, delivery.message, delivery.attempt, _reason(error), self._clock()
        )
        async with self._database.connect() as found:
            db = _checked(found)
            await db.begin(ours=True)
            if await db.run(_enter(db.dialect, self._branch, delivery)):
                await db.run(tables.bury(letter))
            await db.commit()

    async def _subscribed(self) -> Subscription:
        if self._subscription is None:
            self._subscription = await self._broker.subscribe(
                self._subject, self._durable, ack_wait=self._ack_wait
            )
        return self._subscription

    async def _prepare(self, db: AsyncConnection) -> None:
        if self._prepared:
            return
        for steps in (barrier.ensure(db.dialect), tables.ensure(db.dialect, tables.DEAD)):
            await db.begin()
            await db.run(steps)
            await (db.rollback() if db.dialect is Dialect.MYSQL else db.commit())
        self._prepared = True


def _enter(dialect: Dialect, branch: str, delivery: Delivery) -> Steps[bool]:
    """Whether the message is new; its place in the stream is kept for `_purge`."""
    key = barrier_key(delivery.message.id)
    place = str(delivery.sequence).encode()
    return (yield from barrier.enter_once(dialect, key, branch, place))


def _purge(branch: str, floor: int, older_than: float, limit: int) -> Steps[int]:
    found = yield Query(
        f"SELECT xid, result FROM {barrier.TABLE} "  # noqa: S608
        f"WHERE branch = ? AND phase = ? AND at < ? ORDER BY at LIMIT {limit:d}",
        (branch, str(Phase.TRY), older_than),
    )
    gone = 0
    for key, place in found.rows:
        if place is None or int(bytes(place)) > floor:  # type: ignore[call-overload]
            continue
        deleted = yield Query(
            f"DELETE FROM {barrier.TABLE} WHERE xid = ? AND branch = ? AND phase = ?",  # noqa: S608
            (key, branch, str(Phase.TRY)),
        )
        gone += deleted.count
    return gone


def _checked(db: Any) -> AsyncConnection:
    if not isinstance(db, AsyncConnection):
        raise InvalidError("got a blocking connection, expected an asynchronous one")
    return db


def _delay(attempts: int) -> float:
    return float(min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(attempts - 1, 16)))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:2000]
