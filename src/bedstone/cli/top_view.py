"""What `bedstone top` shows of one second, as lines; pure.

A dash is "no value": nothing was measured, which is not zero.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from bedstone.cli.terminal import brief, clean, columns, paint

if TYPE_CHECKING:
    from bedstone.model.monitoring import NodeLine, Overview, WorkloadLine

_HEALTH = {"ok": "ready", "warning": "warn", "error": "fail", "unknown": "pending"}
_WORKLOADS: Final = (
    *("WORKLOAD", "STATE", "READY", "RATE/S", "ERRORS", "P50", "P99"),
    *("CPU", "MEMORY", "RESTARTS"),
)
_NODES: Final = ("NODE", "STATE", "INSTANCES", "CPU", "MEMORY")
_MISSING_SHOWN = 3

ORDERS: Final[dict[str, Callable[[WorkloadLine], float]]] = {
    "rate": lambda line: line.signals.rate or 0.0,
    "errors": lambda line: line.signals.errors or 0.0,
    "p99": lambda line: line.signals.p99 or 0.0,
    "cpu": lambda line: line.signals.cpu or 0.0,
    "memory": lambda line: line.signals.memory or 0.0,
}
"""What workloads can be sorted by, the most first; by name otherwise."""


def view(overview: Overview, workloads: Sequence[WorkloadLine], order: str = "name") -> list[str]:
    """The whole of one second."""
    lines = [headline(overview), ""]
    several = len(overview.apps) > 1
    rows = [workload_row(line, several) for line in ordered(workloads, order)]
    lines += columns([_WORKLOADS, *rows]) if rows else ["no app is applied"]
    if overview.nodes:
        lines += ["", *columns([_NODES, *map(node_row, overview.nodes)])]
    # Below the tables, since they leave no room in a terminal of 80 columns.
    reasons: list[tuple[str, WorkloadLine | NodeLine]] = [
        *((_name(line, several), line) for line in ordered(workloads)),
        *((line.node, line) for line in overview.nodes),
    ]
    told = [
        f"{clean(name)} {paint(line.health, _HEALTH[line.health])}: {brief(line.reason)}"
        for name, line in reasons
        if line.reason
    ]
    lines += ["", *told] if told else []
    if overview.findings:
        lines.append("")
    for finding in overview.findings:
        where = f"{finding.app}/{finding.subject}" if finding.app else finding.subject
        hint = f"; {finding.hint}" if finding.hint else ""
        lines.append(f"{paint(finding.severity)}: {brief(f'{where}: {finding.message}{hint}')}")
    return lines


def headline(overview: Overview) -> str:
    """Which domain, which second, and whether everything in it answered."""
    if not overview.second:
        return f"{clean(overview.domain)}  {paint('nothing collected yet', 'pending')}"
    moment = time.strftime("%H:%M:%S", time.localtime(overview.second + 1))
    line = f"{clean(overview.domain)}  {moment}  "
    if overview.complete:
        return line + paint("complete", "ready")
    missing = [f"{name} ({why})" for name, why in sorted(overview.missing.items())]
    more = len(missing) - _MISSING_SHOWN
    words = ", ".join(missing[:_MISSING_SHOWN]) + (f", and {more} more" if more > 0 else "")
    return line + paint("incomplete", "warn") + (f": {clean(words)}" if words else "")


def ordered(workloads: Sequence[WorkloadLine], order: str = "name") -> list[WorkloadLine]:
    """The workloads by name, or the most of something first."""
    named = sorted(workloads, key=lambda line: (line.app, line.name))
    key = ORDERS.get(order)
    return sorted(named, key=key, reverse=True) if key else named


def workload_row(line: WorkloadLine, several: bool) -> tuple[str, ...]:  # noqa: FBT001
    """One workload; with its app where there are several."""
    signals = line.signals
    errors = share(signals.errors)
    return (
        _name(line, several),
        paint(line.health, _HEALTH[line.health]),
        f"{line.ready}/{line.wanted}",
        number(signals.rate),
        paint(errors, "fail") if signals.errors else errors,
        duration(signals.p50),
        duration(signals.p99),
        "-" if signals.cpu is None else f"{signals.cpu:.2f}",
        size(signals.memory),
        str(line.restarts),
    )


def _name(line: WorkloadLine, several: bool) -> str:  # noqa: FBT001
    return f"{line.app}/{line.name}" if several else line.name


def node_row(line: NodeLine) -> tuple[str, ...]:
    """One machine."""
    cpu = "-" if line.cpu is None else f"{line.cpu:.2f}"
    memory = size(line.memory)
    return (
        line.node,
        paint(line.health, _HEALTH[line.health]),
        str(line.instances),
        cpu if line.cores is None else f"{cpu}/{line.cores:g}",
        memory if line.memory_total is None else f"{memory}/{size(line.memory_total)}",
    )


def number(value: float | None) -> str:
    """A rate, with three digits that matter."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 or value == 0 else f"{value:.3g}"


def share(value: float | None) -> str:
    """A share as per cent; one that is not zero is never shown as zero."""
    if value is None:
        return "-"
    percent = 100 * value
    if percent == 0:
        return "0%"
    return "<0.01%" if percent < 0.01 else f"{percent:.3g}%"


def duration(value: float | None) -> str:
    """Seconds, as people read latencies."""
    if value is None:
        return "-"
    if value < 0.9995:
        return f"{value * 1000:.3g}ms"
    return f"{value:.3g}s"


def size(value: float | None) -> str:
    """Bytes in binary units."""
    if value is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if value < 1000:
            return f"{value:.3g}{unit}"
        value /= 1024
    return f"{value:.3g}GiB"
