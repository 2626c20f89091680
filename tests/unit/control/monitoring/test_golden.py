"""Golden signals out of series: what is said, and that a gap is never taken for a zero."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest

from bedstone.control.monitoring.golden import Golden
from bedstone.control.monitoring.increases import increases, quantiles, steps
from bedstone.control.monitoring.measuring import Measuring
from bedstone.telemetry import names
from bedstone.testing.series import MemoryReader

START = 1_800_000_000
NAN = math.nan


class World:
    """Series of one app, written second by second."""

    def __init__(self) -> None:
        self.reader = MemoryReader()
        self.second = START
        self._counts: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def add(self, metric: str, labels: Mapping[str, str], by: float) -> None:
        """Count on."""
        key = (metric, tuple(sorted(labels.items())))
        self._counts[key] = self._counts.get(key, 0.0) + by

    def end(self, missing: Mapping[str, str] | None = None, *, silent: bool = False) -> None:
        """End the second; `silent`: nothing was collected in it."""
        if not silent:
            for (metric, labels), value in self._counts.items():
                self.reader.put(metric, dict(labels), "counter", self.second, value)
        self.reader.finish(self.second, missing)
        self.second += 1

    def request(self, workload: str, code: str, le: float, *, n: int = 1, where: str = "0") -> None:
        """Let an instance answer `n` requests that took at most `le` seconds."""
        own = scope(workload, where)
        self.add(names.REQUESTS.name, {**own, "code": code}, n)
        for bound in (0.01, 0.1, 1.0, math.inf):
            self.add(
                f"{names.REQUEST_SECONDS.name}_bucket",
                {**own, "le": "+Inf" if math.isinf(bound) else str(bound)},
                n if le <= bound else 0,
            )

    def golden(self, window: int = 10, at: int | None = None) -> Golden:
        measuring = Measuring(self.reader)
        return measuring.measure(measuring.span(at, window))


def scope(workload: str, instance: str = "0") -> dict[str, str]:
    return {
        "app": "shop",
        "cell": "default",
        "workload": workload,
        "revision": "r1",
        "instance": f"{workload}-r1-{instance}",
        "node": "local",
    }


def test_rates_and_errors_of_everything_that_an_instance_belongs_to() -> None:
    world = World()
    world.request("web", "2xx", 0.01, n=0)
    world.request("web", "5xx", 0.01, n=0, where="1")
    world.end()
    for _ in range(10):
        world.request("web", "2xx", 0.01, n=3)
        world.request("web", "5xx", 0.1, n=1, where="1")
        world.add(names.REQUEST_ERRORS.name, {**scope("web", "1"), "kind": "timeout"}, 1)
        world.end()
    golden = world.golden()
    for group in (("app", "shop"), ("workload", "shop", "web"), ("node", "local")):
        signals = golden.of(*group)
        assert signals.rate == pytest.approx(4.0)
        assert signals.errors == pytest.approx(0.25)
        assert signals.error_kinds == {"timeout": pytest.approx(1.0)}
    one = golden.of("instance", "shop", "default", "web", "web-r1-0")
    assert one.rate == pytest.approx(3.0)
    assert one.errors == 0.0
    other = golden.of("instance", "shop", "default", "web", "web-r1-1")
    assert other.rate == pytest.approx(1.0)
    assert other.errors == 1.0
    assert golden.of("revision", "shop", "web", "r1").rate == pytest.approx(4.0)


def test_quantiles_are_of_the_merged_histograms() -> None:
    """The mean of two instances' quantiles would be another number."""
    world = World()
    world.request("web", "2xx", 0.01, n=0)
    world.request("web", "2xx", 0.01, n=0, where="1")
    world.end()
    world.request("web", "2xx", 0.01, n=98)
    world.request("web", "2xx", 1.0, n=2, where="1")
    world.end()
    signals = world.golden().of("workload", "shop", "web")
    assert signals.p50 == pytest.approx(0.01 * 50 / 98)
    assert signals.p90 is not None
    assert signals.p90 < 0.01
    assert signals.p99 == pytest.approx(0.1 + 0.9 * 0.5)
    assert signals.p999 == pytest.approx(0.1 + 0.9 * 0.95)


def test_what_was_not_measured_is_none_and_not_zero() -> None:
    world = World()
    assert world.golden().of("app", "shop").rate is None
    world.request("web", "2xx", 0.01, n=0)
    world.end()
    world.end()
    signals = world.golden().of("workload", "shop", "web")
    assert signals.rate == 0.0, "nothing was asked, and that was measured"
    assert signals.errors is None, "of nothing there is no share"
    assert signals.p99 is None
    assert world.golden().of("workload", "shop", "other").rate is None


def test_a_rate_is_over_the_seconds_that_were_collected() -> None:
    world = World()
    world.request("web", "2xx", 0.01, n=0)
    world.end()
    for _ in range(2):
        world.request("web", "2xx", 0.01, n=7)
        world.end()
    golden = world.golden(window=60)
    assert golden.seconds == 2
    assert golden.of("app", "shop").rate == pytest.approx(7.0)


def test_seconds_that_miss_something_else_make_no_rate_larger() -> None:
    """At a start the first seconds are incomplete, and have the values of those who answered."""
    world = World()
    for second in range(11):
        world.request("web", "2xx", 0.01, n=5)
        world.end({"server/transactions/shop": "it is being started"} if second < 6 else None)
    rate = world.golden(10).of("workload", "shop", "web").rate
    assert rate == pytest.approx(5.0)


