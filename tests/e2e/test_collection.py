"""What is counted is what was sent: exactly over complete seconds, whoever is killed.

One small app under a load that knows of each request what became of it. The series are read from
the run's own store when it has ended.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from bedstone.control.monitoring.series_store import FLUSH
from bedstone.processes.state import run_directory
from bedstone.testing.counted_load import Collected, Sent, quiet, send

pytestmark = pytest.mark.timeout(240)

MANIFEST = """
app: counted
gateway: {port: 8080, routes: [{path: /, to: web}, {path: /risk, to: risk}]}
workloads:
  web: {command: [python, web.py], uses: [risk]}
  risk: {command: [python, web.py]}
"""

PROGRAM = """
import http.client, http.server, os, sys, time
from urllib.parse import urlsplit

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        os.write(1, f"served {time.time()} {self.path}\\n".encode())
        kind = self.path.strip("/").split("/")[-1]
        if kind == "slow":
            time.sleep(1.5)
        status = {"missing": 404, "fail": 500}.get(kind, 200)
        if kind in ("call", "unknown"):
            proxy = urlsplit(os.environ["HTTP_PROXY"])
            host = "risk" if kind == "call" else "nobody"
            mesh = http.client.HTTPConnection(proxy.hostname, proxy.port)
            headers = {}
            if proxy.username:
                import base64
                word = base64.b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()
                headers["proxy-authorization"] = f"Basic {word}"
            mesh.request("GET", f"http://{host}/called", headers=headers)
            answer = mesh.getresponse()
            answer.read()
            mesh.close()
            status = answer.status
        self.send_response(status)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass

class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""

MIX = ("/ok",) * 12 + ("/missing",) * 3 + ("/fail",) * 2 + ("/call",) * 4 + ("/risk/ok",) * 2
MANY = 1200
EARLY, LATE = 0.1, 2.0
"""Seconds that a second may be read too early, and that the load may be late to note an answer."""
REFUSED = ("/.bedstone/x", "/unknown")


@dataclass
class Phase:
    """One load between two quiet seconds."""

    before: int
    after: int
    sent: Sent


@dataclass
class Played:
    """The run that all tests here look at, after its end."""

    state: Path
    phases: dict[str, Phase] = field(default_factory=dict)
    killed: dict[str, float] = field(default_factory=dict)
    lines: list[tuple[float, str, str]] = field(default_factory=list)
    top: dict[str, Any] = field(default_factory=dict)
    increase: str = ""

    def served(self, phase: str) -> dict[str, Counter[str]]:
        """The paths that each workload says it served in a phase."""
        span = self.phases[phase]
        found: dict[str, Counter[str]] = {"web": Counter(), "risk": Counter()}
        for at, workload, path in self.lines:
            if span.before < at < span.after:
                found[workload][path] += 1
        return found


def paths(number: int, more: tuple[str, ...] = ()) -> list[str]:
    chosen = [MIX[i % len(MIX)] for i in range(number - 10 * len(more))] + list(more) * 10
    random.Random(number).shuffle(chosen)
    return chosen


def increase(domain: Any, phase: Phase) -> str:
    """What PromQL says was sent in a phase."""
    transport = httpx.HTTPTransport(uds=str(run_directory(domain.state) / "api.sock"))
    span = phase.after - phase.before
    query = f"sum(increase(bedstone_gateway_requests_total[{span}s]))"
    with httpx.Client(transport=transport, base_url="http://server", timeout=20) as client:
        answer = client.get(
            "/prometheus/api/v1/query", params={"query": query, "time": str(phase.after)}
        ).json()
    ((_, value),) = [series["value"] for series in answer["data"]["result"]]
    return str(value)


async def play(domain: Any, played: Played) -> None:
    async def phase(name: str, work: Any) -> None:
        before = await asyncio.to_thread(quiet, domain.state)
        sent = await work
        played.phases[name] = Phase(before, await asyncio.to_thread(quiet, domain.state), sent)

    async def killing(name: str, number: int) -> Sent:
        if name == "server":
            # a killed server loses the seconds that are not on its disk, the one before too
            await asyncio.sleep(FLUSH + 1)
        load = asyncio.ensure_future(send(domain.port, paths(number)))
        await asyncio.sleep(1.6)
        await asyncio.to_thread(domain.kill, name)
        played.killed[name] = time.time()
        return await load

    await phase("mixed", send(domain.port, [*paths(MANY, REFUSED), *["/slow"] * 12], left="/slow"))
    played.increase = await asyncio.to_thread(increase, domain, played.phases["mixed"])
    await asyncio.sleep(1.5)  # the slow ones have ended in the program, too
    for name in ("node", "envoy", "server"):
        await phase(name, killing(name, MANY))
    load = asyncio.ensure_future(phase("after", send(domain.port, paths(500), connections=2)))
    while not load.done() and not any(
        w["signals"]["rate"] for w in played.top.get("workloads", ())
    ):
        shown = await asyncio.to_thread(domain.ok, "top", "--once", "-o", "json")
        played.top = json.loads(shown)
    await load


@pytest.fixture(scope="module")
def played(make_domain: Callable[..., Any]) -> Played:
    domain = make_domain(manifest=MANIFEST)
    (domain.directory / "web.py").write_text(PROGRAM)
    domain.up()
    found = Played(domain.state)
    asyncio.run(play(domain, found))
    domain.down()
    for log in (domain.state / "logs" / "instances").rglob("*.log"):
        workload = log.parts[-2]
        for line in log.read_text().splitlines():
            if line.startswith("served "):
                _, at, path = line.split()
                found.lines.append((float(at), workload, path))
    return found


