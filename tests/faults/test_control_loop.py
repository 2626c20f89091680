"""The control loop on a store that fails: every write once unapplied and once applied."""

import asyncio
import itertools
from collections.abc import Sequence

from bedstone.control import scheduling
from bedstone.control.loop import Controller, ControlLoop
from bedstone.control.snapshot import Changes, Snapshot
from bedstone.errors import UnavailableError
from bedstone.model.resources import App, Instance, Node, Presence
from bedstone.model.spec import AppSpec
from bedstone.store import Listing, Operation, Put, open_store
from bedstone.testing.faults import Fault, FaultyStore, each_write_fails_twice

SPEC = AppSpec.model_validate(
    {"app": "shop", "workloads": {"web": {"command": ["web"], "replicas": 3}}}
)
WORLD = (
    App(name="shop", spec=SPEC),
    Node(name="n", address="127.0.0.1"),
    Presence(node="n"),
)


async def until_placed(loop: ControlLoop, count: int = 3) -> None:
    version = -1
    while len(loop.snapshot.of(Instance, "shop")) < count:
        version = await loop.changed(version)


def test_plans_survive_writes_that_fail_unapplied_and_applied() -> None:
    async def main() -> None:
        async with open_store("memory://") as inner:
            store = FaultyStore(inner, itertools.cycle(each_write_fails_twice()))
            loop = ControlLoop(store, [Controller("s", scheduling.plan)], retry=0.001)
            running = asyncio.create_task(loop.run())
            await loop.loaded()
            await inner.commit([Put(r.key, r.encode()) for r in WORLD])
            await asyncio.wait_for(until_placed(loop), 5)
            truth = await inner.list("")
            assert {e.key for e in truth.entries} == loop.snapshot.all_keys()
            assert len([e for e in truth.entries if e.key.startswith("instances/")]) == 3
            running.cancel()

    asyncio.run(main())


def test_a_compacted_watch_is_healed_by_listing_again() -> None:
    async def main() -> None:
        async with open_store("memory://") as inner:
            store = FaultyStore(inner, itertools.repeat(Fault.NONE))
            loop = ControlLoop(store, [], retry=0.001)
            seen: list[Changes] = []
            loop.observe(seen.append)
            running = asyncio.create_task(loop.run())
            await loop.loaded()
            await loop.reached(await inner.commit([Put(r.key, r.encode()) for r in WORLD]))
            store.break_watches()
            revision = await inner.commit(
                [Put("presence/m", Presence(node="m").encode()), Put(WORLD[0].key, b"{broken")]
            )
            await asyncio.wait_for(loop.reached(revision), 5)
            assert loop.snapshot.present("m")
            assert loop.snapshot.apps() == {}, "an unreadable record stops nothing"
            assert any(changes.nodes for changes in seen)
            running.cancel()

    asyncio.run(main())


def test_a_stale_plan_is_refused_and_made_again() -> None:
    async def main() -> None:
        async with open_store("memory://") as store:
            made: list[int] = []

            def plan(snapshot: Snapshot, app: str) -> Sequence[Operation]:
                held = snapshot.get(App, f"apps/{app}")
                if held is None or held.generation >= 3:
                    return []
                made.append(held.generation)
                after = held.model_copy(update={"generation": 3})
                return [Put(after.key, after.encode(), snapshot.revision_of(after.key))]

            loop = ControlLoop(store, [Controller("c", plan)], retry=0.001)
            running = asyncio.create_task(loop.run())
            await loop.loaded()
            app = WORLD[0]
            await store.commit([Put(app.key, app.encode())])
            # Written before the loop's own commit, so that this one is stale.
            second = app.model_copy(update={"generation": 2})
            await store.commit([Put(second.key, second.encode())])
            version = -1
            async with asyncio.timeout(5):
                while loop.snapshot.apps()["shop"].generation < 3:
                    version = await loop.changed(version)
            assert made[-1] in {1, 2}
            running.cancel()

    asyncio.run(main())


def test_an_app_that_cannot_be_planned_stops_no_other() -> None:
    async def main() -> None:
        def plan(snapshot: Snapshot, app: str) -> Sequence[Operation]:
            if app == "bad":
                raise RuntimeError("a bug of ours")
            return scheduling.plan(snapshot, app)

        async with open_store("memory://") as store:
            loop = ControlLoop(store, [Controller("c", plan)], retry=0.001)
            running = asyncio.create_task(loop.run())
            await loop.loaded()
            bad = App(name="bad", spec=SPEC.model_copy(update={"app": "bad"}))
            await store.commit([Put(bad.key, bad.encode())])
            await store.commit([Put(r.key, r.encode()) for r in WORLD])
            await asyncio.wait_for(until_placed(loop), 5)
            assert not running.done()
            running.cancel()

    asyncio.run(main())


class Absent(FaultyStore):
    """A store that cannot be read the first few times."""

    absences = 3

    async def list(self, prefix: str) -> Listing:
        if self.absences:
            self.absences -= 1
            raise UnavailableError("the store is away")
        return await super().list(prefix)


def test_a_store_that_is_away_is_asked_again() -> None:
    async def main() -> None:
        async with open_store("memory://") as inner:
            await inner.commit([Put(r.key, r.encode()) for r in WORLD])
            loop = ControlLoop(Absent(inner), [Controller("s", scheduling.plan)], retry=0.001)
            running = asyncio.create_task(loop.run())
            await asyncio.wait_for(until_placed(loop), 5)
            running.cancel()

    asyncio.run(main())
