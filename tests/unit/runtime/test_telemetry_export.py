"""A served application's spans, metrics and logs, with no code in it: to a real receiver."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from bedstone.runtime.meters import _SECONDS, _seconds

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"

APP = """
import logging, os
import httpx
from opentelemetry import metrics, trace
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

meter = metrics.get_meter("shop")
paid = meter.create_counter("payments", unit="1")
log = logging.getLogger("shop")

async def item(request):
    paid.add(2, {"kind": "card"})
    log.info("shown", extra={"item": request.path_params["id"]})
    return PlainTextResponse("x")

async def loaded(request):
    return PlainTextResponse(type(trace.get_tracer_provider()).__name__)

async def fails(request):
    raise ValueError("no such card")

async def calls(request):
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(os.environ["OTHER"] + "/other")
    return PlainTextResponse(answer.text)

app = Starlette(routes=[
    Route("/items/{id}", item), Route("/loaded", loaded), Route("/fails", fails),
    Route("/calls", calls),
])
"""


@dataclass
class Receiver:
    """What was exported to it, and the headers of each request."""

    port: int
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def spans(self) -> list[Any]:
        found = []
        for path, _, body in list(self.requests):
            if path == "/v1/traces":
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    found += [span for scope in resource.scope_spans for span in scope.spans]
        return found

    def resource(self) -> dict[str, str]:
        body = next(body for path, _, body in self.requests if path == "/v1/traces")
        attributes = ExportTraceServiceRequest.FromString(body).resource_spans[0].resource
        return {it.key: it.value.string_value for it in attributes.attributes}

    def metrics(self) -> dict[str, Any]:
        found = {}
        for path, _, body in list(self.requests):
            if path == "/v1/metrics":
                for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                    for scope in resource.scope_metrics:
                        found.update({metric.name: metric for metric in scope.metrics})
        return found


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            names = {name.lower(): value for name, value in self.headers.items()}
            found.requests.append((self.path, names, body))
            self.do_GET()

        def do_GET(self) -> None:
            if self.path == "/other":
                found.requests.append((self.path, dict(self.headers.items()), b""))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Receiver(server.server_address[1])
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield found
        server.shutdown()


@dataclass
class Served:
    """An application that is served in a process of its own."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def get(self, path: str, traceparent: str | None = None) -> str:
        headers = {"traceparent": traceparent} if traceparent else {}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            text: str = answer.read().decode()
            return text

    def lines(self) -> list[dict[str, Any]]:
        texts = self.log.read_text().splitlines()
        return [json.loads(text) for text in texts if text.startswith("{")]

    def end(self) -> float:
        """Ask it to end; how many seconds it took."""
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0
        return time.monotonic() - start


@contextmanager
def serving(folder: Path, source: str = APP, **environ: str) -> Iterator[Served]:
    (folder / "shop.py").write_text(source)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    base = {k: v for k, v in os.environ.items() if not k.startswith("OTEL")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "bedstone.runtime.serve", "shop:app", "--port", str(port)],
            cwd=folder,
            stdout=log,
            stderr=log,
            env=base | environ,
        )
    served = Served(port, process, folder / "log")
    try:
        until(lambda: _open(port) or process.poll() is not None)
        assert process.poll() is None, served.log.read_text()
        yield served
    finally:
        process.kill()
        process.wait(10)


def _open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.02)


def test_requests_calls_and_failures_are_recorded_as_the_proxy_decided(
    tmp_path: Path, receiver: Receiver
) -> None:
    with serving(
        tmp_path,
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{receiver.url}/v1/traces",
        OTHER=receiver.url,
        BEDSTONE_APP="bank",
        BEDSTONE_WORKLOAD="web",
        BEDSTONE_INSTANCE="web-1",
        HTTP_PROXY="http://127.0.0.1:1",
        http_proxy="http://127.0.0.1:1",
        NO_PROXY="",
    ) as app:
        for _ in range(3):
            assert app.get("/loaded", UNSAMPLED) == "ProxyTracerProvider"
            assert app.get("/loaded") == "ProxyTracerProvider", "nobody has decided to record it"
        app.get("/items/7?token=hunter2", SAMPLED)
        app.get("/calls", SAMPLED)
        app.get("/calls", UNSAMPLED)
        with pytest.raises(urllib.error.HTTPError):
            app.get("/fails", SAMPLED)
        app.end()
    spans = {span.name: span for span in receiver.spans()}
    assert set(spans) == {"GET /items/{id}", "GET /calls", "GET", "GET /fails"}
    for name in ("GET /items/{id}", "GET /calls", "GET /fails"):
        assert spans[name].trace_id.hex() == TRACE
        assert spans[name].parent_span_id.hex() == PARENT
    assert spans["GET"].parent_span_id == spans["GET /calls"].span_id, "the call that it made"
    assert b"hunter2" not in b"".join(body for _, _, body in receiver.requests)
    failed = spans["GET /fails"]
    assert failed.status.code == 2
    assert failed.status.message == "ValueError: no such card"
    assert [event.name for event in failed.events] == ["exception"]
    assert receiver.resource()["service.name"] == "web"
    assert receiver.resource()["service.namespace"] == "bank"
    assert receiver.resource()["service.instance.id"] == "web-1"
    exports = [headers for path, headers, _ in receiver.requests if path.startswith("/v1/")]
    assert exports
    assert not any("traceparent" in headers for headers in exports), "exports are not traced"
    calls = [headers["traceparent"] for path, headers, _ in receiver.requests if path == "/other"]
    assert calls[0] == f"00-{TRACE}-{spans['GET'].span_id.hex()}-01"
    assert calls[1].endswith("-00"), "what is not recorded here is not recorded there"
    (logged,) = [line for line in app.lines() if "exception" in line]
    assert logged["trace_id"] == TRACE
    assert "no such card" in logged["exception"]


