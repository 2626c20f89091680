"""All alerts: the rules that there are, what each said last, and what is pending or firing.

Owned by one loop; nothing here does I/O. Whoever owns it writes the transitions down.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from bedstone.control.monitoring.alerts.machine import Alert, Outcome, Transition, step
from bedstone.control.monitoring.alerts.rules import Rule
from bedstone.model.alert_records import AlertRecord, ToldAlert, fingerprint
from bedstone.telemetry.frames import Labels

Key = tuple[str, str]
"""App and rule."""
_FIELD = re.compile(r"\{([a-zA-Z_][a-zA-Z0-9_]*)\}")


@dataclass
class Board:
    """The alerts of all rules.

    Args:
        restored: those that were pending or firing when the server ended.
    """

    restored: Iterable[Alert] = ()
    rules: dict[Key, Rule] = field(default_factory=dict)
    outcomes: dict[Key, Outcome] = field(default_factory=dict)
    _alerts: dict[Key, dict[Labels, Alert]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for alert in self.restored:
            self._alerts.setdefault((alert.app, alert.rule), {})[alert.labels] = alert

    def declare(self, rules: Iterable[Rule], second: float) -> list[Transition]:
        """Make these the rules; alerts of others, and of former versions, are over."""
        self.rules = {(rule.app, rule.name): rule for rule in rules}
        changed: list[Transition] = []
        for key, alerts in list(self._alerts.items()):
            rule = self.rules.get(key)
            over = [a for a in alerts.values() if rule is None or a.version != rule.version]
            why = "the rule was changed" if rule else "the rule is no more"
            changed += [Transition(second, "resolved", alert, why) for alert in over]
            for alert in over:
                del alerts[alert.labels]
            if not alerts:
                del self._alerts[key]
        self.outcomes = {key: found for key, found in self.outcomes.items() if key in self.rules}
        return changed

    def take(self, rule: Rule, outcome: Outcome, second: float) -> list[Transition]:
        """Take what a rule says of a second; what is of a former version is passed over."""
        key = rule.app, rule.name
        current = self.rules.get(key)
        if current is None or current.version != rule.version:
            return []
        self.outcomes[key] = outcome
        template = Alert(
            rule.app, rule.name, rule.version, (), "pending", second, severity=rule.severity
        )
        alerts, changed = step(template, rule.lasting, self._alerts.get(key, {}), outcome, second)
        self._alerts[key] = alerts
        if not alerts:
            del self._alerts[key]
        return changed

    def of(self, key: Key) -> list[Alert]:
        """The alerts of one rule, those that fire first, by labels."""
        found = self._alerts.get(key, {}).values()
        return sorted(found, key=lambda alert: (alert.state != "firing", alert.labels))

    def firing(self) -> Iterator[tuple[Rule, Alert]]:
        """All that fire, with their rules."""
        for key, rule in self.rules.items():
            for alert in self._alerts.get(key, {}).values():
                if alert.state == "firing":
                    yield rule, alert


def labels_of(rule: Rule, alert: Alert) -> dict[str, str]:
    """All labels of an alert: its series', its rule's, and those that every alert has."""
    return {
        **dict(alert.labels),
        **dict(rule.labels),
        "rule": rule.name,
        "severity": alert.severity,
        **({"app": rule.app} if rule.app else {}),
    }


def summary_of(rule: Rule, labels: Mapping[str, str], value: float | None) -> str:
    """The rule's summary with labels and the value filled in; what is none of them stays."""
    values = {**labels, "value": "no value" if value is None else f"{value:.4g}"}
    return _FIELD.sub(lambda found: values.get(found[1], found[0]), rule.summary)


def told(rule: Rule, alert: Alert) -> ToldAlert:
    """An alert as receivers are told of it."""
    labels = labels_of(rule, alert)
    return ToldAlert(
        labels=labels,
        summary=summary_of(rule, labels, alert.value),
        started=alert.since if alert.fired_at is None else alert.fired_at,
        value=alert.value,
    )


def identity(rule: Rule, alert: Alert) -> str:
    """What receivers know an alert by."""
    return fingerprint(labels_of(rule, alert))


def recorded(alert: Alert) -> AlertRecord:
    """An alert as the store has it."""
    return AlertRecord(
        app=alert.app,
        rule=alert.rule,
        version=alert.version,
        labels=dict(alert.labels),
        state=alert.state,
        since=alert.since,
        fired_at=alert.fired_at,
        severity=alert.severity,
        value=alert.value,
    )


def restored(record: AlertRecord) -> Alert:
    """Inverse of `recorded`."""
    return Alert(
        record.app,
        record.rule,
        record.version,
        tuple(sorted(record.labels.items())),
        record.state,
        record.since,
        record.fired_at,
        record.severity,
        record.value,
    )
