"""Whether databases elsewhere can be reached from this node: a TCP connection, again and again.

A connection is closed without a byte, which PostgreSQL does not log. Whether it lets somebody in is
for the programs that log in to say.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress

from bedstone.errors import InvalidError
from bedstone.model.database_url import Place, place_of
from bedstone.model.resources import Database, DatabaseStatus, Phase
from bedstone.node.reports import Reports
from bedstone.node.tasks import Tasks

FIRST_PAUSE = 0.1
LAST_PAUSE = 5.0
PERIOD = 10.0
"""Seconds between two looks at a database that answers."""
PATIENCE = 3.0
FAILURES = 2
"""Looks in a row that fail before one that answered counts as gone."""


class External:
    """One database elsewhere, looked at until `close`.

    Args:
        database: with a URL.
        node: this node's name.
        reports: where it is told, if this node is the one that tells.
        changed: called when its answer changes.
        tasks: own its work.
    """

    def __init__(
        self,
        database: Database,
        node: str,
        reports: Reports,
        changed: Callable[[], None],
        tasks: Tasks,
    ) -> None:
        self.database = database
        self.reason = "it is being connected to"
        """Why it cannot be used; empty when it can."""
        self._node = node
        self._reports = reports
        self._changed = changed
        self._ready = False
        self._task = tasks.start(self._run())

    def close(self) -> None:
        """Look no more."""
        self._task.cancel()
        if self.database.node == self._node:
            self._reports.remove(f"status/databases/{self.database.path}")

    async def _run(self) -> None:
        self._say(self.reason)
        try:
            place = place_of(self.database.url or "")
        except InvalidError as error:
            self._say(error.message, Phase.FAILED)
            return
        if place is None:
            # A Unix socket: whether it may be used depends on the user.
            self._say("")
            return
        pause, failures = FIRST_PAUSE, 0
        while True:
            reason = await unreachable(place)
            failures = failures + 1 if reason else 0
            if not reason or not self._ready or failures >= FAILURES:
                self._say(reason)
            pause = min(pause * 2, LAST_PAUSE) if reason else FIRST_PAUSE
            await asyncio.sleep(pause if reason else PERIOD)

    def _say(self, reason: str, phase: Phase = Phase.PENDING) -> None:
        if not reason:
            phase, self._ready = Phase.READY, True
        elif self._ready:
            phase = Phase.UNREADY
        before, self.reason = self.reason, reason
        database = self.database
        if database.node == self._node:
            self._reports.put(
                DatabaseStatus(
                    app=database.app,
                    cell=database.cell,
                    name=database.name,
                    node=self._node,
                    phase=phase,
                    reason=reason,
                )
            )
        if reason != before:
            self._changed()


async def unreachable(place: Place, patience: float = PATIENCE) -> str:
    """Why nothing can be connected to there; empty if it can."""
    try:
        async with asyncio.timeout(patience):
            _, writer = await asyncio.open_connection(place.host, place.port)
    except TimeoutError:
        return f"cannot connect to {place}: no answer within {patience:g} s"
    except OSError as error:
        return f"cannot connect to {place}: {_why(error)}"
    except UnicodeError:
        return f"cannot connect to {place}: no host can have that name"
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return ""


def _why(error: OSError) -> str:
    """The system's words, where asyncio has put its own around them."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return (error.strerror or str(error)).lower()
