"""The transactional outbox: messages as rows of the developer's own local transaction.

Owns `publish_with`, which needs no coordinator and no broker, and `Relay`, which sends the rows.

Rules:
- A row is deleted only after the broker has acknowledged its message. A relay that dies between
  the two sends it again, under the same id.
- Any number of relays may work on one table (SQLite: one at a time).
- Messages of one `key` arrive in the order of their rows; without a key no order is promised. A
  transaction writes the message after the business row that orders it.
- A message that the broker refuses stays, is tried again at each pass, and holds up no other key.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from bedstone.errors import Error, InvalidError, UnavailableError
from bedstone.transactions import message_tables as tables
from bedstone.transactions.broker import Broker, Message, composed
from bedstone.transactions.connections import AsyncConnection, SyncConnection, adapt
from bedstone.transactions.databases import Source
from bedstone.transactions.databases import database as as_database
from bedstone.transactions.message_tables import outbox
from bedstone.transactions.sql import Dialect

__all__ = ["Relay", "outbox", "publish_with", "publish_with_sync"]

BATCH: Final = 100
_log = logging.getLogger(__name__)


async def publish_with(
    db: Any,
    subject: str,
    data: Any,
    *,
    key: str = "",
    headers: Mapping[str, str] | None = None,
    id: str | None = None,  # noqa: A002 - as the header is called
) -> str:
    """Write a message into the outbox, in the open local transaction of an asynchronous connection.

    Args:
        db: the developer's connection.
        subject: where it goes.
        data: bytes, or what JSON can hold.
        key: messages of one key keep their order.
        headers: further ones.
        id: unique for ever; a new one by default.

    Returns:
        The message's id.

    Raises:
        InvalidError: the message can't be sent, or the connection is none that is supported.
    """
    connection = db if isinstance(db, AsyncConnection) else adapt(db)
    if not isinstance(connection, AsyncConnection):
        raise InvalidError("got a blocking connection", hint="use `publish_with_sync`")
    message, at = _message(subject, data, headers, id)
    await connection.run(tables.put(message, key, at))
    return message.id


def publish_with_sync(
    db: Any,
    subject: str,
    data: Any,
    *,
    key: str = "",
    headers: Mapping[str, str] | None = None,
    id: str | None = None,  # noqa: A002 - as the header is called
) -> str:
    """`publish_with` for a blocking connection."""
    connection = db if isinstance(db, SyncConnection) else adapt(db)
    if not isinstance(connection, SyncConnection):
        raise InvalidError("got an asynchronous connection", hint="use `await publish_with`")
    message, at = _message(subject, data, headers, id)
    connection.run(tables.put(message, key, at))
    return message.id


def _message(
    subject: str, data: Any, headers: Mapping[str, str] | None, identity: str | None
) -> tuple[Message, float]:
    at = time.time()
    source = "/" + os.environ.get("BEDSTONE_WORKLOAD", "")
    name = identity or secrets.token_hex(16)
    return composed(subject, name, data, headers or {}, source=source, at=at), at


class Relay:
    """Sends what is in an outbox.

    Args:
        database: an asynchronous one, that holds the outbox.
        broker: where to.
        interval: seconds between two looks at an empty outbox.
        sleep: waits.
    """

    def __init__(
        self,
        database: Source,
        broker: Broker,
        *,
        interval: float = 0.2,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._database = as_database(database)
        if not self._database.is_async:
            raise InvalidError(
                f"database {self._database.name} blocks, expected an asynchronous one",
                hint="give the relay a URL of PostgreSQL, or an asynchronous driver",
            )
        self._broker = broker
        self._interval = interval
        self._sleep = sleep
        self._prepared = False
        self._after = 0

    async def run(self) -> None:
        """Send for ever, until cancelled; what fails is logged, and tried again."""
        while True:
            try:
                sent = await self.step()
            except Error as error:
                _log.warning("outbox: not sent", extra={"reason": error.message})
                sent = 0
            if not sent:
                await self._sleep(self._interval)

    async def step(self, limit: int = BATCH) -> int:
        """Send the next rows; returns how many were taken, 0 at the end of a pass.

        Raises:
            UnavailableError: the database does not answer, or the broker took none of them.
        """
        async with self._database.connect() as db:
            if not isinstance(db, AsyncConnection):
                raise InvalidError(f"got a blocking connection of {self._database.name}")
            await self._prepare(db)
            await db.begin()
            rows = await db.run(tables.take(db.dialect, self._after, limit))
            self._after = rows[-1][0] if rows else 0
            failures = await self._send([message for _, message in rows])
            sent = [row[0] for row, failure in zip(rows, failures, strict=True) if failure is None]
            await db.run(tables.drop(sent))
            await db.commit()
        failed = [failure for failure in failures if failure is not None]
        for failure in failed:
            _log.warning("outbox: a message was not taken", extra={"reason": str(failure)})
        if failed and not sent:
            raise UnavailableError(f"the broker took none of {len(rows)} messages") from failed[0]
        return len(rows)

    async def _send(self, messages: Sequence[Message]) -> list[Error | None]:
        async def one(message: Message) -> Error | None:
            try:
                await self._broker.publish(message)
            except Error as error:
                return error
            return None

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(message)) for message in messages]
        return [task.result() for task in tasks]

    async def _prepare(self, db: AsyncConnection) -> None:
        if not self._prepared:
            await db.begin()
            await db.run(tables.ensure(db.dialect, tables.OUTBOX))
            await (db.rollback() if db.dialect is Dialect.MYSQL else db.commit())
            self._prepared = True
