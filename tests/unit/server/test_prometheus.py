"""Prometheus's HTTP API over a reader in memory: what stock clients see."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import httpx
import pytest
from fastapi import FastAPI

from bedstone.control.monitoring.promql import Engine, Limits, check
from bedstone.control.monitoring.reading import Matcher, Selection
from bedstone.server import api
from bedstone.server.auth import Principal
from bedstone.server.prometheus import Exemplar, ExemplarSeries, Prometheus
from bedstone.testing.series import START, MemoryReader

NOW = START + 120


class World:
    """The routes, and what they read."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.memory: MemoryReader = MemoryReader()
        self.remembered = Remembered()
        engine = Engine(self.memory, limits)
        self.app = FastAPI()
        self.app.dependency_overrides[api._principal] = lambda: Principal("ann", "reader")
        Prometheus(engine, self.remembered, clock=lambda: NOW + 0.7).routes(self.app)

    def fill(self, seconds: int = 121) -> None:
        for offset in range(seconds):
            for code in ("2xx", "5xx"):
                self.memory.put(
                    "bedstone_requests_total",
                    {"app": "bank", "code": code},
                    "counter",
                    START + offset,
                    2.0 * offset,
                )
            self.memory.put("up", {}, "gauge", START + offset, 1.5)
            missing = {"local": "no answer"} if offset == 100 else None
            self.memory.finish(START + offset, missing)

    def ask(self, path: str, **parameters: str | list[str]) -> httpx.Response:
        return self._send("GET", path, parameters)

    def post(self, path: str, **parameters: str | list[str]) -> httpx.Response:
        return self._send("POST", path, parameters)

    def _send(
        self, method: str, path: str, parameters: Mapping[str, str | list[str]]
    ) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://b") as client:
                url = path if path.startswith("/") else f"/prometheus/api/v1/{path}"
                if method == "POST":
                    return await client.post(url, data=parameters)
                return await client.get(url, params=parameters)

        return asyncio.run(ask())

    def data(self, path: str, **parameters: str | list[str]) -> Any:
        response = self.ask(path, **parameters)
        assert response.status_code == 200, response.text
        body = response.json()
        assert body["status"] == "success"
        return body["data"]


