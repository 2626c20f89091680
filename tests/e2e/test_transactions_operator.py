"""What the person on call sees and does: a stuck transaction, and one whose service is gone.

A small shop under Bedstone writes plain SQL in transactions; the operator has the command line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import psycopg
import pytest

pytestmark = pytest.mark.timeout(240)

MANIFEST = """
app: shop
gateway: {port: 8080, routes: [{path: /, to: web}]}
workloads:
  web:
    run: web:app
    uses: [ledger]
databases:
  ledger: {}
transactions: {database: ledger}
"""
WEB = """
import os
from pathlib import Path

import psycopg
from fastapi import FastAPI

from bedstone.transactions import Tcc, automatic, tcc, transaction

if Path("closed").exists():
    raise SystemExit("the shop is closed")

URL = os.environ["LEDGER_URL"]
app = FastAPI()
ledger = automatic(URL, name="ledger")


def plain(sql):
    with psycopg.connect(URL) as connection:
        connection.execute(sql)


class Hold(Tcc):
    async def try_(self, db, *, amount):
        await db.execute("UPDATE accounts SET balance = balance - %s WHERE id = 2", (amount,))

    async def confirm(self, db, *, amount):
        pass

    async def cancel(self, db, *, amount):
        await db.execute("UPDATE accounts SET balance = balance + %s WHERE id = 2", (amount,))


hold = tcc(Hold, URL)


@app.post("/open")
def opened():
    plain("CREATE TABLE accounts (id int PRIMARY KEY, balance int)")
    plain("INSERT INTO accounts VALUES (1, 100), (2, 100)")


@app.post("/spoil")
async def spoil():
    try:
        async with transaction("order"):
            async with ledger.connect() as db, db.transaction():
                await db.execute("UPDATE accounts SET balance = balance - 40 WHERE id = 1")
            plain("UPDATE accounts SET balance = 55 WHERE id = 1")  # behind Bedstone's back
            raise ValueError("the card was refused")
    except ValueError:
        return {"refused": True}


@app.post("/die")
async def die():
    async with transaction("order", timeout=2.0):
        await hold(amount=30)
        Path("closed").touch()
        os._exit(9)
"""


@pytest.fixture(scope="module")
def shop(make_domain: Callable[..., Any]) -> Any:
    domain = make_domain(manifest=MANIFEST)
    (domain.directory / "web.py").write_text(WEB)
    domain.up()
    assert httpx.post(f"{domain.url}/open", trust_env=False, timeout=30).status_code == 200
    return domain


def ledger(shop: Any) -> psycopg.Connection:
    kept = json.loads((shop.state / "node" / "databases" / "shop.default.ledger.json").read_text())
    url = f"postgresql://web:{kept['passwords']['web']}@127.0.0.1:{kept['port']}/ledger"
    return psycopg.connect(url, autocommit=True)


def balance(shop: Any, account: int) -> int:
    with ledger(shop) as connection:
        row = connection.execute("SELECT balance FROM accounts WHERE id = %s", (account,))
        (found,) = row.fetchone() or (None,)
    assert isinstance(found, int)
    return found


def listed(shop: Any, *options: str) -> list[dict[str, Any]]:
    answer = shop.run("tx", "ls", "-o", "json", *options)
    items: list[dict[str, Any]] = (
        json.loads(answer.stdout)["items"] if not answer.returncode else []
    )
    return items


def test_a_stuck_transaction_is_shown_repaired_by_its_own_commands_and_ends(shop: Any) -> None:
    answer = httpx.post(f"{shop.url}/spoil", trust_env=False, timeout=30)
    assert answer.json() == {"refused": True}
    shop.wait(lambda: bool(listed(shop, "--stuck")), 30, "it is stuck")
    (stuck,) = listed(shop, "--stuck")
    assert stuck["state"] == "aborting"
    shown = shop.ok("tx", "show", stuck["xid"])
    assert re.search(r"balance +100 +60 +55 +← neither", shown), shown
    statement = next(line for line in shown.splitlines() if line.strip().startswith("UPDATE"))
    with ledger(shop) as connection:
        held = connection.execute("SELECT count(*) FROM bedstone.transaction_locks").fetchone()
        assert held == (1,), "the row stays locked while it is stuck"
        assert connection.execute(statement.strip().encode()).rowcount == 1
    shop.ok("tx", "retry", stuck["xid"], "--why", "set back by hand")
    shop.wait(lambda: not listed(shop, "--state", "aborting"), 30, "it has ended")
    shown = shop.ok("tx", "show", stuck["xid"])
    assert ": aborted" in shown
    assert re.search(r"retried +by local:\w+, why set back by hand", shown), shown
    assert "retry" in shop.ok("audit")
    assert balance(shop, 1) == 100
    with ledger(shop) as connection:
        left = connection.execute(
            "SELECT (SELECT count(*) FROM bedstone.transaction_locks),"
            " (SELECT count(*) FROM bedstone_undo)"
        ).fetchone()
    assert left == (0, 0)


def test_a_person_may_say_that_it_is_set_right(shop: Any) -> None:
    httpx.post(f"{shop.url}/spoil", trust_env=False, timeout=30)
    shop.wait(lambda: bool(listed(shop, "--stuck")), 30, "it is stuck")
    (stuck,) = listed(shop, "--stuck")
    refused = shop.run("tx", "repair", stuck["xid"], "--branch", "9", "--why", "x")
    assert refused.returncode != 0
    assert "has no branch 9" in refused.stderr
    done = shop.ok("tx", "repair", stuck["xid"], "--branch", "1", "--why", "55 is right")
    assert "recorded as repaired" in done
    assert listed(shop, "--state", "aborting") == []
    assert balance(shop, 1) == 55, "nothing was run"
    again = shop.run("tx", "repair", stuck["xid"], "--branch", "1", "--why", "x")
    assert again.returncode != 0


def test_the_server_ends_what_a_service_left_when_it_is_back(shop: Any) -> None:
    """The service died before the decision and did not start again for longer than its lease."""
    answer = httpx.post(f"{shop.url}/die", trust_env=False, timeout=30)
    assert answer.status_code >= 500
    assert balance(shop, 2) == 70

    def owner() -> str:
        found = [item["owner"] for item in listed(shop, "--state", "aborting")]
        return found[0] if found else ""

    shop.wait(lambda: owner().startswith("*/server"), 60, "the server has taken over")
    (shop.directory / "closed").unlink()
    shop.wait(lambda: balance(shop, 2) == 100, 90, "the server asked the service to cancel")
    shop.wait(lambda: not listed(shop, "--state", "aborting"), 30, "it has ended")
