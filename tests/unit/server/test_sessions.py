"""Sessions of nodes: what they may write, what they are sent, what they may have signed."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

import pytest
from pydantic import BaseModel

from bedstone.control import scheduling
from bedstone.control.loop import Controller, ControlLoop
from bedstone.errors import DeniedError, UnavailableError
from bedstone.model.messages import (
    Assignments,
    Certificate,
    CertificateRequest,
    Command,
    Digests,
    FromNode,
    FromServer,
    Hello,
    ProxyState,
    Reply,
    Report,
)
from bedstone.model.resources import App, Instance, InstanceStatus, Node, Phase, Presence
from bedstone.model.spec import AppSpec, WorkloadSpec
from bedstone.server.sessions import LEASE_SECONDS, Sessions
from bedstone.store import Put, Store, open_store
from bedstone.store.memory import MemoryStore
from bedstone.testing.faults import VirtualClock
from bedstone.trust.authority import Authority
from bedstone.trust.svid import certificate_request, new_key

M = TypeVar("M", bound=BaseModel)
SPEC = AppSpec(app="shop", workloads={"web": WorkloadSpec(command=("web",))})
NODE = Node(name="n", address="127.0.0.1")


class Proxies:
    """A mesh whose proxies have acknowledged what the test says."""

    def __init__(self) -> None:
        self.paths: frozenset[str] = frozenset()
        self.repaired: list[Mapping[str, str]] = []

    def acknowledged(self, node: str) -> frozenset[str]:
        return self.paths

    def repair(self, node: str, digests: Mapping[str, str]) -> list[str]:
        self.repaired.append(digests)
        return []


class World:
    """Sessions over a memory store."""

    def __init__(self, store: Store, loop: ControlLoop, authority: Authority) -> None:
        self.store, self.loop, self.authority = store, loop, authority
        self.proxies = Proxies()
        self.sessions = Sessions(store, loop, authority, self.proxies)

    async def declare(self, spec: AppSpec = SPEC) -> None:
        app = App(name=spec.app, spec=spec)
        await self.loop.reached(await self.store.commit([Put(app.key, app.encode())]))

    async def until(self, condition: Callable[[], bool]) -> None:
        version = -1
        while not condition():
            version = await self.loop.changed(version)


class Peer:
    """The node's end of one stream."""

    def __init__(self, world: World, node: str = "n") -> None:
        self._to: asyncio.Queue[FromNode | None] = asyncio.Queue()
        self.received: asyncio.Queue[FromServer] = asyncio.Queue()
        self.task = asyncio.create_task(
            world.sessions.serve(node, self._incoming(), self.received.put)
        )

    async def _incoming(self) -> AsyncIterator[FromNode]:
        while (message := await self._to.get()) is not None:
            yield message

    def say(self, message: FromNode) -> None:
        self._to.put_nowait(message)

    async def next(self, kind: type[M]) -> M:
        while True:
            message = await self.received.get()
            if isinstance(message, kind):
                return message

    async def close(self) -> None:
        self._to.put_nowait(None)
        await asyncio.gather(self.task, return_exceptions=True)


def run(
    tmp_path: Path, check: Callable[[World], Awaitable[None]], clock: VirtualClock | None = None
) -> None:
    async def main() -> None:
        async with MemoryStore(clock=clock) if clock else open_store("memory://") as store:
            loop = ControlLoop(store, [Controller("scheduling", scheduling.plan)])
            running = asyncio.create_task(loop.run())
            await loop.loaded()
            world = World(store, loop, Authority.open(tmp_path / "authority"))
            try:
                await asyncio.wait_for(check(world), 20)
            finally:
                running.cancel()

    asyncio.run(main())


def status(instance: Instance, phase: Phase, **changes: object) -> InstanceStatus:
    values = {
        "app": instance.app,
        "workload": instance.workload,
        "name": instance.name,
        "node": instance.node,
        "revision": instance.revision,
        "phase": phase,
        **changes,
    }
    return InstanceStatus.model_validate(values)


