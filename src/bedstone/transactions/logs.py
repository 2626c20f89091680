"""The drivers of the coordinators' log, and how one is opened by its URL.

- `sqlite:///abs/path`: one file on one machine, for any number of processes there.
- `postgres://…` or `postgresql://…[?schema=bedstone]`: one database, for any number of machines.
"""

from __future__ import annotations

from types import TracebackType
from typing import Final, Protocol, Self

from bedstone.drivers import Kind
from bedstone.transactions.model import Log


class LogDriver(Log, Protocol):
    """A log that is connected while its context is entered, in the event loop that entered it."""

    async def __aenter__(self) -> Self:
        """Connect, and create what is not there.

        Raises:
            UnavailableError: the place can't be reached.
            DeniedError: the place refuses this user.
            InvalidError: the place holds something else, or what a later version wrote.
        """

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish the batch in flight, refuse what waits, and disconnect."""


LOGS: Final[Kind[LogDriver]] = Kind(
    "transaction-log",
    {
        "sqlite": "bedstone.transactions.log_sqlite:SqliteLog",
        "postgres": "bedstone.transactions.log_postgres:PostgresLog",
        "postgresql": "bedstone.transactions.log_postgres:PostgresLog",
    },
)


def open_log(url: str) -> LogDriver:
    """Construct the log that a URL names; entering its context connects it.

    Raises:
        InvalidError: no driver has the URL's scheme, or the driver refuses it.
    """
    return LOGS.open(url)
