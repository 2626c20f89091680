"""Stock clients ask a running app's monitoring, and a stock Prometheus is told by it."""

from __future__ import annotations

import datetime as dt
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_api_client import PrometheusConnect

from bedstone.testing import prometheus
from bedstone.testing.domain import Domain, free_port
from bedstone.testing.echo import WEB
from bedstone.testing.prometheus import RealPrometheus, real_prometheus

pytestmark = [
    pytest.mark.skipif(prometheus.missing(), reason=prometheus.MISSING),
    pytest.mark.timeout(180),
]

MANIFEST = """
app: echo
gateway: {port: GATEWAY, routes: [{path: /, to: web}]}
workloads:
  web: {run: web:app}
monitoring:
  remote_write:
    - url: http://127.0.0.1:PROMETHEUS/api/v1/write
"""
SCRAPE = """
scrape_configs:
  - job_name: bedstone
    scheme: https
    scrape_interval: 1s
    honor_labels: true
    tls_config: {ca_file: CA}
    authorization: {credentials: TOKEN}
    static_configs: [{targets: ["ADDRESS"]}]
"""


@contextmanager
def forwarding(http: httpx.Client) -> Iterator[str]:
    """A server on loopback that sends everything on by a client."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("content-length", 0))
            response = http.request(
                self.command,
                self.path,
                content=self.rfile.read(length),
                headers={"content-type": self.headers.get("content-type", "")},
            )
            self.send_response(response.status_code)
            self.send_header("content-type", response.headers["content-type"])
            self.end_headers()
            self.wfile.write(response.content)

        do_POST = do_GET  # noqa: N815 - http.server looks for it

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@dataclass(frozen=True)
class World:
    """A domain with its API on TCP, and a Prometheus that scrapes it and takes its remote-write."""

    domain: Domain
    address: str
    ca: Path
    token: str
    real: RealPrometheus
    sent: list[int] = field(default_factory=list)
    """Requests that were sent to the gateway."""

    def http(self, token: str | None = None) -> httpx.Client:
        context = ssl.create_default_context(cafile=str(self.ca))
        headers = {"authorization": f"Bearer {token or self.token}"}
        return httpx.Client(
            base_url=f"https://{self.address}", verify=context, headers=headers, trust_env=False
        )

    def ask(self, path: str, **parameters: str) -> Any:
        with self.http() as http:
            response = http.get(f"/prometheus/api/v1/{path}", params=parameters)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    def promtool(self, what: str, *arguments: str, after: str = "") -> str:
        """Ask by a promtool that knows neither tokens nor authorities, through one who does."""
        with self.http() as http, forwarding(http) as url:
            done = subprocess.run(
                ["promtool", "query", what, *arguments, f"{url}/prometheus", *after.split()],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def requests(self, number: int) -> None:
        with httpx.Client(base_url=self.domain.url, trust_env=False) as client:
            for _ in range(number):
                assert client.get("/").status_code == 200
        self.sent.append(number)

    def counted(self, real: bool) -> float:  # noqa: FBT001
        """Requests that the gateway has answered, as we say, or the Prometheus by remote-write."""
        query = 'sum(bedstone_gateway_requests_total{job="",code="2xx"})'
        found = self.real.data("query", query=query) if real else self.ask("query", query=query)
        return float(found["result"][0]["value"][1]) if found["result"] else 0.0


@pytest.fixture(scope="module")
def world(
    make_domain: Callable[..., Domain], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    domain = make_domain(manifest="app: echo")
    port, address = free_port(), f"127.0.0.1:{free_port()}"
    text = MANIFEST.replace("GATEWAY", str(domain.port)).replace("PROMETHEUS", str(port))
    (domain.directory / "bedstone.yaml").write_text(text)
    (domain.directory / "web.py").write_text(WEB)
    domain.up("--api-listen", address)
    folder = tmp_path_factory.mktemp("elsewhere")
    ca = folder / "ca.pem"
    ca.write_bytes((domain.state / "authority" / "root.pem").read_bytes())
    token = domain.ok("token", "create", "rita", "--role", "reader").strip()
    scrape = SCRAPE.replace("CA", str(ca)).replace("TOKEN", token).replace("ADDRESS", address)
    with real_prometheus(folder, scrape, port=port) as real:
        yield World(domain, address, ca, token, real)


def test_promtool_asks_us_with_a_token(world: World) -> None:
    world.domain.wait(lambda: bool(world.ask("query", query="bedstone_instance_up")["result"]))
    assert 'workload="web"' in world.promtool("instant", after="bedstone_instance_up")
    start = f"--start={int(time.time()) - 5}"
    shown = world.promtool("range", "--step=1s", start, after="vector(7)")
    assert "7 @[" in shown
    assert 'node="local"' in world.promtool("series", "--match=bedstone_node_cores")
    assert "web" in world.promtool("labels", after="workload").split()


def test_the_api_clients_of_python_ask_us(world: World) -> None:
    client = PrometheusConnect(
        url=f"https://{world.address}/prometheus",
        headers={"Authorization": f"Bearer {world.token}"},
        disable_ssl=False,
    )
    client._session.verify = str(world.ca)
    assert client.check_prometheus_connection()
    assert "bedstone_node_cores" in client.all_metrics()
    (found,) = client.custom_query("count(bedstone_instance_up)")
    assert found["value"][1] == "1"
    assert client.get_label_values("workload") == ["web"]
    ranged = client.custom_query_range(
        "bedstone_instance_up",
        start_time=client_time(-10),
        end_time=client_time(0),
        step="1",
    )
    assert ranged[0]["metric"]["workload"] == "web"


def client_time(offset: int) -> dt.datetime:
    return dt.datetime.now(dt.UTC) + dt.timedelta(seconds=offset)


def test_a_reader_may_post_a_query_and_a_stranger_may_not(world: World) -> None:
    with world.http() as http:
        posted = http.post("/prometheus/api/v1/query", data={"query": "1"})
        assert posted.json()["data"]["result"][1] == "1"
    with world.http("wrong") as http:
        for path in ("/metrics", "/prometheus/api/v1/query?query=1", "/prometheus/-/healthy"):
            assert http.get(path).status_code in (401, 403)


def test_what_is_scraped_is_without_fault(world: World) -> None:
    world.requests(3)
    with world.http() as http:
        text = http.get("/metrics").text
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, f"{checked.stdout}{checked.stderr}"
    assert "bedstone_instance_up{" in text


def test_a_prometheus_scrapes_us(world: World) -> None:
    def scraped() -> bool:
        found = world.real.data("query", query='up{job="bedstone"} == 1')["result"]
        return bool(found)

    world.domain.wait(scraped, what="a scrape")
    found = world.real.client.get(f"{world.real.url}/api/v1/targets").json()
    (target,) = found["data"]["activeTargets"]
    assert target["lastError"] == ""
    kept = world.real.data("query", query='bedstone_instance_up{job="bedstone"}')["result"]
    assert [each["metric"]["workload"] for each in kept] == ["web"]


def test_remote_write_says_what_was_counted(world: World) -> None:
    world.requests(50)
    total = sum(world.sent)
    world.domain.wait(lambda: world.counted(real=False) == total, what="the count")
    world.domain.wait(lambda: world.counted(real=True) == total, what="remote-write")


def test_after_a_kill_remote_write_goes_on_without_a_hole(world: World) -> None:
    query = 'bedstone_node_cores{job=""}'
    start = int(time.time()) - 5

    def seconds(data: Any) -> set[int]:
        return {int(at) for at, _ in data["result"][0]["values"]}

    killed = int(time.time())
    world.domain.kill("server")
    world.domain.wait(lambda: world.domain.run("ps").returncode == 0, timeout=30, what="a server")
    world.domain.wait(
        lambda: (
            bool(
                world.real.data("query", query=f"timestamp({query}) > {int(time.time()) - 8}")[
                    "result"
                ]
            )
            and int(time.time()) > start + 20
        ),
        timeout=60,
        what="remote-write goes on",
    )
    ours = seconds(world.ask("query", query=f"{query}[60s]"))
    theirs = seconds(world.real.data("query", query=f"{query}[60s]"))
    span = range(start, max(theirs) + 1)
    assert ours.intersection(span) <= theirs.intersection(span)
    # What was sent and not yet on disk is lost here, and only here: that is what a kill may cost.
    assert all(killed - 15 <= second <= killed for second in theirs.intersection(span) - ours)
