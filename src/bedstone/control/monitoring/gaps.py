"""Which seconds are not complete, and what is missing in them, as runs of equal seconds.

Rules:
- A run's seconds miss the same things. Runs ascend, and do not overlap.
- Where there are too many, neighbours at the old end are made one that misses what any of them
  does: a second is rather said to be incomplete that was not than the other way round.
- Not safe for threads: the store's lock guards it.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Run:
    """Seconds, from first to last, that miss the same."""

    first: int
    last: int
    missing: Mapping[str, str]


class Gaps:
    """The runs of incomplete seconds.

    Args:
        most: so many runs are kept apart.
    """

    def __init__(self, most: int = 20_000) -> None:
        self.changed: int | None = None
        """The first second of what changed since this was last set to None."""
        self._most = most
        self._firsts: list[int] = []
        self._runs: list[Run] = []

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    def add(self, first: int, last: int, missing: Mapping[str, str]) -> None:
        """Say what seconds miss, in addition to what is said of them already."""
        if not missing or first > last:
            return
        before = self._runs[-1] if self._runs else None
        if before is None or first > before.last:
            if before is not None and before.last + 1 == first and before.missing == missing:
                self._replace(len(self._runs) - 1, [Run(before.first, last, before.missing)])
            else:
                self._replace(len(self._runs), [Run(first, last, dict(missing))])
            self._shorten()
            return
        begin = bisect.bisect_left(self._firsts, first)
        if begin and self._runs[begin - 1].last >= first:
            begin -= 1
        end = bisect.bisect_right(self._firsts, last)
        pieces: list[Run] = []
        at = first
        for run in self._runs[begin:end]:
            if run.first < first:
                pieces.append(Run(run.first, first - 1, run.missing))
            if at < run.first:
                pieces.append(Run(at, run.first - 1, dict(missing)))
            inside = Run(max(run.first, first), min(run.last, last), {**run.missing, **missing})
            pieces.append(inside)
            at = inside.last + 1
            if run.last > last:
                pieces.append(Run(last + 1, run.last, run.missing))
        if at <= last:
            pieces.append(Run(at, last, dict(missing)))
        self._replace(begin, pieces, end)
        self._shorten()

    def touch(self, first: int) -> None:
        """Take what is said of a second, and of those after it, as changed."""
        self.changed = first if self.changed is None else min(first, self.changed)

    def forget(self, before: int) -> None:
        """Forget the seconds before one."""
        end = bisect.bisect_left(self._runs, before, key=lambda run: run.last)
        del self._runs[:end], self._firsts[:end]

    def within(self, start: int, end: int) -> list[Run]:
        """The runs between two seconds, cut to them."""
        begin = max(0, bisect.bisect_right(self._firsts, start) - 1)
        stop = bisect.bisect_right(self._firsts, end)
        return [
            Run(max(run.first, start), min(run.last, end), run.missing)
            for run in self._runs[begin:stop]
            if run.last >= start
        ]

    def at(self, second: int) -> Mapping[str, str]:
        """What is missing in one second."""
        runs = self.within(second, second)
        return runs[0].missing if runs else NOTHING

    def _replace(self, begin: int, runs: list[Run], end: int | None = None) -> None:
        stop = len(self._runs) if end is None else end
        for run in (*self._runs[begin:stop], *runs):
            self.touch(run.first)
        self._runs[begin:stop] = runs
        self._firsts[begin:stop] = [run.first for run in runs]

    def _shorten(self) -> None:
        if len(self._runs) <= self._most:
            return
        half = self._runs[: self._most // 2]
        joined = [
            Run(one.first, two.last, {**one.missing, **two.missing})
            for one, two in zip(half[::2], half[1::2], strict=False)
        ]
        self._replace(0, joined, len(joined) * 2)
