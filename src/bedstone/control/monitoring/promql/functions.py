"""Functions of vectors and numbers, each step by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bedstone.control.monitoring.promql.results import LabelMap
from bedstone.control.monitoring.promql.table import (
    Floats,
    Steps,
    Table,
    Times,
    made,
    nameless,
    taken,
)
from bedstone.errors import InvalidError

Each = Callable[..., Floats]


def _round(values: Floats, nearest: Floats | float = 1.0) -> Floats:
    """To the nearest multiple; halves go up."""
    inverse = 1.0 / np.asarray(nearest)  # as Prometheus, which avoids 0.1's error so
    return np.floor(values * inverse + 0.5) / inverse


def _clamp(values: Floats, least: Floats, greatest: Floats) -> Floats:
    return np.maximum(least, np.minimum(greatest, values))


ELEMENTWISE: Final[dict[str, Each]] = {
    "abs": np.abs,
    "ceil": np.ceil,
    "floor": np.floor,
    "exp": np.exp,
    "sqrt": np.sqrt,
    "ln": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "sgn": np.sign,
    "deg": np.degrees,
    "rad": np.radians,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "round": _round,
    "clamp": _clamp,
    "clamp_min": np.maximum,
    "clamp_max": np.minimum,
}
"""Functions of a vector, with numbers as further arguments."""


def elementwise(name: str, table: Table, more: list[Floats]) -> Table:
    """Apply a function to every value; the metric's name goes."""
    with np.errstate(all="ignore"):
        values = ELEMENTWISE[name](table.values, *more)
    present = table.present
    if name == "clamp":
        present = present & (more[0] <= more[1])  # an empty span gives nothing
    values = np.where(present, values, np.nan)
    return nameless(table.labels, values, present)


_Moments: TypeAlias = NDArray[np.datetime64]


def _moment(values: Floats) -> _Moments:
    return np.nan_to_num(values, nan=0.0).astype(np.int64).astype("datetime64[s]")


def _since(values: Floats, unit: str) -> Times:
    """Whole units since the epoch."""
    return _moment(values).astype(f"datetime64[{unit}]").astype(np.int64)


def _days_into(values: Floats, unit: str) -> Times:
    """Whole days since the beginning of the month or year."""
    moment = _moment(values)
    start = moment.astype(f"datetime64[{unit}]").astype("datetime64[D]")
    days: Times = (moment.astype("datetime64[D]") - start).astype(np.int64)
    return days


def _days_in_month(values: Floats) -> Times:
    month = _moment(values).astype("datetime64[M]")
    days: Times = ((month + 1).astype("datetime64[D]") - month.astype("datetime64[D]")).astype(
        np.int64
    )
    return days


DATES: Final[dict[str, Callable[[Floats], Times]]] = {
    "minute": lambda values: _since(values, "m") % 60,
    "hour": lambda values: _since(values, "h") % 24,
    "day_of_week": lambda values: (_since(values, "D") + 4) % 7,  # the epoch was a Thursday
    "day_of_month": lambda values: _days_into(values, "M") + 1,
    "day_of_year": lambda values: _days_into(values, "Y") + 1,
    "days_in_month": _days_in_month,
    "month": lambda values: _since(values, "M") % 12 + 1,
    "year": lambda values: _since(values, "Y") + 1970,
}
"""Functions of times in seconds since the epoch, in UTC."""


def dates(name: str, table: Table) -> Table:
    """Apply one of `DATES`."""
    values = DATES[name](table.values).astype(np.float64)
    values = np.where(table.present & ~np.isnan(table.values), values, np.nan)
    return nameless(table.labels, values, table.present)


def vector(numbers: Steps) -> Table:
    """A number as a series without labels."""
    return Table(
        ({},), numbers.values[None, :].copy(), np.ones((1, len(numbers.values)), dtype=bool)
    )


def scalar(table: Table) -> Steps:
    """The value of the only series of each step; NaN where there is none, or several."""
    single = table.present.sum(axis=0) == 1
    values = np.where(table.present, table.values, 0.0).sum(axis=0)
    return Steps(np.where(single, values, np.nan))


def absent(table: Table, labels: LabelMap) -> Table:
    """1 where no series has a value."""
    present = np.logical_not(np.any(table.present, axis=0)).reshape(1, -1)
    return Table((labels,), np.where(present, 1.0, np.nan), present)


def sort(table: Table, *, descending: bool) -> Table:
    """Order the series by their values at the last step; what is not a number comes last."""
    if not table.labels:
        return table
    last = table.values[:, -1]
    order = np.argsort(-last if descending else last, kind="stable")  # NaN last
    return replace(taken(table, order.tolist()), ordered=True)


def label_join(table: Table, target: str, separator: str, sources: list[str]) -> Table:
    """Set a label to others' values, joined."""
    check_label(target)
    found = []
    for labels in table.labels:
        value = separator.join(labels.get(source, "") for source in sources)
        found.append(with_label(labels, target, value))
    return made(found, table.values, table.present)


def check_label(name: str) -> None:
    """Refuse what is no label's name."""
    if not name.isascii() or not name.replace("_", "a").isalnum() or name[0].isdigit():
        raise InvalidError(f"got {name!r}, expected the name of a label")


def with_label(labels: LabelMap, name: str, value: str) -> LabelMap:
    """The labels with one set; an empty one is none."""
    if value:
        return {**labels, name: value}
    return {n: v for n, v in labels.items() if n != name}
