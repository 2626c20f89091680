"""The counts of every app's transaction log, each second: as series of the server's own.

Rules:
- A log is one source, `transactions/APP`. Its identity is the source's incarnation; a log that
  counts less than it did (its database was restored) is another life of it.
- A log that does not answer within the time is named, with the reason: the second is incomplete.
  It is asked one question at a time; what comes late is dropped, for it is of another second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from bedstone.errors import Error
from bedstone.telemetry.frames import Series
from bedstone.telemetry.names import TRANSACTIONS, TRANSACTIONS_OPEN, TRANSACTIONS_STUCK
from bedstone.transactions.model import Counts

_log = logging.getLogger(__name__)

PATIENCE = 0.5
"""Seconds within which a log answers."""


class Counted(Protocol):
    """What is asked of a log."""

    async def counts(self) -> Counts:
        """As `bedstone.transactions.model.Log.counts`."""
        ...


@dataclass(frozen=True, slots=True)
class Reading:
    """What the sources said of one moment.

    Args:
        series: each series with its value.
        incarnations: of each source that answered.
        missing: for each source that did not, why.
    """

    series: tuple[tuple[Series, float], ...] = ()
    incarnations: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


def series_of(app: str, counts: Counts) -> Iterator[tuple[Series, float]]:
    """The series of one app's log."""
    source = source_of(app)
    for event, number in sorted(counts.events.items()):
        labels = (("app", app), ("event", event))
        yield Series(TRANSACTIONS.name, labels, "counter", source), float(number)
    for state, number in sorted(counts.open.items()):
        labels = (("app", app), ("state", str(state)))
        yield Series(TRANSACTIONS_OPEN.name, labels, "gauge", source), float(number)
    yield Series(TRANSACTIONS_STUCK.name, (("app", app),), "gauge", source), float(counts.stuck)


def source_of(app: str) -> str:
    """The name of an app's log among the sources."""
    return f"transactions/{app}"


@dataclass(slots=True)
class _Life:
    """What is remembered of a log between two seconds."""

    identity: str = ""
    events: Mapping[str, int] = field(default_factory=dict)
    lives: int = 0
    asking: asyncio.Task[Counts] | None = None

    def incarnation(self, counts: Counts) -> str:
        """What tells this life of the log from an earlier one."""
        if counts.log != self.identity:
            self.identity, self.lives = counts.log, 0
        elif any(counts.events[event] < number for event, number in self.events.items()):
            self.lives += 1
        self.events = counts.events
        return self.identity if not self.lives else f"{self.identity}.{self.lives}"


class TransactionCounts:
    """Reads the logs of all apps.

    Args:
        logs: each app that declares transactions, with its log, or why it is not open.
        patience: seconds within which a log answers.
    """

    def __init__(
        self, logs: Callable[[], Mapping[str, Counted | str]], *, patience: float = PATIENCE
    ) -> None:
        self._logs = logs
        self._patience = patience
        self._lives: dict[str, _Life] = {}

    async def read(self) -> Reading:
        """Ask every log, side by side; never fails, and takes no longer than the patience."""
        logs = self._logs()
        for app in self._lives.keys() - logs.keys():
            asking = self._lives.pop(app).asking
            if asking is not None:
                asking.cancel()
        answers = await asyncio.gather(*(self._ask(app, log) for app, log in logs.items()))
        series: list[tuple[Series, float]] = []
        incarnations: dict[str, str] = {}
        missing: dict[str, str] = {}
        for app, answer in zip(logs, answers, strict=True):
            if isinstance(answer, str):
                missing[source_of(app)] = answer
            else:
                series += series_of(app, answer)
                incarnations[source_of(app)] = self._lives[app].incarnation(answer)
        return Reading(tuple(series), incarnations, missing)

    async def close(self) -> None:
        """Ask no more."""
        asking = [life.asking for life in self._lives.values() if life.asking is not None]
        self._lives.clear()
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    async def _ask(self, app: str, log: Counted | str) -> Counts | str:
        if isinstance(log, str):
            return log
        life = self._lives.setdefault(app, _Life())
        if life.asking is not None:
            if not life.asking.done():
                return "its log has not answered yet"
            if not life.asking.cancelled():
                life.asking.exception()  # what came late is dropped, a failure too
        life.asking = asyncio.ensure_future(log.counts())
        done, _ = await asyncio.wait({life.asking}, timeout=self._patience)
        if not done:
            return f"its log did not answer within {self._patience:g} s"
        asked, life.asking = life.asking, None
        try:
            return asked.result()
        except Error as error:
            return error.message
        except Exception as error:  # noqa: BLE001 - a bug here must not end the second
            _log.exception("transaction counts", extra={"app": app})
            return f"an error of ours: {type(error).__name__}"
