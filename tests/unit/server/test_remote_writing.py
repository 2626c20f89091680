"""Remote-write: what is sent, and what happens when it is not taken."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedstone.control.monitoring.reading import Matcher, Selection
from bedstone.control.monitoring.remote_write import Encoder, varint
from bedstone.errors import UnavailableError
from bedstone.model.resources import App
from bedstone.model.spec import AppSpec
from bedstone.server import remote_writing
from bedstone.server.remote_writing import (
    BATCH,
    BEHIND,
    Progress,
    RemoteWriteCounts,
    RemoteWriter,
    RemoteWriting,
    Target,
    declared,
)
from bedstone.testing.remote_write import Receiver, decoded
from bedstone.testing.series import START, MemoryReader

TARGET = Target("http://there/api/v1/write", (("Authorization", "Bearer s3"),))
UP = (("__name__", "up"), ("node", "a"))


class World:
    """A reader, a receiver, and a writer between, in virtual time."""

    def __init__(self) -> None:
        self.memory = MemoryReader()
        self.receiver = Receiver()
        self.slept: list[float] = []
        self.acknowledged: list[int] = []
        self.progress = Progress()

    def fill(self, seconds: int) -> None:
        """Settle so many seconds from `START` on: the one after them is finished, too."""
        first = self.memory.last() or START
        for second in range(first, first + seconds):
            self.put(second)
            self.memory.finish(second + 1)

    def put(self, second: int) -> None:
        self.memory.put("up", {"node": "a"}, "gauge", second, float(second - START))

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def run(self, steps: int = 1) -> None:
        async def run() -> None:
            async with self.receiver.client() as client:
                writer = RemoteWriter(
                    self.memory,
                    TARGET,
                    client,
                    self.progress,
                    self.acknowledged.append,
                    self.sleep,
                    lambda: 1.0,
                    lambda: float(START),
                )
                for _ in range(steps):
                    await writer.step()

        asyncio.run(run())


class Failing(MemoryReader):
    """A reader whose first selections fail."""

    def __init__(self, whole: MemoryReader) -> None:
        super().__init__()
        self.whole = whole
        self.failures = 2

    def last(self) -> int:
        return self.whole.last()

    def select(
        self,
        matchers: Sequence[Matcher],
        start: int,
        end: int,
        resolution: int,
        aggregate: Literal["last", "min", "max", "avg"] = "last",
    ) -> Selection:
        if self.failures:
            self.failures -= 1
            raise UnavailableError("the disk does not answer")
        return self.whole.select(matchers, start, end, resolution, aggregate)


@pytest.fixture
def world() -> World:
    world = World()
    world.fill(1)
    world.run()
    world.fill(BATCH)
    return world


def test_it_begins_with_what_comes_and_sends_every_second_once(world: World) -> None:
    world.run()
    world.fill(BATCH)
    world.run()
    expected = {START + offset: float(offset) for offset in range(1, 2 * BATCH + 1)}
    assert world.receiver.samples == {UP: expected}
    assert world.acknowledged == [START + BATCH, START + 2 * BATCH]
    assert world.progress == Progress(START + 2 * BATCH, sent=2 * BATCH)


def test_requests_say_what_they_are(world: World) -> None:
    world.run()
    (request,) = world.receiver.requests
    assert str(request.url) == TARGET.url
    assert request.headers["content-encoding"] == "snappy"
    assert request.headers["content-type"] == "application/x-protobuf"
    assert request.headers["x-prometheus-remote-write-version"] == "0.1.0"
    assert request.headers["authorization"] == "Bearer s3"


@pytest.mark.parametrize(
    ("trouble", "pause"),
    [
        (httpx.Response(503), 1.0),
        (httpx.Response(429, headers={"Retry-After": "7"}), 7.0),
        (httpx.Response(429, headers={"Retry-After": "Fri, 15 Jan 2027 08:00:09 GMT"}), 9.0),
        (httpx.Response(503, headers={"Retry-After": "86400"}), 300.0),
        (httpx.ConnectError("refused"), 1.0),
        (httpx.ReadTimeout("slow"), 1.0),
    ],
)
def test_what_may_succeed_later_is_sent_again(
    world: World, trouble: httpx.Response | httpx.TransportError, pause: float
) -> None:
    world.receiver.answers = [trouble]
    world.run()
    assert world.slept == [pause]
    assert len(world.receiver.samples[UP]) == BATCH
    assert world.progress == Progress(START + BATCH, sent=BATCH)


def test_pauses_grow_up_to_a_minute(world: World) -> None:
    world.receiver.answers = [httpx.Response(500) for _ in range(9)]
    world.run()
    assert world.slept == [1, 2, 4, 8, 16, 32, 60, 60, 60]


@pytest.mark.parametrize("status", [401, 403, 404, 413])
def test_what_is_refused_for_good_is_dropped_and_counted(world: World, status: int) -> None:
    world.receiver.answers = [httpx.Response(status, text="no")]
    world.run()
    assert world.progress.dropped == BATCH
    assert world.progress.position == START + BATCH
    assert world.progress.trouble == f"HTTP {status}: no"
    assert world.slept == []


def test_seconds_that_the_target_has_do_not_keep_others_out(world: World) -> None:
    """After a restart, the position may be older than what was taken."""
    world.run()
    world.progress = Progress(START + 2)
    world.fill(2)
    world.run()
    assert max(world.receiver.samples[UP]) == START + BATCH + 2
    assert len(world.receiver.samples[UP]) == BATCH + 2
    assert world.progress.dropped == BATCH - 3, "out of order; the newest one is the same"


def test_a_series_that_ends_is_marked_stale(world: World) -> None:
    world.run()
    for offset in range(1, BATCH + 1):
        second = START + BATCH + offset
        if offset in (1, 4):
            world.memory.put("up", {"node": "a"}, "gauge", second, 1.0)
        world.memory.finish(second + 1)
    world.run()
    after = [world.receiver.samples[UP].get(START + BATCH + offset, ".") for offset in range(1, 6)]
    assert after == [1.0, None, ".", 1.0, None]


def test_a_second_is_sent_once_it_is_settled(world: World) -> None:
    """A counter's zero stands in the second before the one in which it began."""
    assert world.memory.last() == START + BATCH + 1
    world.memory.put("begun", {}, "counter", START + BATCH, 0.0)
    world.memory.put("begun", {}, "counter", START + BATCH + 1, 4.0)
    world.run()
    world.fill(BATCH)
    world.run()
    begun = world.receiver.samples[("__name__", "begun"),]
    assert begun == {START + BATCH: 0.0, START + BATCH + 1: 4.0, START + BATCH + 2: None}


