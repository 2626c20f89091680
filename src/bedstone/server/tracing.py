"""The traces of a domain: what nodes send of spans is sampled, written, exported, and found again.

Nothing here holds anybody up: what finds no room is dropped and counted, a disk that does not take
traces is tried again, and meanwhile the oldest of those that wait make way.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Protocol

from fastapi import FastAPI, Query

from bedstone.control.monitoring.reading import Matcher
from bedstone.control.monitoring.traces import store
from bedstone.control.monitoring.traces.exemplars import ExemplarStore
from bedstone.control.monitoring.traces.sampler import Decided, Limits, Policy, TailSampler
from bedstone.control.monitoring.traces.spans import Span, decode
from bedstone.control.monitoring.traces.store import TraceStore
from bedstone.errors import Error, InvalidError, UnavailableError
from bedstone.model.messages import Command, Spans
from bedstone.model.resources import App, Instance
from bedstone.model.traces import SamplingRequest, TraceDetail, TraceList
from bedstone.server.api import Operator, Reader
from bedstone.server.collecting import SERVER
from bedstone.server.prometheus import Exemplar, ExemplarSeries
from bedstone.server.sessions import Session, Sessions, new_command_id
from bedstone.server.tapping import Noted
from bedstone.server.trace_exports import Exports
from bedstone.server.transaction_counts import Reading
from bedstone.telemetry import names

PERIOD = 0.5
WAITING = 100_000
"""Spans of kept traces that wait for the disk at most."""
LARGEST = 64 << 20
"""Bytes of one message of a node, unpacked."""
PAUSE, LONGEST_PAUSE = 1.0, 10.0
PATIENCE = 2.0
"""Seconds that a node has to take a share."""
DAY = 86_400.0
_log = logging.getLogger(__name__)


class Sink(Protocol):
    """Takes the traces that are kept."""

    def kept(self, decided: Sequence[Decided]) -> None:
        """Take them at once, without waiting."""
        ...


class Tracing:
    """Takes spans, and answers for traces.

    Args:
        directory: for the file of traces.
        sessions: of the nodes.
        noted: writes the audit.
        sinks: who else takes what is kept.
        limits: what is kept.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        directory: Path,
        sessions: Sessions,
        noted: Noted,
        sinks: Sequence[Sink] = (),
        limits: Limits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = directory / "traces.sqlite"
        self._sessions = sessions
        self._noted = noted
        self.exemplars = ExemplarStore(self._revision)
        self._exports = Exports()
        self._sinks: tuple[Sink, ...] = (self.exemplars, self._exports, *sinks)
        self._sampler = TailSampler(limits)
        self._clock = clock
        self._store: TraceStore | None = None
        self._waiting: list[Decided] = []
        self._share: float | None = None
        self._shares = False
        self._told: dict[str, tuple[Session, float | None]] = {}
        self.trouble = ""
        """Why traces are not written now; empty while they are."""
        self.dropped = 0
        """Spans that found no room on a node or here."""
        sessions.told_spans = self.take

    def counts(self) -> Mapping[str, int]:
        """The spans that were dropped, by reason."""
        return {
            "room": self.dropped,
            "trace": self._sampler.dropped,
            "export": self._exports.dropped,
        }

    def take(self, node: str, message: Spans) -> None:
        """Take what a node sends; what it may not say of others is left out."""
        self.dropped += message.dropped
        try:
            spans = list(self._admitted(node, _unpacked(message.body)))
        except InvalidError as error:
            _log.warning("spans refused", extra={"node": node, "reason": error.message})
            return
        self._keep(self._sampler.offer(spans, time.monotonic()))

    def store(self) -> TraceStore:
        """The traces on disk.

        Raises:
            UnavailableError: they cannot be read now.
        """
        if self._store is None:
            raise UnavailableError(
                f"no traces yet: {self.trouble or 'the server is starting'}", retry_after=1.0
            )
        return self._store

    async def run(self) -> None:
        """Decide and write until cancelled."""
        with ThreadPoolExecutor(1, "traces") as writer:
            pause = PERIOD
            try:
                while True:
                    await asyncio.sleep(pause)
                    self._follow()
                    self._keep(self._sampler.due(time.monotonic()))
                    await self._tell_share()
                    written = await self._write(writer)
                    pause = PERIOD if written else min(max(PAUSE, pause * 2), LONGEST_PAUSE)
            finally:
                await self._exports.close()
                # nothing more comes: all is decided now, and written behind what is under way
                self._keep(self._sampler.due(time.monotonic() + DAY))
                await self._write(writer)
                if self._store is not None:
                    self._store.close()

    def add_routes(self, app: FastAPI) -> None:
        """Add the API of traces."""

        @app.get("/v1/traces")
        async def listed(
            _: Reader,
            *,
            app: str = "",
            service: str = "",
            name: str = "",
            errors: bool = False,
            shortest: Annotated[float | None, Query(alias="min")] = None,
            longest: Annotated[float | None, Query(alias="max")] = None,
            start: float | None = None,
            end: float | None = None,
            before: float | None = None,
            limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        ) -> TraceList:
            ends = [moment for moment in (end, before) if moment is not None]
            query = store.Query(
                app=app,
                service=service,
                name=name,
                errors=errors,
                shortest=shortest,
                longest=longest,
                start=start,
                end=min(ends) if ends else None,
                limit=limit,
            )
            return await asyncio.to_thread(self.store().search, query)

        @app.get("/v1/traces/{trace}")
        async def shown(trace: str, _: Reader) -> TraceDetail:
            return await asyncio.to_thread(self.store().get, trace)

        @app.put("/v1/sampling")
        async def sampling(request: SamplingRequest, who: Operator) -> SamplingRequest:
            share = "as declared" if request.share is None else f"{request.share * 100:.4g}%"
            await self._noted(who.who, "sampling", "traces", share)
            self._share = request.share
            self._shares = True
            await self._tell_share()
            return request

    def _admitted(self, node: str, body: bytes) -> Iterator[Span]:
        """The spans of a message, less those of instances that are placed on another node."""
        snapshot = self._sessions.snapshot
        for span in decode(body, node):
            whose = span.whose
            key = f"instances/{whose.app}/{whose.cell}/{whose.service}/{whose.instance}"
            placed = snapshot.get(Instance, key) if whose.instance else None
            if placed is None or placed.node == node:
                yield span

    def _follow(self) -> None:
        """Do as the manifests say now."""
        snapshot = self._sessions.snapshot
        policies, exports = {}, {}
        for name in snapshot.apps():
            app = snapshot.get(App, f"apps/{name}")
            monitoring = app.spec.monitoring if app else None
            if monitoring is not None:
                traces = monitoring.traces
                policies[name] = Policy(traces.slow, traces.share)
                exports[name] = monitoring.otlp
        self._sampler.policies = policies
        self._exports.want(exports)

    def _revision(self, path: str) -> str:
        placed = self._sessions.snapshot.get(Instance, f"instances/{path}")
        return placed.revision if placed else ""

    def _keep(self, decided: Sequence[Decided]) -> None:
        if not decided:
            return
        for sink in self._sinks:
            sink.kept(decided)
        self._waiting += decided
        excess = sum(len(one.spans) for one in self._waiting) - WAITING
        while excess > 0:
            gone = self._waiting.pop(0)
            excess -= len(gone.spans)
            self.dropped += len(gone.spans)

    async def _write(self, writer: ThreadPoolExecutor) -> bool:
        """Write what waits; whether the disk took it."""
        loop = asyncio.get_running_loop()
        batch = self._waiting
        try:
            if self._store is None:
                self._store = await loop.run_in_executor(writer, TraceStore, self._path)
            self._waiting = []
            await loop.run_in_executor(writer, self._store.write, batch, self._clock())
        except (Error, OSError) as error:
            self._waiting = [*batch, *self._waiting] if self._waiting is not batch else batch
            if not self.trouble:
                _log.error("traces not written", extra={"reason": str(error)})
            self.trouble = str(error)
            return False
        except Exception:  # noqa: BLE001 - the control plane goes on; these would fail again
            _log.exception("traces lost", extra={"traces": len(batch)})
            self.dropped += sum(len(one.spans) for one in batch)
        if self.trouble:
            _log.info("traces written again")
            self.trouble = ""
        return True

    async def _tell_share(self) -> None:
        """Tell each node's session once which share of requests begins a trace."""
        if not self._shares:
            return
        for node in self._sessions.snapshot.nodes():
            try:
                session = self._sessions.get(node)
                if self._told.get(node) == (session, self._share):
                    continue
                subject = "" if self._share is None else f"{self._share:g}"
                command = Command(id=new_command_id(), action="sampling", subject=subject)
                async with asyncio.timeout(PATIENCE):
                    await self._sessions.call(node, command)
                self._told[node] = (session, self._share)
            except (Error, TimeoutError) as error:
                _log.info("sampling not told", extra={"node": node, "reason": str(error)})


