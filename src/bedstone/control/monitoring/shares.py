"""Who may have how many of the series that are held: what applications count themselves, less.

Rules:
- What Bedstone counts always finds a fifth of the room: an application that makes labels of ids
  blinds nobody to requests, errors and instances.
- One app has half of the room at most, so that it leaves some to others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np

from bedstone.control.monitoring.rows import Rows

APPLICATION: Final = "application/"
"""What the names of sources begin with that applications count themselves; their app follows."""
ALL: Final = 0.8
ONE: Final = 0.5


class Named(Protocol):
    """A source."""

    name: str


class Shares:
    """The rows of applications' own series.

    Args:
        cap: rows that there are at most.
    """

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._held: Counter[str] = Counter()

    def count(self, rows: Rows, sources: Sequence[Named | None]) -> None:
        """Look how many rows each app has now."""
        size = len(rows)
        held = rows.source[:size][rows.ids[:size] >= 0]
        self._held.clear()
        for number, count in enumerate(np.bincount(held[held >= 0]).tolist()):
            source = sources[number] if count else None
            if source is not None and (app := _app(source.name)):
                self._held[app] += count

    def take(self, source: str) -> bool:
        """Take a row for a source; False if its app, or all apps, have what they may have."""
        app = _app(source)
        if not app:
            return True
        if self._held[app] >= self._cap * ONE or self._held.total() >= self._cap * ALL:
            return False
        self._held[app] += 1
        return True


def _app(source: str) -> str:
    """The app of what counts applications' own series; empty for what Bedstone counts."""
    if not source.startswith(APPLICATION):
        return ""
    return source.removeprefix(APPLICATION).partition("/")[0]
