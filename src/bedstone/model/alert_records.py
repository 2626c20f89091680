"""What the store holds of alerts: their state, who was told, silences, and the history.

Written by the server only, when something changes; never a write for a second in which nothing did.
`-` stands for the whole installation where an app's name is in a key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from bedstone.model.alerts import AlertEvent, Notification, Silence
from bedstone.model.resources import Resource

ALERTS = "alerts/"
GROUPS = "alertgroups/"
SILENCES = "silences/"
EVENTS = "alertevents/"


def fingerprint(labels: Mapping[str, str]) -> str:
    """What tells sets of labels apart, in 16 hexadecimal digits."""
    text = json.dumps(sorted(labels.items()), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class AlertRecord(Resource):
    """An alert that is pending or firing."""

    kind: ClassVar[str] = "alert"

    app: str
    rule: str
    version: str
    labels: dict[str, str] = Field(default_factory=dict)
    state: Literal["pending", "firing"]
    since: float
    fired_at: float | None = None
    severity: str = "ticket"
    value: float | None = None

    @property
    def key(self) -> str:
        """`alerts/APP/RULE/FINGERPRINT`."""
        return f"{ALERTS}{self.app or '-'}/{self.rule}/{fingerprint(self.labels)}"


class ToldAlert(Resource):
    """An alert as somebody was told of it; part of a group."""

    kind: ClassVar[str] = "toldalert"

    labels: dict[str, str]
    summary: str = ""
    started: float
    value: float | None = None

    @property
    def fingerprint(self) -> str:
        """Which alert it is."""
        return fingerprint(self.labels)


class AlertGroupRecord(Resource):
    """What a receiver was told of a group of alerts, and what is tried again."""

    kind: ClassVar[str] = "alertgroup"

    app: str
    receiver: str
    labels: dict[str, str] = Field(default_factory=dict)
    told: tuple[ToldAlert, ...] = ()
    maybe: tuple[ToldAlert, ...] = ()
    """What it may have been told besides: no answer came to that."""
    told_at: float = 0.0
    attempts: int = 0
    """Failed ones since the last that succeeded."""
    next_attempt: float = 0.0
    notified: tuple[Notification, ...] = ()
    """The last few attempts, newest last."""

    @property
    def key(self) -> str:
        """`alertgroups/APP/RECEIVER/FINGERPRINT`."""
        return f"{GROUPS}{self.app or '-'}/{self.receiver}/{fingerprint(self.labels)}"


class SilenceRecord(Silence, Resource):
    """A silence."""

    kind: ClassVar[str] = "silence"

    @property
    def key(self) -> str:
        """`silences/ID`."""
        return f"{SILENCES}{self.id}"

    def public(self) -> Silence:
        """As the API says it."""
        return Silence.model_validate(self.model_dump())


class AlertEventRecord(AlertEvent, Resource):
    """One line of the history; sequences sort by time."""

    kind: ClassVar[str] = "alertevent"

    sequence: str

    @property
    def key(self) -> str:
        """`alertevents/SEQUENCE`."""
        return f"{EVENTS}{self.sequence}"

    def public(self) -> AlertEvent:
        """As the API says it."""
        return AlertEvent.model_validate(self.model_dump(exclude={"sequence"}))
