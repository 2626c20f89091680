"""Tables: series by steps, which every part of an expression takes and gives.

Invariant: where a table has no value (`present` is false), its value is NaN. A NaN that is present
is a value like any other (0/0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bedstone.control.monitoring.promql.results import LabelMap
from bedstone.errors import InvalidError

Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]
Times: TypeAlias = NDArray[np.int64]

NAME = "__name__"
Key: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Series (rows) by steps (columns).

    Args:
        labels: of each row; not to be changed. No two rows have the same ones.
        values: shape (S, T).
        present: shape (S, T), whether there is a value.
        ordered: the rows stand in an order that means something (`sort`, `topk`).
    """

    labels: tuple[LabelMap, ...]
    values: Floats
    present: Bools
    ordered: bool = False

    @property
    def steps(self) -> int:
        """How many columns it has."""
        return int(self.values.shape[1])


@dataclass(frozen=True, slots=True)
class Steps:
    """A number for each step."""

    values: Floats


@dataclass(frozen=True, slots=True)
class Text:
    """A text, the same at each step."""

    value: str


Operand: TypeAlias = Table | Steps | Text


def made(labels: Iterable[LabelMap], values: Floats, present: Bools) -> Table:
    """A table of new labels; rows that have the same ones now become one.

    Raises:
        InvalidError: two of them have a value at the same step.
    """
    return distinct(Table(tuple(labels), values, present))


def nameless(labels: Sequence[LabelMap], values: Floats, present: Bools) -> Table:
    """A table of values that are not the metric's any more: its name goes.

    Raises:
        InvalidError: two series differ in their names alone, and have a value at the same step.
    """
    bare = tuple(without_name(each) for each in labels)
    table = Table(bare, values, present)
    # Series of one metric differ in other labels: looking at each is most of a query's cost.
    one = len({each.get(NAME) for each in labels}) <= 1
    return table if one else distinct(table)


def distinct(table: Table) -> Table:
    """Make one row of those with the same labels, which may follow one another in time.

    Raises:
        InvalidError: two of them have a value at the same step.
    """
    groups = grouped(table.labels, lambda labels: tuple(sorted(labels.items())))
    if len(groups) == len(table.labels):
        return table

    def refused(labels: LabelMap) -> InvalidError:
        return InvalidError(
            f"two series have the same labels {shown(labels)} at one time",
            hint="sum them by their labels first, or keep the label that tells them apart",
        )

    values, present = coalesced(table, list(groups.values()), refused)
    firsts = tuple(table.labels[rows[0]] for rows in groups.values())
    return replace(table, labels=firsts, values=values, present=present)


def coalesced(
    table: Table, groups: Sequence[Sequence[int]], refused: Callable[[LabelMap], InvalidError]
) -> tuple[Floats, Bools]:
    """One row for each group of rows, of whichever has a value at a step."""
    values = table.values[[rows[0] for rows in groups]]
    present = table.present[[rows[0] for rows in groups]]
    for index, rows in enumerate(groups):
        for row in rows[1:]:
            if (present[index] & table.present[row]).any():
                raise refused(table.labels[row])
            values[index] = np.where(table.present[row], table.values[row], values[index])
            present[index] |= table.present[row]
    return values, present


def grouped(
    labels: Sequence[LabelMap], key: Callable[[LabelMap], tuple[object, ...]]
) -> dict[tuple[object, ...], list[int]]:
    """Rows by a key, in the order in which the keys come first."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for row, each in enumerate(labels):
        groups.setdefault(key(each), []).append(row)
    return groups


def taken(table: Table, rows: Sequence[int]) -> Table:
    """Some rows of a table, in this order."""
    index = list(rows)
    return replace(
        table,
        labels=tuple(table.labels[row] for row in index),
        values=table.values[index],
        present=table.present[index],
    )


def kept(table: Table, keep: Bools) -> Table:
    """Take the values away where `keep` is false."""
    present = table.present & keep
    return replace(table, values=np.where(present, table.values, np.nan), present=present)


def filled(table: Table) -> Table:
    """Without the rows that have no value at any step."""
    rows = np.flatnonzero(table.present.any(axis=1)).tolist()
    return table if len(rows) == len(table.labels) else taken(table, rows)


def without_name(labels: LabelMap) -> LabelMap:
    """What remains when a value is not the metric's any more."""
    return {name: value for name, value in labels.items() if name != NAME}


def shown(labels: LabelMap) -> str:
    """Labels for people."""
    pairs = ", ".join(f'{name}="{value}"' for name, value in sorted(labels.items()))
    return f"{{{pairs}}}"
