"""XA on real servers: clients and servers that die between any two steps leave nothing prepared."""

from __future__ import annotations

import asyncio
import inspect
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bedstone.errors import InvalidError, UnavailableError
from bedstone.testing.databases import DatabaseServer, mariadb_server, postgres_server
from bedstone.testing.transaction_sources import KINDS, source
from bedstone.transactions import xa_statements as statements
from bedstone.transactions.barrier import Entered
from bedstone.transactions.databases import Database
from bedstone.transactions.errors import StuckError, TransactionAbortedError
from bedstone.transactions.logs import open_log
from bedstone.transactions.manager import Transactions
from bedstone.transactions.model import Mode, Phase, State
from bedstone.transactions.sql import Dialect, DuplicateError, Query, Steps
from bedstone.transactions.xa import Leftover, leftovers, xa

PREPARING = sorted(kind for kind, (server, _, _) in KINDS.items() if server != "sqlite")
ONE_EACH = ("psycopg-async", "asyncmy")


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, DatabaseServer]]:
    """Servers that tests may restart."""
    try:
        with postgres_server(max_prepared_transactions=50) as one, mariadb_server() as other:
            yield {"postgres": one, "mariadb": other}
    except UnavailableError as error:
        pytest.skip(f"{error.message}; {error.hint}")


class World:
    """One table in one database, reached by one driver."""

    def __init__(self, kind: str, server: DatabaseServer) -> None:
        self.server = server
        self.url = server.url
        self.database = source(kind, server.url)
        self.table = f"t_{secrets.token_hex(6)}"
        self.xid = f"x-{secrets.token_hex(8)}"

    def insert(self, number: int) -> Query:
        return Query(f"INSERT INTO {self.table} (id) VALUES ({number})")

    async def rows(self) -> list[object]:
        async with self.database.connect() as db:
            found = await now(db.execute(Query(f"SELECT id FROM {self.table} ORDER BY id")))
            await now(db.rollback())
            return [row[0] for row in found.rows]

    async def alone(self, steps: Any) -> Any:
        """Have a conversation on a connection where each statement stands alone."""
        async with self.database.connect() as db:
            context: Any = db.alone()
            if self.database.is_async:
                async with context as plain:
                    return await plain.run(steps(db.dialect))
            with context as plain:
                return plain.run(steps(db.dialect))

    async def finish(self, phase: Phase) -> None:
        """Phase two, as often as a coordinator would ask."""
        for _ in range(100):
            try:
                await self.alone(lambda dialect: statements.finish(dialect, self.xid, 1, phase))
            except UnavailableError:
                await asyncio.sleep(0.05)
            else:
                return
        raise AssertionError(f"{phase} did not finish")

    async def prepared(self) -> list[str]:
        found: tuple[tuple[str, int], ...] = await self.alone(statements.leftovers)
        return [xid for xid, _ in found if xid == self.xid]


