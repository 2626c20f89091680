"""Random clients' view of each mode: registers in two databases, read and written by transactions.

A register is a row `registers(id, list, value, pending, holder)`: a list that is appended to (ids
`l…`), or a value that is written (ids `r…`; its list then tells in which order). It is named
`PLACE/ID`. `pending` and `holder` are for TCC, which reserves there.

Rules:
- Statements are those that a developer would write; nothing here isolates, but what a mode says.
- What is noted is what was done, in order, also when the transaction then fails.
"""

from __future__ import annotations

import functools
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from bedstone.testing.histories import Operation, append, read, read_list, write
from bedstone.transactions.automatic import Automatic, automatic
from bedstone.transactions.databases import Database, database
from bedstone.transactions.manager import Transactions, current
from bedstone.transactions.tcc import Tcc, tcc
from bedstone.transactions.xa import xa

TABLE: Final = (
    "CREATE TABLE registers (id VARCHAR(20) PRIMARY KEY, list TEXT NOT NULL, value BIGINT NULL, "
    "pending TEXT NOT NULL, holder VARCHAR(64) NOT NULL)"
)
_WAIT: Final = 0.2
_VALUE = re.compile(r"<(\d+)>")


@dataclass(frozen=True, slots=True)
class Place:
    """A database with registers.

    Args:
        name: what its registers' names begin with.
        source: gives connections of the isolation level that is asked for.
    """

    name: str
    source: Database


@asynccontextmanager
async def place(name: str, url: str, isolation: str = "READ COMMITTED") -> AsyncIterator[Place]:
    """A database whose sessions have an isolation level, and wait for locks for a moment only.

    Locks of two databases can wait for each other without either's seeing it; so waits are bounded.
    """
    parts = urlsplit(url)
    if parts.scheme.startswith("postgres"):
        import asyncpg  # type: ignore[import-untyped]

        settings = {
            "default_transaction_isolation": isolation.lower(),
            "lock_timeout": "300ms",
        }
        async with asyncpg.create_pool(
            url, min_size=1, max_size=40, server_settings=settings
        ) as pool:
            yield Place(name, database(pool))
        return
    import asyncmy

    opening = functools.partial(
        asyncmy.connect,
        host=parts.hostname or "localhost",
        port=parts.port or 3306,
        user=parts.username,
        password=parts.password or "",
        database=parts.path.strip("/"),
        init_command=f"SET SESSION tx_isolation = '{isolation.replace(' ', '-')}', "
        "innodb_lock_wait_timeout = 1",
    )
    yield Place(name, database(opening, is_async=True))


async def rows(db: Any, text: str) -> list[Any]:
    """Run a statement by asyncpg, asyncmy or psycopg; its rows."""
    if hasattr(db, "fetch"):
        return list(await db.fetch(text))
    async with db.cursor() as cursor:
        await cursor.execute(text)
        return list(await cursor.fetchall()) if cursor.description else []


async def prepare(where: Place, ids: Sequence[str]) -> None:
    """Make the registers."""
    async with where.source.connect() as db:
        await rows(db.raw, TABLE)
        values = ", ".join(f"('{it}', '', NULL, '', '')" for it in ids)
        await rows(db.raw, f"INSERT INTO registers VALUES {values}")  # noqa: S608 - ours
        if not hasattr(db.raw, "fetch"):
            await db.raw.commit()


def values_of(text: str) -> tuple[int, ...]:
    """What a list holds."""
    return tuple(int(value) for value in _VALUE.findall(text))


def selecting(identity: str, suffix: str = "") -> str:
    """The statement that reads a register."""
    return f"SELECT list, value, holder FROM registers WHERE id = '{identity}'{suffix}"  # noqa: S608


def changing(identity: str, value: int) -> str:
    """The statement that appends to a register, or writes it."""
    return (
        f"UPDATE registers SET list = concat(list, '<{value:d}>'), value = {value:d} "  # noqa: S608
        f"WHERE id = '{identity}'"
    )


def taking_back(identity: str, value: int) -> str:
    """The statement that compensates an append."""
    return (
        f"UPDATE registers SET list = replace(list, '<{value:d}>', '') "  # noqa: S608
        f"WHERE id = '{identity}'"
    )


