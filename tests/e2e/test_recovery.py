"""Every process of a run is killed with SIGKILL under a steady load; what users see is stated."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from bedstone.processes.state import run_directory

pytestmark = pytest.mark.timeout(240)

SLOW = """
import asyncio, os

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    while (await receive()).get("more_body"):
        pass
    if scope["path"] == "/die":
        os._exit(9)
    if scope["path"] == "/slow":
        await asyncio.sleep(0.3)
    body = f"{os.getpid()} {VERSION}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""

MANIFEST = """
app: pair
gateway: {port: 8080, routes: [{path: /, to: web}]}
workloads:
  web:
    run: web:app
    replicas: 2
"""


@pytest.fixture(scope="module")
def bank(make_domain: Callable[..., Any]) -> Any:
    domain = make_domain("examples/bank")
    domain.up()
    return domain


@pytest.fixture(scope="module")
def pair(make_domain: Callable[..., Any]) -> Any:
    """Two replicas of a service that answers with its process id."""
    domain = make_domain(manifest=MANIFEST)
    (domain.directory / "web.py").write_text(f"VERSION = 1\n{SLOW}")
    domain.up()
    return domain


def instances(domain: Any) -> dict[str, int]:
    return {name: pid for name, pid in domain.pids().items() if name.startswith("instance/")}


def good(outcome: Any, after: int = 0) -> bool:
    """Whether thirty good answers came after that many answers."""
    return sum(isinstance(a, int) and a < 300 for _, a in outcome.answers[after:]) >= 30


def get(url: str) -> Callable[[httpx.Client], int]:
    return lambda client: client.get(url).status_code


def test_the_server_dies_and_no_request_fails(pair: Any, make_load: Callable[..., Any]) -> None:
    old = set(instances(pair))
    with make_load(get(pair.url)) as outcome:
        pair.wait(partial(good, outcome), what="the load runs")
        pair.kill("server")
        pair.wait(lambda: pair.run("get", "node").returncode == 0, what="the server answers")
        pair.ok("restart", "web")
        # How long it takes the benchmarks say.
        pair.wait(lambda: bool(set(instances(pair)) - old), 20, "changes flow again")
        pair.wait(partial(_ready, pair), what="the change is rolled out")
    assert outcome.failures == []


def test_the_node_agent_dies_and_instances_live_on(
    pair: Any, make_load: Callable[..., Any]
) -> None:
    before = instances(pair)
    with make_load(get(pair.url)) as outcome:
        pair.wait(partial(good, outcome), what="the load runs")
        agent = pair.kill("node")
        pair.wait(lambda: pair.pids().get("node", agent) != agent, what="agent restarted")
        time.sleep(2)  # for what it may do wrong when it takes up what runs
    assert outcome.failures == []
    assert instances(pair) == before, "adopted, not restarted"
    states = {p["name"]: p for p in pair.parts() if p["kind"] == "instance"}
    pair.wait(partial(_ready, pair), what="ready again")
    assert {state["restarts"] for state in states.values()} == {0}


def test_the_proxy_dies_and_is_back_configured(pair: Any, make_load: Callable[..., Any]) -> None:
    with make_load(get(pair.url)) as outcome:
        pair.wait(partial(good, outcome), what="the load runs")
        dead = pair.kill("envoy")
        pair.wait(lambda: pair.pids().get("envoy", dead) != dead, what="the proxy is back")
        pair.wait(partial(good, outcome, len(outcome.answers)), what="it answers again")
    # Two seconds are the requirement; a test's machine may be busy, the benchmarks say how long.
    assert outcome.longest_gap() < 10.0, outcome.counts


def test_postgres_dies_and_no_acknowledged_write_is_lost(
    bank: Any, make_load: Callable[..., Any]
) -> None:
    acknowledged: list[str] = []

    def open_account(client: httpx.Client) -> int:
        answer = client.post(f"{bank.url}/accounts", json={"owner": "eve", "balance": 7})
        if answer.status_code == 201:
            acknowledged.append(answer.json()["id"])
        return answer.status_code

    with make_load(open_account) as outcome:
        bank.wait(partial(good, outcome), what="the load runs")
        dead = bank.kill("postgres")
        bank.wait(lambda: dead not in bank.pids().values(), what="it is gone")
        bank.wait(partial(good, outcome, len(outcome.answers)), 60, "writes go on")
    assert len(acknowledged) >= 60
    with httpx.Client(base_url=bank.url, timeout=10, trust_env=False) as client:
        for account in acknowledged:
            assert client.get(f"/accounts/{account}").json()["balance"] == 7


def test_an_instance_dies_and_idempotent_requests_see_no_error(
    pair: Any, make_load: Callable[..., Any]
) -> None:
    with make_load(get(f"{pair.url}/slow"), threads=6) as outcome:
        for _ in range(3):
            pair.wait(partial(good, outcome, len(outcome.answers)), what="the load runs")
            pair.kill("instance/")
            pair.wait(lambda: len(instances(pair)) == 2, what="restarted")
            pair.wait(partial(_ready, pair), what="ready again: the last one left must not be hit")
        pair.wait(partial(good, outcome, len(outcome.answers)), what="it goes on")
    assert outcome.failures == []


