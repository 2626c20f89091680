"""From a measurement to its traces."""

from __future__ import annotations

from bedstone.control.monitoring.reading import Matcher
from bedstone.control.monitoring.traces.exemplars import EACH, ExemplarStore
from bedstone.control.monitoring.traces.sampler import Decided
from bedstone.control.monitoring.traces.spans import Span
from bedstone.telemetry import names
from bedstone.testing.spans import BEGIN, SECOND, span, trace_id

NOW = BEGIN / SECOND
EVER = (0.0, 2 * NOW)


def store(*spans: Span) -> ExemplarStore:
    made = ExemplarStore(lambda path: "r7" if path == "bank/default/web/w1" else "")
    made.kept([Decided(one.trace, [one], "sampled", late=False) for one in spans])
    return made


def inbound(trace: int, seconds: float, start: float = 0.0) -> Span:
    said = {"side": "inbound", "caller": "gateway", "callee": "web"}
    return span(trace, instance="w1", start=start, seconds=seconds, said=said)


def named(name: str) -> list[list[Matcher]]:
    return [[Matcher("__name__", "=", name)]]


def test_a_request_is_found_in_the_bucket_it_was_counted_in() -> None:
    found = store(inbound(1, 0.012), inbound(2, 0.25), inbound(3, 120.0)).matching(
        named("bedstone_request_seconds_bucket"), *EVER
    )
    assert {series["le"]: each[0].trace for series, each in found} == {
        "0.013": trace_id(1).hex(),
        "0.3": trace_id(2).hex(),
        "+Inf": trace_id(3).hex(),
    }
    for series, _ in found:
        assert {"revision": "r7", "instance": "w1", "node": "n1"}.items() <= series.items()
        assert series.keys() == {"__name__", "le", *names.SCOPE}


def test_of_each_bucket_the_last_few_are_remembered_and_given_by_time() -> None:
    many = store(*(inbound(n, 0.012, start=float(n)) for n in range(1, 11)))
    ((_, all_of_it),) = many.matching(named("bedstone_request_seconds_bucket"), *EVER)
    assert [int(each.trace, 16) for each in all_of_it] == [10 - EACH + n + 1 for n in range(EACH)]
    ((_, some),) = many.matching(named("bedstone_request_seconds_bucket"), NOW + 9.0, NOW + 9.5)
    assert [int(each.trace, 16) for each in some] == [9]
    assert many.matching(named("bedstone_request_seconds_bucket"), 0.0, NOW) == []


def test_a_request_from_outside_is_of_the_gateway_its_route_and_its_edge() -> None:
    one = span(5, service="gateway", said={"side": "gateway", "callee": "web"})
    one.data.attributes.add(key="http.route").value.string_value = "/api"
    found = store(one)
    for name, labels in (
        ("bedstone_gateway_request_seconds_bucket", set()),
        ("bedstone_route_request_seconds_bucket", {"route", "to"}),
        ("bedstone_edge_request_seconds_bucket", {"cell", "caller", "callee"}),
    ):
        ((series, _),) = found.matching(named(name), *EVER)
        assert series.keys() == {"__name__", "le", "app", "node"} | labels
    edge = [[Matcher("caller", "=", "gateway"), Matcher("callee", "=~", "we.*")]]
    assert len(found.matching(edge, *EVER)) == 1
    assert found.matching([[Matcher("callee", "=", "risk")]], *EVER) == []


def test_what_an_application_made_was_counted_nowhere() -> None:
    assert store(span(1, origin="application")).matching(named("x"), *EVER) == []