def noted_read(name: str, row: Any) -> Operation:
    """What a read is in a history."""
    if "/r" in name:
        return read(name, row[1])
    return read_list(name, *values_of(row[0]))


def noted_change(name: str, value: int) -> Operation:
    """What a write is in a history."""
    return write(name, value) if "/r" in name else append(name, value)


class Session(Protocol):
    """One transaction's work."""

    async def read(self, name: str) -> None:
        """Read a register, and note it."""

    async def change(self, name: str, value: int) -> None:
        """Append to a register or write it, and note it."""


class Mode(ABC):
    """One way of having transactions."""

    def __init__(self, transactions: Transactions, places: Sequence[Place]) -> None:
        self.transactions = transactions
        self.places = {it.name: it for it in places}

    @abstractmethod
    def session(self, notes: list[Operation]) -> Any:
        """An async context manager of a `Session`, whose end finishes phase one."""

    async def all(self) -> list[Operation]:
        """Read everything, when nothing is in the way."""
        found = []
        for where in self.places.values():
            async with where.source.connect() as db:
                text = "SELECT list, value, id FROM registers ORDER BY id"
                found += [(f"{where.name}/{row[2]}", row) for row in await rows(db.raw, text)]
        return [noted_read(name, row) for name, row in found]

    async def orders(self) -> dict[str, tuple[int, ...]]:
        """In what order the written registers were."""
        found = {}
        for where in self.places.values():
            async with where.source.connect() as db:
                text = "SELECT id, list FROM registers WHERE id LIKE 'r%'"
                for identity, values in await rows(db.raw, text):
                    found[f"{where.name}/{identity}"] = values_of(values)
        return found


class SqlSession:
    """Statements on one connection for each database, opened when it is first used."""

    def __init__(
        self,
        opening: Callable[[str], Awaitable[Any]],
        suffix: str,
        notes: list[Operation],
        *,
        each: bool = False,
    ) -> None:
        self._opening = opening
        self._each = each
        self._connections: dict[str, Any] = {}
        self._suffix = suffix
        self._notes = notes

    async def read(self, name: str) -> None:
        """Read a register."""
        where, _, identity = name.partition("/")
        db = await self._connection(where)
        found = await rows(db, selecting(identity, self._suffix))
        await self._ended(db)
        self._notes.append(noted_read(name, found[0]))

    async def change(self, name: str, value: int) -> None:
        """Append or write."""
        where, _, identity = name.partition("/")
        self._notes.append(noted_change(name, value))
        db = await self._connection(where)
        if hasattr(db, "execute"):
            await db.execute(changing(identity, value))
        else:
            await rows(db, changing(identity, value))
        await self._ended(db)

    async def _ended(self, db: Any) -> None:
        """Commit what a driver has begun for one statement; asyncpg commits by itself."""
        if self._each and hasattr(db, "commit") and not hasattr(db, "fetch"):
            await db.commit()

    async def _connection(self, where: str) -> Any:
        if where not in self._connections:
            self._connections[where] = await self._opening(where)
        return self._connections[where]


class XaMode(Mode):
    """XA: both databases' local transactions are open until the work is done.

    Args:
        transactions: the manager.
        places: where.
        reading: what reads end with: nothing, or ` FOR SHARE`.
    """

    def __init__(
        self, transactions: Transactions, places: Sequence[Place], reading: str = ""
    ) -> None:
        super().__init__(transactions, places)
        self._reading = reading
        self.banks = {
            it.name: xa(it.source, name=it.name, transactions=transactions) for it in places
        }

    @asynccontextmanager
    async def session(self, notes: list[Operation]) -> AsyncIterator[Session]:
        """Work whose end prepares."""
        async with AsyncExitStack() as stack:

            async def opening(where: str) -> Any:
                return await stack.enter_async_context(self.banks[where].xa())

            yield SqlSession(opening, self._reading, notes)


