"""The server's second, in virtual time: never twice, never left out in silence, never held up."""

import asyncio
import base64
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from bedstone.control.monitoring.reading import Matcher
from bedstone.control.monitoring.series_store import SeriesStore
from bedstone.errors import UnavailableError
from bedstone.model.messages import Command, Reply
from bedstone.model.monitoring import Tick
from bedstone.server.collecting import DEADLINE, Collecting, SteadyClock
from bedstone.server.speaking import admitted
from bedstone.telemetry import frames
from bedstone.telemetry.frame_builder import FrameBuilder, Received
from bedstone.telemetry.frames import Frame, Series
from bedstone.testing.simulation.loop import SimulationLoop

BEGIN = 1_800_000_000.0
SENT = Series("sent_total", (), "counter", "app")


class Node:
    """A node that counts; `delay` is how long its next answer takes."""

    def __init__(self) -> None:
        self.counted = 0
        self.delay = 0.01
        self.asked: list[tuple[int, bool]] = []
        self.missing: dict[str, str] = {}
        self.shift = 0
        self._builder = FrameBuilder()

    async def command(self, command: Command) -> AsyncGenerator[Reply, None]:
        assert command.action == "metrics"
        assert command.since is not None
        second = int(command.since)
        self.asked.append((second, command.full))
        frame = self._builder.build(
            second + self.shift,
            {SENT: float(self.counted)},
            {"app": "1"},
            self.missing,
            full=command.full,
        )
        await asyncio.sleep(self.delay)
        yield Reply(id=command.id, final=True, body=base64.b64encode(frames.encode(frame)).decode())


@dataclass
class Kept:
    """What was written: the frames' seconds and last values by node, and the finished seconds."""

    before: int = 0
    taken: dict[str, list[int]] = field(default_factory=dict)
    known: dict[str, Received] = field(default_factory=dict)
    finished: list[int] = field(default_factory=list)
    found: dict[int, dict[str, str]] = field(default_factory=dict)
    _sources: dict[str, str] = field(default_factory=dict)

    def ingest(self, node: str, frame: Frame) -> bool:
        if not self.known.setdefault(node, Received()).apply(frame):
            return False
        self.taken.setdefault(node, []).append(frame.second)
        self._sources |= {f"{node}/{source}": why for source, why in frame.missing.items()}
        return True

    def finish(self, second: int, missing: Mapping[str, str]) -> None:
        self.finished.append(second)
        self.found[second] = {**missing, **self._sources}
        self._sources = {}

    def last(self) -> int:
        return self.finished[-1] if self.finished else self.before

    def incomplete(self, start: int, end: int) -> dict[int, dict[str, str]]:
        return {s: why for s, why in self.found.items() if start <= s <= end and why}

    def counted(self, node: str) -> float:
        return self.known[node].current()[SENT]


@dataclass
class World:
    """One server and its nodes."""

    loop: SimulationLoop
    nodes: dict[str, Node | None]
    kept: Kept
    wall_shift: float = 0.0
    stall: float = 0.0

    def __post_init__(self) -> None:
        self.clock = SteadyClock(
            lambda: self.loop.time() + self.wall_shift + self.stall,
            lambda: self.loop.time() + self.stall,
            after=self.kept.last() + 1,
        )
        self.collecting = Collecting(self, self.kept, self.clock.now, "1")  # type: ignore[arg-type]
        self.ended: dict[int, float] = {}

    def present(self) -> list[str]:
        return list(self.nodes)

    def get(self, node: str) -> Node:
        found = self.nodes[node]
        if found is None:
            raise UnavailableError(f"node {node} has no session with this server")
        return found

    async def watch(self) -> None:
        async for tick in self.collecting.ticks():
            self.ended[tick.second] = self.loop.time()


