"""Every driver of ours keeps the store's promises."""

from __future__ import annotations

import uuid
from pathlib import Path

import psycopg
import pytest

from bedstone.store.memory import MemoryStore
from bedstone.store.postgres import PostgresStore
from bedstone.store.sqlite import SqliteStore
from bedstone.testing.store import CHECKS, SKIPPED, Subject, run_check


def check_or_skip(check: str, subject: Subject) -> None:
    if run_check(check, subject) == SKIPPED:
        pytest.skip("does not apply to this driver")


@pytest.mark.parametrize("check", CHECKS)
def test_memory(check: str) -> None:
    subject = Subject(
        lambda clock, history: MemoryStore(clock=clock, history=history), durable=False
    )
    check_or_skip(check, subject)


@pytest.mark.parametrize("check", CHECKS)
def test_sqlite(check: str, tmp_path: Path) -> None:
    subject = Subject(
        lambda clock, history: SqliteStore(tmp_path / "store.db", clock=clock, history=history)
    )
    check_or_skip(check, subject)


@pytest.mark.parametrize("check", CHECKS)
def test_postgres(check: str, postgres_url: str) -> None:
    schema = f"s{uuid.uuid4().hex[:12]}"
    url = f"{postgres_url}?application_name={schema}"

    async def cut() -> None:
        async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = %s",
                (schema,),
            )

    subject = Subject(
        lambda clock, history: PostgresStore(url, schema=schema, clock=clock, history=history),
        shared=True,
        cut=cut,
    )
    check_or_skip(check, subject)
