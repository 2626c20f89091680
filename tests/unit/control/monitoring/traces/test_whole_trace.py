"""One trace from what proxies and applications tell of it."""

from __future__ import annotations

import pytest

from bedstone.control.monitoring.traces import trace
from bedstone.control.monitoring.traces.spans import Span, decode, encode, shown
from bedstone.control.monitoring.traces.trace import summary, whole
from bedstone.testing.spans import BEGIN, SECOND, span, span_id


def written(
    number: int, side: str, service: str, start: float, seconds: float, **more: str
) -> Span:
    """A request that a proxy wrote down, without a span."""
    return span(
        1,
        number,
        service=service,
        origin="access-log",
        kind=3 if side == "outbound" else 2,
        start=start,
        seconds=seconds,
        error=True,
        said={"side": side, **more},
    )


def parents(spans: list[Span]) -> dict[int, int]:
    return {
        int.from_bytes(one.span, "big"): int.from_bytes(one.parent, "big") for one in whole(spans)
    }


def test_what_was_written_down_at_each_hop_is_nested_as_it_was_called() -> None:
    spans = [
        written(4, "inbound", "accounts", 0.03, 0.04, caller="web"),
        written(1, "gateway", "gateway", 0.0, 0.1, callee="web", caller="gateway"),
        written(3, "outbound", "web", 0.02, 0.06, callee="accounts", caller="web"),
        written(2, "inbound", "web", 0.01, 0.08, caller="gateway"),
    ]
    assert parents(spans) == {1: 0, 2: 1, 3: 2, 4: 3}


def test_of_two_calls_the_one_around_it_led_to_it() -> None:
    spans = [
        written(1, "outbound", "web", 0.0, 0.1, callee="risk", caller="web"),
        written(2, "outbound", "web", 0.2, 0.1, callee="risk", caller="web"),
        written(3, "inbound", "risk", 0.21, 0.05, caller="web"),
    ]
    assert parents(spans)[3] == 2


def test_a_call_goes_below_the_innermost_span_that_its_instance_was_serving() -> None:
    spans = [
        span(1, 1, service="web", instance="w1", start=0.0, seconds=0.1),
        span(1, 2, 1, service="web", instance="w1", origin="application", start=0.01, seconds=0.08),
        span(1, 3, service="web", instance="w2", start=0.0, seconds=0.09),
        written(4, "outbound", "web", 0.02, 0.05, callee="risk", caller="web"),
    ]
    assert parents(spans)[4] == 2


def test_a_workload_that_calls_itself_is_not_below_itself() -> None:
    spans = [
        written(1, "inbound", "web", 0.0, 0.004, caller="web"),
        written(2, "outbound", "web", 0.0, 0.004, callee="web", caller="web"),
    ]
    found = parents(spans)
    assert sorted(found.values()) in ([0, 1], [0, 2])


def test_what_led_to_it_may_be_unknown() -> None:
    assert parents([written(1, "inbound", "risk", 0.0, 0.1, caller="web")]) == {1: 0}
    spans = [
        written(1, "outbound", "web", 5.0, 0.1, callee="risk", caller="web"),
        written(2, "inbound", "risk", 0.0, 0.1, caller="web"),
    ]
    assert parents(spans) == {1: 0, 2: 0}


def test_a_request_with_a_span_is_told_once_by_the_span() -> None:
    made = span(1, 7, 3, service="web", error=True)
    said = written(7, "inbound", "web", 0.0, 0.01, caller="gateway")
    for both in ([made, said], [said, made], [said, made, made]):
        (one,) = whole(both)
        assert (one.whose.origin, one.parent) == ("proxy", span_id(3))


def test_a_trace_is_summed_up_by_the_first_span_that_we_know() -> None:
    spans = whole(
        [
            span(1, 2, 9, service="gateway", name="POST /transfers", seconds=0.5, status=201),
            span(1, 3, 2, service="web", start=0.1, seconds=0.2),
            span(1, 4, 3, service="accounts", start=0.1, seconds=0.6, error=True),
        ]
    )
    said = summary(spans, "error")
    assert said.name == "POST /transfers"
    assert (said.app, said.status, said.spans, said.errors) == ("bank", 201, 3, 1)
    assert said.services == ("accounts", "gateway", "web")
    assert (said.start, round(said.seconds, 9)) == (BEGIN / SECOND, 0.7)


def test_a_span_is_shown_with_its_attributes_and_events() -> None:
    one = span(1, 2, 1, error=True, said={"flags": "UF"})
    event = one.data.events.add(name="exception", time_unix_nano=BEGIN)
    event.attributes.add(key="exception.type").value.string_value = "ValueError"
    item = one.data.attributes.add(key="sizes")
    for number in (1.5, float("nan")):
        item.value.array_value.values.add().double_value = number
    seen = shown(one)
    assert (seen.parent, seen.kind, seen.origin) == (span_id(1).hex(), "server", "proxy")
    assert seen.attributes == {"bedstone.flags": "UF", "sizes": [1.5, "nan"]}
    assert seen.events[0].attributes == {"exception.type": "ValueError"}


def test_thousands_of_requests_in_one_trace_are_put_together_without_comparing_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who calls chooses the trace: nobody may hold the server up with a long one."""
    read = 0

    def texts(one: Span) -> dict[str, object]:
        nonlocal read
        read += 1
        return original(one)

    original = trace._texts
    monkeypatch.setattr(trace, "_texts", texts)
    spans = []
    for number in range(1000):
        at = number * 0.01
        spans += [
            written(2 * number + 1, "gateway", "gateway", at, 0.009, callee="web"),
            written(2 * number + 2, "inbound", "web", at + 0.001, 0.007, caller="gateway"),
        ]
    found = parents(spans)
    assert all(found[2 * n + 2] == 2 * n + 1 for n in range(1000))
    assert read <= len(spans)


@pytest.mark.parametrize(
    ("status", "failed"), [(404, False), (403, False), (None, True), (500, True), (503, True)]
)
def test_who_is_answered_no_has_not_failed(status: int | None, *, failed: bool) -> None:
    """Libraries mark the call as an error then, which would keep every trace of a search."""
    called = span(kind=3, origin="application", status=status)
    called.data.status.code = 2
    (read,) = decode(encode([called]))
    assert read.error is failed
