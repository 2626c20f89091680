"""Sagas over PostgreSQL and MariaDB by every kind of driver, and their cost in log writes."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pymysql
import pytest

from bedstone.errors import Error
from bedstone.testing.transaction_log import MemoryLog
from bedstone.transactions.databases import Source
from bedstone.transactions.errors import TransactionAbortedError, TransactionDecidedError
from bedstone.transactions.logs import open_log
from bedstone.transactions.manager import Transactions
from bedstone.transactions.model import Branch, Mode, Phase, State, Transaction
from bedstone.transactions.saga import Context, Saga, parallel, saga, sequence, step
from bedstone.transactions.saga_plan import Step
from bedstone.transactions.saga_run import payload

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def url(postgres_url: str) -> str:
    name = f"d{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_url, autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name}")
    made = urlsplit(postgres_url)._replace(path=f"/{name}").geturl()
    with psycopg.connect(made) as db:
        db.execute("CREATE TABLE booked (trip text, part text, PRIMARY KEY (trip, part))")
    return made


def asynchronous(name: str, source: Source, *, fails: bool = False, **settings: Any) -> Step:
    async def action(db: Any, context: Context) -> str:
        await db.execute("INSERT INTO booked VALUES (%s, %s)", (context.xid, name))
        if fails:
            raise LookupError
        return name

    async def undo(db: Any, context: Context) -> None:
        assert context.result == name
        await db.execute("DELETE FROM booked WHERE trip = %s AND part = %s", (context.xid, name))

    return step(name, action, undo, database=source, **settings)


def blocking(name: str, source: Source) -> Step:
    def action(db: Any, context: Context) -> str:
        db.cursor().execute("INSERT INTO booked VALUES (%s, %s)", (context.xid, name))
        return name

    def undo(db: Any, context: Context) -> None:
        assert context.result == name
        db.cursor().execute("DELETE FROM booked WHERE trip = %s AND part = %s", (context.xid, name))

    return step(name, action, undo, database=source)


def booked(url: str) -> list[str]:
    with psycopg.connect(url) as db:
        return [row[0] for row in db.execute("SELECT part FROM booked ORDER BY part")]


def test_a_saga_over_asynchronous_and_blocking_connections(url: str) -> None:
    async def test() -> None:
        body = sequence(
            asynchronous("a", url), parallel(blocking("b", lambda: psycopg.connect(url)))
        )
        async with Transactions(url, lease=2.0) as transactions:
            book = saga(Saga("good", body), transactions)
            assert await book.run() == {"a": "a", "b": "b"}
            assert booked(url) == ["a", "b"]
            refused = asynchronous("c", url, fails=True, fails_on=(LookupError,))
            bad = saga(Saga("bad", sequence(body, refused)), transactions)
            with pytest.raises(TransactionAbortedError, match="c failed: LookupError"):
                await bad.run()
            assert booked(url) == ["a", "b"]

    asyncio.run(test())


def test_a_saga_between_postgresql_and_mariadb(url: str, mariadb_url: str) -> None:
    parts = urlsplit(mariadb_url)
    name = f"d{uuid.uuid4().hex[:12]}"

    def connect(database: str | None) -> Any:
        return pymysql.connect(
            host=parts.hostname or "localhost",
            port=parts.port or 3306,
            user=parts.username,
            password=parts.password or "",
            database=database,
        )

    with connect(None) as db, db.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    with connect(name) as db, db.cursor() as cursor:
        cursor.execute("CREATE TABLE booked (trip varchar(64), part varchar(20))")

    def rows() -> int:
        with connect(name) as db, db.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM booked")
            return int((cursor.fetchone() or (0,))[0])

    async def test() -> None:
        body = sequence(asynchronous("a", url), blocking("m", lambda: connect(name)))
        async with Transactions(url, lease=2.0) as transactions:
            assert await saga(Saga("good", body), transactions).run() == {"a": "a", "m": "m"}
            assert (booked(url), rows()) == (["a"], 1)
            bad = sequence(body, asynchronous("c", url, fails=True, attempts=1))
            with pytest.raises(TransactionAbortedError):
                await saga(Saga("bad", bad), transactions).run()
            assert (booked(url), rows()) == (["a"], 1)

    asyncio.run(test())


def test_a_paused_owner_that_wakes_up_after_the_compensation_changes_nothing(url: str) -> None:
    async def test() -> None:
        paused, go_on = asyncio.Event(), asyncio.Event()
        connections = 0

        async def connect() -> Any:
            """The old owner's; its second step pauses before it reaches the database."""
            nonlocal connections
            connections += 1
            if connections == 2:
                paused.set()
                await go_on.wait()
            return await psycopg.AsyncConnection.connect(url)

        def booking(source: Source) -> Saga:
            return Saga("s", sequence(asynchronous("a", source), asynchronous("b", source)))

        log = MemoryLog()
        async with Transactions(log, owner="old") as first, Transactions(log, owner="new") as then:
            saga(booking(connect), first)
            code = saga(booking(url), then)
            branch = Branch(1, Mode.SAGA, "local:saga/s", payload(code.compiled, None))
            later = await log.now() + 1000
            made = Transaction("t", "s", later, 0.0, "old", branches=(branch,), next_attempt=later)
            await log.begin(made)
            async with asyncio.TaskGroup() as tasks:
                late = tasks.create_task(asked(first, made, branch, Phase.TRY))
                await paused.wait()
                assert booked(url) == ["a"]
                decided = await log.decide("t", State.ABORTING)
                await asked(then, decided, branch, Phase.CANCEL)
                assert booked(url) == []
                go_on.set()
                error = await late
            assert isinstance(error, TransactionDecidedError)
        assert booked(url) == []

    asyncio.run(test())


async def asked(
    transactions: Transactions, transaction: Transaction, branch: Branch, phase: Phase
) -> Exception | None:
    """Ask a process for a phase; what it answers."""
    answer = transactions.participants["saga/s"](transaction, branch, phase)
    assert answer is not None
    try:
        await answer
    except Error as error:
        return error
    return None


def test_a_long_saga_of_local_steps_awaits_two_log_writes(url: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with open_log(f"sqlite:///{tmp_path / 'log.db'}") as log:
            awaited: list[str] = []

            class Counting:
                """The log, counted until the decision."""

                def __getattr__(self, name: str) -> Any:
                    inner = getattr(log, name)
                    if name not in {"begin", "decide", "journal", "record", "register"}:
                        return inner

                    async def counted(*arguments: Any, **named: Any) -> Any:
                        awaited.append(name)
                        return await inner(*arguments, **named)

                    return counted

            async with Transactions(Counting(), lease=5.0) as transactions:
                parts = [asynchronous(f"p{number}", url) for number in range(3)]
                await saga(Saga("long", sequence(*parts)), transactions).run()
            before = awaited[: awaited.index("decide") + 1]
            assert (before[0], before[-1]) == ("begin", "decide")
            assert set(before[1:-1]) <= {"journal"}  # written behind, if the steps took long
            assert awaited.count("begin") == awaited.count("decide") == 1

    asyncio.run(test())
