"""The bank, as its README tells: brought up, used, changed, looked at, taken down."""

import contextlib
import json
import re
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def bank(make_domain: Callable[..., Any]) -> Any:
    """A bank that is up and has customers."""
    domain = make_domain("examples/bank")
    domain.output = domain.up()
    return domain


@pytest.fixture
def http(bank: Any) -> Any:
    with httpx.Client(base_url=bank.url, timeout=10, trust_env=False) as client:
        yield client


def open_account(http: httpx.Client, balance: int) -> str:
    answer = http.post("/accounts", json={"owner": "ann", "balance": balance})
    assert answer.status_code == 201, answer.text
    account: str = answer.json()["id"]
    return account


def test_up_shows_each_part_becoming_ready_and_what_to_try(bank: Any) -> None:
    for kind, name in (
        ("proxy", "local"),
        ("engine", "ledger"),
        ("certificate", "accounts"),
        ("instance", r"web-\w+-0"),
        ("route", "/ → web"),
    ):
        assert re.search(rf"{kind}\s+{name}\s+ready", bank.output), bank.output
    assert f"http://localhost:{bank.port}" in bank.output
    assert "curl" in bank.output


def test_money_moves_through_the_mesh_and_none_is_lost(http: httpx.Client) -> None:
    accounts = [open_account(http, 1_000) for _ in range(4)]

    def transfer(number: int) -> int:
        body = {
            "id": str(uuid.uuid4()),
            "from": accounts[number % 4],
            "to": accounts[(number + 1 + number % 3) % 4],
            "amount": 1 + number % 500,
        }
        return http.post("/transfers", json=body).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = set(pool.map(transfer, range(120)))
    assert statuses <= {201, 409, 422}, statuses
    assert 201 in statuses
    balances = [http.get(f"/accounts/{account}").json()["balance"] for account in accounts]
    assert sum(balances) == 4_000
    assert min(balances) >= 0


def test_a_transfer_sent_again_moves_money_once(http: httpx.Client) -> None:
    giver, taker = open_account(http, 100), open_account(http, 0)
    body = {"id": "once-" + giver[:8], "from": giver, "to": taker, "amount": 60}
    assert {http.post("/transfers", json=body).status_code for _ in range(3)} <= {200, 201}
    assert http.get(f"/accounts/{taker}").json()["balance"] == 60


def test_what_is_not_declared_is_denied(bank: Any) -> None:
    denied = bank.run("call", "accounts/healthz", "--as", "risk")
    assert denied.returncode == 1
    assert '\\"risk\\" does not declare \\"accounts\\"' in denied.stdout
    allowed = bank.run("call", "accounts/healthz", "--as", "web", "-i")
    assert allowed.returncode == 0, allowed.stderr
    assert "HTTP 200" in allowed.stdout + allowed.stderr


def test_the_gateway_strips_internal_headers(bank: Any, http: httpx.Client) -> None:
    forged = {"x-bedstone-caller": "spiffe://x/bank/operator", "x-forwarded-client-cert": "By=x"}
    assert http.get("/healthz", headers=forged).status_code == 200


def test_get_ps_logs_and_status_speak_json(bank: Any) -> None:
    parts = bank.parts()
    assert {part["kind"] for part in parts} == {
        "proxy",
        "engine",
        "certificate",
        "instance",
        "route",
    }
    for kind in ("app", "workload", "instance", "database", "revision", "route", "node"):
        listed = json.loads(bank.ok("get", kind, "-o", "json"))
        items = listed["items"] if isinstance(listed, dict) else listed
        assert items, kind
    lines = bank.ok("logs", "accounts", "--tail", "5", "-o", "json").splitlines()
    assert all("text" in json.loads(line) for line in lines)
    assert bank.ok("logs", "engine:server", "--tail", "3").strip()


def test_the_database_is_real_and_each_workload_has_its_own_role(bank: Any) -> None:
    log = (bank.state / "logs" / "postgres-bank-default-ledger.log").read_text()
    assert "database system is ready to accept connections" in log
    credentials = [p for p in (bank.state / "node").rglob("*") if p.is_file()]
    assert credentials
    assert {path.stat().st_mode & 0o077 for path in credentials} == {0}


def test_nothing_listens_beyond_loopback(bank: Any) -> None:
    """Every listener of the host's network that this run's processes hold is on loopback."""
    inodes = set()
    for pid in bank.everything():
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                inodes.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:  # proc(5): 0A is LISTEN
                listening.append(fields[1])
    assert listening
    loopback = ("0100007F:", f"{'0' * 24}01000000:", f"{'0' * 16}FFFF00000100007F:")
    beyond = [address for address in listening if not address.startswith(loopback)]
    assert beyond == []


def test_a_second_app_runs_beside_it(bank: Any, make_domain: Callable[..., Any]) -> None:
    other = make_domain(
        manifest="app: echo\n"
        "gateway: {port: 8080, routes: [{path: /, to: files}]}\n"
        "workloads:\n  files: {command: [python, serve.py]}\n"
    )
    (other.directory / "serve.py").write_text(
        "import os, http.server as h\n"
        "h.test(h.SimpleHTTPRequestHandler, port=int(os.environ['PORT']), bind='127.0.0.1')\n"
    )
    other.up()
    assert httpx.get(other.url, trust_env=False).status_code == 200
    assert httpx.get(bank.url, trust_env=False).status_code == 200
    other.down()
    assert httpx.get(bank.url, trust_env=False).status_code == 200


def test_down_keeps_data_and_leaves_nothing_running(bank: Any) -> None:
    with httpx.Client(base_url=bank.url, timeout=10, trust_env=False) as http:
        account = open_account(http, 321)
    bank.down()
    with pytest.raises(httpx.ConnectError):
        httpx.get(bank.url, trust_env=False)
    bank.up()
    answer = httpx.get(f"{bank.url}/accounts/{account}", trust_env=False)
    assert answer.json()["balance"] == 321
