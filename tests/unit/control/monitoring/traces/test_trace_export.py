"""Kept traces are sent on: once, later when they must wait, and never in anybody's way."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable

from bedstone.control.monitoring.traces.export import BATCH, Answer, Exporter
from bedstone.control.monitoring.traces.sampler import Decided
from bedstone.control.monitoring.traces.spans import decode
from bedstone.testing.spans import span, trace_id


class Place:
    """Another system: answers as it is told, in turn, and then well."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.asked: list[list[int]] = []

    async def post(self, body: bytes) -> Answer:
        self.asked.append([int.from_bytes(s.span, "big") for s in decode(gzip.decompress(body))])
        return self.answers.pop(0) if self.answers else Answer(200)


def trace(number: int, count: int = 1) -> Decided:
    spans = [span(number, number * 10_000 + n + 1) for n in range(count)]
    return Decided(trace_id(number), spans, "sampled", late=False)


def run(
    place: Place,
    traces: list[Decided],
    until: Callable[[Exporter], bool],
    room: int = 20_000,
) -> tuple[Exporter, list[float]]:
    """Run an exporter in virtual time until something holds; the pauses that it made."""
    pauses: list[float] = []

    async def scene() -> Exporter:
        done = asyncio.Event()

        async def sleep(seconds: float) -> None:
            pauses.append(seconds)
            if until(exporter):
                done.set()
                await asyncio.Event().wait()
            await asyncio.sleep(0)

        exporter = Exporter("place", place.post, room=room, sleep=sleep)
        for one in traces:
            exporter.put(one)
        task = asyncio.ensure_future(exporter.run())
        await asyncio.wait_for(done.wait(), 5)
        task.cancel()
        return exporter

    return asyncio.run(scene()), pauses


def nothing_waits(exporter: Exporter) -> bool:
    return exporter.waiting == 0


def test_everything_is_sent_once_in_batches() -> None:
    place = Place()
    exporter, _ = run(place, [trace(1, 700), trace(2)], nothing_waits)
    assert [len(batch) for batch in place.asked] == [BATCH, 701 - BATCH]
    assert len({number for batch in place.asked for number in batch}) == 701
    assert (exporter.sent, exporter.dropped) == (701, 0)


def test_what_may_be_tried_again_is_later_and_later_and_as_the_other_says() -> None:
    place = Place(Answer(0), Answer(503), Answer(429, 7.0), Answer(502), Answer(504))
    exporter, pauses = run(place, [trace(1)], nothing_waits)
    assert pauses[:5] == [1.0, 2.0, 7.0, 8.0, 16.0]
    assert place.asked == [place.asked[0]] * 6
    assert (exporter.sent, exporter.dropped) == (1, 0)


def test_what_is_refused_is_dropped_and_counted_and_the_next_is_sent() -> None:
    place = Place(Answer(400))
    exporter, _ = run(place, [trace(1, BATCH), trace(2)], nothing_waits)
    assert (exporter.sent, exporter.dropped) == (1, BATCH)


def test_without_room_the_oldest_make_way() -> None:
    place = Place(*[Answer(0)] * 3)
    exporter, _ = run(place, [trace(n, 10) for n in range(1, 11)], nothing_waits, room=50)
    assert (exporter.sent, exporter.dropped) == (50, 50)
    assert {number // 10_000 for number in place.asked[-1]} == set(range(6, 11))
