"""What leaves a node of spans: whose they are, what of them, and how much."""

from __future__ import annotations

import asyncio
import base64
import zlib
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bedstone.model.messages import Spans
from bedstone.node.collector.intake import Sender
from bedstone.node.collector.outgoing import Outgoing
from bedstone.node.collector.runtime import share
from bedstone.node.collector.sampling import LEAST, Sampling, next_share
from bedstone.node.collector.spans import of_application, of_proxy, of_request, shape
from bedstone.telemetry import requests
from bedstone.telemetry.requests import Hop, ProxyRequest

NOW = 1_800_000_000.0
WEB = Sender("bank", "default", "web", "w1")


def exported(count: int = 1, **fields: Any) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "risk"
    scope = resource.scope_spans.add()
    usual: dict[str, Any] = {
        "trace_id": b"t" * 16,
        "name": "work",
        "start_time_unix_nano": int(NOW * 1e9),
        "end_time_unix_nano": int(NOW * 1e9) + 1000,
    }
    for number in range(count):
        scope.spans.add(**(usual | {"span_id": (number + 1).to_bytes(8, "big")} | fields))
    return request


def from_proxy(**tags: str) -> ExportTraceServiceRequest:
    request = exported()
    (one,) = request.resource_spans[0].scope_spans[0].spans
    for key, text in tags.items():
        one.attributes.add(key=key).value.string_value = text
    return request


def record(**fields: Any) -> ProxyRequest:
    usual: dict[str, Any] = {
        "hop": Hop("inbound", "bank", "default", "web", "w1"),
        "source": "gateway",
        "target": "web",
        "method": "GET",
        "path": "/a",
        "route": "",
        "status": 500,
        "flags": "",
        "grpc": None,
        "details": "via_upstream",
        "start": NOW,
        "seconds": 0.25,
        "bytes_in": 0,
        "bytes_out": 10,
        "trace": "ab" * 16,
        "span": "cd" * 8,
    }
    return ProxyRequest(**(usual | fields))


def texts(span: Any) -> dict[str, Any]:
    return {
        item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes
    }


def test_what_an_application_says_of_itself_counts_for_nothing() -> None:
    (told,) = of_application(WEB, exported(), NOW)
    assert told is not None
    assert told.group[:5] == ("application", "bank", "default", "web", "w1")


@pytest.mark.parametrize(
    "fields",
    [
        {"trace_id": b"short"},
        {"trace_id": bytes(16)},
        {"span_id": b""},
        {"span_id": bytes(8)},
        {"parent_span_id": b"xy"},
        {"start_time_unix_nano": int((NOW + 120) * 1e9)},
        {"start_time_unix_nano": 0},
    ],
)
def test_spans_without_identifiers_or_of_another_time_are_refused(fields: dict[str, Any]) -> None:
    assert list(of_application(WEB, exported(**fields), NOW)) == [None]


def test_an_applications_span_is_cut_to_its_bounds_and_urls_to_their_paths() -> None:
    request = exported(name="n" * 1000, trace_state="s" * 1000)
    (one,) = request.resource_spans[0].scope_spans[0].spans
    one.attributes.add(key="url.full").value.string_value = "http://risk/score?key=secret"
    one.attributes.add(key="url.query").value.string_value = "key=secret"
    one.attributes.add(key="long").value.string_value = "x" * 5000
    one.attributes.add(key="many").value.array_value.values.add().string_value = "y" * 5000
    for number in range(100):
        one.attributes.add(key=f"k{number}").value.int_value = number
        one.events.add(name=f"e{number}")
        one.links.add(trace_id=b"l" * 16, span_id=b"l" * 8)
    (told,) = of_application(WEB, request, NOW)
    assert told is not None
    seen = texts(told.span)
    assert b"secret" not in told.span.SerializeToString()
    assert seen["url.full"] == "http://risk/score"
    assert seen["many"].endswith("bytes)")
    assert (len(seen["long"]), len(seen), len(told.span.name)) == (1024, 63, 200)
    assert [event.name for event in told.span.events] == [f"e{n}" for n in range(68, 100)]
    assert len(told.span.links) == 8
    assert told.span.ByteSize() < 4000


def test_a_proxys_span_gets_known_attributes_and_no_query() -> None:
    request = from_proxy(
        **{
            requests.HOP_TAG: "outbound/bank/default/web/w1",
            "upstream_cluster.name": "to/bank/default/web/accounts",
            "http.method": "PUT",
            "http.url": "http://accounts/transfers/18f6d3e2-4a51-4f4e-9f0e-2b1d3c4e5f60?key=secret",
            "http.status_code": "503",
            "response_flags": "UF",
            "peer.address": "10.0.0.1",
        }
    )
    told = of_proxy(request.resource_spans[0].scope_spans[0].spans[0])
    assert told is not None
    assert told.group == ("proxy", "bank", "default", "web", "w1", "")
    assert told.span.name == "PUT accounts/transfers/{id}"
    assert told.span.kind == 3
    assert told.span.status.code == 2
    seen = texts(told.span)
    assert seen["http.response.status_code"] == 503
    assert seen["error.type"] == "connect"
    assert seen["bedstone.callee"] == "accounts"
    assert "peer.address" not in seen
    assert b"secret" not in told.span.SerializeToString()


def test_a_span_of_no_hop_of_ours_is_left_out() -> None:
    request = from_proxy(**{requests.HOP_TAG: "other/x"})
    assert of_proxy(request.resource_spans[0].scope_spans[0].spans[0]) is None


