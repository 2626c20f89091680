"""The store of series against a plain model: whatever dies, increases are what was counted.

The world has nodes with sources that count, begin anew, lose series, do not answer; agents that
restart; frames that are lost; a server that is away, restarts, or is killed. The model keeps, as
plain dictionaries, what each reading of a source added. Over any two complete seconds, at every
resolution, the increase of every counter is what the model says, exactly.
"""

from __future__ import annotations

import copy
import itertools
import math
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from bedstone.control.monitoring.reading import Matcher
from bedstone.control.monitoring.series_store import SeriesStore
from bedstone.telemetry.frame_builder import FrameBuilder
from bedstone.telemetry.frames import Labels, Series, decode, encode

NODES = ("n1", "n2")
SOURCES = ("envoy", "web")
NAMES = ("a_total", "b_total", "c_total")
BEGIN = 1_800_000_037

nodes = st.sampled_from(NODES)
sources = st.sampled_from(SOURCES)
names = st.sampled_from(NAMES)

Key = tuple[str, Labels]


@dataclass
class Source:
    """A source in the world: its life, its counters, and those that it may not make again yet."""

    life: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    barred: set[str] = field(default_factory=set)


@dataclass
class Model:
    """What readings have added.

    Attributes:
        known: nodes that were read.
        awaited: sources of a node whose first frame they were missing in.
        lives: by node and source, its life at the last reading.
        raw: by series, the counter at the last reading, if it was there.
        counted: by series, all increases.
        history: `counted` at the end of each second.
    """

    known: set[str] = field(default_factory=set)
    awaited: set[tuple[str, str]] = field(default_factory=set)
    lives: dict[tuple[str, str], int] = field(default_factory=dict)
    raw: dict[Key, int] = field(default_factory=dict)
    counted: dict[Key, int] = field(default_factory=dict)
    history: dict[int, dict[Key, int]] = field(default_factory=dict)

    def read(self, node: str, there: dict[str, Source], missing: set[str]) -> None:
        """A node was read, but for the sources that are missing."""
        for name, source in there.items():
            if name in missing:
                if node not in self.known:
                    self.awaited.add((node, name))
                continue
            unknown = node not in self.known or (node, name) in self.awaited
            self.awaited.discard((node, name))
            same = self.lives.get((node, name)) == source.life
            self.lives[node, name] = source.life
            keys = {key_of(node, name, counter): counter for counter in NAMES}
            for key, counter in keys.items():
                value = source.counters.get(counter)
                before = self.raw.pop(key, 0) if same else (self.raw.pop(key, 0), 0)[1]
                if value is not None:
                    added = 0 if unknown else value - before
                    self.counted[key] = self.counted.get(key, 0) + added
                    self.raw[key] = value
        self.known.add(node)


def key_of(node: str, source: str, counter: str) -> Key:
    return counter, (("node", node), ("source", source))


