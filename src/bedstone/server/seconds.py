"""The API's routes of the seconds: one tick as each ends, and which of them were complete."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query
from fastapi.responses import StreamingResponse

from bedstone.errors import InvalidError
from bedstone.model.monitoring import Seconds
from bedstone.server.api import Reader, Routes, stream
from bedstone.server.collecting import Collecting, Writer

LONGEST = 86_400
"""Seconds that can be asked about at once: each that was not complete is named, with why."""


def second_routes(collecting: Collecting, writer: Writer) -> Routes:
    """Adds `/v1/ticks` and `/v1/seconds`."""

    def add(app: FastAPI) -> None:
        @app.get("/v1/ticks", response_class=StreamingResponse)
        async def ticks(_: Reader) -> StreamingResponse:
            return stream(collecting.ticks())

        @app.get("/v1/seconds")
        async def seconds(
            _: Reader, start: Annotated[int, Query(ge=0)], end: Annotated[int, Query(ge=0)]
        ) -> Seconds:
            if not start <= end < start + LONGEST:
                raise InvalidError(
                    f"got the span {start} to {end}, expected at most {LONGEST} seconds in order"
                )
            return Seconds(start=start, end=end, incomplete=writer.incomplete(start, end))

    return add
