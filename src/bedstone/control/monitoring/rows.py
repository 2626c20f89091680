"""The rows: what is counted for each series that has a value in memory, as columns of numbers."""

from __future__ import annotations

import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bedstone.errors import InvalidError

_FIELDS: Final = {
    "ids": np.int64,
    "metric": np.int64,
    "source": np.int64,
    "first": np.int64,
    "last": np.int64,
    "offset": np.float64,
    "raw": np.float64,
    "carry": np.float64,
    "counter": np.bool_,
    "live": np.bool_,
    "has": np.bool_,
    "baseline": np.bool_,
}
_FREE: Final = -1


class Rows:
    """Columns by row.

    Attributes:
        ids: of the series; -1 for a row that is free.
        metric: the number of the series' name.
        source: the number of the source that counts it.
        first, last: the first and the last second with a value; 0 before there is one.
        offset, raw: what its counter counted in earlier lives, and in this one; of a gauge, `raw`
            is its value.
        carry: what a counter that began stood at before; NaN if that is written, or there is none.
        counter: it is a counter.
        live: it was not said to be gone.
        has: it has a value.
        baseline: its next value is what it stands at, and no increase.
    """

    def __init__(self) -> None:
        self._size = 0
        self._used = 0
        self._free: list[int] = []
        self.ids = np.empty(0, np.int64)
        self.metric = np.empty(0, np.int64)
        self.source = np.empty(0, np.int64)
        self.first = np.empty(0, np.int64)
        self.last = np.empty(0, np.int64)
        self.offset = np.empty(0)
        self.raw = np.empty(0)
        self.carry = np.empty(0)
        self.counter = np.empty(0, np.bool_)
        self.live = np.empty(0, np.bool_)
        self.has = np.empty(0, np.bool_)
        self.baseline = np.empty(0, np.bool_)

    def __len__(self) -> int:
        """Rows that are or were in use: every row is below."""
        return self._used

    @property
    def count(self) -> int:
        """Rows in use."""
        return self._used - len(self._free)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return sum(getattr(self, name).nbytes for name in _FIELDS)

    def take(self, number: int, *, metric: int, counter: bool) -> int:
        """A free row, for the series of an id; everything else of it is as nothing."""
        if self._free:
            row = self._free.pop()
        else:
            row = self._used
            if row == self._size:
                self._grow(max(1024, self._size * 3 // 2))
            self._used += 1
        self._clear(row)
        self.ids[row], self.metric[row], self.counter[row] = number, metric, counter
        return row

    def release(self, row: int) -> None:
        """Make a row free."""
        self._clear(row)
        self._free.append(row)

    def _clear(self, row: int) -> None:
        for name in _FIELDS:
            getattr(self, name)[row] = 0
        self.ids[row], self.carry[row] = _FREE, np.nan

    def _grow(self, size: int) -> None:
        for name in _FIELDS:
            old = getattr(self, name)
            new = np.zeros(size, old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)
        self._size = size

    def used(self) -> NDArray[np.int64]:
        """The rows in use, ascending."""
        return np.flatnonzero(self.ids[: self._used] != _FREE)

    def dump(self) -> list[NDArray[np.generic]]:
        """A copy of the columns of the rows in use, in the order of the fields."""
        rows = self.used()
        return [getattr(self, name)[rows] for name in _FIELDS]

    def restore(self, dumped: list[NDArray[np.generic]]) -> None:
        """Become what was dumped; the rows are numbered anew, in the same order."""
        size = len(dumped[0])
        for name, column in zip(_FIELDS, dumped, strict=True):
            setattr(self, name, column.copy())
        self._size = self._used = size
        self._free = []


def dump_bytes(dumped: list[NDArray[np.generic]]) -> bytes:
    """Dumped columns as bytes."""
    return zlib.compress(b"".join(column.tobytes() for column in dumped), 1)


def load_bytes(data: bytes) -> list[NDArray[np.generic]]:
    """What `dump_bytes` was given.

    Raises:
        InvalidError: it is damaged.
    """
    kinds = [np.dtype(kind) for kind in _FIELDS.values()]
    try:
        raw = zlib.decompress(data)
    except zlib.error as error:
        raise InvalidError(f"got malformed rows of series: {error}") from error
    count, rest = divmod(len(raw), sum(kind.itemsize for kind in kinds))
    if rest:
        raise InvalidError("got malformed rows of series: some are not whole")
    columns: list[NDArray[np.generic]] = []
    at = 0
    for kind in kinds:
        columns.append(np.frombuffer(raw, kind, count, at))
        at += count * kind.itemsize
    return columns
