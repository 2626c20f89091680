"""The share of requests that begin a sampled trace: all at a low rate, about so many at a high one.

`next_share` is pure. Each second it looks at how many traces were begun under the share that held:
the rate of requests follows from both, and the share that would have begun as many as wanted from
that. It falls at once and rises slowly, so that a burst is cut and a lull opens nothing wide.
"""

from __future__ import annotations

from collections.abc import Callable

from bedstone.node.collector.runtime import ProxyRuntime, share
from bedstone.telemetry.requests import KEPT_KEY, SAMPLING_KEY

TARGET = 20.0
"""Traces that are begun a second, on one node."""
WRITTEN = 200.0
"""Failed and slow requests that are written down a second, on one node."""
LEAST = 0.01
"""The smallest share that a proxy can tell from none."""
RISE = 1.5
"""By how much a share grows in a second, at most."""
SLACK = 0.2
"""A change smaller than that is none: each is told to the proxy."""


def next_share(now: float, begun: int, target: float) -> float:
    """The share for the next second.

    Args:
        now: the share that held for the last one, above 0.
        begun: what was begun in it.
        target: what shall be.
    """
    wanted = 1.0 if begun == 0 else min(1.0, now * target / begun)
    wanted = max(LEAST, min(wanted, now * RISE))
    if wanted < 1.0 and abs(wanted - now) <= now * SLACK:
        return now
    return wanted


class Sampling:
    """Governs what one proxy samples and writes down.

    Args:
        runtime: of the proxy.
        begun: how many traces were begun since this was last asked.
        written: how many requests were written down since then.
        target: traces a second.
    """

    def __init__(
        self,
        runtime: ProxyRuntime,
        begun: Callable[[], int],
        written: Callable[[], int],
        target: float = TARGET,
    ) -> None:
        self._runtime = runtime
        self._begun = begun
        self._written = written
        self._target = target
        self._share = 1.0
        self._kept = 1.0
        self._fixed: float | None = None

    @property
    def share(self) -> float:
        """The share of requests that begin a trace now."""
        return self._share if self._fixed is None else self._fixed

    def fix(self, value: float | None) -> None:
        """Keep to one share; None for what the rate of requests asks for."""
        self._fixed = value
        self._share = 1.0
        self._runtime.set(SAMPLING_KEY, share(self.share))

    def tick(self) -> None:
        """A second has passed."""
        begun, written = self._begun(), self._written()
        if self._fixed is None:
            self._share = next_share(self._share, begun, self._target)
        self._runtime.set(SAMPLING_KEY, share(self.share))
        self._kept = next_share(self._kept, written, WRITTEN)
        self._runtime.set(KEPT_KEY, share(self._kept))
