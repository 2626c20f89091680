"""AT over a real MariaDB: PyMySQL and asyncmy."""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import asyncmy
import pymysql
import pytest

from bedstone.testing.automatic import aborting, aborting_sync, ended
from bedstone.testing.transaction_log import MemoryLog
from bedstone.transactions.automatic import automatic
from bedstone.transactions.errors import LockConflictError, UnsupportedStatementError
from bedstone.transactions.manager import Transactions
from bedstone.transactions.model import State

_TABLES = """
CREATE TABLE accounts (id int PRIMARY KEY, balance decimal(12,2), note varchar(40),
  seen timestamp(6) NULL ON UPDATE CURRENT_TIMESTAMP(6)) ENGINE=InnoDB;
INSERT INTO accounts (id, balance, note) VALUES (1, 100, 'one'), (2, 100, NULL);
CREATE TABLE things (id int AUTO_INCREMENT PRIMARY KEY, name varchar(20) UNIQUE,
  half int, whole int AS (half * 2) STORED) ENGINE=InnoDB;
CREATE TABLE kinds (id binary(3), t timestamp(6) NULL, d datetime(6), y date, h time(6),
  f float, g double, b longblob, bi bit(7), j json, e enum('a','b'), s set('x','y'),
  n decimal(30,10), u bigint unsigned, yr year, bo bool, v varchar(20), p point,
  PRIMARY KEY (id)) ENGINE=InnoDB;
INSERT INTO kinds VALUES (x'00ff5c', '2024-01-02 03:04:05.678901',
  '1999-12-31 23:59:59.999999', '2024-02-29', '-838:59:58.000001', 0.1, 0.1, x'00ff2725',
  b'1010101', '{"a": [1, null]}', 'b', 'x,y', 12345678901234567890.0123456789,
  18446744073709551615, 2024, true, 'it''s \\\\ ? %s', POINT(1, 2));
CREATE TABLE plain (a int PRIMARY KEY) ENGINE=MyISAM;
CREATE TABLE named (id varchar(36) DEFAULT (uuid()) PRIMARY KEY, a int) ENGINE=InnoDB;
"""
_NAMES = ("accounts", "things", "kinds", "named")
_STATEMENTS = [
    "UPDATE accounts SET balance = balance - 30, note = 'x' WHERE id = 1",
    "UPDATE accounts SET balance = balance * 2",
    "UPDATE accounts SET balance = balance",
    "DELETE FROM accounts WHERE note IS NULL",
    "INSERT INTO accounts (id, balance) VALUES (2, 7), (9, 1.5)",
    "INSERT INTO things (name, half) VALUES ('a', 1), ('b', 2)",
    "INSERT INTO things SET name = 'c', half = 3",
    "INSERT INTO named (a) VALUES (1), (2)",
    "UPDATE things SET name = CONCAT(name, 'x'), half = 5",
    "DELETE FROM things WHERE name = 'ax'",
    "UPDATE kinds SET t = NOW(6), d = NOW(), y = NOW(), h = '0', f = 1, b = '', v = NULL",
    "UPDATE kinds SET bi = 0, j = '[]', e = 'a', s = '', n = 0, u = 0, yr = 1999, p = NULL",
    "DELETE FROM kinds",
]


@pytest.fixture
def options(mariadb_url: str) -> Iterator[dict[str, Any]]:
    parts = urlsplit(mariadb_url)
    found: dict[str, Any] = {
        "host": parts.hostname,
        "port": parts.port,
        "user": parts.username,
        "password": parts.password or "",
    }
    name = f"at_{uuid.uuid4().hex}"
    with closing(pymysql.connect(**found, autocommit=True)) as connection:
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
            cursor.execute(f"USE {name}")
            for statement in filter(str.strip, _TABLES.split(";")):
                cursor.execute(statement)
        yield {**found, "database": name}
        with connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE {name}")


def _rows(options: dict[str, Any], query: str) -> list[Any]:
    with closing(pymysql.connect(**options)) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return list(cursor.fetchall())


def _everything(options: dict[str, Any]) -> list[Any]:
    return [_rows(options, f"SELECT * FROM {name} ORDER BY 1") for name in _NAMES]


def _blocking(options: dict[str, Any], **others: Any) -> Callable[[], Any]:
    return functools.partial(pymysql.connect, **options, **others)


def _asynchronous(options: dict[str, Any]) -> Callable[[], Any]:
    async def connect() -> Any:
        return await asyncmy.connect(**options)

    return connect


