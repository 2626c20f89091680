"""The monitoring of a server: the store of series, and what fills it each second.

Owns `STATE_DIR/telemetry`. Other parts read the series through `series`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from pathlib import Path

from bedstone.control.monitoring.series_store import SeriesStore
from bedstone.model.resources import Instance
from bedstone.server.api import Routes
from bedstone.server.collecting import SERVER, Collecting, SteadyClock
from bedstone.server.remote_writing import RemoteWriteCounts, RemoteWriting, declared
from bedstone.server.seconds import second_routes
from bedstone.server.sessions import Session, Sessions
from bedstone.server.speaking import admitted
from bedstone.server.transaction_counts import Reading, TransactionCounts
from bedstone.server.transactions import Transactions
from bedstone.telemetry import names


class _Living:
    """The nodes that are present, with or without a session."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def present(self) -> list[str]:
        """The names of the nodes that live."""
        snapshot = self._sessions.snapshot
        return [name for name in snapshot.nodes() if snapshot.present(name)]

    def get(self, node: str) -> Session:
        """A node's session; UnavailableError."""
        return self._sessions.get(node)


class StoreCounts:
    """What the store of series says of itself, as series."""

    def __init__(self, store: SeriesStore) -> None:
        self._store = store

    async def read(self) -> Reading:
        """Ask the store."""
        stats = self._store.stats()
        reasons = Counter({"series": 0})
        for (_, reason), count in stats.dropped.items():
            reasons[reason] += count
        dropped = names.MONITORING_DROPPED
        return Reading(
            (
                (names.MONITORING_SERIES.series(SERVER), float(stats.series)),
                (names.MONITORING_DISK.series(SERVER), float(stats.disk)),
                (names.MONITORING_UNWRITTEN.series(SERVER), float(stats.unwritten)),
                *((dropped.series(SERVER, reason=it), float(n)) for it, n in reasons.items()),
            )
        )


class Monitoring:
    """The series of a domain, and their collection.

    Args:
        state_dir: the server's.
        sessions: of the nodes.
        transactions: of the apps, whose logs are counted.

    Raises:
        UnavailableError: another process has the series' file, or the disk refuses it.
    """

    def __init__(self, state_dir: Path, sessions: Sessions, transactions: Transactions) -> None:
        self.directory = state_dir / "telemetry"
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.series = SeriesStore(self.directory / "metrics.sqlite")
        self.series.open()
        self._counts = TransactionCounts(transactions.logs)
        self.remote = RemoteWriting(
            self.series, lambda: declared(sessions.snapshot.apps().values()), self.directory
        )

        def placed(path: str) -> str | None:
            instance = sessions.snapshot.get(Instance, f"instances/{path}")
            return instance.node if instance else None

        clock = SteadyClock(time.time, time.monotonic, after=self.series.last() + 1)
        self.collecting = Collecting(
            _Living(sessions),
            self.series,
            clock.now,
            incarnation=f"{os.getpid()}:{time.time():.3f}",
            own=(
                self._counts,
                StoreCounts(self.series),
                RemoteWriteCounts(self.remote, self.series.last),
            ),
            admitted=lambda node, frame: admitted(node, frame, placed),
        )

    @property
    def routes(self) -> Routes:
        """The API's routes of the seconds."""
        return second_routes(self.collecting, self.series)

    async def run(self) -> None:
        """Collect, and send to others, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.collecting.run())
                group.create_task(self.remote.run())
        finally:
            await self._counts.close()
            await asyncio.to_thread(self.series.close)
