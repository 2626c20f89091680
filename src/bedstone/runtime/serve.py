"""`python -m bedstone.runtime.serve module:attribute --port N`: serve one ASGI application.

Runs in the application's interpreter and process, started by the node for `run:`.

Rules:
- The port is taken before the application is imported, and opened when it is ready, so that a
  connection that succeeds means that the application has started.
- SIGTERM: no new connections, requests in flight are finished, for `--grace` seconds at most.
- Exit status: 0 after SIGTERM, 2 for an application that cannot be imported, 3 when it failed to
  start, 7 for a port that cannot be had.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from pathlib import Path

from bedstone.errors import EXIT_STATUS, Error, InvalidError, UnavailableError

KEEP_ALIVE = 75
"""Seconds that an idle connection stays open; longer than the proxy keeps it, so that the proxy,
which knows what it has sent, is the one to close."""
BACKLOG = 2048
_FAILED_START = 3  # uvicorn's own status for it


def main(arguments: list[str] | None = None) -> int:
    """Serve until told to stop; returns the exit status."""
    options = _parse(arguments)
    here = str(Path.cwd())
    if here not in sys.path:  # `-P` or PYTHONSAFEPATH leave it out; the application lives there
        sys.path.insert(0, here)
    try:
        return _serve(options)
    except Error as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)  # noqa: T201
        return EXIT_STATUS[error.code]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bedstone.runtime.serve",
        description="Serve an ASGI application with its request context.",
        epilog="Example: python -m bedstone.runtime.serve accounts:app --port 8000",
    )
    parser.add_argument("application", help="module:attribute")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, help="default: $PORT")
    parser.add_argument(
        "--grace", type=float, default=8.0, help="seconds for requests in flight after SIGTERM"
    )
    return parser.parse_args(arguments)


def _serve(options: argparse.Namespace) -> int:
    listener = _bind(options.host, _port(options.port))
    import uvicorn

    from bedstone.runtime import exporting, logs, meters, spans, tracing
    from bedstone.runtime.asgi import ContextMiddleware
    from bedstone.runtime.extensions import extended
    from bedstone.runtime.loading import load

    tracing.instrument()
    service = options.application.partition(":")[0]
    waiting = meters.meters(service)
    if waiting is not None:
        waiting.watch()
    application = extended(load(options.application))
    logs.configure()
    if waiting is not None:
        waiting.serve()
    server = uvicorn.Server(
        uvicorn.Config(
            ContextMiddleware(application, spans.recorder(service)),
            # An application without the lifespan protocol raises on it (Django does), so it is
            # asked for but not demanded; one that reports a failed start-up still stops us.
            lifespan="auto",
            access_log=False,
            log_config=None,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=max(1, int(options.grace)),
            backlog=BACKLOG,
            server_header=False,
        )
    )
    # uvicorn raises the signal again once it has stopped; a stop that was asked for is a success.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run(sockets=[listener])
    exporting.finish()
    return 0 if server.started else _FAILED_START


def _port(given: int | None) -> int:
    text = str(given) if given is not None else os.environ.get("PORT", "")
    if not (text.isdecimal() and int(text) <= 65535):
        raise InvalidError(
            f"got port {text!r}, expected 0 to 65535", hint="give --port, or set PORT"
        )
    return int(text)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named; with it on, an answer in
    # two writes waits 40 ms for an acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UnavailableError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            hint=f"see what holds the port: `ss -ltnp 'sport = :{port}'`",
        ) from error
    return listener


if __name__ == "__main__":
    sys.exit(main())
