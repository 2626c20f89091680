"""A fake of the HTTP API, for tests of its clients: a real server on a Unix socket, canned answers.

It speaks HTTP through uvicorn, so that connections, streams and their ends are real; what it
answers is what the test put there. It records every request.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from pydantic import BaseModel

from bedstone.errors import HTTP_STATUS, Error

Message = MutableMapping[str, Any]


@dataclass(frozen=True)
class Asked:
    """One request that the fake received."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class Answer:
    """What to answer.

    Args:
        body: a record, or anything that is JSON; a list of lines if `stream`.
        status: the HTTP status.
        stream: answer `body` as NDJSON, a line at a time.
        hold: after the stream's lines, keep it open until the client leaves.
        cut: drop the connection after the stream's lines, without an end.
        delay: seconds before the answer.
        headers: more headers.
    """

    body: Any = None
    status: int = 200
    stream: bool = False
    hold: bool = False
    cut: bool = False
    delay: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


def problem(error: Error, *, headers: dict[str, str] | None = None) -> Answer:
    """The answer that stands for an error."""
    body = {"code": error.code, "message": error.message, "hint": error.hint}
    return Answer(body, HTTP_STATUS[error.code], headers=headers or {})


class FakeApi:
    """Answers by `METHOD /path`; a list of answers is used up one by one, the last one stays.

    Attributes:
        answers: what to answer.
        asked: every request, in order.
        left: how many streams a client left before their end.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Answer | list[Answer]] = {"GET /healthz": Answer({"status": "ok"})}
        self.asked: list[Asked] = []
        self.left = 0

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            return
        asked = await _read(scope, receive)
        self.asked.append(asked)
        answer = self._find(f"{asked.method} {asked.path}")
        await asyncio.sleep(answer.delay)
        headers = [
            (b"content-type", b"application/x-ndjson" if answer.stream else b"application/json"),
            *((name.encode(), value.encode()) for name, value in answer.headers.items()),
        ]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        if not answer.stream:
            await send({"type": "http.response.body", "body": _encode(answer.body)})
            return
        for line in answer.body:
            body = _encode(line) + b"\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})
        if answer.cut:
            raise ConnectionAbortedError("the test cuts this stream")
        if answer.hold:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.left += 1
        await send({"type": "http.response.body", "body": b""})

    def _find(self, name: str) -> Answer:
        found = self.answers.get(name)
        if found is None:
            return Answer({"code": "not_found", "message": f"no answer for {name}"}, 404)
        if isinstance(found, list):
            return found.pop(0) if len(found) > 1 else found[0]
        return found


async def _read(scope: Message, receive: Any) -> Asked:
    content = b""
    more = True
    while more:
        message = await receive()
        content += message.get("body", b"")
        more = message.get("more_body", False)
    return Asked(
        scope["method"],
        unquote(scope["raw_path"].decode()),
        {name: values[-1] for name, values in parse_qs(scope["query_string"].decode()).items()},
        {name.decode(): value.decode() for name, value in scope["headers"]},
        json.loads(content) if content else None,
    )


def _encode(value: Any) -> bytes:
    match value:
        case bytes():
            return value
        case BaseModel():
            return value.model_dump_json().encode()
        case list():
            return b"[" + b",".join(map(_encode, value)) + b"]"
        case _:
            return json.dumps(value).encode()


@contextmanager
def serve_fake_api(socket: Path) -> Iterator[FakeApi]:
    """Serve a fake on a Unix socket, in a thread, for as long as the context lasts."""
    import uvicorn

    fake = FakeApi()
    config = uvicorn.Config(
        fake,
        uds=str(socket),
        log_config=None,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started:
        if time.monotonic() > deadline or not thread.is_alive():
            raise RuntimeError(f"the fake API does not start on {socket}")
        time.sleep(0.005)
    try:
        yield fake
    finally:
        server.should_exit = True
        thread.join(10)
