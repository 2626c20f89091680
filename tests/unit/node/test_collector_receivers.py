"""The OTLP receivers on their own sockets: what they take, from whom, and what they refuse."""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import asyncio
import gzip
import json
import stat
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace

from bedstone.errors import InvalidError, UnavailableError
from bedstone.node.collector import bounds, otlp_grpc, otlp_http
from bedstone.node.collector.intake import LARGEST, Intake, Sender
from bedstone.node.collector.otlp_http import unpacked

WEB = Sender("bank", "default", "web", "w1")


class Taken:
    """Keeps what it is given; `drops` is what it says that it had no room for."""

    def __init__(self, drops: int = 0) -> None:
        self.drops = drops
        self.got: list[tuple[str, Sender | None, Any]] = []

    def spans(self, sender: Sender | None, request: Any) -> int:
        self.got.append(("spans", sender, request))
        return self.drops

    def logs(self, sender: Sender, request: Any) -> int:
        self.got.append(("logs", sender, request))
        return self.drops

    def metrics(self, sender: Sender, request: Any) -> int:
        self.got.append(("metrics", sender, request))
        return self.drops

    def requests(self, records: Any) -> None:
        self.got.append(("requests", None, list(records)))


def spans(name: str = "work") -> trace.ExportTraceServiceRequest:
    request = trace.ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    scope.spans.add(trace_id=b"t" * 16, span_id=b"s" * 8, name=name)
    return request


def over_http(taken: Taken, scene: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    async def main() -> None:
        with tempfile.TemporaryDirectory(prefix="bs-") as folder:
            path = Path(folder) / "telemetry.sock"
            async with otlp_http.serve(Intake(taken, taken, taken, (taken,)), path):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
                transport = httpx.AsyncHTTPTransport(uds=str(path))
                headers = {"x-bedstone-instance": str(WEB), "content-type": otlp_http.PROTOBUF}
                async with httpx.AsyncClient(
                    transport=transport, base_url="http://collector", headers=headers
                ) as client:
                    await scene(client)

    asyncio.run(main())


def over_grpc(taken: Taken, scene: Callable[[grpc.aio.Channel], Awaitable[None]]) -> None:
    async def main() -> None:
        with tempfile.TemporaryDirectory(prefix="bs-") as folder:
            path = Path(folder) / "collector.sock"
            server = await otlp_grpc.serve(Intake(taken, taken, taken, (taken,)), path)
            try:
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
                async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
                    await scene(channel)
            finally:
                await server.stop(0)

    asyncio.run(main())


def export(channel: grpc.aio.Channel, service: str, request: Any, **more: Any) -> Any:
    method: Any = channel.unary_unary(
        f"/opentelemetry.proto.collector.{service}/Export",
        request_serializer=lambda message: message.SerializeToString(),
    )
    return method(request, **more)


def test_http_takes_each_signal_from_the_sender_that_the_proxy_names() -> None:
    taken = Taken()

    async def scene(client: httpx.AsyncClient) -> None:
        for path, request in (
            ("/v1/traces", spans()),
            ("/v1/logs", logs.ExportLogsServiceRequest()),
            ("/v1/metrics", metrics.ExportMetricsServiceRequest()),
        ):
            answer = await client.post(path, content=request.SerializeToString())
            assert (answer.status_code, answer.content) == (200, b"")

    over_http(taken, scene)
    assert [(kind, sender) for kind, sender, _ in taken.got] == [
        ("spans", WEB),
        ("logs", WEB),
        ("metrics", WEB),
    ]
    assert taken.got[0][2] == spans()


def test_http_takes_json_with_hexadecimal_identifiers_and_gzip() -> None:
    taken = Taken(drops=1)
    span = {"traceId": "ab" * 16, "spanId": "cd" * 8, "name": "work", "kind": 2, "later": True}
    body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}).encode()

    async def scene(client: httpx.AsyncClient) -> None:
        headers = {"content-type": "application/json; charset=utf-8", "content-encoding": "gzip"}
        answer = await client.post("/v1/traces", content=gzip.compress(body), headers=headers)
        assert answer.json() == {"partialSuccess": {"rejectedSpans": "1"}}

    over_http(taken, scene)
    got = taken.got[0][2].resource_spans[0].scope_spans[0].spans[0]
    assert (got.trace_id, got.span_id, got.kind) == (b"\xab" * 16, b"\xcd" * 8, 2)


