"""Money: how it is set aside, taken and given back, in whichever database an account lives.

A transfer is two calls that end together: a debit where the giver's account is, a credit where the
taker's is. Either both are confirmed or both are cancelled, whatever dies in the middle.
Amounts are whole cents.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row

from bedstone.transactions import Tcc, tcc, together

Connection = AsyncConnection[DictRow]
SAVINGS = "savings-"  # how the id of a savings account begins


class ProblemError(Exception):
    """An answer that is an error (RFC 9457)."""

    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.title, self.detail = status, title, detail


class Database:
    """A few connections to PostgreSQL that outlive its restarts."""

    def __init__(self, url: str, size: int = 8, patience: float = 10.0) -> None:
        self._url = url
        self._patience = patience
        self._slots = asyncio.Semaphore(size)
        self._idle: list[Connection] = []

    async def transaction(self, work: Callable[[Connection], Awaitable[Any]]) -> Any:
        """Run `work` in one transaction; again if PostgreSQL went away. It must be repeatable."""
        give_up = asyncio.get_running_loop().time() + self._patience
        pause = 0.05
        while True:
            try:
                async with self.connection() as connection, connection.transaction():
                    return await work(connection)
            except psycopg.OperationalError as error:
                if asyncio.get_running_loop().time() + pause > give_up:
                    raise ProblemError(
                        503, "Service Unavailable", "the database is away; try again"
                    ) from error
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Take a connection, and give it back if it is still usable."""
        async with self._slots:
            connection = None
            while self._idle and connection is None:
                connection = self._idle.pop()
                # PostgreSQL says nothing to an idle connection but goodbye.
                if connection.closed or select.select([connection.fileno()], [], [], 0)[0]:
                    await connection.close()
                    connection = None
            if connection is None:
                connection = await AsyncConnection.connect(
                    self._url, autocommit=True, row_factory=dict_row, connect_timeout=5
                )
            try:
                yield connection
            finally:
                if connection.closed or connection.info.transaction_status:  # not idle
                    await connection.close()
                else:
                    self._idle.append(connection)

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()


class Debit(Tcc):
    """Money leaves an account. The giver's database also keeps the transfer itself."""

    async def try_(
        self, db: Connection, *, transfer: str, account: str, to: str, amount: int
    ) -> None:
        """Set it aside, so that nobody else can spend it."""
        await exists(db, account)
        changed = await db.execute(
            "UPDATE accounts SET balance = balance - %(amount)s, held = held + %(amount)s"
            " WHERE id = %(account)s AND balance >= %(amount)s",
            {"amount": amount, "account": account},
        )
        if changed.rowcount == 0:
            raise ProblemError(
                409, "Insufficient Funds", f"account {account} has less than {amount} cents"
            )
        noted = await db.execute(
            "INSERT INTO transfers (id, from_account, to_account, amount) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            (transfer, account, to, amount),
        )
        if noted.rowcount == 0:
            raise ProblemError(503, "Service Unavailable", f"transfer {transfer} is being made")

    async def confirm(
        self, db: Connection, *, transfer: str, account: str, to: str, amount: int
    ) -> None:
        """It is gone."""
        del to
        await db.execute("UPDATE accounts SET held = held - %s WHERE id = %s", (amount, account))
        await db.execute("UPDATE transfers SET done = true WHERE id = %s", (transfer,))

    async def cancel(
        self, db: Connection, *, transfer: str, account: str, to: str, amount: int
    ) -> None:
        """Give it back."""
        del to
        await db.execute(
            "UPDATE accounts SET balance = balance + %s, held = held - %s WHERE id = %s",
            (amount, amount, account),
        )
        await db.execute("DELETE FROM transfers WHERE id = %s", (transfer,))


class Credit(Tcc):
    """Money comes into an account."""

    async def try_(self, db: Connection, *, account: str, amount: int) -> None:
        """Nothing to set aside; but somebody must be there to take it."""
        del amount
        await exists(db, account)

    async def confirm(self, db: Connection, *, account: str, amount: int) -> None:
        """It has come."""
        await db.execute(
            "UPDATE accounts SET balance = balance + %s WHERE id = %s", (amount, account)
        )

    async def cancel(self, db: Connection, *, account: str, amount: int) -> None:
        """Nothing came, so nothing goes."""


async def exists(db: Connection, account: str) -> None:
    """Refuse an account that is not there."""
    found = await db.execute("SELECT 1 FROM accounts WHERE id = %s", (account,))
    if await found.fetchone() is None:
        raise ProblemError(404, "Not Found", f"there is no account {account}")


LEDGER, SAVED = Database(os.environ["LEDGER_URL"]), Database(os.environ["SAVINGS_URL"])
DEBIT = {
    LEDGER: tcc(Debit, LEDGER.connection, name="debit-ledger"),
    SAVED: tcc(Debit, SAVED.connection, name="debit-savings"),
}
CREDIT = {
    LEDGER: tcc(Credit, LEDGER.connection, name="credit-ledger"),
    SAVED: tcc(Credit, SAVED.connection, name="credit-savings"),
}


def home(account: str) -> Database:
    """The database that an account lives in."""
    return SAVED if account.startswith(SAVINGS) else LEDGER


async def move(transfer: str, giver: str, taker: str, amount: int) -> None:
    """Move money: all of it or none, before this returns or raises."""
    await together(
        DEBIT[home(giver)].call(transfer=transfer, account=giver, to=taker, amount=amount),
        CREDIT[home(taker)].call(account=taker, amount=amount),
        name="transfer",
        timeout=10.0,
    )