async def now(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def world_of(kind: str, servers: dict[str, DatabaseServer]) -> World:
    made = World(kind, servers[KINDS[kind][0]])

    def create(dialect: Dialect) -> Steps[None]:
        yield from statements.ready(dialect)
        yield Query(f"CREATE TABLE {made.table} (id INTEGER PRIMARY KEY)")

    asyncio.run(made.alone(create))
    return made


def log_url(path: Path) -> str:
    return f"sqlite:///{path / 'log.db'}"


@pytest.mark.parametrize("kind", PREPARING)
def test_commit_and_abort(kind: str, servers: dict[str, DatabaseServer], tmp_path: Path) -> None:
    """What the block wrote appears with the commit, and never after an abort."""
    world = world_of(kind, servers)

    async def asynchronous(transactions: Transactions) -> str:
        bank = xa(world.database, name="bank", transactions=transactions)
        async with transactions.transaction("t") as scope, bank.xa():
            pass
        async with transactions.transaction("t") as scope:
            async with bank.xa() as raw:
                await _insert(raw, world, 1)
            assert scope.xid in {xid for xid, _ in await world.alone(statements.leftovers)}

        async def fails_after() -> None:
            async with transactions.transaction("t"):
                async with bank.xa() as raw:
                    await _insert(raw, world, 2)
                raise ZeroDivisionError

        async def fails_inside() -> None:
            async with transactions.transaction("t"), bank.xa() as raw:
                await _insert(raw, world, 3)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fails_after()
        with pytest.raises(ZeroDivisionError):
            await fails_inside()
        return scope.xid

    def blocking(transactions: Transactions) -> str:
        bank = xa(world.database, name="bank", transactions=transactions)
        with transactions.transaction("t") as scope, bank.xa() as raw:
            asyncio.run(_insert(raw, world, 1))

        def fails_after() -> None:
            with transactions.transaction("t"):
                with bank.xa() as raw:
                    asyncio.run(_insert(raw, world, 2))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fails_after()
        return scope.xid

    async def main() -> None:
        async with Transactions(log_url(tmp_path)) as transactions:
            if world.database.is_async:
                xid = await asynchronous(transactions)
            else:
                xid = await asyncio.to_thread(blocking, transactions)
            await _ended(transactions)
            found = await transactions.log.get(xid)
            assert (found.state, [b.mode for b in found.branches]) == (
                State.COMMITTED,
                [Mode.XA],
            )
        assert await world.rows() == [1]
        assert await world.alone(statements.leftovers) == ()

    asyncio.run(main())


async def _insert(raw: Any, world: World, number: int) -> None:
    from bedstone.transactions.connections import adapt

    await now(adapt(raw).execute(world.insert(number)))


async def _ended(transactions: Transactions) -> None:
    """Wait until nothing in the log is open."""
    for _ in range(200):
        states = (State.ACTIVE, State.COMMITTING, State.ABORTING)
        if not await transactions.log.list(states):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("a transaction did not end")


@pytest.mark.parametrize("phase", [Phase.CANCEL, Phase.CONFIRM])
@pytest.mark.parametrize("step", range(5))
@pytest.mark.parametrize("kind", ONE_EACH)
def test_client_dies(
    kind: str, step: int, phase: Phase, servers: dict[str, DatabaseServer]
) -> None:
    """Whichever step the client reached, the branch ends as decided."""
    world = world_of(kind, servers)

    async def main() -> None:
        async with world.database.connect() as db:
            if db.dialect is Dialect.POSTGRES:
                await now(db.begin())
            else:
                await now(db.execute(statements.start(world.xid, 1)))
            if step >= 1:
                entered = await now(db.run(statements.tried(db.dialect, world.xid, 1)))
                assert entered is Entered.PROCEED
            if step >= 2:
                await now(db.execute(world.insert(1)))
            if step == 3:  # half of the preparation, in MariaDB
                preparation = statements.prepare(db.dialect, world.xid, 1)
                await now(db.execute(next(preparation)))
            if step == 4:
                await now(db.run(statements.prepare(db.dialect, world.xid, 1)))
            await now(db.discard())
        if phase is Phase.CONFIRM and step < 4:
            with pytest.raises(UnavailableError, match="not finished"):
                await world.alone(lambda d: statements.finish(d, world.xid, 1, phase))
            assert await world.rows() == []
            await world.finish(Phase.CANCEL)
        else:
            await world.finish(phase)
            await world.finish(phase)
        assert await world.rows() == ([1] if phase is Phase.CONFIRM and step == 4 else [])
        assert await world.prepared() == []

    asyncio.run(main())


@pytest.mark.parametrize("kind", ONE_EACH)
def test_late_prepare(kind: str, servers: dict[str, DatabaseServer]) -> None:
    """A branch that was cancelled before it was begun can't be begun; cancel itself ends."""
    world = world_of(kind, servers)

    async def main() -> None:
        await world.finish(Phase.CANCEL)
        async with world.database.connect() as db:
            if db.dialect is Dialect.POSTGRES:
                await now(db.begin())
            else:
                await now(db.execute(statements.start(world.xid, 1)))
            entered = await now(db.run(statements.tried(db.dialect, world.xid, 1)))
            assert entered is Entered.SUSPENDED
            await now(db.discard())
        assert await world.prepared() == []

    asyncio.run(main())


@pytest.mark.parametrize("kind", ONE_EACH)
def test_cancel_while_under_way(kind: str, servers: dict[str, DatabaseServer]) -> None:
    """A cancel doesn't end before a try that is under way has; then it undoes it."""
    world = world_of(kind, servers)

    async def main() -> None:
        async with world.database.connect() as db:
            if db.dialect is Dialect.POSTGRES:
                await now(db.begin())
            else:
                await now(db.execute(statements.start(world.xid, 1)))
            await now(db.run(statements.tried(db.dialect, world.xid, 1)))
            await now(db.execute(world.insert(1)))
            with pytest.raises(UnavailableError):
                await world.alone(lambda d: statements.finish(d, world.xid, 1, Phase.CANCEL))
            await now(db.run(statements.prepare(db.dialect, world.xid, 1)))
            await now(db.discard())
        assert await world.prepared() == [world.xid]
        await world.finish(Phase.CANCEL)
        assert await world.rows() == []
        assert await world.prepared() == []

    asyncio.run(main())


@pytest.mark.parametrize("how", [None, signal.SIGKILL])
@pytest.mark.parametrize("phase", [Phase.CANCEL, Phase.CONFIRM])
@pytest.mark.parametrize("kind", ONE_EACH)
def test_server_restarts(
    kind: str, phase: Phase, how: signal.Signals | None, servers: dict[str, DatabaseServer]
) -> None:
    """What is prepared survives the server, and ends as decided."""
    world = world_of(kind, servers)

    async def main() -> None:
        await _prepare(world)
        world.server.restart(how)
        assert await world.prepared() == [world.xid]
        await world.finish(phase)
        world.server.restart(how)
        await world.finish(phase)
        assert await world.rows() == ([1] if phase is Phase.CONFIRM else [])
        assert await world.prepared() == []

    asyncio.run(main())


async def _prepare(world: World) -> None:
    async with world.database.connect() as db:
        if db.dialect is Dialect.POSTGRES:
            await now(db.begin())
        else:
            await now(db.execute(statements.start(world.xid, 1)))
        await now(db.run(statements.tried(db.dialect, world.xid, 1)))
        await now(db.execute(world.insert(1)))
        await now(db.run(statements.prepare(db.dialect, world.xid, 1)))
        await now(db.discard())


@pytest.mark.parametrize("kind", ONE_EACH)
def test_leftovers(kind: str, servers: dict[str, DatabaseServer], tmp_path: Path) -> None:
    """What is prepared and unknown to the log is named; somebody who commits it by hand is, too."""
    world = world_of(kind, servers)

    async def main() -> None:
        await _prepare(world)
        async with open_log(log_url(tmp_path)) as log:
            assert await leftovers(world.database, log) == (Leftover(world.xid, 1, None),)
            await world.finish(Phase.CONFIRM)
            assert await leftovers(world.database, log) == ()
        with pytest.raises(StuckError, match="by hand"):
            await world.finish(Phase.CANCEL)

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["psycopg-async", "asyncpg", "sqlalchemy-psycopg_async"])
def test_failed_block(kind: str, servers: dict[str, DatabaseServer], tmp_path: Path) -> None:
    """An error dropped inside the block, or a commit in it, can't be prepared."""
    world = world_of(kind, servers)

    async def main() -> None:
        async with Transactions(log_url(tmp_path)) as transactions:
            bank = xa(world.database, name="bank", transactions=transactions)

            async def drops_an_error() -> None:
                async with transactions.transaction("t"), bank.xa() as raw:
                    await _insert(raw, world, 1)
                    with pytest.raises(DuplicateError):
                        await _insert(raw, world, 1)

            with pytest.raises(InvalidError, match="nothing is committed"):
                await drops_an_error()
            await _ended(transactions)
        assert await world.rows() == []
        assert await world.alone(statements.leftovers) == ()

    asyncio.run(main())


