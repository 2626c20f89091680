"""What instances send of themselves: stock exporters, a real proxy, the collector's receivers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult

from bedstone.node.collector import otlp_grpc, otlp_http
from bedstone.node.collector.intake import Discard, Intake, Sender
from bedstone.testing.mesh import HOST, MeshRig, wait_open
from bedstone.testing.mesh_programs import bank, program, run

WEB = Sender("bank", "default", "web", "w1")


class Spans(Discard):
    """Keeps who sent what."""

    def __init__(self) -> None:
        self.got: list[tuple[Sender | None, str]] = []

    def spans(self, sender: Sender | None, request: Any) -> int:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.got += [(sender, span.name) for span in scope.spans]
        return 0


@contextlib.asynccontextmanager
async def collector(rig: MeshRig) -> AsyncIterator[Spans]:
    taken = Spans()
    intake = Intake(taken, taken, taken)
    server = await otlp_grpc.serve(intake, rig.directory / "collector.sock")
    try:
        async with otlp_http.serve(intake, rig.directory / "telemetry.sock"):
            yield taken
    finally:
        await server.stop(0)


def spans(name: str) -> list[ReadableSpan]:
    """One span of somebody who says that he is another."""
    provider = TracerProvider(resource=Resource.create({"service.name": "risk"}))
    span = provider.get_tracer("test").start_span(name)
    span.end()
    assert isinstance(span, ReadableSpan)
    return [span]


def test_stock_exporters_reach_the_collector_and_cannot_say_who_they_are() -> None:
    async def scenario(rig: MeshRig) -> None:
        async with program() as port, collector(rig) as taken:
            rig.declare(bank())
            web = rig.add("bank", "web", "w1", port)
            await rig.settle()
            assert web.plumbing is not None
            assert web.plumbing.telemetry is not None
            place = f"http://{HOST}:{web.plumbing.telemetry.port}"
            await wait_open(web.plumbing.telemetry.port)
            forged = {"x-bedstone-instance": "bank/default/risk/r1"}
            for exporter in (
                HttpExporter(f"{place}/v1/traces", headers=forged),
                HttpExporter(f"{place}/v1/traces", compression=Compression.Gzip),
                GrpcExporter(place, insecure=True, headers=forged),
            ):
                sent = await asyncio.to_thread(exporter.export, spans(type(exporter).__module__))
                assert sent is SpanExportResult.SUCCESS
                exporter.shutdown()
            assert [sender for sender, _ in taken.got] == [WEB, WEB, WEB]
            async with httpx.AsyncClient(trust_env=False) as http:
                answer = await http.post(f"{place}/v1/other", headers={"content-type": "x"})
            assert answer.status_code == 400

    run(scenario)