def test_a_request_that_was_written_down_is_the_span_that_the_proxy_would_have_made() -> None:
    told = of_request(record(path="/a"))
    assert told is not None
    assert told.group == ("access-log", "bank", "default", "web", "w1", "")
    assert (told.span.trace_id.hex(), told.span.span_id.hex()) == ("ab" * 16, "cd" * 8)
    assert told.span.end_time_unix_nano - told.span.start_time_unix_nano == 250_000_000
    assert told.span.status.code == 2
    assert of_request(record(trace="")) is None


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/", "/"),
        ("/accounts/42/lines", "/accounts/{id}/lines"),
        ("/a/78995519-f8f2-41c5-96d5-7369009e595f", "/a/{id}"),
        ("/v1/things", "/v1/things"),
        ("/files/aGVsbG8gd29ybGQ0NQ", "/files/{id}"),
        ("/transactions/prepare-everything", "/transactions/prepare-everything"),
        ("/" + "x" * 5000, "/{id}"),
        ("/" + "a/" * 500, "/a/a/a/a/a/a/a/a/a"),
    ],
)
def test_requests_of_one_kind_have_one_name(path: str, name: str) -> None:
    assert shape(path) == name


class Stream:
    """The stream to the server: open or not."""

    def __init__(self) -> None:
        self.open = True
        self.sent: list[Spans] = []

    def send(self, message: Spans) -> bool:
        if self.open:
            self.sent.append(message)
        return self.open

    async def drained(self) -> None:
        """It is never slow."""

    def spans(self) -> list[Any]:
        found: list[Any] = []
        for message in self.sent:
            body = zlib.decompress(base64.b64decode(message.body))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    found += scope.spans
        return found


async def flushed(outgoing: Outgoing) -> None:
    task = asyncio.ensure_future(outgoing.run())
    await asyncio.sleep(0.6)
    task.cancel()


def test_while_the_stream_is_away_spans_wait_in_bounded_room_and_the_rest_is_counted() -> None:
    async def scene() -> None:
        stream = Stream()
        stream.open = False
        outgoing = Outgoing(stream.send, stream.drained, lambda: NOW, room=100)
        assert outgoing.spans(WEB, exported(80)) == 30, "one sender gets half of the room"
        other = WEB._replace(workload="risk")
        assert outgoing.spans(other, exported(60)) == 35, "applications get three quarters"
        outgoing.requests([record(status=503, span=f"{number:016x}") for number in range(1, 31)])
        assert outgoing.waiting == 100, "the proxies have the rest"
        await flushed(outgoing)
        assert stream.sent == []
        stream.open = True
        await flushed(outgoing)
        assert len(stream.spans()) == 100
        assert sum(message.dropped for message in stream.sent) == 70
        assert outgoing.spans(WEB, exported(50)) == 0, "there is room again"

    asyncio.run(scene())


def test_requests_that_are_only_tapped_are_not_for_traces() -> None:
    async def scene() -> None:
        stream = Stream()
        outgoing = Outgoing(stream.send, stream.drained, lambda: NOW)
        outgoing.requests(
            [
                record(status=200, seconds=0.01, span="01" * 8),
                record(status=200, seconds=0.5, span="02" * 8),
                record(status=101, seconds=500.0, span="03" * 8),
                record(status=404, seconds=0.01, span="04" * 8),
                record(status=503, seconds=0.01, span="05" * 8),
            ]
        )
        assert (outgoing.written(), outgoing.written()) == (2, 0)
        await flushed(outgoing)
        assert [span.span_id.hex() for span in stream.spans()] == ["02" * 8, "05" * 8]

    asyncio.run(scene())


def test_traces_are_counted_where_they_begin() -> None:
    stream = Stream()
    outgoing = Outgoing(stream.send, stream.drained, lambda: NOW)
    for name, parent in (
        ("gateway/bank", b"p" * 8),
        ("inbound/bank/default/web/w1", b"p" * 8),
        ("outbound/bank/default/web/w1", b""),
    ):
        request = from_proxy(**{requests.HOP_TAG: name})
        request.resource_spans[0].scope_spans[0].spans[0].parent_span_id = parent
        outgoing.spans(None, request)
    assert (outgoing.begun(), outgoing.begun()) == (2, 0)


def test_the_share_follows_the_rate_of_requests() -> None:
    now, rate = 1.0, 1_500
    begun = []
    for _ in range(20):
        begun.append(round(rate * now))
        now = next_share(now, begun[-1], 20.0)
    assert begun[0] == 1_500
    assert all(15 <= count <= 25 for count in begun[1:])
    rate = 5
    for _ in range(40):
        now = next_share(now, round(rate * now), 20.0)
    assert now == 1.0, "at a low rate every trace is kept again"
    assert next_share(LEAST, 1_000_000, 20.0) == LEAST


def test_a_fixed_share_holds_until_it_is_taken_back() -> None:
    class Runtime:
        def __init__(self) -> None:
            self.values: dict[str, str | None] = {}

        def set(self, key: str, value: str | None) -> None:
            self.values[key] = value

    runtime = Runtime()
    sampling = Sampling(runtime, lambda: 1000, lambda: 0)  # type: ignore[arg-type]
    sampling.tick()
    assert sampling.share == 0.02
    sampling.fix(0.0)
    sampling.tick()
    assert sampling.share == 0.0
    assert runtime.values[requests.SAMPLING_KEY] == "0"
    sampling.fix(None)
    assert sampling.share == 1.0


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.0, "0"), (-1.0, "0"), (0.001, "1"), (0.01, "1"), (0.5, "50"), (0.501, "51"), (2.0, "100")],
)
def test_a_share_is_told_in_whole_percents(value: float, told: str) -> None:
    """A proxy takes nothing else; above none, it is never told to be none."""
    assert share(value) == told
