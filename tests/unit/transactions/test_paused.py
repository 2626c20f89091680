"""Blocking code that sleeps between its enlistment and its barrier row takes no effect any more.

A process that is stopped there may wake after its CANCEL, and after the sweep of the CANCEL's mark.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bedstone.telemetry import context as telemetry
from bedstone.testing.transaction_log import MemoryLog
from bedstone.transactions import (
    Tcc,
    TransactionAbortedError,
    Transactions,
    TransactionTimeoutError,
    automatic,
    tcc,
)
from bedstone.transactions.model import State
from bedstone.transactions.undo import save

HOURS = 7200.0


class Pause:
    """A clock, and connections that it jumps behind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.slept = 0.0
        self.falls_asleep = False

    def monotonic(self) -> float:
        return time.monotonic() + self.slept

    def connect(self) -> sqlite3.Connection:
        if self.falls_asleep:
            self.slept = HOURS
        return sqlite3.connect(self.path, check_same_thread=False)


@pytest.fixture
def pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pause:
    path = tmp_path / "bank.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance);"
            "INSERT INTO accounts VALUES (1, 100);"
        )
    pause = Pause(path)
    monkeypatch.setattr(telemetry, "time", SimpleNamespace(monotonic=pause.monotonic))
    return pause


@pytest.fixture
def manager() -> Iterator[Transactions]:
    with Transactions(MemoryLog()) as manager:
        yield manager


def _balance(pause: Pause) -> object:
    with closing(sqlite3.connect(pause.path)) as connection:
        return connection.execute("SELECT balance FROM accounts").fetchone()[0]


class Take(Tcc):
    """Notes whether it ran."""

    tried = 0

    def try_(self, db: sqlite3.Connection) -> None:
        Take.tried += 1

    def confirm(self, db: sqlite3.Connection) -> None:
        pass

    def cancel(self, db: sqlite3.Connection) -> None:
        pass


def test_a_try_that_wakes_after_its_deadline_does_nothing(
    pause: Pause, manager: Transactions
) -> None:
    take = tcc(Take, pause.connect, transactions=manager)
    Take.tried = 0
    pause.falls_asleep = True
    with pytest.raises(TransactionTimeoutError), manager.transaction() as scope:
        take.sync()
    assert Take.tried == 0
    ended = manager.run(manager.log.get(scope.xid)).state
    assert ended in {State.ABORTING, State.ABORTED}


def test_a_local_commit_that_wakes_after_its_deadline_is_rolled_back(
    pause: Pause, manager: Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleeping(*arguments: Any) -> Any:
        pause.slept = HOURS
        return save(*arguments)

    monkeypatch.setattr("bedstone.transactions.automatic_sessions.save", sleeping)
    bank = automatic(pause.connect, name="bank", transactions=manager)
    with pytest.raises(TransactionAbortedError), manager.transaction():  # noqa: PT012, SIM117
        with bank.connect_sync() as connection:
            connection.execute("UPDATE accounts SET balance = 5 WHERE id = 1")
            with pytest.raises(TransactionTimeoutError):
                connection.commit()
            assert _balance(pause) == 100
    assert _balance(pause) == 100
