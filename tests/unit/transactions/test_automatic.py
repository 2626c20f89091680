"""Automatic undo by wrapped connections of SQLite, in every mode of its drivers."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import create_engine

from bedstone.errors import InvalidError, UnavailableError
from bedstone.telemetry.context import current
from bedstone.testing.automatic import aborting, aborting_sync, ended
from bedstone.testing.faults import Fault
from bedstone.testing.transaction_log import MemoryLog, no_faults
from bedstone.transactions import barrier
from bedstone.transactions.automatic import automatic
from bedstone.transactions.automatic_sessions import Policy
from bedstone.transactions.databases import database
from bedstone.transactions.errors import (
    LockConflictError,
    StuckError,
    TransactionAbortedError,
    UnsupportedStatementError,
)
from bedstone.transactions.manager import Transactions
from bedstone.transactions.model import Branch, Mode, Phase, State, Transaction


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "bank.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance, note UNIQUE);"
            "INSERT INTO accounts VALUES (1, 100, 'one'), (2, 100.5, NULL), (3, x'00', 'x');"
        )
    return path


def _rows(path: Path, text: str = "SELECT * FROM accounts ORDER BY id") -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(text).fetchall()


_MODES: dict[str, dict[str, Any]] = {
    "implicit": {"isolation_level": ""},
    "autocommit": {"isolation_level": None},
}


def _connecting(path: Path, mode: str = "autocommit") -> Callable[[], sqlite3.Connection]:
    return functools.partial(
        sqlite3.connect, path, check_same_thread=False, timeout=1, **_MODES[mode]
    )


@pytest.fixture
def manager() -> Iterator[Transactions]:
    with Transactions(MemoryLog()) as manager:
        yield manager


@pytest.mark.parametrize("mode", _MODES)
def test_an_abort_gives_back_what_each_mode_committed(
    path: Path, manager: Transactions, mode: str
) -> None:
    before = _rows(path)
    bank = automatic(_connecting(path, mode), name="bank", transactions=manager)
    with aborting_sync(manager) as scope, bank.connect_sync() as connection:
        cursor = connection.execute("UPDATE accounts SET balance = ? WHERE id = ?", ("70", 1))
        assert cursor.rowcount == 1
        connection.execute("DELETE FROM accounts WHERE note IS NULL")
        cursor = connection.executemany(
            "INSERT INTO accounts (balance) VALUES (:b)", [{"b": 1}, {"b": 2}]
        )
        assert cursor.rowcount == 2
        assert cursor.lastrowid == 5
        cursor.execute("INSERT INTO accounts (note) VALUES ('r'), ('s') RETURNING note, id")
        assert cursor.fetchone() == ("r", 6)
        assert cursor.fetchmany(5) == [("s", 7)]
        assert connection.execute("SELECT count(*) FROM accounts").fetchone() == (6,)
        connection.commit()
        assert _rows(path) != before
    assert manager.run(ended(manager, scope.xid)) is State.ABORTED
    assert _rows(path) == before
    assert _rows(path, "SELECT * FROM bedstone_undo") == []


@pytest.mark.parametrize("mode", _MODES)
def test_a_commit_keeps_it(path: Path, manager: Transactions, mode: str) -> None:
    bank = automatic(_connecting(path, mode), name="bank", transactions=manager)
    with manager.transaction() as scope, bank.connect_sync() as connection, connection:
        connection.execute("UPDATE accounts SET balance = 5 WHERE id = 1")
    assert manager.run(ended(manager, scope.xid)) is State.COMMITTED
    assert _rows(path)[0][1] == 5
    assert _rows(path, "SELECT * FROM bedstone_undo") == []


def test_aiosqlite_is_the_same(path: Path) -> None:
    before = _rows(path)

    async def scenario() -> None:
        async with Transactions(MemoryLog()) as manager:
            source = database(functools.partial(aiosqlite.connect, path), is_async=True)
            bank = automatic(source, name="bank", transactions=manager)
            async with aborting(manager) as scope, bank.connect() as connection:
                await connection.execute("UPDATE accounts SET balance = ? WHERE id = ?", (7, 1))
                async with connection.execute("SELECT balance FROM accounts") as cursor:
                    assert [row async for row in cursor] == [(7,), (100.5,), (b"\x00",)]
                async with connection.cursor() as cursor:
                    await cursor.executemany("DELETE FROM accounts WHERE id = ?", [(1,), (2,)])
                    assert cursor.rowcount == 2
                await connection.commit()
                assert len(_rows(path)) == 1
            assert await ended(manager, scope.xid) is State.ABORTED

    asyncio.run(scenario())
    assert _rows(path) == before


def test_outside_of_a_transaction_everything_is_the_drivers(
    path: Path, manager: Transactions
) -> None:
    bank = automatic(_connecting(path), name="bank", transactions=manager)
    with bank.connect_sync() as connection:
        connection.executescript("CREATE TABLE keyless (a); INSERT INTO keyless VALUES (1);")
        connection.execute("REPLACE INTO accounts VALUES (1, 2, 3)")
        assert connection.execute("SELECT a FROM keyless").fetchall() == [(1,)]
        with manager.transaction():
            with pytest.raises(UnsupportedStatementError, match="executescript"):
                connection.executescript("DELETE FROM keyless")
            with pytest.raises(UnsupportedStatementError, match="no primary key"):
                connection.execute("DELETE FROM keyless")
    assert _rows(path, "SELECT name FROM sqlite_master WHERE name = 'bedstone_undo'")
    assert _rows(path, "SELECT * FROM keyless") == [(1,)]


def test_a_local_rollback_enlists_nothing(path: Path, manager: Transactions) -> None:
    before = _rows(path)
    bank = automatic(_connecting(path, "implicit"), name="bank", transactions=manager)
    with manager.transaction() as scope, bank.connect_sync() as connection:
        connection.execute("DELETE FROM accounts")
        connection.rollback()
        connection.commit()
    found = manager.ask_sync(lambda _, log: log.get(scope.xid))
    assert found.branches == ()
    assert _rows(path) == before


def test_a_failed_statement_leaves_the_others(path: Path, manager: Transactions) -> None:
    bank = automatic(_connecting(path, "implicit"), name="bank", transactions=manager)
    with manager.transaction(), bank.connect_sync() as connection:
        connection.execute("UPDATE accounts SET balance = 1 WHERE id = 1")
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute("INSERT INTO accounts VALUES (1, 1, 1)")
        connection.commit()
    assert _rows(path)[0][1] == 1


def test_when_the_log_cannot_be_written_nothing_is_committed(path: Path) -> None:
    before = _rows(path)
    log = MemoryLog()

    def scenario(manager: Transactions) -> None:
        bank = automatic(_connecting(path), name="bank", transactions=manager)
        with manager.transaction(), bank.connect_sync() as connection:
            log.plan = _down
            with pytest.raises(UnavailableError):
                connection.execute("UPDATE accounts SET balance = 0 WHERE id = 1")
            log.plan = no_faults
            assert _rows(path) == before

    with Transactions(log) as manager, pytest.raises(TransactionAbortedError):
        scenario(manager)
    assert _rows(path) == before


def test_a_failed_local_commit_dooms_the_transaction(path: Path, manager: Transactions) -> None:
    """What is in the log and not in the database must never be confirmed."""
    before = _rows(path)
    bank = automatic(_connecting(path, "implicit"), name="bank", transactions=manager)

    def scenario() -> None:
        with manager.transaction(), bank.connect_sync() as connection:
            connection.execute("UPDATE accounts SET balance = 0 WHERE id = 1")
            # Another phase of the branch came first: the undo record can't be written.
            connection._target.execute(
                "INSERT INTO bedstone_undo VALUES (?, '1', '{}', 0)", (current().transaction,)
            )
            with pytest.raises(Exception, match=r"exists|UNIQUE"):
                connection.commit()

    with pytest.raises(TransactionAbortedError):
        scenario()
    assert _rows(path) == before


def test_a_confirm_waits_for_a_local_commit_under_way_then_asks_a_person(
    path: Path, manager: Transactions
) -> None:
    bank = automatic(_connecting(path), name="bank", transactions=manager)
    with manager.transaction(), bank.connect_sync() as connection:
        connection.execute("UPDATE accounts SET balance = 0 WHERE id = 1")
    held = Transaction("t1", "", 0.0, 0.0, "me", state=State.COMMITTING)
    for attempts, error in ((0, UnavailableError), (barrier.UNDER_WAY, StuckError)):
        branch = Branch(1, Mode.AT, bank.resource(), attempts=attempts)
        with pytest.raises(error, match="never committed"):
            bank._second_sync(held, branch, Phase.CONFIRM)


def test_two_branches_of_one_transaction_may_change_the_same_row(
    path: Path, manager: Transactions
) -> None:
    before = _rows(path)
    bank = automatic(_connecting(path), name="bank", transactions=manager)
    with aborting_sync(manager) as scope, bank.connect_sync() as connection:
        for balance in range(5):
            connection.execute("UPDATE accounts SET balance = ? WHERE id = 1", (balance,))
    found = manager.ask_sync(lambda _, log: log.get(scope.xid))
    assert [branch.locks for branch in found.branches] == [("bank/accounts/1",)] * 5
    assert manager.run(ended(manager, scope.xid)) is State.ABORTED
    assert _rows(path) == before


def test_a_transaction_waits_for_a_lock_no_longer_than_it_said(path: Path) -> None:
    """Its clock moves only while it waits."""
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    with Transactions(MemoryLog()) as manager:
        bank = automatic(_connecting(path), name="bank", transactions=manager)
        bank.policy = Policy(lock_wait=0.5, sleep=sleep, clock=lambda: now)
        with aborting_sync(manager), bank.connect_sync() as connection:
            connection.execute("UPDATE accounts SET balance = 1 WHERE id = 1")

            def other() -> None:
                with manager.transaction(), bank.connect_sync() as second:
                    second.execute("UPDATE accounts SET balance = 2 WHERE id = 1")

            errors: list[Exception] = []

            def caught() -> None:
                try:
                    contextvars.Context().run(other)
                except Exception as error:  # noqa: BLE001 - what it is, is asserted
                    errors.append(error)

            thread = threading.Thread(target=caught)
            thread.start()
            thread.join()
            assert [type(error) for error in errors] == [LockConflictError]
            assert 0.5 <= now < 0.6
            assert _rows(path)[0][1] == 1
    assert _rows(path)[0][1] == 100


def test_a_connection_of_another_transaction_is_refused(path: Path, manager: Transactions) -> None:
    bank = automatic(_connecting(path, "implicit"), name="bank", transactions=manager)
    with bank.connect_sync() as connection:
        with manager.transaction():
            connection.execute("UPDATE accounts SET balance = 1 WHERE id = 1")
        with manager.transaction(), pytest.raises(InvalidError, match="part of transaction"):
            connection.execute("UPDATE accounts SET balance = 2 WHERE id = 1")
        connection.rollback()
    assert _rows(path)[0][1] == 100


def test_only_drivers_connections_are_wrapped(path: Path, manager: Transactions) -> None:
    bank = automatic(_connecting(path), name="bank", transactions=manager)
    engine = create_engine("sqlite://")
    with engine.connect() as connection, pytest.raises(InvalidError, match="SQLAlchemy"):
        bank.wrap(connection)
    engine.dispose()
    with pytest.raises(InvalidError, match="expected a connection"):
        bank.wrap(object())
    with bank.connect_sync() as connection:
        assert bank.wrap(connection) is connection


def test_attributes_are_the_drivers(path: Path, manager: Transactions) -> None:
    before = _rows(path)
    bank = automatic(_connecting(path), name="bank", transactions=manager)
    with aborting_sync(manager) as scope, bank.connect_sync() as connection:
        connection.row_factory = sqlite3.Row
        connection.isolation_level = ""
        cursor = connection.cursor()
        assert cursor.connection is connection
        cursor.execute("DELETE FROM accounts WHERE id = 1 RETURNING balance, id")
        assert dict(cursor.fetchone()) == {"balance": 100, "id": 1}
        assert _rows(path) == before  # no longer in autocommit mode
        connection.commit()
        assert _rows(path) != before
    assert manager.run(ended(manager, scope.xid)) is State.ABORTED
    assert _rows(path) == before


def test_a_transaction_of_another_manager_is_refused(path: Path, manager: Transactions) -> None:
    bank = automatic(_connecting(path), name="bank", transactions=manager)
    with (
        Transactions(MemoryLog()) as other,
        other.transaction(),
        bank.connect_sync() as connection,
        pytest.raises(InvalidError, match="another manager"),
    ):
        connection.execute("DELETE FROM accounts")
    assert len(_rows(path)) == 3


def test_savepoints_in_text_are_followed(path: Path, manager: Transactions) -> None:
    bank = automatic(_connecting(path), name="bank", transactions=manager)
    with manager.transaction() as scope, bank.connect_sync() as connection:
        connection.execute("BEGIN")
        connection.execute("UPDATE accounts SET balance = 1 WHERE id = 1")
        connection.execute("SAVEPOINT a")
        connection.execute("UPDATE accounts SET balance = 2 WHERE id = 2")
        connection.execute("ROLLBACK TO a")
        with pytest.raises(UnsupportedStatementError, match="commit"):
            connection.execute("COMMIT")
        connection.commit()
    found = manager.ask_sync(lambda _, log: log.get(scope.xid))
    assert [branch.locks for branch in found.branches] == [("bank/accounts/1",)]
    assert [row[1] for row in _rows(path)] == [1, 100.5, b"\x00"]


def _down(operation: str) -> Fault:
    return Fault.UNAPPLIED if operation == "register" else Fault.NONE
