"""Which seconds were complete, as the API says it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from fastapi import FastAPI, Request

from bedstone.server import api
from bedstone.server.auth import Principal
from bedstone.server.seconds import LONGEST, second_routes
from bedstone.testing.series_memory import MemoryReader

START = 1_800_000_000


def ask(reader: MemoryReader, start: int, end: int) -> httpx.Response:
    async def main() -> httpx.Response:
        app = FastAPI()
        api._handle_errors(app)

        @app.middleware("http")
        async def known(request: Request, call: Any) -> Any:
            request.state.principal = Principal("ann", "reader")
            return await call(request)

        nothing: Any = None
        second_routes(nothing, reader)(app)  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://s") as client:
            params = {"start": start, "end": end}
            return await client.get("/v1/seconds", params=params)

    return asyncio.run(main())


def test_the_seconds_that_lack_something_are_named() -> None:
    reader = MemoryReader()
    reader.finish(START)
    reader.finish(START + 1, {"n1": "away"})
    reader.finish(START + 2)
    answer = ask(reader, START, START + 2).json()
    assert answer["incomplete"] == {str(START + 1): {"n1": "away"}}


def test_no_more_is_named_at_once_than_a_day() -> None:
    """A server that was off for weeks would name millions, and do nothing else meanwhile."""
    reader = MemoryReader()
    reader.finish(START)
    reader.finish(START + 30 * 86_400)
    answer = ask(reader, START, START + LONGEST)
    assert answer.status_code == 422
    assert "expected at most 86400 seconds" in answer.json()["message"]
    assert ask(reader, START + 5, START + 4).status_code == 422
    assert len(ask(reader, START + 1, START + LONGEST).json()["incomplete"]) == LONGEST
