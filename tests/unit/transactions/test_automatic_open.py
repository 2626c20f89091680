"""What would commit a local transaction past its recording is refused."""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bedstone.testing.automatic import aborting_sync
from bedstone.testing.transaction_log import MemoryLog
from bedstone.transactions.automatic import automatic
from bedstone.transactions.errors import UnsupportedStatementError
from bedstone.transactions.manager import Transactions


class Connection(sqlite3.Connection):
    """SQLite's, with a method that PyMySQL has: it commits what is open."""

    def begin(self) -> None:
        """Commit, and begin."""
        self.commit()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "bank.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance);"
            "INSERT INTO accounts VALUES (1, 100);"
        )
    return path


@pytest.fixture
def manager() -> Iterator[Transactions]:
    with Transactions(MemoryLog()) as manager:
        yield manager


def _balance(path: Path) -> object:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT balance FROM accounts").fetchone()[0]


def _connecting(path: Path) -> Any:
    return functools.partial(
        sqlite3.connect, path, check_same_thread=False, timeout=1, factory=Connection
    )


def test_what_commits_by_itself_is_refused_while_something_is_recorded(
    path: Path, manager: Transactions
) -> None:
    bank = automatic(_connecting(path), name="bank", transactions=manager)
    with aborting_sync(manager), bank.connect_sync() as connection:
        connection.begin()
        connection.execute("UPDATE accounts SET balance = 5 WHERE id = 1")
        with pytest.raises(UnsupportedStatementError, match="isolation_level may commit"):
            connection.isolation_level = None
        with pytest.raises(UnsupportedStatementError, match="begin may commit"):
            connection.begin()
        with pytest.raises(UnsupportedStatementError, match="MySQL commits what is open"):
            connection.execute("BEGIN")
        assert connection.isolation_level == ""
        connection.rollback()
        connection.isolation_level = None
        connection.execute("BEGIN")
        connection.rollback()
    assert _balance(path) == 100


def test_a_connection_of_a_derived_class_keeps_its_driver_s_ways(
    path: Path, manager: Transactions
) -> None:
    """It was taken for one that commits each statement: a local rollback gave nothing back."""
    bank = automatic(_connecting(path), name="bank", transactions=manager)
    with manager.transaction() as scope, bank.connect_sync() as connection:
        connection.execute("UPDATE accounts SET balance = 5 WHERE id = 1")
        connection.rollback()
    assert _balance(path) == 100
    assert manager.run(manager.log.get(scope.xid)).branches == ()