def play(
    scenario: Callable[[World], Coroutine[Any, Any, None]],
    *names: str,
    seed: int = 1,
    before: int = 0,
    kept: Kept | None = None,
) -> World:
    loop = SimulationLoop(Random(seed), start=BEGIN + 0.3)
    world = World(loop, {name: Node() for name in names}, kept or Kept(before))

    async def run() -> None:
        tasks = [asyncio.ensure_future(world.collecting.run())]
        tasks.append(asyncio.ensure_future(world.watch()))
        await scenario(world)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    loop.run_until_complete(run())
    loop.end([])
    return world


def node(world: World, name: str) -> Node:
    found = world.nodes[name]
    assert found is not None
    return found


def in_order(world: World) -> None:
    """Each second was finished once, and none was left out."""
    assert all(b == a + 1 for a, b in pairwise(world.kept.finished)), world.kept.finished
    for taken in world.kept.taken.values():
        assert taken == sorted(set(taken))


def test_each_second_is_asked_for_once_when_it_has_ended_and_told_at_once() -> None:
    async def scenario(world: World) -> None:
        await asyncio.sleep(5)

    world = play(scenario, "a", "b")
    in_order(world)
    seconds = [int(BEGIN) + i for i in range(5)]
    assert world.kept.finished == seconds
    assert world.kept.taken == {"a": seconds, "b": seconds, "server": seconds}
    assert world.kept.incomplete(0, 1 << 40) == {}
    assert [full for _, full in node(world, "a").asked] == [True, False, False, False, False]
    for second, moment in world.ended.items():
        assert 0.01 <= moment - (second + 1) < 0.05


def test_a_hung_node_holds_up_neither_the_others_nor_the_next_second() -> None:
    async def scenario(world: World) -> None:
        await asyncio.sleep(2)
        node(world, "hung").delay = 1e9
        await asyncio.sleep(4)

    world = play(scenario, "a", "hung")
    in_order(world)
    finished = world.kept.finished
    assert world.kept.taken["a"][: len(finished)] == finished
    late = [s for s in world.kept.finished if world.kept.found[s]]
    assert len(late) == len(world.kept.finished) - 2
    for second in late:
        assert set(world.kept.found[second]) == {"hung"}
        assert DEADLINE <= world.ended[second] - (second + 1) < DEADLINE + 0.05


def test_a_node_that_comes_back_says_everything_that_it_counted() -> None:
    async def scenario(world: World) -> None:
        counting = node(world, "a")
        counting.counted = 5
        await asyncio.sleep(2)
        counting.delay = 2.0
        counting.counted = 7
        await asyncio.sleep(2)
        counting.delay = 0.01
        counting.counted = 9
        await asyncio.sleep(2)

    world = play(scenario, "a")
    in_order(world)
    assert world.kept.counted("a") == 9
    missed = [s for s in world.kept.finished if world.kept.found[s]]
    assert len(missed) == 2
    # the one after a miss is whole, and only that
    asked = dict(node(world, "a").asked)
    assert asked[missed[1] + 1] is True
    assert asked[missed[1] + 2] is False


def test_a_node_without_a_session_is_missing_and_a_new_session_is_asked_for_everything() -> None:
    async def scenario(world: World) -> None:
        await asyncio.sleep(2)
        world.nodes["a"] = None
        await asyncio.sleep(1)
        world.nodes["a"] = Node()
        await asyncio.sleep(1)

    world = play(scenario, "a")
    (second,) = world.kept.incomplete(0, 1 << 40)
    assert world.kept.found[second] == {"a": "node a has no session with this server"}
    assert node(world, "a").asked == [(second + 1, True)]


def test_a_source_that_did_not_answer_makes_the_second_incomplete() -> None:
    async def scenario(world: World) -> None:
        node(world, "a").missing = {"envoy": "no answer in time"}
        await asyncio.sleep(1)

    world = play(scenario, "a")
    assert list(world.kept.found.values()) == [{"a/envoy": "no answer in time"}]
    assert world.collecting.last.complete is False