def test_a_request_that_is_not_idempotent_says_that_its_outcome_is_unknown(pair: Any) -> None:
    pair.wait(partial(_ready, pair), what="ready")
    before = set(instances(pair).values())
    answer = httpx.post(f"{pair.url}/die", timeout=10, trust_env=False)
    assert answer.status_code == 502
    assert answer.headers["x-bedstone-outcome"] == "unknown"
    assert "may have been applied" in answer.text
    pair.wait(lambda: len(instances(pair)) == 2, what="restarted")
    assert len(before - set(instances(pair).values())) == 1, "it was tried once only"


def test_a_rollout_fails_no_request(pair: Any, make_load: Callable[..., Any]) -> None:
    pair.wait(partial(_ready, pair), what="ready")
    with make_load(get(f"{pair.url}/slow"), threads=6) as outcome:
        for version in (2, 3):
            (pair.directory / "web.py").write_text(f"VERSION = {version}\n{SLOW}")
            pair.up()
    assert outcome.failures == []
    assert httpx.get(pair.url, trust_env=False).text.endswith(" 3")


def test_a_workload_takes_anothers_place_and_no_request_fails(
    pair: Any, make_load: Callable[..., Any]
) -> None:
    manifest = pair.directory / "bedstone.yaml"
    before = manifest.read_text()
    with make_load(get(f"{pair.url}/slow"), threads=6) as outcome:
        manifest.write_text(before.replace("to: web", "to: front").replace("  web:", "  front:"))
        pair.up()
        manifest.write_text(before)
        pair.up()
    assert len(outcome.answers) > 30
    assert outcome.failures == []


def test_a_node_agent_that_hangs_past_its_lease_stops_no_traffic(
    pair: Any, make_load: Callable[..., Any]
) -> None:
    with make_load(get(pair.url)) as outcome:
        pair.kill("node", signal.SIGSTOP)
        try:
            pair.wait(lambda: pair.parts()[0]["state"] == "stopped", 40, "its lease has ended")
            time.sleep(1)
        finally:
            pair.kill("node", signal.SIGCONT)
        pair.wait(partial(_ready, pair), what="heard from again")
    assert outcome.failures == []


def test_a_broken_change_replaces_nothing(pair: Any, make_load: Callable[..., Any]) -> None:
    with make_load(get(pair.url)) as outcome:
        (pair.directory / "web.py").write_text("def broken(:\n")
        refused = pair.run(
            "up", "--detach", "--wait", "--timeout", "8", "--gateway-port", str(pair.port)
        )
        assert refused.returncode == 7, refused.stderr
    assert outcome.failures == []
    (pair.directory / "web.py").write_text(f"VERSION = 4\n{SLOW}")
    pair.up()
    assert httpx.get(pair.url, trust_env=False).text.endswith(" 4")


def test_the_supervisor_dies_and_everything_under_it_goes_and_nothing_else(
    make_domain: Callable[..., Any],
) -> None:
    domain = make_domain(manifest=MANIFEST)
    (domain.directory / "web.py").write_text(f"VERSION = 1\n{SLOW}")
    domain.up()
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert len(domain.everything()) >= 5
        os.kill(domain.supervisor(), signal.SIGKILL)
        domain.wait(lambda: domain.everything() == [], 15, "everything under it gone")
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    domain.up()
    assert httpx.get(domain.url, trust_env=False).status_code == 200


def test_everything_is_killed_at_once_and_up_recovers(bank: Any) -> None:
    with httpx.Client(base_url=bank.url, timeout=10, trust_env=False) as client:
        body = {"owner": "kim", "balance": 50}
        account = client.post("/accounts", json=body).json()["id"]
        other = client.post("/accounts", json=body).json()["id"]
        transfer = {"id": str(uuid.uuid4()), "from": account, "to": other, "amount": 20}
        assert client.post("/transfers", json=transfer).status_code == 201
    sockets = set(Path(bank.state).rglob("*.sock"))
    for pid in bank.everything():
        os.kill(pid, signal.SIGKILL)
    bank.wait(lambda: bank.everything() == [], 15, "everything gone")
    bank.up()
    with httpx.Client(base_url=bank.url, timeout=10, trust_env=False) as client:
        assert client.get(f"/accounts/{account}").json()["balance"] == 30
        assert client.get(f"/accounts/{other}").json()["balance"] == 70
    assert set(Path(bank.state).rglob("*.sock")) == sockets
    # proc(5): field 5 is the mount point. One a living instance, and the folder that holds them.
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    own = [point for point in points if point.startswith(f"{run_directory(bank.state)}/")]
    assert len(own) <= len(instances(bank)) + 1


@pytest.fixture(autouse=True)
def _whole(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave nothing half-recovered to the next test."""
    yield
    for name in {"pair", "bank"} & set(request.fixturenames):
        domain = request.getfixturevalue(name)
        domain.wait(partial(_ready, domain), 30, "all ready again")


def _ready(domain: Any) -> bool:
    return all(part["state"] == "ready" for part in domain.parts())
