"""The context of an evaluation: for which times, of which data, within which limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bedstone.control.monitoring.promql.results import LabelMap
from bedstone.control.monitoring.promql.table import NAME, Times
from bedstone.control.monitoring.reading import Reader
from bedstone.errors import InvalidError
from bedstone.telemetry.frames import Labels

if TYPE_CHECKING:
    from bedstone.control.monitoring.promql.engine import Limits


class TooMuchError(InvalidError):
    """A selector would read more points at once than it may."""


@dataclass(slots=True)
class Notes:
    """What an evaluation leaves behind, beside its result."""

    resolutions: set[int] = field(default_factory=set)
    warnings: dict[str, None] = field(default_factory=dict)
    labels: dict[tuple[str, Labels], LabelMap] = field(default_factory=dict)
    """Label maps that were made, since the parts of a range query meet the same series."""
    _spans: list[tuple[int, int]] = field(default_factory=list)

    def read(self, start: int, end: int, resolution: int) -> None:
        """Remember what was read."""
        self._spans.append((start, end))
        self.resolutions.add(resolution)

    def warn(self, message: str) -> None:
        """Say something to who reads the result, once."""
        self.warnings.setdefault(message)

    def spans(self) -> list[tuple[int, int]]:
        """What was read, without overlaps."""
        merged: list[tuple[int, int]] = []
        for start, end in sorted(self._spans):
            if merged and start <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return merged

    def label_map(self, name: str, labels: Labels) -> LabelMap:
        """A series' labels with its name."""
        found = self.labels.get((name, labels))
        if found is None:
            found = self.labels[name, labels] = {NAME: name, **dict(labels)}
        return found


@dataclass(frozen=True, slots=True)
class Context:
    """One evaluation.

    Args:
        reader: of the series.
        times: shape (T,), for which it is evaluated.
        step: seconds between the times; 0 for an instant query.
        start: what `@ start()` means.
        end: what `@ end()` means.
        limits: what it may take.
        watch: fails once the time is over; called between the steps of the work.
        notes: what it leaves behind.
    """

    reader: Reader
    times: Times
    step: int
    start: int
    end: int
    limits: Limits
    watch: Callable[[], None]
    notes: Notes
