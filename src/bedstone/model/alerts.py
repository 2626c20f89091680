"""What the API gives and takes of alerts: their states, history, and silences."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bedstone.model.resources import Frozen

AlertState = Literal["inactive", "pending", "firing", "unknown"]
"""`pending`: its condition holds, not yet for long enough. `unknown`: it could not be evaluated."""


class AlertLine(Frozen):
    """One alert: a rule, and one set of labels for which it holds (or the rule, if for none)."""

    app: str
    rule: str
    kind: Literal["condition", "burn-rate", "baseline", "dead-man"]
    state: AlertState
    severity: Literal["page", "ticket", "info"] = "ticket"
    labels: dict[str, str] = Field(default_factory=dict)
    value: float | None = None
    summary: str = ""
    """For people; empty for a rule that says nothing."""
    expression: str = ""
    query: str = ""
    """PromQL of what the rule measures, for its course; empty where nothing says it."""
    since: float | None = None
    """When it became pending or firing."""
    fired_at: float | None = None
    silenced_until: float | None = None
    silence: str = ""
    """Id of the silence that holds it."""
    error: str = ""
    """Why it could not be evaluated."""
    notified: tuple[Notification, ...] = ()


class Notification(Frozen):
    """One attempt to tell somebody."""

    at: float
    receiver: str
    ok: bool
    message: str = ""


class AlertList(Frozen):
    """All alerts, firing ones first."""

    second: int
    items: tuple[AlertLine, ...] = ()


class AlertEvent(Frozen):
    """One line of the history."""

    at: float
    app: str
    rule: str
    labels: dict[str, str] = Field(default_factory=dict)
    what: Literal["pending", "firing", "resolved", "silenced", "notified", "failed"]
    value: float | None = None
    detail: str = ""


class AlertHistory(Frozen):
    """The history, newest first."""

    items: tuple[AlertEvent, ...] = ()


class AlertSample(Frozen):
    """One series of a rule that was tried."""

    labels: dict[str, str] = Field(default_factory=dict)
    value: float
    holds: bool


class AlertTest(Frozen):
    """What a rule says now."""

    app: str
    rule: str
    kind: Literal["condition", "burn-rate", "baseline", "dead-man"]
    second: int
    expression: str = ""
    holds: bool = False
    samples: tuple[AlertSample, ...] = ()
    value: float | None = None
    """What was measured, where one number says it."""
    note: str = ""
    """What makes this second less than it seems."""
    error: str = ""


class SilenceRequest(Frozen):
    """Tell nobody of alerts that match, for a time. `labels` may name `rule` and `app`, too."""

    labels: dict[str, str] = Field(min_length=1)
    seconds: float = Field(gt=0, le=30 * 86400)
    why: str = Field(min_length=1, max_length=1000)


class Silence(Frozen):
    """One silence."""

    id: str
    labels: dict[str, str]
    until: float
    why: str
    who: str
    created_at: float


class SilenceList(Frozen):
    """The silences that have not ended."""

    items: tuple[Silence, ...] = ()


AlertLine.model_rebuild()
