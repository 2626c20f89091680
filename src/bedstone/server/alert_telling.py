"""Telling: plans what is due, has it sent, and records what was told.

Rules:
- A receiver that hangs delays only itself: each group is told in a task of its own, with a limit on
  time, and on how many of one receiver are told at once.
- What was told is recorded after the receiver has taken it, and before, that it may have been.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from bedstone.control.loop import ControlLoop
from bedstone.control.monitoring.alerts import groups
from bedstone.control.monitoring.alerts.board import Board, told
from bedstone.control.monitoring.alerts.groups import Due, Firing, GroupKey, Target
from bedstone.errors import Error, UnavailableError
from bedstone.model.alert_records import AlertGroupRecord
from bedstone.model.alerts import AlertEvent, Notification
from bedstone.server.alert_sending import TIMEOUT, Sender
from bedstone.server.alert_silences import Silences
from bedstone.server.alert_store import AlertStore

_log = logging.getLogger(__name__)
AT_ONCE: Final = 4
"""Notifications to one receiver."""
PATIENCE: Final = 1.0
"""Seconds that the store has to take what is about to be told."""
_REMEMBERED: Final = 3600.0


@dataclass
class Telling:
    """What receivers were told.

    Args:
        loop: who is to be told.
        sender: tells them.
        kept: where it is recorded.
        silences: what they are not told.
        clock: seconds since the epoch.
        chance: a number from 0 to 1.
    """

    loop: ControlLoop
    sender: Sender
    kept: AlertStore
    silences: Silences
    clock: Callable[[], float]
    chance: Callable[[], float]
    records: dict[GroupKey, AlertGroupRecord] = field(default_factory=dict)
    _ended: dict[str, float] = field(default_factory=dict)
    _under_way: set[GroupKey] = field(default_factory=set)
    _slots: dict[tuple[str, str], asyncio.Semaphore] = field(default_factory=dict)

    def restore(self, records: Iterable[AlertGroupRecord]) -> None:
        """Take what the store has."""
        self.records = {groups.key_of(record): record for record in records}

    @property
    def busy(self) -> bool:
        """Whether somebody is being told."""
        return bool(self._under_way)

    def ended(self, identity: str) -> None:
        """Remember when an alert ended."""
        self._ended[identity] = self.clock()

    def tell(self, board: Board, group: asyncio.TaskGroup) -> None:
        """Begin to tell all that is due."""
        now = self.clock()
        self.silences.expire()
        for one in [one for one, at in self._ended.items() if at < now - _REMEMBERED]:
            del self._ended[one]
        due, gone = groups.plan(
            self._targets(),
            [Firing(r.app, told(r, alert), r.group_by) for r, alert in board.firing()],
            self.records,
            lambda labels: self.silences.of(labels) is not None,
            lambda one: self._ended.get(one, 0.0),
            now,
        )
        for record in gone:
            del self.records[groups.key_of(record)]
            self.kept.delete(record.key)
        for item in due:
            if item.key not in self._under_way:
                self._under_way.add(item.key)
                group.create_task(self._deliver(item))

    def _targets(self) -> Iterator[Target]:
        """Every receiver, with the apps of whose alerts it is told."""
        apps = {name: app for name, app in self.loop.snapshot.apps().items() if not app.deleting}
        yield Target("", "log", None, frozenset({"", *apps}))
        for name, app in apps.items():
            for receiver, spec in app.spec.receivers.items():
                yield Target(name, receiver, spec, frozenset({"", name}))

    async def _deliver(self, due: Due) -> None:
        try:
            if due.silent:
                self._keep(due.succeeded(self.clock()))
                return
            place = due.target.app, due.target.name
            async with self._slots.setdefault(place, asyncio.Semaphore(AT_ONCE)):
                if due.target.spec is not None:
                    await self._begin(due)
                problem, maybe = await self._send(due)
            now = self.clock()
            failed = due.failed(now, self.chance(), maybe=maybe)
            record = failed if problem else due.succeeded(now)
            attempt = Notification(
                at=now, receiver=due.target.name, ok=not problem, message=problem
            )
            if due.target.spec is not None:
                notified = (*record.notified, attempt)[-groups.KEPT :]
                record = record.model_copy(update={"notified": notified})
                # Every success, and the first failure of a row.
                if attempt.ok or due.record.attempts == 0:
                    self._write_history(due, attempt)
            self._keep(record)
        finally:
            self._under_way.discard(due.key)

    async def _begin(self, due: Due) -> None:
        """Write down that a receiver may have been told; no store that is away keeps it waiting."""
        record = due.begun()
        self._keep(record)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self.kept.tried(record.key)

    async def _send(self, due: Due) -> tuple[str, bool]:
        """Tell a receiver; why it failed, if it did, and whether it may be told all the same."""
        try:
            async with asyncio.timeout(2 * TIMEOUT):
                await self.sender.send(due, self.clock())
        except UnavailableError as error:
            return error.message, False
        except Error as error:
            return error.message, True
        except TimeoutError:
            return "the receiver did not answer in time", True
        except Exception as error:  # noqa: BLE001 - one receiver must not end the others
            _log.exception("alert not told", extra={"receiver": due.target.name})
            return f"an error of ours: {type(error).__name__}", True
        else:
            return "", False

    def _keep(self, record: AlertGroupRecord) -> None:
        self.records[groups.key_of(record)] = record
        self.kept.put(record)

    def _write_history(self, due: Due, attempt: Notification) -> None:
        alerts = [*due.firing, *due.resolved]
        counted = f"{len(due.firing)} firing, {len(due.resolved)} resolved"
        for rule in dict.fromkeys(alert.labels.get("rule", "") for alert in alerts):
            of_rule = [alert for alert in alerts if alert.labels.get("rule", "") == rule]
            self.kept.happened(
                AlertEvent(
                    at=attempt.at,
                    app=of_rule[0].labels.get("app", ""),
                    rule=rule,
                    labels=dict(due.record.labels),
                    what="notified" if attempt.ok else "failed",
                    detail=f"{due.target.name}: {attempt.message or counted}",
                )
            )
