"""A process is killed inside a two-phase message; who takes over asks the database back."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from bedstone.engines.nats import NatsEngine
from bedstone.testing.domain import free_port
from bedstone.testing.processes import until
from bedstone.transactions import Transactions
from bedstone.transactions.broker_nats import NatsBroker
from bedstone.transactions.messages import Messages, TwoPhaseMessage

PROGRAM = """
import asyncio, os, signal, sys
from bedstone.transactions import Transactions
from bedstone.transactions.messages import Messages, TwoPhaseMessage

point, log, database, broker = sys.argv[1:]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with Transactions(log, lease=0.5) as transactions:
        messages = Messages(broker, name="shop", transactions=transactions)
        placed = TwoPhaseMessage(database, messages, name="orders")
        if point == "committed":
            placed._commit = die
        if point == "decided":
            messages.deliver = die
        async with placed("k", point) as db:
            await db.execute("INSERT INTO orders_killed VALUES (%s)", (point,))
            if point == "inside":
                die()
        await asyncio.sleep(60)

asyncio.run(main())
"""


@contextmanager
def nats_server(folder: Path) -> Iterator[str]:
    nats = NatsEngine(folder / "nats", free_port(), "test", "word", folder / "nats.log")
    spec = nats.prepare()
    with nats.log.open("ab") as log, subprocess.Popen(spec.argv, stdout=log, stderr=log) as process:
        try:
            asyncio.run(nats.wait_ready())
            yield nats.url
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("point", "expected"), [("inside", []), ("committed", ["committed"]), ("decided", ["decided"])]
)
def test_row_and_message_are_both_there_or_both_not(
    point: str, expected: list[str], postgres_url: str, tmp_path: Path
) -> None:
    log = f"sqlite:///{tmp_path}/log.db"
    with psycopg.connect(postgres_url, autocommit=True) as db, nats_server(tmp_path) as url:
        db.execute("DROP TABLE IF EXISTS orders_killed")
        db.execute("CREATE TABLE orders_killed (item text)")
        asyncio.run(declare(url))
        command = [sys.executable, "-c", PROGRAM, point, log, postgres_url, url]
        assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL
        sent = asyncio.run(take_over(log, postgres_url, url))
        rows = [row[0] for row in db.execute("SELECT item FROM orders_killed").fetchall()]
    assert (rows, sent) == (expected, expected)


async def declare(url: str) -> None:
    async with NatsBroker(url) as broker:
        await broker.declare("K", "k")


async def take_over(log: str, database: str, url: str) -> list[str]:
    async with (
        asyncio.timeout(60),
        NatsBroker(url) as broker,
        Transactions(log, lease=0.5) as transactions,
    ):
        messages = Messages(broker, name="shop", transactions=transactions)
        TwoPhaseMessage(database, messages, name="orders")

        async def ended() -> bool:
            found = await transactions.log.list()
            return bool(found) and all(it.state.ended for it in found)

        await until(ended)
        subscription = await broker.subscribe("k", "check")
        return [delivery.message.json() for delivery in await subscription.take(10, 0.3)]
