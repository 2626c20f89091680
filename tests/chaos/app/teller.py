"""The teller: begins every transfer, in the mode that it is asked for, and says what became of it.

| status | means |
|---|---|
| 201 | done: it is there, or certainly will be |
| 409 | refused, or failed before the decision: nothing of it is there, or stays |
| 504 | nobody knows yet |
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from vault import RefusedError, Vault, found, move, take_back, vault

from bedstone.transactions import (
    Saga,
    TransactionAbortedError,
    TransactionTimeoutError,
    saga,
    sequence,
    step,
    transaction,
)
from bedstone.transactions.broker_nats import NatsBroker
from bedstone.transactions.messages import Messages, TwoPhaseMessage
from bedstone.transactions.outbox import Relay, publish_with
from bedstone.transactions.saga import Context

TIMEOUT = 12.0
_log = logging.getLogger("chaos.teller")
_http = httpx.AsyncClient(timeout=TIMEOUT + 3, limits=httpx.Limits(max_connections=None))
BROKER = NatsBroker(os.environ["CHAOS_NATS_URL"])
MESSAGES = Messages(BROKER, name="chaos")


class Place(BaseModel):
    """Where an account is."""

    bank: str
    account: str


class Transfer(BaseModel):
    """What a customer asks for."""

    id: str
    giver: Place
    taker: Place
    amount: int

    def sides(self) -> list[tuple[Place, int]]:
        """Each account with its change, in one order for all, so that few wait in a circle."""
        both = [(self.giver, -self.amount), (self.taker, self.amount)]
        return sorted(both, key=lambda side: (side[0].bank, side[0].account))


@dataclass
class Progress:
    """How far a transfer came: until `deciding` is set, no commit of it can have been asked for."""

    deciding: bool = False


def vaults() -> dict[str, Vault]:
    """Those whose databases are there."""
    made = {name: vault(name) for name in ("north", "south", "mary")}
    return {name: one for name, one in made.items() if one is not None}


VAULTS = vaults()
PLACED = {
    name: TwoPhaseMessage(one.connection, MESSAGES, name=name) for name, one in VAULTS.items()
}


async def change(mode: str, transfer: Transfer, place: Place, amount: int) -> None:
    """Ask a branch for its part."""
    body = {"transfer": transfer.id, "account": place.account, "amount": amount}
    answer = await _http.post(f"http://{place.bank}/{mode}", json=body)
    if answer.status_code != 200:
        raise RefusedError(f"{place.bank} answered {answer.status_code}: {answer.text[:300]}")


async def by_tcc(transfer: Transfer, progress: Progress) -> None:
    """Both parts are tried side by side."""
    async with transaction(transfer.id, timeout=TIMEOUT):
        async with asyncio.TaskGroup() as group:
            for place, amount in transfer.sides():
                group.create_task(change("tcc", transfer, place, amount))
        progress.deciding = True


async def by_at(transfer: Transfer, progress: Progress) -> None:
    """One part after the other."""
    async with transaction(transfer.id, timeout=TIMEOUT):
        for place, amount in transfer.sides():
            await change("at", transfer, place, amount)
        progress.deciding = True


async def by_xa(transfer: Transfer, progress: Progress) -> None:
    """One part after the other."""
    async with transaction(transfer.id, timeout=TIMEOUT):
        for place, amount in transfer.sides():
            await change("xa", transfer, place, amount)
        progress.deciding = True


def _step(bank: str, side: str, sign: int) -> Any:
    async def act(db: Any, context: Context) -> None:
        given = context.input
        await move(db, given["id"], given[side], sign * given["amount"])

    async def undo(db: Any, context: Context) -> None:
        given = context.input
        await take_back(db, given["id"], given[side], sign * given["amount"])

    return step(
        side, act, undo, database=VAULTS[bank].connection, fails_on=(RefusedError,), timeout=10.0
    )


SAGAS = {
    (giver, taker): saga(
        Saga(
            f"saga-{giver}-{taker}",
            sequence(_step(giver, "giver", -1), _step(taker, "taker", 1)),
            compensation_attempts=1000,
        )
    )
    for giver in VAULTS
    for taker in VAULTS
}


async def by_saga(transfer: Transfer, progress: Progress) -> None:
    """Step after step; the teller uses the databases itself."""
    one = SAGAS[transfer.giver.bank, transfer.taker.bank]
    progress.deciding = True
    await one.run(
        {
            "id": transfer.id,
            "giver": transfer.giver.account,
            "taker": transfer.taker.account,
            "amount": transfer.amount,
        },
        timeout=2 * TIMEOUT,
    )


def _credit(transfer: Transfer) -> tuple[str, dict[str, Any]]:
    body = {"transfer": transfer.id, "account": transfer.taker.account, "amount": transfer.amount}
    return f"credit.{transfer.taker.bank}", body


async def by_message(transfer: Transfer, progress: Progress) -> None:
    """A local debit and a two-phase message, whose consumer credits."""
    named = {"transfer": transfer.id}
    async with PLACED[transfer.giver.bank](*_credit(transfer), headers=named) as db:
        await move(db, transfer.id, transfer.giver.account, -transfer.amount)
        progress.deciding = True


async def by_outbox(transfer: Transfer, progress: Progress) -> None:
    """A local debit, and its message beside it in the outbox."""
    async with VAULTS[transfer.giver.bank].local() as db:
        await move(db, transfer.id, transfer.giver.account, -transfer.amount)
        await publish_with(db, *_credit(transfer))
        progress.deciding = True
        await db.commit()


MODES: dict[str, Callable[[Transfer, Progress], Awaitable[None]]] = {
    "tcc": by_tcc,
    "at": by_at,
    "xa": by_xa,
    "saga": by_saga,
    "message": by_message,
    "outbox": by_outbox,
}


async def relay(one: Relay) -> None:
    """Send what is in an outbox; what is no error of Bedstone's is a bug that the audit sees."""
    try:
        await one.run()
    except Exception:  # noqa: BLE001 - a bug must not pass in silence
        _log.exception("the relay has died")


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Send what is in the outboxes meanwhile."""
    relays = [Relay(one.connection, BROKER) for one in VAULTS.values()]
    tasks = [asyncio.create_task(relay(one)) for one in relays]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await BROKER.close()
    await _http.aclose()


app = FastAPI(title="teller", lifespan=lifespan)


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    """As the branches'."""
    return {"status": "ok"}