def test_cannot_prepare(tmp_path: Path) -> None:
    """A server that can't prepare is found out before anything is done, with the setting."""

    async def main(database: Database) -> None:
        async with Transactions(log_url(tmp_path)) as transactions:
            bank = xa(database, name="bank", transactions=transactions)
            with pytest.raises(InvalidError, match="max_prepared_transactions = 0") as caught:
                async with transactions.transaction("t"), bank.xa():
                    pass
            assert "max_prepared_transactions = 100" in str(caught.value.hint)

    with postgres_server(max_prepared_transactions=0) as server:
        asyncio.run(main(source("psycopg-async", server.url)))


def test_sqlite_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with Transactions(log_url(tmp_path)) as transactions:
            bank = xa(f"sqlite:///{tmp_path / 'db'}", name="bank", transactions=transactions)
            with pytest.raises(InvalidError, match="no prepared transactions"):
                async with transactions.transaction("t"), bank.xa():
                    pass

    asyncio.run(main())


_PROGRAM = """
import asyncio, sys
from bedstone.testing.transaction_sources import source
from bedstone.transactions.connections import adapt
from bedstone.transactions.manager import Transactions
from bedstone.transactions.sql import Query
from bedstone.transactions.xa import XA

log, kind, url, table, step = sys.argv[1:]

async def at(name):
    if name == step:
        print("here", flush=True)
        await asyncio.Event().wait()

class Bank(XA):
    async def _second_async(self, transaction, branch, phase):
        await at("decided")
        await super()._second_async(transaction, branch, phase)
        await at("done")

async def main():
    async with Transactions(log, lease=1.0) as transactions:
        bank = Bank(source(kind, url), "bank", transactions)
        async with transactions.transaction("t", timeout=3.0):
            async with bank.xa() as raw:
                await at("begun")
                await adapt(raw).execute(Query(f"INSERT INTO {table} (id) VALUES (1)"))
                await at("written")
            await at("prepared")
asyncio.run(main())
"""


