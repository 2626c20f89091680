"""Whatever the broker does, each message has its effect exactly once."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiosqlite
from hypothesis import given, settings
from hypothesis import strategies as st

from bedstone.errors import Error
from bedstone.testing.messages import Chances, MemoryBroker
from bedstone.transactions.broker import Message, composed, packed, unpacked
from bedstone.transactions.consuming import Consumer
from bedstone.transactions.databases import database
from bedstone.transactions.outbox import Relay, outbox, publish_with_sync
from bedstone.transactions.sql import Dialect

often = st.sampled_from([0.0, 0.2, 0.6])
chances = st.builds(Chances, often, often, often, often, often)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000),
    chances=chances,
    failing=st.sets(st.integers(0, 5), max_size=2),
    deduplicate=st.booleans(),
)
def test_each_message_has_its_effect_once(
    seed: int, chances: Chances, failing: set[int], *, deduplicate: bool
) -> None:
    broker = MemoryBroker(seed, chances, deduplicate=deduplicate)
    names = [f"m{number}" for number in range(6)]
    poisoned = {f"m{number}" for number in failing}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "db"
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("CREATE TABLE effects (id TEXT)")
            db.execute(outbox(Dialect.SQLITE))
            for name in names:
                publish_with_sync(db, "s", name, id=name)
        dead = asyncio.run(_pass(path, broker, poisoned))
        with closing(sqlite3.connect(path)) as db:
            effects = [row[0] for row in db.execute("SELECT id FROM effects")]
            assert db.execute("SELECT count(*) FROM bedstone_outbox").fetchone() == (0,)
    assert sorted(effects) == sorted(set(names) - poisoned)
    assert sorted(dead) == sorted(poisoned)


async def _pass(path: Path, broker: MemoryBroker, poisoned: set[str]) -> list[str]:
    @asynccontextmanager
    async def connect() -> AsyncIterator[aiosqlite.Connection]:
        async with aiosqlite.connect(path) as db:
            await db.execute("PRAGMA synchronous = OFF")
            yield db

    async def effect(db: Any, message: Message) -> None:
        await db.execute("INSERT INTO effects VALUES (?)", (message.id,))
        if message.id in poisoned:
            raise ValueError("poison")

    place = database(connect, is_async=True)
    relay = Relay(place, broker)
    consumer = Consumer(place, broker, "s", "c", effect, deliveries=3)
    idle = 0
    while idle < 2:
        try:
            idle = idle + 1 if await relay.step() + await consumer.step() == 0 else 0
        except Error:
            idle = 0
    return [letter.message.id for letter in await consumer.dead()]


@given(
    data=st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists),
    headers=st.dictionaries(
        st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1),
        st.text(st.characters(min_codepoint=32, max_codepoint=126)),
    ),
)
def test_a_message_survives_the_log(data: Any, headers: dict[str, str]) -> None:
    message = composed("a.b", "1", data, headers, source="/x", at=0.0)
    assert unpacked(packed(message)) == message
