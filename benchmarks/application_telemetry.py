"""What recording requests costs a served application, against the same application without it.

    python benchmarks/application_telemetry.py [--requests 1500] [--rounds 9]

One ASGI application that answers at once, called in this process without a network: what is left is
the middleware. Requests carry a trace that is not sampled, or is. Processor time a request, of all
threads (the exporter's too); medians over rounds in which the kinds take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import threading
import time
from typing import Any

from bedstone.runtime.asgi import ContextMiddleware
from bedstone.runtime.spans import Recorder, provide

TRACE = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0%d"


PAUSE = 1.3
"""Seconds after which spans are on their way."""


async def application(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def receive() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


async def ignore(_message: Any) -> None: ...


async def requests(app: ContextMiddleware, count: int, *, sampled: bool) -> float:
    """Microseconds of processor time a request."""
    headers = [(b"traceparent", TRACE % sampled), (b"host", b"shop")]
    scope = {"type": "http", "method": "POST", "path": "/pay", "headers": headers}
    start = time.process_time()
    for _ in range(count):
        await app(dict(scope), receive, ignore)
    await asyncio.sleep(PAUSE)  # what was recorded is exported
    return (time.process_time() - start) / count * 1e6


def receiver() -> str:
    """Where spans are sent: a socket whose other end answers each request, and keeps nothing."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as stream:
                while line := stream.readline():
                    length = 0
                    while line.strip():
                        name, _, value = line.partition(b":")
                        length = int(value) if name.lower() == b"content-length" else length
                        line = stream.readline()
                    stream.read(length)
                    connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


async def measure(count: int, rounds: int) -> None:
    plain = ContextMiddleware(application)
    recording = ContextMiddleware(application, Recorder(lambda: provide("shop")))
    kinds = {
        "without": (plain, False),
        "not sampled": (recording, False),
        "sampled": (recording, True),
    }
    for app, sampled in kinds.values():
        await requests(app, 500, sampled=sampled)
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, (app, sampled) in kinds.items():
            times[kind].append(await requests(app, count, sampled=sampled))
    base = statistics.median(times["without"])
    print(f"{'requests':<12}{'us each':>9}{'added':>8}{'ratio':>8}")
    for kind, found in times.items():
        each = statistics.median(found)
        print(f"{kind:<12}{each:>9.1f}{each - base:>8.1f}{each / base:>8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = receiver()
    asyncio.run(measure(options.requests, options.rounds))


if __name__ == "__main__":
    main()
