"""What telemetry of instances may cost the node: it is read on the thread that also keeps the node.

A request of two kilobytes may name a million things once it is unpacked, and reading each takes
longer than sending it. So:

- A request names at most `MOST` things; in JSON, whose reading costs more, it is refused unread.
- Each sender has `SHARE` of one processor, and `BURST` seconds to begin with. Who has used them up
  is told to come back later, before anything of what it sends is looked at.
- Of what is being received, each sender has `ROOM` bytes; the rest comes later, too.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from bedstone.errors import InvalidError, UnavailableError

MOST: Final = 50_000
"""Resources, scopes, spans, records, metrics, points, events, links and attributes."""
MOST_JSON: Final = 100_000
"""Objects and arrays, and one for each four commas, of one body."""
SHARE: Final = 0.1
BURST: Final = 2.0
ROOM: Final = 16 << 20
_REMEMBERED: Final = 1000
_ELEMENT: Final = 4
"""Bytes that an element of an array or a map has, about, at least."""


class Shares:
    """What senders have used of the node.

    Args:
        clock: monotonic.
        used: processor time of this thread, in seconds.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = time.thread_time,
    ) -> None:
        self._clock = clock
        self._used = used
        self._debts: dict[str, tuple[float, float]] = {}
        self._receiving: Counter[str] = Counter()

    @contextmanager
    def turn(self, sender: str) -> Iterator[None]:
        """Work for a sender, without waiting; what it takes is written down.

        Raises:
            UnavailableError: the sender has had its share for now.
        """
        now = self._clock()
        debt = self._debt(sender, now)
        if debt >= BURST:
            raise UnavailableError(
                "this instance sends more telemetry than the node can read for it",
                hint="send less, or less often",
                retry_after=1.0 + (debt - BURST) / SHARE,
            )
        begun = self._used()
        try:
            yield
        finally:
            if len(self._debts) > _REMEMBERED:
                self._debts = {it: held for it, held in self._debts.items() if self._debt(it, now)}
            self._debts[sender] = (debt + self._used() - begun, now)

    def receive(self, sender: str, size: int) -> None:
        """Make room for bytes of a sender, which are given back by `received`.

        Raises:
            UnavailableError: there is none now.
        """
        if self._receiving[sender] + size > ROOM:
            raise UnavailableError(
                f"more than {ROOM} bytes of this instance are being received", retry_after=1.0
            )
        self._receiving[sender] += size

    def received(self, sender: str, size: int) -> None:
        """Give room back."""
        self._receiving[sender] -= size
        if self._receiving[sender] <= 0:
            del self._receiving[sender]

    def _debt(self, sender: str, now: float) -> float:
        debt, at = self._debts.get(sender, (0.0, now))
        return max(0.0, debt - (now - at) * SHARE)


def refuse_json(body: bytes) -> None:
    """Refuse a body of JSON that would take long to read.

    Raises:
        InvalidError: it names too much.
    """
    if body.count(b"{") + body.count(b"[") + body.count(b",") // 4 > MOST_JSON:
        raise InvalidError(f"the body has more than {MOST_JSON} parts; send fewer at once")


def refuse_many(request: Any) -> None:
    """Refuse a request of OTLP that names too much to be read at once.

    Args:
        request: an `ExportTraceServiceRequest`, `ExportLogsServiceRequest` or
            `ExportMetricsServiceRequest`.

    Raises:
        InvalidError: it names more than `MOST` things.
    """
    count = 0
    for weight in _weights(request):
        count += weight
        if count > MOST:
            raise InvalidError(f"the request names more than {MOST} things; send fewer at once")


def _weights(request: Any) -> Iterator[int]:
    """What a request names, piece by piece: it is not read further than is asked for."""
    weigh: Callable[[Any], Iterator[int]]
    match request.DESCRIPTOR.name:
        case "ExportTraceServiceRequest":
            held, scopes, parts, weigh = "resource_spans", "scope_spans", "spans", _span
        case "ExportLogsServiceRequest":
            held, scopes, parts, weigh = "resource_logs", "scope_logs", "log_records", _record
        case _:
            held, scopes, parts, weigh = "resource_metrics", "scope_metrics", "metrics", _metric
    for resource in getattr(request, held):
        yield 1
        for scope in getattr(resource, scopes):
            yield 1
            for part in getattr(scope, parts):
                yield from weigh(part)


def _span(span: Any) -> Iterator[int]:
    yield 1 + len(span.events) + len(span.links)
    for holder in (span, *span.events, *span.links):
        yield from _attributes(holder)


def _record(record: Any) -> Iterator[int]:
    yield 1 + _elements(record.body)
    yield from _attributes(record)


def _metric(metric: Any) -> Iterator[int]:
    yield 1
    kind = metric.WhichOneof("data")
    for point in getattr(metric, kind).data_points if kind else ():
        yield 1
        yield from _attributes(point)


def _attributes(holder: Any) -> Iterator[int]:
    yield len(holder.attributes)
    for attribute in holder.attributes:
        if elements := _elements(attribute.value):
            yield elements


def _elements(value: Any) -> int:
    """About how many values an array or a map holds, whatever its depth."""
    if value.WhichOneof("value") in ("array_value", "kvlist_value"):
        return int(value.ByteSize()) // _ELEMENT
    return 0
