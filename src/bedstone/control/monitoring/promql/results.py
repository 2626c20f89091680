"""What a query answers: plain records, to be read and encoded by others.

Labels are a mapping with the metric's name as `__name__`, where it has one. Times are whole seconds
since the epoch. Values are floats; NaN is a value (0/0), and what has no value is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from bedstone.errors import InvalidError

LabelMap: TypeAlias = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Sample:
    """One series' value at the time of the query."""

    labels: LabelMap
    value: float


@dataclass(frozen=True, slots=True)
class Scalar:
    """One number."""

    at: int
    value: float


@dataclass(frozen=True, slots=True)
class String:
    """A text."""

    at: int
    value: str


@dataclass(frozen=True, slots=True)
class Vector:
    """At most one value of each series, at one time."""

    at: int
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class Series:
    """One series over time: `times` ascend, and have a value each."""

    labels: LabelMap
    times: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Series over time."""

    series: tuple[Series, ...]


Value: TypeAlias = Scalar | String | Vector | Matrix


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query answers, and how far it is to be trusted.

    Args:
        value: the result.
        resolution: seconds between the points that were read; the coarsest, if several were.
        incomplete: the seconds that were read and are not complete, with what is missing and why.
        warnings: for people: what makes the result less than it seems.
    """

    value: Value
    resolution: int = 1
    incomplete: Mapping[int, Mapping[str, str]] | None = None
    warnings: tuple[str, ...] = ()

    def vector(self) -> Vector:
        """The result of an instant query for series; a scalar is a series without labels.

        Raises:
            InvalidError: the expression gives something else.
        """
        match self.value:
            case Vector():
                return self.value
            case Scalar(at, value):
                return Vector(at, (Sample({}, value),))
            case other:
                raise InvalidError(
                    f"the expression gives a {type(other).__name__.lower()}, expected a vector"
                )

    def matrix(self) -> Matrix:
        """The result of a range query.

        Raises:
            InvalidError: the expression gives something else.
        """
        if isinstance(self.value, Matrix):
            return self.value
        kind = type(self.value).__name__.lower()
        raise InvalidError(f"the expression gives a {kind}, expected a matrix")
