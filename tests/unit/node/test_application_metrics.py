"""What applications export becomes series: named by the rules, counted once, and whose they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.sdk.metrics import (
    Counter,
    Histogram,
    MeterProvider,
    ObservableCounter,
    UpDownCounter,
)
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource

from bedstone.node.collector import application
from bedstone.node.collector.application import ApplicationMetrics, Life
from bedstone.node.collector.intake import Sender
from bedstone.node.collector.otlp_metrics import (
    Refused,
    exponential_buckets,
    points,
    series_labels,
    series_name,
)

WEB = Sender("bank", "default", "web", "web-1")
DELTA = dict.fromkeys(
    (Counter, Histogram, ObservableCounter, UpDownCounter), AggregationTemporality.DELTA
)


class Process:
    """An application's process with OpenTelemetry's own library."""

    def __init__(
        self, *views: View, delta: bool = False, resource: Mapping[str, str] | None = None
    ) -> None:
        self.reader = InMemoryMetricReader(preferred_temporality=DELTA if delta else None)  # type: ignore[arg-type]
        provider = MeterProvider([self.reader], Resource(dict(resource or {})), views=views)
        self.meter = provider.get_meter("shop")

    def export(self) -> ExportMetricsServiceRequest:
        data = self.reader.get_metrics_data()
        assert data is not None
        request: ExportMetricsServiceRequest = encode_metrics(data)
        return request


class Node:
    """A node on which one instance runs, perhaps."""

    def __init__(self, most: int = 2000) -> None:
        self.lives: dict[str, Life] = {str(WEB): Life("r1", "10:1")}
        self.told: list[tuple[Sender, str]] = []
        self.now = 0.0
        self.metrics = ApplicationMetrics(
            "local",
            self.lives.get,
            lambda sender, text: self.told.append((sender, text)),
            lambda: self.now,
            most=most,
        )

    def values(self, *more: str) -> Mapping[str, float]:
        """Values by name and the application's own labels."""
        own = {"app", "cell", "workload", "revision", "instance", "node"} - set(more)
        return {
            series.name + "".join(f" {k}={v}" for k, v in series.labels if k not in own): value
            for series, value in self.metrics.collect()[0].items()
        }


def test_every_kind_is_named_and_counted_by_the_rules() -> None:
    process, node = Process(), Node()
    process.meter.create_counter("http.payments", unit="{payment}").add(3, {"card.kind": "x"})
    process.meter.create_counter("sent", unit="By").add(2.5)
    process.meter.create_up_down_counter("queue.length").add(-2)
    process.meter.create_gauge("disk.used", unit="1").set(0.25)
    histogram = process.meter.create_histogram("work", unit="s")
    for value in (3, 7, 20_000):
        histogram.record(value)
    assert node.metrics.metrics(WEB, process.export()) == 0
    values = node.values()
    assert values["http_payments_total card_kind=x"] == 3
    assert values["sent_bytes_total"] == 2.5
    assert values["queue_length"] == -2
    assert values["disk_used_ratio"] == 0.25
    assert values["work_seconds_count"] == 3
    assert values["work_seconds_sum"] == 20_010
    assert values["work_seconds_bucket le=0.0"] == 0
    assert values["work_seconds_bucket le=5.0"] == 1
    assert values["work_seconds_bucket le=10.0"] == 2
    assert values["work_seconds_bucket le=10000.0"] == 2
    assert values["work_seconds_bucket le=+Inf"] == 3
    kinds = {series.name: series.kind for series in node.metrics.collect()[0]}
    assert kinds["queue_length"] == kinds["disk_used_ratio"] == "gauge"
    assert kinds["http_payments_total"] == kinds["work_seconds_bucket"] == "counter"