@pytest.mark.parametrize("step", ["begun", "written", "prepared", "decided", "done"])
@pytest.mark.parametrize("kind", ONE_EACH)
def test_process_killed(
    kind: str, step: str, servers: dict[str, DatabaseServer], tmp_path: Path
) -> None:
    """Another process ends what a killed one began."""
    world = world_of(kind, servers)
    arguments = [log_url(tmp_path), kind, world.url, world.table, step]
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *arguments], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"here\n"
        finally:
            process.kill()

    async def main() -> None:
        async with Transactions(log_url(tmp_path), lease=1.0) as transactions:
            xa(world.database, name="bank", transactions=transactions)
            await _ended(transactions)
        decided = step in {"decided", "done"}
        assert await world.rows() == ([1] if decided else [])
        assert await world.alone(statements.leftovers) == ()

    asyncio.run(main())


def test_ids_are_checked() -> None:
    """What could end a literal never gets into SQL."""
    for bad in ("", "a'b", "a" * 65, "a b", "a\n"):
        with pytest.raises(InvalidError):
            statements.gid(bad, 1)
        with pytest.raises(InvalidError):
            statements.mysql_xid(bad, 1)


def test_marked(servers: dict[str, DatabaseServer], tmp_path: Path) -> None:
    """A transaction that is marked rolls back what is prepared."""
    world = world_of("psycopg-async", servers)

    async def main() -> None:
        async with Transactions(log_url(tmp_path)) as transactions:
            bank = xa(world.database, name="bank", transactions=transactions)

            async def marks() -> None:
                async with transactions.transaction("t") as scope:
                    async with bank.xa() as raw:
                        await _insert(raw, world, 1)
                    scope.rollback_only("no")

            with pytest.raises(TransactionAbortedError):
                await marks()
            await _ended(transactions)
        assert await world.rows() == []

    asyncio.run(main())
