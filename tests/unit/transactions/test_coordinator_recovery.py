"""Whatever dies, hangs or fails around a coordinator: each transaction has one end, and reaches it.

All in virtual time, over one log in memory, by processes that are killed and paused between any two
of their steps.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from bedstone.errors import Error, UnavailableError
from bedstone.testing.coordination import Scene, branches
from bedstone.testing.faults import Fault, each_write_fails_twice
from bedstone.testing.simulation.loop import Process
from bedstone.testing.transaction_log import MemoryLog, in_turn
from bedstone.transactions.coordinator import Coordinator
from bedstone.transactions.errors import StuckError
from bedstone.transactions.machine import NEVER
from bedstone.transactions.model import Branch, BranchState, Mode, Phase, State, Transaction

LEASE = 10.0
Deed = Callable[[Coordinator], Awaitable[object]]


async def for_ever() -> None:
    await asyncio.Event().wait()


async def live(coordinator: Coordinator, deed: Deed | None = None) -> None:
    """A process's life: do something, and stay."""
    async with coordinator:
        if deed is not None:
            await deed(coordinator)
        await for_ever()


async def pay(coordinator: Coordinator) -> None:
    begun = await coordinator.begin("pay", 20, branches("a"), xid="t")
    await coordinator.register(begun.xid, branches("b", "c"))
    await coordinator.commit(begun.xid)


async def give_up(coordinator: Coordinator) -> None:
    begun = await coordinator.begin("pay", 20, branches("a"), xid="t")
    await coordinator.register(begun.xid, branches("b", "c"))
    await coordinator.abort(begun.xid)


def assert_ended(scene: Scene, xid: str, state: State | None = None) -> None:
    """It has one end, each branch was asked for that end alone, and nothing is left."""
    transaction = scene.transaction(xid)
    assert transaction.state.ended
    assert state in {None, transaction.state}
    committed = transaction.state is State.COMMITTED
    reached = BranchState.CONFIRMED if committed else BranchState.CANCELLED
    phase = Phase.CONFIRM if committed else Phase.CANCEL
    assert {branch.state for branch in transaction.branches} <= {reached}
    assert set(scene.told(xid)) == {(it.number, phase) for it in transaction.branches}
    assert len(scene.history(xid, "ended")) == 1
    assert len(scene.history(xid, "decided")) == 1
    assert xid not in scene.world.locks.values()


def test_one_that_returns_after_its_lease_is_fenced_and_does_nothing_more() -> None:
    scene = Scene()
    first = Process("one")

    async def stop_at_b(transaction: Transaction, branch: Branch, _phase: Phase) -> None:
        if transaction.owner == "one":
            scene.loop.pause(first)
            await asyncio.sleep(0)

    scene.doing = {"b": stop_at_b}

    async def play() -> None:
        scene.loop.spawn(first, live(scene.coordinator("one"), give_up))
        scene.process("two", live(scene.coordinator("two")))
        await asyncio.sleep(40)
        assert scene.transaction("t").owner == "two"
        assert_ended(scene, "t", State.ABORTED)
        history = list(scene.world.events["t"])
        assert [it.number for it in scene.calls if it.owner == "one"] == [3, 2]
        assert [it.number for it in scene.calls if it.owner == "two"] == [3, 2, 1]
        scene.loop.unpause(first)
        await asyncio.sleep(60)
        assert [it.number for it in scene.calls if it.owner == "one"] == [3, 2]
        assert scene.world.events["t"] == history

    scene.play(play())


def test_the_one_that_returns_is_refused_while_the_other_is_at_work() -> None:
    """Both had called the same branch: what the former owner heard is not written."""
    scene = Scene()
    first = Process("one")
    called = asyncio.Event()

    async def slow(transaction: Transaction, branch: Branch, _phase: Phase) -> None:
        if transaction.owner == "one":
            scene.loop.pause(first)
            await asyncio.sleep(0)
        else:
            called.set()
            await asyncio.sleep(20)

    scene.doing = {"b": slow}

    async def play() -> None:
        scene.loop.spawn(first, live(scene.coordinator("one"), give_up))
        scene.process("two", live(scene.coordinator("two")))
        await asyncio.wait_for(called.wait(), 30)
        scene.loop.unpause(first)
        await asyncio.sleep(5)
        assert scene.state("t") is State.ABORTING
        assert scene.history("t", "attempt") == []
        assert scene.told("t").count((1, Phase.CANCEL)) == 0
        await asyncio.sleep(30)
        assert_ended(scene, "t", State.ABORTED)

    scene.play(play())