def test_a_target_that_was_away_for_long_gets_what_it_still_takes(world: World) -> None:
    world.run()
    for second in range(START + 10_000, START + 10_003):
        world.memory.put("up", {"node": "a"}, "gauge", second, 1.0)
        world.memory.finish(second)
    world.run(2 + BEHIND // remote_writing.MOST)
    assert world.progress.position == START + 10_001
    assert world.progress.skipped == 10_001 - BEHIND - BATCH
    assert START + 10_001 in world.receiver.samples[UP]


def test_many_series_are_cut_into_requests() -> None:
    memory = MemoryReader()
    for second in (START, START + 1):
        for number in range(25_000):
            memory.put("x", {"n": f"{number}"}, "gauge", second, float(number))
        memory.finish(second)
    bodies = Encoder().bodies(memory, START, START + 1)
    assert [body.samples for body in bodies] == [10_000, 10_000, 5_000]
    series = [labels for body in bodies for labels, _ in decoded(body.content)]
    assert len(set(series)) == 25_000


@given(
    name=st.from_regex(r"[a-z_]{1,9}", fullmatch=True),
    labels=st.dictionaries(st.from_regex(r"[A-Za-z_]{1,9}", fullmatch=True), st.text(min_size=1)),
    values=st.lists(st.floats(allow_nan=False), min_size=1, max_size=4),
)
def test_protobuf_reads_what_was_encoded(
    name: str, labels: dict[str, str], values: list[float]
) -> None:
    memory = MemoryReader()
    for offset, value in enumerate(values):
        memory.put(name, labels, "gauge", START + 1 + offset, value)
        memory.finish(START + 1 + offset)
    (body,) = Encoder().bodies(memory, START, START + len(values))
    pairs = tuple(sorted((("__name__", name), *labels.items())))
    samples = [(START + 1 + offset, value) for offset, value in enumerate(values)]
    assert decoded(body.content) == [(pairs, samples)]
    assert body.samples == len(values)
    by_second = [found for part in body.seconds() for found in decoded(part.content)]
    assert by_second == [(pairs, [sample]) for sample in samples]


@given(st.integers(0, 1 << 60))
def test_varints(number: int) -> None:
    found = sum((byte & 0x7F) << (7 * at) for at, byte in enumerate(varint(number)))
    assert found == number


async def become(condition: Callable[[], bool]) -> None:
    """Let others go on until it holds."""
    while not condition():  # noqa: ASYNC110 - there is nothing to wait for but others' steps
        await asyncio.sleep(0)


def running(directory: Path, world: World, until: Callable[[], bool]) -> RemoteWriting:
    """Run all targets until something holds."""
    writing = RemoteWriting(
        world.memory, lambda: {TARGET}, directory, lambda _: asyncio.sleep(0), world.receiver.client
    )

    async def run() -> None:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            task = group.create_task(writing.run())
            await become(until)
            task.cancel()

    asyncio.run(run())
    return writing


def test_after_a_restart_it_goes_on_from_what_was_acknowledged(tmp_path: Path) -> None:
    world = World()
    world.fill(1)
    begun = random.Random(1).randrange(2, 9)
    (tmp_path / "remote-write.json").write_text(f'{{"{TARGET.digest}": {START}}}')
    world.fill(BATCH)
    running(tmp_path, world, lambda: UP in world.receiver.samples)
    world.fill(BATCH * begun)
    running(tmp_path, world, lambda: world.memory.last() - 1 in world.receiver.samples[UP])
    taken = world.receiver.samples[UP]
    assert sorted(taken) == list(range(START + 1, START + 1 + BATCH * (begun + 1)))
    assert len({request.content for request in world.receiver.requests}) == len(
        world.receiver.requests
    ), "nothing was sent twice"


@pytest.mark.parametrize("content", ["", "[1]", '{"a": "b"}', "{"])
def test_a_damaged_position_is_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "remote-write.json").write_text(content)
    assert remote_writing.Positions(tmp_path / "remote-write.json").read() == {}


