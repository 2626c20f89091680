"""The log's tables: made once, by whoever comes first; read by index; refused when not ours."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from bedstone.errors import DeniedError, InvalidError, UnavailableError
from bedstone.transactions import log_postgres_sql, log_sqlite
from bedstone.transactions.log_base import BatchedLog
from bedstone.transactions.log_postgres import PostgresLog
from bedstone.transactions.log_postgres_session import Query
from bedstone.transactions.log_sqlite import SqliteLog
from bedstone.transactions.logs import LOGS, LogDriver, open_log
from bedstone.transactions.model import Branch, Mode, Transaction


async def enter(url: str) -> float:
    async with open_log(url) as log:
        return await log.now()


async def begin(url: str, xid: str) -> None:
    async with open_log(url) as log:
        branches = (Branch(0, Mode.TCC, "local:a", locks=(f"r/{xid}",)),)
        deadline = await log.now() + 60
        await log.begin(Transaction(xid, "n", deadline, 0.0, "one", branches=branches))


def schema_url(postgres_url: str) -> tuple[str, str]:
    schema = f"t{uuid.uuid4().hex[:12]}"
    return f"{postgres_url}?schema={schema}", schema


def fill(url: str, schema: str, count: int) -> None:
    """Unfinished transactions of two owners, half of them due, without telling the planner."""
    statement = sql.SQL("""
        INSERT INTO {}.transactions SELECT 'x' || n, 'n', 'committing', 0, n, NULL,
            CASE n % 2 WHEN 0 THEN 'one' ELSE 'two' END, 1, n, '[]', 0, false
        FROM generate_series(1, {}) AS n
    """).format(sql.Identifier(schema), count)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


def test_a_driver_is_found_by_its_scheme(tmp_path: Path) -> None:
    drivers: list[LogDriver] = [SqliteLog(tmp_path / "log.db"), PostgresLog("postgresql://h/d")]
    assert all(isinstance(it, BatchedLog) for it in drivers)
    assert LOGS.names() == ["postgres", "postgresql", "sqlite"]
    assert isinstance(open_log(f"sqlite://{tmp_path}/log.db"), SqliteLog)
    for scheme in ("postgres", "postgresql"):
        assert isinstance(open_log(f"{scheme}://u:p@h/d?schema=s"), PostgresLog)


@pytest.mark.parametrize(
    "url",
    [
        "mysql://host/db",
        "log.db",
        "sqlite://relative",
        "sqlite:///",
        "sqlite:///a?b=1",
        "sqlite:///a%00b",
        "postgresql://u:hunter2@[::1/db",
        "postgresql://u:hunter2@h/db?nonsense=1",
        "postgresql://u:hunter2@h/db?schema=Bad-Name",
        "postgresql://u:hunter2@h/db?schema=",
    ],
)
def test_wrong_urls_are_refused_without_secrets(url: str) -> None:
    with pytest.raises(InvalidError) as caught:
        open_log(url)
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    asyncio.run(begin(f"sqlite://{tmp_path}/log.db", "a"))
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with closing(sqlite3.connect(tmp_path / "log.db")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_sqlite_writer_flushes_every_commit(tmp_path: Path) -> None:
    async def run() -> object:
        async with SqliteLog(tmp_path / "log.db") as log:
            return await log._writer.call(
                lambda database: database.execute("PRAGMA synchronous").fetchone()
            )

    assert asyncio.run(run()) == (2,)  # FULL


def test_other_files_are_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.db")) as database:
        database.execute("CREATE TABLE t (x)")
    (tmp_path / "text.db").write_text("no database at all, but long enough to be looked at" * 30)
    asyncio.run(enter(f"sqlite://{tmp_path}/newer.db"))
    with closing(sqlite3.connect(tmp_path / "newer.db")) as database:
        database.execute("PRAGMA user_version = 99")
    for name, message in (
        ("other.db", "another program"),
        ("text.db", "no database"),
        ("newer.db", "schema 99"),
        ("absent/log.db", "does not exist"),
    ):
        with pytest.raises(InvalidError, match=message):
            asyncio.run(enter(f"sqlite://{tmp_path}/{name}"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnavailableError):
        asyncio.run(enter(f"sqlite://{tmp_path}/folder"))


def test_sqlite_reads_by_index(tmp_path: Path) -> None:
    asyncio.run(enter(f"sqlite://{tmp_path}/log.db"))
    find = log_sqlite._FIND
    with closing(sqlite3.connect(tmp_path / "log.db")) as database:
        for query, values, index in (
            (
                f"{find} WHERE ended_at IS NULL AND owner = ? AND next_attempt <= ? LIMIT ?",
                ("one", 1.0, 9),
                "transactions_due (owner=? AND next_attempt<?)",
            ),
            (
                f"{find} WHERE ended_at IS NULL AND owner = ? ORDER BY created LIMIT ?",
                ("one", 9),
                "transactions_age (owner=?)",
            ),
            (log_sqlite._ORPHANED, ("one", 1.0), "INDEX transactions_age (owner>?)"),
            (
                f"{find} WHERE +xid > ? AND state IN (?) AND ended_at IS NULL ORDER BY +xid",
                ("", "active"),
                "transactions_",
            ),
            (f"{find} WHERE xid > ? AND stuck ORDER BY xid", ("",), "transactions_stuck"),
            (f"{find} WHERE ended_at < ? ORDER BY ended_at, xid", (1.0,), "transactions_ended"),
        ):
            plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {query}", values)]
            assert any(index in line for line in plan), plan
            assert not any(line == "SCAN transactions" for line in plan), plan


def test_postgres_reads_by_index(postgres_url: str) -> None:
    """Though the planner knows nothing of the many rows that came since it last looked."""
    url, schema = schema_url(postgres_url)
    asyncio.run(enter(url))
    fill(postgres_url, schema, 20_000)

    async def run() -> None:
        async with PostgresLog(url) as log:
            connection = await log._reader.connection()

            async def plan(query: Query, values: Sequence[object] | Mapping[str, object]) -> str:
                explain = sql.SQL("EXPLAIN (ANALYZE, TIMING OFF) ") + query
                cursor = await connection.execute(explain, values)
                return "\n".join(line for (line,) in await cursor.fetchall())

            owned = await plan(log_postgres_sql.OWNED, ("one", 100))
            assert "transactions_due" in owned
            (bounds,) = (line for line in owned.splitlines() if "Index Cond" in line)
            assert "next_attempt <=" in bounds  # what is not due is not even looked at
            found = [it.xid for it in await log.owned("one", 3)]
            assert found == ["x2", "x4", "x6"]
            orphaned = await plan(log_postgres_sql.ORPHANED, ("three",))
            assert "Index Only Scan" in orphaned
            assert "Seq Scan on transactions" not in orphaned
            taken = await plan(log_postgres_sql.TAKE, (["one", "two"], 10, 10))
            assert "transactions_age" in taken
            assert "transactions_pkey" in taken
            opened = await plan(log_postgres_sql.LIST_OPEN, ("", ["active"], 10))
            assert "transactions_pkey" not in opened
            stuck = await plan(log_postgres_sql.LIST_STUCK, ("", ["active"], 10))
            assert "transactions_stuck" in stuck
            for text in (owned, orphaned, taken):
                rows = [int(it.split("rows=")[2].split()[0].split(".")[0]) for it in _scans(text)]
                assert max(rows) <= 101, text

    asyncio.run(run())


def _scans(plan: str) -> list[str]:
    return [line for line in plan.splitlines() if "transactions" in line and "rows=" in line]


def test_a_claim_of_many_is_a_few_round_trips(postgres_url: str) -> None:
    """Two orphaned owners' transactions, the oldest of both first, in a few round trips."""
    url, schema = schema_url(postgres_url)
    asyncio.run(enter(url))
    fill(postgres_url, schema, 2_000)

    async def run() -> None:
        async with PostgresLog(url) as log:
            taken = await log.claim("three", 60.0, 500)
            assert [it.xid for it in taken] == [f"x{n}" for n in range(1, 501)]
            assert {it.owner for it in taken} == {"three"}
            assert log.statistics.round_trips == 3
            rest = await log.claim("three", 60.0, 5_000)
            assert len(rest) == 1_500
            assert list(await log.claim("three", 60.0, 5_000)) == []

    asyncio.run(run())