class Remembered:
    """One observation with its trace."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def exemplars(
        self, selectors: Sequence[Sequence[Matcher]], start: float, end: float
    ) -> Sequence[ExemplarSeries]:
        self.asked.append((selectors, start, end))
        return [
            ExemplarSeries({"__name__": "x_bucket"}, (Exemplar({"trace_id": "ab"}, 0.25, 7.5),))
        ]


@pytest.fixture
def world() -> World:
    world = World()
    world.fill()
    return world


def test_an_instant_query_gives_a_vector_with_text_values(world: World) -> None:
    data = world.data(
        "query", query="rate(bedstone_requests_total{code='5xx'}[10s])", time=f"{NOW}"
    )
    assert data == {
        "resultType": "vector",
        "result": [{"metric": {"app": "bank", "code": "5xx"}, "value": [NOW, "2"]}],
    }


def test_a_query_without_a_time_is_of_the_last_finished_second(world: World) -> None:
    assert world.data("query", query="up")["result"][0]["value"] == [NOW, "1.5"]
    late = world.data("query", query="up", time=f"{NOW + 3}.25")
    assert late["result"][0]["value"] == [NOW + 3, "1.5"]
    assert world.data("query", query="up", time=f"{NOW + 11}")["result"] == []


def test_times_are_numbers_or_rfc_3339(world: World) -> None:
    for when in (f"{NOW}", f"{NOW}.9", "2027-01-15T08:02:00Z", "2027-01-15T09:02:00+01:00"):
        assert world.data("query", query="up", time=when)["result"][0]["value"][0] == NOW


def test_scalars_and_strings(world: World) -> None:
    assert world.data("query", query="0/0", time="7") == {
        "resultType": "scalar",
        "result": [7, "NaN"],
    }
    assert world.data("query", query="1e21", time="7")["result"] == [7, "1" + "0" * 21]
    assert world.data("query", query='"a\\"b"', time="7") == {
        "resultType": "string",
        "result": [7, 'a"b'],
    }


def test_a_range_query_gives_a_matrix(world: World) -> None:
    data = world.data("query_range", query="up", start=f"{NOW - 20}", end=f"{NOW}", step="10s")
    values = [[NOW - 20, "1.5"], [NOW - 10, "1.5"], [NOW, "1.5"]]
    assert data == {
        "resultType": "matrix",
        "result": [{"metric": {"__name__": "up"}, "values": values}],
    }


def test_a_window_alone_gives_its_points(world: World) -> None:
    data = world.data("query", query="up[3s]", time=f"{NOW}")
    assert data["resultType"] == "matrix"
    assert [at for at, _ in data["result"][0]["values"]] == [NOW - 2, NOW - 1, NOW]


def test_queries_may_be_posted(world: World) -> None:
    response = world.post("query", query="up", time=f"{NOW}")
    assert response.json() == world.ask("query", query="up", time=f"{NOW}").json()
    response = world.post("series", query="", start=f"{NOW}", **{"match[]": ["up"]})
    assert response.json()["data"] == [{"__name__": "up"}]


def test_incomplete_seconds_are_a_warning(world: World) -> None:
    response = world.ask("query", query="increase(up[60s])", time=f"{NOW}").json()
    assert response["warnings"] == [
        f"1 of the seconds that were read are incomplete: {START + 100}: local (no answer)"
    ]
    assert "warnings" not in world.ask("query", query="up", time=f"{NOW}").json()


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("query", {}),
        ("query", {"query": "sum("}),
        ("query", {"query": "limitk(1, up)"}),
        ("query", {"query": "up", "time": "yesterday"}),
        ("query", {"query": "up", "time": "nan"}),
        ("query_range", {"query": "up", "start": "1", "end": "2"}),
        ("query_range", {"query": "up", "start": "2", "end": "1", "step": "1"}),
        ("query_range", {"query": "up", "start": "1", "end": "2", "step": "0"}),
        ("query_range", {"query": "up", "start": "1", "end": "2", "step": "0.5"}),
        ("query_range", {"query": "up", "start": "1", "end": "2", "step": "x"}),
        ("query_range", {"query": "up", "end": "2", "step": "1"}),
        ("query_range", {"query": "up", "start": "1", "end": "2", "step": "9" * 30 + "y"}),
        ("query_range", {"query": "up", "start": "1", "end": "2", "step": "9" * 400}),
        ("query", {"query": "up @ 1e18"}),
        ("query", {"query": "NaN offset Inf"}),
        ("query", {"query": "1" + "+1" * 9000}),
        ("series", {}),
        ("series", {"match[]": "sum(up)"}),
        ("labels", {"match[]": "up[5s]"}),
        ("labels", {"limit": "many"}),
    ],
)
def test_wrong_parameters_are_bad_data(world: World, path: str, parameters: dict[str, str]) -> None:
    response = world.ask(path, **parameters)
    assert (response.status_code, response.json()["errorType"]) == (400, "bad_data")
    assert response.json()["status"] == "error"
    assert response.json()["error"]


def test_what_cannot_be_executed_is_told_from_what_is_malformed(world: World) -> None:
    response = world.ask("query", query='{__name__=~".+"} + on() up', time=f"{NOW}")
    assert (response.status_code, response.json()["errorType"]) == (422, "execution")


def test_a_query_over_too_much_is_refused() -> None:
    world = World(Limits(series=2))
    world.fill()
    response = world.ask("query", query='{app=~".*",__name__=~".+"}', time=f"{NOW}")
    assert (response.status_code, response.json()["errorType"]) == (422, "execution")
    assert "selects 3 series, expected at most 2" in response.json()["error"]


def test_a_query_that_takes_too_long_is_ended() -> None:
    world = World(Limits(seconds=0.0))
    world.fill(3)
    response = world.ask("query", query="up", time=f"{START}")
    assert (response.status_code, response.json()["errorType"]) == (503, "timeout")


class Slow(MemoryReader):
    """A reader that answers once it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.let = threading.Event(), threading.Event()

    def select(
        self,
        matchers: Sequence[Matcher],
        start: int,
        end: int,
        resolution: int,
        aggregate: Literal["last", "min", "max", "avg"] = "last",
    ) -> Selection:
        self.asked.set()
        assert self.let.wait(20)
        return super().select(matchers, start, end, resolution, aggregate)