def test_whose_a_series_is_says_the_proxy_and_never_the_application() -> None:
    forged = {"service.name": "risk", "app": "other", "service.instance.id": "risk-9"}
    process, node = Process(resource=forged), Node()
    labels = {"app": "other", "workload": "risk", "instance": "risk-9", "kind": "card"}
    process.meter.create_counter("payments").add(1, labels)
    node.metrics.metrics(WEB, process.export())
    ((series, value),) = node.metrics.collect()[0].items()
    assert value == 1
    assert dict(series.labels) == {
        "app": "bank",
        "cell": "default",
        "workload": "web",
        "revision": "r1",
        "instance": "web-1",
        "node": "local",
        "kind": "card",
        "exported_app": "other",
        "exported_workload": "risk",
        "exported_instance": "risk-9",
    }
    assert series.source == "application/bank/default/web/web-1"
    assert node.metrics.collect()[1] == {series.source: "10:1"}


def test_names_of_ours_cannot_be_written() -> None:
    process, node = Process(), Node()
    process.meter.create_counter("bedstone_requests").add(1)
    process.meter.create_counter("bedstone.requests.total").add(1)
    process.meter.create_counter("fine").add(1)
    assert node.metrics.metrics(WEB, process.export()) == 2
    assert set(node.values()) == {"fine_total"}
    assert "is ours" in node.told[0][1]


@pytest.mark.parametrize("delta", [False, True])
def test_a_value_counts_once_however_often_it_comes(*, delta: bool) -> None:
    process, node = Process(delta=delta), Node()
    counter, length = (
        process.meter.create_counter("n"),
        process.meter.create_up_down_counter("length"),
    )
    histogram = process.meter.create_histogram("h")
    first = None
    for n in range(1, 4):
        counter.add(n)
        length.add(1 if n < 3 else -1)
        histogram.record(7)
        request = process.export()
        first = first or request
        node.metrics.metrics(WEB, request)
        node.metrics.metrics(WEB, request)  # the sender heard no answer
    assert first is not None
    node.metrics.metrics(WEB, first)  # late
    values = node.values()
    assert (values["n_total"], values["length"]) == (6, 1)
    assert (values["h_count"], values["h_sum"], values["h_bucket le=10.0"]) == (3, 21, 3)


def test_processes_of_one_instance_add_up() -> None:
    """Workers that count the same, also those that end and begin anew."""
    node = Node()
    workers = [Process(resource={"pid": str(n)}) for n in range(3)]
    for n, worker in enumerate(workers, 1):
        worker.meter.create_counter("n").add(n)
        worker.meter.create_gauge("g").set(n)
        node.metrics.metrics(WEB, worker.export())
    assert node.values()["n_total"] == 6
    assert node.values()["g"] == 3, "a gauge is the last one"
    again = Process(resource={"pid": "0"})  # under the same identity, as after a fork
    again.meter.create_counter("n").add(10)
    node.metrics.metrics(WEB, again.export())
    assert node.values()["n_total"] == 16, "what the first had counted stays"


def test_streams_are_bounded_and_what_they_counted_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "STREAMS", 2)
    node = Node()
    for n in range(3):
        worker = Process(resource={"pid": str(n)})
        worker.meter.create_counter("n").add(1)
        assert node.metrics.metrics(WEB, worker.export()) == (1 if n == 2 else 0)
    monkeypatch.setattr(application, "ENDED", 0)
    worker = Process(resource={"pid": "late"})
    worker.meter.create_counter("n").add(1)
    assert node.metrics.metrics(WEB, worker.export()) == 0
    assert node.values()["n_total"] == 3


def test_another_process_is_another_life_and_a_gone_instance_has_no_series() -> None:
    process, node = Process(), Node()
    process.meter.create_counter("n").add(5)
    node.metrics.metrics(WEB, process.export())
    node.lives[str(WEB)] = Life("r2", "11:2")
    assert node.metrics.collect() == ({}, {})
    process = Process()
    process.meter.create_counter("n").add(1)
    node.metrics.metrics(WEB, process.export())
    values, incarnations = node.metrics.collect()
    assert list(values.values()) == [1]
    assert dict(next(iter(values)).labels)["revision"] == "r2"
    assert incarnations == {"application/bank/default/web/web-1": "11:2"}
    del node.lives[str(WEB)]
    assert node.metrics.metrics(WEB, process.export()) == 1, "nobody is there to have it"
    assert node.metrics.collect() == ({}, {})


