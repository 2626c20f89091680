"""What a developer writes to define a saga, and the plan that it stands for.

Owns the parts (`Step`, `Timer`, `Event`, groups, `Definition`) and `Compiled`, which finds a plan's
leaves in the code again and says what each of them is told.

Rules:
- Names are unique within a saga, since they are what the log, the barriers and `results` know.
- Everything that is written is JSON; what comes back is what JSON gives.
- Functions of the context (`input`, `output`, a timer's seconds) are pure: they may be asked again.
"""

from __future__ import annotations

import inspect
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from bedstone.errors import InvalidError
from bedstone.transactions import saga_machine
from bedstone.transactions.databases import Database
from bedstone.transactions.router import is_async
from bedstone.transactions.saga_machine import Kind, Leaf, Plan

ATTEMPTS: Final = 5
"""How often a step is tried, by default, before its saga gives up."""

UNDO_ATTEMPTS: Final = 10
"""How often a compensation is tried, by default, before a person is asked."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
_LONGEST_PATH = 160


@dataclass(frozen=True, slots=True)
class Context:
    """What an action or a compensation is told.

    Args:
        xid: the saga's transaction id.
        key: the idempotency key of this call, the same each time it is repeated.
        step_key: the key that the step's action had; for its compensation to name it.
        input: the saga's input.
        results: results of its steps, events and nested sagas that have ended, by name.
        result: for a compensation: what its step returned; None where that is not known.
        ended: for a compensation: whether the step is known to have ended well. If it is not, the
            step may have had its effect all the same.
    """

    xid: str
    key: str
    step_key: str
    input: Any
    results: Mapping[str, Any]
    result: Any = None
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """An action and its compensation; made by `step`."""

    name: str
    action: Callable[..., Any]
    undo: Callable[..., Any] | None = None
    database: Database | None = None
    fails_on: tuple[type[Exception], ...] = ()
    attempts: int = ATTEMPTS
    timeout: float | None = None

    @property
    def kind(self) -> Kind:
        """Whether a barrier guards it."""
        return Kind.REMOTE if self.database is None else Kind.LOCAL


@dataclass(frozen=True, slots=True)
class Timer:
    """A durable pause; made by `timer`."""

    name: str
    seconds: float | Callable[[Context], float]
    kind = Kind.TIMER


@dataclass(frozen=True, slots=True)
class Event:
    """A wait for `signal`; made by `event`."""

    name: str
    timeout: float | None = None
    kind = Kind.EVENT


@dataclass(frozen=True, slots=True)
class Group:
    """Parts one after the other or side by side; made by `sequence` and `parallel`."""

    parts: tuple[Part, ...]
    parallel: bool = False


class Definition:
    """A named saga.

    Args:
        name: its name in the log.
        body: what it does.
        forward: whether its steps are repeated until they succeed, instead of undone.
        input: what it gets as a part of another saga, from that one's context; by default its
            input.
        output: what it returns, from its context; by default its results by name.
        undo_attempts: how often a compensation is tried before a person is asked.
    """

    def __init__(
        self,
        name: str,
        body: Part,
        *,
        forward: bool,
        input: Callable[[Context], Any] | None,  # noqa: A002 - the word that it has everywhere
        output: Callable[[Context], Any] | None,
        undo_attempts: int,
    ) -> None:
        _check_name(name)
        if undo_attempts < 1:
            raise InvalidError(f"saga {name}: got {undo_attempts} attempts, expected 1 or more")
        self.name = name
        self.body = body
        self.forward = forward
        self.input = input
        self.output = output
        self.undo_attempts = undo_attempts
        self.compiled = Compiled.of(self)

    def members(self) -> Iterator[Member]:
        """Its own steps, timers, events and nested sagas, in order."""
        return _members(self.body)

    def databases(self) -> Iterator[Database]:
        """Those of its steps, nested ones too."""
        for member in self.members():
            match member:
                case Step(database=Database() as found):
                    yield found
                case Definition():
                    yield from member.databases()


Member: TypeAlias = Step | Timer | Event | Definition
Part: TypeAlias = Member | Group


@dataclass(frozen=True, slots=True)
class Placed:
    """A member at its place.

    Args:
        part: what the developer wrote.
        chain: the sagas that it is nested in, from the outermost.
    """

    part: Step | Timer | Event
    chain: tuple[Definition, ...]

    @property
    def forward(self) -> bool:
        """Whether it is repeated until it succeeds."""
        return self.chain[-1].forward


@dataclass(frozen=True, slots=True)
class Compiled:
    """A definition, ready to run.

    Args:
        root: the definition.
        plan: what a runner follows.
        placed: what stands at each path.
    """

    root: Definition
    plan: Plan
    placed: Mapping[str, Placed] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Definition) -> Compiled:
        """Check a definition, and lay out its plan.

        Raises:
            InvalidError: it can't be run.
        """
        placed: dict[str, Placed] = {}
        plan = _laid_out(root.body, (root,), "", placed)
        return cls(root, plan, placed)

    def find(self, leaf: Leaf) -> Placed | None:
        """What stands at a leaf's path, if it is of the leaf's kind."""
        found = self.placed.get(leaf.path)
        return found if found is not None and found.part.kind is leaf.kind else None

    def context(
        self, xid: str, given: Any, results: Mapping[str, Any], leaf: Leaf, *, undo: bool = False
    ) -> Context:
        """What the leaf's function is told."""
        key = f"{xid}/{leaf.path}"
        told = given
        prefix = ""
        chain = self.placed[leaf.path].chain
        for outer, inner in itertools.pairwise(chain):
            if inner.input is not None:
                seen = _results(outer, prefix, xid, told, results)
                told = inner.input(Context(xid, key, key, told, seen))
            prefix += f"{inner.name}."
        return Context(
            xid,
            f"{key}/undo" if undo else key,
            key,
            told,
            _results(chain[-1], prefix, xid, told, results),
            results.get(leaf.path),
            leaf.path in results,
        )

    def output(self, xid: str, given: Any, results: Mapping[str, Any]) -> Any:
        """What the saga returns."""
        return _output(self.root, "", xid, given, results)