class AutomaticMode(Mode):
    """AT.

    Args:
        transactions: the manager.
        places: where; with `each` also MariaDB.
        reading: what reads end with: nothing, or ` FOR UPDATE`.
        each: whether each statement is a local transaction; else there is one for each database,
            which is committed when the work is done.
    """

    def __init__(
        self,
        transactions: Transactions,
        places: Sequence[Place],
        reading: str = "",
        *,
        each: bool = True,
    ) -> None:
        super().__init__(transactions, places)
        self._reading = reading
        self._each = each
        self.databases: dict[str, Automatic] = {
            it.name: automatic(it.source, name=it.name, transactions=transactions, lock_wait=_WAIT)
            for it in places
        }

    @asynccontextmanager
    async def session(self, notes: list[Operation]) -> AsyncIterator[Session]:
        """Work whose end commits locally."""
        async with AsyncExitStack() as stack:

            async def opening(where: str) -> Any:
                db = await stack.enter_async_context(self.databases[where].connect())
                if not self._each:
                    await stack.enter_async_context(db.transaction())
                return db

            yield SqlSession(opening, self._reading, notes, each=self._each)


class HeldError(Exception):
    """Another transaction has reserved the register."""


class Reserve(Tcc):
    """Reserve a register, and append to it when confirmed."""

    async def try_(self, db: Any, *, register: str, values: Sequence[int]) -> list[object]:
        """Reserve it for this transaction; what it holds that is confirmed."""
        row = (await rows(db, selecting(register, " FOR UPDATE")))[0]
        if row[2]:
            raise HeldError(register)
        added = "".join(f"<{value:d}>" for value in values)
        await rows(
            db,
            f"UPDATE registers SET holder = '{current().xid}', pending = '{added}' "  # noqa: S608
            f"WHERE id = '{register}'",
        )
        return [row[0], row[1]]

    async def confirm(self, db: Any, *, register: str, values: Sequence[int]) -> None:
        """Append what was reserved."""
        last = f", value = {values[-1]:d}" if values else ""
        await rows(
            db,
            "UPDATE registers SET list = concat(list, pending), pending = '', holder = ''"  # noqa: S608
            f"{last} WHERE id = '{register}'",
        )

    async def cancel(self, db: Any, *, register: str, values: Sequence[int]) -> None:
        """Give it back."""
        del values
        await rows(
            db,
            f"UPDATE registers SET pending = '', holder = '' WHERE id = '{register}'",  # noqa: S608
        )


class TccMode(Mode):
    """TCC, where a TRY reserves a register for its transaction alone.

    Args:
        transactions: the manager.
        places: where.
        reserving: whether also reads reserve; else they read what is confirmed.
    """

    def __init__(
        self, transactions: Transactions, places: Sequence[Place], *, reserving: bool = False
    ) -> None:
        super().__init__(transactions, places)
        self._reserving = reserving
        self.actions = {
            it.name: tcc(_named(it.name), it.source, transactions=transactions) for it in places
        }

    @asynccontextmanager
    async def session(self, notes: list[Operation]) -> AsyncIterator[Session]:
        """Work that reserves."""
        yield TccSession(self, notes, reserving=self._reserving)


class TccSession:
    """Calls of one transaction; each register is reserved once."""

    def __init__(self, mode: TccMode, notes: list[Operation], *, reserving: bool) -> None:
        self._mode = mode
        self._notes = notes
        self._reserving = reserving
        self._reserved: set[str] = set()

    async def read(self, name: str) -> None:
        """Read what is confirmed; or reserve, and read."""
        if name in self._reserved:
            return
        where, _, identity = name.partition("/")
        if self._reserving:
            self._reserved.add(name)
            row = await self._mode.actions[where](register=identity, values=[])
        else:
            async with self._mode.places[where].source.connect() as db:
                (row,) = await rows(db.raw, selecting(identity))
        self._notes.append(noted_read(name, row))

    async def change(self, name: str, value: int) -> None:
        """Reserve, which reads, and let the confirmation append."""
        if name in self._reserved:
            return
        self._reserved.add(name)
        where, _, identity = name.partition("/")
        self._notes.append(noted_change(name, value))
        row = await self._mode.actions[where](register=identity, values=[value])
        self._notes.insert(-1, noted_read(name, row))


def _named(name: str) -> Any:
    return type(f"Reserve_{name}", (Reserve,), {})
