"""The alerts that exist without being declared, on the real engine."""

from __future__ import annotations

import pytest

from bedstone.control.monitoring.alerts import builtin
from bedstone.control.monitoring.alerts.evaluation import Examiner
from bedstone.control.monitoring.alerts.machine import Certainty
from bedstone.control.monitoring.alerts.rules import Rule
from bedstone.control.snapshot import Snapshot
from bedstone.model.manifest import parse_manifest
from bedstone.model.monitoring_spec import MonitoringSpec
from bedstone.model.resources import App, Instance, InstanceStatus, Node, Phase, Presence, Resource
from bedstone.model.spec import AppSpec
from bedstone.server.alert_promql import PromqlEvaluator
from bedstone.store import Entry, Event
from bedstone.telemetry import names
from bedstone.testing.alerts import START
from bedstone.testing.series_memory import MemoryReader


def spec(more: str = "") -> AppSpec:
    return parse_manifest(f"app: shop\nworkloads: {{web: {{command: [x]}}}}\n{more}").spec


def snapshot(*resources: Resource) -> Snapshot:
    found = Snapshot()
    found.apply(
        Event(one.key, number, Entry(one.key, one.encode(), number, number))
        for number, one in enumerate(resources, 1)
    )
    return found


class Watched:
    """The built-in rules over series that a test makes."""

    def __init__(self, *resources: Resource) -> None:
        self.reader = MemoryReader()
        self.snapshot = snapshot(*resources)
        self.examiner = Examiner(self.reader, PromqlEvaluator(self.reader))
        self.second = START

    def rules(self, *specs: AppSpec) -> dict[str, Rule]:
        given = specs or (spec(),)
        found = [rule for one in given for rule in builtin.of_app(one, self.snapshot)]
        found += builtin.of_installation(given, self.snapshot, self.reader)
        return {rule.name: rule for rule in found}

    def gauge(self, name: str, value: float, **labels: str) -> None:
        self.reader.put(name, labels, "gauge", self.second, value)

    def next(self, missing: dict[str, str] | None = None) -> None:
        self.reader.finish(self.second, missing)
        self.second += 1

    def holds(self, rule: str) -> dict[str, float]:
        """The alerts of a rule in the last second, by their labels."""
        found = self.rules()[rule]
        outcome = self.examiner.examine(found, self.second - 1, Certainty.WHOLE)
        assert outcome.error == ""
        return {
            " ".join(f"{key}={value}" for key, value in labels): held.value
            for labels, held in outcome.holds.items()
        }


def test_every_built_in_alert_is_there_can_be_switched_off_or_replaced() -> None:
    watched = Watched()
    every = set(watched.rules())
    assert every == set(
        MonitoringSpec.model_json_schema()["properties"]["disabled"]["items"]["enum"]
    )
    off = spec(f"monitoring: {{disabled: [{', '.join(sorted(every))}]}}")
    assert watched.rules(off) == {}
    other = off.model_copy(update={"app": "bank", "monitoring": None})
    # Those of the installation stay while one app wants them.
    assert set(watched.rules(off, other)) == every
    own = spec("alerts: {workload-not-ready: {when: x > 1}}")
    assert "workload-not-ready" not in watched.rules(own)


def placed(workload: str, name: str, node: str, phase: Phase) -> tuple[Resource, Resource]:
    return (
        Instance(app="shop", workload=workload, name=name, node=node, revision="r"),
        InstanceStatus(
            app="shop", workload=workload, name=name, node=node, revision="r", phase=phase
        ),
    )


def shop(**replicas: int) -> App:
    lines = (f"{name}: {{command: [x], replicas: {many}}}" for name, many in replicas.items())
    text = f"app: shop\nworkloads: {{{', '.join(lines)}}}\n"
    return App(name="shop", spec=parse_manifest(text).spec)


