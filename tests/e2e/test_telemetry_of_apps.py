"""An application tells of itself with no set-up: spans, logs by trace, metrics, and a live tap."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bedstone.processes.state import run_directory
from bedstone.testing.domain import COMMAND, Domain

pytestmark = pytest.mark.timeout(240)
PROGRAMS = Path(__file__).parent / "programs"
MANIFEST = """\
app: shop
gateway: {port: 8080, routes: [{path: /, to: web}]}
workloads:
  web:
    run: telling_web:app
    uses: [stock]
    ready: /healthz
    env:
      OTEL_SERVICE_NAME: forged
      OTEL_RESOURCE_ATTRIBUTES: app=bank,instance=forged-1,service.instance.id=forged-1
  stock:
    command: [python, telling_stock.py]
    ready: /healthz
"""


@pytest.fixture(scope="module")
def shop(make_domain: Callable[..., Domain]) -> Domain:
    domain = make_domain(manifest=MANIFEST)
    for name in ("telling_web.py", "telling_stock.py"):
        shutil.copy(PROGRAMS / name, domain.directory)
    domain.up()
    return domain


def send(shop: Domain, method: str, path: str) -> str:
    """Send a request from outside; its trace."""
    trace = secrets.token_hex(16)
    headers = {"traceparent": f"00-{trace}-{secrets.token_hex(8)}-01"}
    with httpx.Client(base_url=shop.url, timeout=20, trust_env=False) as client:
        client.request(method, path, headers=headers)
    return trace


def api(shop: Domain, path: str, **params: str) -> Any:
    """What the API answers."""
    transport = httpx.HTTPTransport(uds=str(run_directory(shop.state) / "api.sock"))
    with httpx.Client(transport=transport, base_url="http://api", timeout=20) as client:
        answer = client.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()


def lines(shop: Domain, **params: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api(shop, "/v1/apps/shop/lines", **params)["items"]
    return found


def test_log_lines_of_a_request_are_found_by_its_trace(shop: Domain) -> None:
    """In all workloads, of whatever form; and nobody else's."""
    other, trace = send(shop, "POST", "/buy/pen"), send(shop, "POST", "/buy/book")
    shop.wait(lambda: len(lines(shop, trace=trace)) == 2, 20, "both lines are there")
    ours, theirs = sorted(
        lines(shop, trace=trace), key=lambda it: str(it["workload"]), reverse=True
    )
    assert (ours["workload"], ours["level"], ours["text"]) == ("web", "info", "sold")
    assert (ours["fields"]["item"], ours["trace"]) == ("book", trace)
    assert ours["instance"].startswith("web-")
    assert (theirs["workload"], theirs["level"]) == ("stock", "warning")
    assert theirs["text"] == "few left: /take/book"
    written = shop.ok("logs", "--trace", trace, "-o", "json")
    assert len(written.splitlines()) == 2
    assert other not in written
    warnings = shop.ok("logs", "stock", "--level", "warning")
    assert all("few left" in line for line in warnings.splitlines())
    assert lines(shop, trace=trace, level="error") == []
    assert [it["text"] for it in lines(shop, trace=trace, text="LEFT", workload="stock")]
    failed = send(shop, "GET", "/fail")
    shop.wait(lambda: bool(lines(shop, trace=failed, level="error")), 20, "the failure's line")
    (line,) = lines(shop, trace=failed, level="error")
    assert "the till is empty" in line["fields"]["exception"]


def test_a_log_record_over_otlp_stands_in_the_instances_log(shop: Domain) -> None:
    trace = secrets.token_hex(16)
    with httpx.Client(base_url=shop.url, timeout=20, trust_env=False) as client:
        assert client.post("/say", params={"trace": trace}).status_code == 200
    shop.wait(lambda: bool(lines(shop, trace=trace)), 20, "the record is written")
    (line,) = lines(shop, trace=trace)
    assert (line["workload"], line["level"], line["text"]) == ("web", "error", "said over OTLP")


