"""A server that pretends: the API's paths, over `World`, with the console's own files and headers.

python -m tests.e2e.console.fake.server --port 8099 [--workloads 500] [--role reader]
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from pydantic import BaseModel
from tests.e2e.console.fake import records, series
from tests.e2e.console.fake.world import World

from bedstone.console.headers import secured
from bedstone.model.alerts import AlertHistory, AlertList, Silence, SilenceList, SilenceRequest
from bedstone.model.api import (
    ApplyResult,
    Problem,
    RepairRequest,
    RepairResult,
    RetryRequest,
    TransactionDetail,
    TransactionList,
)
from bedstone.model.monitoring import (
    ChangeList,
    ChangeRecord,
    ConsoleSession,
    Graph,
    Overview,
    RollbackRequest,
    ScaleRequest,
    Seconds,
    Tick,
    Traffic,
    UndoRequest,
    WorkloadLine,
    WorkloadList,
)
from bedstone.model.traces import LogPage, TraceDetail, TraceList

STATIC = Path(__file__).parents[4] / "src/bedstone/console/static"
CSRF = "pretended"


class Refused(Exception):
    def __init__(self, status: int, code: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.problem = Problem(code=code, message=message, hint=hint)


def lines(items: AsyncIterator[BaseModel]) -> StreamingResponse:
    async def encoded() -> AsyncIterator[bytes]:
        async for item in items:
            yield item.model_dump_json().encode() + b"\n"

    return StreamingResponse(encoded(), media_type="application/x-ndjson")


def build(world: World, *, role: str = "operator") -> FastAPI:
    """The application."""
    app = FastAPI(openapi_url=None)
    silences: list[Silence] = []

    def now() -> int:
        return int(time.time()) - 1

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return JSONResponse(error.problem.model_dump(), error.status)

    @app.middleware("http")
    async def guarded(request: Request, call: Any) -> Response:
        if request.method not in {"GET", "HEAD"} and request.headers.get("x-bedstone-csrf") != CSRF:
            return JSONResponse(Problem(code="denied", message="no token").model_dump(), 403)
        if request.method not in {"GET", "HEAD"} and role == "reader":
            return JSONResponse(
                Problem(code="denied", message="a reader changes nothing").model_dump(), 403
            )
        answered: Response = await call(request)
        return answered

    def known(name: str, workload: str = "") -> None:
        if name not in world.apps() or (workload and workload not in world.apps()[name]):
            raise Refused(
                404, "not_found", f"there is no {workload or 'app'} {name}", "see bedstone ps"
            )

    @app.get("/v1/console/session")
    async def session() -> ConsoleSession:
        return ConsoleSession.model_validate(
            {
                "who": "console:ann",
                "role": role,
                "domain": "bank.local",
                "version": "0.2.0",
                "csrf": CSRF,
            }
        )

    @app.get("/v1/ticks")
    async def ticks() -> StreamingResponse:
        async def each() -> AsyncIterator[Tick]:
            while True:
                second = now()
                missing = world.missing(second)
                yield Tick(second=second, complete=not missing, missing=missing)
                await asyncio.sleep(1 - time.time() % 1 + 0.02)

        return lines(each())

    @app.get("/v1/seconds")
    async def seconds(start: float, end: float) -> Seconds:
        span = range(int(start), int(end) + 1) if end - start < 4000 else range(0)
        bad = {second: missing for second in span if (missing := world.missing(second))}
        return Seconds(start=int(start), end=int(end), incomplete=bad)

    @app.get("/v1/overview")
    async def overview() -> Overview:
        return world.overview(now())

    @app.get("/v1/workloads")
    async def workloads(app: str = "", search: str = "") -> WorkloadList:
        return world.listed(now(), app, search)

    @app.get("/v1/apps/{name}/workloads/{workload}")
    async def workload(name: str, workload: str) -> WorkloadLine:
        known(name, workload)
        return world.workload(name, workload, now(), whole=True)

    def noted(action: str, target: str, app_name: str, detail: str = "") -> ApplyResult:
        world.changed.append(
            ChangeRecord(
                at=time.time(),
                who="console:ann",
                action=action,
                target=target,
                app=app_name,
                detail=detail,
            )
        )
        return ApplyResult(app=app_name, generation=15)

    @app.post("/v1/apps/{name}/workloads/{workload}/restart")
    async def restart(name: str, workload: str) -> ApplyResult:
        known(name, workload)
        return noted("restart", f"workload {workload}", name)

    @app.post("/v1/apps/{name}/workloads/{workload}/scale")
    async def scale(name: str, workload: str, request: ScaleRequest) -> ApplyResult:
        if request.replicas > 20:
            raise Refused(
                422,
                "invalid",
                f"got {request.replicas} replicas, expected at most 20",
                "add a node first",
            )
        return noted("scale", f"workload {workload}", name, f"to {request.replicas}")

    @app.post("/v1/apps/{name}/workloads/{workload}/rollback")
    async def rollback(name: str, workload: str, request: RollbackRequest) -> ApplyResult:
        return noted(
            "rollback", f"workload {workload}", name, f"as generation {request.generation}"
        )

    @app.post("/v1/apps/{name}/undo")
    async def undo(name: str, request: UndoRequest) -> ApplyResult:
        return noted("undo", f"app {name}", name, f"generation {request.generation}")

    @app.get("/v1/apps/{name}/graph")
    async def graph(name: str, at: float | None = None, window: int = 10) -> Graph:
        known(name)
        return world.graph(name, int(at) if at else now(), window)

    @app.get("/v1/apps/{name}/traffic")
    async def traffic(name: str) -> Traffic:
        known(name)
        return world.traffic(name, now())

    @app.get("/v1/apps/{name}/tap")
    async def tap(name: str, workload: str = "", errors: bool = False) -> StreamingResponse:
        async def each() -> AsyncIterator[BaseModel]:
            index = 0
            while True:
                index += 1
                record = records.tap(time.time(), index)
                if (not errors or record.kind) and (
                    not workload or workload in {record.source, record.target}
                ):
                    yield record
                await asyncio.sleep(0.05)

        return lines(each())

    @app.get("/v1/changes")
    async def changes(app: str = "", before: float | None = None, limit: int = 100) -> ChangeList:
        found = [
            c
            for c in world.changes(now())
            if (not app or c.app == app) and (not before or c.at < before)
        ]
        return ChangeList(items=tuple(found[:limit]))

    @app.get("/v1/traces")
    async def traces(
        request: Request,
        errors: bool = False,
        service: str = "",
        name: str = "",
        before: float | None = None,
        limit: int = 50,
    ) -> TraceList:
        if world.empty:
            return TraceList()
        least = float(request.query_params.get("min", 0))
        found = list[Any]()
        index = int(before or time.time()) - 1
        while len(found) < limit and index > time.time() - 4000:
            summary = records.trace(index).summary
            if (
                (not errors or summary.errors)
                and summary.seconds >= least
                and (not service or service in summary.services)
                and name in summary.name
            ):
                found.append(summary)
            index -= 1
        return TraceList(items=tuple(found), next=float(index) if len(found) == limit else None)

    @app.get("/v1/traces/{trace}")
    async def trace(trace: str) -> TraceDetail:
        for index in range(int(time.time()), int(time.time()) - 7200, -1):
            if records.trace_id(index) == trace:
                return records.trace(index)
        raise Refused(
            404,
            "not_found",
            f"there is no trace {trace}",
            "it may have been sampled away: errors and slow ones are kept",
        )

    @app.get("/v1/apps/{name}/lines")
    async def structured(
        name: str,
        workload: str = "",
        trace: str = "",
        level: str = "",
        text: str = "",
        since: float | None = None,
        limit: int = 200,
    ) -> LogPage:
        end = now()
        found = (
            records.lines(name, workload or "accounts", max(end - limit // 2, int(since or 0)), end)
            if not world.empty
            else []
        )
        found = [
            x
            for x in found
            if (not since or x.time > since) and (not level or x.level == level) and text in x.text
        ]
        if trace:
            found = [x for x in records.lines(name, "accounts", end - 300, end) if x.trace == trace]
        return LogPage(items=tuple(found[-limit:]), truncated=len(found) > limit)

    @app.get("/v1/alerts")
    async def alerts() -> AlertList:
        return AlertList(
            second=now(), items=() if world.empty else tuple(records.alerts(now(), silences))
        )

    @app.get("/v1/alerts/history")
    async def history(app: str = "", rule: str = "", limit: int = 100) -> AlertHistory:
        found = [] if world.empty else records.history(now())
        return AlertHistory(
            items=tuple(
                x for x in found if (not app or x.app == app) and (not rule or x.rule == rule)
            )
        )

    @app.get("/v1/silences")
    async def silenced() -> SilenceList:
        return SilenceList(items=tuple(silences))

    @app.post("/v1/silences")
    async def silence(request: SilenceRequest) -> Silence:
        made = Silence(
            id=f"s{len(silences) + 1}",
            labels=request.labels,
            until=time.time() + request.seconds,
            why=request.why,
            who="console:ann",
            created_at=time.time(),
        )
        silences.append(made)
        return made

    @app.delete("/v1/silences/{name}")
    async def unsilence(name: str) -> dict[str, str]:
        silences[:] = [s for s in silences if s.id != name]
        return {"deleted": name}

    @app.get("/v1/apps/{name}/transactions")
    async def transactions(
        name: str, state: str = "", stuck: bool = False, after: str = "", limit: int = 100
    ) -> TransactionList:
        if name != "bank":
            raise Refused(
                404,
                "not_found",
                f"app {name} declares no transactions",
                "add transactions: {database: NAME} to its manifest",
            )
        found = [
            t
            for t in records.transactions(now())
            if (not state or t.state == state) and (not stuck or t.stuck)
        ]
        return TransactionList(app=name, items=tuple(found[:limit]))

    def one(xid: str) -> TransactionDetail:
        found = records.transaction(now(), xid)
        if found is None:
            raise Refused(404, "not_found", f"there is no transaction {xid}", "see bedstone tx ls")
        return found

    @app.get("/v1/apps/{name}/transactions/{xid}")
    async def transaction(name: str, xid: str) -> TransactionDetail:
        return one(xid)

    @app.post("/v1/apps/{name}/transactions/{xid}/retry")
    async def retry(name: str, xid: str, request: RetryRequest) -> TransactionDetail:
        noted("retry", f"transaction {xid}", name, request.why)
        return one(xid)

    @app.post("/v1/apps/{name}/transactions/{xid}/repair")
    async def repair(name: str, xid: str, request: RepairRequest) -> RepairResult:
        noted("repair", f"transaction {xid} branch {request.branch}", name, request.why)
        return RepairResult(outcome="repaired", detail=one(xid))

    _series(app, world)

    @app.get("/{path:path}", include_in_schema=False)
    async def files(path: str) -> FileResponse:
        found = STATIC / path
        return FileResponse(
            found if path and found.is_file() else STATIC / "index.html",
            headers={"cache-control": "no-cache"},
        )

    return app


def _series(app: FastAPI, world: World) -> None:
    def good(data: Any) -> dict[str, Any]:
        return {"status": "success", "data": data}

    @app.get("/prometheus/api/v1/query_range")
    async def query_range(query: str, start: float, end: float, step: float) -> Response:
        if query.count("(") != query.count(")"):
            return JSONResponse(
                {
                    "status": "error",
                    "errorType": "bad_data",
                    "error": "1:12: parse error: unclosed left parenthesis",
                },
                400,
            )
        return JSONResponse(
            good({"resultType": "matrix", "result": series.matrix(world, query, start, end, step)})
        )

    @app.get("/prometheus/api/v1/query")
    async def query(query: str, time: float) -> dict[str, Any]:
        result = [
            {"metric": x, "value": [time, f"{series.value(query, x, time):.6g}"]}
            for x in series.labelled(world, query)
        ]
        return good({"resultType": "vector", "result": result})

    @app.get("/prometheus/api/v1/labels")
    async def labels() -> dict[str, Any]:
        return good(
            [
                "__name__",
                "app",
                "callee",
                "caller",
                "cell",
                "code",
                "instance",
                "kind",
                "node",
                "revision",
                "workload",
            ]
        )

    @app.get("/prometheus/api/v1/label/{name}/values")
    async def values(name: str) -> dict[str, Any]:
        every = {
            "__name__": series.METRICS,
            "workload": sorted({w for uses in world.apps().values() for w in uses}),
            "app": sorted(world.apps()),
        }
        return good(every.get(name, ["one", "two"]))

    @app.get("/prometheus/api/v1/metadata")
    async def metadata() -> dict[str, Any]:
        from bedstone.telemetry.names import CATALOGUE

        return good({m.name: [{"type": m.kind, "help": m.help, "unit": m.unit}] for m in CATALOGUE})

    @app.get("/prometheus/api/v1/query_exemplars")
    async def exemplars(query: str, start: float, end: float) -> dict[str, Any]:
        found = [
            {"labels": {"trace_id": records.trace_id(second)}, "value": str(records.trace(second).summary.seconds), "timestamp": second}
            for second in range(int(end), int(start), -1)
            if records.trace(second).summary.kept != "sampled"
        ][:12] if "seconds" in query else []  # fmt: skip
        return good([{"seriesLabels": {}, "exemplars": found}] if found else [])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--workloads", type=int, default=0)
    parser.add_argument("--role", default="operator")
    parser.add_argument("--well", action="store_true")
    parser.add_argument("--empty", action="store_true")
    given = parser.parse_args()
    app = build(
        World(workloads=given.workloads, well=given.well, empty=given.empty), role=given.role
    )

    async def secure(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, secured(send) if scope["type"] == "http" else send)

    uvicorn.run(secure, host="127.0.0.1", port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