def test_a_workload_none_of_whose_instances_is_ready() -> None:
    watched = Watched(
        shop(web=2, risk=1, none=0, unplaced=1),
        Node(name="n", address="127.0.0.1"),
        Presence(node="n"),
        *placed("web", "a", "n", Phase.READY),
        *placed("web", "b", "n", Phase.BACKOFF),
        *placed("risk", "c", "n", Phase.BACKOFF),
    )
    watched.next()
    assert watched.holds("workload-not-ready") == {"workload=risk": 0.0, "workload=unplaced": 0.0}


def test_a_node_that_is_gone_is_told_and_so_is_what_ran_there() -> None:
    there = (
        shop(web=1),
        Node(name="n", address="127.0.0.1"),
        Node(name="empty", address="127.0.0.2"),
        *placed("web", "a", "n", Phase.READY),
    )
    watched = Watched(*there, Presence(node="n"))
    watched.next()
    assert watched.holds("node-silent") == watched.holds("workload-not-ready") == {}
    watched = Watched(*there)
    # it is not asked, so that no second is incomplete, and no series says anything
    watched.next()
    assert watched.holds("monitoring-incomplete") == {}
    assert watched.holds("node-silent") == {"node=n": 1.0}
    assert watched.holds("workload-not-ready") == {"workload=web": 0.0}


def test_an_instance_that_is_started_again_and_again() -> None:
    watched = Watched()
    for offset in range(240):
        restarts = min(offset // 60, 3)
        labels = {"app": "shop", "workload": "web", "instance": "a"}
        watched.reader.put(
            names.INSTANCE_RESTARTS.name, labels, "counter", watched.second, restarts
        )
        watched.next()
        expected = {"instance=a workload=web": 3.0} if restarts == 3 else {}
        if offset in (0, 100, 179, 180, 239):
            assert watched.holds("instance-restarting") == expected


def test_a_transaction_that_is_stuck() -> None:
    watched = Watched()
    watched.gauge(names.TRANSACTIONS_STUCK.name, 2, app="shop")
    watched.gauge(names.TRANSACTIONS_STUCK.name, 5, app="bank")
    watched.next()
    assert watched.holds("transaction-stuck") == {"": 2.0}


def test_a_disk_that_is_almost_full() -> None:
    watched = Watched()
    for node, available in (("a", 4e9), ("b", 50e9)):
        watched.gauge(names.NODE_DISK.name, available, node=node, state="available")
        watched.gauge(names.NODE_DISK.name, 100e9, node=node, state="total")
    watched.next()
    assert watched.holds("disk-almost-full") == {"node=a": pytest.approx(0.04)}


def test_monitoring_that_has_been_incomplete_for_too_long() -> None:
    watched = Watched()
    watched.next()
    for _ in range(builtin.INCOMPLETE):
        watched.next({"n1": "away", "n2/envoy": "no answer"})
    assert watched.holds("monitoring-incomplete") == {}
    watched.next({"n1": "away"})
    assert watched.holds("monitoring-incomplete") == {"source=n1": 11.0}
    watched.next()
    assert watched.holds("monitoring-incomplete") == {}
    for _ in range(30):
        watched.next({"server": "away"})
    assert watched.holds("monitoring-incomplete") == {}, "nobody could have been told"


def test_a_certificate_that_is_not_renewed_in_time() -> None:
    def instance(name: str, until: float) -> tuple[Resource, Resource]:
        wanted = Instance(app="shop", workload="web", name=name, node="n", revision="r")
        return wanted, InstanceStatus(
            app="shop",
            workload="web",
            name=name,
            node="n",
            revision="r",
            phase=Phase.READY,
            certificate_until=until,
        )

    watched = Watched(
        Node(name="n", address="127.0.0.1"),
        Presence(node="n"),
        *instance("a", START + 600.0),
        *instance("b", START + 3000.0),
    )
    watched.next()
    assert watched.holds("certificate-expiring") == {"instance=a workload=web": 600.0}
