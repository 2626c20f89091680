"""The HTTP API: the routes of `bedstone.model.api`, and the one mapping of errors to answers.

Invariant: who calls is known before anything of a request but its head is looked at.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from bedstone import __version__
from bedstone.console.signins import VISITOR, Visitor
from bedstone.errors import (
    HTTP_STATUS,
    INTERNAL,
    DeniedError,
    Error,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from bedstone.model.api import (
    ApplyRequest,
    ApplyResult,
    AppStatus,
    CallRequest,
    CallResult,
    DomainStatus,
    JoinGrant,
    JoinRequest,
    Problem,
    RepairRequest,
    RepairResult,
    ResourceEntry,
    ResourceList,
    RetryRequest,
    TokenGrant,
    TokenRequest,
    TransactionDetail,
    TransactionList,
)
from bedstone.model.messages import LogLine
from bedstone.model.resources import AuditRecord
from bedstone.server.auth import Principal, authenticate
from bedstone.server.changes import Changes
from bedstone.server.queries import Queries
from bedstone.server.transactions import Transactions
from bedstone.store import Store
from bedstone.telemetry.lines import Filter, checked_level

_log = logging.getLogger(__name__)
_PROBLEMS: dict[int | str, dict[str, object]] = {
    "default": {"model": Problem, "description": "A failure, by code."}
}
NDJSON = "application/x-ndjson"
LIVENESS = "/healthz"
LARGEST_BODY = 16 << 20
AT_ONCE = 64
"""Requests of one token or session at the same time; a stream is one for as long as it is open."""


class _Gate:
    """Lets in only whom we know, with a body of a size that can be held in memory.

    It stands before the routes, because these read a whole body before they ask who sends it.
    """

    def __init__(self, app: ASGIApp, store: Store) -> None:
        self._app = app
        self._store = store
        self._open: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        who = ""
        if scope["type"] == "http" and scope["path"] != LIVENESS:
            request = Request(scope)
            client = request.client.host if request.client else ""
            authorization = request.headers.get("authorization")
            try:
                visitor: Visitor | None = scope.get(VISITOR)
                request.state.principal = (
                    Principal(visitor.who, visitor.role)
                    if visitor
                    else await authenticate(client, authorization, self._store)
                )
                _refuse_large(request)
                if not request.state.principal.local:
                    who = request.state.principal.who
                self._refuse_many(who)
            except Error as error:
                await _answer(error)(scope, receive, send)
                return
        if not who:
            await self._app(scope, receive, send)
            return
        self._open[who] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._open[who] -= 1
            if not self._open[who]:
                del self._open[who]

    def _refuse_many(self, who: str) -> None:
        if self._open[who] >= AT_ONCE:
            raise UnavailableError(
                f"{who} has {AT_ONCE} requests open",
                hint="close some streams first",
                retry_after=1.0,
            )


def _refuse_large(request: Request) -> None:
    if "transfer-encoding" in request.headers:
        raise InvalidError("got a body of unknown length, expected a Content-Length")
    if int(request.headers.get("content-length", 0)) > LARGEST_BODY:
        raise InvalidError(f"the body is too large, expected at most {LARGEST_BODY} bytes")


def _answer(error: Error) -> JSONResponse:
    status = HTTP_STATUS.get(error.code, HTTP_STATUS[INTERNAL])
    headers = {}
    if isinstance(error, DeniedError) and error.message == "no credential":
        status, headers = 401, {"WWW-Authenticate": "Bearer"}
    if isinstance(error, UnavailableError) and error.retry_after:
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    problem = Problem(code=error.code, message=error.message, hint=error.hint)
    return JSONResponse(problem.model_dump(), status, headers)


async def _principal(request: Request) -> Principal:
    principal: Principal = request.state.principal
    return principal


async def _reader(principal: Annotated[Principal, Depends(_principal)]) -> Principal:
    return principal


async def _operator(principal: Annotated[Principal, Depends(_principal)]) -> Principal:
    principal.require("operator")
    return principal


Routes = Callable[[FastAPI], None]
"""Adds the routes of one part."""
Reader = Annotated[Principal, Depends(_reader)]
Operator = Annotated[Principal, Depends(_operator)]
Since = Annotated[float | None, Query(description="Seconds since the epoch.")]
Tail = Annotated[int | None, Query(ge=0, description="At most so many of the last lines.")]
Trace = Annotated[str, Query(description="Only lines that name this trace.")]
Level = Annotated[str, Query(description="Only lines of this level and above.")]
Text = Annotated[str, Query(description="Only lines that contain this, in any case.")]


def build_api(
    store: Store,
    queries: Queries,
    changes: Changes,
    transactions: Transactions,
    more: Iterable[Routes] = (),
) -> FastAPI:
    """The application; `queries` reads, `changes` writes, `transactions` does both to theirs.

    Args:
        store: where tokens are.
        queries: what is read.
        changes: what is changed.
        transactions: of the apps.
        more: each adds the routes of another part.
    """
    app = FastAPI(
        title="Bedstone",
        version=__version__,
        description="The control plane of one Bedstone domain.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        responses=_PROBLEMS,
    )
    app.add_middleware(_Gate, store=store)
    _handle_errors(app)
    _status_routes(app, queries)
    _log_routes(app, queries)
    _resource_routes(app, queries, changes)
    _app_routes(app, queries, changes)
    _transaction_routes(app, transactions, changes)
    _credential_routes(app, queries, changes)
    for add in more:
        add(app)
    return app


def _handle_errors(app: FastAPI) -> None:
    async def known(_: Request, error: Exception) -> Response:
        if not isinstance(error, Error):
            return await unknown(_, error)
        return _answer(error)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it alone
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return await known(_, InvalidError(f"{where or 'body'}: {first['msg'].lower()}"))

    async def unrouted(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - registered for it alone
        message = f"there is no {request.method} {request.url.path}"
        return await known(request, NotFoundError(message, hint="the API is at /v1/openapi.json"))

    async def unknown(_: Request, error: Exception) -> Response:
        _log.error("internal error", exc_info=error)
        problem = Problem(
            code=INTERNAL,
            message=f"an error of ours: {type(error).__name__}",
            hint="see bedstone logs engine:server, and report it",
        )
        return JSONResponse(problem.model_dump(), 500)

    app.add_exception_handler(Error, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, unrouted)
    app.add_exception_handler(Exception, unknown)


def _status_routes(app: FastAPI, queries: Queries) -> None:
    @app.get(LIVENESS, tags=["liveness"])
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/openapi.json", include_in_schema=False)
    async def openapi(_: Reader) -> JSONResponse:
        return JSONResponse(app.openapi())

    @app.get("/v1/status")
    async def status(_: Reader) -> DomainStatus:
        return queries.domain()

    @app.get("/v1/apps/{name}/status")
    async def app_status(name: str, _: Reader) -> AppStatus:
        return queries.app(name)

    @app.get("/v1/apps/{name}/watch", response_class=StreamingResponse)
    async def watch(name: str, _: Reader) -> StreamingResponse:
        queries.app(name)  # an unknown name fails here, not inside the stream
        return stream(queries.watch(name))


def _log_routes(app: FastAPI, queries: Queries) -> None:
    @app.get("/v1/apps/{name}/workloads/{workload}/logs", response_class=StreamingResponse)
    async def logs(
        name: str,
        workload: str,
        _: Reader,
        *,
        follow: bool = False,
        since: Since = None,
        tail: Tail = None,
        trace: Trace = "",
        level: Level = "",
        text: Text = "",
    ) -> StreamingResponse:
        wanted = Filter(trace, checked_level(level) if level else "", text)
        lines = queries.logs(name, workload, follow=follow, since=since, tail=tail, wanted=wanted)
        return stream(await _started(lines))

    @app.get("/v1/engines/{name}/logs", response_class=StreamingResponse)
    async def engine_logs(
        name: str,
        _: Operator,
        *,
        follow: bool = False,
        since: Since = None,
        tail: Tail = None,
    ) -> StreamingResponse:
        lines = queries.engine_logs(name, follow=follow, since=since, tail=tail)
        return stream(await _started(lines))


def _resource_routes(app: FastAPI, queries: Queries, changes: Changes) -> None:
    @app.get("/v1/resources/{kind}")
    async def resources(kind: str, who: Reader, prefix: str = "") -> ResourceList:
        return queries.resources(kind, prefix, masked=who.role == "reader")

    @app.get("/v1/resources/{kind}/{name:path}")
    async def resource(kind: str, name: str, who: Reader) -> ResourceEntry:
        return queries.resource(kind, name, masked=who.role == "reader")

    @app.delete("/v1/resources/{kind}/{name:path}")
    async def delete_resource(kind: str, name: str, who: Operator) -> ApplyResult:
        match kind:
            case "app":
                return await changes.delete(name, who.who)
            case "instance":
                return await changes.delete_instance(name, who.who)
            case _:
                raise InvalidError(
                    f"a {kind} cannot be deleted by itself, expected an app or an instance",
                    hint="remove it from the manifest and apply that",
                )


def _app_routes(app: FastAPI, queries: Queries, changes: Changes) -> None:
    @app.post("/v1/apps/{name}/plan")
    async def plan(name: str, request: ApplyRequest, _: Reader) -> ApplyResult:
        return await changes.plan(name, request)

    @app.put("/v1/apps/{name}")
    async def apply(name: str, request: ApplyRequest, who: Operator) -> ApplyResult:
        return await changes.apply(name, request, who.who)

    @app.delete("/v1/apps/{name}")
    async def delete(name: str, who: Operator) -> ApplyResult:
        return await changes.delete(name, who.who)

    @app.post("/v1/apps/{name}/workloads/{workload}/restart")
    async def restart(name: str, workload: str, who: Operator) -> ApplyResult:
        return await changes.restart(name, workload, who.who)

    @app.post("/v1/apps/{name}/workloads/{workload}/call")
    async def call(name: str, workload: str, request: CallRequest, who: Operator) -> CallResult:
        # Before it is sent: it speaks as somebody else. A query may hold a secret.
        sent = f"{request.method} {request.path.partition('?')[0]} as {request.identity}"
        await changes.noted(who.who, "call", f"{name}/{workload}", sent)
        return await queries.call(name, workload, request)


def _transaction_routes(app: FastAPI, transactions: Transactions, changes: Changes) -> None:
    @app.get("/v1/apps/{name}/transactions")
    async def listed(
        name: str,
        _: Reader,
        *,
        state: str = "",
        stuck: bool = False,
        after: str = "",
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    ) -> TransactionList:
        return await transactions.list(name, state, after, limit, stuck=stuck)

    @app.get("/v1/apps/{name}/transactions/{xid}")
    async def shown(name: str, xid: str, _: Reader) -> TransactionDetail:
        return await transactions.show(name, xid)

    @app.post("/v1/apps/{name}/transactions/{xid}/retry")
    async def retry(name: str, xid: str, request: RetryRequest, who: Operator) -> TransactionDetail:
        result = await transactions.retry(name, xid, request, who.who)
        await changes.noted(who.who, "retry", f"transaction {xid}", request.why)
        return result

    @app.post("/v1/apps/{name}/transactions/{xid}/repair")
    async def repair(name: str, xid: str, request: RepairRequest, who: Operator) -> RepairResult:
        result = await transactions.repair(name, xid, request, who.who)
        target = f"transaction {xid} branch {request.branch}"
        await changes.noted(who.who, result.outcome, target, request.why)
        return result


def _credential_routes(app: FastAPI, queries: Queries, changes: Changes) -> None:
    @app.get("/v1/tokens")
    async def tokens(_: Operator) -> list[TokenGrant]:
        return [TokenGrant(name=t.name, role=t.role) for t in await changes.tokens()]

    @app.get("/v1/audit")
    async def audit(
        _: Operator, limit: Annotated[int, Query(ge=1, le=10_000)] = 100
    ) -> list[AuditRecord]:
        return await changes.audit(limit)

    @app.post("/v1/tokens")
    async def grant(request: TokenRequest, who: Operator) -> TokenGrant:
        return await changes.grant(request, who.who)

    @app.delete("/v1/tokens/{name}")
    async def revoke(name: str, who: Operator) -> dict[str, str]:
        await changes.revoke(name, who.who)
        return {"deleted": name}

    @app.post("/v1/nodes/{name}/join")
    async def join(name: str, request: JoinRequest, who: Operator) -> JoinGrant:
        grant = queries.join(name, request, local=who.local)
        await changes.joined(name, request.address, who.who)
        return grant


async def _started(lines: AsyncGenerator[LogLine, None]) -> AsyncGenerator[LogLine, None]:
    """Fetch the first line, so that a failure is an answer and not a broken stream."""
    first = await anext(lines, None)

    async def whole() -> AsyncGenerator[LogLine, None]:
        async with aclosing(lines):
            if first is not None:
                yield first
            async for line in lines:
                yield line

    return whole()


def stream(items: AsyncGenerator[Any, None]) -> StreamingResponse:
    """Records as NDJSON, each as it comes; the generator is closed when the reader goes away."""

    async def encoded() -> AsyncIterator[bytes]:
        async with aclosing(items):
            async for item in items:
                yield item.model_dump_json().encode() + b"\n"

    return StreamingResponse(encoded(), media_type=NDJSON)