def test_postgres_commits_are_flushed_whatever_the_default(postgres_url: str) -> None:
    url, _ = schema_url(postgres_url)

    async def run(level: str) -> str:
        async with PostgresLog(f"{url}&options=-csynchronous_commit%3D{level}") as log:
            connection = await log._writer.connection()
            (row,) = await (await connection.execute("SHOW synchronous_commit")).fetchall()
            return str(row[0])

    assert asyncio.run(run("off")) == "on"
    assert asyncio.run(run("local")) == "on"
    assert asyncio.run(run("remote_apply")) == "remote_apply"


def test_coordinators_that_start_together_make_the_tables_once(postgres_url: str) -> None:
    url, _ = schema_url(postgres_url)

    async def run() -> list[str]:
        await asyncio.gather(*(begin(url, name) for name in "abcdef"))
        async with open_log(url) as log:
            return [it.xid for it in await log.list()]

    assert asyncio.run(run()) == list("abcdef")


def test_a_role_that_may_not_create_uses_what_is_there(postgres_url: str) -> None:
    url, schema = schema_url(postgres_url)
    parts = urlsplit(postgres_url)
    poor = f"postgresql://{schema}:x@{parts.hostname}:{parts.port}/postgres?schema={schema}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        role = sql.Identifier(schema)
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x'").format(role))
        with pytest.raises(DeniedError) as caught:
            asyncio.run(enter(poor))
        assert "grant" in (caught.value.hint or "")
        asyncio.run(enter(url))
        with pytest.raises(DeniedError):
            asyncio.run(enter(poor))
        for grant in (
            "GRANT USAGE ON SCHEMA {0} TO {0}",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {0} TO {0}",
        ):
            connection.execute(sql.SQL(grant).format(role))
    asyncio.run(begin(poor, "a"))


