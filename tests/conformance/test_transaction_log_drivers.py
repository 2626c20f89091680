"""The logs on disk keep the promises of the transaction log."""

from __future__ import annotations

import uuid
from pathlib import Path

import psycopg
import pytest

from bedstone.testing.transaction_log_suite import CHECKS, SKIPPED, Subject, run_check
from bedstone.transactions.logs import open_log


def check_or_skip(check: str, subject: Subject) -> None:
    if run_check(check, subject) == SKIPPED:
        pytest.skip("does not apply to this driver")


@pytest.mark.parametrize("check", CHECKS)
def test_sqlite_log(check: str, tmp_path: Path) -> None:
    check_or_skip(check, Subject(lambda: open_log(f"sqlite://{tmp_path}/log.db")))


@pytest.mark.parametrize("check", CHECKS)
def test_postgres_log(check: str, postgres_url: str) -> None:
    schema = f"t{uuid.uuid4().hex[:12]}"
    url = f"{postgres_url}?application_name={schema}&schema={schema}"

    async def cut() -> None:
        async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = %s",
                (schema,),
            )

    check_or_skip(check, Subject(lambda: open_log(url), cut=cut))
