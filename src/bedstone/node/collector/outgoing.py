"""Spans on their way to the server: in batches, in bounded room, and never in anybody's way.

Rules:
- What finds no room is dropped and counted; the next batch says how many. One sender gets half of
  the room at most, and all applications three quarters: a noisy one silences nobody else, and many
  do not silence the proxies.
- While the stream is away or slow the batch waits, and goes on filling.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import asyncio
import base64
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from bedstone.model.messages import Spans
from bedstone.node.collector.intake import Sender
from bedstone.node.collector.spans import Group, Told, of_application, of_proxy, of_request
from bedstone.telemetry.requests import SLOW_MILLISECONDS, ProxyRequest

PERIOD = 0.5
ROOM = 8192
"""Spans that wait at most."""
BATCH = 2048
"""Spans of one message."""


class Outgoing:
    """Takes what was collected, and sends it; a sink of spans and of requests."""

    def __init__(
        self,
        send: Callable[[Spans], bool],
        drained: Callable[[], Awaitable[None]],
        clock: Callable[[], float] = time.time,
        room: int = ROOM,
    ) -> None:
        """Args: how to send; how to wait until what was sent has left; seconds since the epoch."""
        self.slow = SLOW_MILLISECONDS
        """From how many milliseconds a request is slow, in the app that says the least."""
        self._send = send
        self._drained = drained
        self._clock = clock
        self._room = room
        self._waiting: list[Told] = []
        self._of: Counter[tuple[str, ...]] = Counter()
        self._own = 0
        """Those of them that applications sent."""
        self._dropped = 0
        self._begun = 0
        self._written = 0

    @property
    def waiting(self) -> int:
        """Spans that wait."""
        return len(self._waiting)

    def begun(self) -> int:
        """How many traces the proxy has begun since this was last asked."""
        count, self._begun = self._begun, 0
        return count

    def written(self) -> int:
        """How many failed and slow requests were written down since this was last asked."""
        count, self._written = self._written, 0
        return count

    def spans(self, sender: Sender | None, request: Any) -> int:
        """Take spans of an instance, or without a sender of the proxy; how many were dropped."""
        if sender is not None:
            return self._put(of_application(sender, request, self._clock()))
        made = [
            told
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
            if (told := of_proxy(span)) is not None
        ]
        # At the gateway a trace begins here, also where it goes on from outside.
        self._begun += sum(
            told.group.service == "gateway" or not told.span.parent_span_id for told in made
        )
        return self._put(made)

    def requests(self, records: Sequence[ProxyRequest]) -> None:
        """Take failed and slow requests; those that are only tapped are not for traces."""
        found = [
            record
            for record in records
            if record.kind or (record.seconds * 1000 >= self.slow and record.status != 101)
        ]
        self._written += len(found)
        self._put(of_request(record) for record in found)

    def _put(self, spans: Iterable[Told | None]) -> int:
        dropped = 0
        for told in spans:
            if told is None:
                dropped += 1
                continue
            sender = _sender(told.group)
            own = told.group.origin == "application"
            if (
                len(self._waiting) >= self._room
                or self._of[sender] >= self._room // 2
                or (own and self._own >= self._room * 3 // 4)
            ):
                dropped += 1
                continue
            self._of[sender] += 1
            self._own += own
            self._waiting.append(told)
        self._dropped += dropped
        return dropped

    async def run(self) -> None:
        """Send what comes until cancelled."""
        while True:
            await asyncio.sleep(PERIOD)
            while self._waiting or self._dropped:
                await self._drained()
                batch, rest = self._waiting[:BATCH], self._waiting[BATCH:]
                message = Spans(body=encoded(batch), dropped=self._dropped)
                if not self._send(message):
                    break
                self._waiting, self._dropped = rest, 0
                self._of.subtract(_sender(told.group) for told in batch)
                self._of += Counter()  # forget those without any
                self._own -= sum(told.group.origin == "application" for told in batch)


def _sender(group: Group) -> tuple[str, ...]:
    """Who sent a span: an instance, or the proxy beside it."""
    return ("" if group.origin == "application" else "proxy", *group[1:5])


def encoded(batch: Sequence[Told]) -> str:
    """Spans as `bedstone.model.messages.Spans` has them."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request = ExportTraceServiceRequest()
    groups: dict[Group, Any] = {}
    for told in batch:
        scope = groups.get(told.group)
        if scope is None:
            resource = request.resource_spans.add()
            for key, value in attributes(told.group).items():
                if value:
                    resource.resource.attributes.add(key=key).value.string_value = value
            scope = groups[told.group] = resource.scope_spans.add()
            scope.scope.name = told.group.scope
        scope.spans.append(told.span)
    return base64.b64encode(zlib.compress(request.SerializeToString(), 1)).decode()


def attributes(group: Group) -> dict[str, str]:
    """The resource of a group's spans."""
    return {
        "service.name": group.service,
        "service.namespace": group.app,
        "service.instance.id": group.instance,
        "bedstone.cell": group.cell,
        "bedstone.origin": group.origin,
    }
