"""What every database driver must do behind the one face, on real servers."""

from __future__ import annotations

import asyncio
import inspect
import secrets
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from bedstone.errors import DeniedError, InvalidError, UnavailableError, UnknownOutcomeError
from bedstone.testing.transaction_sources import KINDS, source
from bedstone.transactions.connections import adapt
from bedstone.transactions.databases import Database
from bedstone.transactions.sql import Dialect, DuplicateError, Query, Result, Steps

Check = Callable[["World"], Coroutine[Any, Any, None]]


class World:
    """One driver, and a table of its own."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.table = f"t_{secrets.token_hex(6)}"

    def query(self, text: str, *parameters: object) -> Query:
        return Query(text.replace("TABLE_", self.table), parameters)

    async def all(self) -> list[tuple[object, ...]]:
        """What another connection sees."""
        async with self.database.connect() as other:
            found = await now(other.execute(self.query("SELECT id, note FROM TABLE_ ORDER BY id")))
            await now(other.rollback())
            return list(found.rows)


async def now(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


@pytest.fixture(params=sorted(KINDS))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    server = KINDS[request.param][0]
    url = (
        str(tmp_path / "db")
        if server == "sqlite"
        else request.getfixturevalue("postgres_url" if server == "postgres" else "mariadb_url")
    )
    made = World(source(request.param, url))

    text = "CREATE TABLE TABLE_ (id INTEGER PRIMARY KEY, note VARCHAR(99), data "
    kind = {"postgres": "bytea", "mariadb": "blob", "sqlite": "blob"}[server]

    async def create() -> None:
        async with made.database.connect() as connection:
            await now(connection.begin())
            await now(connection.execute(made.query(f"{text}{kind})")))
            if connection.dialect is not Dialect.MYSQL:  # there the statement itself commits
                await now(connection.commit())

    asyncio.run(create())
    return made


async def parameters(world: World) -> None:
    """Marks are translated; what looks like one in a literal, and %, stay."""
    async with world.database.connect() as db:
        await now(db.begin())
        put = await now(
            db.execute(
                world.query(
                    "INSERT INTO TABLE_ VALUES (?, '100% ?', ?), (2, ?, NULL)", 1, b"\0\xff", "%s"
                )
            )
        )
        got = await now(db.execute(world.query("SELECT * FROM TABLE_ WHERE id < ? ORDER BY id", 9)))
        plain = await now(
            db.execute(world.query("SELECT id AS x FROM TABLE_ WHERE note LIKE '100%'"))
        )
        changed = await now(
            db.execute(world.query("UPDATE TABLE_ SET note = ? WHERE id = ?", "n", 1))
        )
        none = await now(db.execute(world.query("DELETE FROM TABLE_ WHERE id = ?", 99)))
        await now(db.commit())
    assert put.count == 2
    assert [(i, note, data and bytes(data)) for i, note, data in got.rows] == [
        (1, "100% ?", b"\0\xff"),
        (2, "%s", None),
    ]
    assert got.columns == ("id", "note", "data")
    assert plain == Result(((1,),), ("x",), plain.count)
    assert (changed.count, none.count) == (1, 0)


async def atomic(world: World) -> None:
    """What is rolled back is gone; what is committed is seen by others, and not before."""
    async with world.database.connect() as db:
        await now(db.begin())
        await now(db.execute(world.query("INSERT INTO TABLE_ (id) VALUES (1)")))
        assert db.in_transaction()
        await now(db.rollback())
        assert not db.in_transaction()
        await now(db.begin())
        await now(db.execute(world.query("INSERT INTO TABLE_ (id) VALUES (2)")))
        assert await world.all() == []
        await now(db.commit())
        assert not db.in_transaction()
    assert await world.all() == [(2, None)]


async def left_open(world: World) -> None:
    """A connection that is given back in a transaction is rolled back."""
    async with world.database.connect() as db:
        await now(db.begin())
        await now(db.execute(world.query("INSERT INTO TABLE_ (id) VALUES (1)")))
    assert await world.all() == []


async def refuses_open(world: World) -> None:
    """A transaction is not begun inside another one."""
    async with world.database.connect() as db:
        await now(db.begin())
        await now(db.execute(world.query("INSERT INTO TABLE_ (id) VALUES (1)")))
        again = adapt(db.raw)
        with pytest.raises(InvalidError, match="in a transaction"):
            await now(again.begin())


async def duplicate(world: World) -> None:
    """A unique key that exists is told apart from other errors."""
    async with world.database.connect() as db:
        await now(db.begin())
        await now(db.execute(world.query("INSERT INTO TABLE_ (id) VALUES (1)")))
        with pytest.raises(DuplicateError) as caught:
            await now(db.execute(world.query("INSERT INTO TABLE_ (id) VALUES (1)")))
        assert caught.value.__cause__ is not None
        await now(db.rollback())
        await now(db.begin())
        await now(db.execute(world.query("INSERT INTO TABLE_ (id) VALUES (3)")))
        await now(db.commit())
    assert await world.all() == [(3, None)]


async def given_up(world: World) -> None:
    """A transaction that the server has ended by itself never counts as committed."""
    async with world.database.connect() as db:
        await now(db.begin())
        await now(db.execute(world.query("INSERT INTO TABLE_ (id) VALUES (1)")))
        if db.dialect is Dialect.POSTGRES:
            with pytest.raises(Exception, match="nothing_there"):
                await now(db.execute(world.query("SELECT * FROM nothing_there")))
        else:  # as a deadlock does in MySQL, or a full disk in SQLite
            await now(db.execute(Query("ROLLBACK")))
        if db.dialect is Dialect.MYSQL:
            await now(db.execute(world.query("INSERT INTO TABLE_ (id) VALUES (2)")))
        with pytest.raises(InvalidError, match="nothing is committed"):
            await now(db.commit())
        autocommit = db.dialect is Dialect.MYSQL and not db.in_transaction()
        await now(db.rollback())
    assert await world.all() == ([(2, None)] if autocommit else [])


async def ended_inside(world: World) -> None:
    """A commit of the developer's own, inside Bedstone's, is told."""
    async with world.database.connect() as db:
        await now(db.begin())
        await now(db.execute(world.query("INSERT INTO TABLE_ (id) VALUES (1)")))
        commit = getattr(db.raw, "commit", None)
        await now(commit() if commit is not None else db.raw.execute("COMMIT"))
        with pytest.raises(InvalidError, match="was ended"):
            await now(db.commit())
        await now(db.rollback())


async def native(world: World) -> None:
    """The developer's own statement, and its error, stay the driver's."""
    async with world.database.connect() as db:
        await now(db.begin())
        with pytest.raises(Exception, match=r"(?i)nothing_there") as caught:
            await now(db.execute(Query("SELECT '%' FROM nothing_there", native=True)))
        assert not isinstance(caught.value, DeniedError | UnavailableError)
        await now(db.rollback())


async def locked(world: World) -> None:
    """A lock that isn't given in time leaves nothing applied."""
    limit = {
        Dialect.POSTGRES: "SET LOCAL lock_timeout = '50ms'",
        Dialect.MYSQL: "SET innodb_lock_wait_timeout = 0",
    }
    async with world.database.connect() as db:
        await now(db.begin())
        await now(db.execute(world.query("INSERT INTO TABLE_ (id) VALUES (1)")))
        async with world.database.connect() as other:
            if other.dialect is Dialect.SQLITE:  # waits as long as the driver says: five seconds
                with pytest.raises(UnavailableError):
                    await now(other.begin())
            else:
                await now(other.begin())
                await now(other.execute(Query(limit[other.dialect])))
                with pytest.raises(UnavailableError):
                    await now(other.execute(world.query("INSERT INTO TABLE_ (id) VALUES (1)")))
            await now(other.rollback())
        await now(db.commit())
    assert await world.all() == [(1, None)]


