"""Alerts in a world of their own: seconds that a test makes, an evaluator and receivers it scripts.

`AlertWorld` runs the server's `Alerting` over a store, with time that stands still until the test
moves it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from bedstone.control import scheduling
from bedstone.control.loop import Controller, ControlLoop
from bedstone.control.monitoring.alerts.evaluation import Measured
from bedstone.control.monitoring.alerts.groups import Due
from bedstone.errors import Error
from bedstone.model.api import ApplyRequest
from bedstone.model.manifest import parse_manifest
from bedstone.server.alerting import Alerting
from bedstone.server.changes import Changes
from bedstone.store import Store
from bedstone.telemetry.frames import Labels
from bedstone.testing.series_memory import MemoryReader

START = 1_800_000_000
Values = Mapping[Labels, float] | Error | None


@dataclass
class ScriptedEvaluator:
    """Answers each expression as a test says; what it says nothing of has no value."""

    script: dict[str, Callable[[int], Values]] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)

    def say(self, expression: str, values: Values | Callable[[int], Values]) -> None:
        """From now on an expression gives these values, always or by second."""
        self.script[expression] = values if callable(values) else lambda _: values

    def instant(self, expression: str, at: int) -> Sequence[Measured]:
        """As scripted."""
        self.asked.append((expression, at))
        answer = self.script.get(expression)
        values = answer(at) if answer else None
        if isinstance(values, Error):
            raise values
        return [Measured(labels, value) for labels, value in (values or {}).items()]


@dataclass
class Told:
    """One notification that a receiver took."""

    at: float
    receiver: str
    firing: list[str]
    resolved: list[str]


@dataclass
class ScriptedReceivers:
    """Takes notifications, or fails as a test says."""

    told: list[Told] = field(default_factory=list)
    tried: list[tuple[float, str]] = field(default_factory=list)
    failing: dict[str, Error] = field(default_factory=dict)
    hanging: dict[str, asyncio.Event] = field(default_factory=dict)

    async def send(self, due: Due, now: float) -> None:
        """See `bedstone.server.alert_sending.Sender`."""
        name = due.target.name
        self.tried.append((now, name))
        if event := self.hanging.get(name):
            await event.wait()
        if error := self.failing.get(name):
            raise error
        firing, resolved = (
            sorted(_named(alert.labels) for alert in alerts)
            for alerts in (due.firing, due.resolved)
        )
        self.told.append(Told(now, name, firing, resolved))

    def of(self, receiver: str = "people") -> list[tuple[list[str], list[str]]]:
        """What a receiver was told: what fires and what is over, each time."""
        return [(told.firing, told.resolved) for told in self.told if told.receiver == receiver]


def _named(labels: Mapping[str, str]) -> str:
    rest = [f"{k}={v}" for k, v in sorted(labels.items()) if k not in {"app", "rule", "severity"}]
    return " ".join([labels.get("rule", ""), *rest])


@dataclass
class AlertWorld:
    """A server's alerts; see the module.

    Args:
        store: an entered store.
        text: the manifest of the app.
    """

    store: Store
    text: str
    reader: MemoryReader = field(default_factory=MemoryReader)
    evaluator: ScriptedEvaluator = field(default_factory=ScriptedEvaluator)
    receivers: ScriptedReceivers = field(default_factory=ScriptedReceivers)
    now: float = START
    _following: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.reader.finish(START)
        self.loop = ControlLoop(self.store, [Controller("scheduling", scheduling.plan)])
        self.changes = Changes(self.store, self.loop, clock=lambda: self.now)

    @property
    def alerting(self) -> Alerting:
        """The server's alerts, while it runs."""
        return self._alerting

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Alerting]:
        """Run the server's part; leaving ends it as SIGKILL would: nothing is written any more."""
        self._alerting = Alerting(
            self.store,
            self.loop,
            self.reader,
            self.evaluator,
            self.receivers,
            self.changes,
            clock=lambda: self.now,
            sleep=lambda _: asyncio.sleep(0.001),
            chance=lambda: 1.0,
        )
        if self._following is None:
            self._following = asyncio.create_task(self.loop.run())
            await self.loop.loaded()
            await self.apply(self.text)
        self._running = asyncio.create_task(self._alerting.run())
        try:
            await self.settle()
            yield self._alerting
        finally:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running

    async def close(self) -> None:
        """Let go of the store."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)

    async def apply(self, text: str) -> None:
        """Apply a manifest."""
        spec = parse_manifest(text).spec
        await self.changes.apply(spec.app, ApplyRequest(spec=spec, root="/r"), "test")

    async def seconds(self, count: int = 1, missing: Mapping[str, str] | None = None) -> None:
        """Let seconds pass, and all that follows from each happen."""
        for _ in range(count):
            self.now = self.reader.last() + 1
            self.reader.finish(int(self.now), missing)
            await self.settle()

    async def wait(self, seconds: float) -> None:
        """Let time pass in which no second is collected."""
        self.now += seconds
        await self.settle()

    async def settle(self) -> None:
        """Let everything happen that is due."""
        # Twice: what was told may make something else due.
        for _ in range(2):
            await asyncio.sleep(0.005)
            settled = asyncio.create_task(self._alerting.settled(self.reader.last()))
            await asyncio.wait({settled, self._running}, return_when=asyncio.FIRST_COMPLETED)
            if not settled.done():
                settled.cancel()
                await self._running

    def states(self, rule: str) -> list[str]:
        """The states of a rule's alerts, with their labels."""
        return [
            " ".join([alert.state, *(f"{key}={value}" for key, value in alert.labels)])
            for alert in self._alerting.board.of(("shop", rule))
        ]
