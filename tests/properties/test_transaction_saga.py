"""Random sagas with random failures and crashes: all of it stays, or nothing, undone in reverse."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bedstone.transactions import saga_machine as machine
from bedstone.transactions.model import Event
from bedstone.transactions.saga_machine import (
    Done,
    Failed,
    History,
    Kind,
    Leaf,
    Parallel,
    Plan,
    Sequence,
    Wait,
    Work,
)

STEPS = {Kind.LOCAL, Kind.REMOTE}


class CrashError(Exception):
    """The runner's process is gone, and with it the lines that it had not written."""


def shapes() -> st.SearchStrategy[Any]:
    leaf = st.sampled_from(list(Kind))
    return st.recursive(
        leaf,
        lambda inner: st.tuples(st.booleans(), st.lists(inner, min_size=1, max_size=3)),
        max_leaves=8,
    )


def plan_of(shape: Any, path: str = "p") -> Plan:
    if isinstance(shape, Kind):
        return Leaf(shape, path)
    side_by_side, parts = shape
    made = tuple(plan_of(part, f"{path}.{number}") for number, part in enumerate(parts))
    return Parallel(made) if side_by_side else Sequence(made)


@dataclass
class World:
    """What survives a crash: the history, and the effects that databases and services hold."""

    random: Random
    crash: float
    doomed: frozenset[str]
    written: list[Event] = field(default_factory=list)
    effects: list[str] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)
    now: float = 0.0

    def maybe_crash(self) -> None:
        if self.random.random() < self.crash:
            raise CrashError


@dataclass
class Runner:
    """As lazy about writing as the rules of the module allow."""

    world: World
    plan: Plan
    history: History
    unwritten: list[tuple[Leaf | None, Event]] = field(default_factory=list)

    def note(self, leaf: Leaf | None, kind: str, **detail: object) -> None:
        event = Event(0.0, kind, 1, detail)
        self.history.add(event)
        self.unwritten.append((leaf, event))

    def write(self) -> None:
        self.world.maybe_crash()
        self.world.written.extend(event for _, event in self.unwritten)
        self.unwritten.clear()
        self.world.maybe_crash()

    def forward(self) -> bool:
        running: list[Leaf] = []
        while True:
            paths = frozenset(leaf.path for leaf in running)
            match machine.following(self.plan, self.history, self.world.now, paths):
                case Done():
                    return True
                case Failed():
                    while running:
                        self.end(running)
                    self.write()
                    return False
                case Wait(until, _) if not running:
                    assert until is not None
                    self.write()
                    self.world.now = until
                case Wait():
                    self.end(running)
                case Work() as work:
                    self.begin(work)
                    running.extend(work.run)

    def begin(self, work: Work) -> None:
        for leaf in work.arm:
            self.note(leaf, "timer", path=leaf.path, until=self.world.now + 1)
        for leaf, result in work.over:
            self.note(leaf, "step", path=leaf.path, mark="done", result=result)
        for leaf in work.missed:
            self.note(leaf, "step", path=leaf.path, mark="failed", error="missed")
        for leaf in work.run:
            if leaf.kind is Kind.REMOTE:
                self.note(leaf, "step", path=leaf.path, mark="started")
        if any(leaf is not None and leaf.kind is not Kind.LOCAL for leaf, _ in self.unwritten):
            self.write()

    def end(self, running: list[Leaf]) -> None:
        leaf = running.pop(self.world.random.randrange(len(running)))
        self.world.maybe_crash()
        if leaf.path in self.world.doomed:
            self.note(leaf, "step", path=leaf.path, mark="failed", error="doomed")
            return
        if leaf.path not in self.world.effects:
            self.world.effects.append(leaf.path)
        self.world.maybe_crash()
        self.note(leaf, "step", path=leaf.path, mark="done", result=len(leaf.path))

    def backward(self) -> None:
        for leaf in machine.undoing(self.plan, self.history):
            self.world.maybe_crash()
            if leaf.path in self.world.effects and leaf.path not in self.world.undone:
                self.world.undone.append(leaf.path)
            self.note(leaf, "step", path=leaf.path, mark="undone")
            if leaf.kind is Kind.REMOTE or self.world.random.random() < 0.5:
                self.write()
        self.write()