def test_a_gap_loses_no_request_and_is_told() -> None:
    world = World()
    world.request("web", "2xx", 0.01, n=0)
    world.end()
    for second in range(10):
        world.request("web", "2xx", 0.01, n=2)
        if second in (3, 4):
            world.end({"local": "no answer"}, silent=True)
        else:
            world.end()
    golden = world.golden()
    assert golden.of("app", "shop").rate == pytest.approx(2.0)
    assert not golden.span.complete
    assert golden.span.missing == {}, "the last second was complete"
    rates = golden.rates["shop"]
    assert rates[-10:] == (2.0, 2.0, 2.0, None, None, None, 2.0, 2.0, 2.0, 2.0)


def test_a_series_that_begins_in_the_span_counts_from_zero() -> None:
    world = World()
    world.request("web", "2xx", 0.01, n=0)
    world.end()
    world.end()
    world.add(names.REQUESTS.name, {**scope("web", "1"), "code": "2xx"}, 5)
    world.end()
    assert world.golden().of("workload", "shop", "web").rate == pytest.approx(5 / 2)


def test_a_series_that_is_first_seen_after_a_gap_counts_from_its_first_value() -> None:
    """A server that was away does not take all that was ever counted for the last second's."""
    world = World()
    world.request("web", "2xx", 0.01, n=0)
    world.end()
    world.end({"local": "no answer"}, silent=True)
    world.add(names.REQUESTS.name, {**scope("web", "1"), "code": "2xx"}, 1_000_000)
    world.end()
    world.add(names.REQUESTS.name, {**scope("web", "1"), "code": "2xx"}, 4)
    world.end()
    assert world.golden().of("workload", "shop", "web").rate == pytest.approx(4 / 3)


def test_an_edge_a_route_and_the_gateway_have_signals_of_their_own() -> None:
    world = World()
    edge = {"app": "shop", "cell": "default", "caller": "web", "callee": "risk", "node": "local"}
    route = {"app": "shop", "route": "/", "to": "web", "node": "local"}
    gateway = {"app": "shop", "node": "local"}

    def count(by: float) -> None:
        world.add(names.EDGE_REQUESTS.name, {**edge, "code": "2xx"}, by)
        world.add(names.EDGE_ERRORS.name, {**edge, "kind": "denied"}, by / 2)
        world.add(names.ROUTE_REQUESTS.name, {**route, "code": "5xx"}, by)
        world.add(names.GATEWAY_REQUESTS.name, {**gateway, "code": "4xx"}, by)

    count(0)
    world.end()
    count(8)
    world.end()
    golden = world.golden()
    assert golden.of("edge", "shop", "web", "risk").errors == pytest.approx(0.5)
    assert golden.of("edge", "shop", "web", "risk").error_kinds == {"denied": pytest.approx(4.0)}
    assert golden.of("route", "shop", "/", "web").errors == 1.0
    assert golden.of("gateway", "shop").errors == 0.0
    assert golden.groups("edge") == [("edge", "shop", "web", "risk")]


def test_any_past_minute_can_be_asked_for() -> None:
    world = World()
    world.request("web", "2xx", 0.01, n=0)
    world.end()
    for second in range(200):
        world.request("web", "2xx", 0.01, n=1 if second < 100 else 5)
        world.end()
    assert world.golden(60, START + 90).of("app", "shop").rate == pytest.approx(1.0)
    late = world.golden(60)
    assert late.of("app", "shop").rate == pytest.approx(5.0)
    assert late.span.second % late.span.resolution == 0


def test_memory_is_the_last_value_and_what_ended_has_none() -> None:
    world = World()
    for second in range(12):
        reader = world.reader
        reader.put(names.INSTANCE_MEMORY.name, scope("web"), "gauge", world.second, 100 + second)
        if second < 5:
            reader.put(names.INSTANCE_MEMORY.name, scope("web", "1"), "gauge", world.second, 50)
        world.end()
    golden = world.golden()
    assert golden.of("workload", "shop", "web").memory == 111
    gone = golden.of("instance", "shop", "default", "web", "web-r1-1")
    assert gone.memory is None


def test_increases_and_steps_agree() -> None:
    values = np.array([[1.0, 2.0, NAN, 5.0], [NAN, NAN, 3.0, 4.0], [NAN, NAN, NAN, NAN]])
    known = np.array([True, True, True, True])
    assert increases(values, known)[:2].tolist() == [4.0, 4.0]
    assert math.isnan(increases(values, known)[2])
    each = steps(values, known)
    assert each[1].tolist()[1:] == [3.0, 1.0]
    assert each[0].tolist()[0] == 1.0
    assert np.isnan(each[0]).tolist() == [False, True, True]


def test_quantiles_of_odd_histograms() -> None:
    bounds = np.array([0.1, 1.0, math.inf])
    found = quantiles(
        bounds, np.array([[0.0, 0.0, 10.0], [0.0, 0.0, 0.0], [10.0, 9.0, 10.0]]), (0.5, 1.0)
    )
    assert found[0].tolist() == [1.0, 1.0], "above the last bound it is not known how far"
    assert np.isnan(found[1]).all()
    assert found[2].tolist() == [pytest.approx(0.05), pytest.approx(0.1)], "not read at one moment"
    assert quantiles(bounds, np.zeros((0, 3)), (0.5,)).shape == (0, 1)