def test_a_position_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    world = World()
    world.fill(1)
    nowhere = tmp_path / "gone"
    writing = RemoteWriting(
        world.memory, lambda: {TARGET}, nowhere, lambda _: asyncio.sleep(0), world.receiver.client
    )

    async def run() -> None:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            task = group.create_task(writing.run())
            await become(lambda: any(it.position for it in writing.progress.values()))
            for _ in range(2):
                world.fill(BATCH)
                await become(lambda: world.memory.last() - 1 in world.receiver.samples.get(UP, {}))
            task.cancel()

    asyncio.run(run())
    assert len(world.receiver.samples[UP]) == 2 * BATCH


def test_a_reader_that_fails_is_asked_again(tmp_path: Path) -> None:
    world = World()
    world.fill(1)
    failing = Failing(world.memory)
    writing = RemoteWriting(
        failing, lambda: {TARGET}, tmp_path, lambda _: asyncio.sleep(0), world.receiver.client
    )

    async def run() -> None:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            task = group.create_task(writing.run())
            await become(lambda: any(it.position for it in writing.progress.values()))
            world.fill(BATCH)
            await become(lambda: failing.failures == 0)
            await become(lambda: UP in world.receiver.samples)
            task.cancel()

    asyncio.run(run())
    assert len(world.receiver.samples[UP]) == BATCH


def test_a_target_that_is_not_declared_any_more_is_left_alone(tmp_path: Path) -> None:
    world = World()
    world.fill(1)
    targets = {TARGET}
    writing = RemoteWriting(
        world.memory, lambda: targets, tmp_path, lambda _: asyncio.sleep(0), world.receiver.client
    )

    async def run() -> None:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            task = group.create_task(writing.run())
            await become(lambda: bool(writing.progress))
            targets.clear()
            await become(lambda: not writing.progress)
            task.cancel()

    asyncio.run(run())


def test_progress_is_told_as_series(tmp_path: Path) -> None:
    writing = RemoteWriting(MemoryReader(), set, tmp_path)
    writing.progress[TARGET] = Progress(START, sent=7, dropped=2)
    counts = RemoteWriteCounts(writing, lambda: START + 30)
    reading = asyncio.run(counts.read())
    found = {(s.name, dict(s.labels).get("state", "")): v for s, v in reading.series}
    assert found == {
        ("bedstone_remote_write_samples_total", "sent"): 7.0,
        ("bedstone_remote_write_samples_total", "dropped"): 2.0,
        ("bedstone_remote_write_behind_seconds", ""): 30.0,
    }
    assert not any(math.isnan(value) for _, value in reading.series)


def test_targets_are_what_manifests_declare() -> None:
    def app(name: str, *targets: Mapping[str, object]) -> App:
        spec = AppSpec.model_validate(
            {
                "app": name,
                "workloads": {"web": {"command": ["web"]}},
                "monitoring": {"remote_write": list(targets)},
            }
        )
        return App(name=name, spec=spec)

    one = {"url": "http://there/write", "bearer": "s3", "headers": {"X-Scope": "b"}}
    apps = [app("a", one), app("b", one, {"url": "http://other/"})]
    assert declared(apps) == {
        Target("http://there/write", (("Authorization", "Bearer s3"), ("X-Scope", "b"))),
        Target("http://other/"),
    }
