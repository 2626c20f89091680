"""One request through the running bank is one trace; failed ones are kept whatever is sampled."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from bedstone.processes.state import run_directory
from bedstone.testing.domain import Domain

pytestmark = pytest.mark.timeout(240)

ROUTE = "    - {path: /, to: web}\n"
BROKEN = """
  broken: # a plain program that always fails, and says who it is not
    command: [python, broken.py]
    ready: {tcp: true}
"""
PROGRAM = """
import http.server, os

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(500)
        self.send_header("content-length", "0")
        self.end_headers()

http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


@pytest.fixture(scope="module", params=["auto", "never"])
def bank(make_domain: Callable[..., Domain], request: pytest.FixtureRequest) -> Iterator[Domain]:
    """The bank, with a workload that fails; isolated, and not."""
    domain = make_domain("examples/bank")
    manifest = domain.directory / "bedstone.yaml"
    text = manifest.read_text().replace(ROUTE, f"{ROUTE}    - {{path: /broken, to: broken}}\n")
    text = text.replace("\ndatabases:\n", f"{BROKEN}\ndatabases:\n")
    manifest.write_text(text)
    (domain.directory / "broken.py").write_text(PROGRAM)
    domain.up("--isolate", request.param)
    yield domain
    domain.down()


@pytest.fixture
def api(bank: Domain) -> Iterator[httpx.Client]:
    socket = run_directory(bank.state.resolve()) / "api.sock"
    transport = httpx.HTTPTransport(uds=str(socket))
    with httpx.Client(transport=transport, base_url="http://server/v1", timeout=10) as client:
        yield client


def traceparent() -> tuple[str, str]:
    """A trace of an outsider's, and its header."""
    trace = uuid.uuid4().hex
    return trace, f"00-{trace}-00f067aa0ba902b7-00"


def whole(
    bank: Domain, api: httpx.Client, trace: str, complete: Callable[[list[Any]], bool]
) -> dict[str, Any]:
    """A trace, once it is complete."""
    found: dict[str, Any] = {}

    def is_there() -> bool:
        answer = api.get(f"/traces/{trace}")
        if answer.status_code == 200:
            found.update(answer.json())
        return bool(found) and complete(found["spans"])

    bank.wait(is_there, what=f"the trace: {found}")
    return found


def hops(spans: list[Any]) -> dict[tuple[str, str], Any]:
    """Proxies' spans by side and service."""
    return {
        (span["attributes"]["bedstone.side"], span["service"]): span
        for span in spans
        if span["origin"] != "application"
    }


def account(bank: Domain, balance: int) -> str:
    answer = httpx.post(
        f"{bank.url}/accounts", json={"owner": "ann", "balance": balance}, trust_env=False
    )
    assert answer.status_code == 201, answer.text
    found: str = answer.json()["id"]
    return found


def ancestors(spans: list[Any], span: Any) -> list[Any]:
    by_id = {one["span"]: one for one in spans}
    found = []
    while (parent := by_id.get(span["parent"])) is not None:
        found.append(parent)
        span = parent
    return found


def test_one_transfer_is_one_trace_with_every_hop_below_what_led_to_it(
    bank: Domain, api: httpx.Client
) -> None:
    body = {"amount": 25, "from": account(bank, 100), "to": account(bank, 0)}
    trace, header = traceparent()
    answer = httpx.post(
        f"{bank.url}/transfers", json=body, headers={"traceparent": header}, trust_env=False
    )
    assert answer.status_code == 201, answer.text
    wanted = {
        *(("gateway", "gateway"), ("inbound", "web"), ("outbound", "web")),
        *(("inbound", "risk"), ("inbound", "accounts")),
    }

    def complete(spans: list[Any]) -> bool:
        services = {span["service"] for span in spans if span["origin"] == "application"}
        return hops(spans).keys() >= wanted and {"web", "accounts"} <= services

    detail = whole(bank, api, trace, complete)
    spans = detail["spans"]
    first = hops(spans)["gateway", "gateway"]
    assert detail["summary"]["name"] == first["name"] == "POST /transfers"
    assert first["parent"] == "00f067aa0ba902b7", "it goes on from who called"
    assert {span["app"] for span in spans} == {"bank"}
    for span in spans:
        if span is not first:
            assert first in ancestors(spans, span), span
    deepest = hops(spans)["inbound", "accounts"]
    chain = [(one["origin"], one["service"], one["kind"]) for one in ancestors(spans, deepest)]
    assert chain[0] == ("proxy", "web", "client"), "the call that went out"
    assert chain[1][:2] == ("application", "web"), "what the application did"
    assert chain[-2:] == [("proxy", "web", "server"), ("proxy", "gateway", "server")]
    served = [
        one for one in spans if one["origin"] == "application" and one["service"] == "accounts"
    ]
    assert all(deepest in ancestors(spans, one) for one in served)
    assert {one["instance"].split("-")[0] for one in served} == {"accounts"}


def test_a_failed_request_is_kept_when_nothing_is_sampled(bank: Domain, api: httpx.Client) -> None:
    assert api.put("/sampling", json={"share": 0}).status_code == 200
    try:
        # the proxy is told by its node a moment later
        admin = run_directory(bank.state.resolve()) / "envoy-admin.sock"
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(admin))) as client:

            def told() -> bool:
                entries = client.get("http://envoy/runtime?format=json").json()["entries"]
                entry = entries.get("tracing.random_sampling", {})
                return bool(entry.get("final_value") == "0")

            bank.wait(told, what="a share of 0")
        fine, header = traceparent()
        good = httpx.get(f"{bank.url}/", headers={"traceparent": header}, trust_env=False)
        assert good.status_code == 200, good.text
        failed, header = traceparent()
        url = f"{bank.url}/broken?password=secret"
        assert httpx.get(url, headers={"traceparent": header}, trust_env=False).status_code == 500
        detail = whole(bank, api, failed, lambda spans: len(spans) == 2)
        assert detail["summary"]["kept"] == "error"
        outer, inner = hops(detail["spans"])["gateway", "gateway"], detail["spans"][1]
        assert inner["parent"] == outer["span"]
        assert {outer["origin"], inner["origin"]} == {"access-log"}
        assert "secret" not in str(detail)
        assert api.get(f"/traces/{fine}").status_code == 404
        listed = api.get("/traces", params={"errors": True, "service": "broken"}).json()["items"]
        assert [item["trace"] for item in listed] == [failed]
    finally:
        assert api.put("/sampling", json={"share": None}).status_code == 200


def test_nothing_of_the_nodes_own_looks_is_recorded(bank: Domain, api: httpx.Client) -> None:
    """Probes ask each second whether a program is ready."""
    time.sleep(2.5)
    names = {item["name"] for item in api.get("/traces").json()["items"]}
    assert names
    assert not any("healthz" in name for name in names), names