def test_an_answer_for_another_second_counts_for_none() -> None:
    async def scenario(world: World) -> None:
        node(world, "a").shift = 1
        await asyncio.sleep(2)

    world = play(scenario, "a")
    assert "a" not in world.kept.taken
    assert all("it answered for second" in why["a"] for why in world.kept.found.values())


def test_seconds_that_the_server_slept_through_are_incomplete() -> None:
    async def scenario(world: World) -> None:
        await asyncio.sleep(1)
        world.stall += 3.2
        node(world, "a").counted = 4
        await asyncio.sleep(3)

    world = play(scenario, "a")
    in_order(world)
    left_out = world.kept.incomplete(0, 1 << 40)
    assert list(left_out.values()) == [{"server": "it did not ask in time"}] * 3
    assert world.kept.counted("a") == 4


def test_a_clock_set_forward_leaves_seconds_out_and_says_so() -> None:
    async def scenario(world: World) -> None:
        await asyncio.sleep(1)
        world.wall_shift += 30
        await asyncio.sleep(3)

    world = play(scenario, "a")
    in_order(world)
    assert len(world.kept.incomplete(0, 1 << 40)) in (29, 30)
    assert world.kept.finished[-1] >= int(BEGIN) + 32


@pytest.mark.parametrize("back", [0.5, 2.0, 3600.0])
def test_a_clock_set_back_gives_no_second_twice_and_the_seconds_go_on(back: float) -> None:
    async def scenario(world: World) -> None:
        await asyncio.sleep(2)
        world.wall_shift -= back
        await asyncio.sleep(4)

    world = play(scenario, "a")
    in_order(world)
    assert len(world.kept.finished) >= 5
    assert world.kept.incomplete(0, 1 << 40) == {}


def test_a_clock_set_back_is_caught_up_with_and_time_never_goes_back() -> None:
    now = [BEGIN, 0.0]  # the wall clock, and the one that nobody sets
    clock = SteadyClock(lambda: now[0], lambda: now[1])
    told = [clock.now()]
    now[0] -= 3
    for _ in range(200):
        now[0] += 0.5
        now[1] += 0.5
        told.append(clock.now())
        assert 0.4 < told[-1] - told[-2] <= 0.5
    assert told[-1] == now[0]


def test_a_store_that_fails_ends_one_second_and_not_the_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing(Kept):
        def finish(self, second: int, missing: Mapping[str, str]) -> None:
            if second == int(BEGIN) + 1:
                raise OSError("no space")
            super().finish(second, missing)

    async def scenario(world: World) -> None:
        await asyncio.sleep(4)

    world = play(scenario, "a", kept=Failing())
    assert world.kept.finished == [int(BEGIN) + offset for offset in (0, 2, 3)]
    assert "collecting failed" in caplog.text


def test_it_goes_on_after_the_last_second_of_the_run_before() -> None:
    async def scenario(world: World) -> None:
        await asyncio.sleep(3)

    world = play(scenario, "a", before=int(BEGIN) + 50)
    assert world.kept.finished[:2] == [int(BEGIN) + 51, int(BEGIN) + 52]


def test_a_bug_in_one_node_s_answer_ends_neither_the_second_nor_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Node):
        async def command(self, command: Command) -> AsyncGenerator[Reply, None]:
            if command.id:
                raise ValueError(command.id)
            yield Reply(id="")

    async def scenario(world: World) -> None:
        world.nodes["broken"] = Broken()
        await asyncio.sleep(2)

    world = play(scenario, "a")
    assert set(world.kept.finished) <= set(world.kept.taken["a"])
    assert all("ValueError" in why["broken"] for why in world.kept.found.values())
    assert "collecting failed" in caplog.text


