"""Risk: says whether a transfer may be made. A plain program that listens on `$PORT`.

GET /assess?from=…&to=…&amount=…  →  {"allowed": true | false, "reason": "…"}
"""

from __future__ import annotations

import json
import os
import signal
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

LIMIT = 1_000_000  # cents


def assess(amount: int) -> tuple[bool, str]:
    """Whether a transfer of `amount` cents is allowed, and why not."""
    if amount > LIMIT:
        return False, f"{amount} cents is more than the limit of {LIMIT}"
    return True, "within the limit"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections open
    timeout = 75  # seconds, for an idle one; longer than the proxy keeps it
    disable_nagle_algorithm = True  # an answer is two writes; the second must not wait for an ACK

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/healthz":
            self._answer(HTTPStatus.OK, {"status": "ok"})
        elif url.path == "/assess":
            try:
                amount = int(parse_qs(url.query)["amount"][0])
            except (KeyError, ValueError):
                self._problem(HTTPStatus.UNPROCESSABLE_ENTITY, "amount must be a whole number")
                return
            allowed, reason = assess(amount)
            self._answer(HTTPStatus.OK, {"allowed": allowed, "reason": reason})
        else:
            self._problem(HTTPStatus.NOT_FOUND, f"there is nothing at {url.path}")

    def _problem(self, status: HTTPStatus, detail: str) -> None:
        body = {"type": "about:blank", "title": status.phrase, "status": status, "detail": detail}
        self._answer(status, body, "application/problem+json")

    def _answer(self, status: HTTPStatus, body: object, kind: str = "application/json") -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing for each request; the proxy counts them."""


class Server(ThreadingHTTPServer):
    daemon_threads = True  # an idle connection must not hold up a stop
    request_queue_size = 128


def main() -> None:
    server = Server(("127.0.0.1", int(os.environ["PORT"])), Handler)
    # shutdown() waits for the loop below, so it cannot be called from the same thread.
    signal.signal(
        signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown, daemon=True).start()
    )
    server.serve_forever(poll_interval=0.1)
    server.server_close()


if __name__ == "__main__":
    main()