@pytest.mark.parametrize(
    ("method", "path", "headers", "content", "status"),
    [
        ("POST", "/v1/traces", {"content-type": "text/plain"}, b"", 400),
        ("POST", "/v1/traces", {}, b"\xff\xff", 400),
        ("POST", "/v1/traces", {"content-type": "application/json"}, b"[" * 100_000, 400),
        ("POST", "/v1/traces", {"content-encoding": "gzip"}, b"no gzip", 400),
        ("POST", "/v1/traces", {"content-encoding": "br"}, b"", 400),
        ("POST", "/v1/traces", {}, b"x" * (LARGEST + 1), 400),
        ("POST", "/v1/traces", {"x-bedstone-instance": "bank/web"}, b"", 400),
        ("POST", "/v1/profiles", {}, b"", 404),
        ("GET", "/v1/traces", {}, b"", 400),
    ],
)
def test_http_refuses_what_it_cannot_take(
    method: str, path: str, headers: dict[str, str], content: bytes, status: int
) -> None:
    taken = Taken()

    async def scene(client: httpx.AsyncClient) -> None:
        answer = await client.request(method, path, headers=headers, content=content)
        assert answer.status_code == status
        if answer.headers["content-type"] == otlp_http.JSON:
            assert "message" in answer.json()
        else:
            assert Status.FromString(answer.content).message
        good = await client.post("/v1/traces", content=spans().SerializeToString())
        assert good.status_code == 200, "it goes on after that"

    over_http(taken, scene)
    assert len(taken.got) == 1


def test_http_refuses_whoever_did_not_come_through_a_proxy() -> None:
    taken = Taken()

    async def scene(client: httpx.AsyncClient) -> None:
        del client.headers["x-bedstone-instance"]
        answer = await client.post("/v1/traces", content=spans().SerializeToString())
        assert answer.status_code == 403

    over_http(taken, scene)
    assert taken.got == []


def test_a_body_that_unpacks_to_more_than_is_taken_is_refused_without_being_unpacked() -> None:
    bomb = gzip.compress(b"\0" * (64 << 20))
    with pytest.raises(InvalidError, match="too large"):
        unpacked(bomb, "gzip")
    with pytest.raises(InvalidError, match="ends too early"):
        unpacked(gzip.compress(b"whole")[:-9], "gzip")


def test_grpc_tells_what_the_proxy_says_from_what_instances_send() -> None:
    taken = Taken()

    async def scene(channel: grpc.aio.Channel) -> None:
        mine = (("x-bedstone-instance", str(WEB)),)
        await export(channel, "trace.v1.TraceService", spans())
        await export(channel, "trace.v1.TraceService", spans(), metadata=mine)
        await export(channel, "logs.v1.LogsService", logs.ExportLogsServiceRequest())
        await export(channel, "logs.v1.LogsService", logs.ExportLogsServiceRequest(), metadata=mine)
        request = metrics.ExportMetricsServiceRequest()
        await export(channel, "metrics.v1.MetricsService", request, metadata=mine)

    over_grpc(taken, scene)
    assert [(kind, sender) for kind, sender, _ in taken.got] == [
        ("spans", None),
        ("spans", WEB),
        ("requests", None),
        ("logs", WEB),
        ("metrics", WEB),
    ]


def test_grpc_says_how_many_were_dropped() -> None:
    async def scene(channel: grpc.aio.Channel) -> None:
        data = await export(channel, "trace.v1.TraceService", spans())
        answer = trace.ExportTraceServiceResponse.FromString(data)
        assert answer.partial_success.rejected_spans == 3

    over_grpc(Taken(drops=3), scene)


def many_records() -> logs.ExportLogsServiceRequest:
    request = logs.ExportLogsServiceRequest()
    scope = request.resource_logs.add().scope_logs.add()
    for _ in range(bounds.MOST + 1):
        scope.log_records.add()
    return request


def crowded() -> list[Any]:
    """Small requests that name too much, each in another place."""
    found: list[Any] = [many_records()]
    span = spans()
    for _ in range(bounds.MOST):
        span.resource_spans[0].scope_spans[0].spans[0].attributes.add()
    events = spans()
    event = events.resource_spans[0].scope_spans[0].spans[0].events.add()
    for _ in range(bounds.MOST):
        event.attributes.add()
    empty = metrics.ExportMetricsServiceRequest()
    for _ in range(bounds.MOST + 1):
        empty.resource_metrics.add()
    points = metrics.ExportMetricsServiceRequest()
    gauge = points.resource_metrics.add().scope_metrics.add().metrics.add().gauge
    for _ in range(bounds.MOST):
        gauge.data_points.add()
    nested = logs.ExportLogsServiceRequest()
    body = nested.resource_logs.add().scope_logs.add().log_records.add().body
    for _ in range(bounds.MOST * 2):
        body.array_value.values.add()
    return [*found, span, events, empty, points, nested]