@pytest.mark.parametrize("zone", ["+00:00", "+05:45"])
@pytest.mark.parametrize("autocommit", [False, True])
def test_an_abort_gives_everything_back_exactly(
    options: dict[str, Any],
    autocommit: bool,  # noqa: FBT001
    zone: str,
) -> None:
    before = _everything(options)
    source = _blocking(options, autocommit=autocommit, init_command=f"SET time_zone = '{zone}'")
    with Transactions(MemoryLog()) as manager:
        bank = automatic(source, name="bank", transactions=manager)
        with aborting_sync(manager) as scope, bank.connect_sync() as connection:
            with connection.cursor() as cursor:
                for statement in _STATEMENTS:
                    cursor.execute(statement)
                cursor.execute(
                    "INSERT INTO things (name, half) VALUES (%(name)s, %(half)s)",
                    {"name": "q", "half": 1},
                )
                made = cursor.lastrowid
                cursor.execute("UPDATE things SET half = 2 WHERE id = %s", (made,))
                assert cursor.rowcount == 1
                cursor.execute("SELECT whole FROM things WHERE name LIKE 'q%'")
                assert cursor.fetchall() == ((4,),)
            connection.commit()
            assert _everything(options) != before
        assert manager.run(ended(manager, scope.xid)) is State.ABORTED
    assert _everything(options) == before
    assert _rows(options, "SELECT * FROM bedstone_undo") == []


def test_asynchronous_code_is_the_same(options: dict[str, Any]) -> None:
    before = _everything(options)

    async def scenario() -> None:
        async with Transactions(MemoryLog()) as manager:
            bank = automatic(_asynchronous(options), name="bank", transactions=manager)
            async with aborting(manager) as scope, bank.connect() as connection:
                async with connection.cursor() as cursor:
                    for statement in _STATEMENTS:
                        await cursor.execute(statement)
                await connection.commit()
            assert await ended(manager, scope.xid) is State.ABORTED
            assert _everything(options) == before
            async with manager.transaction() as scope, bank.connect() as connection:
                cursor = connection.cursor()
                await cursor.execute("UPDATE accounts SET balance = %s WHERE id = %s", (7, 1))
                await connection.commit()
                await cursor.execute("SELECT balance FROM accounts WHERE id = 1 FOR UPDATE")
                assert await cursor.fetchone() == (7,)
                await cursor.close()
                await connection.rollback()
            assert await ended(manager, scope.xid) is State.COMMITTED

    asyncio.run(scenario())
    assert _rows(options, "SELECT balance FROM accounts WHERE id = 1") == [(7,)]


def test_a_lock_conflict_commits_nothing(options: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with Transactions(MemoryLog()) as manager:
            bank = automatic(_asynchronous(options), name="bank", transactions=manager)
            inside, go = asyncio.Event(), asyncio.Event()

            async def holder() -> None:
                async with aborting(manager), bank.connect() as connection:
                    await connection.cursor().execute("UPDATE accounts SET balance = 1 WHERE id=1")
                    await connection.commit()
                    inside.set()
                    await go.wait()

            async with asyncio.TaskGroup() as group:
                held = group.create_task(holder())
                await inside.wait()
                async with manager.transaction(), bank.connect() as connection:
                    await connection.cursor().execute("UPDATE accounts SET balance = 5 WHERE id=1")
                    with pytest.raises(LockConflictError):
                        await connection.commit()
                    go.set()
                    await held

    asyncio.run(scenario())
    assert _rows(options, "SELECT balance FROM accounts WHERE id = 1") == [(100,)]


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("INSERT INTO plain VALUES (1)", "MyISAM"),
        ("UPDATE accounts SET ID = 3 WHERE id = 1", "primary key"),
        ("REPLACE INTO accounts (id) VALUES (1)", "REPLACE"),
        ("INSERT INTO things (id, name) VALUES (NULL, 'x') RETURNING name", "does not return"),
    ],
)
def test_what_cannot_be_undone_is_refused(
    options: dict[str, Any], statement: str, reason: str
) -> None:
    with Transactions(MemoryLog()) as manager:
        bank = automatic(_blocking(options), name="bank", transactions=manager)
        with manager.transaction(), bank.connect_sync() as connection:
            cursor = connection.cursor()
            with pytest.raises(UnsupportedStatementError, match=reason):
                cursor.execute(statement)