async def lost(world: World) -> None:
    """A connection that is lost is no mistake of the caller's, and nothing stays."""
    kill = {Dialect.POSTGRES: "SELECT pg_terminate_backend({})", Dialect.MYSQL: "KILL {}"}
    identity = {
        Dialect.POSTGRES: "SELECT pg_backend_pid()",
        Dialect.MYSQL: "SELECT connection_id()",
    }
    for last in ("execute", "commit"):
        async with world.database.connect() as db:
            if db.dialect is Dialect.SQLITE:
                return
            await now(db.begin())
            await now(db.execute(world.query("INSERT INTO TABLE_ (id) VALUES (1)")))
            number = (await now(db.execute(Query(identity[db.dialect])))).rows[0][0]
            async with world.database.connect() as other:
                await now(other.execute(Query(kill[db.dialect].format(number))))
            if last == "execute":
                with pytest.raises(UnavailableError):
                    await now(db.execute(world.query("INSERT INTO TABLE_ (id) VALUES (2)")))
            else:
                with pytest.raises((UnavailableError, UnknownOutcomeError)):
                    await now(db.commit())
        assert await world.all() == []


async def conversation(world: World) -> None:
    """Steps get results and errors, and give their value."""

    def steps() -> Steps[tuple[object, ...]]:
        yield world.query("INSERT INTO TABLE_ (id, note) VALUES (?, ?)", 1, "a")
        try:
            yield Query("SAVEPOINT here")
            yield world.query("INSERT INTO TABLE_ (id, note) VALUES (?, ?)", 1, "b")
        except DuplicateError:
            yield Query("ROLLBACK TO SAVEPOINT here")
        found = yield world.query("SELECT note FROM TABLE_")
        return found.rows[0]

    async with world.database.connect() as db:
        await now(db.begin())
        assert await now(db.run(steps())) == ("a",)
        await now(db.commit())
    assert await world.all() == [(1, "a")]


CHECKS: tuple[Check, ...] = (
    parameters,
    atomic,
    left_open,
    refuses_open,
    duplicate,
    given_up,
    ended_inside,
    native,
    locked,
    lost,
    conversation,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_connection(world: World, check: Check) -> None:
    asyncio.run(check(world))
