"""The bank as plain programs, without Bedstone: its own contract, on a real PostgreSQL."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest

from bedstone.model.manifest import load_manifest

EXAMPLES = Path(__file__).parents[3] / "examples"
BANK = EXAMPLES / "bank"


class _NameProxy(ThreadingHTTPServer):
    """A forward proxy for `HTTP_PROXY` that knows services by name, as a mesh does."""

    daemon_threads = True
    names: dict[str, int]


class _Forward(BaseHTTPRequestHandler):
    server: _NameProxy

    def _forward(self) -> None:
        url = urlsplit(self.path)
        port = self.server.names.get(url.hostname or "")
        length = int(self.headers.get("content-length", 0))
        body = self.rfile.read(length)
        if port is None:
            self.send_error(503)
            return
        upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        target = f"{url.path}?{url.query}" if url.query else url.path
        headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
        try:
            upstream.request(self.command, target, body, headers)
            answer = upstream.getresponse()
            data = answer.read()
        except OSError:
            self.send_error(503)
            return
        finally:
            upstream.close()
        self.send_response(answer.status)
        self.send_header("content-type", answer.headers["content-type"])
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = _forward  # noqa: N815  # names that http.server calls

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def _running(arguments: list[str], port: int, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=BANK, env={**os.environ, "PORT": str(port), **env}
    )
    try:
        for _ in range(300):
            try:
                if httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).is_success:
                    break
            except httpx.TransportError:
                assert process.poll() is None, f"{arguments} ended with {process.returncode}"
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait(15)


@dataclass
class Bank:
    client: httpx.Client
    database: str
    names: dict[str, int]

    def account(self, balance: int, owner: str = "ann", kind: str = "current") -> str:
        body = {"owner": owner, "balance": balance, "kind": kind}
        answer = self.client.post("/accounts", json=body)
        assert answer.status_code == 201, answer.text
        identifier: str = answer.json()["id"]
        return identifier

    def balance(self, identifier: str) -> int:
        cents: int = self.client.get(f"/accounts/{identifier}").json()["balance"]
        return cents

    def transfer(self, **body: Any) -> httpx.Response:
        return self.client.post("/transfers", json={k.strip("_"): v for k, v in body.items()})


def _savings(ledger: str) -> str:
    return f"{ledger}_savings"


def _migrate(url: str) -> str:
    return subprocess.run(
        [sys.executable, "migrate.py"],
        cwd=BANK,
        env={**os.environ, "LEDGER_URL": url, "SAVINGS_URL": _savings(url)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.fixture(scope="module")
def bank(postgres_url: str) -> Iterator[Bank]:
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE bank_example")
        admin.execute("CREATE DATABASE bank_example_savings")
    url = postgres_url.rpartition("/")[0] + "/bank_example"
    names = sorted(path.name for path in (BANK / "migrations").glob("*.sql"))
    assert _migrate(url).splitlines() == [f"applied {name}" for name in names] * 2
    web, accounts, risk = _free_port(), _free_port(), _free_port()
    with ExitStack() as stack:
        proxy = stack.enter_context(_NameProxy(("127.0.0.1", 0), _Forward))
        proxy.names = {"accounts": accounts, "risk": risk}
        threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
        stack.callback(proxy.shutdown)
        uvicorn = ["-m", "uvicorn", "--log-level", "warning", "--port"]
        stack.enter_context(_running(["risk.py"], risk))
        stack.enter_context(
            _running(
                [*uvicorn, str(accounts), "accounts:app"],
                accounts,
                LEDGER_URL=url,
                SAVINGS_URL=_savings(url),
                BEDSTONE_TRANSACTIONS_URL=url,
            )
        )
        stack.enter_context(
            _running(
                [*uvicorn, str(web), "web:app"],
                web,
                HTTP_PROXY=f"http://127.0.0.1:{proxy.server_port}",
                NO_PROXY="localhost",
            )
        )
        client = httpx.Client(base_url=f"http://127.0.0.1:{web}", trust_env=False, timeout=20)
        yield Bank(stack.enter_context(client), url, proxy.names)


def _is_problem(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    detail: str = body["detail"]
    return detail


def test_migrations_apply_once(bank: Bank) -> None:
    assert _migrate(bank.database) == ""


def test_too_little_money_moves_nothing(bank: Bank) -> None:
    ann, bob = bank.account(100), bank.account(5)
    assert "less than 101" in _is_problem(bank.transfer(from_=ann, to=bob, amount=101), 409)
    assert (bank.balance(ann), bank.balance(bob)) == (100, 5)


def test_an_unknown_account_is_not_found(bank: Bank) -> None:
    ann = bank.account(100)
    assert "nobody" in _is_problem(bank.transfer(from_=ann, to="nobody", amount=1), 404)
    _is_problem(bank.client.get("/accounts/nobody"), 404)
    _is_problem(bank.client.get("/transfers/never"), 404)


@pytest.mark.parametrize("amount", [0, -5, 1.5, "7", True, None, 10**16])
def test_only_whole_positive_cents_are_money(bank: Bank, amount: object) -> None:
    _is_problem(bank.transfer(from_="a", to="b", amount=amount), 422)


@pytest.mark.parametrize("identifier", ["..", ".", "", "a/b", "a b", "x" * 65])
def test_an_id_cannot_name_another_path(bank: Bank, identifier: str) -> None:
    _is_problem(bank.transfer(id=identifier, from_="a", to="b", amount=1), 422)


def test_money_cannot_go_to_the_same_account(bank: Bank) -> None:
    ann = bank.account(100)
    _is_problem(bank.transfer(from_=ann, to=ann, amount=1), 422)


def test_risk_refuses_a_large_transfer(bank: Bank) -> None:
    ann, bob = bank.account(10**9), bank.account(0)
    assert "limit" in _is_problem(bank.transfer(from_=ann, to=bob, amount=1_000_001), 403)
    assert bank.balance(bob) == 0


def test_without_risk_nothing_moves(bank: Bank) -> None:
    ann, bob = bank.account(100), bank.account(0)
    port = bank.names.pop("risk")
    try:
        _is_problem(bank.transfer(from_=ann, to=bob, amount=1), 503)
    finally:
        bank.names["risk"] = port
    assert bank.balance(bob) == 0


def test_a_repeated_transfer_moves_money_once(bank: Bank) -> None:
    ann, bob = bank.account(100), bank.account(0)
    first = bank.transfer(id=f"rent-{ann}", from_=ann, to=bob, amount=40)
    again = bank.transfer(id=f"rent-{ann}", from_=ann, to=bob, amount=40)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json() == bank.client.get(f"/transfers/rent-{ann}").json()
    assert bank.balance(bob) == 40
    _is_problem(bank.transfer(id=f"rent-{ann}", from_=ann, to=bob, amount=41), 409)


def test_transfers_at_once_neither_deadlock_nor_lose_a_cent(bank: Bank) -> None:
    ann, bob = bank.account(1000), bank.account(1000)
    pairs = [(ann, bob), (bob, ann)] * 20

    def move(number: int) -> int:
        source, target = pairs[number]
        return bank.transfer(
            id=f"{ann}.{number // 2 * 2}" if number % 2 else None,
            from_=source,
            to=target,
            amount=number + 1,
        ).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(move, range(len(pairs))))
    assert set(statuses) == {201}
    assert bank.balance(ann) + bank.balance(bob) == 2000
    assert bank.balance(bob) == 1000 + sum(n + 1 if n % 2 == 0 else -(n + 1) for n in range(40))


def test_money_moves_between_two_databases_whole_or_not_at_all(bank: Bank) -> None:
    ann, saved = bank.account(100), bank.account(7, kind="savings")
    assert saved.startswith("savings-")
    body = {"id": f"save-{ann}", "from_": ann, "to": saved, "amount": 60}
    assert [bank.transfer(**body).status_code for _ in range(2)] == [201, 200]
    assert (bank.balance(ann), bank.balance(saved)) == (40, 67)
    assert bank.transfer(from_=saved, to=ann, amount=68).status_code == 409
    assert bank.transfer(from_=saved, to="nobody", amount=1).status_code == 404
    assert bank.transfer(from_=saved, to=ann, amount=67).status_code == 201
    assert (bank.balance(ann), bank.balance(saved)) == (107, 0)
    taken = bank.transfer(id=f"save-{ann}", from_=saved, to=ann, amount=60)
    assert taken.status_code == 409, "an id is one transfer, wherever the giver's account is"
    for url in (bank.database, _savings(bank.database)):
        with psycopg.connect(url) as connection:
            held = connection.execute("SELECT sum(held), count(*) FROM accounts").fetchone()
            open_ = connection.execute("SELECT count(*) FROM transfers WHERE NOT done").fetchone()
        assert held is not None
        assert held[0] == 0
        assert open_ == (0,)


def test_broken_database_connections_are_replaced_unseen(bank: Bank) -> None:
    """What a restart of PostgreSQL does to every connection."""
    ann, bob = bank.account(100), bank.account(0)
    with psycopg.connect(bank.database, autocommit=True) as admin:
        ended = admin.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchone()
    assert ended is not None
    assert ended[0] >= 1
    assert bank.transfer(from_=ann, to=bob, amount=1).status_code == 201
    assert bank.balance(bob) == 1


def test_the_first_page_says_what_to_try(bank: Bank) -> None:
    page = bank.client.get("/", headers={"host": "bank.example.org:9000"})
    assert "curl bank.example.org:9000/accounts" in page.text, "what to try works as it stands"
    assert page.headers["content-type"].startswith("text/plain")
    assert "/transfers" in page.text


def test_risk_keeps_connections_and_names_what_is_wrong(bank: Bank) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", bank.names["risk"], timeout=5)
    for path, status in (("/assess?amount=x", 422), ("/nothing", 404), ("/assess?amount=1", 200)):
        connection.request("GET", path)
        answer = connection.getresponse()
        body = json.loads(answer.read())
        assert answer.status == status
        assert not answer.will_close
    assert body["allowed"] is True
    connection.close()


@pytest.mark.parametrize("example", ["bank", "kinto"])
def test_the_manifest_is_valid(example: str) -> None:
    manifest = load_manifest(EXAMPLES / example / "bedstone.yaml")
    assert manifest.spec.app == example
    assert manifest.spec.gateway is not None
