"""What tests of AT share: tables with every kind of column, blocks that abort, and their end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg

from bedstone.transactions.manager import Transactions
from bedstone.transactions.model import State
from bedstone.transactions.scope import Scope

TABLES = """
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE accounts (id int PRIMARY KEY, balance numeric(12, 2), note text);
INSERT INTO accounts VALUES (1, 100, 'one'), (2, 100, NULL), (3, 100, 'it''s ? %s');
CREATE TABLE things (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text UNIQUE,
  half int, whole int GENERATED ALWAYS AS (half * 2) STORED);
CREATE TABLE parts (thing bigint REFERENCES things ON DELETE CASCADE, number smallint, what text,
  PRIMARY KEY (thing, number));
CREATE TABLE keyless (a int);
CREATE TABLE watched (id int PRIMARY KEY, a int);
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER watching BEFORE UPDATE ON watched FOR EACH ROW EXECUTE FUNCTION nothing();
CREATE FUNCTION sneak() RETURNS int LANGUAGE sql AS 'DELETE FROM keyless; SELECT 1';
CREATE VIEW seen AS SELECT * FROM accounts;
CREATE TABLE kinds (id uuid PRIMARY KEY, n numeric, d double precision, r real, t timestamptz,
  l timestamp(6), y date, h time, z timetz, i interval, b bytea, j json, jb jsonb, a int[],
  ta timestamptz[], bo boolean, bi bit(3), vb bit varying, m mood, p positive, ip inet,
  rg tstzrange, c char(5), pt point, mo money);
INSERT INTO kinds VALUES (gen_random_uuid(), 1.10, 0.1, 0.1, '2024-01-02 03:04:05.678901+02',
  '2024-01-02 03:04:05.678901', '0044-03-15 BC', '03:04:05.000001', '03:04:05+02',
  '1 mon 2 days 00:00:00.000001', '\\x00ff5c27', '{"a" : 1}', '{"b": [1, null]}', '{1,NULL,3}',
  '{"2024-01-02 03:04:05+02"}', true, B'101', B'1', 'sad', 7, '10.0.0.1/8',
  '[2024-01-01, infinity)', 'ab', '(1,2)', '12.34');
"""

STATEMENTS = [
    "UPDATE accounts SET balance = balance - 30, note = 'x' WHERE id = 1",
    "UPDATE accounts SET balance = balance * 2",
    "DELETE FROM accounts WHERE note IS NULL",
    "INSERT INTO accounts (id, balance) VALUES (2, 7), (9, 1.5)",
    "INSERT INTO things (name, half) VALUES ('a', 1), ('b', 2)",
    "INSERT INTO things (name, half) VALUES ('c', 3) RETURNING id, whole",
    "INSERT INTO parts VALUES (1, 1, 'p'), (1, 2, NULL)",
    "UPDATE things SET name = name || 'x', half = 5",
    "DELETE FROM parts WHERE number = 2",
    (
        "UPDATE kinds SET n = 2, d = 0.30000000000000004, r = 7, t = now(), l = now(), y = now(),"
        " h = '01:00', z = '01:00+00', i = '1 s', b = '', j = '[]', jb = '{}', a = '{}', ta = NULL,"
        " bo = false, bi = B'000', vb = B'', m = 'ok', p = 1, ip = '::1', rg = 'empty', c = 'z',"
        " pt = '(0,0)', mo = 0"
    ),
    "DELETE FROM kinds",
]


class _NeverError(Exception):
    """Aborts a block."""


@asynccontextmanager
async def aborting(manager: Transactions) -> AsyncIterator[Scope]:
    """A transaction that aborts at its end."""
    try:
        async with manager.transaction() as scope:
            yield scope
            raise _NeverError
    except _NeverError:
        return


@contextmanager
def aborting_sync(manager: Transactions) -> Iterator[Scope]:
    """Likewise, for blocking code."""
    try:
        with manager.transaction() as scope:
            yield scope
            raise _NeverError
    except _NeverError:
        return


async def ended(manager: Transactions, xid: str) -> State:
    """The state of a transaction, once it has ended."""
    for _ in range(1000):
        transaction = await manager.ask(lambda _, log: log.get(xid))
        if transaction.state.ended:
            return transaction.state
        await asyncio.sleep(0.01)
    raise AssertionError(f"{transaction} has not ended")


def run(url: str, text: str) -> None:
    """Run a statement that nothing records."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(text.encode())


def rows(url: str, text: str = "SELECT * FROM accounts ORDER BY id") -> list[Any]:
    """What a query gives."""
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(text.encode()).fetchall()


def everything(url: str) -> list[Any]:
    """All rows of all tables, as text."""
    names = ("accounts", "things", "parts", "keyless", "watched", "kinds")
    return [rows(url, f"SELECT t::text FROM {name} t ORDER BY 1") for name in names]  # noqa: S608
