"""Undo and the constraints of a real PostgreSQL that are checked late, or row by row."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from bedstone.testing.automatic import aborting, ended, rows, run
from bedstone.testing.transaction_log import MemoryLog
from bedstone.transactions.automatic import automatic
from bedstone.transactions.manager import Transactions
from bedstone.transactions.model import State

_TABLES = """
CREATE TABLE late (id int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY IMMEDIATE);
INSERT INTO late VALUES (1, 1), (2, 2);
CREATE TABLE now (id int PRIMARY KEY, u int UNIQUE);
INSERT INTO now VALUES (1, 30), (2, 20), (3, 10);
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int PRIMARY KEY, p int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
INSERT INTO parent VALUES (1);
INSERT INTO child VALUES (1, 1);
"""


@pytest.fixture
def url(postgres_url: str) -> Iterator[str]:
    name = f"at_{uuid.uuid4().hex}"
    run(postgres_url, f"CREATE DATABASE {name}")
    own = postgres_url.rpartition("/")[0] + "/" + name
    run(own, _TABLES)
    yield own
    run(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


def _everything(url: str) -> list[Any]:
    return [rows(url, f"SELECT * FROM {name} ORDER BY id") for name in ("late", "now", "parent")]


async def _undone(url: str, statements: list[str], meanwhile: str = "") -> dict[str, object] | None:
    """Run and abort; the report of the branch that is stuck."""

    async def connect() -> Any:
        return await psycopg.AsyncConnection.connect(url)

    async with Transactions(MemoryLog()) as manager:
        bank = automatic(connect, name="bank", transactions=manager)
        async with aborting(manager) as scope, bank.connect() as connection:
            for statement in statements:
                await connection.execute(statement)
            await connection.commit()
            if meanwhile:
                run(url, meanwhile)
        (branch,) = (await manager.log.get(scope.xid)).branches
        if branch.stuck is None:
            assert await ended(manager, scope.xid) is State.ABORTED
        return branch.stuck


@pytest.mark.parametrize(
    "statements",
    [
        ["UPDATE late SET u = 3 - u"],
        ["UPDATE now SET u = u + 10"],
        ["UPDATE now SET u = u - 10"],
        ["UPDATE now SET u = u + 10", "DELETE FROM now WHERE u = 20", "UPDATE now SET u = u - 5"],
        ["DELETE FROM child", "DELETE FROM parent"],
        ["DELETE FROM parent", "DELETE FROM child"],
        ["INSERT INTO child VALUES (2, 5)", "INSERT INTO parent VALUES (5)"],
    ],
)
def test_values_that_moved_between_rows_move_back(url: str, statements: list[str]) -> None:
    run(url, "UPDATE now SET u = u * 10" if "- 10" in statements[0] else "SELECT 1")
    before = _everything(url)
    assert asyncio.run(_undone(url, statements)) is None
    assert _everything(url) == before
    assert rows(url, "SELECT * FROM child") == [(1, 1)]


def test_a_deferred_constraint_that_undo_would_break_is_told(url: str) -> None:
    report = asyncio.run(
        _undone(url, ["UPDATE late SET u = 7 WHERE id = 1"], "INSERT INTO late VALUES (3, 1)")
    )
    assert report is not None
    assert (report["key"], report["now"]) == (["1"], {"id": "1", "u": "7"})
    assert rows(url, "SELECT * FROM late ORDER BY id") == [(1, 7), (2, 2), (3, 1)]
