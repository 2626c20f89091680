"""The counts of every app's transaction log, each second: as series of the server's own.

Rules:
- A log is one source, `transactions/APP`. Its identity is the source's incarnation, and nothing
  that only this process knows: the next one must call the same life the same. A log that counts
  less than it did (its database was restored) says so by that.
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
        self._asking: dict[str, asyncio.Task[Counts]] = {}

    async def read(self) -> Reading:
        """Ask every log, side by side; never fails, and takes no longer than the patience."""
        logs = self._logs()
        for app in self._asking.keys() - logs.keys():
            self._asking.pop(app).cancel()
        answers = await asyncio.gather(*(self._ask(app, log) for app, log in logs.items()))
        series: list[tuple[Series, float]] = []
        incarnations: dict[str, str] = {}
        missing: dict[str, str] = {}
        for app, answer in zip(logs, answers, strict=True):
            if isinstance(answer, str):
                missing[source_of(app)] = answer
            else:
                series += series_of(app, answer)
                incarnations[source_of(app)] = answer.log
        return Reading(tuple(series), incarnations, missing)

    async def close(self) -> None:
        """Ask no more."""
        asking = list(self._asking.values())
        self._asking.clear()
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    async def _ask(self, app: str, log: Counted | str) -> Counts | str:
        if isinstance(log, str):
            return log
        before = self._asking.get(app)
        if before is not None:
            if not before.done():
                return "its log has not answered yet"
            if not before.cancelled():
                before.exception()  # what came late is dropped, a failure too
        asked = self._asking[app] = asyncio.ensure_future(log.counts())
        done, _ = await asyncio.wait({asked}, timeout=self._patience)
        if not done:
            return f"its log did not answer within {self._patience:g} s"
        self._asking.pop(app, None)
        try:
            return asked.result()
        except Error as error:
            return error.message
        except Exception as error:  # noqa: BLE001 - a bug here must not end the second
            _log.exception("transaction counts", extra={"app": app})
            return f"an error of ours: {type(error).__name__}"