async def killed_before(scene: Scene, step: int, deed: Deed) -> tuple[bool, bool]:
    """Kill a coordinator before a step of its; whether it came to that, and had done its deed."""
    told: list[bool] = []

    async def do(coordinator: Coordinator) -> None:
        await deed(coordinator)
        told.append(True)

    first = scene.process("one", live(scene.coordinator("one"), do))
    steps = itertools.count(1)

    def kill(process: Process | None) -> None:
        scene.loop.interrupt_at += 1
        if process is first and next(steps) == step:
            scene.loop.kill(first)

    scene.loop.interrupt = kill
    scene.loop.interrupt_at = scene.loop.steps
    await asyncio.sleep(2)
    scene.loop.interrupt_at = -1
    return not first.alive, bool(told)


@pytest.mark.parametrize("deed", [pay, give_up])
@pytest.mark.parametrize("seed", range(2))
def test_killed_before_any_step_another_finishes(deed: Deed, seed: int) -> None:
    """What its caller was told is how it ends, wherever it died after that."""
    ends: set[State] = set()

    async def play(scene: Scene, step: int) -> bool:
        killed, told = await killed_before(scene, step, deed)
        scene.process("two", live(scene.coordinator("two")))
        await asyncio.sleep(60)
        if "t" in scene.world.transactions:
            wanted = State.COMMITTED if deed is pay else State.ABORTED
            assert_ended(scene, "t", wanted if told else None)
            ends.add(scene.state("t"))
        assert scene.world.locks == {}
        assert killed or told
        return killed

    step = 1
    while (scene := Scene(seed)).play(play(scene, step)):
        step += 1
    assert step > 30
    assert ends == ({State.ABORTED, State.COMMITTED} if deed is pay else {State.ABORTED})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("deed", [pay, give_up])
def test_every_write_fails_once_unapplied_and_once_applied(deed: Deed, seed: int) -> None:
    scene = Scene(seed)

    async def play() -> None:
        for n in range(8):
            log = scene.log(in_turn(each_write_fails_twice()))

            async def insist(coordinator: Coordinator, xid: str = f"t{n}") -> None:
                while True:
                    try:
                        await coordinator.begin("pay", 60, branches(f"{xid}a", f"{xid}b"), xid=xid)
                    except UnavailableError:
                        await asyncio.sleep(0.1)
                    else:
                        break
                await (coordinator.commit if deed is pay else coordinator.abort)(xid)

            scene.process(f"p{n}", live(scene.coordinator(f"p{n}", log), insist))
        await asyncio.sleep(60)
        for n in range(5):
            assert_ended(scene, f"t{n}", State.COMMITTED if deed is pay else State.ABORTED)

    scene.play(play())


@pytest.mark.parametrize("outage", [5.0, 60.0])
def test_a_log_away_for_a_while_loses_nothing(outage: float) -> None:
    """It was away while phase two was at work; what participants said is not forgotten."""
    scene = Scene()
    away: list[bool] = []

    def plan(_operation: str) -> Fault:
        return Fault.UNAPPLIED if away else Fault.NONE

    async def goes_away(*_: object) -> None:
        away.append(True)

    scene.doing = {"c": goes_away}

    async def play() -> None:
        async with scene.coordinator("one", scene.log(plan)) as coordinator:
            await coordinator.begin("left", 30, branches("x"), xid="left")
            await coordinator.begin("pay", 30, branches("a", "b", "c"), xid="t")
            await coordinator.commit("t")
            with pytest.raises(Error):
                await coordinator.begin("other", 30)
            await asyncio.sleep(outage)
            assert scene.state("t") is State.COMMITTING
            del scene.doing["c"]
            away.clear()
            await asyncio.sleep(40)
            assert_ended(scene, "t", State.COMMITTED)
            assert len(scene.told("t")) == 3
            assert_ended(scene, "left", State.ABORTED)

    scene.play(play())


