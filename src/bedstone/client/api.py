"""The typed client of the HTTP API: one method for each row of the table in `bedstone.model.api`.

Rules: paths are made here only; names are percent-encoded; every failure is a
`bedstone.errors.Error` (see `bedstone.client.transport`). Streams are async iterators that end when
the server ends them; leaving the loop early and closing the iterator closes the connection.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, TypeAdapter, ValidationError

from bedstone.client.transport import Endpoint, Transport
from bedstone.errors import UnavailableError
from bedstone.model.alerts import (
    AlertHistory,
    AlertList,
    AlertTest,
    Silence,
    SilenceList,
    SilenceRequest,
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
from bedstone.model.resources import AuditRecord

if TYPE_CHECKING:
    from bedstone.model.messages import LogLine
    from bedstone.model.monitoring import (
        ChangeList,
        ConsoleLink,
        ConsoleLinkRequest,
        ConsoleSignIn,
        Overview,
        RollbackRequest,
        ScaleRequest,
        Seconds,
        TapRecord,
        Tick,
        UndoRequest,
        WorkloadList,
    )
    from bedstone.model.traces import LogPage, TraceDetail, TraceList

Record = TypeVar("Record", bound=BaseModel)


class Client:
    """A server's API. `async with Client(endpoint) as client: …` releases its connections.

    Args:
        endpoint: where the server is.
        timeout: seconds that an answer may take; streams have none.
    """

    def __init__(self, endpoint: Endpoint, *, timeout: float = 30.0) -> None:
        self._transport = Transport(endpoint, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._transport.close()

    async def health(self, *, timeout: float = 2.0) -> None:
        """Return if the server is alive; UnavailableError if not."""
        await self._transport.request("GET", "/healthz", timeout=timeout)

    async def openapi(self) -> dict[str, Any]:
        """The API's own description, OpenAPI 3.1."""
        content = await self._transport.request("GET", "/v1/openapi.json")
        return TypeAdapter(dict[str, Any]).validate_json(content)

    async def status(self) -> DomainStatus:
        """The whole installation."""
        return await self._get(DomainStatus, "status")

    async def app_status(self, app: str) -> AppStatus:
        """One app at a glance; NotFoundError if it was never applied."""
        return await self._get(AppStatus, "apps", app, "status")

    async def watch(self, app: str) -> AsyncGenerator[AppStatus, None]:
        """The app's status now and at every change."""
        async with self._transport.lines(_path("apps", app, "watch")) as lines:
            async for line in lines:
                yield _parse(AppStatus, line)

    async def plan(self, request: ApplyRequest) -> ApplyResult:
        """What `apply` would change; changes nothing."""
        return await self._send(ApplyResult, "POST", request, "apps", request.spec.app, "plan")

    async def apply(self, request: ApplyRequest) -> ApplyResult:
        """Make the manifest the app's; ConflictError if `generation` is given and has passed."""
        return await self._send(ApplyResult, "PUT", request, "apps", request.spec.app)

    async def delete_app(self, app: str) -> ApplyResult:
        """Stop all of the app and forget it; data stays."""
        return await self._send(ApplyResult, "DELETE", None, "apps", app)

    async def restart(self, app: str, workload: str) -> ApplyResult:
        """Replace the workload's instances, rolling."""
        return await self._send(
            ApplyResult, "POST", None, "apps", app, "workloads", workload, "restart"
        )

    async def scale(self, app: str, workload: str, request: ScaleRequest) -> ApplyResult:
        """Run another number of the workload's instances, until a manifest says another."""
        return await self._send(
            ApplyResult, "POST", request, "apps", app, "workloads", workload, "scale"
        )

    async def roll_back(self, app: str, workload: str, request: RollbackRequest) -> ApplyResult:
        """Declare the workload again as an earlier generation did; source files stay."""
        return await self._send(
            ApplyResult, "POST", request, "apps", app, "workloads", workload, "rollback"
        )

    async def undo(self, app: str, request: UndoRequest) -> ApplyResult:
        """Declare the app again as it was before a generation; source files stay."""
        return await self._send(ApplyResult, "POST", request, "apps", app, "undo")

    async def changes(
        self, app: str = "", *, before: float | None = None, limit: int = 50
    ) -> ChangeList:
        """Who changed what, the latest first; of one app, and before a time, if given."""
        from bedstone.model.monitoring import ChangeList

        params = {"limit": str(limit)}
        if app:
            params["app"] = app
        if before is not None:
            params["before"] = repr(before)
        content = await self._transport.request("GET", "/v1/changes", params=params)
        return _parse(ChangeList, content)

    def logs(
        self,
        app: str,
        workload: str,
        *,
        follow: bool = False,
        since: float | None = None,
        tail: int | None = None,
        trace: str = "",
        level: str = "",
    ) -> AsyncGenerator[LogLine, None]:
        """Output of the workload's instances; `since` is seconds since the epoch.

        Of a trace only, or of a level and above, where these are given.
        """
        path = _path("apps", app, "workloads", workload, "logs")
        params = _window(follow, since, tail) | _given(trace=trace, level=level)
        return self._log(path, params)

    async def lines(
        self,
        app: str,
        *,
        workload: str = "",
        trace: str = "",
        level: str = "",
        text: str = "",
        since: float | None = None,
        until: float | None = None,
        limit: int = 500,
    ) -> LogPage:
        """The newest log lines of an app that match, oldest first."""
        from bedstone.model.traces import LogPage

        params = _given(workload=workload, trace=trace, level=level, text=text)
        for name, at in (("since", since), ("until", until)):
            if at is not None:
                params[name] = f"{at:.3f}"
        params["limit"] = str(limit)
        content = await self._transport.request("GET", _path("apps", app, "lines"), params=params)
        return _parse(LogPage, content)

    def engine_logs(
        self,
        engine: str,
        *,
        follow: bool = False,
        since: float | None = None,
        tail: int | None = None,
    ) -> AsyncGenerator[LogLine, None]:
        """Output of an engine, such as `envoy`."""
        path = _path("engines", engine, "logs")
        return self._log(path, _window(follow, since, tail))

    async def _log(self, path: str, window: dict[str, str]) -> AsyncGenerator[LogLine, None]:
        from bedstone.model.messages import LogLine  # not before: it takes 10 ms

        async with self._transport.lines(path, params=window) as lines:
            async for line in lines:
                yield _parse(LogLine, line)

    async def ticks(self) -> AsyncGenerator[Tick, None]:
        """Each second of the monitoring as it ends."""
        from bedstone.model.monitoring import Tick  # not before: it takes some milliseconds

        async with self._transport.lines("/v1/ticks") as lines:
            async for line in lines:
                yield _parse(Tick, line)

    async def overview(self) -> Overview:
        """The whole installation at one glance."""
        from bedstone.model.monitoring import Overview

        return await self._get(Overview, "overview")

    async def workloads(self, app: str = "", search: str = "") -> WorkloadList:
        """The workloads of all apps, or of one, in one line each."""
        from bedstone.model.monitoring import WorkloadList

        given = {"app": app, "search": search}
        params = {name: text for name, text in given.items() if text}
        content = await self._transport.request("GET", "/v1/workloads", params=params)
        return _parse(WorkloadList, content)

    async def seconds(self, start: int, end: int) -> Seconds:
        """Which seconds from `start` to `end` were not complete, and what was missing."""
        from bedstone.model.monitoring import Seconds

        params = {"start": str(start), "end": str(end)}
        return _parse(Seconds, await self._transport.request("GET", "/v1/seconds", params=params))

    async def tap(
        self, app: str, *, workload: str = "", errors: bool = False, share: float = 1.0
    ) -> AsyncGenerator[TapRecord, None]:
        """Requests as the proxies see them, from now on; at each hop one record."""
        from bedstone.model.monitoring import TapRecord

        params = _given(workload=workload, errors="true" if errors else "")
        if share != 1.0:
            params["share"] = f"{share:g}"
        async with self._transport.lines(_path("apps", app, "tap"), params=params) as lines:
            async for line in lines:
                yield _parse(TapRecord, line)

    async def call(self, app: str, workload: str, request: CallRequest) -> CallResult:
        """One HTTP request to a workload, through the mesh."""
        content = await self._transport.request(
            "POST",
            _path("apps", app, "workloads", workload, "call"),
            body=request.model_dump_json().encode(),
            timeout=request.timeout + 5.0,
        )
        return _parse(CallResult, content)

    async def resources(self, kind: str, prefix: str = "") -> ResourceList:
        """The resources of a kind whose name starts with `prefix`, sorted by name."""
        params = {"prefix": prefix} if prefix else None
        content = await self._transport.request("GET", _path("resources", kind), params=params)
        return _parse(ResourceList, content)

    async def resource(self, kind: str, name: str) -> ResourceEntry:
        """One resource; NotFoundError if there is none of that name."""
        return await self._get(ResourceEntry, "resources", kind, name)

    async def delete_resource(self, kind: str, name: str) -> ApplyResult:
        """Delete one resource, if its kind can be deleted."""
        return await self._send(ApplyResult, "DELETE", None, "resources", kind, name)

    async def transactions(
        self, app: str, *, state: str = "", stuck: bool = False, after: str = "", limit: int = 100
    ) -> TransactionList:
        """An app's distributed transactions, by id, from the one after `after`."""
        params = {"limit": str(limit)}
        if state:
            params["state"] = state
        if stuck:
            params["stuck"] = "true"
        if after:
            params["after"] = after
        content = await self._transport.request(
            "GET", _path("apps", app, "transactions"), params=params
        )
        return _parse(TransactionList, content)

    async def transaction(self, app: str, xid: str) -> TransactionDetail:
        """One of them, with its branches and history; NotFoundError if there is none."""
        return await self._get(TransactionDetail, "apps", app, "transactions", xid)

    async def retry_transaction(
        self, app: str, xid: str, request: RetryRequest
    ) -> TransactionDetail:
        """Have its coordinator try again at once, also what is stuck."""
        return await self._send(
            TransactionDetail, "POST", request, "apps", app, "transactions", xid, "retry"
        )

    async def repair_transaction(self, app: str, xid: str, request: RepairRequest) -> RepairResult:
        """Record that a person has brought a stuck branch to the decided end."""
        return await self._send(
            RepairResult, "POST", request, "apps", app, "transactions", xid, "repair"
        )

    async def traces(
        self,
        *,
        app: str = "",
        service: str = "",
        name: str = "",
        errors: bool = False,
        shortest: float | None = None,
        longest: float | None = None,
        start: float | None = None,
        end: float | None = None,
        limit: int = 100,
    ) -> TraceList:
        """The kept traces that fit, newest first; times are seconds."""
        from bedstone.model.traces import TraceList

        params = _given(app=app, service=service, name=name)
        if errors:
            params["errors"] = "true"
        for key, number in (("min", shortest), ("max", longest), ("start", start), ("end", end)):
            if number is not None:
                params[key] = f"{number:.6f}"
        params["limit"] = str(limit)
        content = await self._transport.request("GET", "/v1/traces", params=params)
        return _parse(TraceList, content)

    async def trace(self, trace: str) -> TraceDetail:
        """A whole trace; NotFoundError if it is not kept."""
        from bedstone.model.traces import TraceDetail

        return await self._get(TraceDetail, "traces", trace)

    async def sample(self, share: float | None) -> None:
        """Record a share of requests; None: as many as their rate allows."""
        from bedstone.model.traces import SamplingRequest

        await self._send(SamplingRequest, "PUT", SamplingRequest(share=share), "sampling")

    async def alerts(self) -> AlertList:
        """All alerts, those that fire first, and the rules that say nothing."""
        return await self._get(AlertList, "alerts")

    async def alert_history(self, app: str = "", rule: str = "", limit: int = 100) -> AlertHistory:
        """What fired and was over, newest first; of an app and a rule where they are given."""
        params = {"limit": str(limit)}
        if app:
            params["app"] = app
        if rule:
            params["rule"] = rule
        content = await self._transport.request("GET", "/v1/alerts/history", params=params)
        return _parse(AlertHistory, content)

    async def test_alert(self, rule: str, app: str = "") -> AlertTest:
        """What a rule says now; NotFoundError if there is none of that name."""
        params = {"rule": rule, **({"app": app} if app else {})}
        content = await self._transport.request("GET", "/v1/alerts/test", params=params)
        return _parse(AlertTest, content)

    async def silences(self) -> SilenceList:
        """The silences that have not ended."""
        return await self._get(SilenceList, "silences")

    async def silence(self, request: SilenceRequest) -> Silence:
        """Tell nobody of the alerts that match, for a time."""
        return await self._send(Silence, "POST", request, "silences")

    async def unsilence(self, silence: str) -> None:
        """End a silence; NotFoundError if there is none of that id."""
        await self._transport.request("DELETE", _path("silences", silence))

    async def tokens(self) -> list[TokenGrant]:
        """The API's credentials, without their secrets."""
        content = await self._transport.request("GET", "/v1/tokens")
        return TypeAdapter(list[TokenGrant]).validate_json(content)

    async def create_token(self, request: TokenRequest) -> TokenGrant:
        """A new credential; its secret is in this answer only."""
        return await self._send(TokenGrant, "POST", request, "tokens")

    async def delete_token(self, name: str) -> None:
        """Revoke a credential."""
        await self._transport.request("DELETE", _path("tokens", name))

    async def console_link(self, request: ConsoleLinkRequest) -> ConsoleLink:
        """A one-time link to sign in to the console; ConflictError if the server has none."""
        from bedstone.model.monitoring import ConsoleLink  # not before: it takes 10 ms

        return await self._send(ConsoleLink, "POST", request, "console", "links")

    async def console_sessions(self) -> list[ConsoleSignIn]:
        """Who is signed in to the console, the latest first."""
        from bedstone.model.monitoring import ConsoleSignIn

        content = await self._transport.request("GET", "/v1/console/sessions")
        return TypeAdapter(list[ConsoleSignIn]).validate_json(content)

    async def end_console_session(self, session: str) -> None:
        """Sign somebody out of the console; NotFoundError if there is no such session."""
        await self._transport.request("DELETE", _path("console", "sessions", session))

    async def audit(self, limit: int = 100) -> list[AuditRecord]:
        """The last changes, with who made them."""
        content = await self._transport.request("GET", "/v1/audit", params={"limit": str(limit)})
        return TypeAdapter(list[AuditRecord]).validate_json(content)

    async def join(self, node: str, request: JoinRequest) -> JoinGrant:
        """A node's first certificate."""
        return await self._send(JoinGrant, "POST", request, "nodes", node, "join")

    async def _get(self, kind: type[Record], *segments: str) -> Record:
        return _parse(kind, await self._transport.request("GET", _path(*segments)))

    async def _send(
        self, kind: type[Record], method: str, record: BaseModel | None, *segments: str
    ) -> Record:
        body = record.model_dump_json().encode() if record is not None else None
        return _parse(kind, await self._transport.request(method, _path(*segments), body=body))


def _path(*segments: str) -> str:
    """The API's path of these segments; a slash inside one (a resource's name) stays."""
    return "/v1/" + "/".join(quote(segment, safe="/") for segment in segments)


def _given(**params: str) -> dict[str, str]:
    return {name: value for name, value in params.items() if value}


def _window(follow: bool, since: float | None, tail: int | None) -> dict[str, str]:  # noqa: FBT001
    params = {"follow": "true"} if follow else {}
    if since is not None:
        params["since"] = f"{since:.3f}"
    if tail is not None:
        params["tail"] = str(tail)
    return params


def _parse(kind: type[Record], content: bytes) -> Record:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise UnavailableError(
            f"the server's answer is not a {kind.__name__}: {error.errors()[0]['msg']}",
            hint="use a client of the server's version; see `bedstone version`",
        ) from error