@pytest.mark.parametrize("request_", crowded())
def test_a_request_that_names_too_much_is_refused_before_it_is_read(request_: Any) -> None:
    with pytest.raises(InvalidError, match="more than 50000 things"):
        otlp_http.decoded(type(request_)(), request_.SerializeToString(), otlp_http.PROTOBUF)


def test_a_full_batch_of_an_ordinary_exporter_is_taken() -> None:
    request = trace.ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for _ in range(2048):
        span = scope.spans.add(trace_id=b"t" * 16, span_id=b"s" * 8, name="work")
        for number in range(20):
            span.attributes.add(key=f"key.{number}").value.string_value = "value"
    bounds.refuse_many(request)


def test_json_that_names_too_much_is_refused_unread() -> None:
    body = (
        b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[' + b"{}," * bounds.MOST_JSON + b"{}]}]}]}"
    )
    with pytest.raises(InvalidError, match="more than 100000 parts"):
        otlp_http.decoded(logs.ExportLogsServiceRequest(), body, otlp_http.JSON)


@pytest.mark.parametrize("body", [b"5", b"null"])
def test_json_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidError, match="no OTLP request"):
        otlp_http.decoded(logs.ExportLogsServiceRequest(), body, otlp_http.JSON)


def test_who_has_used_up_its_share_comes_later_and_nobody_else() -> None:
    now, used = [100.0], [0.0]
    shares = bounds.Shares(lambda: now[0], lambda: used[0])
    with shares.turn("a"):
        used[0] += bounds.BURST + 1.0
    with pytest.raises(UnavailableError) as refused, shares.turn("a"):
        pass
    assert refused.value.retry_after == pytest.approx(1.0 + 1.0 / bounds.SHARE)
    with shares.turn("b"):
        pass
    now[0] += 1.0 / bounds.SHARE + 0.1
    with shares.turn("a"):
        pass


def test_what_is_received_of_one_sender_at_a_time_is_bounded() -> None:
    shares = bounds.Shares()
    shares.receive("a", bounds.ROOM)
    with pytest.raises(UnavailableError):
        shares.receive("a", 1)
    shares.receive("b", 1)
    shares.received("a", bounds.ROOM)
    shares.receive("a", 1)


def test_over_http_too_much_is_the_senders_fault() -> None:
    taken = Taken()

    async def scene(client: httpx.AsyncClient) -> None:
        refused = await client.post("/v1/logs", content=many_records().SerializeToString())
        assert refused.status_code == 400
        assert "more than 50000 things" in Status.FromString(refused.content).message

    over_http(taken, scene)
    assert taken.got == []


def test_over_grpc_too_much_and_malformed_are_the_senders_fault() -> None:
    taken = Taken()

    async def scene(channel: grpc.aio.Channel) -> None:
        call: Any = channel.unary_unary("/opentelemetry.proto.collector.logs.v1.LogsService/Export")
        for body in (many_records().SerializeToString(), b"\xff\xff"):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(body, metadata=(("x-bedstone-instance", str(WEB)),))
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT

    over_grpc(taken, scene)
    assert taken.got == []


def test_who_is_in_debt_is_refused_over_both_ways() -> None:
    taken = Taken()
    intake = Intake(taken, taken, taken, (taken,))
    used = [0.0]
    intake.shares._used = lambda: used[0]
    with intake.shares.turn(str(WEB)):
        used[0] += bounds.BURST + 5.0

    async def main() -> None:
        with tempfile.TemporaryDirectory(prefix="bs-") as folder:
            http, rpc = Path(folder) / "telemetry.sock", Path(folder) / "collector.sock"
            server = await otlp_grpc.serve(intake, rpc)
            async with (
                otlp_http.serve(intake, http),
                httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(http))) as client,
                grpc.aio.insecure_channel(f"unix:{rpc}") as channel,
            ):
                headers = {"x-bedstone-instance": str(WEB), "content-type": otlp_http.PROTOBUF}
                body = spans().SerializeToString()
                answer = await client.post("http://it/v1/traces", content=body, headers=headers)
                assert answer.status_code == 503
                assert int(answer.headers["retry-after"]) >= 50
                call: Any = channel.unary_unary(
                    "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
                )
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call(body, metadata=(("x-bedstone-instance", str(WEB)),))
                assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
                await call(body)  # the proxy's own
            await server.stop(0)

    asyncio.run(main())
    assert [(kind, sender) for kind, sender, _ in taken.got] == [("spans", None)]
