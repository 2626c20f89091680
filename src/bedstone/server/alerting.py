"""Alerts, as the server runs them: evaluates rules, keeps their state, and tells receivers.

Three loops over one board: each finished second the rules that are due are evaluated, each in a
thread; what changed is written to the store (`alert_store`); and what is due is told
(`alert_telling`).

Rules:
- A rule is evaluated once a second at most, and takes a fiftieth of the time at most: one that is
  slow is looked at less often, beside those that are quick and not before them.
- What was pending or firing, and what was told, is in the store; so a restart neither begins a
  `for` anew nor tells again what was told.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Literal

from bedstone.control.loop import ControlLoop
from bedstone.control.monitoring.alerts import builtin
from bedstone.control.monitoring.alerts.board import (
    Board,
    Key,
    identity,
    labels_of,
    recorded,
    restored,
)
from bedstone.control.monitoring.alerts.evaluation import Evaluator, Examiner
from bedstone.control.monitoring.alerts.machine import (
    Alert,
    Certainty,
    Outcome,
    Transition,
    What,
)
from bedstone.control.monitoring.alerts.rules import Facts, Rule, declared
from bedstone.control.monitoring.reading import Reader
from bedstone.errors import Error, NotFoundError
from bedstone.model.alert_records import (
    ALERTS,
    GROUPS,
    SILENCES,
    AlertGroupRecord,
    AlertRecord,
    SilenceRecord,
)
from bedstone.model.alerts import AlertEvent, Silence, SilenceRequest
from bedstone.server.alert_sending import Sender
from bedstone.server.alert_silences import Silences
from bedstone.server.alert_store import AlertStore
from bedstone.server.alert_telling import Telling
from bedstone.server.changes import Changes
from bedstone.store import Store

_log = logging.getLogger(__name__)
POLL: Final = 0.2
"""Seconds between looks for a finished second."""
TELL: Final = 0.5
"""Seconds between looks for what is due."""
SHARE: Final = 50
"""A rule is not due again before so many times what its evaluation took has passed."""
SLOW: Final = 1.0
"""Seconds from which a rule is slow."""
FIRST_LOOK: Final = 10.0
"""Seconds that the rules have for their first evaluation before anybody is told."""


@dataclass
class _Pace:
    """When a rule is due, and whether it is being evaluated."""

    due: int = 0
    slow: bool = False
    running: bool = False


@dataclass
class Alerting:
    """All alerts of the installation.

    Args:
        store: where their state is kept.
        loop: what is declared.
        reader: the series.
        evaluator: PromQL over them.
        sender: tells receivers.
        changes: writes silences, with who made them.
        clock: seconds since the epoch.
        sleep: waits so many seconds.
        chance: a number from 0 to 1.
    """

    store: Store
    loop: ControlLoop
    reader: Reader
    evaluator: Evaluator
    sender: Sender
    changes: Changes
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = random.random
    board: Board = field(default_factory=Board)
    second: int = 0
    """The last second that was looked at."""
    _paces: dict[str, _Pace] = field(default_factory=dict)
    _declared: object = None
    _begun: float = 0.0
    _settled: bool = False

    def __post_init__(self) -> None:
        self.kept = AlertStore(self.store, self.sleep)
        self.examiner = Examiner(self.reader, self.evaluator)
        self.silences = Silences(self.kept, self.changes, self.clock)
        self.telling = Telling(
            self.loop, self.sender, self.kept, self.silences, self.clock, self.chance
        )

    async def run(self) -> None:
        """Watch and tell, until cancelled."""
        await self.loop.loaded()
        await self._restore()
        quick, slow = ThreadPoolExecutor(4, "alerts-quick"), ThreadPoolExecutor(2, "alerts-slow")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.kept.run())
                group.create_task(self._watch(group, quick, slow))
                group.create_task(self._tell(group))
        finally:
            for pool in (quick, slow):
                pool.shutdown(wait=False, cancel_futures=True)

    async def _restore(self) -> None:
        while True:
            try:
                alerts = await self.kept.load(AlertRecord, ALERTS)
                told_before = await self.kept.load(AlertGroupRecord, GROUPS)
                silences = await self.kept.load(SilenceRecord, SILENCES)
            except Error as error:
                _log.warning("alerts not restored yet", extra={"error": error.message})
                await self.sleep(1.0)
            else:
                break
        self.board = Board([restored(record) for record in alerts])
        self.telling.restore(told_before)
        self.silences.restore(silences)
        # What the series held before the start may be older than what was restored: a second that
        # was lost with the server said more than the last one that was not.
        self.second = self.reader.last()
        self._declare(self.second)

    async def _watch(
        self, group: asyncio.TaskGroup, quick: ThreadPoolExecutor, slow: ThreadPoolExecutor
    ) -> None:
        while True:
            last = self.reader.last()
            if last > self.second:
                try:
                    await self._look(last, group, quick, slow)
                except Exception:  # noqa: BLE001 - the control plane goes on without this second
                    _log.exception("alerts of a second failed", extra={"second": last})
                    self.second = last
            else:
                await self.sleep(POLL)

    async def _look(
        self,
        second: int,
        group: asyncio.TaskGroup,
        quick: ThreadPoolExecutor,
        slow: ThreadPoolExecutor,
    ) -> None:
        loop = asyncio.get_running_loop()
        # Not among the threads that readers' questions take.
        certainty = await loop.run_in_executor(quick, self.examiner.certainty, second)
        self.second = second
        self._declare(second)
        for rule, pace in self._due(second):
            if isinstance(rule.source, Facts):
                # It reads what this thread owns, and reads little.
                pace.due = second + rule.every
                self._take(rule, self.examiner.examine(rule, second, certainty), second)
            else:
                pace.running = True
                pool = slow if pace.slow else quick
                group.create_task(self._examine(rule, second, certainty, pace, pool))

    def _due(self, second: int) -> list[tuple[Rule, _Pace]]:
        """The rules to evaluate in a second."""
        paces = [
            (rule, self._paces.setdefault(rule.version, _Pace()))
            for rule in self.board.rules.values()
        ]
        return [(rule, pace) for rule, pace in paces if not pace.running and second >= pace.due]

    async def settled(self, second: int) -> None:
        """Wait until a second was looked at, and all that follows from it is told and written."""
        while (
            self.second < second
            or any(pace.running for pace in self._paces.values())
            or self.telling.busy
        ):
            await self.sleep(POLL)
        await self.kept.written()

    async def _examine(
        self,
        rule: Rule,
        second: int,
        certainty: Certainty,
        pace: _Pace,
        pool: ThreadPoolExecutor,
    ) -> None:
        def work() -> tuple[Outcome, float]:
            begun = time.thread_time()
            outcome = self.examiner.examine(rule, second, certainty)
            return outcome, time.thread_time() - begun

        begun = time.monotonic()
        outcome, spent = await asyncio.get_running_loop().run_in_executor(pool, work)
        pace.slow = time.monotonic() - begun > SLOW
        pace.due = second + max(rule.every, math.ceil(spent * SHARE))
        pace.running = False
        self._take(rule, outcome, second)

    def _declare(self, second: int) -> None:
        """Follow the manifests; does nothing where they are as before."""
        snapshot = self.loop.snapshot
        specs = {name: app.spec for name, app in snapshot.apps().items() if not app.deleting}
        if self._declared == specs:
            return
        self._declared = specs
        rules = [*builtin.of_installation(specs.values(), snapshot, self.reader)]
        for spec in specs.values():
            rules += builtin.of_app(spec, snapshot)
            rules += declared(spec)
        before = {rule.version for rule in self.board.rules.values()}
        self._note(self.board.declare(rules, second))
        gone = before - {rule.version for rule in rules}
        self.examiner.forget(gone)
        for version in gone:
            self._paces.pop(version, None)

    def _take(self, rule: Rule, outcome: Outcome, second: int) -> None:
        before = self.board.outcomes.get((rule.app, rule.name))
        error = before.error if before else ""
        if outcome.error != error:
            _log.warning(
                "rule cannot be evaluated" if outcome.error else "rule is evaluated again",
                extra={"app": rule.app, "rule": rule.name, "error": outcome.error},
            )
        self._note(self.board.take(rule, outcome, second))

    def _note(self, changed: list[Transition]) -> None:
        """Have the store follow."""
        for transition in changed:
            alert = transition.alert
            record = recorded(alert)
            if transition.what == "resolved":
                self.kept.delete(record.key)
                rule = self.board.rules.get((alert.app, alert.rule))
                if rule and alert.state == "firing":
                    self.telling.ended(identity(rule, alert))
            else:
                self.kept.put(record)
            if transition.what == "resolved" and alert.state != "firing":
                continue
            self._happened(transition.at, transition.what, alert, transition.detail)

    def _happened(
        self, at: float, what: What | Literal["silenced"], alert: Alert, detail: str
    ) -> None:
        self.kept.happened(
            AlertEvent(
                at=at,
                app=alert.app,
                rule=alert.rule,
                labels=dict(alert.labels),
                what=what,
                value=alert.value,
                detail=detail,
            )
        )

    async def _tell(self, group: asyncio.TaskGroup) -> None:
        while True:
            if self._known():
                try:
                    self.telling.tell(self.board, group)
                except Exception:  # noqa: BLE001 - the control plane goes on
                    _log.exception("alerts not told")
            await self.sleep(TELL)

    def _known(self) -> bool:
        """Whether what fires is known: every rule was evaluated since the start, or had time to.

        Before, what is restored would be told again though it is over, and what is not restored
        yet would be told to be over.
        """
        if not self._settled and self._declared is not None:
            self._begun = self._begun or self.clock()
            late = self.clock() - self._begun > FIRST_LOOK
            self._settled = late or self.board.rules.keys() <= self.board.outcomes.keys()
        return self._settled

    async def silence(self, request: SilenceRequest, who: str) -> Silence:
        """Tell nobody of what matches, for a time."""
        record = await self.silences.add(request, who)
        for rule, alert in self.board.firing():
            if self.silences.of(labels_of(rule, alert)) is record:
                self._happened(self.clock(), "silenced", alert, f"by {who}: {request.why}")
        return record.public()

    def rule(self, name: str, app: str) -> Rule:
        """The rule of a name, of an app where one is given.

        Raises:
            NotFoundError: there is none, or several apps have one.
        """
        found: list[Key] = [
            key for key in self.board.rules if key[1] == name and app in ("", key[0])
        ]
        if len(found) == 1:
            return self.board.rules[found[0]]
        if found:
            apps = ", ".join(key[0] for key in found)
            raise NotFoundError(
                f"the apps {apps} have a rule {name} each", hint="say which with --app"
            )
        known = ", ".join(sorted({key[1] for key in self.board.rules})) or "none"
        raise NotFoundError(f"there is no rule {name}, there is {known}")
