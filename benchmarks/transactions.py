"""A transfer between two PostgreSQL databases, in each mode, beside the same with no manager.

    python benchmarks/transactions.py [--seconds 10] [--clients 32] [--dbos PYTHON]

Two databases on one server, a third one for the log; fsync is on. Every number is taken in this run
on this machine: a client moves money between two accounts again and again, both parts at the same
time. The baseline is the same two local transactions with nothing around them. The modes take
turns, in rounds, with the baseline before and after; a ratio is the median of its rounds. `--dbos`
names a Python that has the package `dbos`, which does the same as a workflow of two steps.

Statements and flushes are counted by the server (pg_stat_statements, pg_stat_io), all that happens
during the measurement; round trips to the log by the log's driver.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import psycopg

from bedstone.engines.nats import NatsEngine
from bedstone.testing.databases import postgres_server
from bedstone.transactions import Tcc, Transactions, automatic, saga, tcc, together, use, xa
from bedstone.transactions.broker_nats import NatsBroker
from bedstone.transactions.consuming import Consumer
from bedstone.transactions.errors import LockConflictError
from bedstone.transactions.log_postgres import PostgresLog
from bedstone.transactions.messages import Messages, TwoPhaseMessage
from bedstone.transactions.saga import Saga, parallel, step

ACCOUNTS = 10_000
ROUNDS = 5
HERE = Path(__file__).parent
TABLES = """
CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL, held bigint NOT NULL);
INSERT INTO accounts SELECT n, 1000000, 0 FROM generate_series(0, 9999) AS n;
CREATE EXTENSION IF NOT EXISTS pg_stat_statements;
"""
MOVE = "UPDATE accounts SET balance = balance + $1 WHERE id = $2"
COUNTS = """
SELECT (SELECT sum(fsyncs) FROM pg_stat_io WHERE object = 'wal'),
       (SELECT sum(calls) FROM pg_stat_statements)