def test_one_that_cannot_renew_stops_before_its_lease_ends() -> None:
    scene = Scene()
    scene.doing = {"a": _fails_for("one")}

    def plan(operation: str) -> Fault:
        cut = operation == "claim" and scene.loop.time() > 1
        return Fault.UNAPPLIED if cut else Fault.NONE

    async def play() -> None:
        scene.process("one", live(scene.coordinator("one", scene.log(plan)), _commit_a))
        await asyncio.sleep(0.5)
        scene.process("two", live(scene.coordinator("two")))
        await asyncio.sleep(60)
        assert_ended(scene, "t", State.COMMITTED)
        ours = [it.at for it in scene.calls if it.owner == "one"]
        theirs = [it.at for it in scene.calls if it.owner == "two"]
        assert len(ours) > 3
        assert max(ours) < 0.95 * LEASE
        assert LEASE < min(theirs) < 2 * LEASE

    scene.play(play())


def test_a_slow_look_does_not_cost_the_lease() -> None:
    scene = Scene()

    class Slow(MemoryLog):
        async def owned(self, owner: str, limit: int) -> tuple[Transaction, ...]:
            await asyncio.sleep(100)
            return tuple(await super().owned(owner, limit))

    async def play() -> None:
        log = Slow(scene.now, world=scene.world)
        async with scene.coordinator("one", log) as coordinator, scene.coordinator("two"):
            await coordinator.begin("pay", 1000, xid="t")
            await asyncio.sleep(95)
            assert scene.transaction("t").owner == "one"

    scene.play(play())


def test_old_news_is_not_worked_on_again() -> None:
    """What was due when the log was asked may have ended before its answer came."""
    scene = Scene()

    class Late(MemoryLog):
        async def owned(self, owner: str, limit: int) -> tuple[Transaction, ...]:
            found = tuple(await super().owned(owner, limit))
            await asyncio.sleep(0.5)
            return found

    async def play() -> None:
        async with scene.coordinator(log=Late(scene.now, world=scene.world), poll=0.01) as one:
            for n in range(50):
                begun = await one.begin("pay", 60, branches("a", "b"))
                await one.commit(begun.xid)
                await asyncio.sleep(0.011 * n)
                assert len(scene.told(begun.xid)) == 2
            await asyncio.sleep(2)
            assert len(scene.calls) == 100

    scene.play(play())


def test_leaving_gives_back_at_once_and_a_rolling_restart_strands_nothing() -> None:
    scene = Scene()

    async def play() -> None:
        for n in range(6):
            async with scene.coordinator(f"p{n}") as coordinator:
                scene.doing[f"bad{n}"] = _fails_for(f"p{n}")
                await coordinator.begin("left", 5, branches(f"left{n}"), xid=f"left{n}")
                await coordinator.begin("pay", 60, branches(f"bad{n}"), xid=f"t{n}")
                await coordinator.commit(f"t{n}")
                if n:
                    await asyncio.sleep(1)
                    assert_ended(scene, f"t{n - 1}", State.COMMITTED)
        assert scene.world.leases == {}
        async with scene.coordinator("last"):
            await asyncio.sleep(LEASE)
            for n in range(6):
                assert_ended(scene, f"t{n}", State.COMMITTED)
                assert_ended(scene, f"left{n}", State.ABORTED)

    scene.play(play())


def test_leaving_waits_for_what_is_at_work_but_not_for_ever() -> None:
    scene = Scene()

    async def slow(*_: object) -> None:
        await asyncio.sleep(1)

    async def hangs(*_: object) -> None:
        await for_ever()

    scene.doing = {"slow": slow, "hangs": hangs}

    async def play() -> None:
        async with scene.coordinator("one") as coordinator:
            for xid in ("slow", "hangs"):
                await coordinator.begin("pay", 60, branches(xid, mode=Mode.MESSAGE), xid=xid)
                await coordinator.commit(xid)
        assert 1 < scene.loop.time() < 5
        assert_ended(scene, "slow", State.COMMITTED)
        assert scene.state("hangs") is State.COMMITTING
        assert scene.world.leases == {}
        calls = len(scene.calls)
        await asyncio.sleep(100)
        assert len(scene.calls) == calls
        scene.doing.clear()
        async with scene.coordinator("two"):
            await asyncio.sleep(1)
        assert_ended(scene, "hangs", State.COMMITTED)

    scene.play(play())


def test_who_waits_for_a_commit_is_let_go_when_the_coordinator_ends() -> None:
    scene = Scene()

    async def hangs(*_: object) -> None:
        await for_ever()

    scene.doing = {"a": hangs}

    async def play() -> None:
        coordinator = scene.coordinator("one", grace=0.5)
        async with coordinator:
            await coordinator.begin("pay", 60, branches("a"), xid="t")
            waiting = asyncio.ensure_future(coordinator.commit("t"))
            await asyncio.sleep(0.1)
        assert (await waiting).state is State.COMMITTING

    scene.play(play())