def test_a_question_that_is_cut_off_ends_neither_the_second_nor_the_server() -> None:
    class CutOff(Node):
        async def command(self, command: Command) -> AsyncGenerator[Reply, None]:
            if command.id:
                raise asyncio.CancelledError
            yield Reply(id="")

    async def scenario(world: World) -> None:
        world.nodes["cut"] = CutOff()
        await asyncio.sleep(3)

    world = play(scenario, "a")
    assert len(world.kept.finished) >= 3
    in_order(world)
    assert all("cut off" in why["cut"] for why in world.kept.found.values())


@pytest.mark.parametrize("seed", range(15))
def test_nothing_counted_is_lost_whatever_is_slow_or_stalls(seed: int) -> None:
    chance = Random(seed)

    async def scenario(world: World) -> None:
        for _ in range(60):
            await asyncio.sleep(chance.uniform(0, 1))
            name = chance.choice(["a", "b"])
            node(world, name).counted += chance.randrange(100)
            node(world, name).delay = chance.choice([0.01, 0.01, 0.3, 0.79, 1.1, 5.0])
            world.stall += chance.choice([0, 0, 0, 0, 0.4, 2.5])
            world.wall_shift += chance.choice([0, 0, 0, 0, -1.5, 1.5])
        for found in world.nodes.values():
            assert found is not None
            found.delay = 0.01
        await asyncio.sleep(3)

    world = play(scenario, "a", "b", seed=seed)
    in_order(world)
    for name in ("a", "b"):
        assert world.kept.counted(name) == node(world, name).counted
        # a second is complete exactly if everybody's frame is in it
        for second in world.kept.finished:
            absent = {n for n in ("a", "b") if second not in world.kept.taken.get(n, [])}
            assert absent == set(world.kept.found[second]) - {"server"} or world.kept.found[
                second
            ] == {"server": "it did not ask in time"}


def test_a_reader_of_ticks_that_pauses_gets_those_that_it_missed() -> None:
    seen: list[int] = []

    async def scenario(world: World) -> None:
        ticks = world.collecting.ticks()
        tick: Tick = await anext(ticks)
        seen.append(tick.second)
        await asyncio.sleep(3)
        seen.extend([(await anext(ticks)).second for _ in range(3)])
        await ticks.aclose()

    play(scenario, "a")
    assert seen == list(range(int(BEGIN), int(BEGIN) + 4))


PATH = {"app": "a", "cell": "default", "workload": "w", "instance": "i1"}


def said(name: str, **labels: str) -> Series:
    return Series(name, tuple(sorted(labels.items())), "counter", "x")


@pytest.mark.parametrize(
    ("series", "own"),
    [
        (said("of_itself", node="n1"), True),
        (said("of_another_node", node="n2"), False),
        (said("bedstone_transactions_total", app="a", event="committed"), False),
        (said("placed_here", node="n1", **PATH), True),
        (said("placed_elsewhere", node="n1", **{**PATH, "instance": "i2"}), False),
        (said("just_gone", node="n1", **{**PATH, "instance": "i3"}), True),
    ],
)
def test_a_node_speaks_for_itself_and_what_is_placed_on_it(
    series: Series,
    own: bool,  # noqa: FBT001 - of the table
) -> None:
    placed = {"a/default/w/i1": "n1", "a/default/w/i2": "n2"}
    frame = Frame(1, 0, new={7: series, 8: said("other", node="n1")}, values={7: 5.0, 8: 1.0})
    left = admitted("n1", frame, placed.get)
    assert (7 in left.new) is own
    assert 8 in left.new
    assert left.values == frame.values


def test_what_a_node_says_of_others_is_not_stored(tmp_path: Path) -> None:
    with SeriesStore(tmp_path / "metrics.sqlite") as store:
        lie = Frame(100, 0, new={7: said("other_total", node="n2")}, values={7: 5.0})
        assert store.ingest("n1", admitted("n1", lie, lambda _: None))
        store.finish(100, {})
        more = Frame(101, 1, values={7: 9.0})
        assert store.ingest("n1", admitted("n1", more, lambda _: None))
        store.finish(101, {})
        assert store.series([Matcher("__name__", "=", "other_total")], 0, 200) == []