"""
Transfer = Callable[[int, int], Awaitable[object]]


@dataclass
class Row:
    """What one way of doing it came to, in all rounds."""

    name: str
    times: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    flushes: float = 0.0
    statements: float = 0.0
    trips: float = 0.0

    def shown(self) -> str:
        """A line of the table."""
        done, times = len(self.times), sorted(self.times)
        return (
            f"{self.name:<18}{median(self.rates):>8,.0f}{median(self.ratios):>8.2f}"
            f"{times[done // 2] * 1000:>9.1f}{times[int(done * 0.99)] * 1000:>9.1f}"
            f"{self.flushes / done:>9.2f}{self.statements / done:>12.1f}{self.trips / done:>11.2f}"
        )


class Bank:
    """Two databases, and the transfer in every mode."""

    def __init__(self, first: Any, second: Any) -> None:
        self.pools = (first, second)
        self.debit = tcc(_Hold, first, name="debit")
        self.credit = tcc(_Promise, second, name="credit")
        named = list(zip(self.pools, "ab", strict=True))
        self.automatic = [automatic(pool, name=name, lock_wait=1.0) for pool, name in named]
        self.xa = [xa(pool, name=name) for pool, name in named]
        self.saga = saga(
            Saga(
                "transfer",
                parallel(
                    step("debit", _debit, undo=_undo_debit, database=first),
                    step("credit", _credit, undo=_undo_credit, database=second),
                ),
            )
        )

    async def plain(self, giver: int, taker: int) -> None:
        """Two local transactions, and hope."""
        await asyncio.gather(
            self._local(self.pools[0], -1, giver), self._local(self.pools[1], 1, taker)
        )

    async def _local(self, pool: Any, amount: int, account: int) -> None:
        async with pool.acquire() as db, db.transaction():
            await db.execute(MOVE, amount, account)

    async def in_tcc(self, giver: int, taker: int) -> None:
        await together(
            self.debit.call(account=giver, amount=1), self.credit.call(account=taker, amount=1)
        )

    async def in_saga(self, giver: int, taker: int) -> None:
        await self.saga.run({"giver": giver, "taker": taker})

    async def in_at(self, giver: int, taker: int, manager: Transactions) -> None:
        while True:
            with suppress(LockConflictError):  # two that waited for each other, in both databases
                async with manager.transaction("transfer"):
                    await asyncio.gather(self._recorded(0, -1, giver), self._recorded(1, 1, taker))
                return

    async def _recorded(self, place: int, amount: int, account: int) -> None:
        async with self.automatic[place].connect() as db, db.transaction():
            await db.execute(MOVE, amount, account)

    async def in_xa(self, giver: int, taker: int, manager: Transactions) -> None:
        async with manager.transaction("transfer"):
            await asyncio.gather(self._prepared(0, -1, giver), self._prepared(1, 1, taker))

    async def _prepared(self, place: int, amount: int, account: int) -> None:
        async with self.xa[place].xa() as db:
            await db.execute(MOVE, amount, account)


class _Hold(Tcc):
    async def try_(self, db: Any, *, account: int, amount: int) -> None:
        await db.execute(
            "UPDATE accounts SET balance = balance - $1, held = held + $1"
            " WHERE id = $2 AND balance >= $1",
            amount,
            account,
        )

    async def confirm(self, db: Any, *, account: int, amount: int) -> None:
        await db.execute("UPDATE accounts SET held = held - $1 WHERE id = $2", amount, account)

    async def cancel(self, db: Any, *, account: int, amount: int) -> None:
        await db.execute(
            "UPDATE accounts SET balance = balance + $1, held = held - $1 WHERE id = $2",
            amount,
            account,
        )


class _Promise(Tcc):
    async def try_(self, db: Any, *, account: int, amount: int) -> None:
        del amount
        await db.fetchval("SELECT 1 FROM accounts WHERE id = $1", account)

    async def confirm(self, db: Any, *, account: int, amount: int) -> None:
        await db.execute(MOVE, amount, account)

    async def cancel(self, db: Any, *, account: int, amount: int) -> None:
        pass


async def _debit(db: Any, context: Any) -> None:
    await db.execute(MOVE, -1, context.input["giver"])


async def _undo_debit(db: Any, context: Any) -> None:
    await db.execute(MOVE, 1, context.input["giver"])


async def _credit(db: Any, context: Any) -> None:
    await db.execute(MOVE, 1, context.input["taker"])


async def _undo_credit(db: Any, context: Any) -> None:
    await db.execute(MOVE, -1, context.input["taker"])


class Meter:
    """Runs clients for a while, and asks the server what that took."""

    def __init__(self, admin: Any, clients: int, log: PostgresLog) -> None:
        self._admin = admin
        self._clients = clients
        self._log = log

    async def measure(self, row: Row, transfer: Transfer, seconds: float) -> float:
        """Add a round to a row; its rate."""
        await self._admin.execute("SELECT pg_stat_statements_reset()")
        flushes, _ = await self._counts()
        trips = self._log.statistics.round_trips
        times, took = await self._run(transfer, seconds)
        after, statements = await self._counts()
        row.times += times
        row.rates.append(len(times) / took)
        row.flushes += after - flushes
        row.statements += statements
        row.trips += self._log.statistics.round_trips - trips
        return row.rates[-1]

    async def _run(self, transfer: Transfer, seconds: float) -> tuple[list[float], float]:
        times: list[float] = []
        start = time.perf_counter()

        async def client(seed: int) -> None:
            choose = random.Random(seed)
            while time.perf_counter() < start + seconds:
                began = time.perf_counter()
                await transfer(choose.randrange(ACCOUNTS), choose.randrange(ACCOUNTS))
                times.append(time.perf_counter() - began)

        async with asyncio.TaskGroup() as group:
            for seed in range(self._clients):
                group.create_task(client(seed))
        return times, time.perf_counter() - start

    async def _counts(self) -> tuple[float, float]:
        await self._admin.execute("SELECT pg_stat_force_next_flush()")
        flushes, calls = await self._admin.fetchrow(COUNTS)
        return float(flushes), float(calls)


@asynccontextmanager
async def broker() -> AsyncIterator[NatsBroker]:
    """A NATS server of its own."""
    with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", 0)) as probe:
        folder, port = Path(name), probe.getsockname()[1]
        probe.close()
        engine = NatsEngine(folder, port, "bench", secrets.token_hex(8), folder / "log")
        ran = engine.prepare()
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(  # noqa: ASYNC220 - a fork, at the start
                ran.argv, env=dict(ran.env), cwd=ran.cwd, stdout=log, stderr=log
            )
        try:
            await engine.wait_ready()
            async with NatsBroker(engine.url) as opened:
                yield opened
        finally:
            process.terminate()
            process.wait()


@asynccontextmanager
async def messages(bank: Bank) -> AsyncIterator[Transfer]:
    """Debit and message in one; a consumer credits. Over when the credit is there too."""
    landed: dict[str, asyncio.Event] = {}

    async def credit(db: Any, message: Any) -> None:
        data = message.json()
        await db.execute(MOVE, 1, data["taker"])
        if data["id"] in landed:  # it may come twice
            landed[data["id"]].set()

    numbers = itertools.count()
    async with broker() as nats, AsyncExitStack() as stack:
        await nats.declare("bank", "bank.>")
        source = TwoPhaseMessage(bank.pools[0], Messages(nats, name="bank"), name="debit")
        group = await stack.enter_async_context(asyncio.TaskGroup())
        consumers = [
            Consumer(bank.pools[1], nats, "bank.credit", "credit", credit, batch=4)
            for _ in range(16)
        ]
        tasks = [group.create_task(consumer.run()) for consumer in consumers]

        async def transfer(giver: int, taker: int) -> None:
            name = str(next(numbers))
            event = landed[name] = asyncio.Event()
            async with source("bank.credit", {"id": name, "taker": taker}) as db:
                await db.execute(MOVE, -1, giver)
            await event.wait()
            del landed[name]

        yield transfer
        for task in tasks:
            task.cancel()


def dbos(python: str, urls: list[str], clients: int, seconds: float) -> tuple[float, ...]:
    """The same in a process of its own, which has DBOS."""
    answer = subprocess.check_output(
        [python, HERE / "transactions_dbos.py", *urls, str(clients), str(seconds)],
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    return tuple(json.loads(answer.splitlines()[-1]))


async def run(urls: list[str], options: argparse.Namespace) -> None:
    """Every mode, over the databases `urls` (two, then the log's)."""

    async def unreset(_: Any) -> None:
        """The pool's own clean-up would be a round trip for each use, in every mode alike."""

    async with AsyncExitStack() as stack:
        size = {"min_size": options.clients, "max_size": options.clients, "reset": unreset}
        pools = [await stack.enter_async_context(asyncpg.create_pool(u, **size)) for u in urls[:2]]
        admin = await asyncpg.connect(urls[0])
        stack.push_async_callback(admin.close)
        log = await stack.enter_async_context(PostgresLog.open(urls[2]))
        manager = await stack.enter_async_context(use(Transactions(log)))
        bank = Bank(*pools)
        modes: dict[str, Transfer] = {
            "saga": bank.in_saga,
            "message": await stack.enter_async_context(messages(bank)),
            "TCC": bank.in_tcc,
            "AT": lambda giver, taker: bank.in_at(giver, taker, manager),
            "XA": lambda giver, taker: bank.in_xa(giver, taker, manager),
        }
        meter, length = Meter(admin, options.clients, log), options.seconds / ROUNDS
        for transfer in (bank.plain, *modes.values()):
            await meter.measure(Row("warm"), transfer, min(1.0, length))
        plain, rows = Row("no manager"), {name: Row(name) for name in modes}
        others: list[tuple[float, ...]] = []
        for _ in range(ROUNDS):
            before = await meter.measure(plain, bank.plain, length)
            for name, transfer in modes.items():
                rate = await meter.measure(rows[name], transfer, length)
                after = await meter.measure(plain, bank.plain, length)
                rows[name].ratios.append(2 * rate / (before + after))
                before = after
            if options.dbos:
                found = await asyncio.to_thread(dbos, options.dbos, urls, options.clients, length)
                after = await meter.measure(plain, bank.plain, length)
                others.append((*found, 2 * found[0] / (before + after)))
        plain.ratios = [rate / median(plain.rates) for rate in plain.rates]
        for row in (plain, *rows.values()):
            print(row.shown())
        if others:
            rate, middle, slow, ratio = (median(it) for it in zip(*others, strict=True))
            print(f"{'DBOS workflow':<18}{rate:>8,.0f}{ratio:>8.2f}{middle:>9.1f}{slow:>9.1f}")
        total = [await pool.fetchval("SELECT sum(balance + held) FROM accounts") for pool in pools]
    moved = sum(total) - 2 * ACCOUNTS * 1_000_000
    if moved:
        raise SystemExit(f"money was lost or made: {moved}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--dbos", help="a Python that has the package dbos")
    options = parser.parse_args()
    settings: dict[str, str | int] = {
        "fsync": "on",
        "max_prepared_transactions": 500,
        "max_connections": 400,
        "shared_preload_libraries": "pg_stat_statements",
    }
    with postgres_server(**settings) as server:
        urls = []
        for name in ("first", "second", "log", "dbos"):
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}".encode())
            urls.append(server.url.rpartition("/")[0] + f"/{name}")
            with psycopg.connect(urls[-1], autocommit=True) as connection:
                connection.execute(TABLES.encode())
        with suppress(KeyboardInterrupt):
            print(HEADER)
            asyncio.run(run(urls, options))
    print(
        "DTM's own figure for two branches with barrier: 531/s, MySQL, 4 cores (not this machine)"
    )


HEADER = (
    f"{'':<18}{'/s':>8}{'ratio':>8}{'p50 ms':>9}{'p99 ms':>9}"
    f"{'flushes':>9}{'statements':>12}{'log trips':>11}"
)


if __name__ == "__main__":
    main()