def test_series_are_bounded_and_that_is_said_now_and_then() -> None:
    process, node = Process(), Node(most=3)
    counter = process.meter.create_counter("n")
    for n in range(10):
        counter.add(1, {"user": str(n)})
    for second in range(70):
        node.now = float(second)
        assert node.metrics.metrics(WEB, process.export()) == 7
    assert len(node.values()) == 3
    assert [text for _, text in node.told] == ["metrics were dropped: more than 3 series"] * 2


def test_a_name_is_a_counter_or_a_gauge() -> None:
    one, two, node = Process(), Process(), Node()
    one.meter.create_up_down_counter("n_total").add(1)
    two.meter.create_counter("n").add(1)
    assert node.metrics.metrics(WEB, one.export()) == 0
    assert node.metrics.metrics(WEB, two.export()) == 1


def test_exponential_histograms_are_joined_without_guessing() -> None:
    process = Process(
        View(instrument_name="*", aggregation=ExponentialBucketHistogramAggregation())
    )
    node, histogram = Node(), process.meter.create_histogram("d", unit="s")
    measured = [0.0, 0.001, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 100.0]
    for value in measured:
        histogram.record(value)
    assert node.metrics.metrics(WEB, process.export()) == 0
    values = node.values()
    buckets = {
        float(name.partition("le=")[2]): value
        for name, value in values.items()
        if "_bucket" in name
    }
    assert values["d_seconds_count"] == buckets[math.inf] == len(measured)
    for bound, count in buckets.items():
        assert count == sum(value <= bound for value in measured), bound
    assert {0.5, 1.0, 2.0} <= set(buckets)


@given(
    st.integers(-20, 20),
    st.lists(st.integers(0, 50), max_size=40),
    st.integers(-100, 100),
    st.lists(st.integers(0, 50), max_size=40),
    st.integers(0, 9),
)
def test_no_count_of_an_exponential_histogram_is_lost(
    scale: int, positive: list[int], offset: int, negative: list[int], zeros: int
) -> None:
    found = exponential_buckets(scale, zeros, 0.0, (offset, positive), (offset, negative))
    bounds = [bound for bound, _ in found]
    assert bounds == sorted(bounds)
    counted = sum(count for _, count in found)
    assert counted <= sum(positive) + sum(negative) + zeros
    if scale >= 1 and (zeros or any(negative) or not negative):
        assert counted in {
            sum(positive) + sum(negative) + zeros,
            sum(positive) + sum(negative),
            sum(positive) + zeros,
        }


def test_what_is_no_number_and_what_does_not_fit_is_refused() -> None:
    request = ExportMetricsServiceRequest()
    scope = request.resource_metrics.add().scope_metrics.add()
    scope.metrics.add(name="nan").gauge.data_points.add(as_double=math.nan)
    scope.metrics.add(name="infinite").sum.data_points.add(as_double=math.inf)
    bad = scope.metrics.add(name="bad").histogram
    bad.data_points.add(count=1, bucket_counts=[1, 2, 3], explicit_bounds=[1.0], sum=1.0)
    scope.metrics.add(name="quantiles").summary.data_points.add(count=1)
    wide = scope.metrics.add(name="wide").exponential_histogram.data_points.add(count=1)
    wide.positive.bucket_counts.extend([0] * 2000)
    scope.metrics.add(name="!!!").gauge.data_points.add(as_int=1)
    scope.metrics.add(name="nothing")
    scope.metrics.add(name="gone").gauge.data_points.add(flags=1)
    refused = Refused()
    assert list(points(request, refused)) == []
    assert refused.count == 6


