"""Simulated databases: real SQL by SQLite in memory, with many local transactions at once.

Owns `Server`, a database that clients reach over a network, and `Connection`, a client's end of it,
with the interface of the connections that barriers run on.

How many transactions share one SQLite connection: each session keeps the writes that it has made.
Before a session's statement, whatever another left open is rolled back, and this session's writes
are made again, on what is committed by now: which is READ COMMITTED. Row locks, held to the end of
the local transaction, see to it that the same writes give the same rows each time. A unique key
that another open transaction has inserted is waited for likewise.

Rules:
- A statement that waits for a lock for too long fails, as does every one after a failed one.
- A restart loses what is open; what is committed or prepared stays, and prepared keeps its locks.
- A client's death ends its sessions a moment later; its pause doesn't.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from bedstone.errors import ConflictError, UnavailableError, UnknownOutcomeError
from bedstone.testing.simulation.faults import Fate
from bedstone.testing.simulation.loop import PROCESS, Process
from bedstone.testing.simulation.network import Network
from bedstone.transactions.connections import AsyncConnection
from bedstone.transactions.sql import Dialect, DuplicateError, Query, Result

Key = tuple[object, ...]
Reply = tuple[Result, Exception | None]

LOCK_TIMEOUT: Final = 1.0
_WRITE = re.compile(
    r"""\s*(?:INSERT\s+INTO|UPDATE|DELETE\s+FROM)\s+(?:"?main"?\.)?"?(\w+)"?""", re.IGNORECASE
)

_CLOCK: Final = (
    "extract(epoch FROM clock_timestamp())",
    "((julianday('now') - 2440587.5) * 86400.0)",
)


class PostgresError(Exception):
    """An error that PostgreSQL tells by its code."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


class Session:
    """One client's local transactions, as the server sees them."""

    __slots__ = ("client", "failed", "locks", "lost", "open", "writes")

    def __init__(self, client: Process | None) -> None:
        self.client = client
        self.open = False
        self.failed = False
        self.lost = False
        self.writes: list[Query] = []
        self.locks: list[Key] = []


