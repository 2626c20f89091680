"""The alerts that exist without being declared.

An app switches one off in `monitoring.disabled`, or declares its own of the same name in its place.
Those of the whole installation are off where every app does so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from bedstone.control.monitoring.alerts.rules import Condition, Facts, Rule
from bedstone.control.monitoring.reading import Reader
from bedstone.control.snapshot import Snapshot
from bedstone.model.monitoring_spec import MonitoringSpec
from bedstone.model.resources import App, Instance
from bedstone.model.spec import AppSpec
from bedstone.telemetry import names
from bedstone.telemetry.frames import Labels

INCOMPLETE: Final = 10
"""Seconds in a row that may be incomplete."""
CERTIFICATE: Final = 900.0
"""A certificate is renewed when half an hour is left; with a quarter something is wrong."""


def of_app(spec: AppSpec, snapshot: Snapshot) -> Iterator[Rule]:
    """The built-in rules of one app, without those that it switches off."""
    off = _off(spec)
    yield from (rule for rule in _of_app(spec.app, snapshot) if rule.name not in off)


def of_installation(specs: Iterable[AppSpec], snapshot: Snapshot, reader: Reader) -> Iterator[Rule]:
    """The built-in rules of the whole installation."""
    offs = [_off(spec) for spec in specs]
    off = frozenset.intersection(*offs) if offs else frozenset()
    yield from (rule for rule in _of_installation(snapshot, reader) if rule.name not in off)


def _off(spec: AppSpec) -> frozenset[str]:
    return frozenset({*(spec.monitoring or MonitoringSpec()).disabled, *spec.alerts})


def _of_app(app: str, snapshot: Snapshot) -> Iterator[Rule]:
    restarts = f'{names.INSTANCE_RESTARTS.name}{{app="{app}"}}'
    yield Rule(
        app,
        "instance-restarting",
        Condition(f"sum by (workload, instance) (increase({restarts}[5m])) >= 3"),
        severity="ticket",
        summary="instance {instance} of {workload} was started again {value} times in 5 minutes",
        group_by=("rule", "workload"),
        every=5,
        built_in=True,
    )
    yield Rule(
        app,
        "workload-not-ready",
        # not by a series: of a node that is gone there is none
        Facts("ready instances < 1", _not_ready(app, snapshot)),
        lasting=30.0,
        severity="page",
        summary="no instance of {workload} is ready",
        every=5,
        built_in=True,
    )
    yield Rule(
        app,
        "transaction-stuck",
        Condition(f'sum({names.TRANSACTIONS_STUCK.name}{{app="{app}"}}) > 0'),
        severity="page",
        summary="{value} transactions wait for a person: bedstone tx ls --stuck",
        built_in=True,
    )
    yield Rule(
        app,
        "certificate-expiring",
        Facts("certificate_until - now < 15m", _expiring(app, snapshot)),
        severity="page",
        summary="the certificate of instance {instance} of {workload} ends in {value} s",
        every=10,
        built_in=True,
    )


def _of_installation(snapshot: Snapshot, reader: Reader) -> Iterator[Rule]:
    yield Rule(
        "",
        "node-silent",
        # a node whose lease has ended is not asked any more: no second lacks it
        Facts("nodes that are not heard from", _silent(snapshot)),
        lasting=10.0,
        severity="page",
        summary="node {node} is not heard from, and what runs there gets no requests",
        built_in=True,
    )
    yield Rule(
        "",
        "monitoring-incomplete",
        Facts(f"incomplete seconds in a row > {INCOMPLETE}", _incomplete(reader)),
        severity="ticket",
        summary="nothing is collected from {source} for {value} s",
        built_in=True,
    )
    disk = names.NODE_DISK.name
    yield Rule(
        "",
        "disk-almost-full",
        Condition(
            f'sum by (node) ({disk}{{state="available"}}) / '
            f'sum by (node) ({disk}{{state="total"}}) < 0.05'
        ),
        lasting=60.0,
        severity="page",
        summary="the disk of node {node} is full but for a share of {value}",
        every=10,
        built_in=True,
    )


def _not_ready(app: str, snapshot: Snapshot) -> Callable[[int], Mapping[Labels, float]]:
    def facts(_second: int) -> dict[Labels, float]:
        declared = snapshot.get(App, f"apps/{app}")
        if declared is None or declared.deleting:
            return {}
        ready = {it.workload for it in snapshot.of(Instance, app) if snapshot.ready(it)}
        return {
            (("workload", name),): 0.0
            for name in declared.spec.workloads
            if declared.replicas(name) > 0 and name not in ready
        }

    return facts


def _silent(snapshot: Snapshot) -> Callable[[int], Mapping[Labels, float]]:
    def facts(_second: int) -> dict[Labels, float]:
        return {
            (("node", name),): 1.0
            for name in snapshot.nodes()
            if snapshot.apps_on(name) and not snapshot.present(name)
        }

    return facts


def _expiring(app: str, snapshot: Snapshot) -> Callable[[int], Mapping[Labels, float]]:
    def facts(second: int) -> dict[Labels, float]:
        found: dict[Labels, float] = {}
        for instance in snapshot.of(Instance, app):
            status = snapshot.status(instance)
            if status is None or status.certificate_until is None or not snapshot.ready(instance):
                continue
            left = status.certificate_until - second
            if left < CERTIFICATE:
                found[("instance", instance.name), ("workload", instance.workload)] = left
        return found

    return facts


def _incomplete(reader: Reader) -> Callable[[int], Mapping[Labels, float]]:
    def facts(second: int) -> dict[Labels, float]:
        incomplete = reader.incomplete(second - 600, second)
        found: dict[Labels, float] = {}
        for source in incomplete.get(second, {}):
            row = 0
            while source in incomplete.get(second - row, {}):
                row += 1
            if row > INCOMPLETE and source != "server":
                found[(("source", source),)] = float(row)
        return found

    return facts
