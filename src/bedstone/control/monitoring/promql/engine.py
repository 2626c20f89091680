"""The engine: answers expressions from a `Reader`, within limits.

Rules:
- A query that would read or give too much is refused before it does; one that takes too long is
  ended between two steps of its work. Neither harms who else is served.
- A range query is one evaluation of all of its steps. If that would read too much at once, its
  steps are halved until it does not.
- A time after the last finished second, by up to `FRESH` seconds, is answered as of that second:
  the newest seconds are still being collected.

numpy and the parser are imported with the first query.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from bedstone.control.monitoring.promql.results import Answer, Matrix, Series, Value
from bedstone.control.monitoring.reading import Reader
from bedstone.errors import InvalidError, UnavailableError

if TYPE_CHECKING:
    from bedstone.control.monitoring.promql.context import Notes

T = TypeVar("T")
_DAY: Final = 86_400
NAMED: Final = 10_000
"""Incomplete seconds that an answer names, or not many more."""
FRESH: Final = 10
"""Seconds."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one query may take.

    Args:
        seconds: to answer.
        series: that one selector may read.
        points: that one selector may read at once; a point takes 9 bytes, and several times that
            while it is computed.
        given: points that the result may have; one takes about 100 bytes until it is sent.
        steps: of a range query.
        queries: that are answered at the same time; others wait.
    """

    seconds: float = 30.0
    series: int = 100_000
    points: int = 24_000_000
    given: int = 5_000_000
    steps: int = 11_000
    queries: int = 4


class Engine:
    """Answers expressions. Its methods may be called from any thread.

    Args:
        reader: of the series.
        limits: of each query.
        clock: seconds, for the limit of time.
    """

    def __init__(
        self,
        reader: Reader,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reader = reader
        self.limits = limits or Limits()
        self._clock = clock
        # Of its own, so that slow queries keep nothing else waiting for a thread.
        self._pool = ThreadPoolExecutor(self.limits.queries, "promql")

    def instant(
        self, expression: str, at: int | None = None, cancelled: threading.Event | None = None
    ) -> Answer:
        """Evaluate at one time, the last finished second by default.

        Raises:
            InvalidError: the expression is malformed, asks for too much, or for what we have not.
            UnavailableError: it took too long, or was cancelled.
        """
        from bedstone.control.monitoring.promql import answering

        last = self.reader.last()
        when = last if at is None else at
        seen = last if last < when <= last + FRESH else when
        context = answering.context(
            self.reader, [seen], 0, self.limits, self._watch(cancelled), when
        )
        value = answering.instant(answering.parsed(expression), context, when)
        return self._answer(value, context.notes)

    def range(
        self,
        expression: str,
        start: int,
        end: int,
        step: int,
        cancelled: threading.Event | None = None,
    ) -> Answer:
        """Evaluate at each `step` seconds from `start` to `end`, both included; gives a `Matrix`.

        Raises:
            InvalidError: the expression is malformed, asks for too much, or for what we have not.
            UnavailableError: it took too long, or was cancelled.
        """
        from bedstone.control.monitoring.promql import answering

        if step < 1:
            raise InvalidError(f"got a step of {step} s, expected at least 1 s")
        if end < start:
            raise InvalidError(f"got an end of {end} before the start {start}")
        times = range(start, end + 1, step)
        if len(times) > self.limits.steps:
            raise InvalidError(
                f"got {len(times)} steps, expected at most {self.limits.steps}",
                hint="ask for a longer step or a shorter span",
            )
        watch = self._watch(cancelled)
        whole = answering.context(self.reader, times, step, self.limits, watch, start, end)
        parsed = answering.parsed(expression)
        left = self.limits.given

        def parts(some: Sequence[int]) -> list[Matrix]:
            nonlocal left
            context = answering.narrowed(whole, some)
            try:
                found = answering.ranged(parsed, context, left)
                left -= sum(len(series.times) for series in found.series)
                return [found]
            except answering.TooMuchError:
                if len(some) == 1:
                    raise
            half = len(some) // 2
            return parts(some[:half]) + parts(some[half:])

        return self._answer(_joined(parts(times)), whole.notes)

    async def query(self, expression: str, at: int | None = None) -> Answer:
        """`instant`, in a thread."""
        return await self.in_thread(lambda gone: self.instant(expression, at, gone))

    async def query_range(self, expression: str, start: int, end: int, step: int) -> Answer:
        """`range`, in a thread."""
        return await self.in_thread(lambda gone: self.range(expression, start, end, step, gone))

    async def in_thread(self, work: Callable[[threading.Event], T]) -> T:
        """Do a query's work in a thread, at most `limits.queries` at the same time.

        Args:
            work: gets an event that is set once nobody waits for it any more.
        """
        cancelled = threading.Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, cancelled)
        finally:
            cancelled.set()  # who asked has gone: the thread ends with its next step

    def _watch(self, cancelled: threading.Event | None) -> Callable[[], None]:
        """What fails once the time is over."""
        deadline = self._clock() + self.limits.seconds

        def watch() -> None:
            if cancelled is not None and cancelled.is_set():
                raise UnavailableError("the query was cancelled")
            if self._clock() > deadline:
                raise UnavailableError(
                    f"the query took longer than {self.limits.seconds:g} s",
                    hint="ask for fewer series, a shorter span, or a longer step",
                )

        return watch

    def _answer(self, value: Value, notes: Notes) -> Answer:
        incomplete = self._incomplete(notes)
        return Answer(
            value=value,
            resolution=max(notes.resolutions, default=1),
            incomplete=dict(sorted(incomplete.items())),
            warnings=tuple(notes.warnings),
        )

    def _incomplete(self, notes: Notes) -> dict[int, dict[str, str]]:
        """The incomplete seconds that were read, the newest first, up to some number."""
        found: dict[int, dict[str, str]] = {}
        last = self.reader.last()
        for start, end in reversed(notes.spans()):
            for until in range(min(end, last), start - 1, -_DAY):
                found.update(self.reader.incomplete(max(start, until - _DAY + 1), until))
                if len(found) >= NAMED:
                    notes.warn("more seconds are incomplete than are named here: older ones, too")
                    return found
        return found


def _joined(parts: Sequence[Matrix]) -> Matrix:
    """The parts of a range query, which follow one another in time, as one."""
    if len(parts) == 1:
        return parts[0]
    found: dict[tuple[tuple[str, str], ...], list[Series]] = {}
    for part in parts:
        for series in part.series:
            found.setdefault(tuple(sorted(series.labels.items())), []).append(series)
    return Matrix(
        tuple(
            Series(
                pieces[0].labels,
                tuple(time for piece in pieces for time in piece.times),
                tuple(value for piece in pieces for value in piece.values),
            )
            for pieces in found.values()
        )
    )


def check(expression: str) -> None:
    """Refuse an expression that is malformed or asks for what we have not, without data.

    Raises:
        InvalidError: says why.
    """
    from bedstone.control.monitoring.promql import checking

    checking.check(expression)


def evaluate(reader: Reader, expression: str, at: int | None = None) -> Value:
    """The value of an expression at one time, with the limits' defaults."""
    return Engine(reader).instant(expression, at).value


def evaluate_range(reader: Reader, expression: str, start: int, end: int, step: int) -> Matrix:
    """The values of an expression over a span, with the limits' defaults."""
    return Engine(reader).range(expression, start, end, step).matrix()
