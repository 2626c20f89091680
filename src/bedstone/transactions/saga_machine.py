"""What a saga does next: pure functions of its plan and of the history in the log.

Owns the plan (a tree of steps, timers and events, without their code), the reading of a history,
and the two questions a runner asks: `following`, what to do now, and `undoing`, what to undo.

How far a runner may be ahead of its history, which all of this rests on:
- A *local* step (its effects are in a database with a barrier) may have run, and ended, without a
  line in the history: the barrier knows. So what follows it may have run too.
- Everything else is written first: a *remote* step's start before it starts, and its end, a
  timer's and an event's, before what follows starts.
- Lines are appended in the order of completion; what is missing at a crash is the latest.

Invariants:
- Of a failed or cancelled saga, everything that may have run is undone, in the reverse order of
  completion; what the history does not know ended last, and is undone first, in the reverse order
  of the plan. What surely has not run is not touched.
- The same plan and the same history always give the same answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import Any, TypeAlias

from bedstone.errors import InvalidError
from bedstone.transactions.model import Event


class Kind(StrEnum):
    """What a leaf of a plan is."""

    LOCAL = "local"
    REMOTE = "remote"
    TIMER = "timer"
    EVENT = "event"


class Mark(StrEnum):
    """What a history's line says about a leaf."""

    STARTED = "started"
    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"
    UNDONE = "undone"
    NOT_UNDONE = "not-undone"


@dataclass(frozen=True, slots=True)
class Leaf:
    """One thing to do or to wait for.

    Args:
        kind: what it is.
        path: its name, behind those of the sagas that it is nested in: `payment.charge`.
    """

    kind: Kind
    path: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """One after the other."""

    parts: tuple[Plan, ...]


@dataclass(frozen=True, slots=True)
class Parallel:
    """Side by side; over when all are."""

    parts: tuple[Plan, ...]


Plan: TypeAlias = Leaf | Sequence | Parallel


@dataclass(slots=True)
class History:
    """What is known of one saga.

    Args:
        ended: the leaves that ended, in the order of completion, with their results.
        started: how often each remote step was started.
        failed: the error of each leaf that failed for good.
        refused: those of them that surely did nothing.
        undone: the leaves whose effects are gone.
        troubles: how often undoing each of the others has failed.
        times: when each timer ends, and each wait for an event gives up.
        signals: what came from outside, by the event's path; the first counts.
    """

    ended: dict[str, Any] = field(default_factory=dict)
    started: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    undone: set[str] = field(default_factory=set)
    troubles: dict[str, int] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    signals: dict[str, Any] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """Take one more line in; a repeated one changes nothing."""
        detail = event.detail
        match event.kind, detail:
            case "signal", {"name": str(name)}:
                self.signals.setdefault(name, detail.get("payload"))
            case "timer", {"path": str(path), "until": float() | int() as until}:
                self.times.setdefault(path, float(until))
            case "step", {"path": str(path), "mark": str(mark)}:
                self._mark(path, Mark(mark), detail)

    def _mark(self, path: str, mark: Mark, detail: Mapping[str, Any]) -> None:
        match mark:
            case Mark.STARTED:
                self.started[path] = self.started.get(path, 0) + 1
            case Mark.DONE:
                self.ended.setdefault(path, detail.get("result"))
            case Mark.FAILED:
                self.failed.setdefault(path, str(detail.get("error", "")))
            case Mark.REFUSED:
                self.failed.setdefault(path, str(detail.get("error", "")))
                self.refused.add(path)
            case Mark.UNDONE:
                self.undone.add(path)
            case Mark.NOT_UNDONE:
                self.troubles[path] = self.troubles.get(path, 0) + 1


