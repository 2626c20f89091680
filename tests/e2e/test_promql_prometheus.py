"""The same data and the same questions, to us and to a real Prometheus.

The documented differences are allowed for, and nothing else:
- a window `[r]` of ours does not hold the point at its very start; Prometheus's before 3.0 does. So
  it is asked for a millisecond less, but for functions of differences, where both need that point;
- a value is that of its second. So it is told to look back for one second, and not for 5 minutes.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import pytest

from bedstone.control.monitoring.promql import Engine, Matrix, Scalar, String, Vector
from bedstone.control.monitoring.series_store import SeriesStore
from bedstone.errors import InvalidError
from bedstone.telemetry.frame_builder import FrameBuilder
from bedstone.telemetry.frames import Series
from bedstone.testing import prometheus
from bedstone.testing.prometheus import RealPrometheus, real_prometheus
from bedstone.testing.series import START, SeriesWriter

pytestmark = pytest.mark.skipif(prometheus.missing(), reason=prometheus.MISSING)

SECONDS = 400
TIMES = (START + 200, START + 331)
RANGE = (START + 120, START + 390, 15)
BOUNDS = ("0.1", "0.25", "0.5", "1", "2.5", "+Inf")

QUERIES = """
requests_total
requests_total{code="5xx"}
requests_total{code!="5xx",app=~"b.*"}
requests_total{app!~"b.*|c"}
{__name__=~"temperature|requests_total",app="bank"}
requests_total{nothing=""}
temperature offset 30s
temperature offset -30s
temperature @ 1800000150
temperature @ start()
temperature @ end() offset 5s
nothing
rate(requests_total[60s])
increase(requests_total[45s])
delta(temperature[30s])
irate(requests_total[10s])
idelta(temperature[10s])
increase(requests_total[60s] offset 20s)
rate(requests_total[30s] @ 1800000200)
sum(rate(requests_total[60s]))
sum by (app) (rate(requests_total[60s]))
sum without (code, instance) (rate(requests_total[60s]))
avg by (code) (temperature)
min(temperature)
max by (app) (temperature)
count by (app, code) (requests_total)
count(nothing)
group by (app) (temperature)
stddev(temperature)
stdvar by (app) (temperature)
quantile(0.75, temperature)
quantile by (app) (0.5, temperature)
quantile(-1, temperature)
quantile(2, temperature)
topk(2, temperature)
topk by (app) (1, temperature)
bottomk(3, temperature)
topk(0, temperature)
count_values("v", round(temperature / 10))
count_values by (app) ("v", clamp_max(round(temperature / 10), 2))
sum_over_time(temperature<30>)
avg_over_time(temperature<30>)
min_over_time(temperature<30>)
max_over_time(temperature<30>)
count_over_time(temperature<30>)
count_over_time(holes<30>)
avg_over_time(holes<10>)
last_over_time(holes<10>)
present_over_time(holes<5>)
stddev_over_time(temperature<30>)
stdvar_over_time(holes<30>)
quantile_over_time(0.9, temperature<30>)
quantile_over_time(0.3, holes<30>)
changes(steps<60>)
changes(holes<60>)
resets(steps<60>)
deriv(temperature<60>)
deriv(holes<60>)
predict_linear(temperature<60>, 600)
holes
absent(holes)
absent(holes{app="x"})
absent(nothing{app="x",code=~"5.*"})
absent(sum(nothing))
absent_over_time(holes<5>)
absent_over_time(nothing{app="x"}<5>)
histogram_quantile(0.5, sum by (le) (rate(latency_bucket[60s])))
histogram_quantile(0.99, sum by (le, app) (rate(latency_bucket[60s])))
histogram_quantile(0.9, latency_bucket)
histogram_quantile(0, latency_bucket)
histogram_quantile(1, sum by (le) (latency_bucket))
histogram_quantile(1.5, latency_bucket)
histogram_quantile(-0.5, latency_bucket)
histogram_quantile(0.5, latency_bucket{le!="+Inf"})
histogram_quantile(0.5, latency_bucket{le="+Inf"})
histogram_quantile(0.5, rate(latency_bucket{app="idle"}[60s]))
histogram_quantile(0.7, sum by (le) ({__name__=~"latency_bucket|coarse_bucket"}))
rate(latency_sum[60s]) / rate(latency_count[60s])
temperature + 1
2 * temperature
temperature / 0
-temperature
+temperature
10 - 3 * 2 ^ 2 % 5
-2 ^ 2
1 / 0
0 / 0
temperature % 7
temperature ^ 2
sum by (app) (temperature) atan2 2
temperature > 20
temperature > bool 20
20 < temperature
20 < bool temperature
temperature == temperature
temperature != bool temperature
1 > bool 2
temperature - temperature
temperature * on (app, instance) temperature
rate(requests_total{code="5xx"}[60s]) / ignoring (code) rate(requests_total{code="2xx"}[60s])
requests_total / on (app, instance) group_left sum by (app, instance) (requests_total)
sum by (app) (temperature) * on (app) group_right temperature
requests_total * on (app) group_left (owner) owners
requests_total * on (app) group_left (nothing) owners
temperature > on (app) group_left owners
owners < on (app) group_right temperature
temperature > bool on (app) group_left owners
temperature and owners
temperature and on (app) owners
temperature unless on (app) owners{app="bank"}
temperature or owners
temperature or on (app) owners
requests_total{code="5xx"} or ignoring (code) requests_total
vector(1) or temperature
sum(nothing) or vector(0)
temperature > 20 or temperature < 5
abs(temperature - 25)
ceil(temperature)
floor(temperature)
round(temperature)
round(temperature, 5)
round(temperature, 0.1)
exp(temperature / 10)
sqrt(temperature)
sqrt(-temperature)
ln(temperature - 20)
log2(temperature)
log10(temperature)
sgn(temperature - 20)
sin(temperature) + cos(temperature) + tan(temperature)
asin(temperature / 100) + acos(temperature / 100) + atan(temperature)
sinh(temperature / 10) + cosh(temperature / 10) + tanh(temperature)
asinh(temperature) + acosh(temperature) + atanh(temperature / 100)
deg(temperature) + rad(temperature)
pi()
clamp(temperature, 10, 20)
clamp(temperature, 20, 10)
clamp_min(temperature, 10)
clamp_max(temperature, 20)
sort(temperature)
sort_desc(temperature)
time()
vector(time())
scalar(temperature{app="bank",instance="0"})
scalar(temperature)
scalar(nothing) + 1
timestamp(temperature)
timestamp(temperature offset 10s)
timestamp(temperature + 0)
minute()
hour()
day_of_week()
day_of_month()
day_of_year()
days_in_month()
month()
year()
day_of_year(vector(951782400))
days_in_month(vector(951782400))
hour(temperature * 1000)
label_replace(temperature, "zone", "$1-$2", "instance", "(.)(.*)")
label_replace(temperature, "zone", "z", "instance", "1")
label_replace(temperature, "zone", "${n}x$$", "instance", "(?P<n>.)")
label_replace(temperature, "__name__", "heat", "app", "bank")
label_join(temperature, "both", "/", "app", "instance")
max_over_time(rate(requests_total[30s])<60:10>)
avg_over_time(sum by (app) (temperature)<60:5>)
min_over_time(temperature<30:7> offset 11s)
count_over_time(vector(1)<60:10>)
last_over_time(holes<20:4>)
max_over_time((temperature > 20)<60:5> @ 1800000200)
sum_over_time(deriv(temperature<20>)<60:20>)
increase(wraps[60s])
rate(wraps[60s])
irate(wraps[60s])
resets(wraps<60>)
rate({__name__="requests_total"}[60s])
"text"
42
"""

REFUSED = """
label_join(temperature, "app", "", "nothing")
label_replace(temperature, "instance", "", "instance", ".*")
temperature + on (app) owners
temperature + ignoring (instance) temperature
{__name__=~"temperature|owners"} * on (app) owners
label_replace(temperature, "instance", "x", "app", ".*")
rate({__name__=~"latency_.*",le=~"|1"}[60s])
sum(
temperature[30s]
rate(temperature)
temperature{app=~"("}
label_replace(temperature, "zone", "x", "app", "(")
"""


class StoreWriter:
    """Writes into a store of series as a node's collector does."""

    def __init__(self, store: SeriesStore) -> None:
        self.store = store
        self.builder = FrameBuilder()
        self.values: dict[Series, float] = {}

    def put(
        self,
        name: str,
        labels: Mapping[str, str],
        kind: Literal["counter", "gauge"],
        second: int,
        value: float,
    ) -> None:
        self.values[Series(name, tuple(sorted(labels.items())), kind, "it")] = value

    def finish(self, second: int, missing: Mapping[str, str] | None = None) -> None:
        assert self.store.ingest("n", self.builder.build(second, self.values, {"it": "1"}, {}))
        self.values = {}
        self.store.finish(second, missing or {})


def fill(writer: SeriesWriter) -> None:
    """Counters, gauges, a gauge with holes, steps, histograms, and a counter that begins anew."""
    chance = random.Random(7)
    counts = dict.fromkeys(
        ((a, c, i) for a in ("bank", "shop") for c in ("2xx", "5xx") for i in "01"), 0.0
    )
    heat = {(app, i): chance.uniform(5, 40) for app in ("bank", "shop") for i in "01"}
    buckets = {(app, le): 0.0 for app in ("bank", "shop", "idle") for le in BOUNDS}
    steps = wraps = total = 0.0
    for second in range(START, START + SECONDS):
        for app, code, instance in counts:
            counts[app, code, instance] += chance.randrange(9)
            labels = {"app": app, "code": code, "instance": instance}
            writer.put("requests_total", labels, "counter", second, counts[app, code, instance])
        heat = {place: abs(value + chance.uniform(-2, 2)) for place, value in heat.items()}
        for (app, instance), value in heat.items():
            labels = {"app": app, "instance": instance}
            writer.put("temperature", labels, "gauge", second, value)
        for app in ("bank", "shop"):
            for _ in range(chance.randrange(5)):
                took = chance.expovariate(2)
                total += took
                for le in BOUNDS:
                    buckets[app, le] += took <= float(le)
        for (app, le), count in buckets.items():
            writer.put("latency_bucket", {"app": app, "le": le}, "counter", second, count)
        for le in ("0.5", "2", "+Inf"):
            writer.put(
                "coarse_bucket",
                {"app": "old", "le": le},
                "counter",
                second,
                3.0 * float(min(le, "9")),
            )
        writer.put("latency_sum", {"app": "bank"}, "counter", second, total)
        writer.put("latency_count", {"app": "bank"}, "counter", second, buckets["bank", "+Inf"])
        writer.put("owners", {"app": "bank", "owner": "ann"}, "gauge", second, 20.0)
        if chance.random() < 0.6:
            writer.put("holes", {"app": "bank"}, "gauge", second, chance.uniform(0, 9))
        steps = chance.choice((steps, steps, steps + 1, steps - 1))
        writer.put("steps", {}, "gauge", second, steps)
        wraps = 0.0 if chance.random() < 0.03 else wraps + chance.randrange(5)
        writer.put("wraps", {}, "gauge", second, wraps)
        writer.finish(second)


Pair = tuple[RealPrometheus, Engine]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A Prometheus that was sent what our store holds, in memory and on disk, and our engine."""
    directory = tmp_path_factory.mktemp("prometheus")
    with (
        SeriesStore(directory / "metrics.sqlite", clock=lambda: START) as store,
        real_prometheus(directory, "", "--query.lookback-delta=1s") as real,
    ):
        fill(StoreWriter(store))
        real.write(store, START - 1, START + SECONDS - 1)
        yield real, Engine(store)


def ours(query: str) -> str:
    return re.sub(r"<(\d+)(:\d+)?>", lambda w: f"[{w[1]}s{w[2] + 's' if w[2] else ''}]", query)


def theirs(query: str) -> str:
    return re.sub(
        r"<(\d+)(:\d+)?>",
        lambda w: f"[{int(w[1]) * 1000 - 1}ms{w[2] + 's' if w[2] else ''}]",
        query,
    )


def shown(value: object) -> Any:
    """An answer of ours, as the API gives one: times with values, by labels."""
    match value:
        case Scalar(at, number):
            return [at, number]
        case String(at, text):
            return [at, text]
        case Vector(at, samples):
            return {frozenset(s.labels.items()): [(at, s.value)] for s in samples}
        case Matrix(series):
            return {
                frozenset(s.labels.items()): list(zip(s.times, s.values, strict=True))
                for s in series
            }
        case _:
            raise AssertionError(value)


def read(data: Any) -> Any:
    """The same of what the real one answers."""
    result = data["result"]
    match data["resultType"]:
        case "scalar":
            return [result[0], float(result[1])]
        case "string":
            return result
        case "vector":
            return {frozenset(r["metric"].items()): [pointed(r["value"])] for r in result}
        case _:
            return {
                frozenset(r["metric"].items()): [pointed(v) for v in r["values"]] for r in result
            }


def pointed(pair: list[Any]) -> tuple[int, float]:
    return int(pair[0]), float(pair[1])


def same(got: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return got.keys() == expected.keys() and all(same(got[k], expected[k]) for k in expected)
    if isinstance(expected, list | tuple):
        return len(got) == len(expected) and all(map(same, got, expected))
    if isinstance(expected, float):
        close = math.isclose(got, expected, rel_tol=1e-9, abs_tol=1e-9)
        return close or (math.isnan(got) and math.isnan(expected))
    return bool(got == expected)


@pytest.mark.parametrize("query", QUERIES.strip().splitlines())
def test_we_answer_as_prometheus_does(pair: Pair, query: str) -> None:
    real, engine = pair
    for at in TIMES:
        expected = read(real.data("query", query=theirs(query), time=str(at)))
        got = shown(engine.instant(ours(query), at).value)
        assert same(got, expected), f"at {at}: got {got}, Prometheus {expected}"
    if query == '"text"':
        return
    start, end, step = RANGE
    expected = read(
        real.data(
            "query_range", query=theirs(query), start=str(start), end=str(end), step=str(step)
        )
    )
    got = shown(engine.range(ours(query), start, end, step).value)
    assert same(got, expected), f"over a range: got {got}, Prometheus {expected}"


@pytest.mark.parametrize(
    "query", ["sort(temperature)", "sort_desc(temperature)", "topk(3, temperature)"]
)
def test_series_stand_in_the_order_that_was_asked_for(pair: Pair, query: str) -> None:
    real, engine = pair
    expected = real.data("query", query=query, time=str(TIMES[0]))["result"]
    got = engine.instant(query, TIMES[0]).vector()
    assert [s.labels for s in got.samples] == [r["metric"] for r in expected]


@pytest.mark.parametrize("query", REFUSED.strip().splitlines())
def test_we_refuse_what_prometheus_refuses(pair: Pair, query: str) -> None:
    real, engine = pair
    start, end, step = RANGE
    with pytest.raises(ValueError):
        real.data("query_range", query=query, start=str(start), end=str(end), step=str(step))
    with pytest.raises(InvalidError):
        engine.range(query, start, end, step)
