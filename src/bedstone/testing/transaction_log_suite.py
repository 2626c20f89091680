"""The conformance suite of transaction logs: what `transactions.model.Log` promises, as checks.

A driver's tests describe how to open its logs with a `Subject`, and run every check:

    @pytest.mark.parametrize("check", CHECKS)
    def test_conformance(check: str, tmp_path: Path) -> None:
        run_check(check, Subject(lambda: open_log(f"sqlite:///{tmp_path}/log.db")))

Each check needs a subject of its own, with no data yet. One that does not apply to the subject (a
reopening of what is not durable) returns `SKIPPED`. Failures are assertion errors. No check waits:
times are of the log's clock, far from now on either side.
"""

from __future__ import annotations

import asyncio
from typing import Final

from bedstone.testing.transaction_log_counts import CountChecks
from bedstone.testing.transaction_log_ends import DecisionChecks, EndChecks
from bedstone.testing.transaction_log_owners import OwnerChecks, ReopeningChecks
from bedstone.testing.transaction_log_starts import StartChecks
from bedstone.testing.transaction_log_subject import SKIPPED, Subject

__all__ = ["CHECKS", "LIMIT", "SKIPPED", "LogConformance", "Subject", "run_check"]

LIMIT: Final = 60.0
"""Seconds for one check."""


class LogConformance(
    StartChecks, DecisionChecks, EndChecks, OwnerChecks, ReopeningChecks, CountChecks
):
    """The checks, each an `async` method named `check_…`.

    Args:
        subject: the world that the check may write to.
    """


CHECKS: Final = tuple(
    name for part in LogConformance.__bases__ for name in vars(part) if name.startswith("check_")
)
"""The names of all checks."""


def run_check(name: str, subject: Subject) -> str | None:
    """Run one check in an event loop of its own.

    Returns:
        `SKIPPED` if it does not apply to the subject.

    Raises:
        AssertionError: the log breaks its promise.
    """

    async def run() -> str | None:
        async with asyncio.timeout(LIMIT):
            result: str | None = await getattr(LogConformance(subject), name)()
            return result

    return asyncio.run(run())
