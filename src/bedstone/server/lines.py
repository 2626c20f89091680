"""The API's log lines of an app: found on the nodes, structured here.

Rules:
- Nodes search, and send what matches only; of all that match, the newest `limit` are given, oldest
  first, and it is said if there were more.
- A line's time is its own word on it where it has one near to when it was written; a clock that is
  far off is not believed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from fastapi import FastAPI, Query

from bedstone.control.loop import ControlLoop
from bedstone.errors import NotFoundError
from bedstone.model.messages import Command, LogLine
from bedstone.model.resources import App, Instance
from bedstone.model.traces import LogPage, StructuredLine
from bedstone.server.api import Level, Reader, Since, Text, Trace
from bedstone.server.queries import Queries
from bedstone.telemetry.lines import Filter, checked_level, structured

BELIEF = 5.0
"""Seconds by which a line's own time may differ from when it was seen in its file."""


@dataclass(frozen=True, slots=True)
class Window:
    """Which lines are asked for, and how many.

    Args:
        since: seconds since the epoch.
        until: likewise.
        limit: how many at most.
    """

    since: float | None = None
    until: float | None = None
    limit: int = 500


class Lines:
    """Finds the log lines of apps.

    Args:
        loop: what is declared and runs.
        queries: asks the nodes.
    """

    def __init__(self, loop: ControlLoop, queries: Queries) -> None:
        self._loop = loop
        self._queries = queries

    def add_routes(self, app: FastAPI) -> None:
        """The API's route."""

        @app.get("/v1/apps/{name}/lines", tags=["logs"])
        async def lines(
            name: str,
            _: Reader,
            *,
            workload: str = "",
            trace: Trace = "",
            level: Level = "",
            text: Text = "",
            since: Since = None,
            until: Since = None,
            limit: Annotated[int, Query(ge=1, le=10_000)] = 500,
        ) -> LogPage:
            wanted = Filter(trace, checked_level(level) if level else "", text)
            return await self.find(name, workload, wanted, Window(since, until, limit))

    async def find(self, app: str, workload: str, wanted: Filter, window: Window) -> LogPage:
        """The lines of an app's workload, or of all of its workloads.

        Raises:
            NotFoundError: there is no such app or workload.
            UnavailableError: a node cannot be asked.
        """
        declared = self._loop.snapshot.get(App, f"apps/{app}")
        if declared is None:
            raise NotFoundError(f"there is no app {app}", hint="see bedstone ps")
        if workload and workload not in declared.spec.workloads:
            known = ", ".join(sorted(declared.spec.workloads))
            raise NotFoundError(f"app {app} has no workload {workload}, it has {known}")
        command = Command(
            id="",
            action="logs",
            subject=f"{app}/default/{workload}/" if workload else f"{app}/",
            since=window.since,
            until=window.until,
            tail=window.limit + 1,
            trace=wanted.trace,
            level=wanted.level,
            text=wanted.text,
        )
        snapshot = self._loop.snapshot
        placed = {i.node for i in snapshot.of(Instance, app) if workload in ("", i.workload)}
        nodes = sorted(placed) or [it for it in snapshot.nodes() if snapshot.present(it)]
        found = [line async for line in self._queries.lines(nodes, command)]
        return page(app, workload, found, window.limit)


def page(app: str, workload: str, found: Iterable[LogLine], limit: int) -> LogPage:
    """What the nodes found, as a page of the newest.

    Args:
        app: whose they are.
        workload: likewise; empty where each line's source names it.
        found: lines, those of one instance in the order in which it wrote them.
        limit: how many at most.
    """
    last: dict[str, float] = {}
    every = []
    for line in found:
        said = structured(line.text)
        owner, _, instance = line.source.rpartition("/")
        time = _time(line.time, said.time, last.get(line.source))
        last[line.source] = time
        every.append(
            StructuredLine(
                time=time,
                app=app,
                workload=owner or workload,
                instance=instance,
                level=said.level,
                text=said.text,
                trace=said.trace,
                span=said.span,
                fields=dict(said.fields),
            )
        )
    every.sort(key=lambda line: line.time)
    return LogPage(items=tuple(every[-limit:]), truncated=len(every) > limit)


def _time(seen: float, said: float | None, before: float | None) -> float:
    """When a line was written: not before the one that stands before it.

    It was seen in its file up to a second later. One that does not say its time was written with
    the line before it, if that was not long ago: a traceback stays together.
    """
    time = said if said is not None and abs(said - seen) <= BELIEF else None
    if before is None or before > seen + BELIEF:
        return seen if time is None else time
    if time is None:
        return before if seen - before <= BELIEF else seen
    return max(time, before)
