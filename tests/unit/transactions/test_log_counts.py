"""The log's counts: what is a step, logs of version 1, and writers that are gone."""

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from bedstone.testing.transaction_log_subject import CONFIRMED, begun, branch, done
from bedstone.testing.transaction_log_whole import check_counts
from bedstone.transactions import log_postgres
from bedstone.transactions.log_counts import counts, steps
from bedstone.transactions.log_postgres import PostgresLog
from bedstone.transactions.logs import open_log
from bedstone.transactions.model import Log, State

PATHS = (
    (None, State.ACTIVE, State.COMMITTING, State.COMMITTED),
    (None, State.ACTIVE, State.ABORTING, State.ABORTED),
    (None, State.ACTIVE, State.COMMITTED),
    (None, State.ACTIVE, State.ABORTED),
)


@pytest.mark.parametrize("path", PATHS)
def test_every_way_to_an_end_counts_the_same(path: tuple[State | None, ...]) -> None:
    taken = [step for a, b in pairwise(path) if b for step in steps(a, b)]
    assert taken == list(steps(None, path[-1] or State.ACTIVE))
    assert steps(path[-1], path[-1] or State.ACTIVE) == ()


def test_what_is_open_follows_from_what_was_counted() -> None:
    found = counts("l", (10, 4, 5, 3, 2), 1)
    assert found.events == {"begun": 10, "committed": 3, "cancelled": 2}
    assert found.open == {State.ACTIVE: 1, State.COMMITTING: 1, State.ABORTING: 3}
    assert sum(found.open.values()) == 10 - 3 - 2


async def _some(log: Log) -> None:
    for n, state in enumerate((State.COMMITTING, State.ABORTING)):
        await begun(log, f"decided{n}", branch())
        await log.decide(f"decided{n}", state)
    await begun(log, "open")
    transaction = await begun(log, "ended", branch())
    await log.decide("ended", State.COMMITTING)
    await done(log, transaction, CONFIRMED, 1)
    await begun(log, "nothing")
    await log.decide("nothing", State.ABORTING)


async def _checked(url: str) -> None:
    async with open_log(url) as log:
        found = await log.list()
        assert len(found) == 5
        await check_counts(log, found)
        await begun(log, "later")
        await check_counts(log, await log.list())


def test_a_file_of_version_1_counts_from_what_it_knows(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/log.db"

    async def write() -> None:
        async with open_log(url) as log:
            await _some(log)

    asyncio.run(write())
    with closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as database:
        database.execute("DROP TABLE counts")
        database.execute("PRAGMA user_version = 1")
    asyncio.run(_checked(url))


def test_tables_of_version_1_count_from_what_they_know(postgres_url: str) -> None:
    """Several that start at once upgrade them once; who had rights has them on the new table."""
    schema = f"t{uuid.uuid4().hex[:12]}"
    url = f"{postgres_url}?schema={schema}"
    parts = urlsplit(postgres_url)
    poor = f"postgresql://{schema}:x@{parts.hostname}:{parts.port}/postgres?schema={schema}"
    name = sql.Identifier(schema)

    async def write() -> None:
        async with open_log(url) as log:
            await _some(log)

    async def together() -> None:
        async with open_log(url) as here, open_log(url) as there:
            assert await here.counts() == await there.counts()

    asyncio.run(write())
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        for statement in (
            "CREATE ROLE {0} LOGIN PASSWORD 'x'",
            "DROP TABLE {0}.transaction_counts",
            "ALTER TABLE {0}.transaction_log DROP COLUMN identity",
            "UPDATE {0}.transaction_log SET version = 1",
            "GRANT USAGE ON SCHEMA {0} TO {0}",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {0} TO {0}",
        ):
            connection.execute(sql.SQL(statement).format(name))
    asyncio.run(together())
    asyncio.run(_checked(poor))


async def _rows(url: str, schema: str) -> list[tuple[str, int]]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        cursor = await connection.execute(
            sql.SQL("SELECT writer, begun FROM {}.transaction_counts ORDER BY writer").format(
                sql.Identifier(schema)
            )
        )
        return [(str(writer), int(begun)) for writer, begun in await cursor.fetchall()]


def test_writers_that_are_gone_are_folded(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row for each that writes; one that left in order or was silent for long has none."""
    schema = f"t{uuid.uuid4().hex[:12]}"
    url = f"{postgres_url}?schema={schema}"

    async def run() -> None:
        async with PostgresLog(url) as leaves, PostgresLog(url) as dies, PostgresLog(url) as stays:
            for name, log in (("a", leaves), ("b", dies), ("c", stays)):
                await begun(log, name)
            before = await _rows(postgres_url, schema)
            assert [begun for _, begun in before] == [0, 1, 1, 1]
            await leaves.release("one")
            assert len(await _rows(postgres_url, schema)) == 3
            await stays.purge(0.0, 1)
            assert len(await _rows(postgres_url, schema)) == 3  # nobody was silent for long
            monkeypatch.setattr(log_postgres, "SILENCE", 0.0)
            await stays.purge(0.0, 1)
            assert await _rows(postgres_url, schema) == [("", 3)]
            await begun(dies, "d")  # it was alive after all
            assert [begun for _, begun in await _rows(postgres_url, schema)] == [3, 1]
            assert (await leaves.counts()).events["begun"] == 4

    asyncio.run(run())


def test_counts_add_no_round_trip_and_no_commit(postgres_url: str) -> None:
    async def run() -> None:
        url = f"{postgres_url}?schema=t{uuid.uuid4().hex[:12]}"
        async with PostgresLog(url) as log:
            await asyncio.gather(*(begun(log, f"t{n}") for n in range(5)))
            assert log.statistics.round_trips == 2 * log.statistics.batches
            assert log.statistics.commits == log.statistics.batches

    asyncio.run(run())
