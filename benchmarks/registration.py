"""Time from an instance's readiness to the first request that is routed to it.

Usage: python benchmarks/registration.py [--samples 60]

A service is scaled from one instance to two and back, again and again, under a steady load
through the gateway. The clock starts when the node's probe has passed (`ready_at`), and stops when
the new instance takes its first request, by its own clock, on the same machine. So the time covers
the report to the server, its durable write, the push to the proxy, and the proxy's own update.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import threading
from http.client import HTTPConnection
from typing import Self

from bedstone.client.api import Client
from bedstone.client.transport import Endpoint
from bedstone.model.api import ApplyRequest
from bedstone.model.manifest import load_manifest
from bedstone.processes.state import run_directory
from bedstone.testing.domain import Domain

MANIFEST = """
app: scale
gateway: {port: 8080, routes: [{path: /, to: echo}]}
workloads:
  echo: {command: [python, echo.py], replicas: 1, ready: {path: /ready, interval: 1s}}
"""
PROGRAM = """
import os, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

first = None

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one segment an answer, or Nagle's algorithm would delay each by 40 ms
    def do_GET(self):
        global first
        if self.path != "/ready" and first is None:
            first = time.time()
        body = f"{os.environ['BEDSTONE_INSTANCE']} {first}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass

ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
MOST = 2


class Hammer:
    """Sends requests from a few threads and notes when each instance was first reached."""

    def __init__(self, port: int) -> None:
        self.first: dict[str, float] = {}
        self._port = port
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=5)
        while not self._stop.is_set():
            connection.request("GET", "/")
            name, _, first = connection.getresponse().read().decode().partition(" ")
            self.first.setdefault(name, float(first))
        connection.close()


async def measure(domain: Domain, samples: int) -> list[float]:
    manifest = load_manifest(domain.directory)
    found: dict[str, float] = {}
    gateway = manifest.spec.gateway
    if gateway is None:
        raise AssertionError
    spec = manifest.spec.model_copy(
        update={"gateway": gateway.model_copy(update={"port": domain.port})}
    )
    socket = run_directory(domain.state) / "api.sock"
    async with Client(Endpoint(socket=socket)) as client:
        current = (await client.resource("app", "scale")).value
        while len(found) < samples:
            for replicas in (MOST, 1):
                echo = spec.workloads["echo"].model_copy(update={"replicas": replicas})
                request = ApplyRequest(
                    spec=spec.model_copy(update={"workloads": {"echo": echo}}),
                    root=current["root"],
                    sources=current["sources"],
                )
                with Hammer(domain.port) as hammer:
                    await client.apply(request)
                    async for status in client.watch("scale"):
                        if status.ready:
                            break
                    await asyncio.sleep(0.3)
                if replicas == MOST:
                    for item in (await client.resources("instance")).items:
                        ready = item.value["status"]["ready_at"]
                        name = item.name.rpartition("/")[2]
                        key = f"{name}@{ready}"
                        if name in hammer.first and not name.endswith("-0"):
                            found[key] = (hammer.first[name] - ready) * 1000
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=60)
    samples = parser.parse_args().samples
    domain = Domain.make(manifest=MANIFEST)
    (domain.directory / "echo.py").write_text(PROGRAM)
    try:
        domain.up()
        found = sorted(asyncio.run(measure(domain, samples)))
    finally:
        domain.down()
        domain.discard()
    quantiles = statistics.quantiles(found, n=100)
    print(
        json.dumps(
            {
                "samples": len(found),
                "ms": {
                    "min": round(found[0], 1),
                    "p50": round(statistics.median(found), 1),
                    "p90": round(quantiles[89], 1),
                    "p99": round(quantiles[98], 1),
                    "max": round(found[-1], 1),
                },
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
