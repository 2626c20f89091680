"""Transactions that a test interleaves by hand, and the databases that they work in.

Owns `Script`, `AbortError`, `places` and `new_database`.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

from bedstone.testing.histories import Level, Operation, Txn, anomalies, strongest_level
from bedstone.testing.history_modes import Mode, Place, Session, place, prepare
from bedstone.testing.history_recording import IDS, settled
from bedstone.transactions.router import neutral


class AbortError(Exception):
    """The client changes its mind."""


class Script:
    """Transactions whose every operation is run by hand, in the order of the test."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.done: list[Txn] = []

    @asynccontextmanager
    async def transaction(self, name: str, *, aborts: bool = False) -> AsyncIterator[Session]:
        """One transaction; its end is the block's."""
        notes: list[Operation] = []
        committed = False
        try:
            with neutral():  # what is inside another's block is no part of it
                async with self.mode.transactions.transaction(name):
                    async with self.mode.session(notes) as session:
                        yield session
                    if aborts:
                        raise AbortError
            committed = True
        except AbortError:
            pass
        finally:
            self.done.append(Txn(name, tuple(notes), committed))

    async def found(self) -> tuple[Level, set[str]]:
        """What the history shows, once all has ended."""
        await settled(self.mode)
        history = [*self.done, Txn("last", tuple(await self.mode.all()))]
        orders = await self.mode.orders()
        names = {anomaly.name for anomaly in anomalies(history, orders)}
        return strongest_level(history, orders), names


def new_database(server: str) -> str:
    """An empty database of a server, by URL."""
    import psycopg
    import pymysql

    name = f"iso_{uuid.uuid4().hex[:12]}"
    parts = urlsplit(server)
    if parts.scheme.startswith("postgres"):
        with psycopg.connect(server, autocommit=True) as db:
            db.execute(f"CREATE DATABASE {name}".encode())
    else:
        with pymysql.connect(
            host=parts.hostname or "localhost",
            port=parts.port or 3306,
            user=parts.username,
            password=parts.password or "",
        ) as other:
            other.cursor().execute(f"CREATE DATABASE {name}")
    return parts._replace(path=f"/{name}").geturl()


@asynccontextmanager
async def places(servers: Sequence[str], isolation: str) -> AsyncIterator[list[Place]]:
    """Two databases with registers."""
    async with AsyncExitStack() as stack:
        found = []
        for name, server in zip("ab", servers, strict=True):
            url = new_database(server)
            found.append(await stack.enter_async_context(place(name, url, isolation)))
            await prepare(found[-1], IDS)
        yield found
