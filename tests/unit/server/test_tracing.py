"""What the server makes of nodes' spans: who may say what, a disk that fails, and the API."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from bedstone.control.monitoring.reading import Matcher
from bedstone.control.monitoring.traces.sampler import Decided
from bedstone.control.monitoring.traces.spans import Span, encode
from bedstone.control.monitoring.traces.store import Query, TraceStore
from bedstone.model.messages import Command, Reply, Spans
from bedstone.model.monitoring_spec import MonitoringSpec
from bedstone.model.resources import App, Instance, Resource
from bedstone.model.spec import AppSpec, WorkloadSpec
from bedstone.server import api, tracing
from bedstone.server.auth import Principal
from bedstone.server.tracing import TraceCounts, TraceExemplars, Tracing
from bedstone.testing.spans import span, trace_id


class Picture:
    """What is declared and placed."""

    def __init__(self) -> None:
        self.resources: dict[str, Resource] = {}

    def get(self, _kind: type, key: str) -> Resource | None:
        return self.resources.get(key)

    def apps(self) -> list[str]:
        return [r.name for r in self.resources.values() if isinstance(r, App)]

    def nodes(self) -> dict[str, None]:
        return {"n1": None}


class Nodes:
    """One node with a session."""

    def __init__(self) -> None:
        self.snapshot = Picture()
        self.told_spans: Callable[[str, Spans], None] = lambda _node, _spans: None
        self.told: list[str] = []
        self.noted: list[tuple[str, ...]] = []
        self.session = object()

    def get(self, _node: str) -> object:
        return self.session

    async def call(self, _node: str, command: Command) -> Reply:
        self.told.append(command.subject)
        return Reply(id=command.id, final=True)


def message(*spans: Span, dropped: int = 0) -> Spans:
    body = base64.b64encode(zlib.compress(encode(spans))).decode()
    return Spans(body=body, dropped=dropped)


Scene = Callable[[Tracing, Nodes, httpx.AsyncClient], Awaitable[None]]


def served(directory: Path, monkeypatch: pytest.MonkeyPatch, scene: Scene) -> None:
    """Run a scene with a running `Tracing` and its API."""
    monkeypatch.setattr(tracing, "PERIOD", 0.01)
    monkeypatch.setattr(tracing, "PAUSE", 0.01)

    @contextlib.asynccontextmanager
    async def running(nodes: Nodes) -> AsyncIterator[Tracing]:
        async def noted(*record: str) -> None:
            nodes.noted.append(record)

        made = Tracing(directory, nodes, noted)  # type: ignore[arg-type]
        task = asyncio.ensure_future(made.run())
        try:
            yield made
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def main() -> None:
        nodes = Nodes()
        async with running(nodes) as made:
            app = FastAPI()
            api._handle_errors(app)

            @app.middleware("http")
            async def known(request: Request, call: Any) -> Any:
                reads = request.headers.get("role") == "reader"
                request.state.principal = Principal("ann", "reader" if reads else "operator")
                return await call(request)

            made.add_routes(app)
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://s/v1") as client:
                await scene(made, nodes, client)

    asyncio.run(main())


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110 - it asks over HTTP
            await asyncio.sleep(0.01)


def test_spans_of_a_node_are_found_through_the_api(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(made: Tracing, nodes: Nodes, client: httpx.AsyncClient) -> None:
        nodes.told_spans("n1", message(span(1, 1, error=True), span(1, 2, 1), dropped=3))

        async def written() -> bool:
            return bool((await client.get("/traces")).json().get("items"))

        await until(written)
        (item,) = (await client.get("/traces", params={"errors": True})).json()["items"]
        assert (item["trace"], item["kept"], item["spans"]) == (trace_id(1).hex(), "error", 2)
        detail = (await client.get(f"/traces/{item['trace']}", headers={"role": "reader"})).json()
        assert [one["node"] for one in detail["spans"]] == ["n1", "n1"]
        assert (await client.get(f"/traces/{'ab' * 16}")).status_code == 404
        assert (await client.get("/traces/xy")).status_code == 422
        assert (await client.get("/traces", params={"limit": 0})).status_code == 422
        assert made.dropped == 3
        counted = dict((await TraceCounts(made).read()).series)
        assert {it.labels: value for it, value in counted.items()} == {
            (("reason", "room"),): 3.0,
            (("reason", "trace"),): 0.0,
            (("reason", "export"),): 0.0,
        }

    served(tmp_path, monkeypatch, scene)


def test_a_node_says_nothing_of_instances_that_are_placed_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(made: Tracing, nodes: Nodes, client: httpx.AsyncClient) -> None:
        for name, node in (("w1", "n1"), ("w2", "n2")):
            placed = Instance(app="bank", workload="web", name=name, node=node, revision="r")
            nodes.snapshot.resources[placed.key] = placed
        spans = [span(n, n, instance=f"w{n}", error=True) for n in (1, 2)]
        made.take("n1", message(*spans))
        made.take("n1", Spans(body="no base64"))
        made.take("n1", Spans(body=base64.b64encode(b"not packed").decode()))
        made.take("n1", Spans(body=base64.b64encode(zlib.compress(b"\xff\xff")).decode()))

        async def written() -> bool:
            return bool((await client.get("/traces")).json().get("items"))

        await until(written)
        (item,) = (await client.get("/traces")).json()["items"]
        assert item["trace"] == trace_id(1).hex()
        wanted = [[Matcher("instance", "=", "w1")]]
        assert TraceExemplars(made.exemplars).exemplars(wanted, 0, 4e9) == []

    served(tmp_path, monkeypatch, scene)


def test_a_disk_that_does_not_take_traces_is_said_and_nothing_is_lost_when_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "telemetry"
    blocked.write_text("a file where the directory should be")

    async def scene(made: Tracing, nodes: Nodes, client: httpx.AsyncClient) -> None:
        nodes.told_spans("n1", message(span(1, 1, error=True)))

        async def said() -> bool:
            return bool(made.trouble)

        await until(said)
        answer = await client.get("/traces")
        assert answer.status_code == 503
        assert "no traces yet" in answer.json()["message"]
        await asyncio.sleep(1.2)  # meanwhile the trace is decided
        blocked.unlink()

        async def written() -> bool:
            return bool((await client.get("/traces")).json().get("items"))

        await until(written)
        assert made.trouble == ""

    served(blocked, monkeypatch, scene)


def test_the_manifests_slow_is_the_apps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(made: Tracing, nodes: Nodes, client: httpx.AsyncClient) -> None:
        monitoring = MonitoringSpec.model_validate({"traces": {"slow": "5ms"}})
        spec = AppSpec(
            app="bank", workloads={"web": WorkloadSpec(command=("w",))}, monitoring=monitoring
        )
        nodes.snapshot.resources["apps/bank"] = App(name="bank", spec=spec)
        await asyncio.sleep(0.05)
        nodes.told_spans("n1", message(span(1, 1, seconds=0.02)))

        async def written() -> bool:
            return bool((await client.get("/traces")).json().get("items"))

        await until(written)
        assert (await client.get("/traces")).json()["items"][0]["kept"] == "slow"

    served(tmp_path, monkeypatch, scene)


def test_a_share_is_told_to_each_session_once_by_an_operator_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(_: Tracing, nodes: Nodes, client: httpx.AsyncClient) -> None:
        for share in (1.5, -0.1, "x"):
            assert (await client.put("/sampling", json={"share": share})).status_code == 422
        as_reader = {"role": "reader"}
        refused = await client.put("/sampling", json={"share": 0.5}, headers=as_reader)
        assert refused.status_code == 403
        assert nodes.told == []
        assert (await client.put("/sampling", json={"share": 0.25})).json() == {"share": 0.25}
        await asyncio.sleep(0.05)
        assert nodes.told == ["0.25"]
        nodes.session = object()

        async def again() -> bool:
            return nodes.told == ["0.25", "0.25"]

        await until(again)
        await client.put("/sampling", json={"share": None})
        assert nodes.told[-1] == ""
        assert nodes.noted == [
            ("ann", "sampling", "traces", "25%"),
            ("ann", "sampling", "traces", "as declared"),
        ]

    served(tmp_path, monkeypatch, scene)


def test_what_waits_is_written_when_the_server_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(made: Tracing, nodes: Nodes, client: httpx.AsyncClient) -> None:
        del made, client
        await asyncio.sleep(0.1)
        nodes.told_spans("n1", message(span(1, error=True), span(2)))

    served(tmp_path, monkeypatch, scene)
    store = TraceStore(tmp_path / "traces.sqlite")
    assert {it.trace for it in store.search(Query()).items} == {
        trace_id(1).hex(),
        trace_id(2).hex(),
    }
    store.close()


def test_an_error_of_ours_costs_the_traces_at_hand_and_not_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = TraceStore.write
    failed: list[int] = []

    def fails_once(store: TraceStore, decided: Sequence[Decided], now: float) -> object:
        if decided and not failed:
            failed.append(sum(len(one.spans) for one in decided))
            raise ZeroDivisionError
        return write(store, decided, now)

    async def scene(made: Tracing, nodes: Nodes, client: httpx.AsyncClient) -> None:
        monkeypatch.setattr(TraceStore, "write", fails_once)
        nodes.told_spans("n1", message(span(1, error=True)))

        async def lost() -> bool:
            return bool(failed)

        await until(lost)
        nodes.told_spans("n1", message(span(2, error=True)))

        async def written() -> bool:
            return (await client.get(f"/traces/{trace_id(2).hex()}")).status_code == 200

        await until(written)
        assert (failed, made.dropped) == ([1], 1)

    served(tmp_path, monkeypatch, scene)
