"""Log lines of an app as the API gives them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import httpx
from fastapi import FastAPI

from bedstone.errors import Error
from bedstone.model.messages import Command, LogLine
from bedstone.model.resources import App, Instance
from bedstone.model.spec import AppSpec, WorkloadSpec
from bedstone.server import api
from bedstone.server.auth import Principal
from bedstone.server.lines import Lines, page

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def line(seen: float, source: str, **fields: Any) -> LogLine:
    return LogLine(time=seen, source=source, text=json.dumps(fields))


def test_lines_are_structured_and_the_newest_oldest_first() -> None:
    found = [line(10.0 + n, "web/web-1", level="WARN", msg=f"m{n}", time=9.5 + n) for n in range(5)]
    answer = page("bank", "", found, 2)
    assert answer.truncated
    assert [(it.text, it.time) for it in answer.items] == [("m3", 12.5), ("m4", 13.5)]
    (first, _) = answer.items
    assert (first.app, first.workload, first.instance) == ("bank", "web", "web-1")
    assert first.level == "warning"
    assert first.fields["msg"] == "m3"
    assert not page("bank", "", found, 5).truncated


def test_a_workload_that_was_asked_for_names_its_lines() -> None:
    (found,) = page("bank", "web", [line(1.0, "web-1", trace_id=TRACE, span_id="s")], 5).items
    assert (found.workload, found.instance) == ("web", "web-1")
    assert (found.trace, found.span) == (TRACE, "s")


def test_lines_of_several_instances_are_by_time_and_each_keeps_its_order() -> None:
    """The file says when a line was seen, to the second; a line may say it better itself."""
    found = [
        line(11.0, "web/web-1", msg="a", time=10.1),
        LogLine(time=11.0, source="web/web-1", text="Traceback of a"),
        line(11.0, "web/web-1", msg="c", time=10.5),
        line(11.0, "web/web-1", msg="d", time=10.4),  # written by a thread, a moment late
        line(11.0, "risk/risk-1", msg="b", time=10.3),
        LogLine(time=12.0, source="risk/risk-1", text="e"),
        LogLine(time=300.0, source="risk/risk-1", text="long after"),
        line(301.0, "risk/risk-1", msg="a clock that is far off", time=1.0),
    ]
    assert [it.text for it in page("bank", "", found, 50).items] == [
        "a",
        "Traceback of a",
        "b",
        "e",
        "c",
        "d",
        "long after",
        "a clock that is far off",
    ]


def test_the_route_asks_the_nodes_for_what_matches() -> None:
    """Over the real route, with nodes that answer as told."""
    asked: list[tuple[Sequence[str], Command]] = []

    class Picture:
        def get(self, _kind: type, key: str) -> App | None:
            spec = AppSpec(app="bank", workloads={"web": WorkloadSpec(command=("web",))})
            return App(name="bank", spec=spec) if key == "apps/bank" else None

        def of(self, _kind: type, _app: str) -> list[Instance]:
            return [Instance(app="bank", workload="web", name="web-1", node="n1", revision="r")]

        def nodes(self) -> dict[str, object]:
            return {}

    class Loop:
        snapshot = Picture()

    class Nodes:
        async def lines(
            self, nodes: Sequence[str], command: Command
        ) -> AsyncGenerator[LogLine, None]:
            asked.append((nodes, command))
            yield line(1.0, "web-1", msg="paid", trace_id=TRACE)

    app = FastAPI()
    app.dependency_overrides[api._principal] = lambda: Principal("ann", "reader", local=False)

    @app.exception_handler(Error)
    async def known(_: Any, error: Exception) -> Any:
        assert isinstance(error, Error)
        return api._answer(error)

    Lines(Loop(), Nodes()).add_routes(app)  # type: ignore[arg-type]

    async def run() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            query = f"trace={TRACE}&level=WARN&text=x&since=1&until=2&limit=7&workload=web"
            answer = await client.get(f"/v1/apps/bank/lines?{query}")
            assert answer.status_code == 200, answer.text
            assert [it["text"] for it in answer.json()["items"]] == ["paid"]
            for path, status in (
                ("other/lines", 404),
                ("bank/lines?workload=no", 404),
                ("bank/lines?level=loud", 422),
            ):
                assert (await client.get(f"/v1/apps/{path}")).status_code == status

    asyncio.run(run())
    ((nodes, command),) = asked
    assert nodes == ["n1"]
    assert (command.subject, command.since, command.until) == ("bank/default/web/", 1.0, 2.0)
    assert (command.trace, command.level, command.text) == (TRACE, "warning", "x")
    assert command.tail == 8, "one more, to know whether there are more"