def test_an_orphan_is_aborted_at_its_deadline_and_not_before() -> None:
    """Its initiator may be slow rather than dead, and may still decide."""
    scene = Scene()

    async def begin(coordinator: Coordinator) -> None:
        await coordinator.begin("pay", 40, branches("a", "b"), xid="t")
        scene.loop.kill(first)

    first = Process("one")

    async def play() -> None:
        scene.loop.spawn(first, live(scene.coordinator("one"), begin))
        scene.process("two", live(scene.coordinator("two")))
        await asyncio.sleep(39)
        assert scene.transaction("t").owner == "two"
        assert scene.state("t") is State.ACTIVE
        await asyncio.sleep(5)
        assert_ended(scene, "t", State.ABORTED)
        (decided,) = scene.history("t", "decided")
        assert decided.detail["reason"] == "its deadline passed"

    scene.play(play())


def test_a_saga_goes_on_under_a_new_owner() -> None:
    scene = Scene()

    async def begin(coordinator: Coordinator) -> None:
        await coordinator.begin("trip", 400, branches("a", mode=Mode.SAGA), xid="t")
        scene.loop.kill(first)

    first = Process("one")

    async def play() -> None:
        scene.loop.spawn(first, live(scene.coordinator("one"), begin))
        scene.process("two", live(scene.coordinator("two")))
        await asyncio.sleep(20)
        assert scene.told("t") == [(1, Phase.TRY), (1, Phase.CONFIRM)]
        assert scene.state("t") is State.COMMITTED

    scene.play(play())


def test_starting_anew_keeps_what_is_stuck_its_locks_and_its_attempts() -> None:
    """A known failure elsewhere: a reload deleted failed transactions and their locks."""
    scene = Scene()

    async def dirty(*_: object) -> None:
        raise StuckError("the row has changed", report={"table": "t"})

    scene.doing = {"dirty": dirty, "bad": _fails_for("one", "two")}

    async def play() -> None:
        async with scene.coordinator("one") as coordinator:
            for xid in ("dirty", "bad"):
                await coordinator.begin("pay", 60, branches(f"{xid}/first", xid), xid=xid)
                await coordinator.abort(xid)
            await asyncio.sleep(5)
        attempts = scene.transaction("bad").branches[1].attempts
        assert attempts > 3
        async with scene.coordinator("two"):
            await asyncio.sleep(30)
            await scene.log().purge(scene.now() + 1000, 100)
            assert set(scene.world.locks) == {"dirty/first", "dirty", "bad/first", "bad"}
            dirty_one = scene.transaction("dirty")
            assert (dirty_one.owner, dirty_one.next_attempt) == ("two", NEVER)
            assert dirty_one.branches[1].stuck == {"table": "t"}
            assert scene.told("dirty") == [(2, Phase.CANCEL)]
            assert scene.transaction("bad").branches[1].attempts > attempts
        scene.doing.clear()
        async with scene.coordinator("three") as coordinator:
            await coordinator.retry("dirty", "ada", "set right")
            await asyncio.sleep(2)
            assert_ended(scene, "dirty", State.ABORTED)
            assert_ended(scene, "bad", State.ABORTED)

    scene.play(play())


