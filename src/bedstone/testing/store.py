"""The conformance suite of stores: what `bedstone.store.protocol` promises, as checks.

A driver's tests describe how to make its stores with a `Subject`, and run every check:

    @pytest.mark.parametrize("check", CHECKS)
    def test_conformance(check: str, tmp_path: Path) -> None:
        run_check(check, Subject(
            lambda clock, history: MyStore(tmp_path / "data", clock=clock, history=history)
        ))

Each check needs a subject of its own, with no data yet. One that does not apply to the subject (a
reopening of what is not durable) returns `SKIPPED`. Failures are assertion errors.
"""

from __future__ import annotations

import asyncio
from typing import Final

from bedstone.testing.store_entries import EntryChecks
from bedstone.testing.store_leases import LeaseChecks, ReopeningChecks
from bedstone.testing.store_subject import SKIPPED, Subject, entries_of, expect
from bedstone.testing.store_watches import WatchChecks

__all__ = [
    "CHECKS",
    "LIMIT",
    "SKIPPED",
    "StoreConformance",
    "Subject",
    "entries_of",
    "expect",
    "run_check",
]

LIMIT: Final = 60.0
"""Seconds for one check."""


class StoreConformance(EntryChecks, WatchChecks, LeaseChecks, ReopeningChecks):
    """The checks, each an `async` method named `check_…`.

    Args:
        subject: the world that the check may write to.
    """


CHECKS: Final = tuple(
    name for part in StoreConformance.__bases__ for name in vars(part) if name.startswith("check_")
)
"""The names of all checks."""


def run_check(name: str, subject: Subject) -> str | None:
    """Run one check in an event loop of its own.

    Returns:
        `SKIPPED` if it does not apply to the subject.

    Raises:
        AssertionError: the store breaks its promise.
    """

    async def run() -> str | None:
        async with asyncio.timeout(LIMIT):
            result: str | None = await getattr(StoreConformance(subject), name)()
            return result

    return asyncio.run(run())
