"""Certificates that live for seconds are renewed again and again, and no request notices."""

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.timeout(240)

APP = """
import asyncio, urllib.request

def ask():
    return urllib.request.urlopen("http://risk/", timeout=5).read()

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body = await asyncio.to_thread(ask) if NAME == "web" else b"risk"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""

MANIFEST = """
app: short
gateway: {port: 8080, routes: [{path: /, to: web}]}
workloads:
  web: {run: web:app, uses: [risk]}
  risk: {run: risk:app}
"""

LIFETIME = 4


@pytest.fixture(scope="module")
def short(make_domain: Callable[..., Any]) -> Any:
    """An app whose certificates live for a few seconds."""
    domain = make_domain(manifest=MANIFEST)
    for name in ("web", "risk"):
        (domain.directory / f"{name}.py").write_text(f"NAME = {name!r}\n{APP}")
    domain.up()
    path = domain.state / "server.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "certificate_seconds": LIFETIME}))
    killed = domain.kill("server")
    domain.wait(lambda: domain.pids().get("server", killed) != killed, what="it is back")
    domain.wait(lambda: domain.run("get", "node").returncode == 0, what="the server answers")
    # An agent that has lost its certificates asks for new ones; those are short-lived.
    for stored in (domain.state / "node" / "identities").iterdir():
        stored.unlink()
    os.kill(domain.pids()["node"], signal.SIGKILL)
    until(lambda: 0 < earliest_end(domain) - time.time() <= LIFETIME)
    return domain


def statuses(domain: Any) -> list[dict[str, Any]]:
    # Through the agent's own records, so that this test needs no server.
    records = (domain.state / "node" / "instances").glob("*.json")
    return [json.loads(record.read_text())["status"] for record in records]


def earliest_end(domain: Any) -> float:
    ends = [status.get("certificate_until") or 0.0 for status in statuses(domain)]
    return min(ends, default=0.0)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not seen in time"
        time.sleep(0.05)


def test_renewals_fail_no_request(short: Any, make_load: Callable[..., Any]) -> None:
    pids = {name: pid for name, pid in short.pids().items() if name.startswith("instance/")}
    first = earliest_end(short)
    send: Callable[[httpx.Client], int] = lambda client: client.get(short.url).status_code  # noqa: E731
    with make_load(send) as seen:
        until(lambda: earliest_end(short) > first + 3 * LIFETIME / 2, 6 * LIFETIME)
    assert seen.failures == []
    assert len(seen.answers) > 100
    after = {name: pid for name, pid in short.pids().items() if name.startswith("instance/")}
    assert after == pids, "no instance was restarted for it"
