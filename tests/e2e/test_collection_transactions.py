"""Transactions counted are transactions in the log, also when those who run them are killed."""

import json
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from bedstone.testing.counted_load import Collected, quiet

pytestmark = pytest.mark.timeout(240)


def logged(domain: Any) -> dict[str, str]:
    """Every transaction that the log knows, with its state."""
    listed = json.loads(domain.ok("tx", "ls", "--limit", "10000", "-o", "json"))
    return {item["xid"]: item["state"] for item in listed["items"]}


def test_every_transaction_of_the_log_is_counted_once(make_domain: Callable[..., Any]) -> None:
    domain = make_domain("examples/bank")
    domain.up()

    def opened(kind: str) -> str:
        body = {"owner": "ann", "balance": 1_000_000, "kind": kind}
        return str(http.post("/accounts", json=body).json()["id"])

    def transfer(number: int) -> None:
        # a third of them fail: there is not so much money
        amount = 10**12 if number % 3 == 0 else 1
        body = {"id": uuid.uuid4().hex, "from": ids[0], "to": ids[1], "amount": amount}
        try:
            httpx.post(f"{domain.url}/transfers", json=body, timeout=30, trust_env=False)
        except httpx.HTTPError:
            return  # the log knows what became of it

    with httpx.Client(base_url=domain.url, timeout=20, trust_env=False) as http:
        ids = [opened("current"), opened("savings")]
        known = logged(domain)
        before = quiet(domain.state)
        with ThreadPoolExecutor(4) as pool:
            work = [pool.submit(transfer, number) for number in range(90)]
            domain.wait(lambda: sum(w.done() for w in work) > 20, 60)
            domain.kill("instance/bank/default/accounts")
            domain.wait(lambda: sum(w.done() for w in work) > 50, 60)
            domain.kill("node")
            for one in work:
                one.result()
        ended = {"committed", "aborted"}
        domain.wait(lambda: set(logged(domain).values()) <= ended, 60, "transactions still open")
        after = quiet(domain.state)
        states = Counter(state for xid, state in logged(domain).items() if xid not in known)
    domain.down()
    with Collected(domain.state) as collected:
        events = collected.counted("bedstone_transactions_total", before, after, app="bank")
        assert states.total() > 50
        expected = {"committed": states["committed"], "cancelled": states["aborted"]}
        assert events == +Counter(begun=states.total(), **expected)
        assert collected.incomplete(before, after), "the agent was away"
