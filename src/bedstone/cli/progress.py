"""What happened to an app since it was last shown, as lines for people. Pure.

Rule: a part gets a line when its state differs from the one last shown, not when its detail does.
States that only pass (`_QUIET`) are no news: a part that comes back from one to what it was had
nothing happen to it that a person should read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bedstone.cli.terminal import brief, clean, paint

if TYPE_CHECKING:
    from bedstone.model.api import AppStatus, Change, Part
    from bedstone.model.resources import Condition

_QUIET = frozenset({"pending", "starting"})
_TROUBLE = frozenset({"unready", "backoff", "failed", "stopped"})


Shown = dict[tuple[str, str], "Line"]
"""What was last shown, by kind and name."""


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that happened: a part's new state, or a condition that came or went."""

    kind: str
    name: str
    state: str
    detail: str = ""
    restarts: int = 0

    def text(self, when: str) -> str:
        """For people, with when it happened."""
        name = clean(self.name)
        line = f"{when:>8}  {self.kind:<11}  {name:<28}  {paint(self.state)}"
        return f"{line}  {brief(self.detail)}".rstrip() if self.detail else line


def news(shown: Shown, status: AppStatus) -> tuple[list[Line], Shown]:
    """The lines that lead from what was shown to a status, and what is shown after them."""
    lines: list[Line] = []
    after: Shown = {}
    for part in status.parts:
        key = (part.kind, part.name)
        line = _news_of(shown.get(key), part)
        if line is not None:
            lines.append(line)
        if found := line or shown.get(key):
            after[key] = found
    for (kind, name), line in shown.items():
        gone = (kind, name) not in after and kind in ("instance", "engine")
        if gone and line.state != "stopped":
            lines.append(Line(kind, name, "stopped"))
    for condition in status.conditions:
        said = Line("condition", condition.subject, condition.severity, advice(condition))
        after["condition", condition.subject] = said
        if shown.get(("condition", condition.subject)) != said:
            lines.append(said)
    lines += [
        Line(kind, name, "ok", "resolved")
        for kind, name in shown
        if kind == "condition" and (kind, name) not in after
    ]
    return lines, after


def _news_of(last: Line | None, part: Part) -> Line | None:
    if part.state in _QUIET:
        return None
    detail = part.detail
    if last is not None and part.restarts > last.restarts:
        detail = f"restart {part.restarts}{f': {detail}' if detail else ''}"
    elif last is not None and last.state == part.state:
        return None
    return Line(part.kind, part.name, part.state, detail, part.restarts)


def advice(condition: Condition) -> str:
    """What a condition says, and what to do about it."""
    return f"{condition.message}; {condition.hint}".removesuffix("; ")


def of_workload(status: AppStatus, workload: str) -> AppStatus:
    """What of an app's status is about one workload; ready when that is."""
    parts = tuple(part for part in status.parts if part.workload == workload)
    own = {f"{part.kind} {part.name}" for part in parts}
    waiting = tuple(
        text
        for text in status.waiting_for
        if text in own or text.startswith((f"workload {workload},", "node "))
    )
    subject = f"workloads.{workload}"
    return status.model_copy(
        update={
            "parts": parts,
            "waiting_for": waiting,
            "ready": not waiting,
            "conditions": tuple(
                condition
                for condition in status.conditions
                if condition.subject == subject or condition.subject.startswith(f"{subject}.")
            ),
        }
    )


def settled(status: AppStatus) -> bool:
    """Whether all is ready and nothing is left of what was before."""
    return status.ready and all(part.current for part in status.parts)


def failures(status: AppStatus) -> list[Line]:
    """What cannot become ready without a change."""
    lines = [
        Line(part.kind, part.name, part.state, part.detail)
        for part in status.parts
        if part.current and part.state == "failed"
    ]
    lines += [
        Line("condition", c.subject, c.severity, advice(c))
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
    return f"{part.state}: {brief(part.detail)}" if part.detail else part.state


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
