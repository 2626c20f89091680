"""What the console's pages read: the overview, workloads, the map, traffic and changes.

Rules:
- What a finished second says of a state of the picture is computed once, whoever asks for it how
  often: ten open pages cost one computation.
- Computing runs beside the event loop, which has proxies and nodes to answer.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Annotated, Protocol

from fastapi import FastAPI, Query
from fastapi.responses import Response
from pydantic import BaseModel

from bedstone.control import declaring
from bedstone.control.loop import ControlLoop
from bedstone.control.monitoring import findings as finding
from bedstone.control.monitoring import graph as mapping
from bedstone.control.monitoring import lines
from bedstone.control.monitoring.golden import Golden
from bedstone.control.monitoring.health import AppState, Revisions
from bedstone.control.monitoring.measuring import Measuring
from bedstone.control.monitoring.reading import Reader as SeriesReader
from bedstone.errors import NotFoundError
from bedstone.model.alerts import AlertLine
from bedstone.model.diff import diff
from bedstone.model.monitoring import (
    AppLine,
    ChangeList,
    ChangeRecord,
    Finding,
    Graph,
    Overview,
    Traffic,
    WorkloadLine,
    WorkloadList,
)
from bedstone.model.resources import App, AuditRecord, Revision
from bedstone.server.api import Reader
from bedstone.server.changes import Changes

NOW = 10
"""Seconds over which what is shown as "now" is averaged."""
HOUR = 3600.0
_MOMENT = 60.0
"""Seconds that a change and its record may lie apart."""
_WINDOWS = 4
_REMEMBERED = 64
"""Windows of which the layout, and answers of which the text, is remembered."""
_SHOWN = 50
"""Changes that the overview shows at most."""

At = Annotated[int | None, Query(ge=0, description="Seconds since the epoch; default: now.")]
Window = Annotated[int, Query(ge=1, le=86_400, description="Seconds that are averaged.")]


class Alerts(Protocol):
    """Who knows which alerts fire."""

    def __call__(self) -> Iterable[AlertLine]:
        """The alerts that there are; never fails."""
        ...


def no_alerts() -> Iterable[AlertLine]:
    """No alerts, where nobody evaluates any."""
    return ()


class Picture:
    """One second's worth: everything that is shown as "now"."""

    def __init__(
        self,
        golden: Golden,
        states: dict[str, AppState],
        found: list[Finding],
    ) -> None:
        self.golden = golden
        self.states = states
        self.findings = found


