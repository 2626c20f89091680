"""Accounts: the ledger. Money moves here and nowhere else.

Every write is a PUT under an id that the caller chose, so that it can be repeated: by the caller,
by a proxy whose connection broke, or by this program when PostgreSQL went away in the middle.
Amounts are whole cents.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import psycopg
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StringConstraints

Connection = AsyncConnection[DictRow]
Cents = Annotated[StrictInt, Field(ge=0, le=10**15)]
Id = Annotated[
    str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
]


class Account(BaseModel):
    owner: Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
    balance: Cents = 0


class Transfer(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    from_account: Id = Field(alias="from")
    to_account: Id = Field(alias="to")
    amount: Annotated[StrictInt, Field(gt=0, le=10**15)]


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
                async with self._slots, self._connection() as connection, connection.transaction():
                    return await work(connection)
            except psycopg.OperationalError as error:
                if asyncio.get_running_loop().time() + pause > give_up:
                    raise ProblemError(
                        503, "Service Unavailable", "the database is away; try again"
                    ) from error
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
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
        except BaseException:
            if connection.closed or connection.info.transaction_status:  # not idle: not usable
                await connection.close()
            else:
                self._idle.append(connection)
            raise
        self._idle.append(connection)

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.database = Database(os.environ["LEDGER_URL"])
    yield
    await app.state.database.close()


app = FastAPI(title="accounts", lifespan=lifespan)


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    # Not a question to PostgreSQL: were it away, taking every replica out would help nobody.
    return {"status": "ok"}


@app.put("/accounts/{account_id}")
async def put_account(
    request: Request, account_id: Id, account: Account, response: Response
) -> dict[str, Any]:
    async def work(connection: Connection) -> tuple[bool, dict[str, Any]]:
        inserted = await connection.execute(
            "INSERT INTO accounts (id, owner, balance) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
            (account_id, account.owner, account.balance),
        )
        return bool(inserted.rowcount), await _account(connection, account_id)

    created, stored = await request.app.state.database.transaction(work)
    if not created and stored["owner"] != account.owner:
        raise ProblemError(409, "Conflict", f"account {account_id} belongs to somebody else")
    response.status_code = 201 if created else 200
    return dict(stored)


@app.get("/accounts/{account_id}")
async def get_account(request: Request, account_id: Id) -> dict[str, Any]:
    stored: dict[str, Any] = await request.app.state.database.transaction(
        lambda connection: _account(connection, account_id)
    )
    return stored


@app.put("/transfers/{transfer_id}")
async def put_transfer(
    request: Request, transfer_id: Id, transfer: Transfer, response: Response
) -> dict[str, Any]:
    if transfer.from_account == transfer.to_account:
        raise ProblemError(422, "Same Account", "money can only go to another account")

    created, stored = await request.app.state.database.transaction(
        lambda connection: _move(connection, transfer_id, transfer)
    )
    response.status_code = 201 if created else 200
    return dict(stored)


@app.get("/transfers/{transfer_id}")
async def get_transfer(request: Request, transfer_id: Id) -> dict[str, Any]:
    stored: dict[str, Any] | None = await request.app.state.database.transaction(
        lambda connection: _transfer(connection, transfer_id)
    )
    if stored is None:
        raise ProblemError(404, "Not Found", f"there is no transfer {transfer_id}")
    return stored


async def _move(
    connection: Connection, transfer_id: str, wanted: Transfer
) -> tuple[bool, dict[str, Any]]:
    """Returns whether the money was moved now (or had been before), and the transfer."""
    # Both accounts are locked in the order of their ids, so that two transfers never deadlock.
    locked = await connection.execute(
        "SELECT id FROM accounts WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE",
        ([wanted.from_account, wanted.to_account],),
    )
    found = {row["id"] for row in await locked.fetchall()}
    for account_id in (wanted.from_account, wanted.to_account):
        if account_id not in found:
            raise ProblemError(404, "Not Found", f"there is no account {account_id}")
    inserted = await connection.execute(
        "INSERT INTO transfers (id, from_account, to_account, amount) VALUES (%s, %s, %s, %s)"
        " ON CONFLICT DO NOTHING",
        (transfer_id, wanted.from_account, wanted.to_account, wanted.amount),
    )
    if inserted.rowcount:
        await _add(connection, wanted.from_account, -wanted.amount)
        await _add(connection, wanted.to_account, wanted.amount)
    stored = await _transfer(connection, transfer_id)
    if stored is None or (stored["from"], stored["to"], stored["amount"]) != (
        wanted.from_account,
        wanted.to_account,
        wanted.amount,
    ):
        raise ProblemError(409, "Conflict", f"transfer {transfer_id} exists and is another one")
    return bool(inserted.rowcount), stored


async def _add(connection: Connection, account_id: str, amount: int) -> None:
    try:
        await connection.execute(
            "UPDATE accounts SET balance = balance + %s WHERE id = %s", (amount, account_id)
        )
    except psycopg.errors.CheckViolation as error:
        raise ProblemError(
            409, "Insufficient Funds", f"account {account_id} has less than {-amount} cents"
        ) from error


async def _account(connection: Connection, account_id: str) -> dict[str, Any]:
    cursor = await connection.execute(
        "SELECT id, owner, balance FROM accounts WHERE id = %s", (account_id,)
    )
    row = await cursor.fetchone()
    if row is None:
        raise ProblemError(404, "Not Found", f"there is no account {account_id}")
    return row


async def _transfer(connection: Connection, transfer_id: str) -> dict[str, Any] | None:
    cursor = await connection.execute(
        'SELECT id, from_account AS "from", to_account AS "to", amount FROM transfers'
        " WHERE id = %s",
        (transfer_id,),
    )
    return await cursor.fetchone()


@app.exception_handler(ProblemError)
async def _problem(_request: Request, error: ProblemError) -> JSONResponse:
    body = {
        "type": "about:blank",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
    }
    return JSONResponse(body, error.status, media_type="application/problem+json")


@app.exception_handler(RequestValidationError)
async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return await _problem(request, ProblemError(422, "Invalid Request", f"{where}: {first['msg']}"))
