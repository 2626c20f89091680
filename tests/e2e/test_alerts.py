"""Alerts over a running app: what fails is pending, fires, is told once and is over.

The server is killed while the alert is pending, and while it fires: neither begins the time anew,
nor tells anybody twice.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from bedstone.client.api import Client
from bedstone.client.transport import Endpoint
from bedstone.errors import UnavailableError
from bedstone.processes.state import read_run
from bedstone.testing.domain import Domain

pytestmark = pytest.mark.timeout(150)

MANIFEST = """
app: echo
gateway: {port: PORT, routes: [{path: /, to: web}]}
workloads:
  web: {run: web:app, ready: {path: /healthz, interval: 500ms, failures: 1}}
alerts:
  down:
    when: max by (workload) (bedstone_instance_up{app="echo"}) == 0
    for: 5s
    severity: page
    summary: "{workload} is down"
  failing:
    objective: 99%
    of: gateway
    windows: [{long: 20s, short: 5s, factor: 10, severity: ticket}]
receivers:
  people: {webhook: "http://127.0.0.1:HOOK/hook", secret: "${env.HOOK_SECRET}", group_wait: 1s}
"""
WEB = """
from pathlib import Path

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    sick = scope["path"] == "/bad" or (
        scope["path"] == "/healthz" and Path(__file__).with_name("sick").exists()
    )
    await send({"type": "http.response.start", "status": 500 if sick else 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})
"""


class _Hook(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server: Any = self.server
        server.got.append((dict(self.headers), body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def receiver() -> Iterator[Any]:
    """A program that is told of alerts."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Hook)
    server.got = []
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def notifications(server: Any, rule: str) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """The headers and bodies of what the receiver was told of a rule, in order."""
    return [(h, body) for h, body in server.got if body["groupLabels"] == {"rule": rule}]


def told(server: Any, rule: str) -> list[str]:
    """Whether it fired or was over, each time."""
    return [body["status"] for _, body in notifications(server, rule)]


def listed(domain: Domain) -> dict[str, Any]:
    """What the API says of alerts; empty while the server is away."""
    run = read_run(domain.state)
    assert run is not None
    endpoint = Endpoint(socket=Path(run.run_dir, "api.sock"))

    async def ask() -> dict[str, Any]:
        async with Client(endpoint) as client:
            return (await client.alerts()).model_dump()

    try:
        return asyncio.run(ask())
    except UnavailableError:
        return {}


def alert(domain: Domain, rule: str) -> dict[str, Any]:
    """The first alert of a rule; empty while there is none."""
    items = listed(domain).get("items", ())
    return next((item for item in items if item["rule"] == rule), {})


def reaches(domain: Domain, rule: str, state: str) -> Callable[[], bool]:
    return lambda: alert(domain, rule).get("state") == state


def second(domain: Domain) -> int:
    """The last second that was evaluated; 0 while the server is away."""
    return int(listed(domain).get("second", 0))


def later(domain: Domain, seconds: int) -> None:
    """Wait until so many seconds more were evaluated."""
    first = second(domain)
    domain.wait(lambda: second(domain) >= first + seconds, what=f"{seconds} seconds more")


def happened(domain: Domain, since: float) -> list[str]:
    """The course of the rule since it is pending: it was before, while the first one started."""
    history = json.loads(domain.ok("alerts", "history", "--rule", "down", "-o", "json"))
    return [event["what"] for event in reversed(history["items"]) if event["at"] >= since]


def test_a_failure_is_told_once_and_its_end_once_whatever_is_killed(
    make_domain: Callable[..., Domain], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", "hush")
    with receiver() as hook:
        domain = make_domain(manifest="app: echo")
        text = MANIFEST.replace("PORT", str(domain.port)).replace("HOOK", str(hook.server_port), 1)
        (domain.directory / "bedstone.yaml").write_text(text)
        (domain.directory / "web.py").write_text(WEB)
        domain.up()
        domain.wait(reaches(domain, "down", "inactive"), what="the rule is evaluated")

        (domain.directory / "sick").touch()
        domain.wait(reaches(domain, "down", "pending"), what="it is pending")
        since = alert(domain, "down")["since"]
        killed = domain.kill("server")
        domain.wait(lambda: domain.pids().get("server", killed) != killed, what="a new server")
        domain.wait(reaches(domain, "down", "firing"), what="it fires")
        assert alert(domain, "down")["since"] == since
        domain.wait(lambda: told(hook, "down") == ["firing"], what="it is told")
        headers, body = notifications(hook, "down")[-1]
        assert headers["x-bedstone-signature"].startswith("t=")
        assert body["commonAnnotations"]["summary"] == "web is down"

        # Killed before it has written that, it would tell again: at least once.
        domain.wait(lambda: "notified" in happened(domain, since), what="that is written")
        killed = domain.kill("server")
        domain.wait(lambda: domain.pids().get("server", killed) != killed, what="a new server")
        domain.wait(reaches(domain, "down", "firing"), what="it still fires")
        later(domain, 5)
        assert told(hook, "down") == ["firing"]

        (domain.directory / "sick").unlink()
        domain.wait(reaches(domain, "down", "inactive"), what="it is over")
        domain.wait(lambda: told(hook, "down") == ["firing", "resolved"], what="that is told")

        course = ["pending", "firing", "notified", "resolved", "notified"]
        domain.wait(lambda: happened(domain, since) == course, what="that is written")

        # The budget of the gateway, and a silence.
        assert "does not hold" in domain.ok("alerts", "test", "failing")
        domain.ok("alerts", "silence", "rule=failing", "--for", "10m", "--why", "it is a test")
        deadline = time.monotonic() + 30
        while alert(domain, "failing").get("state") != "firing":
            assert time.monotonic() < deadline
            httpx.get(f"http://127.0.0.1:{domain.port}/bad", trust_env=False)
        assert alert(domain, "failing")["silence"]
        later(domain, 3)
        assert told(hook, "failing") == []
        assert "silence" in domain.ok("audit")
        shown = domain.ok("get", "app", "echo", "-o", "json")
        assert "hush" in shown, "an operator sees what is declared"