def test_every_request_that_was_sent_is_counted_once_by_its_code(played: Played) -> None:
    phase = played.phases["mixed"]
    assert len(phase.sent.answers) == MANY + 12
    with Collected(played.state) as collected:
        assert collected.incomplete(phase.before, phase.after) == {}
        counted = collected.counted("bedstone_gateway_requests_total", phase.before, phase.after)
        assert counted == phase.sent.codes
        assert counted["none"] == 12
        assert float(played.increase) == MANY + 12
        # and in each second, no more than was sent by its end
        for second in range(phase.before, phase.after + 1):
            total = collected.total("bedstone_gateway_requests_total", phase.before, second)
            assert (
                phase.sent.until(second - EARLY + 1) <= total <= phase.sent.until(second + 1 + LATE)
            )


def test_routes_edges_and_instances_agree_with_what_the_services_saw(played: Played) -> None:
    first, last = played.phases["mixed"], played.phases["mixed"].after
    mixed = paths(MANY, REFUSED)
    asked = Counter(mixed)
    with Collected(played.state) as collected:

        def counted(name: str, **labels: str) -> Counter[str]:
            return collected.counted(f"bedstone_{name}", first.before, last, **labels)

        to_risk, to_web = asked["/risk/ok"], MANY - asked["/risk/ok"] - asked["/.bedstone/x"]
        assert counted("route_requests_total", route="/risk").total() == to_risk
        assert counted("route_requests_total", route="/").total() == to_web + 12
        edge = counted("edge_requests_total", caller="gateway", callee="web")
        assert edge == counted("route_requests_total", route="/")
        assert edge["none"] == 12
        calls = counted("edge_requests_total", caller="web", callee="risk")
        assert calls == {"2xx": asked["/call"]}
        assert counted("requests_total", workload="risk") == {"2xx": asked["/call"] + to_risk}
        assert counted("requests_total", workload="web").total() == to_web + 12
        assert counted("edge_errors_total", caller="web") == {"denied": asked["/unknown"]}
        errors = counted("request_errors_total", workload="web")
        assert errors == {"answer": asked["/fail"], "cancelled": 12}
        durations = counted("gateway_request_seconds_count")
        assert durations.total() == MANY
        seen = played.served("mixed")
        assert sum(seen["risk"].values()) == counted("requests_total", workload="risk").total()
        assert sum(seen["web"].values()) == counted("requests_total", workload="web").total()
        assert seen["risk"]["/called"] == calls.total()


def test_top_shows_the_load_while_it_lasts(played: Played) -> None:
    shown = {line["name"]: line["signals"] for line in played.top["workloads"]}
    assert shown["web"]["rate"] > 0
    assert shown["web"]["memory"] > 1 << 20
    assert 0 < shown["web"]["p50"] <= shown["web"]["p99"]
    assert played.phases["server"].after <= played.top["overview"]["second"] < time.time()
    assert {node["node"] for node in played.top["overview"]["nodes"]} == {"local"}


@pytest.mark.parametrize("name", ["node", "server"])
def test_nothing_is_lost_when_the_agent_or_the_server_is_killed(played: Played, name: str) -> None:
    phase = played.phases[name]
    with Collected(played.state) as collected:
        counted = collected.counted("bedstone_gateway_requests_total", phase.before, phase.after)
        assert counted == phase.sent.codes
        broken = collected.incomplete(phase.before, phase.after)
        assert phase.before not in broken
        assert phase.after not in broken
        died = int(played.killed[name])
        assert broken, "nobody answered, or asked, for a moment"
        assert min(broken) <= died + 1
        assert max(broken) >= died
        which = {"node": "local", "server": "server"}[name]
        assert any(which in why for why in broken.values()), broken


def test_what_a_killed_proxy_lost_lies_in_the_incomplete_seconds(played: Played) -> None:
    phase = played.phases["envoy"]
    died = played.killed["envoy"]
    name = "bedstone_gateway_requests_total"
    with Collected(played.state) as collected:
        broken = collected.incomplete(phase.before, phase.after)
        assert int(died) in broken, (died, broken)
        assert all("local/envoy" in why for why in broken.values()), broken
        # up to the last complete second, and after the incomplete ones, everything is there
        last = int(died) - 1
        before = collected.total(name, phase.before, last)
        assert phase.sent.until(last - EARLY + 1) <= before <= phase.sent.until(last + 1 + LATE)
        back = max(broken) + 1
        after = collected.total(name, back, phase.after)
        ended = len(phase.sent.answers)
        assert (
            ended - phase.sent.until(back + 1 + LATE)
            <= after
            <= ended - phase.sent.until(back - EARLY + 1)
        )
        lost = ended - collected.total(name, phase.before, phase.after)
        during = phase.sent.until(back + 1 + LATE) - phase.sent.until(last - EARLY + 1)
        assert 0 <= lost <= during


def test_it_is_exact_again_after_all_of_that(played: Played) -> None:
    phase = played.phases["after"]
    with Collected(played.state) as collected:
        assert collected.incomplete(phase.before, phase.after) == {}
        counted = collected.counted("bedstone_gateway_requests_total", phase.before, phase.after)
        assert counted == phase.sent.codes
        assert counted.total() == 500
