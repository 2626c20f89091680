"""Recognising connections and sources, without a server."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pymysql
import pytest

from bedstone.errors import InvalidError, UnavailableError
from bedstone.transactions.connections import AsyncConnection, adapt
from bedstone.transactions.connections_async import Asyncmy
from bedstone.transactions.connections_sync import PyMySQL, SQLite
from bedstone.transactions.databases import database
from bedstone.transactions.sql import Dialect, Query, Steps


def test_adapt() -> None:
    with closing(sqlite3.connect(":memory:")) as raw:
        adapted = adapt(raw)
        assert adapted.raw is raw
        assert adapted.dialect is Dialect.SQLITE
        assert adapt(adapted) is adapted


def test_adapt_refuses() -> None:
    with pytest.raises(InvalidError, match="expected a connection") as caught:
        adapt({})
    assert "asyncpg" in str(caught.value.hint)


def test_importing_loads_no_driver() -> None:
    """What an application doesn't use isn't loaded."""
    heavy = "{'psycopg', 'asyncpg', 'sqlalchemy', 'pymysql', 'asyncmy', 'aiosqlite'}"
    program = (
        "import sys; import bedstone.transactions.databases, bedstone.transactions.barrier, "
        f"bedstone.transactions.xa; found = {heavy} & set(sys.modules); sys.exit(str(found) "
        "if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_steps_are_closed() -> None:
    """A conversation that fails runs its own clean-up at once, and the error comes out."""
    closed: list[bool] = []

    def steps() -> Steps[None]:
        try:
            yield Query("SELECT * FROM nothing")
        finally:
            closed.append(True)

    with closing(sqlite3.connect(":memory:")) as raw, pytest.raises(sqlite3.OperationalError):
        SQLite(raw).run(steps())
    assert closed == [True]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:secret@db:5/bank?x=1", "postgresql://db:5/bank"),
        ("mysql://u:secret@db/bank", "mysql://db/bank"),
        ("sqlite:////tmp/x", "sqlite:////tmp/x"),
    ],
)
def test_names_have_no_secrets(url: str, shown: str) -> None:
    assert database(url).name == shown
    assert "secret" not in repr(database(url))


def test_refused_sources() -> None:
    for bad in ("oracle://x", "nothing", 5):
        with pytest.raises(InvalidError):
            database(bad)


def test_sync_of_async() -> None:
    """A blocking caller isn't given a connection that it can't use."""
    with (
        pytest.raises(InvalidError, match="asynchronous connections"),
        database("sqlite:///:memory:").connect_sync(),
    ):
        pass


def test_function_is_closed_or_left(tmp_path: Path) -> None:
    """A plain connection is closed after use; one from a context manager is that one's business."""
    made = [sqlite3.connect(tmp_path / "a"), sqlite3.connect(tmp_path / "b")]

    @contextmanager
    def pooled() -> Iterator[sqlite3.Connection]:
        yield made[1]

    with database(lambda: made[0]).connect_sync() as db:
        assert db.raw is made[0]
    with pytest.raises(sqlite3.ProgrammingError):
        made[0].execute("SELECT 1")

    source = database(pooled)
    with source.connect_sync() as db:
        db.begin()
        db.execute(Query("CREATE TABLE t (a)"))
    assert made[1].execute("SELECT * FROM sqlite_master").fetchall() == []  # rolled back
    assert database(source) is source
    made[1].close()


def test_asynchronous_sources_are_seen() -> None:
    async def opens() -> None: ...

    def blocks() -> None: ...

    assert database(opens).is_async
    assert not database(blocks).is_async
    assert database(blocks, is_async=True).is_async


def test_an_async_function_may_give_an_open_aiosqlite_connection(tmp_path: Path) -> None:
    import aiosqlite

    async def opened() -> aiosqlite.Connection:
        return await aiosqlite.connect(tmp_path / "a.db")

    async def main() -> None:
        async with database(opened).connect() as db:
            assert isinstance(db, AsyncConnection)
            assert (await db.execute(Query("SELECT 1"))).rows == ((1,),)

    asyncio.run(main())


def test_sqlite_url(tmp_path: Path) -> None:
    async def main() -> None:
        url = f"sqlite:///{tmp_path / 'db'}"
        async with database(url).connect() as db:
            assert db.dialect is Dialect.SQLITE
        assert (tmp_path / "db").exists()

    asyncio.run(main())


class Gone:
    """A blocking connection to a server that goes away after so many words."""

    def __init__(self, words: int) -> None:
        self.words, self.open = words, True

    def get_autocommit(self) -> bool:
        return False

    def autocommit(self, _value: object) -> None:
        self.words -= 1
        if self.words < 0:
            raise pymysql.err.OperationalError(2006, "MySQL server has gone away")

    def close(self) -> None:
        self.open = False


class GoneAsync:
    """Likewise, asynchronous."""

    def __init__(self, words: int) -> None:
        self.inner = Gone(words)

    @property
    def connected(self) -> bool:
        return self.inner.open

    def get_autocommit(self) -> bool:
        return False

    async def autocommit(self, value: object) -> None:
        self.inner.autocommit(value)

    def close(self) -> None:
        self.inner.close()


def test_a_lost_connection_hides_no_error_of_the_block() -> None:
    lost = Gone(1)
    with pytest.raises(UnavailableError, match="what happened"), PyMySQL(lost).alone():
        raise UnavailableError("what happened")
    assert not lost.open
    with pytest.raises(UnavailableError, match="gone away"), PyMySQL(Gone(0)).alone():
        raise AssertionError


def test_an_asynchronous_one_neither() -> None:
    async def main() -> None:
        lost = GoneAsync(1)
        with pytest.raises(UnavailableError, match="what happened"):
            async with Asyncmy(lost).alone():
                raise UnavailableError("what happened")
        assert not lost.connected
        with pytest.raises(UnavailableError, match="gone away"):
            async with Asyncmy(GoneAsync(0)).alone():
                raise AssertionError

    asyncio.run(main())
