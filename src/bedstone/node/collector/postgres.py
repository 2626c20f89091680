"""What each PostgreSQL of this node says of itself, asked as its superuser.

Rules:
- One connection a database, kept open; it is not counted among the connections.
- One that does not answer within the time is named, with the reason, and connected to anew. One
  that is known not to be ready is not asked: its series are gone until it is back.
- PostgreSQL adds up a connection's transactions about once a second: its counts may be that old.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from bedstone.errors import Error
from bedstone.model.resources import Database
from bedstone.node.collector.reading import Reading
from bedstone.telemetry import names
from bedstone.telemetry.frames import Series

if TYPE_CHECKING:
    import psycopg

TIMEOUT = 0.4
SIZE_PERIOD = 10.0
"""Seconds between two looks at a database's size, for which PostgreSQL walks its files."""
STATES = ("active", "idle", "idle in transaction")

_CONNECTIONS = """
    select usename, state, count(*) from pg_stat_activity
    where datname = %s and backend_type = 'client backend' and pid <> pg_backend_pid()
    group by usename, state
"""
_TRANSACTIONS = """
    select xact_commit, xact_rollback, pg_postmaster_start_time()::text || ' ' ||
        coalesce(stats_reset::text, '') from pg_stat_database where datname = %s
"""


class Engine(Protocol):
    """A PostgreSQL that is ready."""

    async def connect(self, database: str = "postgres") -> psycopg.AsyncConnection:
        """A superuser's connection; UnavailableError."""
        ...


@dataclass(frozen=True, slots=True)
class Served:
    """One database and what serves it.

    Args:
        database: which.
        engine: the server.
        users: its workloads, by the name of their role.
    """

    database: Database
    engine: Engine
    users: Mapping[str, str]


def source_of(path: str) -> str:
    """The name of a database among the sources."""
    return f"database/{path}"


def state_of(state: str | None) -> str:
    """A connection's state as it is counted."""
    if state is None or state == "idle":
        return "idle"
    return "idle in transaction" if state.startswith("idle in transaction") else "active"


def connection_series(
    node: str, served: Served, rows: list[tuple[str | None, str | None, int]]
) -> dict[Series, float]:
    """The connections by workload and state; a workload without any is said to have none."""
    database = served.database
    counts = {(workload, state): 0 for workload in served.users.values() for state in STATES}
    for role, state, number in rows:
        workload = served.users.get(role or "")
        if workload is not None:
            counts[workload, state_of(state)] += number
    return {
        names.DATABASE_CONNECTIONS.series(
            source_of(database.path),
            app=database.app,
            cell=database.cell,
            database=database.name,
            workload=workload,
            state=state,
            node=node,
        ): float(number)
        for (workload, state), number in counts.items()
    }


class _Asked:
    """One database, between two seconds."""

    def __init__(self, node: str, served: Served) -> None:
        self.served = served
        self._node = node
        self._connection: psycopg.AsyncConnection | None = None
        self._size: float | None = None
        self._sized = -SIZE_PERIOD

    async def read(self, now: float) -> Reading:
        """Its series; UnavailableError or what PostgreSQL's driver raises."""
        if self._connection is None:
            self._connection = await self.served.engine.connect()
        database = self.served.database
        source = source_of(database.path)
        labels = {
            "app": database.app,
            "cell": database.cell,
            "database": database.name,
            "node": self._node,
        }
        rows = await self._fetch(_CONNECTIONS)
        values = connection_series(self._node, self.served, rows)
        (commits, rollbacks, incarnation), *_ = await self._fetch(_TRANSACTIONS)
        for outcome, number in (("commit", commits), ("rollback", rollbacks)):
            series = names.DATABASE_TRANSACTIONS.series(source, **labels, outcome=outcome)
            values[series] = float(number)
        if now - self._sized >= SIZE_PERIOD:
            ((size,), *_) = await self._fetch("select pg_database_size(%s)")
            self._size, self._sized = float(size), now
        if self._size is not None:
            values[names.DATABASE_BYTES.series(source, **labels)] = self._size
        return Reading(values, {source: str(incarnation)})

    async def _fetch(self, query: str) -> list[Any]:
        if self._connection is None:
            raise AssertionError("it has been connected to")
        cursor = await self._connection.execute(query.encode(), (self.served.database.name,))
        return await cursor.fetchall()

    async def close(self) -> None:
        """Let go of the connection, at once."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()


class DatabaseStatistics:
    """Asks all databases of a node.

    Args:
        node: the node's name.
        served: those that are ready, by path.
        clock: seconds, for how often sizes are looked at.
    """

    def __init__(
        self,
        node: str,
        served: Callable[[], Mapping[str, Served]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._served = served
        self._clock = clock
        self._asked: dict[str, _Asked] = {}

    async def read(self) -> Reading:
        """Ask each; never fails, and takes no longer than the time-out."""
        served = self._served()
        for path, asked in list(self._asked.items()):
            if served.get(path) != asked.served:
                del self._asked[path]
                await asked.close()
        reading = Reading()
        for path, it in served.items():
            self._asked.setdefault(path, _Asked(self._node, it))
        found = await asyncio.gather(*(self._ask(asked) for asked in self._asked.values()))
        for path, one in zip(self._asked, found, strict=True):
            if isinstance(one, str):
                reading.missing[source_of(path)] = one
            else:
                reading.add(one)
        return reading

    async def _ask(self, asked: _Asked) -> Reading | str:
        import psycopg

        try:
            async with asyncio.timeout(TIMEOUT):
                return await asked.read(self._clock())
        except TimeoutError:
            reason = f"it did not answer within {TIMEOUT:g} s"
        except (Error, psycopg.Error, OSError, ValueError) as error:
            reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
        await asked.close()
        return reason

    async def close(self) -> None:
        """Let go of all connections."""
        for asked in self._asked.values():
            await asked.close()
        self._asked.clear()
