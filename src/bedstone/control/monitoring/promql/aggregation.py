"""Aggregations: one value of many series, by or without labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from bedstone.control.monitoring.promql.context import Context
from bedstone.control.monitoring.promql.ranges import quantiles
from bedstone.control.monitoring.promql.results import LabelMap
from bedstone.control.monitoring.promql.table import (
    NAME,
    Bools,
    Floats,
    Table,
    Times,
    distinct,
    grouped,
    taken,
)
from bedstone.control.monitoring.promql.text import number
from bedstone.errors import InvalidError


@dataclass(frozen=True, slots=True)
class Grouping:
    """Which series are one group: those that agree in some labels, or in all but some.

    An absent label is the same as an empty one.
    """

    names: tuple[str, ...]
    without: bool = False

    def key(self, labels: LabelMap) -> tuple[object, ...]:
        """What the series of a group have in common."""
        if not self.without:
            return tuple(labels.get(name, "") for name in self.names)
        return tuple(sorted(self.labels(labels).items()))

    def labels(self, labels: LabelMap) -> LabelMap:
        """The labels of a series' group."""
        if not self.without:
            return {name: labels[name] for name in self.names if labels.get(name)}
        return {n: v for n, v in labels.items() if n not in self.names and n != NAME and v}


def _groups(table: Table, grouping: Grouping) -> list[tuple[LabelMap, list[int]]]:
    found = grouped(table.labels, grouping.key)
    return [(grouping.labels(table.labels[rows[0]]), rows) for rows in found.values()]


def aggregate(
    op: str, table: Table, grouping: Grouping, parameter: Floats | str | None, context: Context
) -> Table:
    """Apply an aggregation.

    Args:
        op: its name.
        table: what is aggregated.
        grouping: which group a series is in.
        parameter: shape (T,), or a label's name, where it takes one.
        context: of the evaluation.

    Raises:
        InvalidError: it is not known here, or its parameter does not fit.
    """
    groups = _groups(table, grouping)
    context.watch()
    match op, parameter:
        case "topk" | "bottomk", np.ndarray():
            return _ranked(table, groups, parameter, largest=op == "topk")
        case "count_values", str():
            return _counted(table, groups, parameter, context)
        case "quantile", np.ndarray():
            return _quantile(table, groups, parameter)
        case _ if op in _REDUCTIONS:
            return _reduced(op, table, groups)
        case _:
            raise InvalidError(f"the aggregation {op} is not supported")


def _reduced(op: str, table: Table, groups: list[tuple[LabelMap, list[int]]]) -> Table:
    if not groups:
        return table
    order = np.concatenate([np.asarray(rows, dtype=np.int64) for _, rows in groups])
    starts = np.cumsum([0, *(len(rows) for _, rows in groups[:-1])])
    values, present = table.values[order], table.present[order]
    counts = np.add.reduceat(present, starts, axis=0, dtype=np.int64)
    result = _REDUCTIONS[op](values, present, counts, starts)
    there = counts > 0
    labels = tuple(labels for labels, _ in groups)
    return Table(labels, np.where(there, result, np.nan), there)


def _sum(values: Floats, present: Bools, _: object, starts: Times) -> Floats:
    result: Floats = np.add.reduceat(np.where(present, values, 0.0), starts, axis=0)
    return result


def _mean(values: Floats, present: Bools, counts: Times, starts: Times) -> Floats:
    return _sum(values, present, counts, starts) / np.maximum(counts, 1)


def _variance(values: Floats, present: Bools, counts: Times, starts: Times) -> Floats:
    mean = _mean(values, present, counts, starts)
    sizes = np.diff([*starts.tolist(), len(values)]).astype(np.int64)
    apart = values - np.repeat(mean, sizes, axis=0)
    return _mean(apart**2, present, counts, starts)


def _least(values: Floats, _: Bools, __: object, starts: Times) -> Floats:
    result: Floats = np.fmin.reduceat(values, starts, axis=0)
    return result


def _greatest(values: Floats, _: Bools, __: object, starts: Times) -> Floats:
    result: Floats = np.fmax.reduceat(values, starts, axis=0)
    return result


_REDUCTIONS: Final[dict[str, Callable[..., Floats]]] = {
    "sum": _sum,
    "avg": _mean,
    "min": _least,
    "max": _greatest,
    "count": lambda _values, _present, counts, _starts: counts.astype(np.float64),
    "group": lambda _values, _present, counts, _starts: np.ones(counts.shape),
    "stdvar": _variance,
    "stddev": lambda *given: np.sqrt(_variance(*given)),
}

NAMES: Final = (*_REDUCTIONS, "topk", "bottomk", "quantile", "count_values")
"""The aggregations that are known here."""


def _ranked(
    table: Table, groups: list[tuple[LabelMap, list[int]]], size: Floats, *, largest: bool
) -> Table:
    """The `size` first of each group at each step, in their order at the last step."""
    keep = np.zeros_like(table.present)
    order: list[int] = []
    limit = np.nan_to_num(np.clip(size, 0, len(table.labels)), nan=0.0).astype(np.int64)
    for _, rows in groups:
        values = table.values[rows]
        # What is not a number is the last that is taken; what is not there never is.
        sortable = np.where(np.isnan(values), np.inf, -values if largest else values)
        sortable = np.where(table.present[rows], sortable, np.inf)
        absent = ~table.present[rows]
        positions = np.lexsort((sortable, absent), axis=0)
        ranks = np.argsort(positions, axis=0, kind="stable")
        keep[rows] = (ranks < limit) & table.present[rows]
        order.extend(rows[row] for row in positions[:, -1].tolist() if keep[rows[row]].any())
    kept_table = Table(table.labels, np.where(keep, table.values, np.nan), keep, ordered=True)
    return taken(kept_table, order)


def _quantile(table: Table, groups: list[tuple[LabelMap, list[int]]], shares: Floats) -> Table:
    values = np.empty((len(groups), table.steps))
    present = np.empty((len(groups), table.steps), dtype=bool)
    same = bool((shares == shares[0]).all()) or bool(np.isnan(shares).all())
    for index, (_, rows) in enumerate(groups):
        columns = table.values[rows].T
        if same:
            values[index] = quantiles(columns, float(shares[0]))
        else:
            for step, share in enumerate(shares.tolist()):
                values[index, step] = quantiles(columns[step : step + 1], share)[0]
        present[index] = table.present[rows].any(axis=0)
    labels = tuple(labels for labels, _ in groups)
    return Table(labels, np.where(present, values, np.nan), present)


def _counted(
    table: Table, groups: list[tuple[LabelMap, list[int]]], label: str, context: Context
) -> Table:
    """How many series of each group have each value, which becomes a label."""
    labels: list[LabelMap] = []
    counts: list[Floats] = []
    for group, rows in groups:
        values, present = table.values[rows], table.present[rows]
        for value in np.unique(values[present]).tolist():
            context.watch()
            equal = present & ((values == value) | (np.isnan(values) & np.isnan(value)))
            labels.append({**group, label: number(value)})
            counts.append(equal.sum(axis=0).astype(np.float64))
            if len(labels) * table.steps > context.limits.points:
                raise InvalidError(
                    f"count_values gives more than {context.limits.points} points",
                    hint="round the values",
                )
    if not labels:
        return Table((), np.empty((0, table.steps)), np.empty((0, table.steps), dtype=bool))
    whole = np.array(counts)
    return distinct(Table(tuple(labels), np.where(whole > 0, whole, np.nan), whole > 0))
