"""Books trips by sagas until it is killed: `trips.py KIND LOG DATABASE TRIPS`.

Says each thing that it does as it does it. Each trip inserts rows of its own, and calls a service
(a table that is written in a transaction of its own, and knows its callers' keys).
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import psycopg

from bedstone.transactions.manager import Transactions
from bedstone.transactions.saga import (
    Context,
    Saga,
    event,
    parallel,
    saga,
    sequence,
    step,
    timer,
)
from bedstone.transactions.saga_plan import Step

TABLES = """
CREATE TABLE IF NOT EXISTS booked (trip text, part text, PRIMARY KEY (trip, part));
CREATE TABLE IF NOT EXISTS called (key text PRIMARY KEY, trip text, part text, undone boolean);
"""


def part(name: str, database: str) -> Step:
    """A step in the trip's own database."""

    async def action(db: Any, context: Context) -> str:
        say(name)
        await db.execute("INSERT INTO booked VALUES (%s, %s)", (context.xid, name))
        return name

    async def undo(db: Any, context: Context) -> None:
        say(f"-{name}")
        gone = await db.execute(
            "DELETE FROM booked WHERE trip = %s AND part = %s", (context.xid, name)
        )
        if (gone.rowcount, context.result) != (1, name):
            raise AssertionError(f"{name} was undone twice, or without its result")

    return step(name, action, undo, database=database)


def call(name: str, database: str, *, fails: bool = False) -> Step:
    """A step at a service, which may be called twice."""

    async def action(context: Context) -> str:
        say(name)
        if fails and context.input["fails"]:
            raise LookupError
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as db:
            await db.execute(
                "INSERT INTO called VALUES (%s, %s, %s, false) ON CONFLICT DO NOTHING",
                (context.step_key, context.xid, name),
            )
        return name

    async def undo(context: Context) -> None:
        say(f"-{name}")
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as db:
            await db.execute("UPDATE called SET undone = true WHERE key = %s", (context.step_key,))

    return step(name, action, undo, fails_on=(LookupError,) if fails else ())


def trip(kind: str, database: str) -> Saga:
    """The sagas of these tests."""
    match kind:
        case "forward":
            body = sequence(
                part("flight", database), call("mail", database), part("hotel", database)
            )
            return Saga("forward", body, recovery="forward")
        case "waiting":
            body = sequence(part("flight", database), event("paid"), part("hotel", database))
            return Saga("waiting", body)
        case "timed":
            body = sequence(part("flight", database), timer(1.5), part("hotel", database))
            return Saga("timed", body)
    inner = Saga("payment", sequence(part("reserve", database), call("charge", database)))
    return Saga(
        "backward",
        sequence(
            part("flight", database),
            parallel(
                part("hotel", database),
                sequence(part("car", database), call("insurance", database)),
            ),
            inner,
            call("ticket", database, fails=True),
        ),
    )


def say(what: str) -> None:
    """Tell the test."""
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


async def main(kind: str, log: str, database: str, trips: int) -> None:
    """Book so many, or, with none to book, wait for the end of this process."""
    async with Transactions(log, lease=1.0) as transactions:
        book = saga(trip(kind, database), transactions)
        for number in range(trips):
            say(await book.start({"fails": number % 2 == 1}, timeout=300))
        say("started")
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