class ConsoleViews:
    """Reads for the console.

    Args:
        loop: the control plane's picture.
        reader: the series.
        changes: of the audit and the declarations.
        domain: the installation's name.
        alerts: which fire.
        clock: the time.
    """

    def __init__(
        self,
        loop: ControlLoop,
        reader: SeriesReader,
        changes: Changes,
        domain: str,
        *,
        alerts: Alerts = no_alerts,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._loop = loop
        self._reader = reader
        self._changes = changes
        self._domain = domain
        self._alerts = alerts
        self._clock = clock
        self._measuring: OrderedDict[int, Measuring] = OrderedDict()
        self._computing = asyncio.Lock()
        self._revisions = Revisions()
        self._measured_now: tuple[Golden, Mapping[tuple[str, str], float]] | None = None
        self._picture: tuple[tuple[int, int], Picture] | None = None
        self._asking: dict[tuple[str, ...], asyncio.Lock] = {}
        self._answers: dict[tuple[str, ...], tuple[tuple[int, int], bytes]] = {}

    def add_routes(self, app: FastAPI) -> None:
        """The routes of these views."""
        self._live_routes(app)
        self._app_routes(app)

        @app.get("/v1/changes")
        async def changes(
            _: Reader,
            app: str = "",
            before: float | None = None,
            limit: Annotated[int, Query(ge=1, le=1000)] = 50,
        ) -> ChangeList:
            return await self.changes(app, before, limit)

    def _live_routes(self, app: FastAPI) -> None:
        @app.get("/v1/overview", response_model=Overview)
        async def overview(_: Reader) -> Response:
            return await self._answer(("overview",), self.overview)

        @app.get("/v1/workloads", response_model=WorkloadList)
        async def workloads(_: Reader, app: str = "", search: str = "") -> Response:
            async def listed() -> WorkloadList:
                return await self.workloads(app, search)

            return await self._answer(("workloads", app, search), listed)

    def _app_routes(self, app: FastAPI) -> None:
        @app.get("/v1/apps/{name}/workloads/{workload}")
        async def one(name: str, workload: str, _: Reader) -> WorkloadLine:
            return await self.workload(name, workload)

        @app.get("/v1/apps/{name}/graph", response_model=Graph)
        async def graph(name: str, _: Reader, at: At = None, window: Window = NOW) -> Response:
            async def mapped() -> Graph:
                return await self.graph(name, at, window)

            return await self._answer(("graph", name, str(at), str(window)), mapped)

        @app.get("/v1/apps/{name}/traffic", response_model=Traffic)
        async def traffic(name: str, _: Reader) -> Response:
            async def flowing() -> Traffic:
                return await self.traffic(name)

            return await self._answer(("traffic", name), flowing)

    async def overview(self) -> Overview:
        """The whole installation at one glance."""
        picture, snapshot = await self._now(), self._loop.snapshot
        span, found = picture.golden.span, tuple(picture.findings)
        recent = await self._changes.recent(self._clock() - HOUR, _SHOWN)
        return Overview(
            domain=self._domain,
            second=span.second,
            complete=not span.missing and span.second > 0,
            missing=dict(span.missing),
            findings=found,
            apps=tuple(
                lines.app_line(state, picture.golden, found) for state in picture.states.values()
            ),
            nodes=tuple(lines.node_lines(snapshot, picture.golden)),
            changes=tuple([await self._change(record) for record in recent]),
        )

    async def workloads(self, app: str = "", search: str = "") -> WorkloadList:
        """The workloads of all apps, or of one, whose name contains what is searched for."""
        picture = await self._now()
        wanted = search.lower()
        found = [
            lines.workload_line(state, workload, picture.golden)
            for name, state in picture.states.items()
            if not app or name == app
            for workload in state.workloads.values()
            if wanted in f"{name}/{workload.name}"
        ]
        return WorkloadList(second=picture.golden.span.second, items=tuple(found))

    async def workload(self, app: str, name: str) -> WorkloadLine:
        """One workload, with its revisions and instances.

        Raises:
            NotFoundError: there is none of that name.
        """
        picture = await self._now()
        state = picture.states.get(app) or self._unknown(app)
        workload = state.workloads.get(name)
        if workload is None:
            known = ", ".join(sorted(state.workloads))
            raise NotFoundError(f"app {app} has no workload {name}, it has {known}")
        snapshot = self._loop.snapshot
        kept = {
            revision.name: await self._can_roll_back(state.app, name, revision.generation)
            for revision in snapshot.of(Revision, app)
            if revision.workload == name
        }
        revisions = lines.revision_lines(snapshot, state.app, workload, kept)
        return lines.workload_whole(state, workload, picture.golden, revisions)

    async def graph(self, app: str, at: int | None, window: int) -> Graph:
        """The map of an app over the seconds that end at one; by default at the last.

        Raises:
            NotFoundError: there is no such app.
        """
        picture = await self._now()
        state = picture.states.get(app) or self._unknown(app)
        golden = picture.golden
        if at is not None or window != NOW:
            golden = await self._measured(at, window)
        return mapping.graph(self._loop.snapshot, state, golden)

    async def traffic(self, app: str) -> Traffic:
        """The routes and policies of an app.

        Raises:
            NotFoundError: there is no such app.
        """
        picture = await self._now()
        state = picture.states.get(app) or self._unknown(app)
        line: AppLine = lines.app_line(state, picture.golden, ())
        return mapping.traffic(state, picture.golden, line.gateway)

    async def changes(self, app: str, before: float | None, limit: int) -> ChangeList:
        """Who changed what, the latest first."""
        records = await self._changes.listed(app, before, limit)
        return ChangeList(items=tuple([await self._change(record) for record in records]))

    async def _change(self, record: AuditRecord) -> ChangeRecord:
        """A record with the difference that it made, where both sides of it are kept."""
        made, kept = record.generation, False
        difference = []
        if made is not None:
            history = self._changes.history
            after = await history.find(record.app, made)
            before = await history.find(record.app, made - 1)
            if after is None or abs(after.at - record.at) > _MOMENT:
                after = before = None  # of another app of that name, which was deleted
            if after is not None and (before is not None or made == 1):
                difference = diff(
                    before.spec if before else None,
                    after.spec,
                    before.sources if before else {},
                    after.sources,
                )
            kept = before is not None
        return ChangeRecord(
            at=record.at,
            who=record.who,
            action=record.action,
            target=record.target,
            detail=record.detail,
            app=record.app,
            generation=made,
            changes=tuple(difference),
            undo=kept,
        )

    async def _can_roll_back(self, app: App, workload: str, generation: int) -> bool:
        now = app.spec.workloads.get(workload)
        then = await self._changes.history.find(app.name, generation)
        if now is None or then is None or workload not in then.spec.workloads:
            return False
        return declaring.differs(now, then.spec.workloads[workload])

    def _unknown(self, app: str) -> AppState:
        known = ", ".join(sorted(self._loop.snapshot.apps())) or "none at all"
        raise NotFoundError(f"there is no app {app}, there is {known}", hint="bedstone up")

    @property
    def _version(self) -> tuple[int, int]:
        return self._loop.version, self._reader.last()

    async def _now(self) -> Picture:
        """What is shown as "now", computed at most once for each state of the picture."""
        async with self._computing:
            version = self._version
            if self._picture is None or self._picture[0] != version:
                held = self._measured_now
                if held is None or held[0].span.second != version[1]:
                    held = self._measured_now = await asyncio.to_thread(self._measure_now)
                # What follows reads the snapshot, which only the event loop changes.
                self._picture = (version, self._pictured(*held))
            return self._picture[1]

    def _measure_now(self) -> tuple[Golden, Mapping[tuple[str, str], float]]:
        golden = self._measure(None, NOW)
        return golden, self._measuring[NOW].restarts(golden.span.second, finding.RESTARTED)

    def _pictured(self, golden: Golden, restarts: Mapping[tuple[str, str], float]) -> Picture:
        snapshot = self._loop.snapshot
        states = lines.states(snapshot, golden, self._revisions)
        found = finding.findings(snapshot, states, golden, self._alerts(), restarts)
        return Picture(golden, states, found)

    async def _measured(self, at: int | None, window: int) -> Golden:
        async with self._computing:
            return await asyncio.to_thread(self._measure, at, window)

    def _measure(self, at: int | None, window: int) -> Golden:
        measuring = self._measuring.get(window)
        if measuring is None:
            measuring = self._measuring[window] = Measuring(self._reader)
            while len(self._measuring) > _WINDOWS:
                self._measuring.pop(next(key for key in self._measuring if key != NOW))
        return measuring.measure(measuring.span(at, window))

    async def _answer(
        self, key: tuple[str, ...], compute: Callable[[], Awaitable[BaseModel]]
    ) -> Response:
        """An answer, encoded once for all who ask for the same."""
        if len(self._asking) > _REMEMBERED and key not in self._asking:
            # Whoever waits has its lock in hand; at worst, something is computed twice.
            self._asking.clear()
            self._answers.clear()
        async with self._asking.setdefault(key, asyncio.Lock()):
            version = self._version
            held = self._answers.get(key)
            if held is None or held[0] != version:
                content = (await compute()).model_dump_json().encode()
                held = self._answers[key] = (version, content)
        return Response(held[1], media_type="application/json")