class World(RuleBasedStateMachine):
    """See the module."""

    @initialize(flush=st.sampled_from([3, 10]))
    def begin(self, flush: int) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.count_of_files = itertools.count()
        self.flush = flush
        self.second = BEGIN
        self.sources = {node: {name: Source() for name in SOURCES} for node in NODES}
        self.builders = {node: FrameBuilder() for node in NODES}
        self.model = Model()
        self.kept = copy.deepcopy(self.model)
        self.path = self.directory / "0.sqlite"
        self.open()

    def open(self) -> None:
        second = self.second
        self.store = SeriesStore(self.path, flush=self.flush, clock=lambda: float(second))
        self.store.open()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.check()
            self.store.close()
            shutil.rmtree(self.directory)

    # What the world does.

    @rule(node=nodes, source=sources, name=names, count=st.integers(0, 3))
    def count(self, node: str, source: str, name: str, count: int) -> None:
        it = self.sources[node][source]
        if name not in it.barred:
            it.counters[name] = it.counters.get(name, 0) + count

    @rule(node=nodes, source=sources)
    def begin_anew(self, node: str, source: str) -> None:
        self.sources[node][source] = Source(self.sources[node][source].life + 1)

    @rule(node=nodes, source=sources, name=names)
    def lose(self, node: str, source: str, name: str) -> None:
        """A source has a counter no more; it makes it again only once that was seen, and kept."""
        it = self.sources[node][source]
        if it.counters.pop(name, None) is not None:
            it.barred.add(name)

    @rule(node=nodes)
    def restart_agent(self, node: str) -> None:
        self.builders[node] = FrameBuilder()

    # What the server does.

    @rule(
        away=st.sets(nodes),
        missing=st.sets(st.tuples(nodes, sources), max_size=2),
        lost=st.sets(nodes, max_size=1),
    )
    def tick(self, away: set[str], missing: set[tuple[str, str]], lost: set[str]) -> None:
        self.second += 1
        for node in NODES:
            if node in lost:
                self.build(node, set())
            if node in away:
                continue
            absent = {source for it, source in missing if it == node}
            if not self.ingest(node, absent, full=False):
                assert self.ingest(node, absent, full=True)
            self.model.read(node, self.sources[node], absent)
        self.store.finish(self.second, dict.fromkeys(away, "away"))
        if self.store._pending is not None:
            self.store._pending.result()  # so that each run is like the one before
        self.model.history[self.second] = dict(self.model.counted)

    @rule(seconds=st.integers(2, 140))
    def work(self, seconds: int) -> None:
        for number in range(seconds):
            for node, source in itertools.product(NODES, SOURCES):
                self.count(node, source, NAMES[number % 2], 1)
            self.tick(set(), set(), set())

    @rule(seconds=st.integers(1, 20) | st.integers(100, 800))
    def be_away(self, seconds: int) -> None:
        self.second += seconds

    @rule()
    def keep(self) -> None:
        """Everything goes to the disk."""
        self.tick(set(), set(), set())
        self.store.flush()
        self.kept = copy.deepcopy(self.model)
        for source in (it for there in self.sources.values() for it in there.values()):
            source.barred.clear()

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.open()
        self.kept = copy.deepcopy(self.model)

    @rule()
    def kill(self) -> None:
        """What was kept is what there is: the file as it lies, and a new process."""
        self.keep()
        path = self.directory / f"{next(self.count_of_files) + 1}.sqlite"
        for suffix in ("", "-wal"):
            if (file := Path(f"{self.path}{suffix}")).exists():
                shutil.copy(file, f"{path}{suffix}")
        # Some more seconds, which nobody will have heard of.
        for _ in range(2):
            for node in NODES:
                self.count(node, "envoy", "a_total", 1)
            self.tick(set(), set(), set())
        self.store.close()
        self.path = path
        self.model = copy.deepcopy(self.kept)
        self.open()

    def ingest(self, node: str, absent: set[str], *, full: bool) -> bool:
        return self.store.ingest(node, decode(encode(self.build(node, absent, full=full))))

    def build(self, node: str, absent: set[str], *, full: bool = False):  # type: ignore[no-untyped-def]
        there = self.sources[node]
        values = {
            Series(*key_of(node, name, counter), "counter", name): float(value)
            for name, source in there.items()
            for counter, value in source.counters.items()
        }
        lives = {name: str(source.life) for name, source in there.items()}
        why = dict.fromkeys(absent, "late")
        return self.builders[node].build(self.second, values, lives, why, full=full)

    # What must hold.

    @rule()
    def check(self) -> None:
        last = self.store.last()
        if not last:
            return
        every = [Matcher("node", "=~", ".+")]
        for resolution in (1, 10, 60):
            selection = self.store.select(every, BEGIN, last, resolution)
            incomplete = self.store.incomplete(BEGIN, last)
            complete = [
                (at, time)
                for at, time in enumerate(selection.times.tolist())
                if time not in incomplete
            ]
            assert all(time in self.model.history for _, time in complete)
            chosen = {*complete[:3], *complete[len(complete) // 2 :][:3], *complete[-3:]}
            for name, labels, row in zip(
                selection.names, selection.labels, selection.values, strict=True
            ):
                values = row[~np.isnan(row)]
                assert (np.diff(values) >= 0).all(), (name, labels, values)
                for (a, start), (b, end) in itertools.combinations(sorted(chosen), 2):
                    got = increase(row, a, b)
                    history = self.model.history
                    key = name, labels
                    expected = history[end].get(key, 0) - history[start].get(key, 0)
                    assert got == expected, (resolution, name, labels, start, end)


def increase(row: np.ndarray[tuple[int], np.dtype[np.float64]], a: int, b: int) -> float:
    """How much a counter grew between two points: from what it stood at, or where it began."""
    before = [value for value in row[: a + 1].tolist() if not math.isnan(value)]
    within = [value for value in row[a + 1 : b + 1].tolist() if not math.isnan(value)]
    if not within:
        return 0.0
    return float(within[-1] - (before[-1] if before else within[0]))


TestWorld = World.TestCase
TestWorld.settings = settings(
    max_examples=15,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