def encode(what: str, value: Any) -> bytes:
    """Write a value as JSON.

    Raises:
        InvalidError: JSON can't hold it.
    """
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidError(
            f"{what} can't be written as JSON: {error}",
            hint="use text, numbers, booleans, lists and mappings; amounts as whole numbers of the "
            "smallest unit, or as text",
        ) from error


def input_of(payload: bytes) -> Any:
    """The input that a saga's branch keeps."""
    return json.loads(payload)["input"]


def plan_of(payload: bytes) -> Plan:
    """The plan that a saga's branch keeps."""
    return saga_machine.from_json(json.loads(payload)["plan"])


def check_step(it: Step) -> Step:
    """Refuse a step that could not run.

    Raises:
        InvalidError: it can't.
    """
    _check_name(it.name)
    if it.attempts < 1 or (it.timeout is not None and not it.timeout > 0):
        raise InvalidError(
            f"step {it.name}: got {it.attempts} attempts and a time-out of {it.timeout}, expected "
            "1 or more, and seconds above 0"
        )
    functions = {"action": it.action, "undo": it.undo}
    for role, function in functions.items():
        if function is None:
            continue
        told = ("db", "context") if it.database else ("context",)
        try:
            inspect.signature(function).bind(*told)
        except TypeError as error:
            raise InvalidError(
                f"step {it.name}: its {role} doesn't take ({', '.join(told)}): {error}"
            ) from error
        if it.database is not None and is_async(function) is not it.database.is_async:
            kind = "an asynchronous" if it.database.is_async else "a blocking"
            raise InvalidError(
                f"step {it.name}: its {role} doesn't fit {kind} database ({it.database.name})",
                hint="write `async def` for asynchronous databases, which URLs of PostgreSQL open "
                "too, and plain functions for blocking engines, pools and functions",
            )
    return it


