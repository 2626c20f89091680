"""Kept traces for others: OTLP to a collector of the app's choice.

Rules:
- What is sent is what is kept: whole traces, and late spans as they come.
- Nothing waits for it: what finds no room is dropped and counted, the oldest first.
- What failed and may be tried again is (OTLP specification 1.x, "Failures": 429, 502, 503, 504, and
  no answer), later and later; whatever else the other side refuses is dropped and counted.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from bedstone.control.monitoring.traces.sampler import Decided
from bedstone.control.monitoring.traces.spans import Span, encode
from bedstone.control.monitoring.traces.trace import whole

ROOM = 20_000
"""Spans that wait at most."""
BATCH = 512
"""Spans of one request."""
PERIOD = 1.0
FIRST_PAUSE, LAST_PAUSE = 1.0, 30.0
_AGAIN = frozenset({0, 429, 502, 503, 504})
_log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What the other side said: a status of HTTP (0 for none), and when to try again."""

    status: int
    retry_after: float | None = None


Post = Callable[[bytes], Awaitable[Answer]]
"""Sends one body: an `ExportTraceServiceRequest`, gzipped."""


class Exporter:
    """Sends to one place, until cancelled.

    Attributes:
        sent: spans that were taken.
        dropped: spans that were not, and will not be.
    """

    def __init__(
        self,
        where: str,
        post: Post,
        *,
        room: int = ROOM,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Args: what it is called in the log; how to send; spans that wait; how to wait."""
        self._where = where
        self._post = post
        self._room = room
        self._sleep = sleep
        self._waiting: deque[Span] = deque()
        self.sent = 0
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """Spans that wait."""
        return len(self._waiting)

    def put(self, one: Decided) -> None:
        """Take a kept trace."""
        spans: Sequence[Span] = one.spans if one.late else whole(one.spans)
        self._waiting.extend(spans)
        while len(self._waiting) > self._room:
            self._waiting.popleft()
            self.dropped += 1

    async def run(self) -> None:
        """Send what waits, again and again."""
        pause = FIRST_PAUSE
        while True:
            if not self._waiting:
                await self._sleep(PERIOD)
                continue
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            answer = await self._post(gzip.compress(encode(batch), 5))
            if answer.status in _AGAIN:
                self._waiting.extendleft(reversed(batch))
                _log.info("traces not sent", extra={"to": self._where, "status": answer.status})
                await self._sleep(min(answer.retry_after or pause, LAST_PAUSE))
                pause = min(pause * 2, LAST_PAUSE)
                continue
            pause = FIRST_PAUSE
            if 200 <= answer.status < 300:
                self.sent += len(batch)
            else:
                self.dropped += len(batch)
                _log.warning("traces refused", extra={"to": self._where, "status": answer.status})