def test_slow_queries_keep_nobody_else_waiting() -> None:
    world = World()
    world.memory = slow = Slow()
    app = FastAPI()
    app.dependency_overrides = world.app.dependency_overrides
    Prometheus(Engine(slow, Limits(queries=2)), clock=lambda: float(NOW)).routes(app)
    world.fill(3)

    async def run() -> None:
        transport = httpx.ASGITransport(app)
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://b/prometheus/api/v1") as client,
            asyncio.TaskGroup() as group,
        ):
            queries = [
                group.create_task(client.get("query", params={"query": "up", "time": f"{START}"}))
                for _ in range(5)
            ]
            await asyncio.to_thread(slow.asked.wait, 20)
            found = await client.get("labels", params={"start": f"{START}"})
            assert found.json()["data"] == ["__name__", "app", "code"]
            assert not any(query.done() for query in queries)
            slow.let.set()
        assert all(query.result().json()["data"]["result"] for query in queries)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("query", {"query": "up"}),
        ("query_range", {"query": "up", "start": "1", "end": "2", "step": "1"}),
        ("query_exemplars", {"query": "up"}),
        ("format_query", {"query": "up"}),
        ("series", {"match[]": "up"}),
        ("labels", {"match[]": "up"}),
        ("label/a/values", {"match[]": "up"}),
    ],
)
def test_no_expression_of_a_reader_is_looked_at_on_the_event_loop(
    world: World, path: str, parameters: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiling what a short one asks for can take seconds."""
    looked: list[str] = []

    def look(expression: str) -> None:
        looked.append(threading.current_thread().name)
        check(expression)

    monkeypatch.setattr("bedstone.server.prometheus.check", look)
    assert world.ask(path, **parameters).status_code == 200
    assert looked
    assert not any(name == threading.main_thread().name for name in looked)


def test_series_labels_and_values(world: World) -> None:
    assert world.data("labels") == ["__name__", "app", "code"]
    assert world.data("labels", **{"match[]": "up"}) == ["__name__"]
    assert world.data("label/code/values") == ["2xx", "5xx"]
    assert world.data("label/__name__/values") == ["bedstone_requests_total", "up"]
    assert world.data("label/nothing/values") == []
    found = world.data("series", **{"match[]": ['{code="5xx"}', "up", "up"]})
    assert sorted(found, key=str) == [
        {"__name__": "bedstone_requests_total", "app": "bank", "code": "5xx"},
        {"__name__": "up"},
    ]
    assert world.data("series", **{"match[]": "up", "start": "1", "end": "9"}) == []


def test_a_limit_is_kept_and_said(world: World) -> None:
    response = world.ask("label/code/values", limit="1").json()
    assert response["data"] == ["2xx"]
    assert response["warnings"] == ["results truncated due to limit"]


def test_metadata_tells_kinds_of_ours_and_of_others(world: World) -> None:
    data = world.data("metadata")
    assert data["bedstone_request_seconds"][0]["type"] == "histogram"
    assert data["bedstone_request_seconds"][0]["unit"] == "seconds"
    assert data["up"][0]["type"] == "gauge"
    assert list(world.data("metadata", metric="up")) == ["up"]
    assert len(world.data("metadata", limit="2")) == 2


def test_exemplars_are_asked_by_the_selectors_of_an_expression(world: World) -> None:
    data = world.data(
        "query_exemplars", query='sum(rate(x_bucket{a="b"}[1m])) / up', start="5", end="9"
    )
    assert data == [
        {
            "seriesLabels": {"__name__": "x_bucket"},
            "exemplars": [{"labels": {"trace_id": "ab"}, "value": "0.25", "timestamp": 7.5}],
        }
    ]
    selectors = [
        [Matcher("__name__", "=", "x_bucket"), Matcher("a", "=", "b")],
        [Matcher("__name__", "=", "up")],
    ]
    assert world.remembered.asked == [(selectors, 5.0, 9.0)]


def test_the_server_says_what_it_is(world: World) -> None:
    assert world.data("status/buildinfo")["application"] == "Bedstone"
    assert world.data("status/runtimeinfo")["timeSeriesCount"] == 3
    assert world.ask("/prometheus/-/healthy").status_code == 200
    assert world.data("format_query", query="sum( up )") == "sum(up)"


def test_metrics_are_of_the_last_complete_second(world: World) -> None:
    world.memory.put("up", {}, "gauge", NOW + 1, 9.0)
    world.memory.finish(NOW + 1, {"local": "no answer"})
    response = world.ask("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert response.text.splitlines()[-1] == "up 1.5"
    assert 'bedstone_requests_total{app="bank",code="5xx"} 240' in response.text


def test_metrics_of_an_empty_store_are_empty() -> None:
    assert World().ask("/metrics").text == ""
