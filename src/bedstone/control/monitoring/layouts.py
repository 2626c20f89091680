"""Which row of a selection belongs to whom: worked out in Python once, used by arrays ever after.

Rule: a layout is remembered with the labels it was made of, and made anew only for others.
Comparing them costs next to nothing where a store gives the same objects again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from bedstone.control.monitoring.increases import totals
from bedstone.telemetry.frames import Labels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Group = tuple[str, ...]
"""Whose something is: a kind, then the values of its labels: `("workload", "bank", "web")`."""


class Made(Protocol):
    """What is made of labels, and remembers them."""

    @property
    def labels(self) -> tuple[Labels, ...]:
        """Of each row."""
        ...


T = TypeVar("T", bound=Made)


class Remembered(Generic[T]):
    """What was made of a kind of labels the last time."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, ...], T] = {}

    def get(self, key: tuple[str, ...], labels: tuple[Labels, ...], make: Callable[[], T]) -> T:
        """What was made of these labels under this key, or what is made now."""
        held = self._held.get(key)
        if held is None or held.labels != labels:
            held = self._held[key] = make()
        return held


@dataclass(frozen=True, slots=True)
class Layout:
    """Of each row of a selection, its group; -1 where it lacks a label."""

    labels: tuple[Labels, ...]
    keys: tuple[Group, ...]
    groups: NDArray[np.int64]

    @classmethod
    def of(cls, labels: tuple[Labels, ...], kind: str, by: Sequence[str]) -> Layout:
        """Sort rows into groups by the values of some labels."""
        import numpy as np

        places: dict[Group, int] = {}
        groups = np.full(len(labels), -1, np.int64)
        for row, pairs in enumerate(labels):
            given = dict(pairs)
            if all(label in given for label in by):
                key = (kind, *(given[label] for label in by))
                groups[row] = places.setdefault(key, len(places))
        return cls(labels, tuple(places), groups)

    def totals(self, weights: NDArray[np.float64]) -> list[float]:
        """The sum of each group; NaN for one of which nothing is known."""
        found: list[float] = totals(self.groups, weights, len(self.keys)).tolist()
        return found

    def each(self, values: NDArray[np.float64]) -> list[list[float]]:
        """The sums of each group, point by point."""
        return list(map(list, zip(*(self.totals(column) for column in values.T), strict=True)))


@dataclass(frozen=True, slots=True)
class Buckets:
    """Of each row of a histogram's buckets, the place of its bound among those that occur."""

    labels: tuple[Labels, ...]
    bounds: NDArray[np.float64]
    places: NDArray[np.int64]

    @classmethod
    def of(cls, labels: tuple[Labels, ...]) -> Buckets:
        """Read the label `le` of each row."""
        import numpy as np

        rows = np.array([float(dict(pairs).get("le", "nan")) for pairs in labels])
        bounds, places = np.unique(rows, return_inverse=True)
        return cls(labels, bounds, places.astype(np.int64))

    def cumulative(self, layout: Layout, grown: NDArray[np.float64]) -> NDArray[np.float64]:
        """One histogram a group: shape (groups, bounds)."""
        import numpy as np

        width = len(self.bounds)
        cells = np.where(layout.groups >= 0, layout.groups * width + self.places, -1)
        sums = totals(cells, grown, len(layout.keys) * width)
        return np.nan_to_num(sums).reshape(-1, width)