def test_a_bug_in_a_loop_is_told_and_survived(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    broken = [True]

    class Broken(MemoryLog):
        async def owned(self, owner: str, limit: int) -> tuple[Transaction, ...]:
            if broken:
                raise RuntimeError("a bug")
            return tuple(await super().owned(owner, limit))

        async def record(self, *args: object, **more: object) -> Transaction:
            if broken:
                raise RuntimeError("another bug")
            return await super().record(*args, **more)  # type: ignore[arg-type]

    async def play() -> None:
        async with scene.coordinator(log=Broken(scene.now, world=scene.world)) as coordinator:
            await coordinator.begin("pay", 60, branches("a"), xid="t")
            await coordinator.commit("t")
            await asyncio.sleep(100)
            assert scene.state("t") is State.COMMITTING
            broken.clear()
            await asyncio.sleep(10)
            assert_ended(scene, "t", State.COMMITTED)

    with caplog.at_level(logging.ERROR):
        scene.play(play())
    traces = [str(it.exc_info[1]) for it in caplog.records if it.exc_info and it.exc_info[1]]
    assert {"a bug", "another bug"} <= set(traces)
    assert 10 < len(traces) < 60


def test_starting_while_the_log_is_away_is_no_failure() -> None:
    scene = Scene()

    def plan(_operation: str) -> Fault:
        return Fault.UNAPPLIED if scene.loop.time() < 20 else Fault.NONE

    async def play() -> None:
        async with scene.coordinator("one", scene.log(plan)) as coordinator:
            with pytest.raises(Error):
                await coordinator.begin("pay", 60)
            await asyncio.sleep(25)
            await pay(coordinator)
            await asyncio.sleep(1)
            assert_ended(scene, "t", State.COMMITTED)

    scene.play(play())


def test_many_orphans_are_taken_over_and_finished() -> None:
    scene = Scene()

    async def begin(coordinator: Coordinator) -> None:
        for n in range(350):
            await coordinator.begin("pay", 60, branches(f"{n}"), xid=f"t{n}")
            await scene.log().decide(f"t{n}", State.COMMITTING)
        scene.loop.kill(first)

    first = Process("one")

    async def play() -> None:
        scene.loop.spawn(first, live(scene.coordinator("one", poll=1000.0), begin))
        await asyncio.sleep(1)
        scene.process("two", live(scene.coordinator("two")))
        scene.process("three", live(scene.coordinator("three")))
        await asyncio.sleep(30)
        for n in range(350):
            assert_ended(scene, f"t{n}", State.COMMITTED)
            assert len(scene.told(f"t{n}")) == 1

    scene.play(play())


class Storm:
    """Coordinators that are killed, paused and badly connected, at random, for a minute."""

    def __init__(self, seed: int) -> None:
        self.scene = Scene(seed)
        self.scene.doing = dict.fromkeys("ab", self.sometimes)
        self.chance = Random(seed).random
        self.told: dict[str, State] = {}
        self.ids = itertools.count()

    def over(self) -> bool:
        return self.scene.loop.time() >= 60

    def plan(self, _operation: str) -> Fault:
        value = 1.0 if self.over() else self.chance()
        return Fault.UNAPPLIED if value < 0.03 else Fault.APPLIED if value < 0.06 else Fault.NONE

    async def sometimes(self, *_: object) -> None:
        await asyncio.sleep(self.chance())
        if self.chance() < 0.2:
            raise OSError("no route")

    async def work(self, coordinator: Coordinator) -> None:
        while not self.over():
            xid = f"t{next(self.ids)}"
            state = State.COMMITTED if self.chance() < 0.7 else State.ABORTED
            end = coordinator.commit if state is State.COMMITTED else coordinator.abort
            try:
                await coordinator.begin("pay", 5, [Branch(0, Mode.TCC, it) for it in "ab"], xid=xid)
                await end(xid)
                self.told[xid] = state
            except Error:
                await asyncio.sleep(0.5)

    async def blow(self) -> None:
        scene, processes = self.scene, list[Process]()
        while not self.over():
            name = f"p{len(processes)}"
            coordinator = scene.coordinator(name, scene.log(self.plan))
            process = scene.process(name, live(coordinator, self.work))
            processes.append(process)
            await asyncio.sleep(4 * self.chance())
            if self.chance() < 0.5:
                scene.loop.pause(process)
                await asyncio.sleep(15 * self.chance())
                scene.loop.unpause(process)
            if len(processes) > 3:
                scene.loop.kill(processes[-3])
        await asyncio.sleep(200)


@pytest.mark.parametrize("seed", range(8))
def test_in_a_storm_each_has_one_end(seed: int) -> None:
    storm = Storm(seed)
    storm.scene.play(storm.blow())
    transactions = storm.scene.world.transactions
    assert len(transactions) > 30
    for xid in transactions:
        assert_ended(storm.scene, xid, storm.told.get(xid))
    assert {it.state for it in transactions.values()} == {State.COMMITTED, State.ABORTED}


def _fails_for(*owners: str) -> Callable[[Transaction, Branch, Phase], Awaitable[None]]:
    async def call(transaction: Transaction, _branch: Branch, _phase: Phase) -> None:
        if transaction.owner in owners:
            raise OSError("no route")

    return call


async def _commit_a(coordinator: Coordinator) -> None:
    await coordinator.begin("pay", 60, branches("a"), xid="t")
    await coordinator.commit("t")
