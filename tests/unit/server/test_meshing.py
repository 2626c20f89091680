"""Between picture and mesh: no push too early, no stop too soon, no rejection in silence."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from bedstone.control.loop import ControlLoop
from bedstone.control.mesh.mesh import Mesh
from bedstone.control.mesh.streams import Rejection
from bedstone.control.mesh.views import NodeProxy
from bedstone.model.messages import FromServer, Hello
from bedstone.model.resources import App, Condition, Desired, Instance, Node, Presence
from bedstone.model.spec import AppSpec, WorkloadSpec
from bedstone.server.ads import AdsService
from bedstone.server.changes import Changes
from bedstone.server.meshing import Meshing
from bedstone.server.sessions import Sessions
from bedstone.store import Operation, Put, Store, open_store
from bedstone.trust.authority import Authority

APP = App(name="shop", spec=AppSpec(app="shop", workloads={"web": WorkloadSpec(command=("x",))}))
NODE = Node(name="n", address="127.0.0.1")


class Ads(AdsService):
    """ADS whose proxies have rejected what the test says."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__(mesh, lambda _: NodeProxy("n"))
        self.rejected: list[Rejection] = []

    def rejections(self) -> list[Rejection]:
        return self.rejected


class World:
    def __init__(self, store: Store, authority: Authority) -> None:
        self.store = store
        self.loop = ControlLoop(store, [])
        self.mesh = Mesh("d.internal")
        self.ads = Ads(self.mesh)
        self.meshing = Meshing(store, self.loop, self.mesh, self.ads)
        self.sessions = Sessions(store, self.loop, authority, self.meshing)
        self.meshing.connect(self.sessions)

    async def until(self, condition: Callable[[], bool]) -> None:
        version = -1
        while not condition():
            version = await self.loop.changed(version)


def run(tmp_path: Path, check: Callable[[World], Awaitable[None]], *held: Put) -> None:
    async def main() -> None:
        async with open_store("memory://") as store:
            if held:
                await store.commit(held)
            world = World(store, Authority.open(tmp_path))
            changes = Changes(store, world.loop)
            tasks = [
                asyncio.create_task(world.loop.run()),
                asyncio.create_task(world.meshing.run(changes)),
            ]
            try:
                await asyncio.wait_for(check(world), 20)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())


def put(resource: App | Node | Presence | Instance) -> Put:
    return Put(resource.key, resource.encode())


def test_the_view_is_held_until_the_living_nodes_have_said_hello(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        await world.loop.loaded()
        assert not world.meshing.complete
        queue: asyncio.Queue[FromServer] = asyncio.Queue()

        async def incoming() -> object:
            yield Hello(node=NODE)
            await asyncio.sleep(20)

        serving = asyncio.create_task(
            world.sessions.serve("n", incoming(), queue.put)  # type: ignore[arg-type]
        )
        await world.until(lambda: world.meshing.complete)
        serving.cancel()

    run(tmp_path, check, put(NODE), put(Presence(node="n")))


def test_with_no_living_node_there_is_nobody_to_wait_for(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        await world.until(lambda: world.meshing.complete)

    run(tmp_path, check, put(NODE))


def test_a_drained_instance_is_released_to_its_node(tmp_path: Path) -> None:
    instance = Instance(
        app="shop", workload="web", name="web-r-0", revision="r", node="n", desired=Desired.DRAINED
    )

    async def check(world: World) -> None:
        def released() -> bool:
            held = world.loop.snapshot.get(Instance, instance.key)
            return held is not None and held.released

        await world.until(released)

    run(tmp_path, check, put(APP), put(instance))


def test_what_a_proxy_rejects_becomes_a_condition_and_goes_with_it(tmp_path: Path) -> None:
    message = (
        "Error adding/updating listener(s) gateway/shop: cannot bind '127.0.0.1:80': "
        "Address already in use outbound/shop/default/web/x: something else"
    )

    async def check(world: World) -> None:
        await world.loop.loaded()
        world.ads.rejected = [
            Rejection("node:n", "LDS", "gateway/shop", message, "shop", "gateway"),
            Rejection("node:n", "LDS", "gateway/gone", message, "gone", "gateway"),
        ]
        world.ads._advance(NodeProxy("n"))
        await world.until(lambda: bool(world.loop.snapshot.of(Condition, "shop")))
        (condition,) = world.loop.snapshot.of(Condition, "shop")
        assert (condition.subject, condition.message) == (
            "gateway",
            "another program has its port",
        )
        world.ads.rejected = []
        world.ads._advance(NodeProxy("n"))
        await world.until(lambda: not world.loop.snapshot.of(Condition, "shop"))

    run(tmp_path, check, put(APP))


def test_an_instance_written_while_it_drains_is_released_all_the_same(tmp_path: Path) -> None:
    instance = Instance(
        app="shop", workload="web", name="web-r-0", revision="r", node="n", desired=Desired.DRAINED
    )

    async def check(world: World) -> None:
        commit = world.store.commit
        conflicts = 1

        async def raced(operations: Sequence[Operation]) -> int:
            nonlocal conflicts
            if conflicts and operations[0].key == instance.key:
                conflicts -= 1
                await commit([put(instance)])
            return await commit(operations)

        world.store.commit = raced  # type: ignore[method-assign]

        def released() -> bool:
            held = world.loop.snapshot.get(Instance, instance.key)
            return held is not None and held.released

        await commit([put(instance)])
        await world.until(released)
        assert conflicts == 0

    run(tmp_path, check, put(APP))
