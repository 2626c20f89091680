"""A branch of the bank: the only service that moves the money of its database for others.

What it does is part of the transaction whose id the request carries; nothing here begins one.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from vault import RefusedError, move, vault

from bedstone.errors import Error
from bedstone.transactions.broker import Message
from bedstone.transactions.broker_nats import NatsBroker
from bedstone.transactions.consuming import Consumer

NAME = os.environ["BEDSTONE_WORKLOAD"]
VAULT = vault(NAME)
_log = logging.getLogger("chaos.branch")


class Movement(BaseModel):
    """A change of one account."""

    transfer: str
    account: str
    amount: int


async def credited(db: Any, message: Message) -> None:
    """A message brings money."""
    said = message.json()
    await move(db, said["transfer"], said["account"], said["amount"])


async def consume(consumer: Consumer) -> None:
    """Consume for ever; what is no error of Bedstone's is a bug, and the audit will see it."""
    try:
        await consumer.run()
    except Exception:  # noqa: BLE001 - a bug must not pass in silence
        _log.exception("the consumer has died")


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Consume credits meanwhile."""
    assert VAULT is not None, "no database"
    broker = NatsBroker(os.environ["CHAOS_NATS_URL"])
    consumer = Consumer(
        VAULT.connection, broker, f"credit.{NAME}", f"credit-{NAME}", credited, ack_wait=5.0
    )
    task = asyncio.create_task(consume(consumer))
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await broker.close()


app = FastAPI(title=NAME, lifespan=lifespan)


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    """Not a question to the database: were it away, taking every replica out would help nobody."""
    return {"status": "ok"}


@app.post("/{mode}")
async def moved(mode: str, movement: Movement) -> dict[str, str]:
    """Change a balance as a branch of the caller's transaction."""
    assert VAULT is not None, "no database"
    await VAULT.move(mode, movement.transfer, movement.account, movement.amount)
    return {"status": "done"}


@app.exception_handler(RefusedError)
async def _refused(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 409)


@app.exception_handler(Error)
async def _failed(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": f"{type(error).__name__}: {error}"}, 503)


@app.exception_handler(Exception)
async def _broken(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": f"{type(error).__name__}: {error}"[:300]}, 500)
