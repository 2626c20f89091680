"""One second of this node: asks every source, and says what changed since the second before.

Rules:
- Every source has a time-out of its own, shorter than the server's: one that hangs is named in the
  frame, and the others are in it.
- One collection runs at a time. A second that comes while one is under way is refused, so that no
  two readings mix; the counts are in the next frame.
- Reading files and talking to the proxy is done in one thread, so that the node's loop goes on.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Protocol

from bedstone.errors import Error, UnavailableError
from bedstone.model.resources import Phase
from bedstone.node.collector import machine
from bedstone.node.collector.boxes import TOLD_BY_BOXES
from bedstone.node.collector.envoy import EnvoyStatistics
from bedstone.node.collector.envoy_text import SOURCE, Naming
from bedstone.node.collector.processes import Processes, identity_of
from bedstone.node.collector.reading import Reading
from bedstone.node.reports import Reports
from bedstone.node.view import View
from bedstone.node.watch import Watch
from bedstone.telemetry import names
from bedstone.telemetry.frame_builder import FrameBuilder
from bedstone.telemetry.frames import Frame, Series

ENVOY_TIMEOUT = 0.25
RUN = "run"
"""The source of what is counted since the supervisor began."""
NODE = "node"
"""The source of what is counted since this agent began."""
SUPERVISOR = "supervisor"
_log = logging.getLogger(__name__)


class ApplicationMetrics(Protocol):
    """What applications export themselves; cumulative, by the node's collector of OTLP."""

    def collect(self) -> tuple[Mapping[Series, float], Mapping[str, str]]:
        """The last values of all series, and the incarnation of each of their sources."""
        ...


Read = Callable[[], Awaitable[Reading]]
"""A source that is asked without blocking; it keeps to its own time-out."""


