"""The store of series: what a second costs, what a point takes, and how long an hour takes to read.

    python benchmarks/series_store.py [--series 1000] [--seconds 3600] [--duckdb PYTHON]
    python benchmarks/series_store.py --series 10000 --ours

A fleet of instances with the series that Bedstone makes for each (histograms, counters, gauges),
with traffic that differs by instance and changes by the second. The same seconds go, as they come,
into our store, and into the baselines: plain SQLite, one row a point, in a table WITHOUT ROWID; and
DuckDB, if `--duckdb` names a Python that has it, one row a point, by batches of ten seconds.
Every number is of this run on this machine; ratios are to SQLite's rows. Reads are medians of
`--reads`; each asks for other series.
"""

from __future__ import annotations

import argparse
import json
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bedstone.control.monitoring.reading import Matcher
from bedstone.control.monitoring.series_store import SeriesStore
from bedstone.telemetry.frame_builder import FrameBuilder
from bedstone.telemetry.frames import Series, decode, encode
from bedstone.telemetry.names import BUCKETS

BEGIN = 1_800_000_000
BATCH = 10

Values = NDArray[np.float64]


class Fleet:
    """Instances that serve requests; `values` are those of every series at the end of a second."""

    def __init__(self, series: int) -> None:
        self.random = np.random.default_rng(7)
        edges = [*(it / 1000 for it in BUCKETS), float("inf")]
        self.shares: list[Values] = []
        self.series: list[Series] = []
        self.rates: list[float] = []
        self.busy: list[float] = []
        number = 0
        while len(self.series) < series:
            labels = (
                ("app", "shop"),
                ("cell", "default"),
                ("instance", f"w{number // 4}-a1b2c3d4-{number % 4}"),
                ("node", f"node-{number % 3}"),
                ("revision", "a1b2c3d4"),
                ("workload", f"w{number // 4}"),
            )
            name = "bedstone_request_seconds"
            for edge in edges:
                le = "+Inf" if edge == float("inf") else f"{edge:g}"
                self._add(f"{name}_bucket", (*labels, ("le", le)), "counter")
            self._add(f"{name}_sum", labels, "counter")
            self._add(f"{name}_count", labels, "counter")
            for code in ("1xx", "2xx", "3xx", "4xx", "5xx"):
                self._add("bedstone_requests_total", (*labels, ("code", code)), "counter")
            self._add("bedstone_requests_active", labels, "gauge")
            self._add("bedstone_instance_up", labels, "gauge")
            self._add("bedstone_instance_cpu_seconds_total", labels, "counter")
            self._add("bedstone_instance_memory_bytes", labels, "gauge")
            self._add("bedstone_instance_restarts_total", labels, "counter")
            # A fifth idles; the others serve from 1 to 1,000 requests a second.
            self.rates.append(0.0 if number % 5 == 4 else 10 ** self.random.uniform(0, 3))
            typical = np.log(10 ** self.random.uniform(-2.7, -1))
            sample = np.exp(self.random.normal(typical, 0.7, 5000))
            counts = np.histogram(sample, [0, *edges])[0].astype(np.float64)
            self.shares.append(counts / counts.sum())
            self.busy.append(float(np.exp(typical + 0.245)))
            number += 1
        del self.series[series:]
        self.each = len(edges) + 12
        self.now = np.zeros((number, self.each))
        self.now[:, len(edges) + 8] = 1.0
        self.now[:, len(edges) + 10] = 80e6

    def _add(self, name: str, labels: tuple[tuple[str, str], ...], kind: str) -> None:
        self.series.append(
            Series(name, tuple(sorted(labels)), "gauge" if kind == "gauge" else "counter", "envoy")
        )

    def seconds(self, count: int) -> Iterator[tuple[int, Values]]:
        buckets = len(BUCKETS) + 1
        for second in range(BEGIN + 1, BEGIN + 1 + count):
            for number, rate in enumerate(self.rates):
                row = self.now[number]
                served = int(self.random.poisson(rate)) if rate else 0
                if served:
                    spread = self.random.multinomial(served, self.shares[number])
                    row[:buckets] += np.cumsum(spread)
                    row[buckets] += served * self.busy[number] * self.random.uniform(0.8, 1.2)
                    row[buckets + 1] += served
                    failed = int(self.random.binomial(served, 0.002))
                    row[buckets + 3] += served - failed
                    row[buckets + 6] += failed
                    row[buckets + 9] = round(row[buckets + 9] + served * 0.0004, 2)
                row[buckets + 7] = int(self.random.poisson(rate * self.busy[number]))
                if self.random.random() < 0.1:
                    row[buckets + 10] += 4096.0 * int(self.random.integers(-40, 42))
            yield second, self.now.ravel()[: len(self.series)].copy()


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def memory() -> float:
    """MiB of memory of this process that are its own now."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return (
        sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private")) / 1024
    )


def ours(path: Path, fleet: Fleet, seconds: int) -> tuple[SeriesStore, dict[str, float]]:
    before = memory()
    store = SeriesStore(path, clock=lambda: float(BEGIN))
    store.open()
    builder = FrameBuilder()
    spent = {"receive": 0.0, "second": 0.0, "all": 0.0}
    wire, slowest = 0, []
    for second, values in fleet.seconds(seconds):
        frame = builder.build(
            second, dict(zip(fleet.series, values.tolist(), strict=True)), {"envoy": "1"}, {}
        )
        body = encode(frame)
        wire += len(body)
        start = cpu()
        mine = time.thread_time()
        taken = decode(body)
        spent["receive"] += cpu() - start
        assert store.ingest("n", taken)
        store.finish(second, {})
        slowest.append(time.thread_time() - mine)
        if second % BATCH == 0:
            store.flush()
        spent["all"] += cpu() - start
    start = cpu()
    store.flush()
    spent["all"] += cpu() - start
    stats = store.stats()
    points = len(fleet.series) * seconds
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        level = dict(database.execute("SELECT level, sum(size) FROM blocks GROUP BY level"))
    return store, {
        "cpu": spent["all"],
        "decode": spent["receive"],
        "loop p50 ms": statistics.median(slowest) * 1000,
        "loop p99 ms": float(np.quantile(slowest, 0.99)) * 1000,
        "file": path.stat().st_size / points,
        "seconds": level[1] / points,
        "roll-ups": (level.get(10, 0) + level.get(60, 0)) / points,
        "memory": memory() - before,
        "arrays": stats.memory / 2**20,
        "wire": wire / seconds,
    }


def rows_of_sqlite(path: Path, fleet: Fleet, seconds: int) -> tuple[sqlite3.Connection, float]:
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    database.execute(
        "CREATE TABLE points (series INTEGER, second INTEGER, value REAL, "
        "PRIMARY KEY (series, second)) WITHOUT ROWID"
    )
    spent = 0.0
    waiting: list[tuple[int, int, float]] = []
    for second, values in fleet.seconds(seconds):
        start = cpu()
        waiting += [(number, second, value) for number, value in enumerate(values.tolist())]
        if second % BATCH == 0:
            waiting.sort()
            database.execute("BEGIN")
            database.executemany("INSERT INTO points VALUES (?, ?, ?)", waiting)
            database.execute("COMMIT")
            waiting = []
        spent += cpu() - start
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return database, spent


def read_rows(database: sqlite3.Connection, first: int, last: int, start: int, end: int) -> Values:
    """The matrix that a query needs, from rows."""
    found = np.array(
        database.execute(
            "SELECT series, second, value FROM points "
            "WHERE series BETWEEN ? AND ? AND second BETWEEN ? AND ?",
            (first, last, start, end),
        ).fetchall()
    )
    values = np.full((last - first + 1, end - start + 1), np.nan)
    values[found[:, 0].astype(int) - first, found[:, 1].astype(int) - start] = found[:, 2]
    return values


def median(count: int, read: Callable[[int], object]) -> float:
    times = []
    for number in range(count):
        start = time.perf_counter()
        read(number)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


DUCK = """
import json, resource, sys, time, statistics
from pathlib import Path
import duckdb, numpy as np
path, source, series, seconds, begin, reads = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
db = duckdb.connect(path)
db.execute("SET threads = 2")
db.execute("CREATE TABLE points (series INTEGER, second INTEGER, value DOUBLE)")
data = np.load(source, mmap_mode="r")
spent = cpu()
for at in range(0, seconds, 10):
    part = np.array(data[at:at + 10])
    n = len(part)
    batch = {"series": np.repeat(np.arange(series, dtype=np.int32), n),
             "second": np.tile(np.arange(n, dtype=np.int32) + (begin + at + 1), series),
             "value": part.T.ravel()}
    db.execute("INSERT INTO points SELECT * FROM batch")
