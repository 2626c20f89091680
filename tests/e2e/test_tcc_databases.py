"""TCC between real databases, by processes that are killed at the worst moments."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pymysql
import pytest

from bedstone.transactions.logs import open_log
from bedstone.transactions.model import State, Transaction

pytestmark = pytest.mark.timeout(240)
PROGRAM = Path(__file__).with_name("programs") / "transfer.py"
"""Transfers between two databases, or sees to an end what such a process left."""


@dataclass
class Bank:
    """Two databases with an account of 100 each, and a log."""

    log: str
    first: str
    second: str

    def start(self, what: str, amount: int = 30, timeout: float = 30.0) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                sys.executable,
                str(PROGRAM),
                what,
                self.log,
                self.first,
                self.second,
                str(amount),
                str(timeout),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, what: str, amount: int = 30) -> str:
        process = self.start(what, amount)
        try:
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        return output.strip()

    def killed(self, what: str, timeout: float) -> None:
        """Run until it says that it is there, and kill it."""
        process = self.start(what, timeout=timeout)
        assert process.stdout is not None
        try:
            assert process.stdout.readline().strip() == what
        finally:
            process.kill()
            process.wait(30)
            process.stdout.close()

    def rows(self) -> list[tuple[int, int]]:
        return [_row(self.first), _row(self.second)]

    def transactions(self) -> list[Transaction]:
        async def read() -> list[Transaction]:
            async with open_log(self.log) as log:
                return list(await log.list())

        return asyncio.run(read())


def _connect(url: str) -> Any:
    if url.startswith("postgres"):
        return psycopg.connect(url, autocommit=True)
    parts = urlsplit(url)
    return pymysql.connect(
        host=parts.hostname,
        port=parts.port or 3306,
        user=parts.username,
        password=parts.password or "",
        database=parts.path.strip("/") or None,
        autocommit=True,
    )


def _row(url: str) -> tuple[int, int]:
    with closing(_connect(url)) as db, closing(db.cursor()) as cursor:
        cursor.execute("SELECT balance, held FROM account")
        balance, held = cursor.fetchone()
        return balance, held


def _database(server: str) -> str:
    """A new database of a server, with its account."""
    name = f"bank_{uuid.uuid4().hex[:12]}"
    with closing(_connect(server)) as db, closing(db.cursor()) as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    url = urlsplit(server)._replace(path=f"/{name}").geturl()
    with closing(_connect(url)) as db, closing(db.cursor()) as cursor:
        cursor.execute("CREATE TABLE account (balance INT NOT NULL, held INT NOT NULL)")
        cursor.execute("INSERT INTO account VALUES (100, 0)")
    return url


@pytest.fixture(params=["postgres", "mariadb"])
def bank(request: pytest.FixtureRequest, postgres_url: str) -> Bank:
    second = request.getfixturevalue("mariadb_url") if request.param == "mariadb" else postgres_url
    return Bank(_database(postgres_url), _database(postgres_url), _database(second))


def test_a_transfer_commits_in_both(bank: Bank) -> None:
    assert bank.run("transfer") == "committed"
    assert bank.rows() == [(70, 0), (130, 0)]
    assert [it.state for it in bank.transactions()] == [State.COMMITTED]


def test_a_transfer_in_parallel_commits_in_both(bank: Bank) -> None:
    assert bank.run("together") == "committed"
    assert bank.rows() == [(70, 0), (130, 0)]


def test_insufficient_funds_abort_it(bank: Bank) -> None:
    assert bank.run("transfer", amount=300) == "refused: insufficient funds"
    assert bank.rows() == [(100, 0), (100, 0)]
    assert [it.state for it in bank.transactions()] == [State.ABORTED]


def test_a_process_killed_before_the_decision_is_aborted_by_another(bank: Bank) -> None:
    bank.killed("tried", timeout=3.0)
    assert bank.rows() == [(70, 30), (100, 30)]
    assert bank.run("recover") == "aborted"
    assert bank.rows() == [(100, 0), (100, 0)]


def test_a_process_killed_after_the_decision_is_finished_by_another(bank: Bank) -> None:
    bank.killed("decided", timeout=30.0)
    assert [it.state for it in bank.transactions()] == [State.COMMITTING]
    assert bank.run("recover") == "committed"
    assert bank.rows() == [(70, 0), (130, 0)]
    (ended,) = bank.transactions()
    assert ended.epoch == 2
