"""A program with a log format of its own."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Stock(BaseHTTPRequestHandler):
    """Takes what is asked for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer, and write a line as pino does."""
        trace = self.headers.get("traceparent", "--").split("-")[1]
        if self.path != "/healthz":
            print(json.dumps({"level": 40, "msg": f"few left: {self.path}", "traceId": trace}))
        self.send_response(200)
        self.send_header("content-length", "5")
        self.end_headers()
        self.wfile.write(b"taken")

    def log_message(self, *_: object) -> None:
        """Say nothing else."""


ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Stock).serve_forever()
