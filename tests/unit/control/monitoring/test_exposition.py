"""The text that is scraped: families, both formats, and what must be escaped."""

from __future__ import annotations

import pytest

from bedstone.control.monitoring.exposition import OPEN_METRICS, TEXT, negotiated, written
from bedstone.control.monitoring.reading import SeriesKey
from bedstone.telemetry.names import REQUESTS

GIVEN = [
    (SeriesKey("bedstone_request_seconds_count", (("app", "b"),), "counter"), 3.0),
    (SeriesKey("bedstone_request_seconds_bucket", (("app", "b"), ("le", "+Inf")), "counter"), 3.0),
    (SeriesKey("bedstone_request_seconds_bucket", (("app", "b"), ("le", "10")), "counter"), 2.0),
    (SeriesKey("bedstone_request_seconds_bucket", (("app", "b"), ("le", "2.5")), "counter"), 1.0),
    (SeriesKey("bedstone_request_seconds_sum", (("app", "b"),), "counter"), 0.25),
    (SeriesKey("bedstone_requests_total", (("code", "2xx"),), "counter"), 7.0),
    (SeriesKey("orders", (("who", 'a"b\\c\nd'),), "counter"), 1e21),
    (SeriesKey("orders_count", (), "gauge"), float("nan")),
]


def test_prometheus_text() -> None:
    assert written(GIVEN, TEXT).decode().splitlines() == [
        "# HELP bedstone_request_seconds How long requests to an instance took, at its proxy.",
        "# TYPE bedstone_request_seconds histogram",
        'bedstone_request_seconds_bucket{app="b",le="2.5"} 1',
        'bedstone_request_seconds_bucket{app="b",le="10"} 2',
        'bedstone_request_seconds_bucket{app="b",le="+Inf"} 3',
        'bedstone_request_seconds_sum{app="b"} 0.25',
        'bedstone_request_seconds_count{app="b"} 3',
        f"# HELP bedstone_requests_total {REQUESTS.help}",
        "# TYPE bedstone_requests_total counter",
        'bedstone_requests_total{code="2xx"} 7',
        "# HELP orders A metric of an application's own.",
        "# TYPE orders counter",
        'orders{who="a\\"b\\\\c\\nd"} 1e+21',
        "# HELP orders_count A metric of an application's own.",
        "# TYPE orders_count gauge",
        "orders_count NaN",
    ]


def test_open_metrics_names_families_without_their_suffix_and_ends() -> None:
    lines = written(GIVEN, OPEN_METRICS).decode().splitlines()
    assert "# TYPE bedstone_requests counter" in lines
    assert 'bedstone_requests_total{code="2xx"} 7' in lines
    assert "# UNIT bedstone_request_seconds seconds" in lines
    assert "# TYPE orders unknown" in lines, "a counter's samples must end with _total"
    assert lines[-1] == "# EOF"
    assert lines.count("# EOF") == 1


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("", TEXT),
        ("text/plain", TEXT),
        ("*/*", TEXT),
        ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5", OPEN_METRICS),
        ("application/openmetrics-text", OPEN_METRICS),
        ("application/openmetrics-text; version=2.0.0, text/plain", TEXT),
    ],
)
def test_open_metrics_is_for_who_asks_for_it(accept: str, media: str) -> None:
    assert negotiated(accept) == media
