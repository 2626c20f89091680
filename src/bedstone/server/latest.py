"""The last values of all series, in memory."""

from __future__ import annotations

from collections.abc import Mapping

from bedstone.telemetry.frame_builder import Received
from bedstone.telemetry.frames import Frame

_KEPT = 3600


class Latest:
    """A writer that keeps the last second's values, and which seconds were not complete."""

    def __init__(self) -> None:
        self.nodes: dict[str, Received] = {}
        self._last = 0
        self._incomplete: dict[int, dict[str, str]] = {}
        self._missing: dict[str, str] = {}

    def ingest(self, node: str, frame: Frame) -> bool:
        """See `bedstone.control.monitoring.reading.Writer`."""
        if not self.nodes.setdefault(node, Received()).apply(frame):
            return False
        self._missing |= {f"{node}/{source}": why for source, why in frame.missing.items()}
        return True

    def finish(self, second: int, missing: Mapping[str, str]) -> None:
        """See `bedstone.control.monitoring.reading.Writer`."""
        if second <= self._last:
            return
        for absent in range(max(self._last + 1, second - _KEPT), second) if self._last else ():
            self._incomplete[absent] = {"server": "nobody asked"}
        if found := {**missing, **self._missing}:
            self._incomplete[second] = found
        self._missing = {}
        self._last = second
        for old in [s for s in self._incomplete if s < second - _KEPT]:
            del self._incomplete[old]

    def last(self) -> int:
        """The last second that was finished."""
        return self._last

    def incomplete(self, start: int, end: int) -> dict[int, dict[str, str]]:
        """The seconds that are not complete."""
        return {s: why for s, why in self._incomplete.items() if start <= s <= end}
