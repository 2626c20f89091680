"""Live taps: what the proxy writes down of requests, for whoever looks on now.

Rules:
- The proxy writes every request down only while a tap is open, of the largest share that one of
  them asks for. The last tap to close ends that, however it ends; so does the start of an agent,
  since an earlier one may have died with a tap open.
- A tap never holds up the collector: what its reader has no room for is left out, and counted.
- Failed and slow requests are written down whatever the share.
- A record holds no body, no query and no header.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from bedstone.model.monitoring import TapRecord
from bedstone.telemetry.requests import ProxyRequest

ROOM: Final = 2000
"""Records that wait for the reader of one tap."""
BATCH: Final = 500
"""Records that are told at once."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which requests a tap is about.

    Args:
        app: the app's.
        workload: from or to this one; of all if empty.
        errors: only those that failed.
        share: of all of these, 0 to 1.
    """

    app: str
    workload: str = ""
    errors: bool = False
    share: float = 1.0

    def takes(self, request: ProxyRequest, share: float) -> bool:
        """Whether a request is one of them, where the proxy writes a share of all down.

        All hops of one request are taken, or none of them: its trace decides.
        """
        if request.hop.app != self.app or (self.errors and not request.kind):
            return False
        if self.workload and self.workload not in (request.source, request.target):
            return False
        if self.share >= share or request.kind or not request.trace:
            return True
        return int(request.trace[-8:], 16) < self.share / share * 2.0**32


class Tap:
    """One open tap."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self._waiting: deque[TapRecord] = deque()
        self._left_out = 0
        self._came = asyncio.Event()

    def put(self, record: TapRecord) -> None:
        """Keep a record for the reader, if there is room."""
        if len(self._waiting) >= ROOM:
            self._left_out += 1
            return
        if self._left_out:
            record = record.model_copy(update={"left_out": self._left_out})
            self._left_out = 0
        self._waiting.append(record)
        self._came.set()

    async def next(self, patience: float) -> list[TapRecord]:
        """What came, oldest first; nothing if nothing comes for `patience` seconds."""
        try:
            async with asyncio.timeout(patience):
                await self._came.wait()
        except TimeoutError:
            return []
        found = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        if not self._waiting:
            self._came.clear()
        return found


class Taps:
    """The taps of one node; takes what its proxy writes down.

    Args:
        node: the node's name.
        write_down: have the proxy write a share of requests down, 0 to 1, now and after each start.
    """

    def __init__(self, node: str, write_down: Callable[[float], None]) -> None:
        self._node = node
        self._write_down = write_down
        self._open: list[Tap] = []
        self._share = 0.0
        write_down(0.0)

    @contextmanager
    def open(self, wanted: Wanted) -> Iterator[Tap]:
        """A tap, until it is left."""
        tap = Tap(wanted)
        self._open.append(tap)
        self._tell()
        try:
            yield tap
        finally:
            self._open.remove(tap)
            self._tell()

    def requests(self, records: Sequence[ProxyRequest]) -> None:
        """Take what the proxy wrote down."""
        for request in records if self._open else ():
            told: TapRecord | None = None
            for tap in self._open:
                if tap.wanted.takes(request, self._share):
                    told = told or record(self._node, request)
                    tap.put(told)

    def _tell(self) -> None:
        share = max((tap.wanted.share for tap in self._open), default=0.0)
        if share != self._share:
            self._share = share
            self._write_down(share)


def record(node: str, request: ProxyRequest) -> TapRecord:
    """A request as a tap tells it."""
    return TapRecord(
        time=request.start,
        node=node,
        side=request.hop.side,
        app=request.hop.app,
        source=request.source,
        target=request.target,
        instance=request.hop.instance,
        method=request.method,
        path=request.path,
        status=request.status,
        kind=request.kind,
        flags=request.flags,
        seconds=request.seconds,
        bytes_in=request.bytes_in,
        bytes_out=request.bytes_out,
        trace=request.trace,
    )