db.execute("CHECKPOINT")
spent = cpu() - spent
def read(first, last):
    found = db.execute("SELECT series, second, value FROM points WHERE series BETWEEN ? AND ?",
                       [first, last]).fetchnumpy()
    values = np.full((last - first + 1, seconds), np.nan)
    values[found["series"] - first, found["second"] - begin - 1] = found["value"]
    return values
def median(count, call):
    times = []
    for number in range(count):
        start = time.perf_counter(); call(number); times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000
one = median(reads, lambda n: read(n * 37 % series, n * 37 % series))
every = median(3, lambda n: read(0, series - 1))
db.close()
print(json.dumps({"cpu": spent, "file": Path(path).stat().st_size / series / seconds,
                  "one": one, "all": every}))
"""


def measure(series: int, seconds: int, reads: int, duckdb: str | None, *, only_ours: bool) -> None:
    fleet = Fleet(series)
    thousand = series * seconds / 1000
    with tempfile.TemporaryDirectory() as directory:
        store, said = ours(Path(directory) / "ours.sqlite", fleet, seconds)
        end = store.last()
        start = end - min(seconds, 3600) + 1
        every = [Matcher("__name__", "=~", ".+")]

        def one(number: int) -> object:
            it = fleet.series[number * 37 % series]
            labels = [Matcher(name, "=", value) for name, value in it.labels]
            return store.select([Matcher("__name__", "=", it.name), *labels], start, end, 1)

        reading = {
            "one": median(reads, one),
            "all": median(3, lambda _: store.select(every, start, end, 1)),
            "all 10": median(3, lambda _: store.select(every, start, end, 10)),
            "choose": median(
                reads,
                lambda n: store.series(
                    [
                        Matcher("__name__", "=", "bedstone_requests_total"),
                        Matcher("code", "=", "5xx"),
                        Matcher("workload", "=", f"w{n}"),
                    ],
                    start,
                    end,
                ),
            ),
        }
        store.close()
        print(f"\n## {series} series, {seconds} seconds")
        print(
            f"ours: CPU {said['cpu'] / thousand * 1000:.2f} ms a second for 1,000 series "
            f"(of it decoding frames {said['decode'] / thousand * 1000:.2f}); "
            f"CPU of the event loop p50 {said['loop p50 ms']:.2f}, p99 {said['loop p99 ms']:.2f} ms"
        )
        print(
            f"      {said['file']:.2f} bytes a point on disk "
            f"(seconds {said['seconds']:.2f}, roll-ups {said['roll-ups']:.2f}); "
            f"memory {said['memory'] / series * 1000:.1f} MiB for 1,000 series "
            f"(arrays {said['arrays']:.0f} MiB); frames {said['wire'] / series:.1f} bytes a series"
        )
        print(
            f"      an hour: one series {reading['one']:.1f} ms, all {reading['all']:.0f} ms, "
            f"all at 10 s {reading['all 10']:.0f} ms; choosing 1 series {reading['choose']:.2f} ms"
        )

        if only_ours:
            return
        path = Path(directory) / "rows.sqlite"
        database, spent = rows_of_sqlite(path, Fleet(series), seconds)
        with closing(database):
            size = path.stat().st_size / series / seconds
            row_one = median(
                reads, lambda n: read_rows(database, n * 37 % series, n * 37 % series, start, end)
            )
            row_all = median(1, lambda _: read_rows(database, 0, series - 1, start, end))
        print(
            f"SQLite rows: CPU {spent / thousand * 1000:.2f} ms, {size:.1f} bytes a point, "
            f"one series {row_one:.1f} ms, all {row_all:.0f} ms"
        )
        print(
            f"ours / rows: CPU {said['cpu'] / spent:.2f}, bytes {said['file'] / size:.3f}, "
            f"one {reading['one'] / row_one:.2f}, all {reading['all'] / row_all:.3f}"
        )
        path.unlink()
        if duckdb:
            data = np.stack([values for _, values in Fleet(series).seconds(seconds)])
            np.save(Path(directory) / "data.npy", data)
            del data
            out = subprocess.run(
                [
                    duckdb,
                    "-c",
                    DUCK,
                    f"{directory}/duck.db",
                    f"{directory}/data.npy",
                    str(series),
                    str(seconds),
                    str(BEGIN),
                    str(reads),
                ],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            duck = json.loads(out)
            print(
                f"DuckDB rows: CPU {duck['cpu'] / thousand * 1000:.2f} ms, "
                f"{duck['file']:.2f} bytes a point, one series {duck['one']:.1f} ms, "
                f"all {duck['all']:.0f} ms"
            )
            print(
                f"ours / DuckDB: CPU {said['cpu'] / duck['cpu']:.2f}, "
                f"bytes {said['file'] / duck['file']:.3f}, one {reading['one'] / duck['one']:.2f}, "
                f"all {reading['all'] / duck['all']:.3f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, nargs="+", default=[1000])
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--reads", type=int, default=15)
    parser.add_argument("--duckdb", metavar="PYTHON")
    parser.add_argument("--ours", action="store_true", help="without the baselines")
    options = parser.parse_args()
    for series in options.series:
        measure(series, options.seconds, options.reads, options.duckdb, only_ours=options.ours)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