def test_a_node_gets_all_of_its_assignments_then_only_changes(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        await world.declare()
        peer = Peer(world)
        peer.say(Hello(node=NODE))
        first = await peer.next(Assignments)
        assert first.complete
        found: list[Instance] = list(first.instances)
        while not found:
            found += (await peer.next(Assignments)).instances
        assert [instance.workload for instance in found] == ["web"]
        peer.say(Report(instances=(status(found[0], Phase.READY),)))
        await world.until(lambda: world.loop.snapshot.ready(found[0]))
        await world.declare(
            SPEC.model_copy(
                update={"workloads": {"web": WorkloadSpec(command=("web",), replicas=2)}}
            )
        )
        change = await peer.next(Assignments)
        while not change.instances:
            change = await peer.next(Assignments)
        assert not change.complete
        assert [i.name[-2:] for i in change.instances] == ["-1"]
        await peer.close()

    run(tmp_path, check)


def test_an_impostor_and_a_stream_without_hello_are_refused(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        for message in (Report(), Hello(node=NODE.model_copy(update={"name": "other"}))):
            peer = Peer(world)
            peer.say(message)
            with pytest.raises(DeniedError, match="expected the hello of node n"):
                await peer.task
        assert world.loop.snapshot.nodes() == {}

    run(tmp_path, check)


def test_a_node_cannot_speak_for_another_nodes_instances(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        await world.declare()
        mine, other = Peer(world), Peer(world, "evil")
        mine.say(Hello(node=NODE))
        await world.until(lambda: bool(world.loop.snapshot.of(Instance, "shop")))
        instance = world.loop.snapshot.of(Instance, "shop")[0]
        other.say(Hello(node=Node(name="evil", address="127.0.0.1")))
        await world.until(lambda: world.loop.snapshot.present("evil"))
        claims = (
            status(instance, Phase.READY),
            status(instance, Phase.READY, node="evil"),
            status(instance, Phase.READY, node="evil", name="invented"),
        )
        other.say(Report(instances=claims))
        other.say(CertificateRequest(id="c", spiffe_id="x", request="y"))
        assert (await other.next(Certificate)).error == "denied"
        assert world.loop.snapshot.of(InstanceStatus, "shop") == []
        await mine.close()
        await other.close()

    run(tmp_path, check)


def test_certificates_only_for_what_is_placed_on_the_node(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        await world.declare()
        peer = Peer(world)
        peer.say(Hello(node=NODE))
        await world.until(lambda: bool(world.loop.snapshot.of(Instance, "shop")))
        domain = f"spiffe://{world.authority.domain}"
        key = new_key()
        expected = {
            f"{domain}/shop/web": None,
            f"{domain}/shop/gateway": None,
            f"{domain}/node/n": None,
            f"{domain}/node/other": "denied",
            f"{domain}/shop/db": "denied",
            f"{domain}/server": "denied",
            "spiffe://elsewhere/shop/web": "denied",
        }
        for identity, error in expected.items():
            request = certificate_request(key, "spiffe://x/y/z")
            peer.say(CertificateRequest(id=identity, spiffe_id=identity, request=request))
            answer = await peer.next(Certificate)
            assert (answer.id, answer.error) == (identity, error)
        await peer.close()

    run(tmp_path, check)


def test_the_hello_is_the_nodes_word_for_all_that_it_runs(tmp_path: Path) -> None:
    """After a crash of everything, statuses of the past must not count."""

    async def check(world: World) -> None:
        await world.declare()
        peer = Peer(world)
        peer.say(Hello(node=NODE))
        await world.until(lambda: bool(world.loop.snapshot.of(Instance, "shop")))
        instance = world.loop.snapshot.of(Instance, "shop")[0]
        peer.say(Report(instances=(status(instance, Phase.READY),)))
        await world.until(lambda: world.loop.snapshot.ready(instance))
        again = Peer(world)
        again.say(Hello(node=NODE))
        await world.until(lambda: not world.loop.snapshot.ready(instance))
        assert world.loop.snapshot.of(InstanceStatus, "shop") == []
        assert peer.task.cancelled() or peer.task.done()
        await again.close()

    run(tmp_path, check)


def test_the_view_is_complete_once_every_living_node_has_said_hello(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        presence = Presence(node="n")
        revision = await world.store.commit(
            [Put(NODE.key, NODE.encode()), Put(presence.key, presence.encode())]
        )
        await world.loop.reached(revision)
        assert not world.sessions.heard_from_all()
        peer = Peer(world)
        peer.say(Hello(node=NODE))
        await world.until(world.sessions.heard_from_all)
        await peer.close()
        assert world.sessions.heard_from_all()

    run(tmp_path, check)


def test_acknowledgements_and_digests_pass_between_proxy_and_node(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        peer = Peer(world)
        peer.say(Hello(node=NODE))
        assert (await peer.next(ProxyState)).complete
        world.proxies.paths = frozenset({"shop/default/web/a", "shop/default/web/b"})
        world.sessions.wake("n")
        assert (await peer.next(ProxyState)).acknowledged == tuple(sorted(world.proxies.paths))
        world.proxies.paths = frozenset({"shop/default/web/b"})
        world.sessions.wake("n")
        assert (await peer.next(ProxyState)).removed == ("shop/default/web/a",)
        peer.say(Digests(digests={"LDS/x": "1"}))
        await peer.close()
        assert world.proxies.repaired == [{"LDS/x": "1"}]

    run(tmp_path, check)


def test_commands_are_answered_or_fail_when_the_node_goes_away(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        with pytest.raises(UnavailableError, match="no session"):
            await world.sessions.call("n", Command(id="0", action="call"))
        peer = Peer(world)
        peer.say(Hello(node=NODE))
        await peer.next(Assignments)
        call = asyncio.create_task(world.sessions.call("n", Command(id="1", action="call")))
        command = await peer.next(Command)
        peer.say(Reply(id=command.id, status=204, final=True))
        assert (await call).status == 204
        assert (await peer.next(Command)).action == "cancel"
        call = asyncio.create_task(world.sessions.call("n", Command(id="2", action="call")))
        await peer.next(Command)
        peer.say(Reply(id="2", error="denied", message="not declared", final=True))
        with pytest.raises(DeniedError, match="not declared"):
            await call
        call = asyncio.create_task(world.sessions.call("n", Command(id="3", action="call")))
        while (await peer.next(Command)).id != "3":
            pass
        await peer.close()
        with pytest.raises(UnavailableError, match="gone away"):
            await call

    run(tmp_path, check)


def test_a_dead_nodes_instances_expire_and_a_node_that_wakes_up_is_back(tmp_path: Path) -> None:
    clock = VirtualClock()

    async def check(world: World) -> None:
        await world.declare()
        peer = Peer(world)
        peer.say(Hello(node=NODE))
        await world.until(lambda: bool(world.loop.snapshot.of(Instance, "shop")))
        instance = world.loop.snapshot.of(Instance, "shop")[0]
        peer.say(Report(instances=(status(instance, Phase.READY),)))
        await world.until(lambda: world.loop.snapshot.ready(instance))
        await clock.advance(LEASE_SECONDS * 0.8)
        assert world.loop.snapshot.ready(instance), "the lease has not ended yet"
        await clock.advance(LEASE_SECONDS * 1.5)
        await world.until(lambda: not world.loop.snapshot.present("n"))
        assert not world.loop.snapshot.ready(instance)
        assert world.loop.snapshot.status(instance), "what the node said of it is kept"
        peer.say(Report())
        await world.until(lambda: world.loop.snapshot.ready(instance))
        await peer.close()

    run(tmp_path, check, clock)


def test_a_reader_that_is_behind_hears_that_the_node_went_away_and_so_do_others(
    tmp_path: Path,
) -> None:
    async def check(world: World) -> None:
        peer = Peer(world)
        peer.say(Hello(node=NODE))
        await peer.next(Assignments)
        session = world.sessions.get("n")
        slow = session.command(Command(id="slow", action="logs", follow=True))
        first = asyncio.create_task(anext(slow))
        await peer.next(Command)
        other = asyncio.create_task(world.sessions.call("n", Command(id="2", action="call")))
        await peer.next(Command)
        peer.say(Reply(id="slow"))
        await first
        for _ in range(1000):  # as many as wait for a reader
            peer.say(Reply(id="slow"))
        await peer.close()
        with pytest.raises(UnavailableError, match="gone away"):
            async for _ in slow:
                pass
        with pytest.raises(UnavailableError, match="gone away"):
            await other

    run(tmp_path, check)


def test_a_session_that_cannot_send_ends_so_that_the_node_opens_another(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        async def incoming() -> AsyncIterator[FromNode]:
            yield Hello(node=NODE)
            await asyncio.Event().wait()

        async def broken(message: FromServer) -> None:
            raise ValueError("no such message")

        serving = asyncio.create_task(world.sessions.serve("n", incoming(), broken))
        ended, _ = await asyncio.wait([serving], timeout=5)
        assert ended
        with pytest.raises(ValueError, match="no such message"):
            await serving
        with pytest.raises(UnavailableError, match="no session"):
            world.sessions.get("n")

    run(tmp_path, check)
