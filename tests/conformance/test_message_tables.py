"""Outbox, consumer and dead letters on real servers: PostgreSQL and MariaDB."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bedstone.testing.messages import MemoryBroker
from bedstone.transactions import message_tables as tables
from bedstone.transactions.broker import Message
from bedstone.transactions.connections import AsyncConnection
from bedstone.transactions.consuming import Consumer
from bedstone.transactions.databases import Database, database
from bedstone.transactions.outbox import Relay, publish_with
from bedstone.transactions.sql import Query


@pytest.fixture(params=["postgres_url", "mariadb_url"])
def place(request: pytest.FixtureRequest) -> Database:
    return database(request.getfixturevalue(request.param))


@asynccontextmanager
async def opened(place: Database) -> AsyncIterator[AsyncConnection]:
    async with place.connect() as db:
        assert isinstance(db, AsyncConnection)
        yield db


async def changed(place: Database, *statements: str) -> None:
    async with opened(place) as db:
        for statement in statements:
            await db.begin()
            await db.execute(Query(statement))
            await db.commit() if db.dialect != "mysql" else await db.rollback()


def test_two_relays_share_an_outbox_and_keep_each_key_in_order(place: Database) -> None:
    async def test() -> None:
        await changed(place, f"DROP TABLE IF EXISTS {tables.OUTBOX}")
        broker = MemoryBroker()
        one, other = Relay(place, broker), Relay(place, broker)
        assert await one.step() == 0
        async with opened(place) as db:
            await db.begin()
            for number in range(6):
                await publish_with(db, "s", number, key="ab"[number % 2], id=str(number))
            await publish_with(db, "s", b"\x00\xff", id="free")
            await db.commit()
        async with opened(place) as db:  # a relay that hangs holds the first of one key
            await db.begin()
            held = await db.run(tables.take(db.dialect, 0, 1))
            assert [message.id for _, message in held] == ["0"]
            for _ in range(8):
                await other.step()
            assert [it.id for it in broker.stream] == ["1", "free", "3", "5"]
            await db.rollback()
        for _ in range(8):
            await one.step()
        assert [it.id for it in broker.stream[4:]] == ["0", "2", "4"]
        assert broker.stream[1].data == b"\x00\xff"

    asyncio.run(test())


def test_a_consumer_works_once_parks_and_purges(place: Database) -> None:
    async def handler(db: Any, message: Message) -> None:
        if message.data == b"poison":
            raise ValueError("no")

    async def test() -> None:
        broker = MemoryBroker(deduplicate=False)
        for name in ("good", "good", "poison"):
            await broker.publish(Message("s", name, name.encode()))
        consumer = Consumer(place, broker, "s", "tables", handler, deliveries=2, window=-1e6)
        while await consumer.step():
            pass
        assert [it.message.data for it in await consumer.dead()] == [b"poison"]
        assert await consumer.purge() == 2

    asyncio.run(test())
