"""Spans and records of requests on a real Envoy: who decides on sampling, what is written down."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx

from bedstone.model.spec import Gateway, Route
from bedstone.node.collector import otlp_grpc
from bedstone.node.collector.intake import Discard, Intake, Sender
from bedstone.node.collector.runtime import share
from bedstone.telemetry import requests
from bedstone.telemetry.requests import ProxyRequest
from bedstone.testing.mesh import HOST, MeshRig, free_port
from bedstone.testing.mesh_programs import bank, client, program, run

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


class Seen(Discard):
    """Keeps spans and records."""

    def __init__(self) -> None:
        self.made: list[Any] = []
        self.written: list[ProxyRequest] = []
        self.changed = asyncio.Event()

    def spans(self, sender: Sender | None, request: Any) -> int:
        assert sender is None, "it comes from the proxy"
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.made += scope.spans
        self.changed.set()
        return 0

    def requests(self, records: Sequence[ProxyRequest]) -> None:
        self.written += records
        self.changed.set()

    async def until(self, spans: int = 0, records: int = 0) -> None:
        async with asyncio.timeout(10):
            while len(self.made) < spans or len(self.written) < records:
                self.changed.clear()
                await self.changed.wait()


@contextlib.asynccontextmanager
async def seeing(rig: MeshRig) -> AsyncIterator[Seen]:
    seen = Seen()
    server = await otlp_grpc.serve(
        Intake(seen, seen, seen, (seen,)), rig.directory / "collector.sock"
    )
    try:
        yield seen
    finally:
        await server.stop(0)


async def runtime(rig: MeshRig, **values: str) -> None:
    transport = httpx.AsyncHTTPTransport(uds=str(rig.engine.admin_socket))
    async with httpx.AsyncClient(transport=transport) as admin:
        answer = await admin.post("http://envoy/runtime_modify", params=values)
        assert answer.status_code == 200, answer.text


async def open_gateway(rig: MeshRig, port: int) -> str:
    gateway = Gateway(port=free_port(), routes=(Route(path="/", to="web"),))
    rig.declare(bank(gateway=gateway))
    rig.add("bank", "web", "w1", port)
    rig.add("bank", "risk", "r1", port)
    await rig.settle()
    return f"http://{HOST}:{gateway.port}"


def attributes(span: Any) -> dict[str, str]:
    return {item.key: item.value.string_value for item in span.attributes}


def test_hops_of_a_request_are_one_trace_rightly_nested_and_without_queries() -> None:
    async def scenario(rig: MeshRig) -> None:
        async with program() as port, seeing(rig) as seen:
            base = await open_gateway(rig, port)
            async with httpx.AsyncClient(trust_env=False) as http:
                headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
                answer = await http.get(f"{base}/x?key=secret", headers=headers)
            await seen.until(spans=2)
            by_hop = {attributes(span)[requests.HOP_TAG]: span for span in seen.made}
            outer, inner = by_hop["gateway/bank"], by_hop["inbound/bank/default/web/w1"]
            assert outer.trace_id.hex() == inner.trace_id.hex() == TRACE
            assert outer.parent_span_id.hex() == PARENT, "the trace of who called goes on"
            assert inner.parent_span_id == outer.span_id
            passed = answer.json()["headers"]["traceparent"]
            assert passed == f"00-{TRACE}-{inner.span_id.hex()}-01"
            assert requests.route(attributes(outer)[requests.ROUTE_TAG]) == "/"
            assert attributes(inner)[requests.CALLER_TAG].endswith("/bank/gateway")

    run(scenario)


def test_the_share_of_traces_follows_the_runtime_and_outsiders_force_none() -> None:
    async def scenario(rig: MeshRig) -> None:
        async with program() as port, seeing(rig) as seen:
            base = await open_gateway(rig, port)
            before = await rig.engine.stats("listener_manager.listener_modified")
            await runtime(rig, **{requests.SAMPLING_KEY: "0"})
            forced = {
                "traceparent": f"00-{TRACE}-{PARENT}-01",
                "x-request-id": "00000000-0000-4000-8000-000000000000",
                "x-client-trace-id": "1",
                "x-envoy-force-trace": "true",
            }
            async with httpx.AsyncClient(trust_env=False) as http:
                answer = (await http.get(f"{base}/x", headers=forced)).json()["headers"]
                assert answer["traceparent"].startswith(f"00-{TRACE}-")
                assert answer["traceparent"].endswith("-00"), "it has a trace, but no spans"
                assert answer["x-request-id"] == forced["x-request-id"]
                unasked = (await http.get(f"{base}/x")).json()["headers"]
                assert unasked["traceparent"].endswith("-00")
                await runtime(rig, **{requests.SAMPLING_KEY: "100"})
                sampled = (await http.get(f"{base}/x")).json()["headers"]["traceparent"]
            await seen.until(spans=2)
            assert {span.trace_id.hex() for span in seen.made} == {sampled.split("-")[1]}
            assert await rig.engine.stats("listener_manager.listener_modified") == before

    run(scenario)


def test_a_call_of_an_instance_is_sampled_as_its_trace_and_else_as_its_share() -> None:
    async def scenario(rig: MeshRig) -> None:
        async with program() as port, seeing(rig) as seen:
            rig.declare(bank())
            web = rig.add("bank", "web", "w1", port)
            rig.add("bank", "risk", "r1", port)
            await rig.settle()
            await runtime(rig, **{requests.SAMPLING_KEY: "0"})
            async with client(web) as http:
                for flags in ("01", "00"):
                    headers = {"traceparent": f"00-{TRACE}-{PARENT}-{flags}", "x-request-id": "a"}
                    got = (await http.get("http://risk/", headers=headers)).json()["headers"]
                    assert got["traceparent"].endswith(f"-{flags}")
                    assert got["x-request-id"] == "a"
                    assert "x-envoy-force-trace" not in got
                    assert "x-bedstone-request-id" not in got
                begun = (await http.get("http://risk/")).json()["headers"]
                assert begun["traceparent"].endswith("-00")
                assert "x-request-id" not in begun
            await seen.until(spans=2)
            assert {attributes(span)[requests.HOP_TAG] for span in seen.made} == {
                "outbound/bank/default/web/w1",
                "inbound/bank/default/risk/r1",
            }

    run(scenario)


def test_failed_and_slow_requests_are_written_down_at_every_hop_whatever_is_sampled() -> None:
    async def scenario(rig: MeshRig) -> None:
        async def slow(head: str, writer: asyncio.StreamWriter) -> None:
            if head.startswith("GET /slow"):
                await asyncio.sleep(0.06)
            status = "500 No" if head.startswith("GET /bad") else "200 OK"
            writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode())

        async with program(slow) as port, seeing(rig) as seen:
            base = await open_gateway(rig, port)
            await runtime(rig, **{requests.SAMPLING_KEY: share(0.0), requests.SLOW_KEY: "50"})
            async with httpx.AsyncClient(trust_env=False) as http:
                for path in ("/fine", "/bad?key=secret", "/slow?key=secret"):
                    await http.get(f"{base}{path}", headers={"authorization": "secret"})
                await seen.until(records=4)
                await runtime(rig, **{requests.TAP_KEY: share(1.0)})
                await http.get(f"{base}/fine")
                await seen.until(records=6)
            assert seen.made == []
            assert "secret" not in repr(seen.written)
            assert sorted((r.path, r.hop.side, r.status) for r in seen.written) == [
                ("/bad", "gateway", 500),
                ("/bad", "inbound", 500),
                ("/fine", "gateway", 200),
                ("/fine", "inbound", 200),
                ("/slow", "gateway", 200),
                ("/slow", "inbound", 200),
            ]
            for path in ("/bad", "/slow"):
                assert len({r.trace for r in seen.written if r.path == path} - {""}) == 1
            slowest = [r.seconds for r in seen.written if r.path == "/slow"]
            assert min(slowest) >= 0.06

    run(scenario)