def test_metrics_arrive_as_the_instances_own(shop: Domain) -> None:
    """By the names of the rules, whole, and whatever the application says that it is."""

    def series(name: str) -> dict[str, dict[str, Any]]:
        answer = api(shop, "/prometheus/api/v1/query", query=name)
        return {it["metric"].get("le", ""): it for it in answer["data"]["result"]}

    before = 0.0
    for it in series("shop_sold_total").values():
        before = float(it["value"][1])
    for _ in range(5):
        send(shop, "POST", "/buy/book")

    def counted() -> bool:
        return any(
            float(it["value"][1]) == before + 10 for it in series("shop_sold_total").values()
        )

    shop.wait(counted, 20, "every sale is counted")
    ((_, found),) = series("shop_sold_total").items()
    metric = found["metric"]
    assert (metric["app"], metric["cell"], metric["workload"]) == ("shop", "default", "web")
    assert metric["instance"].startswith("web-")
    assert metric["node"] == "local"
    assert metric["revision"]
    assert (metric["kind"], metric["exported_workload"]) == ("book", "forged")
    assert "forged-1" not in json.dumps(found)
    buckets = series("shop_paid_seconds_bucket")
    ((_, count),) = series("shop_paid_seconds_count").items()
    # 0.3 s each: between two bounds
    assert float(buckets["0.25"]["value"][1]) == 0
    assert buckets["0.5"]["value"][1] == count["value"][1]
    assert buckets["+Inf"]["value"][1] == count["value"][1]
    assert float(count["value"][1]) * 2 >= before + 10


@contextlib.contextmanager
def tapping(shop: Domain, *options: str) -> Iterator[list[dict[str, Any]]]:
    """What `bedstone tap` shows."""
    found: list[dict[str, Any]] = []
    with subprocess.Popen(
        [*COMMAND, "tap", *options, "-o", "json"],
        cwd=shop.directory,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        output = process.stdout

        def read() -> None:
            found.extend(json.loads(line) for line in output)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield found
        finally:
            process.terminate()
            process.wait(20)
            reader.join(20)


def written_down(shop: Domain) -> bool:
    """Whether the proxy writes requests down for a tap."""
    transport = httpx.HTTPTransport(uds=str(run_directory(shop.state) / "envoy-admin.sock"))
    with httpx.Client(transport=transport, base_url="http://envoy", timeout=20) as client:
        entries = client.get("/runtime", params={"format": "json"}).json()["entries"]
    value = entries.get("bedstone.tap", {}).get("final_value", "")
    return value not in {"", "0"}


def test_a_tap_shows_requests_while_it_is_open(shop: Domain) -> None:
    with tapping(shop, "--hops") as found, tapping(shop, "stock", "--errors") as errors:
        shop.wait(lambda: written_down(shop), 20, "the proxy is told")
        trace = send(shop, "POST", "/buy/book?card=4111")

        def sides() -> set[str]:
            return {it["side"] for it in list(found) if it["trace"] == trace}

        shop.wait(lambda: sides() == {"gateway", "inbound", "outbound"}, 20, "each hop is shown")
    mine = {(it["side"], it["source"], it["target"]): it for it in found if it["trace"] == trace}
    assert set(mine) == {
        ("gateway", "gateway", "web"),
        ("inbound", "gateway", "web"),
        ("outbound", "web", "stock"),
        ("inbound", "web", "stock"),
    }
    first = mine["gateway", "gateway", "web"]
    assert (first["method"], first["path"], first["status"]) == ("POST", "/buy/book", 200)
    assert 0 < first["seconds"] < 10
    assert "4111" not in json.dumps(found), "a query may hold a secret"
    assert errors == []
    shop.wait(lambda: not written_down(shop), 20, "the proxy is told that nobody looks on")
    (_, *_), audit = found, json.loads(shop.ok("audit", "-o", "json"))
    assert {it["target"] for it in audit if it["action"] == "tap"} == {"shop", "shop/stock"}


def test_a_tap_left_open_by_a_dead_node_agent_ends(shop: Domain) -> None:
    with tapping(shop):
        shop.wait(lambda: written_down(shop), 20, "the proxy is told")
        shop.kill("node")
    shop.wait(lambda: not written_down(shop), 30, "the next agent ends it")
