"""The command line that serves an application in an interpreter of its own.

Owns the way in for an interpreter that has never heard of Bedstone: `bootstrap.py`, run by its
path, which lets our libraries fill in, behind the application's own, what it does not have.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

MODULES = (
    "bedstone.runtime.serve",
    *(f"bedstone.runtime.{name}" for name in ("asgi", "extensions", "loading", "logs", "meters")),
    *(f"bedstone.runtime.{name}" for name in ("clients", "exporting", "spans", "tracing")),
    "opentelemetry.sdk.trace.export",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "uvicorn",
    *(f"uvicorn.{name}" for name in ("lifespan.on", "loops.auto", "protocols.http.auto")),
    "uvicorn.protocols.websockets.auto",
    # What the exporter and the event loop load once they run.
    *("requests", "opentelemetry.instrumentation.requests", "encodings.idna"),
    *("anyio._backends._asyncio", "concurrent.futures.thread"),
)
"""What serving an application loads besides the application, for interpreters that are forked."""


def libraries() -> str:
    """The path list that is searched last, for an interpreter that has not what serving needs."""
    paths = [path for path in sys.path if {"site-packages", "dist-packages"} & {*Path(path).parts}]
    return os.pathsep.join(dict.fromkeys([str(Path(__file__).parents[2]), *paths]))


def serve_command(
    python: str,
    target: str,
    *,
    port: int,
    host: str = "127.0.0.1",
    grace: float | None = None,
) -> list[str]:
    """The argv that serves `target` (`module:attribute`) with the interpreter `python`.

    After SIGTERM, requests in flight have `grace` seconds; it should be a little less than the time
    to SIGKILL. The working directory must be the workload's. `bedstone.runtime.serve` has the exit
    statuses.
    """
    return [
        python,
        str(Path(__file__).with_name("bootstrap.py")),
        libraries(),
        target,
        f"--host={host}",
        f"--port={port}",
        *([] if grace is None else [f"--grace={grace:g}"]),
    ]