class Collector:
    """The collector of one node.

    Args:
        node: the node's name.
        state: the directory whose disk is watched.
        admin: the socket of the proxy's administration.
        run_id: of the supervisor's run.
        view: what shall run here.
        reports: what runs here.
        watch: the processes.
        applications: what applications export.
        others: more sources.
    """

    def __init__(
        self,
        node: str,
        state: Path,
        admin: Path,
        run_id: str,
        view: View,
        reports: Reports,
        watch: Watch,
        applications: ApplicationMetrics,
        others: tuple[Read, ...] = (),
    ) -> None:
        self._node = node
        self._machine = machine.Machine(node, state)
        self._run_id = run_id
        self._view = view
        self._reports = reports
        self._watch = watch
        self._applications = applications
        self._others = others
        self._naming = Naming(node, self._revision)
        self._envoy = EnvoyStatistics(admin, self._naming, ENVOY_TIMEOUT)
        self._processes = Processes()
        self._builder = FrameBuilder()
        self._agent = identity_of(os.getpid()) or ""
        self._supervisor = os.getppid()
        self._current: asyncio.Future[Frame] | None = None

    async def collect(self, second: int, *, full: bool) -> Frame:
        """The frame of one second.

        Raises:
            UnavailableError: the collection before has not ended.
        """
        if self._current is not None and not self._current.done():
            raise UnavailableError("an earlier second is still being collected")
        # shielded: a thread cannot be stopped, and nothing may read beside it
        self._current = asyncio.ensure_future(self._collect(second, full=full))
        return await asyncio.shield(self._current)

    async def _collect(self, second: int, *, full: bool) -> Frame:
        reading = self._own()
        blocking = asyncio.ensure_future(asyncio.to_thread(self._read, self._roots()))
        for done in await asyncio.gather(*(read() for read in self._others)):
            reading.add(done)
        reading.add(await blocking)
        values, incarnations = self._applications.collect()
        reading.values |= values
        reading.incarnations |= incarnations
        return self._builder.build(
            second, reading.values, reading.incarnations, reading.missing, full=full
        )

    def close(self) -> None:
        """Let go of the proxy."""
        self._envoy.close()

    def _revision(self, path: str) -> str | None:
        status = self._reports.instances.get(f"status/instances/{path}")
        return status.revision if status else None

    def _roots(self) -> dict[str, tuple[int, int]]:
        roots = {
            name: (info.pid, info.start_time)
            for name, info in self._watch.latest.items()
            if info.running and info.pid is not None and info.start_time is not None
        }
        own = identity_of(self._supervisor)
        if own is not None:
            roots[SUPERVISOR] = (self._supervisor, int(own.partition(":")[2]))
        return roots

    def _own(self) -> Reading:
        """What the agent itself knows."""
        reading = Reading(incarnations={RUN: self._run_id, NODE: self._agent})
        values = reading.values
        for status in self._reports.instances.values():
            labels = self._scope(status.path)
            up = names.INSTANCE_UP.series(RUN, **labels)
            values[up] = float(status.phase is Phase.READY)
            again = names.INSTANCE_RESTARTS.series(RUN, **labels)
            values[again] = float(status.restarts)
        own = self._reports.node
        again = names.ENGINE_RESTARTS.series(NODE, engine="envoy", node=self._node)
        values[again] = float(own.proxy_restarts)
        for database in self._reports.databases.values():
            name = "postgres-" + database.path.replace("/", "-")
            again = names.ENGINE_RESTARTS.series(NODE, engine=name, node=self._node)
            values[again] = float(database.restarts)
        for name, info in self._watch.latest.items():
            if info.restart != "never":
                again = names.ENGINE_RESTARTS.series(RUN, engine=name, node=self._node)
                values[again] = float(info.restarts)
        return reading

    def _read(self, roots: Mapping[str, tuple[int, int]]) -> Reading:
        """What is read from files and from the proxy.

        In this order: the proxy brings its histograms together while the processes are looked at.
        """
        reading = Reading()
        trouble = self._attempt(self._envoy.merge)
        self._attempt(lambda: self._read_processes(reading, roots), reading, "processes")
        self._attempt(lambda: self._read_machine(reading), reading, machine.SOURCE)
        if trouble is None:
            trouble = self._attempt(lambda: self._read_envoy(reading))
        if trouble is not None and (self._envoy.incarnation or "envoy" in roots):
            reading.missing[SOURCE] = trouble
        return reading

    @staticmethod
    def _attempt(
        work: Callable[[], object], reading: Reading | None = None, source: str = ""
    ) -> str | None:
        """Why something cannot be read; also noted as missing, if there is where."""
        try:
            work()
        except (Error, OSError, ValueError, KeyError) as error:
            reason = error.message if isinstance(error, Error) else str(error)
            if reading is not None:
                reading.missing[source] = reason
            return reason
        return None

    def _read_envoy(self, reading: Reading) -> None:
        apps = [app.name for app in self._view.apps() if app.spec.gateway is not None]
        paths = [status.path for status in self._reports.instances.values() if status.plumbing]
        gateways = apps if self._reports.node.gateway else []
        reading.values |= dict.fromkeys(self._naming.zeros(gateways, paths), 0.0)
        reading.values |= self._envoy.read()
        reading.incarnations[SOURCE] = self._envoy.incarnation

    def _read_machine(self, reading: Reading) -> None:
        reading.values |= self._machine.read()
        reading.incarnations[machine.SOURCE] = machine.incarnation()

    def _read_processes(self, reading: Reading, roots: Mapping[str, tuple[int, int]]) -> None:
        used = self._processes.usage(roots, self._supervisor)
        for name, (pid, start) in roots.items():
            if name.startswith("instance/"):
                source = name
                path = name.removeprefix("instance/")
                status = self._reports.instances.get(f"status/instances/{path}")
                if status is None or status.isolation in TOLD_BY_BOXES:
                    continue
                labels = self._scope(path)
                cpu = names.INSTANCE_CPU.series(source, **labels)
                memory = names.INSTANCE_MEMORY.series(source, **labels)
            elif name.startswith("prepare/") or name.endswith("-initialise"):
                continue  # they live for a moment, and nobody looks at them
            else:
                source = f"process/{name}"
                cpu = names.ENGINE_CPU.series(source, engine=name, node=self._node)
                memory = names.ENGINE_MEMORY.series(source, engine=name, node=self._node)
            if name not in used:
                reading.missing[source] = "its process has just ended"
                continue
            reading.incarnations[source] = f"{pid}:{start}"
            reading.values[cpu] = used[name].cpu
            reading.values[memory] = float(used[name].memory)

    def _scope(self, path: str) -> dict[str, str]:
        app, cell, workload, instance = path.split("/")
        return {
            "app": app,
            "cell": cell,
            "workload": workload,
            "revision": self._revision(path) or "",
            "instance": instance,
            "node": self._node,
        }
