"""What is to be told to whom, now. Pure: from what fires, and what was told before.

A receiver is told of a group: the alerts of an app that agree in the labels of their `group_by`.
What it was told is recorded after it has taken it, and before that, that it may have been. So what
is due follows from the records alone: a restart loses nothing, and sends again only what no answer
came to; and of what may have been told, the end is told as well.

Rules:
- A group is due `group_wait` after it changed (an alert began to fire, or one that was told is
  over), and again every `repeat` while something fires.
- An alert that is silenced is left out, and what was told of it stands: if it still fires when the
  silence ends it is told then, and if it is over, that is.
- After a failure the group waits longer each time (`pause`), up to `LONGEST`. What fires is tried
  for as long as it fires; that something is over, `ATTEMPTS` times.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from bedstone.model.alert_records import AlertGroupRecord, ToldAlert
from bedstone.model.monitoring_spec import ReceiverSpec
from bedstone.telemetry.frames import Labels

FIRST: Final = 1.0
LONGEST: Final = 300.0
ATTEMPTS: Final = 20
KEPT: Final = 5
"""Attempts that a record names."""

GroupKey: TypeAlias = tuple[str, str, Labels]
"""App and name of the receiver, and the labels that the group agrees in."""


@dataclass(frozen=True, slots=True)
class Target:
    """A receiver.

    Args:
        app: whose; empty for the log of the whole installation.
        name: as declared, or `log`.
        spec: how it is told; None for the log.
        scope: the apps of whose alerts it is told.
    """

    app: str
    name: str
    spec: ReceiverSpec | None
    scope: frozenset[str]

    @property
    def group_wait(self) -> float:
        """Seconds that a change waits for others."""
        return self.spec.group_wait if self.spec else 0.0

    @property
    def repeat(self) -> float:
        """Seconds between notifications of what stays."""
        return self.spec.repeat if self.spec else 86400.0

    def takes(self, app: str, severity: str) -> bool:
        """Whether it is told of such an alert."""
        wanted = self.spec.severities if self.spec else ()
        return app in self.scope and (not wanted or severity in wanted)


@dataclass(frozen=True, slots=True)
class Firing:
    """An alert that fires."""

    app: str
    alert: ToldAlert
    group_by: tuple[str, ...]

    @property
    def group(self) -> Labels:
        """The labels of its group."""
        labels = self.alert.labels
        return tuple(sorted((name, labels.get(name, "")) for name in self.group_by))


@dataclass(frozen=True, slots=True)
class Due:
    """A notification that is due.

    Args:
        target: who is told.
        record: what it was told so far.
        firing: all of the group that fires.
        resolved: what it was told of, and is over.
        silent: it need not be told: only the record changes.
    """

    target: Target
    record: AlertGroupRecord
    firing: tuple[ToldAlert, ...]
    resolved: tuple[ToldAlert, ...]
    held: tuple[ToldAlert, ...] = ()
    """What it was told of, and is silenced now: it stays told."""
    silent: bool = False

    @property
    def key(self) -> GroupKey:
        """Which group it is."""
        return key_of(self.record)

    def succeeded(self, now: float) -> AlertGroupRecord:
        """The record after it was told."""
        settled = {alert.fingerprint for alert in (*self.firing, *self.resolved)}
        maybe = tuple(one for one in self.record.maybe if one.fingerprint not in settled)
        known = {"told": (*self.firing, *self.held), "maybe": maybe}
        if self.silent:
            return self.record.model_copy(update=known)
        fresh = {"told_at": now, "attempts": 0, "next_attempt": 0.0}
        return self.record.model_copy(update={**known, **fresh})

    def begun(self) -> AlertGroupRecord:
        """The record while it is being told, and after a failure that leaves it open.

        What is over may be known to be over: should it fire again, that is told.
        """
        over = {alert.fingerprint for alert in self.resolved}
        told = tuple(one for one in self.record.told if one.fingerprint not in over)
        known = {alert.fingerprint for alert in told}
        open_now = (*self.record.maybe, *self.resolved, *self.firing)
        maybe = {one.fingerprint: one for one in open_now if one.fingerprint not in known}
        return self.record.model_copy(update={"told": told, "maybe": tuple(maybe.values())})

    def failed(self, now: float, jitter: float, *, maybe: bool = False) -> AlertGroupRecord:
        """The record after it could not be told, or `maybe` was; `jitter` is from 0 to 1."""
        attempts = self.record.attempts + 1
        record = self.begun() if maybe else self.record
        return record.model_copy(
            update={"attempts": attempts, "next_attempt": now + pause(attempts, jitter)}
        )


def pause(attempts: int, jitter: float) -> float:
    """How long to wait after so many failures: doubled each time, and not all at the same time."""
    return float(min(FIRST * 2 ** min(attempts - 1, 20), LONGEST) * (0.5 + jitter / 2))


def key_of(record: AlertGroupRecord) -> GroupKey:
    """Which group a record is of."""
    return record.app, record.receiver, tuple(sorted(record.labels.items()))


Group: TypeAlias = dict[str, ToldAlert]
"""What fires of a group, by fingerprint."""


def plan(
    targets: Iterable[Target],
    firing: Iterable[Firing],
    records: Mapping[GroupKey, AlertGroupRecord],
    silenced: Callable[[Mapping[str, str]], bool],
    ended: Callable[[str], float],
    now: float,
) -> tuple[list[Due], list[AlertGroupRecord]]:
    """What is due, and the records that are of no use any more.

    Args:
        targets: the receivers.
        firing: all alerts that fire.
        records: what was told, by group.
        silenced: whether a silence holds what has these labels.
        ended: when an alert ended, by its fingerprint; 0 if that is not known.
        now: seconds since the epoch.
    """
    alerts = list(firing)
    due: list[Due] = []
    gone: list[AlertGroupRecord] = []
    by_target: defaultdict[tuple[str, str], list[AlertGroupRecord]] = defaultdict(list)
    for record in records.values():
        by_target[record.app, record.receiver].append(record)
    for target in targets:
        groups: defaultdict[Labels, Group] = defaultdict(dict)
        for item in alerts:
            if target.takes(item.app, item.alert.labels.get("severity", "")):
                groups[item.group][item.alert.fingerprint] = item.alert
        known = {
            key_of(record)[2]: record for record in by_target.pop((target.app, target.name), ())
        }
        for labels in {**known, **groups}:
            record = known.get(labels) or AlertGroupRecord(
                app=target.app, receiver=target.name, labels=dict(labels)
            )
            found = _due(target, record, groups.get(labels, {}), silenced, ended, now)
            if found:
                due.append(found)
            elif not (record.told or record.maybe) and labels not in groups and labels in known:
                gone.append(record)
    gone += [record for records_of in by_target.values() for record in records_of]
    return due, gone


def _due(
    target: Target,
    record: AlertGroupRecord,
    group: Group,
    silenced: Callable[[Mapping[str, str]], bool],
    ended: Callable[[str], float],
    now: float,
) -> Due | None:
    told = {alert.fingerprint: alert for alert in record.told}
    known = {alert.fingerprint: alert for alert in record.maybe} | told
    audible = {one: alert for one, alert in group.items() if not silenced(alert.labels)}
    held = tuple(alert for alert in told.values() if silenced(alert.labels))
    new = [alert for one, alert in audible.items() if one not in told]
    resolved = {
        one: alert
        for one, alert in known.items()
        if one not in group and not silenced(alert.labels)
    }
    if resolved and (not _wants_resolved(target) or _hopeless(record, audible)):
        # Nobody is told; what is new has its turn next.
        stays = tuple(alert for one, alert in audible.items() if one in told)
        return Due(target, record, stays, tuple(resolved.values()), held, silent=True)
    changes = [alert.started for alert in new] + [ended(one) for one in resolved]
    if changes:
        at = min(changes) + target.group_wait
    elif audible:
        at = record.told_at + target.repeat
    else:
        return None
    if now < max(at, record.next_attempt):
        return None
    return Due(target, record, tuple(audible.values()), tuple(resolved.values()), held)


def _hopeless(record: AlertGroupRecord, audible: Group) -> bool:
    return not audible and record.attempts >= ATTEMPTS


def _wants_resolved(target: Target) -> bool:
    return target.spec is None or target.spec.resolved