def test_newer_tables_are_refused(postgres_url: str) -> None:
    url, schema = schema_url(postgres_url)
    asyncio.run(enter(url))
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        newer = sql.SQL("UPDATE {}.transaction_log SET version = 99")
        connection.execute(newer.format(sql.Identifier(schema)))
    with pytest.raises(InvalidError, match="version 99"):
        asyncio.run(enter(url))


def test_the_logs_tables_live_beside_the_stores(postgres_url: str) -> None:
    """Both may use the schema `bedstone`."""
    from bedstone.store.postgres import PostgresStore

    url, schema = schema_url(postgres_url)

    async def run() -> None:
        async with PostgresStore(postgres_url, schema=schema):
            await begin(url, "a")

    asyncio.run(run())
    with psycopg.connect(postgres_url) as connection:
        found = connection.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname = %s", (schema,)
        ).fetchone()
    assert found is not None
    assert found[0] > 5


def test_a_database_that_is_away_is_told_without_secrets() -> None:
    async def run() -> None:
        async with PostgresLog("postgresql://u:hunter2@127.0.0.1:1/db", patience=0.0):
            pass

    with pytest.raises(UnavailableError) as caught:
        asyncio.run(run())
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"


def test_a_log_is_open_inside_its_context_only(tmp_path: Path) -> None:
    async def run() -> None:
        log = open_log(f"sqlite://{tmp_path}/log.db")
        for attempt in (log.now(), log.get("x"), log.claim("one", 1.0, 1), log.locked(["x"])):
            with pytest.raises(UnavailableError, match="closed"):
                await attempt
        async with log:
            with pytest.raises(InvalidError, match="open already"):
                await log.__aenter__()
        async with log:  # and again
            assert list(await log.list()) == []

    asyncio.run(run())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere: run as another user")
def test_a_directory_without_rights_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UnavailableError) as caught:
        asyncio.run(enter(f"sqlite://{tmp_path}/log.db"))
    assert "permissions" in (caught.value.hint or "")
