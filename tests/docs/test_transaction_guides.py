"""The guides to transactions, done as they say: every program written and run, with its output."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bedstone.engines.nats import NatsEngine
from bedstone.testing.domain import free_port
from bedstone.testing.shown import missing

GUIDES = ("transactions", "transactions-saga", "transactions-messages")
pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def environment(postgres_url: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """What the guides say that a program has: two databases, a log."""
    names = ("ledger", "savings", "log")
    root = postgres_url.rpartition("/")[0]
    with psycopg.connect(postgres_url, autocommit=True) as server:
        for name in names:
            server.execute(f"CREATE DATABASE shown_{name}")
    try:
        yield {
            **{k: v for k, v in os.environ.items() if not k.startswith(("BEDSTONE_", "PYTEST_"))},
            "LEDGER_URL": f"{root}/shown_ledger",
            "SAVINGS_URL": f"{root}/shown_savings",
            "BEDSTONE_TRANSACTIONS_URL": f"{root}/shown_log",
            "PYTHONWARNINGS": "error",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as server:
            for name in names:
                server.execute(f"DROP DATABASE shown_{name} WITH (FORCE)")


@pytest.fixture
def broker_url(tmp_path: Path) -> Iterator[str]:
    """A NATS server."""
    folder = tmp_path / "broker"
    folder.mkdir()
    engine = NatsEngine(folder / "data", free_port(), "shop", "word", folder / "log")
    with engine.log.open("ab") as log:
        server = subprocess.Popen(engine.prepare().argv, stdout=log, stderr=log)
    try:
        asyncio.run(engine.wait_ready())
        yield engine.url
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.parametrize("guide", GUIDES)
def test_its_programs_print_what_it_shows(
    guide: str,
    environment: dict[str, str],
    tmp_path: Path,
    blocks: Callable[[str], list[Any]],
    request: pytest.FixtureRequest,
) -> None:
    if guide == "transactions-messages":
        environment["BEDSTONE_BROKER_URL"] = request.getfixturevalue("broker_url")
    run = 0
    for block in blocks(f"docs/how-to/{guide}.md"):
        match block.what, block.how:
            case "file", name:
                (tmp_path / name).write_text(block.text)
            case "run", "mariadb" if not _has_mariadb(request, environment):
                continue
            case "run", how:
                assert how in {"", "mariadb"}
                for command, shown in block.commands():
                    follow(block.name, command, shown, tmp_path, environment)
                    run += 1
            case _:
                continue  # `test_documents` looks at it
    assert run, "a guide shows at least one run"


def follow(
    name: str, command: str, shown: list[str], directory: Path, environment: dict[str, str]
) -> None:
    """Run one command; it succeeds, prints what is shown, and complains of nothing."""
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
    assert done.stderr == "", f"{name}: {command}"
    line = missing(shown, done.stdout)
    assert line is None, f"{name}: expected {line!r} in\n{done.stdout}"


def _has_mariadb(request: pytest.FixtureRequest, environment: dict[str, str]) -> bool:
    try:
        environment["STOCK_URL"] = request.getfixturevalue("mariadb_url")
    except pytest.skip.Exception:
        return False
    return True
