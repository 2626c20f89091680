"""A database elsewhere: waited for, reached from inside a namespace, and changed by its URL."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.timeout(240)

MANIFEST = """
app: bank
gateway: {routes: [{path: /, to: web}]}
workloads:
  web:
    command: [python, web.py]
    prepare: [python, web.py, prepare]
    uses: [ledger]
databases:
  ledger: {url: "${env.TEST_LEDGER}"}
"""
PROGRAM = """
import os, socket, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import urlsplit

def ask(word):
    url = urlsplit(os.environ["LEDGER_URL"])
    with socket.create_connection((url.hostname, url.port), 5) as link:
        link.sendall(f"{word} {url.username}:{url.password}\\n".encode())
        return link.makefile("rb").readline()

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        answer = ask("serve")
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

if sys.argv[1:]:
    ask("prepare")
else:
    HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


class Server:
    """Stands for a PostgreSQL: notes what it is sent, and answers with its name."""

    def __init__(self, name: str, port: int = 0) -> None:
        self.heard: list[str] = []
        self._name = name
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def url(self, password: str) -> str:
        return f"postgresql://bank:{password}@localhost:{self.port}/bank"

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._listener.accept()
                with link, contextlib.suppress(OSError):
                    if line := link.makefile("rb").readline():
                        self.heard.append(line.decode().strip())
                        link.sendall(self._name.encode() + b"\n")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def servers() -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def make(name: str, port: int = 0) -> Server:
        made.append(Server(name, port))
        return made[-1]

    yield make
    for server in made:
        server.close()


def test_it_is_waited_for_reached_and_changed(
    make_domain: Callable[..., Any],
    servers: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    domain = make_domain(manifest=MANIFEST)
    (domain.directory / "web.py").write_text(PROGRAM)
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    monkeypatch.setenv("TEST_LEDGER", f"postgresql://bank:first-secret@localhost:{port}/bank")

    domain.ok("up", "--detach", "--gateway-port", str(domain.port))
    reason = f"cannot connect to localhost:{port}: Connection refused"

    def waiting() -> bool:
        details = {part["kind"]: part["detail"] for part in domain.parts()}
        return (
            details.get("engine") == reason
            and details.get("instance") == f"waiting for database ledger: {reason}"
        )

    domain.wait(waiting, what="the reason why it is waited for")

    first = servers("first", port)
    domain.up()
    answer = httpx.get(domain.url, trust_env=False)
    assert (answer.status_code, answer.text) == (200, "first\n")
    assert first.heard == ["prepare bank:first-secret", "serve bank:first-secret"]

    second = servers("second")
    monkeypatch.setenv("TEST_LEDGER", second.url("second-secret"))
    shown = domain.ok("up", "--detach", "--wait", "--gateway-port", str(domain.port))
    shown += domain.run("up", "--detach", "--wait", "--gateway-port", str(domain.port)).stderr
    assert httpx.get(domain.url, trust_env=False).text == "second\n"
    assert second.heard == ["prepare bank:second-secret", "serve bank:second-secret"]

    for arguments in (
        ("get", "app"),
        ("get", "database"),
        ("ps",),
        ("audit",),
        ("ps", "-o", "json"),
    ):
        shown += domain.ok(*arguments)
    assert "external, at localhost" in shown
    assert "secret" not in shown + domain.logs()
