"""AT by SQLAlchemy's events: engines and sessions, blocking and asynchronous."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import ForeignKey, create_engine, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from bedstone.testing.automatic import TABLES, aborting, aborting_sync, ended, everything, rows
from bedstone.testing.transaction_log import MemoryLog
from bedstone.transactions.automatic import automatic
from bedstone.transactions.errors import LockConflictError, UnsupportedStatementError
from bedstone.transactions.manager import Transactions
from bedstone.transactions.model import State


class _Base(DeclarativeBase):
    pass


class Thing(_Base):
    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]
    half: Mapped[int | None]
    parts: Mapped[list[Part]] = relationship(cascade="all, delete-orphan")


class Part(_Base):
    __tablename__ = "parts"
    thing: Mapped[int] = mapped_column(ForeignKey("things.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    what: Mapped[str | None]


@pytest.fixture
def url(postgres_url: str) -> Iterator[str]:
    name = f"at_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    own = postgres_url.rpartition("/")[0] + "/" + name
    with psycopg.connect(own, autocommit=True) as connection:
        connection.execute(TABLES.encode())
    yield own
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def _for(url: str, driver: str) -> str:
    return url.replace("postgresql://", f"postgresql+{driver}://")


def _made(number: int) -> Thing:
    return Thing(name=f"n{number}", half=number, parts=[Part(number=1, what="p")])


def test_a_session_is_undone_and_committed(url: str) -> None:
    before = everything(url)
    engine = create_engine(_for(url, "psycopg"), use_insertmanyvalues=False)
    with Transactions(MemoryLog()) as manager:
        automatic(engine, name="bank", transactions=manager)
        with aborting_sync(manager) as scope:
            with Session(engine) as session:
                session.add(_made(1))
                session.commit()
            with Session(engine) as session, session.begin():
                session.add_all([_made(2), _made(3)])
                session.flush()
                thing = session.scalars(select(Thing).where(Thing.name == "n2")).one()
                thing.half = 9
                session.execute(text("DELETE FROM accounts WHERE id = :id"), {"id": 1})
                with session.begin_nested() as nested:
                    session.execute(text("UPDATE accounts SET balance = 0"))
                    nested.rollback()
            assert len(rows(url, "SELECT * FROM parts")) == 3
        assert manager.run(ended(manager, scope.xid)) is State.ABORTED
        assert everything(url) == before
        with manager.transaction() as scope, Session(engine) as session, session.begin():
            session.add(_made(1))
        assert manager.run(ended(manager, scope.xid)) is State.COMMITTED
    engine.dispose()
    assert rows(url, "SELECT name, whole FROM things") == [("n1", 2)]
    assert rows(url, "SELECT * FROM bedstone_undo") == []


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_an_asynchronous_session_is_the_same(url: str, driver: str) -> None:
    before = everything(url)

    async def scenario() -> None:
        engine = create_async_engine(_for(url, driver), use_insertmanyvalues=False)
        async with Transactions(MemoryLog()) as manager:
            automatic(engine, name="bank", transactions=manager)
            async with aborting(manager) as scope:
                async with AsyncSession(engine) as session, session.begin():
                    session.add_all([_made(1), _made(2)])
                    await session.execute(text("UPDATE kinds SET n = 3, t = now()"))
                async with engine.begin() as connection:
                    await connection.execute(text("DELETE FROM kinds"))
                assert everything(url) != before
            assert await ended(manager, scope.xid) is State.ABORTED
            assert everything(url) == before
            async with manager.transaction() as scope, engine.begin() as connection:
                found = await connection.execute(
                    text("UPDATE accounts SET balance = :b WHERE id = 1 RETURNING note"), {"b": 4}
                )
                assert found.scalar_one() == "one"
            assert await ended(manager, scope.xid) is State.COMMITTED
        await engine.dispose()

    asyncio.run(scenario())
    assert rows(url)[0][1] == 4


def test_a_lock_conflict_rolls_the_drivers_transaction_back(url: str) -> None:
    async def scenario() -> None:
        engine = create_async_engine(_for(url, "asyncpg"))
        async with Transactions(MemoryLog()) as manager:
            automatic(engine, name="bank", transactions=manager)
            inside, go = asyncio.Event(), asyncio.Event()

            async def holder() -> None:
                async with manager.transaction():
                    async with engine.begin() as connection:
                        await connection.execute(text("UPDATE accounts SET balance = 1"))
                    inside.set()
                    await go.wait()

            async with asyncio.TaskGroup() as group:
                held = group.create_task(holder())
                await inside.wait()
                async with manager.transaction() as scope:
                    connection = await engine.connect()
                    await connection.execute(text("UPDATE accounts SET balance = 2 WHERE id = 1"))
                    with pytest.raises(LockConflictError):
                        await connection.commit()
                    await connection.close()
                    assert [row[1] for row in rows(url)] == [1, 1, 1]
                go.set()
                await held
            assert (await manager.log.get(scope.xid)).branches == ()
        await engine.dispose()

    asyncio.run(scenario())
    assert [row[1] for row in rows(url)] == [1, 1, 1]


def test_what_cannot_be_undone_is_refused(url: str) -> None:
    engine: Any = create_engine(_for(url, "psycopg"))
    with Transactions(MemoryLog()) as manager:
        automatic(engine, name="bank", transactions=manager)
        with manager.transaction(), Session(engine) as session:
            session.add_all([_made(1), _made(2)])
            with pytest.raises(UnsupportedStatementError) as raised:
                session.flush()
            assert "use_insertmanyvalues" in str(raised.value.hint)
            session.rollback()
            with pytest.raises(UnsupportedStatementError, match="schema"):
                session.execute(text("CREATE TABLE other (a int)"))
        with engine.connect() as connection, pytest.raises(SQLAlchemyError):
            connection.execute(text("SELECT * FROM other"))
    engine.dispose()
