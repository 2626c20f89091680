"""The file of traces: killed while it is written, torn, of another kind, and on a full disk."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bedstone.control.monitoring.traces.sampler import Decided
from bedstone.control.monitoring.traces.store import Query, TraceStore
from bedstone.errors import NotFoundError, UnavailableError
from bedstone.testing.spans import BEGIN, SECOND, span, trace_id

NOW = BEGIN / SECOND
WRITER = """
import sys
from pathlib import Path
from bedstone.control.monitoring.traces.store import TraceStore
from bedstone.testing.spans import span, trace_id
from bedstone.control.monitoring.traces.sampler import Decided
store = TraceStore(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    spans = [span(number, n + 1, n) for n in range(20)]
    store.write([Decided(trace_id(number), spans, "sampled", late=False)], 1_800_000_000.0)
    print(number, flush=True)
"""


def one(number: int, spans: int = 1) -> Decided:
    made = [span(number, n + 1, n) for n in range(spans)]
    return Decided(trace_id(number), made, "sampled", late=False)


def count(store: TraceStore) -> int:
    return len(store.search(Query(limit=1000)).items)


def test_what_was_written_before_a_kill_is_there_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "traces.sqlite"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    last = 0
    for line in process.stdout:
        last = int(line)
        if last == 30:
            os.kill(process.pid, signal.SIGKILL)
            break
    last = max([last, *(int(line) for line in process.stdout)])
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    store = TraceStore(path)
    assert last <= count(store) <= last + 1
    assert all(len(store.get(trace_id(n + 1).hex()).spans) == 20 for n in range(last))
    store.write([one(9999)], NOW)
    store.close()


@pytest.mark.parametrize("damage", ["cut", "foreign", "pages", "version"])
def test_a_damaged_file_is_moved_aside_and_a_new_one_begun(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "traces.sqlite"
    store = TraceStore(path)
    store.write([one(n, 50) for n in range(1, 51)], NOW)
    store.close()
    data = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(data[: len(data) // 2])
        case "foreign":
            path.write_bytes(b"something else altogether " * 1000)
        case "pages":
            path.write_bytes(data[:100] + b"\xff" * (len(data) - 100))
        case _:
            with sqlite3.connect(path) as connection:
                connection.execute("PRAGMA user_version = 99")
            connection.close()
    store = TraceStore(path)
    store.write([one(n, 50) for n in range(100, 160)], NOW)
    assert count(store) >= 60
    assert path.with_name("traces.sqlite.damaged").exists()
    store.close()


def test_a_file_that_is_torn_while_it_is_open_costs_its_traces_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "traces.sqlite"
    store = TraceStore(path)
    store.write([one(n, 50) for n in range(1, 101)], NOW)
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    for number in range(200, 205):
        store.write([one(number, 50)], NOW)
    assert count(store) == 5
    assert path.with_name("traces.sqlite.damaged").exists()
    store.close()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Stand in for a full disk: this process writes no file beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_said_and_heals(tmp_path: Path) -> None:
    path = tmp_path / "traces.sqlite"
    store = TraceStore(path)
    store.write([one(1, 20)], NOW)
    size = store.bytes
    many = [one(n, 100) for n in range(2, 200)]
    with files_of_at_most(64 << 10):
        with pytest.raises(UnavailableError, match="cannot be written"):
            store.write(many, NOW)
        assert count(store) == 1, "what was written before is still found"
        assert store.bytes == size
    store.write(many, NOW)
    assert count(store) == 199
    store.close()


def test_a_trace_that_the_disk_has_changed_costs_itself_only(tmp_path: Path) -> None:
    path = tmp_path / "traces.sqlite"
    store = TraceStore(path)
    store.write([one(1, 5), one(2, 5)], NOW)
    with sqlite3.connect(path) as other:
        other.execute("UPDATE bodies SET body = x'00ff' WHERE id = 1")
    other.close()
    with pytest.raises(NotFoundError, match="damaged"):
        store.get(trace_id(1).hex())
    late = Decided(trace_id(1), [span(1, 9)], "error", late=True)
    store.write([late, one(3)], NOW)
    assert len(store.get(trace_id(1).hex()).spans) == 1
    assert count(store) == 3
    store.close()


def test_a_damaged_file_on_a_full_disk_is_replaced_once_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "traces.sqlite"
    store = TraceStore(path)
    store.write([one(n, 50) for n in range(1, 101)], NOW)
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    with files_of_at_most(0):
        for _ in range(3):
            with pytest.raises(UnavailableError):
                store.write([one(200, 50)], NOW)
    store.write([one(200, 50)], NOW)
    assert count(store) == 1
    store.close()
