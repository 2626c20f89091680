"""Who is told of what, and when; and in which words."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
from dataclasses import dataclass, field

from bedstone.control.monitoring.alerts.groups import (
    ATTEMPTS,
    LONGEST,
    Due,
    Firing,
    GroupKey,
    Target,
    key_of,
    pause,
    plan,
)
from bedstone.control.monitoring.alerts.webhook import LARGEST, payload, signature
from bedstone.model.alert_records import AlertGroupRecord, ToldAlert
from bedstone.model.monitoring_spec import ReceiverSpec

NOW = 1_800_000_000.0


def target(name: str = "people", **spec: object) -> Target:
    fields = {"webhook": "http://127.0.0.1:1/", "group_wait": 5.0, "repeat": 100.0, **spec}
    return Target("shop", name, ReceiverSpec.model_validate(fields), frozenset({"", "shop"}))


def firing(rule: str, at: float = NOW, app: str = "shop", **labels: str) -> Firing:
    told = {"rule": rule, "severity": "page", **({"app": app} if app else {}), **labels}
    return Firing(app, ToldAlert(labels=told, summary=f"{rule}!", started=at), ("rule",))


@dataclass
class Desk:
    """Plans again and again over the records that it keeps."""

    targets: list[Target] = field(default_factory=lambda: [target()])
    records: dict[GroupKey, AlertGroupRecord] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    silenced: set[str] = field(default_factory=set)

    def due(self, now: float, *alerts: Firing) -> list[Due]:
        found, gone = plan(
            self.targets,
            alerts,
            self.records,
            lambda labels: labels["rule"] in self.silenced,
            lambda one: self.ended.get(one, 0.0),
            now,
        )
        for record in gone:
            del self.records[key_of(record)]
        return found

    def tell(self, now: float, *alerts: Firing) -> list[str]:
        """Tell what is due; in words."""
        said = []
        for due in self.due(now, *alerts):
            self.records[due.key] = due.succeeded(now)
            words = [a.labels["rule"] for a in due.firing]
            words += [f"-{a.labels['rule']}" for a in due.resolved]
            if not due.silent:
                said.append(f"{due.target.name}: {' '.join(words)}")
        return said


def test_a_group_waits_for_others_then_is_told_once_then_again() -> None:
    desk = Desk()
    one = firing("a")
    assert desk.tell(NOW + 4.9, one) == []
    assert desk.tell(NOW + 5, one) == ["people: a"]
    assert desk.tell(NOW + 104, one) == []
    assert desk.tell(NOW + 105, one) == ["people: a"]
    assert desk.tell(NOW + 106) == ["people: -a"]
    assert desk.tell(NOW + 107) == []
    assert desk.records == {}


def test_the_end_of_an_alert_waits_for_others_too() -> None:
    desk = Desk()
    one = firing("a")
    desk.tell(NOW + 5, one)
    desk.ended[one.alert.fingerprint] = NOW + 10
    assert desk.tell(NOW + 14) == []
    assert desk.tell(NOW + 15) == ["people: -a"]


def test_what_was_never_told_is_not_told_to_be_over() -> None:
    desk = Desk()
    assert desk.tell(NOW + 1, firing("a")) == []
    assert desk.tell(NOW + 50) == []


def test_alerts_of_other_apps_are_not_told_and_those_of_the_installation_are() -> None:
    desk = Desk()
    assert desk.tell(NOW + 9, firing("a", app="bank"), firing("disk", app="")) == ["people: disk"]


def test_a_silenced_alert_is_as_it_was_until_the_silence_ends() -> None:
    desk = Desk()
    desk.silenced = {"a"}
    assert desk.tell(NOW + 50, firing("a")) == []
    desk.silenced = set()
    assert desk.tell(NOW + 51, firing("a")) == ["people: a"]
    desk.silenced = {"a"}
    assert desk.tell(NOW + 500, firing("a")) == []
    assert desk.tell(NOW + 501) == []
    desk.silenced = set()
    assert desk.tell(NOW + 502) == ["people: -a"]


def test_a_receiver_that_wants_no_end_is_told_none_and_of_the_next_one_again() -> None:
    desk = Desk([target(resolved=False)])
    desk.tell(NOW + 5, firing("a"))
    assert desk.tell(NOW + 10) == []
    assert desk.tell(NOW + 20, firing("a", NOW + 15)) == ["people: a"]


def test_failures_are_tried_again_less_and_less_often_while_it_fires() -> None:
    desk = Desk()
    one = firing("a")
    times = []
    now = NOW
    while now < NOW + 3000:
        now += 1
        for due in desk.due(now, one):
            times.append(now - NOW)
            desk.records[due.key] = due.failed(now, 1.0)
    assert times[:6] == [5, 6, 8, 12, 20, 36]
    assert {b - a for a, b in itertools.pairwise(times[10:])} == {LONGEST}
    assert desk.tell(now + LONGEST, one) == ["people: a"]
    (record,) = desk.records.values()
    assert record.attempts == 0


def test_that_something_is_over_is_given_up_after_so_many_attempts() -> None:
    desk = Desk()
    desk.tell(NOW + 5, firing("a"))
    now, attempts = NOW + 10, 0
    while desk.records:
        now += LONGEST
        for due in desk.due(now):
            attempts += not due.silent
            record = due.succeeded(now) if due.silent else due.failed(now, 1.0)
            desk.records[due.key] = record
    assert attempts == ATTEMPTS


def test_records_of_a_receiver_that_is_no_more_go() -> None:
    desk = Desk()
    desk.tell(NOW + 5, firing("a"))
    desk.targets = []
    assert desk.tell(NOW + 6, firing("a")) == []
    assert desk.records == {}


def test_not_everybody_tries_again_at_the_same_time() -> None:
    assert pause(1, 0.0) < pause(1, 1.0)


def due_of(firing_: int, resolved: int) -> Due:
    alerts = [firing("slow", NOW - 60 - n, workload=f"w{n}").alert for n in range(firing_)]
    over = [firing("slow", NOW - 90, workload=f"o{n}").alert for n in range(resolved)]
    record = AlertGroupRecord(app="shop", receiver="people", labels={"rule": "slow"})
    return Due(target(), record, tuple(alerts), tuple(over))


def test_the_body_is_alertmanagers_version_4() -> None:
    body = json.loads(payload(due_of(2, 1), NOW))
    assert set(body) == {
        *("version", "groupKey", "truncatedAlerts", "status", "receiver", "groupLabels"),
        *("commonLabels", "commonAnnotations", "externalURL", "alerts"),
    }
    assert body["version"] == "4"
    assert (body["status"], body["receiver"]) == ("firing", "people")
    assert body["groupLabels"] == {"rule": "slow"}
    assert body["commonLabels"] == {
        "alertname": "slow",
        "app": "shop",
        "rule": "slow",
        "severity": "page",
    }
    assert body["commonAnnotations"] == {"summary": "slow!"}
    first, _, last = body["alerts"]
    assert first["status"] == "firing"
    assert first["startsAt"] == "2027-01-15T07:59:00.000Z"
    assert first["endsAt"] == "0001-01-01T00:00:00Z"
    assert last["status"] == "resolved"
    assert last["endsAt"] == "2027-01-15T08:00:00.000Z"
    assert len({alert["fingerprint"] for alert in body["alerts"]}) == 3
    assert json.loads(payload(due_of(0, 1), NOW))["status"] == "resolved"


def test_a_group_of_very_many_is_cut_and_says_so() -> None:
    body = json.loads(payload(due_of(LARGEST + 7, 0), NOW))
    assert (len(body["alerts"]), body["truncatedAlerts"]) == (LARGEST, 7)


def test_a_signature_is_of_the_time_and_the_body() -> None:
    signed = signature("hush", b"{}", NOW)
    digest = hmac.new(b"hush", b"1800000000.{}", hashlib.sha256).hexdigest()
    assert signed == f"t=1800000000,v1={digest}"
