"""What passes between the store of series and its file: drafts, batches, and how long they last."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bedstone.control.monitoring.blocks import Points
from bedstone.control.monitoring.catalogue import Entry
from bedstone.control.monitoring.gaps import Run
from bedstone.control.monitoring.sealing import Snapshot

_SHARES: Final = {1: 0.5, 10: 0.3, 60: 0.2}


class DamagedError(Exception):
    """The file cannot be read as what it should be."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long points are kept.

    Args:
        seconds: for each level, the age in seconds at which its points go.
        size: bytes of the file; where it is too small for the ages, the oldest points go before,
            of the level that has the most for its share of it.
    """

    seconds: Mapping[int, int] = field(
        default_factory=lambda: {1: 6 * 3600, 10: 3 * 86_400, 60: 30 * 86_400}
    )
    size: int = 1 << 30

    def share(self, level: int) -> float:
        """A level's part of the size."""
        return _SHARES[level]


@dataclass(frozen=True, slots=True)
class Stats:
    """What the store says of itself.

    Attributes:
        series: series with a row in memory.
        known: series that can be read.
        dropped: how many were refused, by metric and reason.
        memory: bytes of values and state in memory, without labels.
        disk: bytes of the file.
        flushed: the last second on disk.
        unwritten: finished seconds that are not on disk.
        trouble: why the disk does not take what is written; None if it does.
    """

    series: int
    known: int
    dropped: Mapping[tuple[str, str], int]
    memory: int
    disk: int
    flushed: int
    unwritten: int
    trouble: str | None


@dataclass(frozen=True, slots=True)
class Draft:
    """What is to be written, as of one moment (see `series_file.Batch`)."""

    snapshot: Snapshot
    rows: list[NDArray[np.generic]]
    metrics: dict[str, int]
    new: list[Entry]
    next_id: int
    parked: list[tuple[int, int, float, float, int, int, int]]
    forgotten: list[int]
    runs: list[Run]
    runs_from: int | None
    state: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """What is written at once.

    Attributes:
        meta: values by key; those that are not named stay.
        metrics: new ones.
        series: new ones: id, name, labels as JSON, kind.
        parked: id, and what is kept of a series without a row, in the order of the columns.
        forgotten: ids.
        points: parts, and points for blocks.
        sealed: up to this second, parts are no longer needed.
        runs: those from `runs_from` on, which replace what was there.
        last: the second as of which it is; what is too old is reckoned from it.
        retain: look for what is too old.
    """

    meta: dict[str, bytes]
    metrics: dict[str, int]
    series: list[tuple[int, str, str, str]]
    parked: list[tuple[int, int, float, float, int, int, int]]
    forgotten: list[int]
    points: list[Points]
    sealed: int
    runs: list[Run]
    runs_from: int | None
    last: int
    retain: bool


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was in the file."""

    meta: dict[str, bytes]
    metrics: dict[str, int]
    series: list[tuple[int, str, str, str, int, int, float, float, int, int]]
    parts: list[Points]
    runs: list[Run]


class Cache:
    """Decoded blocks, the least recently used let go first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._size = 0
        self._blocks: OrderedDict[int, Points] = OrderedDict()
        self._guard = threading.Lock()

    def get(self, number: int) -> Points | None:
        """A block, if it is here."""
        with self._guard:
            points = self._blocks.get(number)
            if points is not None:
                self._blocks.move_to_end(number)
            return points

    def put(self, number: int, points: Points) -> None:
        """Keep a block for a while."""
        with self._guard:
            if number in self._blocks:
                return
            self._blocks[number] = points
            self._size += points.values.nbytes + points.ids.nbytes
            while self._size > self._capacity:
                _, oldest = self._blocks.popitem(last=False)
                self._size -= oldest.values.nbytes + oldest.ids.nbytes

    def clear(self) -> None:
        """Keep none."""
        with self._guard:
            self._blocks.clear()
            self._size = 0
