"""Commits a second of each store, against what the disk itself can do.

    python benchmarks/store.py [--seconds 3] [--postgres postgresql://…]

Every number is taken in this run on this machine; the ratio is to single inserts by plain sqlite3
with `synchronous=FULL` in the same folder, which is what a durable commit costs at the least.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import statistics
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

from bedstone.store import Put, Store
from bedstone.store.memory import MemoryStore
from bedstone.store.postgres import PostgresStore
from bedstone.store.sqlite import SqliteStore

VALUE = b"x" * 500
WRITERS = 64


def raw_sqlite(path: Path, seconds: float) -> float:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE t (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID")
        count, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            database.execute("INSERT INTO t VALUES (?, ?)", (f"key/{count:08}", VALUE))
            count += 1
    return count / seconds


async def serial(store: Store, seconds: float) -> tuple[float, float]:
    """Commits a second one after the other, and their median in milliseconds."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        await store.commit([Put(f"serial/{len(times):08}", VALUE)])
        times.append(time.perf_counter() - start)
    return len(times) / sum(times), statistics.median(times) * 1000


async def concurrent(store: Store, seconds: float) -> float:
    """Commits a second of many writers, each waiting for its own."""
    counts = [0] * WRITERS
    end = time.perf_counter() + seconds

    async def write(writer: int) -> None:
        while time.perf_counter() < end:
            await store.commit([Put(f"many/{writer}/{counts[writer]:08}", VALUE)])
            counts[writer] += 1

    start = time.perf_counter()
    await asyncio.gather(*(write(writer) for writer in range(WRITERS)))
    return sum(counts) / (time.perf_counter() - start)


async def watched(store: Store) -> tuple[float, float]:
    """With 10,000 keys, each watched: milliseconds for one commit to arrive, and to list all."""
    keys = [f"fleet/{n:05}/" for n in range(10_000)]
    for start in range(0, len(keys), 1000):
        await store.commit([Put(f"{key}x", VALUE) for key in keys[start : start + 1000]])
    began = time.perf_counter()
    listing = await store.list("fleet/")
    listed = time.perf_counter() - began
    watches = [store.watch(key, listing.revision) for key in keys]
    times = []
    for n in range(0, 10_000, 100):
        waiting = asyncio.ensure_future(_next(watches[n].__anext__))
        await asyncio.sleep(0)
        began = time.perf_counter()
        await store.commit([Put(f"{keys[n]}x", b"new")])
        times.append(await waiting - began)
    return statistics.median(times) * 1000, listed * 1000


async def _next(following: Callable[[], Awaitable[object]]) -> float:
    await following()
    return time.perf_counter()


async def measure(name: str, store: Store, seconds: float, raw: float) -> None:
    async with store:
        one, median = await serial(store, seconds)
        many = await concurrent(store, seconds)
        woken, listed = await watched(store)
    print(
        f"{name:<10}{one:>10,.0f}{median:>10.2f}{many:>12,.0f}{one / raw:>9.2f}{many / raw:>9.2f}"
        f"{woken:>12.2f}{listed:>10.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--postgres", help="also measure the store in this database")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        raw = raw_sqlite(Path(folder) / "raw.db", options.seconds)
        print(
            f"plain sqlite3, synchronous=FULL: {raw:,.0f} inserts/s; {WRITERS} concurrent writers"
        )
        print(
            f"{'store':<10}{'serial/s':>10}{'p50 ms':>10}{'concurrent/s':>12}{'ratio':>9}"
            f"{'ratio':>9}{'woken ms':>12}{'list ms':>10}"
        )
        stores: dict[str, Store] = {
            "memory": MemoryStore(),
            "sqlite": SqliteStore(Path(folder).resolve() / "store.db"),
        }
        if options.postgres:
            schema = f"bench{uuid.uuid4().hex[:8]}"
            stores["postgres"] = PostgresStore(options.postgres, schema=schema)
        for name, store in stores.items():
            asyncio.run(measure(name, store, options.seconds, raw))


if __name__ == "__main__":
    main()
