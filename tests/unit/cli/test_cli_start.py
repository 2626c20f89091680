"""What importing the command costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("grpc", "fastapi", "pydantic", "httpx", "psycopg", "rich", "yaml", "uvicorn", "watchfiles")


def loaded(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(' '.join(m for m in sys.modules if '.' not in m))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import bedstone.cli.main",
        "from bedstone.cli.main import run\nrun(['--help'])",
        "from bedstone.cli.main import run\nrun(['version'])",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert not loaded(code).intersection(HEAVY)


def test_every_command_is_imported_without_the_heavy_libraries() -> None:
    code = (
        "import click, importlib\nfrom bedstone.cli.main import cli, COMMANDS\n"
        "ctx = click.Context(cli)\n"
        "for name in COMMANDS: assert cli.get_command(ctx, name) is not None"
    )
    assert not loaded(code).intersection(HEAVY)


def test_asking_what_runs_loads_no_server() -> None:
    code = "from bedstone.cli.main import run\nrun(['ps'])"
    assert not loaded(code).intersection({"grpc", "fastapi", "psycopg", "uvicorn", "watchfiles"})