@dataclass(frozen=True, slots=True)
class Work:
    """What to do now, all of it side by side.

    Args:
        run: steps to run.
        arm: timers and events that begin to wait; write until when.
        over: timers that passed, and events that came, with their results; write their ends.
        missed: events that did not come in time; write that they failed.
    """

    run: tuple[Leaf, ...] = ()
    arm: tuple[Leaf, ...] = ()
    over: tuple[tuple[Leaf, Any], ...] = ()
    missed: tuple[Leaf, ...] = ()


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before a time, an event, or the end of a running step.

    Args:
        until: the time; None where only running steps are waited for.
        events: the events' paths.
    """

    until: float | None = None
    events: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """Everything has ended."""


@dataclass(frozen=True, slots=True)
class Failed:
    """It can't succeed; nothing more is started.

    Args:
        path: the leaf that failed first.
        error: why.
    """

    path: str
    error: str


Next: TypeAlias = Work | Wait | Done | Failed


def replay(events: Iterable[Event]) -> History:
    """Read a history."""
    history = History()
    for event in events:
        history.add(event)
    return history


def following(
    plan: Plan, history: History, now: float, running: frozenset[str] = frozenset()
) -> Next:
    """What to do now.

    Args:
        plan: the saga's.
        history: what has happened, all that this runner did included.
        now: the time by the log's clock.
        running: paths of steps that are at work in this runner.
    """
    for path, error in history.failed.items():
        return Failed(path, error)
    ready = [leaf for leaf in _ready(plan, history) if leaf.path not in running]
    if not ready and not running and _over(plan, history):
        return Done()
    run, arm, missed = [], [], []
    over: list[tuple[Leaf, Any]] = []
    waiting: list[Leaf] = []
    for leaf in ready:
        until = history.times.get(leaf.path)
        if leaf.kind in _STEPS:
            run.append(leaf)
        elif leaf.kind is Kind.EVENT and leaf.path in history.signals:
            over.append((leaf, history.signals[leaf.path]))
        elif until is None:
            arm.append(leaf)
        elif until > now:
            waiting.append(leaf)
        elif leaf.kind is Kind.TIMER:
            over.append((leaf, None))
        else:
            missed.append(leaf)
    if run or arm or over or missed:
        return Work(tuple(run), tuple(arm), tuple(over), tuple(missed))
    until = min((history.times[leaf.path] for leaf in waiting), default=None)
    return Wait(until, tuple(leaf.path for leaf in waiting if leaf.kind is Kind.EVENT))


def undoing(plan: Plan, history: History) -> tuple[Leaf, ...]:
    """The steps that may have run and are not undone, in the order in which to undo them."""
    known = {leaf.path: leaf for leaf in leaves(plan)}
    unknown = [
        leaf
        for leaf in _reached(plan, history)
        if leaf.path not in history.ended
        and leaf.path not in history.refused
        and (leaf.kind is Kind.LOCAL or leaf.path in history.started)
    ]
    ended = [known[path] for path in history.ended if path in known]
    return tuple(
        leaf
        for leaf in (*reversed(unknown), *reversed(ended))
        if leaf.kind in _STEPS and leaf.path not in history.undone
    )


def leaves(plan: Plan) -> Iterator[Leaf]:
    """All leaves, in the order of the plan."""
    match plan:
        case Leaf():
            yield plan
        case Sequence(parts) | Parallel(parts):
            for part in parts:
                yield from leaves(part)


def to_json(plan: Plan) -> list[Any]:
    """The plan as it is kept in the log: a saga that has begun ends by the plan it began with."""
    match plan:
        case Leaf(kind, path):
            return [str(kind), path]
        case Sequence(parts):
            return ["sequence", *map(to_json, parts)]
        case Parallel(parts):
            return ["parallel", *map(to_json, parts)]


def from_json(value: Any) -> Plan:
    """Read what `to_json` wrote.

    Raises:
        InvalidError: it is something else.
    """
    match value:
        case ["sequence", *parts]:
            return Sequence(tuple(map(from_json, parts)))
        case ["parallel", *parts]:
            return Parallel(tuple(map(from_json, parts)))
        case [str(kind), str(path)] if kind in list(Kind):
            return Leaf(Kind(kind), path)
    raise InvalidError(f"got {str(value)[:80]!r}, expected the plan of a saga")


def digest(plan: Plan) -> str:
    """The plan's version: 16 hexadecimal digits that change whenever it does."""
    return sha256(json.dumps(to_json(plan)).encode()).hexdigest()[:16]


_STEPS = frozenset({Kind.LOCAL, Kind.REMOTE})


def _over(plan: Plan, history: History) -> bool:
    return all(leaf.path in history.ended for leaf in leaves(plan))


def _ready(plan: Plan, history: History) -> Iterator[Leaf]:
    """What has not ended, and everything before it has."""
    match plan:
        case Leaf(path=path):
            if path not in history.ended:
                yield plan
        case Parallel(parts):
            for part in parts:
                yield from _ready(part, history)
        case Sequence(parts):
            first = next((part for part in parts if not _over(part, history)), None)
            if first is not None:
                yield from _ready(first, history)


def _reached(plan: Plan, history: History) -> Iterator[Leaf]:
    """What a runner may have come to, in the order of the plan."""
    match plan:
        case Leaf():
            yield plan
        case Parallel(parts):
            for part in parts:
                yield from _reached(part, history)
        case Sequence(parts):
            for part in parts:
                yield from _reached(part, history)
                if not _passable(part, history):
                    return


def _passable(plan: Plan, history: History) -> bool:
    """Whether what follows may have started: local steps may have ended unseen."""
    return all(leaf.kind is Kind.LOCAL or leaf.path in history.ended for leaf in leaves(plan))
