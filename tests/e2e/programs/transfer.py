"""A process that transfers money between two databases, and stops where it is told to."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from bedstone.transactions import Tcc, Transactions, tcc, together, transaction, use


async def run(db: Any, sql: str, *values: object) -> int:
    """Run one statement with psycopg or asyncmy; returns how many rows it changed."""
    if hasattr(db, "execute"):
        return int((await db.execute(sql, values)).rowcount)
    async with db.cursor() as cursor:
        await cursor.execute(sql, values)
        return int(cursor.rowcount)


class Debit(Tcc):
    """Hold the amount, then drop it."""

    async def try_(self, db: Any, amount: int) -> None:
        """Take it from the balance."""
        sql = "UPDATE account SET balance = balance - %s, held = held + %s WHERE balance >= %s"
        if await run(db, sql, amount, amount, amount) != 1:
            raise ValueError("insufficient funds")

    async def confirm(self, db: Any, amount: int) -> None:
        """Let go of it; or stop for ever."""
        if what == "decided":
            print("decided", flush=True)
            await asyncio.Event().wait()
        await run(db, "UPDATE account SET held = held - %s", amount)

    async def cancel(self, db: Any, amount: int) -> None:
        """Give it back."""
        await run(db, "UPDATE account SET balance = balance + %s, held = held - %s", amount, amount)


class Credit(Tcc):
    """Promise the amount, then add it."""

    async def try_(self, db: Any, amount: int) -> None:
        """Note it."""
        await run(db, "UPDATE account SET held = held + %s", amount)

    async def confirm(self, db: Any, amount: int) -> None:
        """Add it."""
        await run(db, "UPDATE account SET balance = balance + %s, held = held - %s", amount, amount)

    async def cancel(self, db: Any, amount: int) -> None:
        """Forget it."""
        await run(db, "UPDATE account SET held = held - %s", amount)


what, log, first, second = sys.argv[1:5]
amount, timeout = int(sys.argv[5]), float(sys.argv[6])
debit, credit = tcc(Debit, first), tcc(Credit, second)


async def transfer() -> str:
    """Transfer; says how it ended."""
    try:
        if what == "together":
            await together(debit.call(amount), credit.call(amount), timeout=timeout)
        else:
            async with transaction("transfer", timeout=timeout):
                await credit(amount)
                await debit(amount)
                if what == "tried":
                    print("tried", flush=True)
                    await asyncio.Event().wait()
    except ValueError as error:
        return f"refused: {error}"
    return "committed"


async def recover(transactions: Transactions) -> str:
    """See all to its end; says what that was."""
    async with asyncio.timeout(50):
        while True:
            (left,) = await transactions.log.list()
            if left.state.ended:
                return str(left.state)
            await asyncio.sleep(0.1)


async def main() -> None:
    """Do what the command line says."""
    async with use(Transactions(log, lease=1.0)) as transactions:
        print(await (recover(transactions) if what == "recover" else transfer()))


asyncio.run(main())
