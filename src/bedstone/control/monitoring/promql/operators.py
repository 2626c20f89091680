"""Binary operators: between numbers, series and numbers, and series matched by their labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from bedstone.control.monitoring.promql.context import Context
from bedstone.control.monitoring.promql.results import LabelMap
from bedstone.control.monitoring.promql.table import (
    NAME,
    Bools,
    Floats,
    Steps,
    Table,
    coalesced,
    distinct,
    grouped,
    kept,
    nameless,
    shown,
    taken,
    without_name,
)
from bedstone.errors import InvalidError

Card = Literal["one", "left", "right"]


@dataclass(frozen=True, slots=True)
class Matching:
    """How series of the two sides find one another.

    Args:
        labels: the labels of `on`, or those that are ignored.
        on: `labels` are those that must be equal; else all others must.
        many: which side may have several series for one of the other (`group_left`, `group_right`).
        include: labels that the many take from the one.
    """

    labels: tuple[str, ...] = ()
    on: bool = False
    many: Card = "one"
    include: tuple[str, ...] = ()

    def key(self, labels: LabelMap) -> tuple[object, ...]:
        """What must be equal."""
        if self.on:
            return tuple(labels.get(name, "") for name in self.labels)
        return tuple(
            (name, value)
            for name, value in sorted(labels.items())
            if name != NAME and name not in self.labels and value
        )


_ARITHMETIC: Final[dict[str, Callable[[Floats, Floats], Floats]]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "%": np.fmod,
    "^": np.power,
    "atan2": np.arctan2,
}
_COMPARE: Final[dict[str, Callable[[Floats, Floats], Bools]]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
}
SETS: Final = ("and", "or", "unless")
NAMES: Final = (*_ARITHMETIC, *_COMPARE, *SETS)
"""The operators that are known here."""


def _computed(op: str, a: Floats, b: Floats) -> Floats:
    """Arithmetic of IEEE 754: what cannot be computed is NaN or infinite."""
    with np.errstate(all="ignore"):
        return _ARITHMETIC[op](a, b)


def numbers(op: str, left: Steps, right: Steps) -> Steps:
    """An operator between two numbers; of a comparison, 0 or 1."""
    if op in _COMPARE:
        return Steps(_COMPARE[op](left.values, right.values).astype(np.float64))
    return Steps(_computed(op, left.values, right.values))


def mixed(op: str, table: Table, other: Steps, *, swapped: bool, as_bool: bool) -> Table:
    """An operator between series and a number, which is on the left if `swapped`."""
    a, b = (other.values, table.values) if swapped else (table.values, other.values)
    if op in _COMPARE:
        holds = np.broadcast_to(_COMPARE[op](a, b), table.present.shape)
        if not as_bool:
            return kept(table, holds)
        values = np.where(table.present, holds.astype(np.float64), np.nan)
    else:
        values = np.where(table.present, _computed(op, a, b), np.nan)
    return nameless(table.labels, values, table.present)


def sets(op: str, left: Table, right: Table, matching: Matching) -> Table:
    """`and`, `or`, `unless`, at each step."""
    here = grouped(left.labels, matching.key)
    there = grouped(right.labels, matching.key)
    match op:
        case "and" | "unless":
            found = np.zeros_like(left.present)
            for key, rows in here.items():
                if key in there:
                    found[rows] = right.present[there[key]].any(axis=0)
            return kept(left, found if op == "and" else ~found)
        case _:
            taken_already = np.zeros_like(right.present)
            for key, rows in there.items():
                if key in here:
                    taken_already[rows] = left.present[here[key]].any(axis=0)
            more = kept(right, ~taken_already)
            return distinct(
                Table(
                    left.labels + more.labels,
                    np.concatenate([left.values, more.values]),
                    np.concatenate([left.present, more.present]),
                )
            )


def matched(
    op: str, left: Table, right: Table, matching: Matching, context: Context, *, as_bool: bool
) -> Table:
    """An operator between the series of both sides that match.

    Raises:
        InvalidError: several series match one where one was expected.
    """
    if matching.many == "right":
        one, many = left, right
    else:
        one, many = right, left
    ones = grouped(one.labels, matching.key)
    single = _single(one, list(ones.values()), matching)
    context.watch()
    numbers_of = {key: index for index, key in enumerate(ones)}
    keys = [matching.key(each) for each in many.labels]
    rows = [row for row, key in enumerate(keys) if key in numbers_of]
    partner = [numbers_of[keys[row]] for row in rows]
    many = taken(many, rows)
    others = taken(single, partner)
    present = many.present & others.present
    a, b = (
        (others.values, many.values) if matching.many == "right" else (many.values, others.values)
    )
    if op in _COMPARE:
        holds = _COMPARE[op](a, b)
        if as_bool:
            values = holds.astype(np.float64)
        else:
            # A comparison filters; what stays is the left side's value.
            present, values = present & holds, a
    else:
        values = _computed(op, a, b)
    drops_name = as_bool or op not in _COMPARE
    labels = _labels(many.labels, others.labels, matching, drops_name=drops_name)
    result = Table(tuple(labels), np.where(present, values, np.nan), present)
    return _unambiguous(result, matching)


def _single(one: Table, groups: list[list[int]], matching: Matching) -> Table:
    """The side of which one series is expected for each key."""

    def refused(labels: LabelMap) -> InvalidError:
        side = "left" if matching.many == "right" else "right"
        return InvalidError(
            "found duplicate series for the match group on the "
            f"{side} hand-side of the operation, one of them {shown(labels)}: "
            "many-to-many matching not allowed, matching labels must be unique on one side",
            hint="sum that side by the labels that match",
        )

    values, present = coalesced(one, groups, refused)
    return Table(tuple(one.labels[rows[0]] for rows in groups), values, present)


def _labels(
    many: Iterable[LabelMap], ones: Iterable[LabelMap], matching: Matching, *, drops_name: bool
) -> list[LabelMap]:
    found: list[LabelMap] = []
    for mine, other in zip(many, ones, strict=True):
        labels = without_name(mine) if drops_name else dict(mine)
        if matching.many != "one":
            for name in matching.include:
                if other.get(name):
                    labels = {**labels, name: other[name]}
                else:
                    labels = {n: v for n, v in labels.items() if n != name}
        elif matching.on:
            labels = {n: v for n, v in labels.items() if n in matching.labels}
        else:
            labels = {n: v for n, v in labels.items() if n not in matching.labels}
        found.append(labels)
    return found


def _unambiguous(table: Table, matching: Matching) -> Table:
    """One row of those that have the same labels now."""
    try:
        return distinct(table)
    except InvalidError as error:
        if matching.many == "one":
            raise InvalidError(
                "multiple matches for labels: many-to-one matching must be explicit "
                "(group_left/group_right)",
                hint="add group_left, or sum the left side by the labels that match",
            ) from error
        raise InvalidError(
            "multiple matches for labels: grouping labels must ensure unique matches",
            hint="group by labels that tell the series apart",
        ) from error
