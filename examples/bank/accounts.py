"""Accounts: the two ledgers, over HTTP. Money moves here and nowhere else.

Every write is a PUT under an id that the caller chose, so that it can be repeated: by the caller,
by a proxy whose connection broke, or by this program when PostgreSQL went away in the middle.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from money import LEDGER, SAVED, Connection, Database, ProblemError, home, move
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StringConstraints

from bedstone.errors import Error, UnknownOutcomeError

OUTCOME = "x-bedstone-outcome"
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


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    yield
    for database in (LEDGER, SAVED):
        await database.close()


app = FastAPI(title="accounts", lifespan=lifespan)


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    # Not a question to PostgreSQL: were it away, taking every replica out would help nobody.
    return {"status": "ok"}


@app.put("/accounts/{account_id}")
async def put_account(account_id: Id, account: Account, response: Response) -> dict[str, Any]:
    async def work(connection: Connection) -> tuple[bool, dict[str, Any]]:
        inserted = await connection.execute(
            "INSERT INTO accounts (id, owner, balance) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
            (account_id, account.owner, account.balance),
        )
        return bool(inserted.rowcount), await _account(connection, account_id)

    created, stored = await home(account_id).transaction(work)
    if not created and stored["owner"] != account.owner:
        raise ProblemError(409, "Conflict", f"account {account_id} belongs to somebody else")
    response.status_code = 201 if created else 200
    return dict(stored)


@app.get("/accounts/{account_id}")
async def get_account(account_id: Id) -> dict[str, Any]:
    stored: dict[str, Any] = await home(account_id).transaction(
        lambda connection: _account(connection, account_id)
    )
    return stored


@app.put("/transfers/{transfer_id}")
async def put_transfer(transfer_id: Id, transfer: Transfer, response: Response) -> dict[str, Any]:
    giver, taker, amount = transfer.from_account, transfer.to_account, transfer.amount
    if giver == taker:
        raise ProblemError(422, "Same Account", "money can only go to another account")
    response.status_code = 200
    stored = await _stored(transfer_id, LEDGER) or await _stored(transfer_id, SAVED)
    if stored is None:
        await move(transfer_id, giver, taker, amount)
        response.status_code = 201
        return {"id": transfer_id, "from": giver, "to": taker, "amount": amount}
    if (stored["from"], stored["to"], stored["amount"]) != (giver, taker, amount):
        raise ProblemError(409, "Conflict", f"transfer {transfer_id} exists and is another one")
    if not stored.pop("done"):
        raise ProblemError(503, "Service Unavailable", f"transfer {transfer_id} is being made")
    return stored


@app.get("/transfers/{transfer_id}")
async def get_transfer(transfer_id: Id) -> dict[str, Any]:
    for database in (LEDGER, SAVED):
        stored = await _stored(transfer_id, database)
        if stored is not None and stored.pop("done"):
            return stored
    raise ProblemError(404, "Not Found", f"there is no transfer {transfer_id}")


async def _stored(transfer_id: str, database: Database) -> dict[str, Any] | None:
    """A transfer as the giver's database keeps it; `done` once it can't be undone any more."""

    async def work(connection: Connection) -> dict[str, Any] | None:
        cursor = await connection.execute(
            'SELECT id, from_account AS "from", to_account AS "to", amount, done FROM transfers'
            " WHERE id = %s",
            (transfer_id,),
        )
        return await cursor.fetchone()

    found: dict[str, Any] | None = await database.transaction(work)
    return found


async def _account(connection: Connection, account_id: str) -> dict[str, Any]:
    cursor = await connection.execute(
        "SELECT id, owner, balance FROM accounts WHERE id = %s", (account_id,)
    )
    row = await cursor.fetchone()
    if row is None:
        raise ProblemError(404, "Not Found", f"there is no account {account_id}")
    return row


@app.exception_handler(ProblemError)
async def _problem(_request: Request, error: ProblemError) -> JSONResponse:
    body = {
        "type": "about:blank",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
    }
    return JSONResponse(body, error.status, media_type="application/problem+json")


@app.exception_handler(Error)
async def _undecided(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, UnknownOutcomeError):
        detail = "no answer came; it may have been done: repeat it by its id"
        response = await _problem(request, ProblemError(504, "Gateway Timeout", detail))
        response.headers[OUTCOME] = "unknown"
        return response
    problem = ProblemError(503, "Service Unavailable", f"nothing was done; try again: {error}")
    response = await _problem(request, problem)
    response.headers[OUTCOME] = "not-applied"
    return response


@app.exception_handler(RequestValidationError)
async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return await _problem(request, ProblemError(422, "Invalid Request", f"{where}: {first['msg']}"))