def seconds_of(value: object) -> float:
    """A timer's seconds.

    Raises:
        InvalidError: they are none.
    """
    if isinstance(value, int | float) and math.isfinite(value) and value >= 0:
        return float(value)
    raise InvalidError(f"got a timer of {value!r} seconds, expected a number from 0")


def checked_parts(parts: Iterable[Part]) -> tuple[Part, ...]:
    """A group's parts, of which there is at least one, each of them a part."""
    found = tuple(parts)
    if not found:
        raise InvalidError("got no part, expected at least one")
    for part in found:
        if not isinstance(part, Step | Timer | Event | Definition | Group):
            raise InvalidError(
                f"got a {type(part).__name__} as a part of a saga, expected step(…), timer(…), "
                "event(…), sequence(…), parallel(…) or a Saga"
            )
    return found


def _check_name(name: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise InvalidError(f"got the name {name[:80]!r}, expected 1 to 40 of A-Z a-z 0-9 _ -")


def _members(part: Part) -> Iterator[Member]:
    match part:
        case Group(parts):
            for inner in parts:
                yield from _members(inner)
        case _:
            yield part


def _laid_out(
    part: Part, chain: tuple[Definition, ...], prefix: str, placed: dict[str, Placed]
) -> Plan:
    match part:
        case Group(parts, parallel):
            plans = tuple(_laid_out(inner, chain, prefix, placed) for inner in parts)
            return saga_machine.Parallel(plans) if parallel else saga_machine.Sequence(plans)
        case Definition():
            if any(name.startswith(f"{prefix}{part.name}.") for name in placed):
                raise _twice(chain, part.name)
            return _laid_out(part.body, (*chain, part), f"{prefix}{part.name}.", placed)
        case Step() | Timer() | Event():
            path = prefix + part.name
            if path in placed or len(path) > _LONGEST_PATH:
                raise _twice(chain, part.name)
            _check_forward(part, chain[-1])
            placed[path] = Placed(part, chain)
            return Leaf(part.kind, path)


def _twice(chain: tuple[Definition, ...], name: str) -> InvalidError:
    where = ".".join(saga.name for saga in chain)
    return InvalidError(
        f"saga {where}: two parts are named {name!r}, or its path is longer than {_LONGEST_PATH}",
        hint="give each part a short name of its own; a timer takes `name=`",
    )


def _check_forward(part: Step | Timer | Event, saga: Definition) -> None:
    """What is repeated until it succeeds must not be told to give up."""
    match part:
        case Step(fails_on=kinds) if saga.forward and kinds:
            given = "fails_on"
        case Event(timeout=float() | int()) if saga.forward:
            given = "a time-out"
        case _:
            return
    raise InvalidError(
        f"saga {saga.name} goes forward, and {part.name} has {given}",
        hint="a forward saga never gives up; use recovery='backward', or leave it out",
    )


def _results(
    saga: Definition, prefix: str, xid: str, given: Any, ended: Mapping[str, Any]
) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for member in saga.members():
        path = prefix + member.name
        match member:
            case Timer():
                pass
            case Definition():
                inside = [name for name in member.compiled.placed if f"{path}.{name}" not in ended]
                if not inside:
                    told = given
                    if member.input is not None:
                        told = member.input(Context(xid, "", "", given, dict(seen)))
                    seen[member.name] = _output(member, f"{path}.", xid, told, ended)
            case _ if path in ended:
                seen[member.name] = ended[path]
    return seen


def _output(saga: Definition, prefix: str, xid: str, given: Any, ended: Mapping[str, Any]) -> Any:
    seen = _results(saga, prefix, xid, given, ended)
    return seen if saga.output is None else saga.output(Context(xid, "", "", given, seen))