class Server:
    """A database.

    Args:
        name: where it is on the network.
        network: how it is reached.
        schema: statements that make its tables.
        committed: called with a local transaction's writes when it is committed.
        dialect: whose SQL it understands: SQLite's own, or of PostgreSQL what is needed to prepare.
        whole: one lock for the whole database, held from the first statement on, as SQLite has:
            for what relies on that where other databases lock rows that are read.
    """

    def __init__(
        self,
        name: str,
        network: Network,
        schema: Sequence[str],
        committed: Callable[[Sequence[Query]], None],
        *,
        dialect: Dialect = Dialect.SQLITE,
        whole: bool = False,
    ) -> None:
        self.name = name
        self.network = network
        self.dialect = dialect
        self.prepared: dict[str, Session] = {}
        self._committed = committed
        self._whole = whole
        self._sqlite = sqlite3.connect(":memory:", isolation_level=None)
        self._sqlite.create_function("julianday", 1, self._julian_day)
        for statement in schema:
            self._sqlite.execute(statement)
        self._attached: Session | None = None
        self._sessions: dict[Session, None] = {}
        self._holders: dict[Key, Session] = {}
        self._waiters: dict[Key, deque[tuple[Session, Query, Callable[[Reply], None]]]] = {}

    def connect(self) -> Connection:
        """A client's new connection, in the current process."""
        session = Session(PROCESS.get())
        self._sessions[session] = None
        return Connection(self, session)

    def restart(self) -> None:
        """Lose every session."""
        for session in list(self._sessions):
            self.drop(session)

    def disconnect(self, client: Process) -> None:
        """A client has died: its sessions go a moment later."""
        for session in self._sessions:
            if session.client is client:
                self.network.later(0.3 * self.network.faults.random.random(), self.drop, session)

    def drop(self, session: Session) -> None:
        """End a session, and undo what it has not committed."""
        session.lost = True
        self._sessions.pop(session, None)
        self._finish(session)

    def load(self, text: str, *parameters: object) -> None:
        """Write something before anybody is there."""
        self._sqlite.execute(text, parameters)

    def read(self, text: str, *parameters: object) -> list[tuple[Any, ...]]:
        """What is committed now, at once: for those who check the world from outside."""
        self._attach(None)
        return self._sqlite.execute(text, parameters).fetchall()

    def residue(self, but: str = "") -> list[str]:
        """What is open, locked or prepared, but for what the node named `but` is at."""
        mine = {s for s in self._sessions if s.client is not None and s.client.name == but}
        opened = [
            f"open transaction of {s.client}" for s in self._sessions if s.open and s not in mine
        ]
        locks = [f"row lock {key}" for key, holder in self._holders.items() if holder not in mine]
        return opened + locks + [f"prepared transaction {name}" for name in self.prepared]

    def close(self) -> None:
        """Free it."""
        self._sqlite.close()

    def handle(
        self, session: Session, kind: str, query: Query, reply: Callable[[Reply], None]
    ) -> None:
        """Do what a client asks, and reply when it is done."""
        if session.lost:
            reply((Result(), _lost()))
        elif kind == "execute":
            special = self._special(session, query.text)
            if special is None:
                self._wait_and_execute(session, query, reply)
            else:
                reply(special)
        else:
            reply(self._command(session, kind, str(query.text)))

    def _julian_day(self, _now: str) -> float:
        """SQLite's own clock, on virtual time."""
        return self.network.loop.time() / 86400.0 + 2440587.5

    def _special(self, session: Session, text: str) -> Reply | None:
        """What PostgreSQL has and SQLite has not; None for what SQLite is asked."""
        if self.dialect is not Dialect.POSTGRES:
            return None
        name = text.partition("'")[2].rstrip("'")
        answer: Reply | None = None
        match text.split()[:2]:
            case ["BEGIN"] | ["SET", _]:
                answer = Result(), None
            case ["COMMIT"] | ["ROLLBACK"]:
                answer = self._command(session, text.lower(), "")
            case ["SHOW", _]:
                answer = Result((("100",),)), None
            case ["SELECT", "1"]:
                answer = Result(((1,),)), None
            case ["SELECT", "txid_current()"]:
                answer = Result((("its",),)), PostgresError("25P02") if session.failed else None
            case ["PREPARE", "TRANSACTION"]:
                answer = self._command(session, "prepare", name)
            case [("COMMIT" | "ROLLBACK") as word, "PREPARED"]:
                answer = self._command(session, f"{word.lower()} prepared", name)
        return answer

    def _command(self, session: Session, kind: str, name: str) -> Reply:
        match kind:
            case "commit" if session.failed:
                self._finish(session)
                return Result(), UnavailableError("the local transaction had failed")
            case "commit":
                self._commit(session)
            case "rollback":
                self._finish(session)
            case "prepare":
                prepared = Session(None)
                prepared.writes, prepared.locks = session.writes, session.locks
                session.writes, session.locks = [], []
                for key in prepared.locks:
                    self._holders[key] = prepared
                self.prepared[name] = prepared
                self._finish(session)
            case _:
                found = self.prepared.pop(name, None)
                if found is None:
                    return Result(), PostgresError("42704")
                if kind == "commit prepared":
                    self._commit(found)
                else:
                    self._finish(found)
        return Result(), None

    def _commit(self, session: Session) -> None:
        writes = session.writes
        if writes:
            self._attach(session)
            self._sqlite.execute("COMMIT")
            self._attached = None
        session.writes = []
        self._finish(session)
        if writes:
            self._committed(writes)

    def _finish(self, session: Session) -> None:
        if self._attached is session:
            self._attach(None)
        locks, session.locks = session.locks, []
        session.writes = []
        session.open = session.failed = False
        for key in locks:
            if self._holders.get(key) is session:
                del self._holders[key]
                self._grant(key)

    def _grant(self, key: Key) -> None:
        waiters = self._waiters.get(key)
        while waiters and key not in self._holders:
            session, query, reply = waiters.popleft()
            if session.lost:
                reply((Result(), _lost()))
                continue
            self._take(key, session)
            reply(self._execute(session, query))
        if not waiters:
            self._waiters.pop(key, None)

    def _take(self, key: Key, session: Session) -> None:
        if key not in self._holders:
            self._holders[key] = session
            session.locks.append(key)

    def _wait_and_execute(
        self, session: Session, query: Query, reply: Callable[[Reply], None]
    ) -> None:
        key = ("whole",) if self._whole else _row(query)
        holder = None if key is None else self._holders.get(key)
        if key is None or holder is session:
            reply(self._execute(session, query))
        elif holder is None:
            self._take(key, session)
            reply(self._execute(session, query))
        else:
            session.open = True
            waiter = (session, query, reply)
            self._waiters.setdefault(key, deque()).append(waiter)
            self.network.later(LOCK_TIMEOUT, self._stop_waiting, key, waiter)

    def _stop_waiting(
        self, key: Key, waiter: tuple[Session, Query, Callable[[Reply], None]]
    ) -> None:
        waiters = self._waiters.get(key, deque())
        if waiter in waiters:
            waiters.remove(waiter)
            waiter[0].failed = True
            waiter[2]((Result(), UnavailableError(f"waited too long for the lock of {key}")))

    def _execute(self, session: Session, query: Query) -> Reply:
        session.open = True
        if session.failed:
            return Result(), PostgresError("25P02")
        self._attach(session)
        try:
            text = query.text.replace(*_CLOCK)
            cursor = self._sqlite.execute(text, _values(query))
            rows = tuple(cursor.fetchall())
        except sqlite3.IntegrityError as error:
            session.failed = True
            if "UNIQUE" in str(error):
                return Result(), DuplicateError(str(error))
            return Result(), ConflictError(str(error))
        if _WRITE.match(query.text) and cursor.rowcount:
            session.writes.append(query)
        columns = tuple(column[0] for column in cursor.description or ())
        return Result(rows, columns, cursor.rowcount), None

    def _attach(self, session: Session | None) -> None:
        if self._attached is session:
            return
        if self._attached is not None:
            self._sqlite.execute("ROLLBACK")
        self._attached = session
        if session is not None:
            self._sqlite.execute("BEGIN")
            for write in session.writes:
                self._sqlite.execute(write.text.replace(*_CLOCK), _values(write))


