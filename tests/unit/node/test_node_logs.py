"""Logs: bounded without a lost line, readable by time, from many sources, followed."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from bedstone.errors import NotFoundError
from bedstone.model.messages import LogLine
from bedstone.node import logfile, logs
from bedstone.node.logs import KEEP_DEAD, LogKeeper, find_sources, show
from bedstone.telemetry.lines import Filter


def append(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def texts(path: Path, **window: float) -> list[str]:
    return [line.text for line in logfile.read(path, "x", **window)]  # type: ignore[arg-type]


def instance_log(logs: Path, workload: str, name: str) -> Path:
    return logs / "instances" / "shop" / "default" / workload / f"{name}.log"


def test_since_skips_what_was_surely_written_before(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    for second in range(10):
        append(log, f"at {second}")
        logfile.note(log, 1000.0 + second, log.stat().st_size)
    assert texts(log) == [f"at {n}" for n in range(10)]
    assert texts(log, since=1006.5) == ["at 7", "at 8", "at 9"]
    assert texts(log, since=2000.0) == []
    times = [line.time for line in logfile.read(log, "x")]
    assert times == [1000.0 + n for n in range(10)]


def test_damaged_index_is_read_as_far_as_it_makes_sense(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    append(log, "one", "two")
    logfile.index_path(log).write_text("garbage\n1000.0 4\n900.0 2\n1001.0 8\n10")
    assert logfile.read_index(log) == ([1000.0, 1001.0], [4, 8])
    assert texts(log) == ["one", "two"]


def test_missing_and_empty_files_have_no_lines(tmp_path: Path) -> None:
    assert texts(tmp_path / "none.log") == []
    (tmp_path / "empty.log").touch()
    assert texts(tmp_path / "empty.log") == []


def test_bounding_keeps_the_newest_lines_whole(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    append(log, *(f"line {n:06d}" for n in range(50_000)))
    logfile.note(log, 1000.0, log.stat().st_size)
    before = log.stat().st_size
    assert logfile.bound(log, limit=300_000, keep=200_000)
    assert not logfile.bound(log, limit=300_000, keep=200_000), "it is small enough now"
    assert log.stat().st_size in (0, before), "no offset has moved, or it was cut"
    append(log, "the last")
    found = texts(log)
    assert found[-1] == "the last"
    assert all(line.startswith("line ") for line in found[:-1])
    if log.stat().st_size >= before:
        assert 10_000 < len(found) < 50_000
        assert log.stat().st_blocks * 512 < 300_000, "the room is given back"
        numbers = [int(line.split()[1]) for line in found[:-1]]
        assert numbers == list(range(numbers[0], 50_000))


def test_no_line_is_lost_while_a_process_writes(tmp_path: Path) -> None:
    """Whatever was written lately is there, in order, though the file is bounded all the time."""
    log = tmp_path / "a.log"
    log.touch()
    total = 60_000

    def write() -> None:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
        for number in range(total):
            os.write(descriptor, b"%d xxxxxxxxxxxxxxxxxxxxxxxx\n" % number)
        os.close(descriptor)

    writer = threading.Thread(target=write)
    writer.start()
    bounded = 0
    while writer.is_alive():
        bounded += logfile.bound(log, limit=200_000, keep=100_000)
    writer.join()
    numbers = [int(text.split()[0]) for text in texts(log)]
    assert bounded > 0
    assert numbers == list(range(numbers[0], total)), "no gap, and nothing twice"


@pytest.mark.parametrize(("count", "first"), [(1, "9"), (3, "7"), (10, "0"), (99, "0")])
def test_tail_starts_at_a_line(tmp_path: Path, count: int, first: str) -> None:
    log = tmp_path / "a.log"
    append(log, *(str(n) for n in range(10)))
    begin = logfile.tail_start(log, count)
    assert next(logfile.read(log, "x", begin=begin)).text == first


def test_tail_of_a_line_that_is_not_complete(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("one\ntwo\nthr")
    begin = logfile.tail_start(log, 2)
    assert [line.text for line in logfile.read(log, "x", begin=begin)] == ["two", "thr"]


def test_sources_of_a_subject(tmp_path: Path) -> None:
    for workload, name in (("web", "web-1"), ("web", "web-2"), ("risk", "risk-1")):
        append(instance_log(tmp_path, workload, name), "x")
    for engine in ("envoy", "server", "postgres-shop-default-ledger"):
        append(tmp_path / f"{engine}.log", "x")

    def names(subject: str) -> list[str]:
        return [source.name for source in find_sources(tmp_path, subject)]

    assert names("shop/default/web/") == ["web-1", "web-2"]
    assert names("shop") == ["risk/risk-1", "web/web-1", "web/web-2"]
    assert names("shop/default/web/web-2") == ["web-2"]
    assert names("other") == []
    assert names("../../etc") == []
    assert names("engine:envoy") == ["envoy"]
    assert names("engine:ledger") == ["postgres-shop-default-ledger"]
    for unknown in ("engine:nothing", "engine:", "engine:../secret"):
        with pytest.raises(NotFoundError):
            names(unknown)


def test_several_sources_are_merged_by_time(tmp_path: Path) -> None:
    one, two = (instance_log(tmp_path, "web", f"web-{n}") for n in (1, 2))
    for second in range(4):
        log = (one, two)[second % 2]
        append(log, f"at {second}")
        logfile.note(log, 1000.0 + second, log.stat().st_size)

    async def run(tail: int | None) -> list[tuple[str, str]]:
        batches = [batch async for batch in show(tmp_path, "shop", tail=tail)]
        return [(line.source, line.text) for line in itertools.chain(*batches)]

    everything = [(f"web/web-{n % 2 + 1}", f"at {n}") for n in range(4)]
    assert asyncio.run(run(None)) == everything
    assert asyncio.run(run(3)) == everything[1:]


def test_only_what_is_wanted_is_shown(tmp_path: Path) -> None:
    """The last of those that match, and later those that come."""
    log = instance_log(tmp_path, "web", "web-1")
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    for n in range(20):
        append(log, json.dumps({"n": n, "level": "error" if n % 5 == 0 else "info"}))
        append(log, f"plain {n}" + (f" of {trace}" if n == 7 else ""))
        logfile.note(log, 1000.0 + n, log.stat().st_size)

    async def run(wanted: Filter, **window: float) -> list[str]:
        batches = show(tmp_path, "shop", wanted=wanted, **window)  # type: ignore[arg-type]
        return [line.text async for batch in batches for line in batch]

    errors = [json.dumps({"n": n, "level": "error"}) for n in (0, 5, 10, 15)]
    assert asyncio.run(run(Filter(level="warning"))) == errors
    assert asyncio.run(run(Filter(level="warning"), tail=2)) == errors[2:]
    assert asyncio.run(run(Filter(level="warning"), until=1011.0)) == errors[:3]
    assert asyncio.run(run(Filter(level="warning"), since=1003.0, until=1011.0)) == errors[1:3]
    assert asyncio.run(run(Filter(trace=trace))) == [f"plain 7 of {trace}"]
    assert asyncio.run(run(Filter(text="PLAIN 1"), tail=1)) == ["plain 19"]
    assert asyncio.run(run(Filter(), until=1000.0)) == [
        json.dumps({"n": 0, "level": "error"}),
        "plain 0",
    ]

    async def follow() -> list[str]:
        seen: list[str] = []
        wanted = Filter(level="warning")
        shown = show(tmp_path, "shop", tail=1, follow=True, wanted=wanted)
        async with asyncio.timeout(10), aclosing(shown) as it:
            async for batch in it:
                seen += [line.text for line in batch]
                if len(seen) == 1:
                    append(log, '{"level": "info"}', "plain", '{"level": "fatal"}')
                else:
                    break
        return seen

    assert asyncio.run(follow()) == [errors[-1], '{"level": "fatal"}']


def test_follow_shows_each_complete_line_once_and_sources_that_appear(tmp_path: Path) -> None:
    one, two = (instance_log(tmp_path, "web", f"web-{n}") for n in (1, 2))
    append(one, "old", "last")

    async def run() -> list[str]:
        seen: list[str] = []
        async with asyncio.timeout(10), aclosing(show(tmp_path, "shop", tail=1, follow=True)) as it:
            async for batch in it:
                seen += [line.text for line in batch]
                match len(seen):
                    case 1:
                        with one.open("a") as file:
                            file.write("half")
                            file.flush()
                            file.write(" a line\n")
                    case 2:
                        append(two, "from another")
                    case _:
                        break
        return seen

    assert asyncio.run(run()) == ["last", "half a line", "from another"]


def test_files_are_touched_in_threads_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit hook sees what the event loop's own thread opens and lists."""
    main = threading.get_ident()
    touched: list[str] = []

    def watched(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("open", "os.scandir") and threading.get_ident() == main:
            path = str(arguments[0])
            if path.startswith(str(tmp_path)):
                touched.append(f"{event} {path}")

    stat = Path.stat

    def watched_stat(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        watched("open", (path,))
        return stat(path, follow_symlinks=follow_symlinks)

    log = instance_log(tmp_path, "web", "web-1")
    append(log, "one")

    async def run() -> list[str]:
        shown = [line.text async for batch in show(tmp_path, "shop") for line in batch]
        async with asyncio.timeout(10), aclosing(show(tmp_path, "shop", follow=True)) as it:
            async for batch in it:
                shown += [line.text for line in batch]
                if len(shown) == 3:
                    break
                await asyncio.to_thread(append, log, "two")
        return shown

    monkeypatch.setattr(Path, "stat", watched_stat)
    watching = [True]
    # A hook stays until the process ends.
    sys.addaudithook(lambda event, arguments: watched(event, arguments) if watching[0] else None)
    try:
        assert asyncio.run(run()) == ["one", "one", "two"]
    finally:
        watching[0] = False
    assert touched == []


def test_a_log_that_is_removed_has_no_more_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (instance_log(tmp_path, "web", f"web-{n}") for n in (1, 2))

    async def run(tail: int | None) -> list[str]:
        append(one, "gone")
        append(two, "there")
        batches = show(tmp_path, "shop", tail=tail)
        return [line.text async for batch in batches for line in batch]

    ends = logs._ends

    def removed(sources: list[logs.Source], *, whole: bool) -> dict[Path, int]:
        found = ends(sources, whole=whole)
        one.unlink()
        return found

    monkeypatch.setattr(logs, "_ends", removed)
    assert asyncio.run(run(5)) == ["there"]
    assert asyncio.run(run(None)) == ["there", "there"]


def test_keeper_notes_growth_and_forgets_the_oldest_dead(tmp_path: Path) -> None:
    keeper = LogKeeper(tmp_path)
    logs = [instance_log(tmp_path, "web", f"web-{n:02d}") for n in range(KEEP_DEAD + 5)]
    for age, log in enumerate(logs):
        append(log, "x")
        os.utime(log, (1000 + age, 1000 + age))
    alive = {"shop/default/web/web-00"}
    keeper.look(2000.0, alive)
    left = sorted(path.stem for path in tmp_path.rglob("*.log"))
    assert left == ["web-00", *(f"web-{n:02d}" for n in range(5, KEEP_DEAD + 5))]
    assert len(list(tmp_path.rglob("*.idx"))) == len(left)
    size = logfile.index_path(logs[0]).stat().st_size
    keeper.look(2001.0, alive)
    assert logfile.index_path(logs[0]).stat().st_size == size, "nothing grew, nothing is noted"


def test_searches_take_no_thread_from_the_rest_of_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty readers that search large files must not keep the collector waiting for a thread."""
    append(instance_log(tmp_path, "web", "w1"), "found")
    released = threading.Event()

    def slow(lines: Iterator[LogLine], count: int) -> Iterator[LogLine]:
        released.wait(20)
        return iter(deque(lines, maxlen=count))

    monkeypatch.setattr(logs, "_last", slow)

    async def search() -> list[str]:
        batches = show(tmp_path, "shop/default/web/", tail=1, wanted=Filter(text="found"))
        return [line.text async for batch in batches for line in batch]

    async def main() -> None:
        searches = [asyncio.create_task(search()) for _ in range(40)]
        await asyncio.sleep(0.2)
        await asyncio.wait_for(asyncio.to_thread(lambda: None), 5)
        released.set()
        assert await asyncio.gather(*searches) == [["found"]] * 40

    asyncio.run(main())
