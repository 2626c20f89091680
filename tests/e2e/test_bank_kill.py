"""The bank is killed in the middle of transfers, part by part: no cent is lost, none is made.

What a customer was told holds: a transfer that was answered with 201 is there, one that was refused
is not, and one without an answer is either whole or not there at all.
"""

from __future__ import annotations

import itertools
import json
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import httpx
import psycopg
import pytest

from bedstone.processes.state import run_directory

pytestmark = pytest.mark.timeout(300)
PEOPLE, BALANCE, TELLERS = 6, 10_000, 6
REFUSED = frozenset({403, 404, 409, 422})


@pytest.fixture(scope="module")
def bank(make_domain: Callable[..., Any]) -> Any:
    domain = make_domain("examples/bank")
    domain.up()
    return domain


@dataclass
class Tellers:
    """Customers who move money without pause, and note what they are told."""

    url: str
    accounts: list[str]
    answers: dict[str, int | None] = field(default_factory=dict)
    amounts: dict[str, tuple[str, str, int]] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        pairs = itertools.cycle(itertools.permutations(self.accounts, 2))
        turns = threading.Lock()
        for _ in range(TELLERS):
            thread = threading.Thread(target=self._work, args=(pairs, turns))
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def committed(self) -> int:
        return sum(answer == 201 for answer in list(self.answers.values()))

    def _work(self, pairs: Iterator[tuple[str, str]], turns: threading.Lock) -> None:
        while not self._stop.is_set():
            with turns:
                giver, taker = next(pairs)
            transfer, amount = str(uuid.uuid4()), 1 + hash((giver, taker)) % 300
            self.amounts[transfer] = (giver, taker, amount)
            body = {"id": transfer, "from": giver, "to": taker, "amount": amount}
            try:
                with httpx.Client(base_url=self.url, timeout=15, trust_env=False) as http:
                    self.answers[transfer] = http.post("/transfers", json=body).status_code
            except httpx.TransportError:
                self.answers[transfer] = None
            if self.answers[transfer] != 201:
                self._stop.wait(0.1)


def opened(bank: Any) -> list[str]:
    """Accounts in both databases."""
    found = []
    with httpx.Client(base_url=bank.url, timeout=10, trust_env=False) as http:
        for number in range(PEOPLE):
            kind = "savings" if number % 2 else "current"
            body = {"owner": "ann", "balance": BALANCE, "kind": kind}
            found.append(http.post("/accounts", json=body).json()["id"])
    return found


def databases(bank: Any) -> list[str]:
    """The URLs of both databases, for the superuser."""
    urls = []
    for name in ("ledger", "savings"):
        folder = bank.state / "node" / "databases"
        kept = json.loads((folder / f"bank.default.{name}.json").read_text())
        password, port = kept["passwords"]["accounts"], kept["port"]
        urls.append(f"postgresql://accounts:{password}@127.0.0.1:{port}/{name}")
    return urls


def counted(bank: Any) -> dict[str, int]:
    """What the monitoring has counted in the log, by event; what is open under `open`."""
    transport = httpx.HTTPTransport(uds=str(run_directory(bank.state) / "api.sock"))
    query = 'sum by (event) ({__name__=~"bedstone_transactions_(total|open)",app="bank"})'
    with httpx.Client(transport=transport, base_url="http://api", timeout=20) as client:
        answer = client.get("/prometheus/api/v1/query", params={"query": query})
    result = answer.json()["data"]["result"] if answer.status_code == 200 else []
    return {it["metric"].get("event", "open"): int(float(it["value"][1])) for it in result}


def logged(bank: Any) -> dict[str, int]:
    """What the log itself has, by what `counted` calls it."""
    items = json.loads(bank.ok("tx", "ls", "--limit", "10000", "-o", "json"))["items"]
    states = Counter(item["state"] for item in items)
    ended = {"committed": states.pop("committed", 0), "cancelled": states.pop("aborted", 0)}
    return {"begun": len(items), "open": sum(states.values()), **ended}


def unfinished(bank: Any) -> list[dict[str, Any]]:
    listed = bank.run("tx", "ls", "--limit", "10000", "-o", "json")
    if listed.returncode:
        return [{"xid": "the log is away", "state": listed.stderr}]
    items = json.loads(listed.stdout)["items"]
    return [item for item in items if item["state"] not in {"committed", "aborted"}]


def victims(bank: Any) -> Iterator[str]:
    """One of each: an initiator, then each database, the proxy, the node and the server."""
    yield next(name for name in bank.pids() if name.startswith("instance/bank/default/accounts"))
    yield "postgres-bank-default-savings"
    yield "postgres-bank-default-ledger"
    yield "envoy"
    yield next(name for name in bank.pids() if name.startswith("instance/bank/default/web"))
    yield next(name for name in bank.pids() if name.startswith("instance/bank/default/accounts"))
    yield "server"


def test_no_kill_loses_a_cent(bank: Any) -> None:
    accounts = opened(bank)
    with Tellers(bank.url, accounts) as tellers:
        for victim in victims(bank):
            before = tellers.committed()
            bank.wait(lambda b=before: tellers.committed() > b + 5, 60, f"money moves: {victim}")
            bank.kill(victim)
            after = tellers.committed()
            bank.wait(
                lambda a=after: tellers.committed() > a + 5, 60, f"money moves after {victim}"
            )
    bank.wait(lambda: not unfinished(bank), 90, f"all ended, not {unfinished(bank)}")

    transactions = logged(bank)
    assert transactions["begun"] >= tellers.committed()
    bank.wait(
        lambda: counted(bank) == transactions,
        20,
        f"the monitoring counts what the log has: {transactions}",
    )
    with httpx.Client(base_url=bank.url, timeout=20, trust_env=False) as http:
        balances = {a: http.get(f"/accounts/{a}").json()["balance"] for a in accounts}
        done = {
            transfer: http.get(f"/transfers/{transfer}").status_code == 200
            for transfer in tellers.amounts
        }
    assert sum(balances.values()) == PEOPLE * BALANCE
    assert min(balances.values()) >= 0
    told = {
        transfer: done[transfer] for transfer, answer in tellers.answers.items() if answer == 201
    }
    assert all(told.values()), "an acknowledged transfer is there"
    refused = [t for t, answer in tellers.answers.items() if answer in REFUSED and done[t]]
    assert refused == [], "a refused one is not"
    expected = dict.fromkeys(accounts, BALANCE)
    for transfer, (giver, taker, amount) in tellers.amounts.items():
        if done[transfer]:
            expected[giver] -= amount
            expected[taker] += amount
    assert balances == expected, "each is whole or not there"
    for url in databases(bank):
        with psycopg.connect(url) as connection:
            left = connection.execute(
                "SELECT (SELECT count(*) FROM accounts WHERE held <> 0),"
                " (SELECT count(*) FROM transfers WHERE NOT done)"
            ).fetchone()
        assert left == (0, 0), "nothing stays set aside"
