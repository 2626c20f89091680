"""What others see of a transaction before it is decided, mode by mode, as the reference says."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from bedstone.testing.messages import MemoryBroker
from bedstone.transactions import (
    LockConflictError,
    Messages,
    Saga,
    Tcc,
    Transactions,
    automatic,
    event,
    saga,
    sequence,
    signal,
    step,
    tcc,
    xa,
)
from bedstone.transactions.model import State


@pytest.fixture
def url(postgres_url: str) -> Iterator[str]:
    name = f"d{uuid.uuid4().hex[:12]}"
    made = urlsplit(postgres_url)._replace(path=f"/{name}").geturl()
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        with psycopg.connect(made) as db:
            db.execute("CREATE TABLE accounts (id int PRIMARY KEY, balance int, held int)")
            db.execute("INSERT INTO accounts VALUES (1, 100, 0)")
        yield made
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@asynccontextmanager
async def manager(folder: Path) -> AsyncIterator[Transactions]:
    async with Transactions(f"sqlite:///{folder / 'log.db'}") as made:
        yield made


def seen(url: str) -> tuple[int, int]:
    """What another connection reads, at PostgreSQL's own isolation level."""
    with psycopg.connect(url) as db:
        (row,) = db.execute("SELECT balance, held FROM accounts").fetchall()
    return row[0], row[1]


async def ended(transactions: Transactions, xid: str) -> State:
    while not (found := await transactions.log.get(xid)).state.ended:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    return found.state


class Take(Tcc):
    async def try_(self, db: Any) -> None:
        await db.execute("UPDATE accounts SET balance = balance - 5, held = held + 5")

    async def confirm(self, db: Any) -> None:
        await db.execute("UPDATE accounts SET held = held - 5")

    async def cancel(self, db: Any) -> None:
        await db.execute("UPDATE accounts SET balance = balance + 5, held = held - 5")


def test_tcc_shows_the_reservation(url: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with manager(tmp_path) as transactions:
            take = tcc(Take, url, transactions=transactions)
            async with transactions.transaction() as scope:
                await take()
                assert seen(url) == (95, 5)
                with psycopg.connect(url) as other:  # nothing keeps others from writing
                    other.execute("UPDATE accounts SET balance = balance + 1")
            assert await ended(transactions, scope.xid) is State.COMMITTED
            assert seen(url) == (96, 0)

    asyncio.run(main())


def test_automatic_shows_what_is_not_decided_but_to_locking_reads(url: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with manager(tmp_path) as transactions:
            accounts = automatic(url, name="accounts", transactions=transactions)

            async def read() -> Any:
                async with transactions.transaction(), accounts.connect() as db:
                    found = await db.execute("SELECT balance FROM accounts FOR UPDATE")
                    return await found.fetchone()

            async def write() -> None:
                async with transactions.transaction(), accounts.connect() as db:
                    await db.execute("UPDATE accounts SET balance = 0")
                    await db.commit()

            apart = asyncio.get_running_loop().run_in_executor
            with pytest.raises(ZeroDivisionError):  # noqa: PT012 - both are of the transaction
                async with transactions.transaction() as scope:
                    async with accounts.connect() as db:
                        await db.execute("UPDATE accounts SET balance = 95")
                        await db.commit()
                    assert seen(url) == (95, 0)
                    for other in (read, write):
                        with pytest.raises(LockConflictError):
                            await apart(None, asyncio.run, other())
                    assert seen(url) == (95, 0)
                    raise ZeroDivisionError
            assert await ended(transactions, scope.xid) is State.ABORTED
            assert await read() == (100,)

    asyncio.run(main())


def test_xa_hides_and_locks(url: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with manager(tmp_path) as transactions:
            accounts = xa(url, name="accounts", transactions=transactions)
            async with transactions.transaction() as scope:
                async with accounts.xa() as db:
                    await db.execute("UPDATE accounts SET balance = 95")
                assert seen(url) == (100, 0)
                with psycopg.connect(url) as other:
                    other.execute("SET lock_timeout = '50ms'")
                    with pytest.raises(psycopg.errors.LockNotAvailable):
                        other.execute("UPDATE accounts SET balance = 0")
            assert await ended(transactions, scope.xid) is State.COMMITTED
            assert seen(url) == (95, 0)

    asyncio.run(main())


def test_a_saga_shows_each_step(url: str, tmp_path: Path) -> None:
    async def action(db: Any, _: Any) -> None:
        await db.execute("UPDATE accounts SET balance = 95")

    async def undo(db: Any, _: Any) -> None:
        await db.execute("UPDATE accounts SET balance = 100")

    async def main() -> None:
        async with manager(tmp_path) as transactions:
            body = sequence(step("take", action, undo, database=url), event("go"))
            taken = saga(Saga("taken", body), transactions)
            xid = await taken.start()
            while seen(url) != (95, 0):  # noqa: ASYNC110 - the database tells nobody
                await asyncio.sleep(0.02)
            assert (await transactions.log.get(xid)).state is State.ACTIVE
            await signal(xid, "go", transactions=transactions)
            await taken.result(xid)

    asyncio.run(main())


def test_a_message_is_sent_after_the_decision(tmp_path: Path) -> None:
    async def main() -> None:
        broker = MemoryBroker()
        async with manager(tmp_path) as transactions:
            messages = Messages(broker, transactions=transactions)
            async with transactions.transaction() as scope:
                await messages.publish("orders.placed", {"item": "lamp"})
                assert broker.stream == []
            assert await ended(transactions, scope.xid) is State.COMMITTED
            with pytest.raises(ZeroDivisionError):  # noqa: PT012 - both are of the transaction
                async with transactions.transaction() as scope:
                    await messages.publish("orders.placed", {"item": "desk"})
                    raise ZeroDivisionError
            assert await ended(transactions, scope.xid) is State.ABORTED
        assert [message.json() for message in broker.stream] == [{"item": "lamp"}]

    asyncio.run(main())


def test_the_reference_names_these_tests() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/transactions.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) == 5
    assert named <= set(globals())
