"""A SQLAlchemy engine inside a service that was called in another's transaction."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from bedstone.telemetry import context as telemetry
from bedstone.testing.transaction_log import MemoryLog
from bedstone.transactions.automatic import automatic
from bedstone.transactions.manager import Transactions
from bedstone.transactions.model import State

UPDATE = text("UPDATE accounts SET balance = 5 WHERE id = 1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "bank.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance);"
            "INSERT INTO accounts VALUES (1, 100);"
        )
    return path


def _failing(engine: Any) -> None:
    """Let the driver's commit fail: a disk that is full, a server that has gone."""

    def commit(_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    engine.dialect.do_commit = commit


def _balance(path: Path) -> object:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT balance FROM accounts").fetchone()[0]


def test_a_failed_local_commit_dooms_what_the_caller_began(path: Path) -> None:
    """The caller may overlook the error: then it must not commit a branch that is not there."""
    with Transactions(MemoryLog()) as manager:
        engine = create_engine(f"sqlite:///{path}")
        automatic(engine, name="bank", transactions=manager)
        begun = manager.run(manager.coordinator.begin("t", 30.0))
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        with telemetry.with_transaction(begun.xid), engine.connect() as connection:
            connection.execute(UPDATE)
            _failing(engine)
            with pytest.raises((OperationalError, sqlite3.OperationalError)):
                connection.commit()
        found = manager.run(manager.log.get(begun.xid))
        assert found.branches
        assert found.state in {State.ABORTING, State.ABORTED}
        engine.dispose()
    assert _balance(path) == 100


def test_an_asynchronous_engine_is_the_same(path: Path) -> None:
    async def main() -> None:
        async with Transactions(MemoryLog()) as manager:
            engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
            automatic(engine, name="bank", transactions=manager)
            begun = await manager.coordinator.begin("t", 30.0)
            with telemetry.with_transaction(begun.xid):
                async with engine.connect() as connection:
                    await connection.execute(UPDATE)
                    _failing(engine.sync_engine)
                    with pytest.raises((OperationalError, sqlite3.OperationalError)):
                        await connection.commit()
            found = await manager.log.get(begun.xid)
            assert found.branches
            assert found.state in {State.ABORTING, State.ABORTED}
            await engine.dispose()

    asyncio.run(main())
    assert _balance(path) == 100


def test_a_record_that_cannot_be_written_dooms_it_likewise(path: Path) -> None:
    with Transactions(MemoryLog()) as manager:
        engine = create_engine(f"sqlite:///{path}")
        automatic(engine, name="bank", transactions=manager)
        begun = manager.run(manager.coordinator.begin("t", 30.0))

        @event.listens_for(engine, "before_cursor_execute")
        def refuse(_: Any, __: Any, statement: str, *___: Any) -> None:
            if "INSERT INTO bedstone_undo" in statement:
                raise sqlite3.OperationalError("disk I/O error")

        with telemetry.with_transaction(begun.xid), engine.connect() as connection:
            connection.execute(UPDATE)
            with pytest.raises(Exception, match="disk I/O error"):
                connection.commit()
        found = manager.run(manager.log.get(begun.xid))
        assert found.branches
        assert found.state in {State.ABORTING, State.ABORTED}
        engine.dispose()
    assert _balance(path) == 100


def test_a_later_failure_of_the_same_connection_dooms_nothing(path: Path) -> None:
    """The pool gives the driver's connection to the next request."""
    with Transactions(MemoryLog()) as manager:
        engine = create_engine(f"sqlite:///{path}")
        automatic(engine, name="bank", transactions=manager)
        begun = manager.run(manager.coordinator.begin("t", 30.0))
        with telemetry.with_transaction(begun.xid), engine.connect() as connection:
            connection.execute(UPDATE)
            connection.commit()
        with engine.connect() as connection, pytest.raises(OperationalError):
            connection.execute(text("SELECT * FROM nowhere"))
        assert manager.run(manager.log.get(begun.xid)).state is State.ACTIVE
        assert manager.run(manager.coordinator.commit(begun.xid)).xid == begun.xid
        engine.dispose()
    assert _balance(path) == 5
