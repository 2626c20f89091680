"""Web: what customers talk to. Calls accounts and risk by their names."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

import httpx
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StringConstraints

Id = Annotated[
    str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
]
PROBLEM = "application/problem+json"
OUTCOME = "x-bedstone-outcome"

TRY = """\
A small bank. Amounts are whole cents. Try:

  curl HOST/accounts -H 'content-type: application/json' \\
    -d '{"owner": "ann", "balance": 10000}'
  curl HOST/accounts/ID
  curl HOST/transfers -H 'content-type: application/json' \\
    -d '{"from": "ID", "to": "OTHER", "amount": 2500}'

An account of "kind": "savings" lives in another database; transfers between the two are whole or
nothing, whatever dies in the middle: see `bedstone tx ls`.

Give a transfer an "id" of your own and you can send it again safely. More at /docs.
"""

logger = logging.getLogger("bank.web")


class NewAccount(BaseModel):
    owner: Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
    balance: Annotated[StrictInt, Field(ge=0, le=10**15)] = 0
    kind: Literal["current", "savings"] = "current"


class NewTransfer(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    id: Id | None = None
    from_account: Id = Field(alias="from")
    to_account: Id = Field(alias="to")
    amount: Annotated[StrictInt, Field(gt=0, le=10**15)]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # httpx takes the proxy from HTTP_PROXY; "accounts" and "risk" are names that the proxy knows.
    async with httpx.AsyncClient(timeout=30) as client:
        app.state.client = client
        yield


app = FastAPI(title="bank", lifespan=lifespan)


@app.get("/", response_class=PlainTextResponse)
async def index(request: Request) -> str:
    return TRY.replace("HOST", request.headers["host"])


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/accounts")
async def create_account(request: Request, account: NewAccount) -> Response:
    prefix = "savings-" if account.kind == "savings" else ""
    return await _forward(
        request,
        "PUT",
        f"http://accounts/accounts/{prefix}{uuid.uuid4()}",
        account.model_dump(exclude={"kind"}),
    )


@app.get("/accounts/{account_id}")
async def get_account(request: Request, account_id: Id) -> Response:
    return await _forward(request, "GET", f"http://accounts/accounts/{account_id}")


@app.post("/transfers")
async def create_transfer(request: Request, transfer: NewTransfer) -> Response:
    wanted = transfer.model_dump(by_alias=True, exclude={"id"})
    assessed = await _call(request, "GET", "http://risk/assess", params=wanted)
    if assessed.status_code != 200:
        return _problem(503, "Service Unavailable", "the risk of it cannot be assessed now")
    verdict = assessed.json()
    if not verdict["allowed"]:
        return _problem(403, "Refused", verdict["reason"])
    transfer_id = transfer.id or uuid.uuid4()
    return await _forward(request, "PUT", f"http://accounts/transfers/{transfer_id}", wanted)


@app.get("/transfers/{transfer_id}")
async def get_transfer(request: Request, transfer_id: Id) -> Response:
    return await _forward(request, "GET", f"http://accounts/transfers/{transfer_id}")


async def _call(request: Request, method: str, url: str, **options: Any) -> httpx.Response:
    client: httpx.AsyncClient = request.app.state.client
    return await client.request(method, url, **options)


async def _forward(
    request: Request, method: str, url: str, body: dict[str, Any] | None = None
) -> Response:
    """Ask another service, and hand on its answer, errors too."""
    answer = await _call(request, method, url, json=body)
    kind = answer.headers.get("content-type", "")
    if "json" not in kind:  # not from the service itself, but from a proxy on the way
        response = _problem(answer.status_code, answer.reason_phrase, "a service cannot be reached")
    else:
        response = Response(answer.content, answer.status_code, media_type=kind)
    if OUTCOME in answer.headers:
        response.headers[OUTCOME] = answer.headers[OUTCOME]
    return response


def _problem(status: int, title: str, detail: str) -> Response:
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return JSONResponse(body, status, media_type=PROBLEM)


@app.exception_handler(httpx.ConnectError)
@app.exception_handler(httpx.ConnectTimeout)
async def _unreachable(_request: Request, error: Exception) -> Response:
    logger.warning("cannot connect: %s", error)
    response = _problem(503, "Service Unavailable", "a service cannot be reached; try again")
    response.headers[OUTCOME] = "not-applied"
    return response


@app.exception_handler(TimeoutError)
@app.exception_handler(httpx.TransportError)
async def _unknown(_request: Request, error: Exception) -> Response:
    logger.warning("no answer: %r", error)
    timed_out = isinstance(error, TimeoutError | httpx.TimeoutException)
    response = _problem(
        504 if timed_out else 502,
        "Gateway Timeout" if timed_out else "Bad Gateway",
        "no answer came; it may have been done: look before you repeat it, or repeat it by its id",
    )
    response.headers[OUTCOME] = "unknown"
    return response


@app.exception_handler(RequestValidationError)
async def _invalid(_request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return _problem(422, "Invalid Request", f"{where}: {first['msg']}")
