"""Tail sampling: which traces are kept, decided when enough of them is known.

Pure: time is an argument, in seconds on any clock that does not go back.

Rules:
- A trace with an error is kept, always. So is one that is slow: its first span took at least as
  long as its app's policy says, or longer than 99 of 100 recent ones of the same name. Of the rest,
  `rest` a second are kept, and of what there is beyond a share that the policy says.
- What is to be kept is told as soon as nothing came for `settle` seconds; what is not waits for
  `quiet`, because an error may still come. A trace that goes on and on is decided after `longest`.
- Spans that come late join what was decided: those of a kept trace are told by themselves. An error
  among late spans of a trace that was not kept keeps what is there from then on.
- Room is bounded: the oldest trace is decided early when there are more than `traces` or `spans`,
  so that its error is not lost. A trace takes `longest_trace` spans, those that come late among
  them; of what comes beyond, only errors and first spans (which end last), as many again at most.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from bedstone.control.monitoring.traces.spans import Span
from bedstone.control.monitoring.traces.trace import Kept, root

_SWITCHED = 101
"""A connection that speaks another protocol now: it takes as long as it is open."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What is kept, and in which room.

    Args:
        rest: other traces kept a second.
        burst: so many of these at once.
        settle: seconds without news after which a trace that is kept is told.
        quiet: seconds without news after which one is let go.
        longest: seconds after which one is decided in any case.
        traces: held at most.
        spans: held at most, of all traces.
        longest_trace: spans of one trace; of errors and first spans, twice as many.
        remembered: decisions that are remembered for late spans.
        names: first spans' names whose durations are remembered.
    """

    rest: float = 10.0
    burst: float = 100.0
    settle: float = 1.0
    quiet: float = 6.0
    longest: float = 60.0
    traces: int = 20_000
    spans: int = 200_000
    longest_trace: int = 2_000
    remembered: int = 100_000
    names: int = 1_000


class Policy(NamedTuple):
    """What an app's manifest says.

    Args:
        slow: seconds from which a first span is slow.
        share: of the rest, so many are kept also where there are many.
    """

    slow: float = 0.5
    share: float = 0.1


class Decided(NamedTuple):
    """A trace, or late spans of one, and why it is kept."""

    trace: bytes
    spans: list[Span]
    kept: Kept
    late: bool


@dataclass(slots=True)
class _Decision:
    """Why a trace is kept, None if it is not, and how many of its spans were told."""

    kept: Kept | None
    spans: int


@dataclass(slots=True)
class _Held:
    begun: float
    last: float
    spans: list[Span] = field(default_factory=list)
    error: bool = False


class Durations:
    """How long recent requests of each name took: a histogram of powers of √2, halved at times."""

    LEAST = 100
    """Requests of a name before anything is said of it."""
    HALVED = 1000
    _BASE = math.log(math.sqrt(2))

    def __init__(self, names: int) -> None:
        self._names = names
        self._counts: OrderedDict[tuple[str, str], dict[int, int]] = OrderedDict()

    def slow(self, key: tuple[str, str], seconds: float) -> bool:
        """Take one in; whether it took longer than 99 of 100 before it."""
        bucket = math.floor(math.log(max(seconds, 1e-6)) / self._BASE)
        counts = self._counts.setdefault(key, {})
        self._counts.move_to_end(key)
        if len(self._counts) > self._names:
            self._counts.popitem(last=False)
        total = sum(counts.values())
        as_long = sum(count for at, count in counts.items() if at >= bucket)
        if total >= self.HALVED:
            for at in list(counts):
                counts[at] //= 2
                if not counts[at]:
                    del counts[at]
        counts[bucket] = counts.get(bucket, 0) + 1
        return total >= self.LEAST and as_long * 100 < total


_POLICY = Policy()


def _chosen(trace: bytes, share: float) -> bool:
    """Whether a trace is among a share of all, the same wherever that is asked.

    The last bytes of an id are random (W3C Trace Context §3.2.2.3).
    """
    return int.from_bytes(trace[-7:], "big") < share * (1 << 56)


class TailSampler:
    """Holds traces until they are decided.

    Attributes:
        policies: of apps, by name.
        dropped: spans that found no room in their trace.
        sampled_away: traces that were not kept.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self.policies: Mapping[str, Policy] = {}
        self._held: OrderedDict[bytes, _Held] = OrderedDict()  # by their begin
        self._spans = 0
        self._decided: OrderedDict[bytes, _Decision] = OrderedDict()
        self._durations = Durations(self._limits.names)
        self._tokens = self._limits.burst
        self._filled: float | None = None
        self.dropped = 0
        self.sampled_away = 0

    @property
    def held(self) -> int:
        """Spans that wait."""
        return self._spans

    def offer(self, spans: Iterable[Span], now: float) -> list[Decided]:
        """Take spans in; what of it is decided at once: late spans, and what has no room."""
        late: dict[bytes, list[Span]] = {}
        for span in spans:
            decision = self._decided.get(span.trace)
            if span.trace in self._held or decision is None:
                self._hold(span, now)
            elif decision.kept is not None:
                decision.kept = "error" if span.error else decision.kept
                if self._takes(decision.spans, span):
                    decision.spans += 1
                    late.setdefault(span.trace, []).append(span)
            elif span.error:
                self._hold(span, now)
        joining = [
            Decided(trace, found, kept, late=True)
            for trace, found in late.items()
            if (kept := self._decided[trace].kept) is not None
        ]
        return [*joining, *self._make_room(now)]

    def due(self, now: float) -> list[Decided]:
        """The traces that are to be kept and whose time has come; others are let go."""
        limits = self._limits
        found = []
        for trace, held in list(self._held.items()):
            idle = now - held.last
            over = now - held.begun >= limits.longest
            if idle < limits.settle and not over:
                continue
            # where there is plenty of room for the rest, nothing need be waited for
            if held.error or over or idle >= limits.quiet or self._plenty(now):
                found += self._decide(trace, now)
        return found

    def _hold(self, span: Span, now: float) -> None:
        held = self._held.get(span.trace)
        if held is None:
            held = self._held[span.trace] = _Held(now, now)
        held.last = now
        held.error = held.error or span.error
        if self._takes(len(held.spans), span):
            held.spans.append(span)
            self._spans += 1

    def _takes(self, there: int, span: Span) -> bool:
        """Whether a trace with so many spans has room for one; what has none is counted."""
        most = self._limits.longest_trace
        if there < most or (there < 2 * most and (span.error or not span.parent)):
            return True
        self.dropped += 1
        return False

    def _make_room(self, now: float) -> list[Decided]:
        found = []
        limits = self._limits
        while self._held and (len(self._held) > limits.traces or self._spans > limits.spans):
            found += self._decide(next(iter(self._held)), now)
        return found

    def _plenty(self, now: float) -> bool:
        self._fill(now)
        return self._tokens >= self._limits.burst / 2

    def _decide(self, trace: bytes, now: float) -> list[Decided]:
        held = self._held.pop(trace)
        self._spans -= len(held.spans)
        first = root(held.spans)
        key = (first.whose.app, first.name)
        policy = self.policies.get(first.whose.app, _POLICY)
        slow = self._durations.slow(key, first.seconds) or first.seconds >= policy.slow
        kept: Kept | None = None
        if held.error:
            kept = "error"
        elif slow and first.status != _SWITCHED:
            kept = "slow"
        elif self._spend(now) or _chosen(trace, policy.share):
            kept = "sampled"
        self._decided[trace] = _Decision(kept, len(held.spans))
        self._decided.move_to_end(trace)
        while len(self._decided) > self._limits.remembered:
            self._decided.popitem(last=False)
        if kept is None:
            self.sampled_away += 1
            return []
        return [Decided(trace, held.spans, kept, late=False)]

    def _fill(self, now: float) -> None:
        before = now if self._filled is None else self._filled
        self._tokens = min(
            self._limits.burst, self._tokens + max(0.0, now - before) * self._limits.rest
        )
        self._filled = max(before, now)

    def _spend(self, now: float) -> bool:
        self._fill(now)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
