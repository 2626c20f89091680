"""The last seconds in memory: for each second, a value of every row; NaN where there is none.

Seconds lie in a circle, rows in chunks, so that a new series costs no copy of the others.
Not safe for threads: the store's lock guards it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Matrix = NDArray[np.float64]


class Ring:
    """Values by second and row.

    Args:
        seconds: how many are kept.
        chunk: rows that are added at once.
    """

    def __init__(self, seconds: int, chunk: int = 1024) -> None:
        self.seconds = seconds
        self.last = 0
        """The last second; those after `last - seconds` are kept. 0: none is."""
        self._chunk = chunk
        self._chunks: list[Matrix] = []

    @property
    def nbytes(self) -> int:
        """Bytes of values."""
        return sum(chunk.nbytes for chunk in self._chunks)

    def grow(self, rows: int) -> None:
        """Have room for at least so many rows."""
        while len(self._chunks) * self._chunk < rows:
            self._chunks.append(np.full((self.seconds, self._chunk), np.nan))

    def advance(self, second: int) -> None:
        """Make a later second the last, without a value yet, nor in those that were left out."""
        begin = max(self.last + 1, second - self.seconds + 1) if self.last else second
        if not self.last:
            begin = second - self.seconds + 1
        slots = self._slots(begin, second)
        for chunk in self._chunks:
            chunk[slots] = np.nan
        self.last = second

    def write(self, second: int, values: Matrix) -> None:
        """Set the values of the first rows in one second that is kept."""
        self.grow(len(values))
        slot = second % self.seconds
        for number, chunk in enumerate(self._chunks):
            part = values[number * self._chunk : (number + 1) * self._chunk]
            chunk[slot, : len(part)] = part

    def fill(self, second: int, rows: Rows, values: Matrix) -> None:
        """Set values of rows where a second, if it is kept, has none."""
        if not self.last - self.seconds < second <= self.last:
            return
        slot = second % self.seconds
        for row, value in zip(rows.tolist(), values.tolist(), strict=True):
            chunk = self._chunks[row // self._chunk]
            if np.isnan(chunk[slot, row % self._chunk]):
                chunk[slot, row % self._chunk] = value

    def read(self, rows: Rows, start: int, end: int) -> Matrix:
        """Values, shape (rows, seconds), of the seconds from `start` to `end`, all kept."""
        slots = self._slots(start, end)
        values = np.empty((len(rows), len(slots)))
        places = rows // self._chunk
        for number in np.unique(places).tolist():
            here = np.flatnonzero(places == number)
            columns = rows[here] - number * self._chunk
            values[here] = self._chunks[number][np.ix_(slots, columns)].T
        return values

    def copy(self, start: int, end: int) -> Matrix:
        """Values of all rows, shape (seconds, rows): as they lie, which is quick."""
        slots = self._slots(start, end)
        if not self._chunks:
            return np.empty((len(slots), 0))
        return np.concatenate([chunk[slots] for chunk in self._chunks], axis=1)

    def _slots(self, start: int, end: int) -> Rows:
        return np.arange(start, end + 1, dtype=np.int64) % self.seconds
