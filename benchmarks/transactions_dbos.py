"""The transfer of `transactions.py` as a DBOS workflow; run by it, in a Python that has `dbos`."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from typing import Any

ACCOUNTS = 10_000


async def main(urls: list[str], clients: int, seconds: float) -> None:
    first, second, _, system = urls
    import psycopg_pool  # type: ignore[import-not-found, unused-ignore]
    from dbos import DBOS  # type: ignore[import-not-found, unused-ignore]

    pools: list[Any] = []
    for url in (first, second):
        pool = psycopg_pool.AsyncConnectionPool(url, min_size=clients, max_size=clients, open=False)
        await pool.open()
        pools.append(pool)
    DBOS(
        config={
            "name": "transfer",
            "system_database_url": system,
            "sys_db_pool_size": clients,
            "log_level": "ERROR",
        }
    )

    @DBOS.step()  # type: ignore[untyped-decorator, unused-ignore]
    async def move(place: int, amount: int, account: int) -> None:
        async with pools[place].connection() as db:
            await db.execute(
                "UPDATE accounts SET balance = balance + %s WHERE id = %s", (amount, account)
            )

    @DBOS.workflow()  # type: ignore[untyped-decorator, unused-ignore]
    async def transfer(giver: int, taker: int) -> None:
        await asyncio.gather(move(0, -1, giver), move(1, 1, taker))

    DBOS.launch()
    times: list[float] = []

    async def run(length: float) -> float:
        start = time.perf_counter()

        async def client(seed: int) -> None:
            choose = random.Random(seed)
            while time.perf_counter() < start + length:
                began = time.perf_counter()
                await transfer(choose.randrange(ACCOUNTS), choose.randrange(ACCOUNTS))
                times.append(time.perf_counter() - began)

        await asyncio.gather(*(client(seed) for seed in range(clients)))
        return time.perf_counter() - start

    await run(min(2.0, seconds))
    times.clear()
    took = await run(seconds)
    times.sort()
    print(
        json.dumps(
            [
                len(times) / took,
                times[len(times) // 2] * 1000,
                times[int(len(times) * 0.99)] * 1000,
            ]
        )
    )
    DBOS.destroy()
    for pool in pools:
        await pool.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:5], int(sys.argv[5]), float(sys.argv[6])))