class TraceCounts:
    """What was dropped of traces, as series of the server's own."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    async def read(self) -> Reading:
        """Look."""
        metric = names.MONITORING_DROPPED_SPANS
        return Reading(
            tuple(
                (metric.series(SERVER, reason=reason), float(count))
                for reason, count in self._tracing.counts().items()
            )
        )


class TraceExemplars:
    """Exemplars as Prometheus's API asks for them."""

    def __init__(self, found: ExemplarStore) -> None:
        self._found = found

    def exemplars(
        self, selectors: Sequence[Sequence[Matcher]], start: float, end: float
    ) -> list[ExemplarSeries]:
        """Observations of the series that fulfil all matchers of any selector."""
        return [
            ExemplarSeries(
                labels,
                tuple(
                    Exemplar({"trace_id": o.trace, "span_id": o.span}, o.seconds, o.time)
                    for o in observations
                ),
            )
            for labels, observations in self._found.matching(selectors, start, end)
        ]


def _unpacked(body: str) -> bytes:
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(body, validate=True), LARGEST)
    except (binascii.Error, zlib.error) as error:
        raise InvalidError(f"a body that is not packed: {error}") from error
    if unpacker.unconsumed_tail:
        raise InvalidError(f"a body of more than {LARGEST} bytes")
    return data
