"""The outbox and its relay; the consumer, its barrier and its dead letters."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiosqlite
import psycopg
import pymysql
import pytest

from bedstone.errors import InvalidError, UnavailableError
from bedstone.testing.messages import Chances, MemoryBroker
from bedstone.transactions.broker import Message
from bedstone.transactions.consuming import Consumer
from bedstone.transactions.databases import database
from bedstone.transactions.outbox import Relay, outbox, publish_with, publish_with_sync
from bedstone.transactions.sql import Dialect


class Place:
    """One SQLite file with an outbox and a table of effects."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "place"
        self.broker = MemoryBroker()
        with closing(sqlite3.connect(self.path)) as db, db:
            db.execute(outbox(Dialect.SQLITE))
            db.execute("CREATE TABLE effects (id TEXT)")
        self.database = database(self.connect, is_async=True)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[aiosqlite.Connection]:
        async with aiosqlite.connect(self.path, timeout=5) as db:
            yield db

    def ask(self, statement: str) -> list[Any]:
        with closing(sqlite3.connect(self.path)) as db, db:
            return [row[0] for row in db.execute(statement)]

    def write(self, *bodies: str, key: str = "") -> None:
        with closing(sqlite3.connect(self.path)) as db, db:
            for body in bodies:
                publish_with_sync(db, "s", body, key=key, id=body)

    def relay(self) -> Relay:
        return Relay(self.database, self.broker)

    async def effect(self, db: Any, message: Message) -> None:
        await db.execute("INSERT INTO effects VALUES (?)", (message.id,))

    def consumer(self, handler: Any = None, **options: Any) -> Consumer:
        handler = handler or self.effect
        return Consumer(self.database, self.broker, "s", "c", handler, **options)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(main())


def test_a_message_follows_its_local_transaction(place: Place) -> None:
    async def test() -> None:
        async with place.connect() as db:
            await publish_with(db, "s", {"a": 1})
            await db.rollback()
            name = await publish_with(db, "s", {"a": 2})
            await db.commit()
        relay = place.relay()
        assert await relay.step() == 1
        assert await relay.step() == 0
        assert [(m.id, m.json()) for m in place.broker.stream] == [(name, {"a": 2})]
        assert place.ask("SELECT id FROM bedstone_outbox") == []

    run(test)


def test_what_the_broker_does_not_take_stays(place: Place) -> None:
    place.write("1", "2")
    place.broker.down = True

    async def test() -> None:
        relay = place.relay()
        with pytest.raises(UnavailableError, match="took none of 2"):
            await relay.step()
        assert place.ask("SELECT id FROM bedstone_outbox") == ["1", "2"]
        place.broker.down = False
        assert await relay.step() == 0  # the end of the first pass
        assert await relay.step() == 2
        assert [m.id for m in place.broker.stream] == ["1", "2"]

    run(test)


def test_a_relay_killed_after_the_ack_sends_again_under_the_same_id(place: Place) -> None:
    place.write("1")
    place.broker.deduplicate = False

    async def test() -> None:
        relay = place.relay()
        send = relay._send

        async def dies(messages: Any) -> Any:
            await send(messages)
            raise KeyboardInterrupt

        relay._send = dies  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            await relay.step()
        assert await place.relay().step() == 1
        assert [m.id for m in place.broker.stream] == ["1", "1"]
        consumer = place.consumer()
        assert await consumer.step() == 2
        assert place.ask("SELECT id FROM effects") == ["1"]

    run(test)


def test_messages_of_one_key_keep_their_order(place: Place) -> None:
    place.write("1", "2", "3", key="k")
    place.broker.chances = Chances(refused=0.5)
    place.broker.seed = 1

    async def test() -> None:
        relay = place.relay()
        while place.ask("SELECT id FROM bedstone_outbox"):
            try:
                await relay.step()
            except UnavailableError:
                continue
        assert [m.id for m in place.broker.stream] == ["1", "2", "3"]

    run(test)


