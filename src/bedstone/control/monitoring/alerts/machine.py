"""The life of an alert: inactive, pending, firing, and over. Pure.

Rules, for the second that was looked at:
- Where the condition holds, an alert begins: pending until it has held for as long as its rule
  says, then firing. The time counts from the first second in which it held, whatever lay between,
  as long as no second said otherwise; so neither a gap nor a restart begins it anew.
- Where the condition does not hold, the alert ends. That something has no value says so only in a
  second that is complete; else it keeps its state (`Certainty.PARTLY`).
- A second of which nothing can be concluded (`Certainty.NONE`) changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Literal

from bedstone.telemetry.frames import Labels

State = Literal["pending", "firing"]
What = Literal["pending", "firing", "resolved"]


class Certainty(Enum):
    """What may be concluded of a second."""

    WHOLE = "whole"
    """What has no value does not hold."""
    PARTLY = "partly"
    """What has no value may hold."""
    NONE = "none"
    """Nothing."""


@dataclass(frozen=True, slots=True)
class Held:
    """That a condition holds: its value, and how urgent it is where that is not the rule's."""

    value: float
    severity: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rule says of one second.

    Args:
        holds: the sets of labels for which it holds.
        certainty: what may be concluded of those that are not named.
        error: why it could not be evaluated; nothing is concluded then.
        value: what was measured, where nothing holds and one number says it.
    """

    holds: Mapping[Labels, Held] = field(default_factory=dict)
    certainty: Certainty = Certainty.WHOLE
    error: str = ""
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Alert:
    """A rule that holds for a set of labels.

    Args:
        app: whose it is; empty for the whole installation.
        rule: its name.
        version: of the rule; an alert of another version is over.
        labels: the set.
        state: pending or firing.
        since: the first second in which it held.
        fired_at: when it began to fire.
        severity: how urgent.
        value: as of the last second in which it held.
    """

    app: str
    rule: str
    version: str
    labels: Labels
    state: State
    since: float
    fired_at: float | None = None
    severity: str = "ticket"
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Transition:
    """An alert that became something; `alert` is as it is after that, or was last."""

    at: float
    what: What
    alert: Alert
    detail: str = ""


def step(
    template: Alert,
    lasting: float,
    alerts: Mapping[Labels, Alert],
    outcome: Outcome,
    second: float,
) -> tuple[dict[Labels, Alert], list[Transition]]:
    """The alerts of one rule after a second, and what changed.

    Args:
        template: an alert of the rule, for what all of them have.
        lasting: for how many seconds it must hold before it fires.
        alerts: those that are pending or firing, by labels.
        outcome: what the rule says of the second.
        second: which.
    """
    if outcome.error or outcome.certainty is Certainty.NONE:
        return dict(alerts), []
    after: dict[Labels, Alert] = {}
    changed: list[Transition] = []
    for labels, held in outcome.holds.items():
        before = alerts.get(labels)
        alert = replace(
            before or replace(template, labels=labels, state="pending", since=second),
            value=held.value,
            severity=held.severity or template.severity,
        )
        if alert.state == "pending" and second - alert.since >= lasting:
            alert = replace(alert, state="firing", fired_at=second)
        after[labels] = alert
        if before is None or before.state != alert.state:
            changed.append(Transition(second, alert.state, alert))
    for labels, alert in alerts.items():
        if labels in after:
            continue
        if outcome.certainty is Certainty.PARTLY:
            after[labels] = alert
        elif alert.state == "firing":
            changed.append(Transition(second, "resolved", alert))
        else:
            changed.append(Transition(second, "resolved", alert, "it had not fired"))
    return after, changed