def play(plan: Plan, world: World, *, give_up: bool) -> bool:
    """Run to the end, over all crashes; whether it succeeded."""
    succeeded: bool | None = None
    while True:
        runner = Runner(world, plan, machine.replay(world.written))
        try:
            if succeeded is None:
                succeeded = runner.forward()
            if not succeeded:
                runner.backward()
        except CrashError:
            world.crash /= 1.5
            if give_up and succeeded is None:  # its deadline passed meanwhile
                succeeded = False
        else:
            return succeeded


@given(
    shape=shapes(),
    random=st.randoms(use_true_random=False),
    crash=st.floats(0, 0.6),
    give_up=st.booleans(),
    data=st.data(),
)
def test_all_effects_stay_or_none(
    *, shape: Any, random: Random, crash: float, give_up: bool, data: st.DataObject
) -> None:
    plan = plan_of(shape)
    steps = [leaf.path for leaf in machine.leaves(plan) if leaf.kind in STEPS]
    events = [leaf.path for leaf in machine.leaves(plan) if leaf.kind is Kind.EVENT]
    doomed = data.draw(st.frozensets(st.sampled_from(steps), max_size=2)) if steps else frozenset()
    world = World(random, crash, doomed)
    for path in events:
        if random.random() < 0.8:
            detail: dict[str, object] = {"name": path, "payload": 7}
            world.written.append(Event(0.0, "signal", detail=detail))
    if play(plan, world, give_up=give_up):
        assert sorted(world.effects) == sorted(steps)
        assert world.undone == []
        assert not doomed
    else:
        assert sorted(world.undone) == sorted(world.effects)
        assert_reversed(plan, world)


def assert_reversed(plan: Plan, world: World) -> None:
    """Undone in reverse: by the order of the plan always; exactly, for what the history knows."""
    order = {path: at for at, path in enumerate(world.undone)}
    for before, after in ordered(plan):
        if before in order and after in order:
            assert order[after] < order[before]
    known = [path for path in machine.replay(world.written).ended if path in order]
    assert [path for path in world.undone if path in known] == known[::-1]


def ordered(plan: Plan) -> list[tuple[str, str]]:
    """Pairs of steps, the first of which ends before the second starts."""
    match plan:
        case Leaf():
            return []
        case Parallel(parts):
            return [pair for part in parts for pair in ordered(part)]
        case Sequence(parts):
            pairs = [pair for part in parts for pair in ordered(part)]
            for at, part in enumerate(parts):
                for later in parts[at + 1 :]:
                    pairs += [
                        (a.path, b.path)
                        for a in machine.leaves(part)
                        for b in machine.leaves(later)
                    ]
            return pairs


@given(shapes(), st.randoms(use_true_random=False), st.integers(0, 30))
def test_a_history_says_the_same_each_time_it_is_read(shape: Any, random: Random, cut: int) -> None:
    plan = plan_of(shape)
    world = World(random, 0.0, frozenset())
    for leaf in machine.leaves(plan):
        world.written.append(Event(0.0, "signal", detail={"name": leaf.path, "payload": 1}))
    assert play(plan, world, give_up=False)
    lines = world.written[:cut]
    once, twice = machine.replay(lines), machine.replay([*lines, *lines])
    assert machine.following(plan, once, 1.0) == machine.following(plan, twice, 1.0)
    assert machine.undoing(plan, once) == machine.undoing(plan, twice)
    assert once.ended == twice.ended
    assert machine.from_json(machine.to_json(plan)) == plan


@given(shapes())
def test_what_surely_has_not_run_is_not_undone(shape: Any) -> None:
    plan = plan_of(shape)
    fresh = machine.undoing(plan, History())
    assert all(leaf.kind is Kind.LOCAL for leaf in fresh)
    for before, after in ordered(plan):
        kinds = {leaf.path: leaf.kind for leaf in machine.leaves(plan)}
        if kinds[before] is not Kind.LOCAL:
            assert after not in {leaf.path for leaf in fresh}
