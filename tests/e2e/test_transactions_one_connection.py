"""Every mode works with a pool that has one connection: no request ever needs two at once."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import psycopg
import pytest

from bedstone.errors import Error
from bedstone.testing.transaction_log import MemoryLog
from bedstone.transactions import Saga, Tcc, Transactions, automatic, saga, step, tcc
from bedstone.transactions.broker import Message
from bedstone.transactions.messages import Messages, TwoPhaseMessage

UPDATE = "UPDATE accounts SET balance = balance + 1 WHERE id = 1"
Work = Callable[[Transactions, Any], Coroutine[Any, Any, None]]


@pytest.fixture
def url(postgres_url: str) -> Iterator[str]:
    name = f"one_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    own = postgres_url.rpartition("/")[0] + "/" + name
    with psycopg.connect(own, autocommit=True) as connection:
        connection.execute("CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL)")
        connection.execute("INSERT INTO accounts VALUES (1, 0)")
    yield own
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


class _Add(Tcc):
    async def try_(self, db: Any) -> None:
        await db.execute("SELECT 1")

    async def confirm(self, db: Any) -> None:
        await db.execute(UPDATE)

    async def cancel(self, db: Any) -> None:
        await db.execute("SELECT 1")


async def _automatic(manager: Transactions, pool: Any) -> None:
    accounts = automatic(pool, name="accounts", transactions=manager)
    async with manager.transaction(), accounts.connect() as db, db.transaction():
        await db.execute(UPDATE)


async def _automatic_wrapped(manager: Transactions, pool: Any) -> None:
    """The developer's own connection is in a local transaction before Bedstone sees it."""
    accounts = automatic(pool, name="accounts", transactions=manager)
    async with accounts.connect():  # as another process would have made the tables
        pass
    fresh = automatic(pool, name="wrapped", transactions=manager)
    async with pool.acquire() as raw:
        db = fresh.wrap(raw)
        async with manager.transaction():
            block = db.transaction()
            await block.start()
            await db.execute(UPDATE)
            await block.commit()


async def _tcc(manager: Transactions, pool: Any) -> None:
    action = tcc(_Add, pool, transactions=manager)
    async with manager.transaction():
        await action()


async def _saga(manager: Transactions, pool: Any) -> None:
    async def add(db: Any, context: Any) -> None:
        del context
        await db.execute(UPDATE)

    await saga(Saga("add", step("add", add, database=pool)), manager).run()


async def _message(manager: Transactions, pool: Any) -> None:
    source = TwoPhaseMessage(pool, Messages(_Broker(), transactions=manager), name="add")
    async with source("added", {}) as db:
        await db.execute(UPDATE)


async def _message_failed(manager: Transactions, pool: Any) -> None:
    """Asks the database back, once the block's connection is given up."""
    source = TwoPhaseMessage(pool, Messages(_Broker(), transactions=manager), name="add")

    async def broken() -> None:
        async with source("added", {}) as db:
            await db.execute(UPDATE)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await broken()
    await pool.execute(UPDATE)


class _Broker:
    """Takes every message."""

    async def publish(self, message: Message) -> None:
        """Take it."""

    async def subscribe(self, *_: Any, **__: Any) -> Any:
        """Never asked."""
        raise Error("not asked")

    async def close(self) -> None:
        """Nothing is open."""


@asynccontextmanager
async def _pool(url: str) -> AsyncIterator[Any]:
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool:
        yield pool


@pytest.mark.parametrize(
    "work", [_automatic, _automatic_wrapped, _tcc, _saga, _message, _message_failed]
)
def test_one_connection_is_enough(url: str, work: Work) -> None:
    async def scenario() -> int:
        async with AsyncExitStack() as stack:
            pool = await stack.enter_async_context(_pool(url))
            manager = await stack.enter_async_context(Transactions(MemoryLog()))
            async with asyncio.timeout(20):  # where it waits for itself, it waits for ever
                await work(manager, pool)
            return int(await pool.fetchval("SELECT balance FROM accounts"))

    assert asyncio.run(scenario()) == 1
