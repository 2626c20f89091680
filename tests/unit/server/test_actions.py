"""Scaling, rolling back and undoing over the API, and what is kept for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bedstone.control import scheduling
from bedstone.control.loop import Controller, ControlLoop
from bedstone.control.snapshot import Snapshot
from bedstone.errors import ConflictError, InvalidError, NotFoundError
from bedstone.model.api import ApplyRequest, ApplyResult
from bedstone.model.resources import AuditRecord, Desired, Instance, Node, Presence
from bedstone.model.spec import AppSpec
from bedstone.server.actions import Actions
from bedstone.server.changes import Changes
from bedstone.server.history import KEPT
from bedstone.store import Put, Store, open_store


class World:
    """Changes and actions over a store, with one node that takes every instance."""

    def __init__(self, store: Store, loop: ControlLoop) -> None:
        self.store, self.loop = store, loop
        self.changes = Changes(store, loop)
        self.actions = Actions(self.changes)

    async def apply(self, web: dict[str, Any] | None = None, **more: Any) -> ApplyResult:
        spec = {"app": "shop", "workloads": {"web": {"command": ["w"], **(web or {})}}, **more}
        request = ApplyRequest(spec=AppSpec.model_validate(spec), sources={"web": "s"})
        return await self.changes.apply("shop", request, "local:ann")

    async def settle(self, count: int) -> None:
        """Wait until so many instances are wanted."""
        while running(self.loop.snapshot) != count:
            await self.loop.changed(self.loop.version)

    async def last(self) -> AuditRecord:
        return (await self.changes.audit(1))[0]


def running(snapshot: Snapshot) -> int:
    return sum(i.desired is Desired.RUNNING for i in snapshot.of(Instance, "shop"))


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    async with open_store("memory://") as store:
        loop = ControlLoop(store, [Controller("scheduling", scheduling.plan)])
        node = Node(name="n", address="127.0.0.1")
        presence = Presence(node="n")
        await store.commit([Put(r.key, r.encode()) for r in (node, presence)])
        task = asyncio.create_task(loop.run())
        await loop.loaded()
        try:
            yield World(store, loop)
        finally:
            task.cancel()


def run(check: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        async with world() as made:
            await asyncio.wait_for(check(made), 20)

    asyncio.run(main())


def test_scaling_changes_what_runs_and_no_declaration() -> None:
    async def check(world: World) -> None:
        await world.apply({"replicas": 2})
        await world.settle(2)
        result = await world.actions.scale("shop", "web", 4, "console:ann")
        await world.settle(4)
        assert result.generation == 1, "no generation is made"
        assert "says another number than 2" in result.notes[0]
        assert world.changes.app("shop").spec.workloads["web"].replicas == 2
        record = await world.last()
        assert (record.who, record.action, record.target) == ("console:ann", "scale", "shop/web")
        assert record.detail == "~ workload web: replicas 2 → 4"
        assert record.generation is None

        await world.apply({"replicas": 2, "env": {"A": "1"}})
        assert world.changes.app("shop").replicas("web") == 4, "the same number leaves it"
        await world.apply({"replicas": 3, "env": {"A": "1"}})
        assert world.changes.app("shop").replicas("web") == 3

    run(check)


def test_scaling_to_what_is_there_is_no_change_and_no_record() -> None:
    async def check(world: World) -> None:
        await world.apply({"replicas": 2})
        before = await world.last()
        result = await world.actions.scale("shop", "web", 2, "console:ann")
        assert result.changes == ()
        assert await world.last() == before

    run(check)


def test_a_roll_back_is_a_generation_of_its_own() -> None:
    async def check(world: World) -> None:
        for value in ("1", "2", "3"):
            await world.apply({"env": {"A": value}, "replicas": int(value)})
        result = await world.actions.roll_back("shop", "web", 1, "console:ann")
        app = world.changes.app("shop")
        assert (app.generation, result.generation) == (4, 4)
        assert app.spec.workloads["web"].env == {"A": "1"}
        assert app.spec.workloads["web"].replicas == 3
        assert any("`bedstone up`" in note for note in result.notes)
        assert any("source" in note for note in result.notes)
        record = await world.last()
        assert (record.action, record.generation, record.app) == ("rollback", 4, "shop")
        again = await world.actions.roll_back("shop", "web", None, "console:ann")
        assert again.generation == 5
        assert world.changes.app("shop").spec.workloads["web"].env == {"A": "3"}

    run(check)


def test_undoing_restores_the_whole_and_says_what_goes_with_it() -> None:
    async def check(world: World) -> None:
        await world.apply({"env": {"A": "1"}})
        await world.apply({"env": {"A": "2"}}, databases={"db": {}})
        await world.apply({"env": {"A": "3"}}, databases={"db": {}})
        result = await world.actions.undo("shop", 2, "console:ann")
        app = world.changes.app("shop")
        assert app.spec.workloads["web"].env == {"A": "1"}
        assert app.spec.databases == {}
        assert result.notes[0] == "generations 2 to 3 are undone together"
        assert [(c.op, c.subject) for c in result.changes] == [
            ("~", "workload web: env.A changed"),
            ("-", "database db"),
        ]
        again = await world.actions.undo("shop", 4, "console:ann")
        assert again.generation == 5
        assert world.changes.app("shop").spec.databases.keys() == {"db"}, "an undo can be undone"

    run(check)


@pytest.mark.parametrize(
    ("generation", "expected", "message"),
    [
        (1, InvalidError, "generation 1 is the first"),
        (3, InvalidError, "app shop is at generation 2, got 3"),
    ],
)
def test_what_cannot_be_undone_is_told(
    generation: int, expected: type[Exception], message: str
) -> None:
    async def check(world: World) -> None:
        await world.apply({"env": {"A": "1"}})
        await world.apply({"env": {"A": "2"}})
        with pytest.raises(expected, match=message):
            await world.actions.undo("shop", generation, "console:ann")
        assert world.changes.app("shop").generation == 2

    run(check)


def test_only_so_many_generations_are_kept_and_none_of_an_app_that_is_gone() -> None:
    async def check(world: World) -> None:
        for value in range(KEPT + 3):
            await world.apply({"env": {"A": str(value)}})
        assert len(await world.changes.history.keys("shop")) == KEPT
        with pytest.raises(NotFoundError, match="generation 2 of app shop is not kept"):
            await world.actions.undo("shop", 3, "console:ann")
        await world.changes.delete("shop", "local:ann")
        assert await world.changes.history.keys("shop") == []
        for act in (
            world.actions.scale("shop", "web", 3, "x"),
            world.actions.roll_back("shop", "web", KEPT, "x"),
        ):
            with pytest.raises((ConflictError, NotFoundError)):
                await act

    run(check)


def test_a_port_that_another_app_has_taken_since_is_not_taken_back() -> None:
    async def check(world: World) -> None:
        gateway = {"port": 8123, "routes": [{"to": "web"}]}
        await world.apply(gateway=gateway)
        await world.apply()
        other = {"app": "other", "workloads": {"web": {"command": ["w"]}}, "gateway": gateway}
        request = ApplyRequest(spec=AppSpec.model_validate(other))
        await world.changes.apply("other", request, "local:bob")
        with pytest.raises(InvalidError, match="port 8123 is the gateway of app other"):
            await world.actions.undo("shop", 2, "console:ann")

    run(check)


def test_no_expression_of_a_manifest_is_looked_at_on_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Readers plan, too; compiling what a short expression asks for can take seconds."""
    threads: list[threading.Thread] = []
    monkeypatch.setattr(
        "bedstone.server.changes.check", lambda _: threads.append(threading.current_thread())
    )

    async def check(world: World) -> None:
        spec = AppSpec.model_validate(
            {
                "app": "other",
                "workloads": {"web": {"command": ["x"]}},
                "alerts": {"some": {"when": "x > 1"}},
            }
        )
        request = ApplyRequest(spec=spec, root="/r")
        await world.changes.plan("other", request)
        await world.changes.apply("other", request, "local:ann")
        assert len(threads) == 2
        assert threading.main_thread() not in threads

    run(check)
