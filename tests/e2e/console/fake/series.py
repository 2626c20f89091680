"""A pretended Prometheus: any expression that names a metric gets series that look like its own.

It understands no PromQL. It finds the metric, the labels that are asked for and those that are
summed by, and a quantile; a series is a function of its labels and the second.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.e2e.console.fake.world import MIB, World, noise, signals

from bedstone.telemetry import names

_METRIC = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?=\s*[\[{),]|\s*$)")
_MATCHER = re.compile(r'([a-zA-Z_]+)\s*(=~|!=|=)\s*"([^"]*)"')
_BY = re.compile(r"by\s*\(([^)]*)\)")
_QUANTILE = re.compile(r"histogram_quantile\(\s*([0-9.]+)")
_WORDS = {"by", "le", "sum", "rate", "increase", "avg", "max"}
METRICS = [metric.name for metric in names.CATALOGUE]


def parsed(query: str) -> tuple[str, dict[str, str], list[str], float | None]:
    found = [m for m in _METRIC.findall(query) if m not in _WORDS and ("_" in m or m == "up")]
    matchers = {name: value for name, how, value in _MATCHER.findall(query) if how != "!="}
    by = [part.strip() for part in (_BY.search(query) or ["", ""])[1].split(",")]
    quantile = _QUANTILE.search(query)
    by = [part for part in by if part and part != "le"]
    return (found or [""])[0], matchers, by, float(quantile[1]) if quantile else None


def labelled(world: World, query: str) -> Iterator[dict[str, str]]:
    metric, matchers, by, _ = parsed(query)
    if not any(metric.startswith(name) for name in METRICS):
        return
    if "sum" in query and not by:
        yield {}
        return
    labels = by or ["workload"]
    seen = set[tuple[tuple[str, str], ...]]()
    for app, uses in world.apps().items():
        for name in uses:
            every = {
                "app": app, "cell": "default", "workload": name, "instance": f"{name}-0", "node": "local",
                "kind": "timeout", "code": "2xx", "caller": name, "callee": (uses[name] or ["none"])[0],
                "revision": "7c19ab02", "database": "ledger", "state": "active", "event": "committed",
            }  # fmt: skip
            if any(
                not re.fullmatch(value, every.get(label, value))
                for label, value in matchers.items()
            ):
                continue
            given = tuple((label, every.get(label, "")) for label in labels)
            if given not in seen and len(seen) < 8:
                seen.add(given)
                yield dict(given)


def value(query: str, labels: dict[str, str], second: float) -> float:
    metric, matchers, _, quantile = parsed(query)
    subject = labels.get("workload") or matchers.get("workload") or labels.get("node") or "web"
    now = signals(subject, second)
    match metric:
        case _ if quantile:
            base = now.p50 or 0.0
            return base * (1 + (quantile * 100 - 50) / 14)
        case _ if "memory" in metric or "bytes" in metric:
            return (now.memory or MIB) * (1 + 0.01 * noise(metric, second // 20))
        case _ if "cpu" in metric:
            return now.cpu or 0.0
        case _ if "error" in metric:
            return (now.rate or 0.0) * (now.errors or 0.0)
        case _ if "stuck" in metric:
            return 1.0
        case _:
            return now.rate or 0.0


def matrix(world: World, query: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
    grid = [start + index * step for index in range(int((end - start) / step) + 1)]
    return [
        {
            "metric": labels,
            "values": [
                [at, f"{value(query, labels, at):.6g}"]
                for at in grid
                if not (step < 5 and world.missing(int(at)))
            ],
        }
        for labels in labelled(world, query)
    ]
