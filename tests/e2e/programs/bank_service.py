"""A bank of one account, as a service. Two of them transfer money between each other.

Nothing here says that the other service is part of a transaction: the request does.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import httpx
import psycopg
from fastapi import FastAPI

from bedstone.transactions import Tcc, tcc, transaction

DATABASE, PEER, FLAGS = os.environ["DATABASE"], os.environ["PEER"], Path(os.environ["FLAGS"])


class Change(Tcc):
    """Hold an amount, positive or negative; then let it count."""

    async def try_(self, db: Any, amount: int) -> None:
        """Refuse what leads below zero."""
        sql = "UPDATE account SET held = held + %s WHERE balance + %s >= 0"
        if (await db.execute(sql, (amount, amount))).rowcount != 1:
            raise ValueError("insufficient funds")

    async def confirm(self, db: Any, amount: int) -> None:
        """Let it count."""
        sql = "UPDATE account SET balance = balance + %s, held = held - %s"
        await db.execute(sql, (amount, amount))

    async def cancel(self, db: Any, amount: int) -> None:
        """Let go of it."""
        await db.execute("UPDATE account SET held = held - %s", (amount,))


class ChangeBlocking(Tcc):
    """The same, with a blocking driver."""

    def try_(self, db: Any, amount: int) -> None:
        """Hold it."""
        db.execute("UPDATE account SET held = held + %s", (amount,))

    def confirm(self, db: Any, amount: int) -> None:
        """Let it count."""
        sql = "UPDATE account SET balance = balance + %s, held = held - %s"
        db.execute(sql, (amount, amount))

    def cancel(self, db: Any, amount: int) -> None:
        """Let go of it."""
        db.execute("UPDATE account SET held = held - %s", (amount,))


app = FastAPI()
change = tcc(Change, DATABASE)
change_blocking = tcc(ChangeBlocking, lambda: psycopg.connect(DATABASE))


async def flag(name: str) -> None:
    """Wait for the test."""
    (FLAGS / f"waits-{name}").touch()
    while not (FLAGS / name).exists():  # noqa: ASYNC110
        await asyncio.sleep(0.02)


@app.post("/change")
async def on_change(amount: int, then: str = "") -> None:
    """Change the balance, in whatever transaction the request is part of."""
    if then == "late":
        await flag("late")
    try:
        await change(amount)
    except Exception as error:
        (FLAGS / "refused").write_text(type(error).__name__)
        raise
    if then == "fail":
        raise ValueError("broken after its work")


@app.post("/transfer")
async def transfer(amount: int, then: str = "", deadline: float = 20.0) -> str:
    """Move an amount to the other service."""
    async with transaction("transfer", timeout=deadline), httpx.AsyncClient(timeout=5) as client:
        await change(-amount)
        answer = await client.post(f"{PEER}/change", params={"amount": amount, "then": then})
        answer.raise_for_status()
        if then == "pause":
            await flag("pause")
    return "done"


@app.post("/transfer-blocking")
def transfer_blocking(amount: int) -> str:
    """The same, in a handler that runs in a thread."""
    with transaction("transfer"), httpx.Client(timeout=5) as client:
        change_blocking.sync(-amount)
        client.post(f"{PEER}/change", params={"amount": amount}).raise_for_status()
    return "done"


@app.post("/transfer-impatient")
async def transfer_impatient(amount: int) -> str:
    """Give up on the other service before it begins."""
    async with transaction("transfer"), httpx.AsyncClient(timeout=0.3) as client:
        await change(-amount)
        await client.post(f"{PEER}/change", params={"amount": amount, "then": "late"})
    return "done"