def test_what_is_refused_holds_up_nothing_behind_it(place: Place) -> None:
    place.write("1", "2", "3")

    async def test() -> None:
        relay = place.relay()
        publish = place.broker.publish

        async def picky(message: Message) -> None:
            if message.id == "1":
                raise UnavailableError("no stream")
            await publish(message)

        place.broker.publish = picky  # type: ignore[method-assign]
        with pytest.raises(UnavailableError):
            await relay.step(1)
        assert await relay.step(1) == 1
        assert await relay.step(1) == 1
        assert place.ask("SELECT id FROM bedstone_outbox") == ["1"]

    run(test)


def test_a_handler_that_fails_leaves_nothing_and_is_parked_with_its_reason(place: Place) -> None:
    async def test() -> None:
        await place.broker.publish(Message("s", "1", b"poison"))
        await place.broker.publish(Message("s", "2", b"good"))

        async def handler(db: Any, message: Message) -> None:
            await place.effect(db, message)
            if message.data == b"poison":
                raise ValueError("can't read it")

        consumer = place.consumer(handler, deliveries=3)
        assert [await consumer.step() for _ in range(3)] == [2, 1, 1]
        assert await consumer.step() == 0
        assert place.ask("SELECT id FROM effects") == ["2"]
        (letter,) = await consumer.dead()
        assert letter.message == Message("s", "1", b"poison")
        assert (letter.attempts, letter.reason) == (3, "ValueError: can't read it")
        (subscription,) = place.broker._consumers.values()
        assert subscription.naks == [0.1, 0.2]

    run(test)


@pytest.mark.parametrize(
    "outage",
    [
        UnavailableError("away"),
        psycopg.OperationalError("server closed the connection unexpectedly"),
        psycopg.errors.LockNotAvailable("canceling statement due to lock timeout"),
        pymysql.err.OperationalError(2013, "Lost connection to MySQL server during query"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_outage_parks_nothing(place: Place, outage: Exception) -> None:
    async def test() -> None:
        await place.broker.publish(Message("s", "1", b""))

        async def handler(db: Any, message: Message) -> None:
            raise outage

        consumer = place.consumer(handler, deliveries=2)
        for _ in range(5):
            assert await consumer.step() == 1
        assert await consumer.dead() == ()
        assert await place.consumer().step() == 1
        assert place.ask("SELECT id FROM effects") == ["1"]

    run(test)


def test_a_lost_ack_brings_the_message_again_without_effect(place: Place) -> None:
    async def test() -> None:
        await place.broker.publish(Message("s", "1", b""))
        place.broker.chances = Chances(lost_ack=1.0)
        consumer = place.consumer()
        assert await consumer.step() == 1
        place.broker.chances = Chances()
        assert await consumer.step() == 1
        assert await consumer.step() == 0
        assert place.ask("SELECT id FROM effects") == ["1"]

    run(test)


def test_rows_go_only_when_acknowledged_and_old(place: Place) -> None:
    async def test() -> None:
        for name in "12":
            await place.broker.publish(Message("s", name, b""))
        young, old = place.consumer(batch=1), place.consumer(clock=lambda: 1e12, batch=1)
        place.broker.chances = Chances(lost_ack=1.0)
        await young.step()
        assert await old.purge() == 0  # old, and not acknowledged
        place.broker.chances = Chances()
        await young.step()
        await young.step()
        assert await young.step() == 0
        assert await young.purge() == 0  # acknowledged, and young
        assert await old.purge() == 2
        assert place.ask("SELECT xid FROM bedstone_barrier") == []

    run(test)


def test_wrong_input_is_refused(place: Place) -> None:
    with pytest.raises(InvalidError, match="got consumer"):
        Consumer(place.database, place.broker, "s", "a b", place.effect)
    with pytest.raises(InvalidError, match="blocks"):
        Relay(lambda: sqlite3.connect(":memory:"), place.broker)
    with closing(sqlite3.connect(place.path)) as db, pytest.raises(InvalidError, match="255"):
        publish_with_sync(db, "s", 1, id="x" * 256)