@pytest.mark.parametrize(
    ("name", "unit", "kind", "expected"),
    [
        ("http.server.duration", "ms", "", "http_server_duration_milliseconds"),
        ("http.server.duration", "s", "", "http_server_duration_seconds"),
        ("requests", "1", "counter", "requests_total"),
        ("requests_total", "", "counter", "requests_total"),
        ("requests", "{request}/s", "gauge", "requests_per_second"),
        ("io", "By/s", "gauge", "io_bytes_per_second"),
        ("cpu_seconds", "s", "counter", "cpu_seconds_total"),
        ("share", "1", "gauge", "share_ratio"),
        ("share", "%", "gauge", "share_percent"),
        ("a--b..c", "", "", "a_b_c"),
        ("7up", "", "", "_7up"),
        ("naïve", "", "", "na_ve"),
        ("", "s", "", ""),
        ("..", "", "", ""),
    ],
)
def test_names_follow_the_rules(name: str, unit: str, kind: str, expected: str) -> None:
    assert series_name(name, unit, counter=kind == "counter", gauge=kind == "gauge") == expected


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=600), max_size=40))
def test_labels_are_always_valid(attributes: dict[str, str]) -> None:
    request: Any = ExportMetricsServiceRequest()
    point = request.resource_metrics.add().scope_metrics.add().metrics.add().gauge.data_points.add()
    for key, value in attributes.items():
        point.attributes.add(key=key).value.string_value = value
    labels = series_labels(point.attributes)
    assert list(labels) == sorted(labels)
    assert len({name for name, _ in labels}) == len(labels) <= 30
    for name, value in labels:
        assert name.isascii()
        assert name.replace("_", "a").isalnum()
        assert not name[0].isdigit()
        assert 0 < len(value) <= 500


@st.composite
def requests_of_anybody(draw: st.DrawFn) -> ExportMetricsServiceRequest:
    """Requests that are well-formed protobuf, and otherwise anything."""
    request = ExportMetricsServiceRequest()
    scope = request.resource_metrics.add().scope_metrics.add()
    numbers = st.integers(0, 2**64 - 1)
    times = st.sampled_from([0, 1, 10**18])
    for _ in range(draw(st.integers(0, 4))):
        metric = scope.metrics.add(name=draw(st.text(max_size=5)), unit=draw(st.text(max_size=3)))
        which = draw(st.sampled_from(["gauge", "sum", "histogram", "exponential_histogram"]))
        data = getattr(metric, which)
        if which != "gauge":
            data.aggregation_temporality = draw(st.integers(0, 2))
        if which == "sum":
            data.is_monotonic = draw(st.booleans())
        point = data.data_points.add(
            time_unix_nano=draw(times),
            start_time_unix_nano=draw(times),
            flags=draw(st.integers(0, 1)),
        )
        match which:
            case "gauge" | "sum":
                point.as_double = draw(st.floats())
            case "histogram":
                point.count, point.sum = draw(numbers), draw(st.floats())
                point.bucket_counts.extend(draw(st.lists(numbers, max_size=3)))
                point.explicit_bounds.extend(draw(st.lists(st.floats(), max_size=3)))
            case _:
                point.count = draw(numbers)
                point.scale = draw(st.integers(-(2**31), 2**31 - 1))
                for side in (point.positive, point.negative):
                    side.offset = draw(st.integers(-(2**31), 2**31 - 1))
                    side.bucket_counts.extend(draw(st.lists(numbers, max_size=3)))
    return request


@given(st.lists(requests_of_anybody(), max_size=4))
def test_no_request_breaks_the_collector(requests: list[ExportMetricsServiceRequest]) -> None:
    """And of whatever comes, counters only grow, and every value is a number."""
    node = Node()
    before: Mapping[Any, float] = {}
    for request in requests:
        node.metrics.metrics(WEB, request)
        values, _ = node.metrics.collect()
        for series, value in values.items():
            assert math.isfinite(value)
            if series.kind == "counter" and not series.name.endswith("_sum"):
                assert value >= before.get(series, 0.0)
        before = values
