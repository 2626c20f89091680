"""The store of series when its process is killed, its disk is full, or its file is damaged."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from bedstone.control.monitoring.reading import Matcher
from bedstone.control.monitoring.series_batch import Retention
from bedstone.control.monitoring.series_store import SeriesStore
from bedstone.errors import UnavailableError
from bedstone.telemetry.frame_builder import FrameBuilder
from bedstone.telemetry.frames import Series

BEGIN = 1_800_000_000
COUNTER = [Matcher("__name__", "=", "c_total")]

# A server that collects from a node whose counter grows by 7 a second, faster than time goes, and
# says each second that it has flushed.
SERVER = """
import sys
import threading
from pathlib import Path
from bedstone.control.monitoring.series_store import SeriesStore
from bedstone.telemetry.frame_builder import FrameBuilder
from bedstone.telemetry.frames import Series

path, second = Path(sys.argv[1]), int(sys.argv[2])
store = SeriesStore(path, flush=2, clock=lambda: second)
store.open()
builder = FrameBuilder()
counter = Series("c_total", (), "counter", "envoy")
more = [Series("g", (("i", str(i)),), "gauge", "envoy") for i in range(300)]
while True:
    second += 1
    values = {counter: second * 7.0, **{it: float(second + i) for i, it in enumerate(more)}}
    # The counter of each second begins in it.
    values[Series("born_total", (("at", str(second // 5)),), "counter", "envoy")] = second % 5 + 1.0
    assert store.ingest("n", builder.build(second, values, {"envoy": "1"}, {}))
    store.finish(second, {})
    if store._pending is not None:
        store._pending.result()
    print(second, store.stats().flushed, flush=True)
"""


class Node:
    """A node with a counter of its seconds, and gauges of noise, which need space."""

    def __init__(self, store: SeriesStore, gauges: int = 0) -> None:
        self.store = store
        self.builder = FrameBuilder()
        self.noise = random.Random(1)
        self.counter = Series("c_total", (), "counter", "envoy")
        self.gauges = [Series("g", (("i", str(i)),), "gauge", "envoy") for i in range(gauges)]

    def tell(self, second: int, *, wait: bool = True) -> None:
        values = {it: self.noise.random() for it in self.gauges}
        values[self.counter] = float(second - BEGIN)
        frame = self.builder.build(second, values, {"envoy": "1"}, {})
        assert self.store.ingest("n", frame)
        self.store.finish(second, {})
        if wait and self.store._pending is not None:
            self.store._pending.result()


def opened(path: Path, second: int = BEGIN, retention: Retention | None = None) -> SeriesStore:
    store = SeriesStore(path, retention=retention, clock=lambda: float(second))
    store.open()
    return store


@pytest.mark.parametrize("seed", range(4))
def test_a_kill_at_any_moment_loses_the_unflushed_seconds_and_no_increase(
    tmp_path: Path, seed: int
) -> None:
    path = tmp_path / "metrics.sqlite"
    moments = random.Random(seed)
    second, lives = BEGIN, []
    for _ in range(3):
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(path), str(second)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout is not None
        said = [server.stdout.readline()]
        time.sleep(moments.uniform(0.0, 0.5))
        os.kill(server.pid, signal.SIGKILL)
        said += server.stdout.read().splitlines()
        server.wait()
        server.stdout.close()
        # A line may have been cut by the kill.
        numbers = [tuple(map(int, line.split())) for line in said if len(line.split()) == 2]
        first, flushed = numbers[0][0], numbers[-2 if len(numbers) > 1 else -1][1]
        lives.append((first, flushed))
        second = numbers[-1][0] + moments.choice([1, 2, 30, 500])
    store = opened(path, second)
    try:
        begin = lives[0][0]
        store.finish(second + 1, {})
        gaps = store.incomplete(begin, second)
        row = store.select(COUNTER, begin, second, 1).values[0]
        for at, value in enumerate(row.tolist()):
            now = begin + at
            if now in gaps:
                assert gaps[now] == {"server": "the server was away"}
            else:
                assert value == now * 7.0, "a complete second has its value, across all lives"
        for first, flushed in lives:
            assert not [now for now in range(first, flushed + 1) if now in gaps]
        born = store.select([Matcher("__name__", "=", "born_total")], begin, second, 1)
        for labels, values in zip(born.labels, born.values, strict=True):
            there = values[~np.isnan(values)]
            seconds = range(int(labels[0][1]) * 5, int(labels[0][1]) * 5 + 5)
            whole = begin < seconds[0] and seconds[-1] <= second
            if whole and not any(now in gaps for now in (seconds[0] - 1, *seconds)):
                assert there[-1] - there[0] == 5.0, "what was counted in its first second, too"
    finally:
        store.close()


class Disk:
    """A disk that can be full: SQLite is told how many pages the file may have."""

    def __init__(self, store: SeriesStore) -> None:
        self.store = store

    def fill(self) -> None:
        database = self.store._file._connected()
        database.execute("PRAGMA max_page_count = 1")  # as many as there are

    def free(self) -> None:
        self.store._file._connected().execute("PRAGMA max_page_count = 1073741823")


def test_on_a_full_disk_it_goes_on_in_memory_and_heals(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.sqlite"
    store = opened(path)
    node, disk = Node(store, 400), Disk(store)
    for second in range(BEGIN, BEGIN + 30):
        node.tell(second)
    disk.fill()
    for second in range(BEGIN + 30, BEGIN + 230):
        node.tell(second)
    trouble = store.stats().trouble
    assert trouble is not None
    assert "full" in trouble
    assert "series not written" in caplog.text
    row = store.select(COUNTER, BEGIN, BEGIN + 229, 1).values[0]
    assert row.tolist() == [float(it) for it in range(230)]
    disk.free()
    for second in range(BEGIN + 230, BEGIN + 245):
        node.tell(second)
    assert store.stats().trouble is None
    store.close()
    store = opened(path, BEGIN + 245)
    row = store.select(COUNTER, BEGIN, BEGIN + 244, 1).values[0]
    assert row.tolist() == [float(it) for it in range(245)]
    assert store.incomplete(BEGIN, BEGIN + 244) == {}
    store.close()


def test_seconds_that_a_full_disk_never_got_are_incomplete(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sqlite"
    store = opened(path)
    node, disk = Node(store, 400), Disk(store)
    for second in range(BEGIN, BEGIN + 200):
        node.tell(second)
    disk.fill()
    for second in range(BEGIN + 200, BEGIN + 900):
        node.tell(second)
    disk.free()
    for second in range(BEGIN + 900, BEGIN + 915):
        node.tell(second)
    lost = store.incomplete(BEGIN, BEGIN + 914)
    assert "full" in lost[BEGIN + 300]["server"]
    for _ in range(2):
        for resolution in (1, 10, 60):
            selection = store.select(COUNTER, BEGIN, BEGIN + 914, resolution)
            for time_, value in zip(
                selection.times.tolist(), selection.values[0].tolist(), strict=True
            ):
                assert value == time_ - BEGIN or time_ in lost, (resolution, time_ - BEGIN, value)
        assert store.incomplete(BEGIN, BEGIN + 914) == lost
        store.close()
        store = opened(path, BEGIN + 915)
    store.close()


@pytest.mark.parametrize("damage", ["text", "torn", "header", "newer", "state"])
def test_a_damaged_file_is_moved_aside_and_said_and_begun_anew(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.sqlite"
    store = opened(path)
    node = Node(store, 300)
    for second in range(BEGIN, BEGIN + 400):
        node.tell(second)
    store.close()
    whole = path.read_bytes()
    match damage:
        case "text":
            path.write_text("this is no database\n" * 100)
        case "torn":
            path.write_bytes(whole[: len(whole) // 2])
        case "header":
            path.write_bytes(b"\0" * 100 + whole[100:])
        case "newer":
            with contextlib.closing(sqlite3.connect(path)) as database:
                database.execute("PRAGMA user_version = 99")
        case _:
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
                database.execute("UPDATE meta SET value = x'00' WHERE key = 'rows'")
    store = opened(path, BEGIN + 400)
    node = Node(store, 300)
    for second in range(BEGIN + 400, BEGIN + 430):
        node.tell(second)
    row = store.select(COUNTER, BEGIN + 400, BEGIN + 429, 1).values[0]
    assert row.tolist() == [float(it) for it in range(400, 430)]
    store.close()
    assert "monitoring file damaged" in caplog.text
    assert list(tmp_path.glob("metrics.sqlite.damaged-*"))
    store = opened(path, BEGIN + 430)
    assert store.last() == BEGIN + 429
    store.close()


def test_a_file_that_is_damaged_under_its_owner_is_replaced_with_what_is_in_memory(
    tmp_path: Path,
) -> None:
    path = tmp_path / "metrics.sqlite"
    store = opened(path)
    node = Node(store, 300)
    for second in range(BEGIN, BEGIN + 400):
        node.tell(second)
    store._file._connected().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store._file._connected().execute("PRAGMA shrink_memory")  # what it has in memory is whole
    with path.open("r+b") as file:
        file.seek(0)
        file.write(b"\xff" * path.stat().st_size)
    for second in range(BEGIN + 400, BEGIN + 430):
        node.tell(second)
    assert store.stats().trouble is None
    store.close()
    store = opened(path, BEGIN + 430)
    row = store.select(COUNTER, BEGIN + 100, BEGIN + 429, 1).values[0]
    lost = store.incomplete(BEGIN, BEGIN + 429)
    assert all(
        value == at or BEGIN + at in lost for at, value in enumerate(row.tolist(), start=100)
    )
    assert lost
    assert not [it for it in lost if it > BEGIN + 120]
    store.close()


def test_a_damaged_block_is_a_gap(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.sqlite"
    store = opened(path)
    node = Node(store)
    for second in range(BEGIN, BEGIN + 600):
        node.tell(second)
    store.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(
            "UPDATE blocks SET data = x'0102' WHERE level = 1 AND start = ?", (BEGIN + 120,)
        )
    store = opened(path, BEGIN + 10_000)
    row = store.select(COUNTER, BEGIN, BEGIN + 599, 1).values[0]
    assert np.isnan(row[121:241]).all()
    assert np.array_equal(row[:121], np.arange(121.0))
    assert np.array_equal(row[241:], np.arange(241.0, 600.0))
    assert "block damaged" in caplog.text
    store.close()


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    store = opened(tmp_path / "metrics.sqlite")
    with pytest.raises(UnavailableError, match="held by process"):
        opened(tmp_path / "metrics.sqlite")
    store.close()
    opened(tmp_path / "metrics.sqlite").close()


def test_what_is_too_old_or_too_much_goes_and_the_finest_kept_resolution_is_said(
    tmp_path: Path,
) -> None:
    path = tmp_path / "metrics.sqlite"
    kept = Retention({1: 600, 10: 1800, 60: 100_000})
    store = opened(path, retention=kept)
    node = Node(store)
    for second in range(BEGIN, BEGIN + 4000):
        node.tell(second, wait=second % 10 == 0)
    store.flush()
    last = store.last()
    for age, finest in ((300, 1), (1000, 10), (3900, 60)):
        assert store.resolution(last - age, 1) == finest
        start = last - age - last % 60
        row = store.select(COUNTER, start, last - 60, finest).values[0]
        assert not np.isnan(row).any()
    assert np.isnan(store.select(COUNTER, BEGIN, last, 1).values[0][:1000]).all()
    store.close()


def test_the_file_stays_within_its_size(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sqlite"
    size = 600_000
    store = opened(path, retention=Retention(size=size))
    builder = FrameBuilder()
    noise = np.random.default_rng(1)
    series = [Series("g", (("i", str(i)),), "gauge", "node") for i in range(40)]
    for second in range(BEGIN, BEGIN + 3000):
        values = dict(zip(series, noise.random(len(series)).tolist(), strict=True))
        assert store.ingest("n", builder.build(second, values, {"node": "1"}, {}))
        store.finish(second, {})
        if store._pending is not None:
            store._pending.result()
    store.flush()
    floors = store._file.floors
    assert floors[1] > BEGIN
    assert floors[1] >= floors[60]
    every = [Matcher("__name__", "=", "g")]
    assert not np.isnan(store.select(every, floors[1] + 1, store.last(), 1).values).any()
    store.close()
    assert path.stat().st_size < size * 1.5


def test_a_file_that_may_be_smaller_than_before_gives_its_room_back(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    with opened(path) as store:
        node = Node(store, 100)
        for second in range(BEGIN + 1, BEGIN + 900):
            node.tell(second)
    before = path.stat().st_size
    with opened(path, BEGIN + 900, Retention(size=before // 4)) as store:
        node = Node(store)
        for second in range(BEGIN + 900, BEGIN + 1300):
            node.tell(second)
    assert path.stat().st_size < before / 2


def test_the_cap_refuses_and_names_what_it_drops_and_takes_it_when_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SeriesStore(tmp_path / "metrics.sqlite", cap=10, clock=lambda: float(BEGIN))
    store.open()
    builder = FrameBuilder()
    few = {Series("few_total", (("i", str(i)),), "counter", "node"): 1.0 for i in range(8)}
    many = {Series("many_total", (("i", str(i)),), "counter", "node"): 100.0 for i in range(8)}
    seconds = itertools.count(BEGIN)

    def tell(values: dict[Series, float]) -> None:
        second = next(seconds)
        for full in (False, True):
            frame = builder.build(second, values, {"node": "1"}, {}, full=full)
            if store.ingest("n", frame):
                break
        store.finish(second, {})

    tell(few)
    tell(few | many)
    assert store.stats().series == 10
    assert store.stats().dropped == {("many_total", "series"): 6}
    assert "series refused" in caplog.text
    for _ in range(600):  # what is gone leaves the memory with its last second
        tell(many)
        store.flush() if store.last() % 10 == 0 else None
    rows = store.select([Matcher("__name__", "=", "many_total")], BEGIN, store.last(), 1)
    assert len(rows.names) == 8
    growth = [float(row[~np.isnan(row)][-1] - row[~np.isnan(row)][0]) for row in rows.values]
    assert sorted(growth) == [0.0] * 6 + [100.0] * 2, "nobody knows when those were counted"
    store.close()


def test_readers_of_other_threads_see_every_second_whole_while_it_is_written(
    tmp_path: Path,
) -> None:
    store = opened(tmp_path / "metrics.sqlite")
    node = Node(store, 50)
    node.tell(BEGIN)
    wrong: list[str] = []
    reads = itertools.count()
    done = threading.Event()

    def read(resolution: int) -> None:
        while not done.is_set():
            last = store.last()
            selection = store.select(COUNTER, BEGIN, last, resolution)
            expected = (selection.times - BEGIN).astype(float)
            if selection.times.size and not np.array_equal(selection.values[0], expected):
                wrong.append(f"{resolution}: {selection.values[0].tolist()}")
            next(reads)

    threads = [threading.Thread(target=read, args=(it,)) for it in (1, 10, 60)]
    for thread in threads:
        thread.start()
    try:
        for second in range(BEGIN + 1, BEGIN + 800):
            node.tell(second, wait=second % 100 == 0)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    store.close()
    assert not wrong, wrong[:3]
    assert next(reads) > 30
