"""A few connections to a database, which outlive its restarts."""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit


class Pool:
    """Connections that are used by one at a time.

    Args:
        opening: makes one.
        size: how many at most.
    """

    def __init__(self, opening: Callable[[], Awaitable[Any]], size: int) -> None:
        self._opening = opening
        self._slots = asyncio.Semaphore(size)
        self._idle: list[Any] = []

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """Take a connection, and give it back if it is still usable."""
        async with self._slots:
            connection = None
            while self._idle and connection is None:
                connection = self._idle.pop()
                if not await _alive(connection):
                    await _close(connection)
                    connection = None
            if connection is None:
                connection = await self._opening()
            try:
                yield connection
            finally:
                if _idle(connection):
                    self._idle.append(connection)
                else:
                    await _close(connection)


async def postgres(url: str) -> Any:
    """A connection to PostgreSQL."""
    from psycopg import AsyncConnection

    options = "-c lock_timeout=3s -c idle_in_transaction_session_timeout=60s"
    return await AsyncConnection.connect(url, connect_timeout=5, options=options)


async def mariadb(url: str) -> Any:
    """A connection to MariaDB."""
    import asyncmy

    parts = urlsplit(url)
    return await asyncmy.connect(
        host=parts.hostname,
        port=parts.port,
        user=parts.username,
        password=parts.password,
        database=parts.path.strip("/"),
        charset="utf8mb4",
        connect_timeout=5,
    )


def _idle(connection: Any) -> bool:
    """Whether it is open, and in no transaction."""
    if _is_postgres(connection):
        return not connection.closed and not connection.info.transaction_status
    return connection.connected and not connection.get_transaction_status()


async def _alive(connection: Any) -> bool:
    """Whether its server is still there."""
    if _is_postgres(connection):  # it says nothing to an idle connection but goodbye
        return not connection.closed and not select.select([connection.fileno()], [], [], 0)[0]
    try:
        await connection.ping(reconnect=False)
    except Exception:  # noqa: BLE001 - any of the driver's
        return False
    return True


def _is_postgres(connection: Any) -> bool:
    return type(connection).__module__.startswith("psycopg")


async def _close(connection: Any) -> None:
    with suppress(Exception):  # one that can't be closed is closed
        closing = connection.close()
        if closing is not None:
            await closing