def test_a_framework_that_makes_spans_itself_makes_no_second_one(
    tmp_path: Path, receiver: Receiver
) -> None:
    """FastAPI's would have the query string, too."""
    own = """
from fastapi import FastAPI
app = FastAPI()

@app.get("/items/{id}")
async def item(id: int) -> int:
    return id
"""
    with serving(tmp_path, own, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url) as app:
        for _ in range(3):
            assert app.get("/items/7?token=hunter2", SAMPLED) == "7"
        app.end()
    assert [span.name for span in receiver.spans()] == ["GET /items/{id}"] * 3
    assert b"hunter2" not in b"".join(body for _, _, body in receiver.requests)


def test_metrics_need_no_set_up(tmp_path: Path, receiver: Receiver) -> None:
    with serving(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url) as app:
        app.get("/items/1", UNSAMPLED)
        until(lambda: "payments" in receiver.metrics())
        app.get("/items/2", UNSAMPLED)
        app.end()  # what came last is sent before the end
    (point,) = receiver.metrics()["payments"].sum.data_points
    assert point.as_int == 4
    assert receiver.metrics()["payments"].sum.aggregation_temporality == 2, "cumulative"
    assert list(receiver.metrics()) == ["payments"], "clients' calls are counted by the proxies"
    assert receiver.spans() == []


def test_an_application_that_sets_up_telemetry_itself_is_left_alone(
    tmp_path: Path, receiver: Receiver
) -> None:
    own = """
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
meter = metrics.get_meter("shop")
metrics.set_meter_provider(MeterProvider())
trace.set_tracer_provider(TracerProvider())
mine = metrics.get_meter_provider(), trace.get_tracer_provider()

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise ValueError
    same = mine == (metrics.get_meter_provider(), trace.get_tracer_provider())
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(same).encode()})
"""
    with serving(tmp_path, own, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url) as app:
        assert app.get("/", SAMPLED) == "True"
        app.end()
        assert "Overriding" not in app.log.read_text()
    assert receiver.requests == []


def test_a_receiver_that_is_away_costs_nothing_but_telemetry(tmp_path: Path) -> None:
    """One that never answers: requests go on, little is said, and the end is not held up."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with serving(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=place) as app:
            for _ in range(20):
                assert app.get("/items/1", SAMPLED) == "x"
            assert app.end() < 5.0
            assert len([it for it in app.lines() if "telemetry" in str(it["event"])]) <= 2


def test_log_lines_are_json_and_name_their_trace(tmp_path: Path) -> None:
    with serving(tmp_path) as app:
        app.get("/items/7", UNSAMPLED)
        app.end()
        (line,) = [line for line in app.lines() if line["event"] == "shown"]
    assert (line["level"], line["logger"], line["item"]) == ("info", "shop", "7")
    assert (line["trace_id"], line["span_id"]) == (TRACE, PARENT)
    assert abs(line["time"] - time.time()) < 60


def test_a_histogram_in_seconds_has_buckets_for_seconds_unless_it_names_its_own() -> None:
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader], views=[_seconds()]).get_meter("shop")
    meter.create_histogram("paid", unit="s").record(0.02)
    meter.create_histogram("own", unit="s", explicit_bucket_boundaries_advisory=[3.0]).record(0.02)
    meter.create_histogram("sizes", unit="By").record(20)
    data = reader.get_metrics_data()
    assert data is not None
    found = {
        metric.name: metric.data.data_points[0].explicit_bounds  # type: ignore[union-attr]
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
    }
    assert tuple(found["paid"]) == _SECONDS
    assert tuple(found["own"]) == (3.0,)
    assert found["sizes"][-1] == 10_000
