"""Queries over an hour of seconds: how long ours take, beside Prometheus with the same data.

    python -m benchmarks.metrics_queries [--series 10000] [--seconds 3600] [--runs 5]

The same fleet as in `series_store.py` goes into our store, and from there by remote-write into a
Prometheus on loopback (if it is installed), so both hold the same samples. Each query is asked
`--runs` times of both; medians count. Ours is timed from the expression to the JSON of the answer,
without HTTP; Prometheus from the request to the last byte. Where both answer with one vector, their
values are compared: a fast wrong answer ends the benchmark.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.series_store import BEGIN, Fleet

from bedstone.control.monitoring.promql import Engine, Limits
from bedstone.control.monitoring.series_store import SeriesStore
from bedstone.server.prometheus_forms import answered
from bedstone.telemetry.frame_builder import FrameBuilder
from bedstone.testing import prometheus
from bedstone.testing.prometheus import RealPrometheus, real_prometheus

REQUESTS = "bedstone_requests_total"
BUCKET = "bedstone_request_seconds_bucket"
QUERIES = {
    "requests a second": f"sum(rate({REQUESTS}[1m]))",
    "requests a second by workload": f"sum by (workload) (rate({REQUESTS}[1m]))",
    "share of errors by workload": (
        f'sum by (workload) (rate({REQUESTS}{{code="5xx"}}[5m]))'
        f" / sum by (workload) (rate({REQUESTS}[5m]))"
    ),
    "p99 of one workload": (
        f'histogram_quantile(0.99, sum by (le) (rate({BUCKET}{{workload="w3"}}[1m])))'
    ),
    "p99 by workload": f"histogram_quantile(0.99, sum by (le, workload) (rate({BUCKET}[1m])))",
    "memory, mean over a minute": "avg_over_time(bedstone_instance_memory_bytes[1m])",
    "the ten busiest instances": f"topk(10, sum by (instance) (rate({REQUESTS}[1m])))",
}


def filled(path: Path, fleet: Fleet, seconds: int) -> SeriesStore:
    store = SeriesStore(path, clock=lambda: float(BEGIN))
    store.open()
    builder = FrameBuilder()
    for second, values in fleet.seconds(seconds):
        named = dict(zip(fleet.series, values.tolist(), strict=True))
        assert store.ingest("n", builder.build(second, named, {"envoy": "1"}, {}))
        store.finish(second, {})
        if second % 10 == 0:
            store.flush()
    store.flush()
    return store


def timed(runs: int, ask: Callable[[], bytes]) -> tuple[float, bytes]:
    """Milliseconds, the median; and the answer."""
    took = []
    body = b""
    for _ in range(runs):
        start = time.perf_counter()
        body = ask()
        took.append((time.perf_counter() - start) * 1000)
    return statistics.median(took), body


def compared(ours: bytes, theirs: bytes) -> None:
    """End the benchmark where the two differ."""

    def values(body: bytes) -> dict[str, float]:
        found = json.loads(body)["data"]["result"]
        return {json.dumps(r["metric"], sort_keys=True): float(r["value"][1]) for r in found}

    a, b = values(ours), values(theirs)
    assert a.keys() == b.keys(), a.keys() ^ b.keys()
    for key, value in a.items():
        close = math.isclose(value, b[key], rel_tol=1e-6, abs_tol=1e-9)
        assert close or (math.isnan(value) and math.isnan(b[key])), (key, value, b[key])


def measure(store: SeriesStore, real: RealPrometheus | None, seconds: int, runs: int) -> None:
    engine = Engine(store, Limits(seconds=300))
    end = store.last()
    start = end - seconds + 1 + 300
    print("\n| query | at once, ms | Prometheus | an hour by 15 s, ms | Prometheus |")
    print("|---|---|---|---|---|")
    for name, query in QUERIES.items():
        cells = [name]
        body: dict[str, bytes] = {}
        one, body["ours"] = timed(runs, lambda q=query: answered(engine.instant(q, end)))  # type: ignore[misc]
        cells.append(f"{one:.1f}")
        if real:
            spoken = real

            def instant(q: str = query, spoken: RealPrometheus = spoken) -> bytes:
                return spoken.bytes("query", query=q, time=str(end))

            theirs, body["theirs"] = timed(runs, instant)
            cells.append(f"{theirs:.1f} ({one / theirs:.2f} x)")
            if "avg_over_time" not in query:  # its window has one more second over there
                compared(body["ours"], body["theirs"])
        else:
            cells.append("-")
        many, _ = timed(runs, lambda q=query: answered(engine.range(q, start, end, 15)))  # type: ignore[misc]
        cells.append(f"{many:.0f}")
        if real:

            def ranged(q: str = query, spoken: RealPrometheus = spoken) -> bytes:
                return spoken.bytes(
                    "query_range", query=q, start=str(start), end=str(end), step="15"
                )

            theirs, _ = timed(runs, ranged)
            cells.append(f"{theirs:.0f} ({many / theirs:.2f} x)")
        else:
            cells.append("-")
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--series", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=3_600)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        began = time.perf_counter()
        store = filled(folder / "metrics.sqlite", Fleet(given.series), given.seconds)
        print(f"{given.series} series, {given.seconds} seconds; filled in "
              f"{time.perf_counter() - began:.0f} s")  # fmt: skip
        if prometheus.missing():
            print(prometheus.MISSING)
            measure(store, None, given.seconds, given.runs)
        else:
            with real_prometheus(folder) as real:
                began, used = time.perf_counter(), cpu()
                for after in range(BEGIN, BEGIN + given.seconds, 30):
                    real.write(store, after, min(after + 30, BEGIN + given.seconds))
                took = time.perf_counter() - began
                samples = given.series * given.seconds
                print(f"remote-write: {samples / took / 1e6:.2f} million samples a second, "
                      f"{(cpu() - used) / samples * 1e9:.0f} ns of our CPU each")  # fmt: skip
                measure(store, real, given.seconds, given.runs)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"\nmost memory of ours: {peak:.0f} MiB")
        store.close()


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
