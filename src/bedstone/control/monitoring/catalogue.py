"""The catalogue: which series are known, and an index of their labels.

Rules:
- A series is its name and labels: there is one entry for them, whoever counts it.
- An entry's `id` is never used again, and later entries have greater ones, so that the lists of the
  index, which only ever grow at their ends, ascend.
- Not safe for threads: the store's lock guards it.
"""

from __future__ import annotations

import functools
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from bedstone.control.monitoring.reading import Matcher
from bedstone.errors import InvalidError
from bedstone.telemetry.frames import Labels

Ids = NDArray[np.int64]
Kind = Literal["counter", "gauge"]

NAME: Final = "__name__"
LONGEST: Final = 1.0
"""Seconds of processor time that one search may take."""


@dataclass(slots=True)
class Entry:
    """What is known of one series.

    Attributes:
        id: its number, for ever.
        metric: the number of its name.
        row: where it stands in memory; -1 if it has no value there.
        first, last: the first and the last second with a value; 0 before there is one. Where it has
            a row, the row's count, not these.
        offset, raw: its counter stands at their sum (see `totals`). Likewise.
        source: the number of the source that counts it. Likewise.
        live: it was not said to be gone. Likewise.
    """

    id: int
    name: str
    labels: Labels
    kind: Kind
    metric: int
    row: int = -1
    first: int = 0
    last: int = 0
    offset: float = 0.0
    raw: float = 0.0
    source: int = -1
    live: bool = False


class Catalogue:
    """The known series.

    Args:
        next_id: the first id to give.
    """

    def __init__(self, next_id: int = 1) -> None:
        self.next_id = next_id
        self.metrics: dict[str, int] = {}
        self._by_key: dict[str, dict[Labels, Entry]] = {}
        self._by_id: dict[int, Entry] = {}
        self._postings: dict[str, dict[str, array[int]]] = {}
        self._pairs: dict[tuple[str, str], tuple[str, str]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._by_id.values())

    def __getitem__(self, number: int) -> Entry:
        return self._by_id[number]

    def get(self, number: int) -> Entry | None:
        """The entry of an id."""
        return self._by_id.get(number)

    def find(self, name: str, labels: Labels) -> Entry | None:
        """The entry of a series."""
        return self._by_key.get(name, {}).get(labels)

    def add(self, name: str, labels: Labels, kind: Kind, *, number: int | None = None) -> Entry:
        """Make the entry of a series that has none; `number` is its id, if it has had one."""
        # Pairs are shared by many series: kept once, they are most of the memory saved.
        labels = tuple(self._pairs.setdefault(pair, pair) for pair in labels)
        entry = Entry(
            id=self.next_id if number is None else number,
            name=name,
            labels=labels,
            kind=kind,
            metric=self.metrics.setdefault(name, len(self.metrics) + 1),
        )
        self.next_id = max(self.next_id, entry.id + 1)
        self._by_key.setdefault(name, {})[labels] = entry
        self._by_id[entry.id] = entry
        self._post(entry)
        return entry

    def forget(self, entries: Iterable[Entry]) -> None:
        """Remove entries for good; costs as much as all that remain."""
        for entry in entries:
            del self._by_id[entry.id]
            named = self._by_key[entry.name]
            del named[entry.labels]
            if not named:
                del self._by_key[entry.name]
        self._postings = {}
        self._pairs = {pair: pair for entry in self for pair in entry.labels}
        for entry in self:
            self._post(entry)

    def _post(self, entry: Entry) -> None:
        for label, value in ((NAME, entry.name), *entry.labels):
            if value:  # an empty label is an absent one
                values = self._postings.setdefault(label, {})
                values.setdefault(value, array("q")).append(entry.id)

    def match(self, matchers: Sequence[Matcher]) -> Ids:
        """The ids of the series that fulfil all, ascending.

        Raises:
            InvalidError: every matcher matches the empty string, or an expression is malformed, or
                takes longer than `LONGEST`: until it is done, nothing can be collected.
        """
        begun = time.thread_time()

        def having(label: str, condition: Callable[[str], bool]) -> Ids:
            def timed(value: str) -> bool:
                if time.thread_time() - begun > LONGEST:
                    raise InvalidError(
                        "the regular expressions take too long for the labels that there are",
                        hint="demand more labels by `=`, or use simpler expressions",
                    )
                return condition(value)

            return self._having(label, timed)

        demanding = [matcher for matcher in matchers if not matcher.matches("")]
        if not demanding:
            raise InvalidError(
                "got no matcher that demands something, expected at least one",
                hint="name a metric, or demand a label that is not empty",
            )
        found = [
            self._equal(matcher.label, matcher.value)
            if matcher.op == "="
            else having(matcher.label, matcher.matches)
            for matcher in demanding
        ]
        ids = functools.reduce(_both, sorted(found, key=len))
        for matcher in matchers:
            if ids.size and matcher.matches(""):
                refused = having(matcher.label, _not(matcher.matches))
                ids = np.setdiff1d(ids, refused, assume_unique=True)
        return ids

    def _equal(self, label: str, value: str) -> Ids:
        """The series with a value of the label. Copied: an array that is in use cannot grow."""
        return np.array(self._postings.get(label, {}).get(value, ()), np.int64)

    def _having(self, label: str, condition: Callable[[str], bool]) -> Ids:
        """The series with a value of the label that fulfils a condition."""
        lists = [ids for value, ids in self._postings.get(label, {}).items() if condition(value)]
        if not lists:
            return np.empty(0, np.int64)
        # Copied: an array whose buffer is in use cannot grow.
        if len(lists) == 1:
            return np.array(lists[0], np.int64)
        return np.sort(np.concatenate([np.array(ids, np.int64) for ids in lists]))


def _both(first: Ids, second: Ids) -> Ids:
    return np.intersect1d(first, second, assume_unique=True)


def _not(condition: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda value: not condition(value)
