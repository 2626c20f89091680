"""One database of the bank, and how its money is moved in every mode.

With every movement an entry is written, in the same local transaction: an account's balance and
what is set aside of it are always what it was opened with and its entries, whatever has died.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias

from connections import Pool, mariadb, postgres

from bedstone.transactions import Tcc, Transactions, automatic, tcc, use, xa

TRANSACTIONS = use(Transactions(lease=float(os.environ["CHAOS_LEASE"])))
LOCK_WAIT = 2.0
SIZE, READERS = 10, 4
Opening: TypeAlias = Callable[[], AbstractAsyncContextManager[Any]]


class RefusedError(Exception):
    """The bank does not do this."""


async def changed(db: Any, text: str, *parameters: object) -> int:
    """Run a statement with any of the drivers; how many rows it touched."""
    async with db.cursor() as cursor:
        await cursor.execute(text, parameters)
        return int(cursor.rowcount)


async def found(db: Any, text: str, *parameters: object) -> Sequence[Any]:
    """Run a question with any of the drivers; its rows."""
    async with db.cursor() as cursor:
        await cursor.execute(text, parameters)
        rows: Sequence[Any] = await cursor.fetchall()
        return rows


async def enter(db: Any, transfer: str, account: str, amount: int) -> None:
    """Write down that an account was changed; once for each time that it was."""
    await changed(
        db,
        "INSERT INTO entries (id, transfer, account, amount) VALUES (%s, %s, %s, %s)",
        uuid.uuid4().hex,
        transfer,
        account,
        amount,
    )


async def move(db: Any, transfer: str, account: str, amount: int) -> None:
    """Change a balance at once; a negative amount is a debit."""
    touched = await changed(
        db,
        "UPDATE accounts SET balance = balance + %s WHERE id = %s AND balance + %s >= 0",
        amount,
        account,
        amount,
    )
    if touched != 1:
        raise RefusedError(f"{account} can't be changed by {amount}")
    await enter(db, transfer, account, amount)


async def take_back(db: Any, transfer: str, account: str, amount: int) -> None:
    """Undo `move`, as a saga does: also for money that was spent meanwhile it must be enough."""
    await changed(db, "UPDATE accounts SET balance = balance - %s WHERE id = %s", amount, account)
    await changed(db, "DELETE FROM entries WHERE transfer = %s AND account = %s", transfer, account)


class Debit(Tcc):
    """Money leaves an account."""

    async def try_(self, db: Any, *, transfer: str, account: str, amount: int) -> None:
        del transfer
        touched = await changed(
            db,
            "UPDATE accounts SET balance = balance - %s, held = held + %s"
            " WHERE id = %s AND balance >= %s",
            amount,
            amount,
            account,
            amount,
        )
        if touched != 1:
            raise RefusedError(f"{account} has less than {amount}")

    async def confirm(self, db: Any, *, transfer: str, account: str, amount: int) -> None:
        await changed(db, "UPDATE accounts SET held = held - %s WHERE id = %s", amount, account)
        await enter(db, transfer, account, -amount)

    async def cancel(self, db: Any, *, transfer: str, account: str, amount: int) -> None:
        del transfer
        await changed(
            db,
            "UPDATE accounts SET balance = balance + %s, held = held - %s WHERE id = %s",
            amount,
            amount,
            account,
        )


class Credit(Tcc):
    """Money comes into an account."""

    async def try_(self, db: Any, *, transfer: str, account: str, amount: int) -> None:
        del transfer, amount
        if not await found(db, "SELECT 1 FROM accounts WHERE id = %s", account):
            raise RefusedError(f"there is no {account}")

    async def confirm(self, db: Any, *, transfer: str, account: str, amount: int) -> None:
        await move(db, transfer, account, amount)

    async def cancel(self, db: Any, *, transfer: str, account: str, amount: int) -> None:
        """Nothing came, so nothing goes."""


class Vault:
    """One database, in every mode.

    Args:
        name: the bank's.
        opening: makes a connection.
    """

    def __init__(self, name: str, opening: Callable[[], Awaitable[Any]]) -> None:
        pool, readers = Pool(opening, SIZE), Pool(opening, READERS)
        self.name = name
        self.connection: Opening = pool.connection
        self.reading: Opening = readers.connection
        self.debit = tcc(Debit, pool.connection, name=f"debit-{name}")
        self.credit = tcc(Credit, pool.connection, name=f"credit-{name}")
        self.at = automatic(pool.connection, name=name, lock_wait=LOCK_WAIT)
        self.xa = xa(pool.connection, name=name)

    async def move(self, mode: str, transfer: str, account: str, amount: int) -> None:
        """Change a balance as a branch of the running transaction."""
        match mode:
            case "tcc" if amount < 0:
                await self.debit(transfer=transfer, account=account, amount=-amount)
            case "tcc":
                await self.credit(transfer=transfer, account=account, amount=amount)
            case "at":
                async with self.at.connect() as db:
                    await move(db, transfer, account, amount)
                    await db.commit()
            case "xa":
                async with self.xa.xa() as db:
                    await move(db, transfer, account, amount)
            case _:
                raise RefusedError(f"there is no mode {mode}")

    @asynccontextmanager
    async def local(self) -> AsyncIterator[Any]:
        """A plain local transaction, which the caller commits."""
        async with self.connection() as db:
            try:
                yield db
            finally:
                await db.rollback()


def vault(name: str) -> Vault | None:
    """The vault of a bank, if this workload may use its database."""
    if name == "mary":
        url = os.environ["CHAOS_MARIADB_URL"]
        return Vault(name, lambda: mariadb(url)) if url else None
    url = os.environ.get(f"{name.upper()}_DB_URL", "")
    return Vault(name, lambda: postgres(url)) if url else None