@app.post("/transfers/{mode}")
async def transferred(mode: str, transfer: Transfer) -> JSONResponse:
    """Move money; the answer is what the customer may rely on."""
    progress = Progress()
    try:
        await MODES[mode](transfer, progress)
    except (TransactionAbortedError, TransactionTimeoutError) as error:
        return _told(409, error)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told
        return _told(504 if progress.deciding else 409, error)
    return JSONResponse({"id": transfer.id}, 201)


@app.post("/read/{mode}")
async def read(mode: str, places: list[Place]) -> JSONResponse:
    """The sum of some accounts, read so that it is of one moment, as far as the mode permits."""
    try:
        if mode == "at":
            async with transaction("read", timeout=TIMEOUT):
                total = await _locked(mode, places)
        else:
            total = await _locked(mode, places)
    except Exception as error:  # noqa: BLE001
        return _told(503, error)
    return JSONResponse({"total": total}, 200)


async def _locked(mode: str, places: list[Place]) -> int:
    """Read with locks in all databases, which are given back together."""
    total, taken = 0, []
    async with AsyncExitStack() as stack:
        for bank in sorted({place.bank for place in places}):
            one = VAULTS[bank]
            raw = await stack.enter_async_context(one.reading())
            db = one.at.wrap(raw) if mode == "at" else raw
            taken.append(db)
            accounts = sorted(place.account for place in places if place.bank == bank)
            marks = ", ".join(["%s"] * len(accounts))
            rows = await found(
                db,
                f"SELECT id, balance FROM accounts WHERE id IN ({marks}) ORDER BY id FOR UPDATE",
                *accounts,
            )
            total += sum(int(balance) for _, balance in rows)
        for db in taken:
            await db.rollback()
    return total


def _told(status: int, error: BaseException) -> JSONResponse:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return JSONResponse({"detail": f"{type(error).__name__}: {error}"[:400]}, status)
