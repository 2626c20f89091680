"""A real NATS server is killed while messages pass; each has its effect exactly once."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg

from bedstone.engines.nats import NatsEngine
from bedstone.errors import Error
from bedstone.testing.domain import free_port
from bedstone.transactions.broker import Message
from bedstone.transactions.broker_nats import NatsBroker
from bedstone.transactions.consuming import Consumer
from bedstone.transactions.outbox import Relay, outbox, publish_with
from bedstone.transactions.sql import Dialect

COUNT = 60
KILLS = 3


class Server:
    """A NATS server that can be killed."""

    def __init__(self, folder: Path) -> None:
        self.engine = NatsEngine(folder / "n", free_port(), "u", "word", folder / "nats.log")
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        spec = self.engine.prepare()
        self._spawn(spec.argv)
        await self.engine.wait_ready()

    def _spawn(self, argv: tuple[str, ...]) -> None:
        with self.engine.log.open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(20)
            self.process = None


@asynccontextmanager
async def schema(url: str, name: str) -> AsyncIterator[str]:
    """A schema of its own, with outbox and effects, and the URL that leads into it."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as db:
        await db.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")
        await db.execute(f"CREATE SCHEMA {name}")
        await db.execute(f"SET search_path TO {name}")
        await db.execute(outbox(Dialect.POSTGRES))
        await db.execute("CREATE TABLE effects (id text)")
    separator = "&" if "?" in url else "?"
    yield f"{url}{separator}options=-csearch_path%3D{name}"


async def insist(step: Any) -> None:
    """Step for ever; what fails is tried again, as `run` does."""
    while True:
        try:
            await step()
        except Error:
            await asyncio.sleep(0.05)


async def effect(db: Any, message: Message) -> None:
    await db.execute("INSERT INTO effects VALUES (%s)", (message.json(),))


def steps(url: str, broker: NatsBroker) -> list[Any]:
    """Two relays and two consumers, all new."""
    relays = [Relay(url, broker) for _ in range(2)]
    consumers = [Consumer(url, broker, "e", "effects", effect, ack_wait=1.0) for _ in range(2)]
    return [*(it.step for it in relays), *(it.step for it in consumers)]


async def reached(db: psycopg.AsyncConnection[Any], count: int) -> None:
    while True:
        found = await (await db.execute("SELECT count(*) FROM effects")).fetchone()
        await db.commit()
        if found is not None and found[0] >= count:
            return
        await asyncio.sleep(0.02)


async def write(db: psycopg.AsyncConnection[Any], kill: int) -> None:
    for number in range(COUNT):
        await publish_with(db, "e", f"{kill}-{number}", id=f"{kill}-{number}")
    await db.commit()


async def rounds(server: Server, url: str) -> None:
    """Each round writes, kills the server, and ends relays and consumers wherever they are."""
    broker = NatsBroker(server.engine.url, timeout=1.0)
    await broker.declare("E", "e")
    async with await psycopg.AsyncConnection.connect(url) as db:
        for kill in range(KILLS + 1):
            await write(db, kill)
            workers = [asyncio.create_task(insist(step)) for step in steps(url, broker)]
            await reached(db, kill * COUNT + COUNT // 4)
            if kill < KILLS:
                server.stop(signal.SIGKILL)
                await server.start()
            else:
                await reached(db, (KILLS + 1) * COUNT)
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        found = await (await db.execute("SELECT id FROM effects")).fetchall()
        left = await (await db.execute("SELECT count(*) FROM bedstone_outbox")).fetchone()
        dead = await (await db.execute("SELECT count(*) FROM bedstone_dead")).fetchone()
    await broker.close()
    expected = sorted(f"{k}-{n}" for k in range(KILLS + 1) for n in range(COUNT))
    assert sorted(row[0] for row in found) == expected
    assert (left, dead) == ((0,), (0,))


def test_each_effect_once_though_server_relays_and_consumers_are_killed(
    postgres_url: str, tmp_path: Path
) -> None:
    async def test() -> None:
        server = Server(tmp_path)
        await server.start()
        try:
            async with asyncio.timeout(100), schema(postgres_url, "nats_kill") as url:
                await rounds(server, url)
        finally:
            server.stop()

    asyncio.run(test())
