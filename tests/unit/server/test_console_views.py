"""What the console's pages are told: what is not well, who calls whom, and who changed what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, cast

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from bedstone.control import scheduling
from bedstone.control.loop import Controller, ControlLoop
from bedstone.control.monitoring.reading import Matcher, Selection
from bedstone.errors import NotFoundError
from bedstone.model.alerts import AlertLine
from bedstone.model.api import ApplyRequest
from bedstone.model.monitoring import Finding
from bedstone.model.resources import (
    Condition,
    Database,
    DatabaseStatus,
    Instance,
    InstanceStatus,
    Node,
    Phase,
    Presence,
    Resource,
)
from bedstone.model.spec import AppSpec
from bedstone.server.actions import Actions
from bedstone.server.api import build_api
from bedstone.server.changes import Changes
from bedstone.server.console_views import ConsoleViews
from bedstone.store import Delete, Put, Store, open_store
from bedstone.telemetry import names
from bedstone.testing.series import MemoryReader

START = 1_800_000_000
SPEC = {
    "app": "shop",
    "gateway": {"port": 8123, "routes": [{"path": "/", "to": "web"}]},
    "workloads": {
        "web": {
            "command": ["w"],
            "uses": ["stock"],
            "env": {"KEY": "topsecret"},
            "limits": {"memory": 1000},
        },
        "stock": {"command": ["s"], "uses": ["db"]},
        "lone": {"command": ["l"], "replicas": 0},
    },
    "databases": {"db": {}},
}


class CountingReader(MemoryReader):
    """Tells how often it was read."""

    reads = 0

    def select(
        self,
        matchers: Sequence[Matcher],
        start: int,
        end: int,
        resolution: int,
        aggregate: Literal["last", "min", "max", "avg"] = "last",
    ) -> Selection:
        self.reads += 1
        return super().select(matchers, start, end, resolution, aggregate)


class World:
    """Views over a store and series that the test writes."""

    def __init__(self, store: Store, loop: ControlLoop) -> None:
        self.store, self.loop = store, loop
        self.reader = CountingReader()
        self.alerts: list[AlertLine] = []
        self.now = START + 0.0
        self.changes = Changes(store, loop, clock=lambda: self.now)
        self.views = ConsoleViews(
            loop,
            self.reader,
            self.changes,
            "test.internal",
            alerts=lambda: self.alerts,
            clock=lambda: self.now,
        )
        self.second = START
        self._totals: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    async def put(self, *resources: Resource) -> None:
        await self.loop.reached(
            await self.store.commit([Put(r.key, r.encode()) for r in resources])
        )

    async def apply(self, spec: dict[str, Any] | None = None, who: str = "local:ann") -> None:
        given: dict[str, Any] = spec or SPEC
        request = ApplyRequest(spec=AppSpec.model_validate(given))
        await self.changes.apply(given["app"], request, who)
        while not self.loop.snapshot.of(Instance, given["app"]):
            await self.loop.changed(self.loop.version)

    async def settle(self) -> None:
        """Let every instance and database that is wanted be ready."""
        while not self.loop.snapshot.of(Database, "shop"):
            await self.loop.changed(self.loop.version)
        for instance in self.loop.snapshot.of(Instance, "shop"):
            await self.put(self.status(instance))
        await self.put(
            DatabaseStatus(app="shop", name="db", node="n", phase=Phase.READY, address=None)
        )

    def status(self, instance: Instance, **more: Any) -> InstanceStatus:
        given = {
            "app": "shop",
            "workload": instance.workload,
            "name": instance.name,
            "node": "n",
            "revision": instance.revision,
            "phase": Phase.READY,
            "pid": 7,
        }
        return InstanceStatus.model_validate({**given, **more})

    def instance(self, workload: str) -> Instance:
        found = self.loop.snapshot.of(Instance, "shop")
        return next(i for i in found if i.workload == workload)

    def count(self, metric: names.Metric, by: float, **labels: str) -> None:
        key = (metric.name, tuple(sorted(labels.items())))
        self._totals[key] = self._totals.get(key, 0.0) + by

    def gauge(self, metric: names.Metric, value: float, **labels: str) -> None:
        self.reader.put(metric.name, labels, "gauge", self.second, value)

    def end(self, missing: dict[str, str] | None = None) -> None:
        self.count(names.NODE_CPU, 1, node="n", mode="idle")
        for (metric, labels), value in self._totals.items():
            self.reader.put(metric, dict(labels), "counter", self.second, value)
        self.reader.finish(self.second, missing)
        self.second += 1

    def own(self, workload: str) -> dict[str, str]:
        instance = self.instance(workload)
        return {
            "app": "shop",
            "cell": instance.cell,
            "workload": workload,
            "revision": instance.revision,
            "instance": instance.name,
            "node": instance.node,
        }

    async def findings(self) -> list[Finding]:
        """What the overview finds, in a second of its own."""
        self.end()
        return list((await self.views.overview()).findings)


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    async with open_store("memory://") as store:
        loop = ControlLoop(store, [Controller("scheduling", scheduling.plan)])
        node = Node(name="n", address="127.0.0.1", proxy=Phase.READY)
        presence = Presence(node="n")
        await store.commit([Put(r.key, r.encode()) for r in (node, presence)])
        task = asyncio.create_task(loop.run())
        await loop.loaded()
        try:
            yield World(store, loop)
        finally:
            task.cancel()


def run(check: Callable[[World], Awaitable[None]], *, ready: bool = True) -> None:
    async def main() -> None:
        async with world() as made:
            await made.apply()
            if ready:
                await made.settle()
            await asyncio.wait_for(check(made), 20)

    asyncio.run(main())


def test_all_is_well_and_each_app_has_a_line() -> None:
    async def check(world: World) -> None:
        world.count(names.GATEWAY_REQUESTS, 0, app="shop", node="n", code="2xx")
        world.end()
        world.count(names.GATEWAY_REQUESTS, 6, app="shop", node="n", code="2xx")
        assert await world.findings() == []
        overview = await world.views.overview()
        (app,) = overview.apps
        assert (app.app, app.health, app.ready, app.wanted) == ("shop", "ok", 2, 2)
        assert app.signals.rate == 6.0
        assert app.rates[-1] == 6.0
        assert app.gateway == "http://localhost:8123"
        assert (overview.complete, overview.second) == (True, world.second - 1)
        (node,) = overview.nodes
        assert (node.node, node.health, node.instances) == ("n", "ok", 2)

    run(check)


def test_a_node_keeps_identities_apart_only_if_it_does_for_each_of_its_instances() -> None:
    async def check(world: World) -> None:
        async def told() -> bool:
            world.end()
            (node,) = (await world.views.overview()).nodes
            return node.enforced

        await world.put(Node(name="n", address="127.0.0.1", proxy=Phase.READY, enforced=True))
        for workload in ("web", "stock"):
            await world.put(world.status(world.instance(workload), enforced=True))
        assert await told()
        await world.put(world.status(world.instance("stock"), enforced=False))
        assert not await told()

    run(check)


def test_a_failing_instance_is_found_with_its_reason_and_the_page_of_its_cause() -> None:
    async def check(world: World) -> None:
        instance = world.instance("stock")
        await world.put(world.status(instance, phase=Phase.BACKOFF, reason="exit status 1"))
        (found,) = await world.findings()
        assert (found.severity, found.app, found.subject) == ("error", "shop", "stock")
        assert found.message == f"{instance.name}: backoff, exit status 1"
        assert found.page == "/workloads/shop/stock"
        assert found.hint
        (app,) = (await world.views.overview()).apps
        assert app.health == "error"

    run(check)


def test_an_instance_that_starts_is_no_error() -> None:
    async def check(world: World) -> None:
        await world.put(world.status(world.instance("stock"), phase=Phase.STARTING))
        (found,) = await world.findings()
        assert (found.severity, found.message) == ("warning", "0 of 1 instances is ready")

    run(check)


def test_errors_come_before_warnings_and_a_gone_node_first() -> None:
    async def check(world: World) -> None:
        await world.put(
            Condition(app="shop", subject="gateway.routes[0]", severity="warning", message="odd"),
            Condition(app="shop", subject="workloads.web", message="rejected", hint="mend it"),
        )
        await world.store.commit([Delete("presence/n")])
        while world.loop.snapshot.present("n"):
            await world.loop.changed(world.loop.version)
        found = await world.findings()
        order = [(f.severity, f.subject) for f in found]
        assert order[0] == ("error", "node n")
        assert ("error", "web") in order
        assert ("warning", "gateway.routes[0]") in order
        severities = [severity for severity, _ in order]
        assert severities == sorted(severities), "errors first"
        page = {f.subject: f.page for f in found}
        assert page["gateway.routes[0]"] == "/traffic/shop"
        assert page["web"] == "/workloads/shop/web"

    run(check)


def test_a_database_that_is_down_stuck_transactions_and_restarts_are_found() -> None:
    async def check(world: World) -> None:
        await world.put(
            DatabaseStatus(app="shop", name="db", node="n", phase=Phase.BACKOFF, reason="no disk")
        )
        own = world.own("web")
        world.count(names.INSTANCE_RESTARTS, 0, **own)
        for _ in range(10):
            world.end()
        world.count(names.INSTANCE_RESTARTS, 3, **own)
        for _ in range(15):
            world.gauge(names.TRANSACTIONS_STUCK, 2, app="shop")
            world.end()
        world.gauge(names.TRANSACTIONS_STUCK, 2, app="shop")
        found = {f.subject: f for f in await world.findings()}
        assert found["database db"].message == "no disk"
        assert found["transactions"].message == "2 transactions wait for a person"
        assert found["transactions"].page == "/transactions/shop?stuck=1"
        assert "3 times" in found["web"].message

    run(check)


def test_requests_that_fail_are_found() -> None:
    async def check(world: World) -> None:
        own = world.own("web")
        world.count(names.REQUESTS, 0, **own, code="2xx")
        world.end()
        world.count(names.REQUESTS, 90, **own, code="2xx")
        world.count(names.REQUEST_ERRORS, 10, **own, kind="timeout")
        world.count(names.REQUESTS, 10, **own, code="5xx")
        (found,) = await world.findings()
        assert (found.severity, found.message) == ("warning", "10% of requests fail")
        world.count(names.REQUEST_ERRORS, 900, **own, kind="timeout")
        (found,) = await world.findings()
        assert found.severity == "error"

    run(check)


def test_alerts_that_fire_and_are_not_silenced_are_found() -> None:
    async def check(world: World) -> None:
        firing = AlertLine(
            app="shop", rule="slow", kind="condition", state="firing", severity="page", summary="S"
        )
        world.alerts = [
            firing,
            firing.model_copy(update={"rule": "held", "silenced_until": START + 999.0}),
            firing.model_copy(update={"rule": "soon", "state": "pending"}),
        ]
        (found,) = await world.findings()
        assert (found.severity, found.subject, found.message) == ("error", "alert slow", "S")

    run(check)


def test_what_did_not_answer_is_told() -> None:
    async def check(world: World) -> None:
        world.end({"n/envoy": "no answer within 0.8 s"})
        overview = await world.views.overview()
        assert not overview.complete
        assert overview.missing == {"n/envoy": "no answer within 0.8 s"}
        assert overview.findings[0].subject == "monitoring of n/envoy"
        graph = await world.views.graph("shop", None, 10)
        assert not graph.complete
        assert "n/envoy" in graph.missing

    run(check)


def test_the_map_shows_what_is_declared_and_what_flows() -> None:
    async def check(world: World) -> None:
        edge = {"app": "shop", "cell": "default", "node": "n", "code": "2xx"}
        pairs = [("gateway", "web"), ("web", "stock"), ("lone", "stock"), ("operator", "web")]
        for caller, callee in pairs:
            world.count(names.EDGE_REQUESTS, 0, **edge, caller=caller, callee=callee)
        world.end()
        for rate, (caller, callee) in enumerate(pairs, 1):
            world.count(names.EDGE_REQUESTS, rate, **edge, caller=caller, callee=callee)
        world.gauge(
            names.DATABASE_CONNECTIONS,
            4,
            app="shop",
            cell="default",
            database="db",
            workload="stock",
            state="idle",
            node="n",
        )
        world.end()
        graph = await world.views.graph("shop", None, 10)
        ids = [node.id for node in graph.nodes]
        assert ids[:5] == [
            "gateway:gateway",
            "workload:web",
            "workload:stock",
            "workload:lone",
            "database:db",
        ]
        assert ids[5:] == ["external:operator"]
        edges = {(e.source, e.target): e for e in graph.edges}
        assert edges["gateway:gateway", "workload:web"].signals.rate == 1.0
        assert edges["workload:web", "workload:stock"].declared
        undeclared = edges["workload:lone", "workload:stock"]
        assert (undeclared.declared, undeclared.signals.rate) == (False, 3.0)
        assert edges["workload:stock", "database:db"].connections == 4.0
        earlier = await world.views.graph("shop", world.second - 2, 10)
        rates = {(e.source, e.target): e.signals.rate for e in earlier.edges}
        assert not rates["gateway:gateway", "workload:web"], "then, nothing flowed"
        with pytest.raises(NotFoundError, match="there is no app other"):
            await world.views.graph("other", None, 10)

    run(check)


def test_traffic_names_who_may_call_whom() -> None:
    async def check(world: World) -> None:
        world.end()
        traffic = await world.views.traffic("shop")
        assert [(r.route, r.to) for r in traffic.routes] == [("/", "web")]
        allowed = {p.workload: p.allowed for p in traffic.policies}
        assert allowed == {"web": ("gateway",), "stock": ("web",), "lone": ()}

    run(check)


def test_a_workload_s_page_has_its_instances_revisions_and_no_secret() -> None:
    async def check(world: World) -> None:
        own = world.own("web")
        world.gauge(names.INSTANCE_MEMORY, 250, **own)
        world.end()
        world.gauge(names.INSTANCE_MEMORY, 250, **own)
        world.end()
        line = await world.views.workload("shop", "web")
        assert line.environment == ("KEY",)
        assert "topsecret" not in line.model_dump_json()
        assert (line.uses, line.used_by) == (("stock",), ("gateway",))
        (instance,) = line.instances
        assert (instance.phase, instance.pid, instance.current) == ("ready", 7, True)
        assert instance.signals.saturation == 0.25, "a quarter of its limit"
        assert line.signals.saturation == 0.25
        (revision,) = line.revisions
        assert (revision.current, revision.instances, revision.can_roll_back) == (True, 1, False)

        changed = {**SPEC, "workloads": {**SPEC["workloads"], "web": {"command": ["w2"]}}}  # type: ignore[dict-item]
        await world.apply(changed)
        while len((await world.views.workload("shop", "web")).revisions) < 2:
            await world.loop.changed(world.loop.version)
        now, before = (await world.views.workload("shop", "web")).revisions
        assert (now.current, before.current) == (True, False)
        assert (before.generation, before.can_roll_back) == (1, True)
        with pytest.raises(NotFoundError, match="has no workload nothing"):
            await world.views.workload("shop", "nothing")

    run(check)


def test_scaling_shows_in_every_line() -> None:
    async def check(world: World) -> None:
        world.end()
        await Actions(world.changes).scale("shop", "web", 3, "console:ann")
        line = next(w for w in (await world.views.workloads()).items if w.name == "web")
        assert (line.declared, line.wanted) == (1, 3)

    run(check)


def test_workloads_are_searched_by_name() -> None:
    async def check(world: World) -> None:
        world.end()
        every = (await world.views.workloads()).items
        assert [w.name for w in every] == ["web", "stock", "lone"]
        assert [w.name for w in (await world.views.workloads(search="O")).items] == [
            "web",
            "stock",
            "lone",
        ], "the app's name counts too"
        assert [w.name for w in (await world.views.workloads("shop", "sto")).items] == ["stock"]
        assert (await world.views.workloads("other")).items == ()
        assert every[2].reason == "no instance is wanted"

    run(check)


def test_ten_pages_cost_one_computation() -> None:
    async def check(world: World) -> None:
        world.end()
        await world.views.overview()
        once = world.reader.reads
        world.end()
        world.reader.reads = 0
        await asyncio.gather(
            *(world.views.overview() for _ in range(10)),
            *(world.views.workloads() for _ in range(10)),
            *(world.views.graph("shop", None, 10) for _ in range(10)),
        )
        assert world.reader.reads == once

    run(check)


def test_changes_tell_who_what_and_the_difference() -> None:
    async def check(world: World) -> None:
        world.end()
        await world.changes.noted("console:ann", "sign-in", "console x", "operator")
        world.now += 10
        changed = {**SPEC, "workloads": {**SPEC["workloads"], "lone": {"command": ["l"]}}}  # type: ignore[dict-item]
        await world.apply(changed, "token:bob")
        first, last = (await world.views.changes("shop", None, 10)).items
        assert (first.who, first.action, first.generation) == ("token:bob", "apply", 2)
        assert [(c.op, c.subject, c.after) for c in first.changes] == [
            ("~", "workload lone: replicas", "1")
        ]
        assert (first.undo, last.undo) == (True, False), "before the first there was nothing"
        assert last.changes[0].subject == "gateway"
        assert "topsecret" not in first.model_dump_json() + last.model_dump_json()
        assert (await world.views.changes("", first.at, 10)).items == (last,)
        assert (await world.views.changes("other", None, 10)).items == ()
        overview = await world.views.overview()
        assert [c.generation for c in overview.changes] == [2, 1]
        world.now += 3595
        world.end()
        assert [c.generation for c in (await world.views.overview()).changes] == [2]

    run(check)


def test_what_an_app_of_that_name_did_before_it_was_deleted_is_not_mixed_up() -> None:
    async def check(world: World) -> None:
        await world.store.commit([Delete("apps/shop")])
        while world.loop.snapshot.apps():
            await world.loop.changed(world.loop.version)
        world.now += 3600
        await world.apply(who="local:eve")
        new, old = (await world.views.changes("shop", None, 10)).items
        assert (new.who, new.generation, bool(new.changes)) == ("local:eve", 1, True)
        assert (old.who, old.generation, old.changes) == ("local:ann", 1, ())

    run(check)


def test_markup_in_names_and_messages_is_data() -> None:
    """Nothing that an app says can become part of a page: answers are JSON, and are not sniffed."""

    async def check(world: World) -> None:
        evil = '<img src=x onerror="alert(1)"></script><script>alert(2)</script>'
        await world.put(Condition(app="shop", subject="workloads.web", message=evil, hint=evil))
        world.end()
        nothing = cast("Any", None)
        api = build_api(
            world.store, nothing, world.changes, nothing, more=(world.views.add_routes,)
        )

        async def local(scope: Scope, receive: Receive, send: Send) -> None:
            await api({**scope, "client": ("local:0", 0)}, receive, send)

        transport = httpx.ASGITransport(app=local)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            answer = await client.get("/v1/overview")
            assert answer.headers["content-type"] == "application/json"
            assert answer.json()["findings"][0]["message"] == evil
            for path in ("/v1/overview", "/v1/workloads", "/v1/apps/shop/graph", "/v1/changes"):
                assert (await client.get(path)).status_code == 200, path
            for path in ("/v1/apps/no/graph", "/v1/apps/shop/workloads/no", "/v1/apps/no/traffic"):
                assert (await client.get(path)).status_code == 404, path

    run(check)


def test_questions_of_apps_that_are_not_there_take_no_memory() -> None:
    async def check(world: World) -> None:
        async def ask(name: str) -> None:
            await world.views._answer(("traffic", name), lambda: world.views.traffic(name))

        for number in range(300):
            with pytest.raises(NotFoundError):
                await ask(f"none{number}")
        assert len(world.views._asking) <= 65

    run(check)
