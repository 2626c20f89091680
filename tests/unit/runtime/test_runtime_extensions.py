"""What else serves an application: only what it uses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
{first}
from bedstone.runtime.extensions import extended
async def app(scope, receive, send): ...
print(type(extended(app)).__name__, "bedstone.transactions.web" in sys.modules)
"""


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ("", "function False"),
        ("import bedstone.transactions", "function False"),
        ("from bedstone.transactions import transaction", "TransactionsMiddleware True"),
        ("import os; os.environ['TRANSACTIONS_URL'] = 'x'", "TransactionsMiddleware True"),
        (
            "import os; os.environ['BEDSTONE_TRANSACTIONS_URL'] = 'x'",
            "TransactionsMiddleware True",
        ),
    ],
)
def test_only_what_an_application_uses_is_around_it(first: str, said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(first=first)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PATH": ""},
    )
    assert done.stdout.strip() == said
