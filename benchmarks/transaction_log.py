"""Operations a second of each transaction log, against what its database can do by itself.

    python benchmarks/transaction_log.py [--seconds 3] [--postgres postgresql://…]

A transfer of two branches is three operations: begin with both, decide, record both. Every number
is taken in this run on this machine; the ratio is to plain inserts of one row with a durable commit
each, by one connection of the same database: what an operation costs without group commit.
Then recovery: a coordinator takes over unfinished transactions of one that died, and ends them.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from bedstone.transactions.log_base import Statistics
from bedstone.transactions.log_postgres import PostgresLog
from bedstone.transactions.log_sqlite import SqliteLog
from bedstone.transactions.model import Branch, BranchState, Mode, Outcome, State, Transaction

CALLERS = (1, 32, 300)
BRANCHES = tuple(
    Branch(0, Mode.TCC, f"http://accounts/.bedstone/transactions/{name}", payload)
    for name, payload in (
        ("debit", b'{"arguments":{"account":"a-17","amount":5}}'),
        ("credit", b'{"arguments":{"account":"a-18","amount":5}}'),
    )
)
CONFIRMED = [Outcome(number, BranchState.CONFIRMED) for number in (1, 2)]
ROW = "x" * 500

Driver = SqliteLog | PostgresLog


def raw_sqlite(path: Path, seconds: float) -> float:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE t (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
        count, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            database.execute("INSERT INTO t VALUES (?, ?)", (f"key/{count:08}", ROW))
            count += 1
    return count / seconds


def raw_postgres(url: str, seconds: float) -> float:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET synchronous_commit = on")
        connection.execute("CREATE TABLE raw_commits (key text PRIMARY KEY, value text)")
        try:
            count, end = 0, time.perf_counter() + seconds
            while time.perf_counter() < end:
                connection.execute(
                    "INSERT INTO raw_commits VALUES (%s, %s)", (f"key/{count:08}", ROW)
                )
                count += 1
        finally:
            connection.execute("DROP TABLE raw_commits")
    return count / seconds


async def transfers(log: Driver, callers: int, seconds: float) -> tuple[float, float]:
    """Operations a second, and the 99th percentile of one in milliseconds."""
    times: list[float] = []
    deadline = await log.now() + 1e6
    end = time.perf_counter() + seconds

    async def call() -> None:
        while (start := time.perf_counter()) < end:
            xid = uuid.uuid4().hex
            await log.begin(Transaction(xid, "transfer", deadline, 0.0, "one", branches=BRANCHES))
            begun = time.perf_counter()
            await log.decide(xid, State.COMMITTING)
            decided = time.perf_counter()
            await log.record(xid, "one", 1, CONFIRMED, 0.0)
            times.extend((begun - start, decided - begun, time.perf_counter() - decided))

    start = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    rate = len(times) / (time.perf_counter() - start)
    return rate, sorted(times)[int(len(times) * 0.99)] * 1000


async def recover(log: Driver, count: int) -> tuple[float, float, float]:
    """Transactions a second taken over, and ended; and milliseconds to ask what is due."""
    deadline = await log.now() + 1e6
    numbers = itertools.count()

    async def fill() -> None:
        while (n := next(numbers)) < count:
            xid = f"open-{n:08}"
            await log.begin(Transaction(xid, "t", deadline, 0.0, "dead", branches=BRANCHES))
            await log.decide(xid, State.COMMITTING)

    await asyncio.gather(*(fill() for _ in range(300)))
    start = time.perf_counter()
    while await log.claim("heir", 3600.0, 1000):
        pass
    claimed = count / (time.perf_counter() - start)
    start = time.perf_counter()
    await log.owned("heir", 100)
    asked = (time.perf_counter() - start) * 1000
    start = time.perf_counter()
    while due := await log.owned("heir", 500):
        await asyncio.gather(*(log.record(it.xid, "heir", it.epoch, CONFIRMED, 0.0) for it in due))
    return claimed, count / (time.perf_counter() - start), asked


async def measure(
    name: str, make: Callable[[], Driver], seconds: float, raw: float, unfinished: int
) -> None:
    for callers in CALLERS:
        async with make() as log:
            rate, slow = await transfers(log, callers, seconds)
            done: Statistics = log.statistics
        print(
            f"{name:<10}{callers:>8}{rate:>10,.0f}{rate / raw:>8.2f}{slow:>9.2f}"
            f"{done.operations / done.batches:>8.1f}{done.round_trips / done.batches:>8.2f}"
        )
    async with make() as log:
        claimed, ended, asked = await recover(log, unfinished)
    print(
        f"{name:<10}{unfinished:,} unfinished: {claimed:,.0f}/s taken over, {ended:,.0f}/s ended, "
        f"{asked:.1f} ms to ask for 100 that are due"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--postgres", help="also measure the log in this database")
    parser.add_argument("--unfinished", type=int, default=100_000, help="transactions to recover")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        place = Path(folder).resolve()
        logs: dict[str, tuple[Callable[[], Driver], float]] = {
            "sqlite": (
                lambda: SqliteLog(place / "log.db"),
                raw_sqlite(place / "raw.db", options.seconds),
            )
        }
        if options.postgres:
            mark = "&" if "?" in options.postgres else "?"
            url = f"{options.postgres}{mark}schema=bench{uuid.uuid4().hex[:8]}"
            logs["postgres"] = (
                lambda: PostgresLog(url),
                raw_postgres(options.postgres, options.seconds),
            )
        for name, (_, raw) in logs.items():
            print(f"plain {name}, one row a commit: {raw:,.0f}/s")
        print(
            f"{'log':<10}{'callers':>8}{'op/s':>10}{'ratio':>8}{'p99 ms':>9}{'batch':>8}"
            f"{'trips':>8}"
        )
        for name, (make, raw) in logs.items():
            asyncio.run(measure(name, make, options.seconds, raw, options.unfinished))


if __name__ == "__main__":
    main()