class Connection(AsyncConnection):
    """A client's connection; `raw` is itself.

    Attributes:
        branch: whose phase the open local transaction is, as its barrier row says.
    """

    def __init__(self, server: Server, session: Session) -> None:
        super().__init__(self)
        self.dialect = server.dialect
        self.server = server
        self._session = session
        self._opened = False
        self.branch: tuple[object, object] = ("", "")

    def in_transaction(self) -> bool:
        """Whether a local transaction is open."""
        return self._opened

    async def _begin(self) -> None:
        self._opened = True

    async def _prove(self) -> None: ...

    async def _commit(self) -> None:
        self._opened = False
        await self._ask("commit", Query(""))

    async def _rollback(self) -> None:
        begun, self._opened = self._opened, False
        if begun:
            await self._ask("rollback", Query(""))

    async def _execute(self, query: Query) -> Result:
        if "bedstone_barrier" in query.text and len(query.parameters) > 1:
            xid, branch, *_ = _values(query)
            self.branch = xid, branch
        return await self._ask("execute", query)

    async def _discard(self) -> None:
        await self.close()

    async def close(self) -> None:
        """Give the connection back; what is open is rolled back."""
        self.server.network.later(0.0, self.server.drop, self._session)

    async def _ask(self, kind: str, query: Query) -> Result:
        network = self.server.network
        future: asyncio.Future[Reply] = network.loop.create_future()
        client = self._session.client
        fate = network.faults.statement()
        if client is not None and not network.connected(client.name, self.server.name):
            fate = Fate.REFUSED

        def reply(answer: Reply) -> None:
            if fate is Fate.UNANSWERED:
                self.server.drop(self._session)
                answer = Result(), _broken(kind)
            network.later(network.faults.delay(), _set, future, answer)

        if fate is Fate.REFUSED:
            network.later(network.faults.delay(), self.server.drop, self._session)
            network.later(2 * network.faults.delay(), _set, future, (Result(), _broken(kind)))
        else:
            args = (self._session, kind, query, reply)
            network.later(network.faults.delay(), self.server.handle, *args)
        result, error = await future
        if error is not None:
            raise error
        return result


def _broken(kind: str) -> Exception:
    if kind in {"execute", "rollback"}:
        return UnavailableError("the connection to the database broke")
    return UnknownOutcomeError(f"the connection to the database broke during {kind}")


def _lost() -> UnavailableError:
    return UnavailableError("the connection to the database is lost")


def _set(future: asyncio.Future[Reply], reply: Reply) -> None:
    if not future.done():
        future.set_result(reply)


def _values(query: Query) -> tuple[Any, ...]:
    return tuple(query.parameters)


def _row(query: Query) -> Key | None:
    """The row that a write locks: an account by its id, another by its first two parameters."""
    match = _WRITE.match(query.text)
    if match is None or match.group(1) == "effects":
        return None
    values = _values(query)
    if match.group(1) == "accounts":
        return ("accounts", *[value for value in values if isinstance(value, str)][:1])
    return (match.group(1), *values[:2])
