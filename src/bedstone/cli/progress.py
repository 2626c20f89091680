"""What happened between two statuses of an app, as lines for people. Pure.

Rule: a part gets a line when its state changes, not when its detail does; waiting for its turn is
not news.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bedstone.cli.terminal import clean, paint, seconds

if TYPE_CHECKING:
    from bedstone.model.api import AppStatus, Change, Part
    from bedstone.model.resources import Condition

_QUIET = frozenset({"pending", "starting"})
"""States that are no news before the first other one."""
_TROUBLE = frozenset({"unready", "backoff", "failed", "stopped"})


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that happened: a part's new state, or a condition that came or went."""

    kind: str
    name: str
    state: str
    detail: str = ""

    def text(self, elapsed: float) -> str:
        """For people, with the time since the start."""
        name = clean(self.name)
        line = f"{seconds(elapsed):>6}  {self.kind:<11}  {name:<28}  {paint(self.state)}"
        return f"{line}  {clean(self.detail)}".rstrip() if self.detail else line


def transitions(before: AppStatus | None, after: AppStatus) -> list[Line]:
    """The lines that lead from one status to the next, in the order of the parts."""
    old = {(part.kind, part.name): part for part in before.parts} if before else {}
    new = {(part.kind, part.name): part for part in after.parts}
    lines = [line for key, part in new.items() if (line := _transition(old.get(key), part))]
    lines += [
        Line(part.kind, part.name, "stopped")
        for key, part in old.items()
        if key not in new and part.kind in ("instance", "engine") and part.state != "stopped"
    ]
    known = _conditions(before.conditions if before else ())
    current = _conditions(after.conditions)
    for subject, condition in current.items():
        if known.get(subject) != condition:
            detail = f"{condition.message}; {condition.hint}".removesuffix("; ")
            lines.append(Line("condition", subject, condition.severity, detail))
    lines += [
        Line("condition", subject, "ok", "resolved") for subject in known if subject not in current
    ]
    return lines


def _transition(old: Part | None, new: Part) -> Line | None:
    if old is None:
        if new.state in _QUIET:
            return None
    elif (old.state, old.restarts) == (new.state, new.restarts) or {old.state, new.state} <= _QUIET:
        return None
    detail = new.detail
    if old is not None and new.restarts > old.restarts:
        detail = f"restarted, {new.restarts} in all{f': {detail}' if detail else ''}"
    return Line(new.kind, new.name, new.state, detail)


def _conditions(conditions: Iterable[Condition]) -> dict[str, Condition]:
    return {c.subject: c.model_copy(update={"since": 0.0}) for c in conditions}


def failures(status: AppStatus) -> list[Line]:
    """What cannot become ready without a change."""
    lines = [
        Line(part.kind, part.name, part.state, part.detail)
        for part in status.parts
        if part.current and part.state == "failed"
    ]
    lines += [
        Line("condition", c.subject, c.severity, f"{c.message}; {c.hint}".removesuffix("; "))
        for c in status.conditions
        if c.severity == "error"
    ]
    return lines


def unready(status: AppStatus) -> list[str]:
    """What is not ready yet, each with its reason."""
    described = {f"{part.kind} {part.name}": part for part in status.parts}
    texts = []
    for name in status.waiting_for:
        part = described.get(name)
        texts.append(f"{name} ({describe(part)})" if part else name)
    return [clean(text) for text in texts]


def describe(part: Part) -> str:
    """A part's state and why."""
    return f"{part.state}: {part.detail}" if part.detail else part.state


def troubled(status: AppStatus) -> str | None:
    """The workload whose output explains best why the app is not ready, if one does."""
    instances = [part for part in status.parts if part.kind == "instance" and part.current]
    worst = [part for part in instances if part.state in _TROUBLE]
    late = [part for part in instances if part.state in ("starting", "preparing")]
    return next((part.workload for part in (*worst, *late) if part.workload), None)


def change_lines(changes: Iterable[Change]) -> list[str]:
    """A difference, in the manifest's terms."""
    lines = []
    for change in changes:
        match change.before, change.after:
            case "", "":
                detail = ""
            case "", after:
                detail = f": {after}"
            case before, "":
                detail = f": was {before}"
            case before, after:
                detail = f": {before} → {after}"
        effect = f"  ({change.effect})" if change.effect else ""
        lines.append(f"  {paint(change.op)} {clean(change.subject + detail + effect)}")
    return lines
