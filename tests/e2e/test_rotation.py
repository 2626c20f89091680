"""Certificates that live for seconds are renewed under load, and no request is dropped."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.timeout(180)

MANIFEST = """
app: chain
gateway: {port: 8080, routes: [{path: /, to: front}]}
workloads:
  front: {command: [python, front.py], uses: [back]}
  back: {command: [python, back.py]}
"""
BACK = """
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = answer(self)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass

def answer(request):
    return request.headers.get("x-bedstone-caller", "none").encode()

def serve():
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()

if __name__ == "__main__":
    serve()
"""
FRONT = """
import urllib.request
import back

back.answer = lambda _: urllib.request.urlopen("http://back/", timeout=5).read()
back.serve()
"""
LIFETIME = 6.0


def test_renewal_drops_no_request(
    make_domain: Callable[..., Any], make_load: Callable[..., Any]
) -> None:
    domain = make_domain(manifest=MANIFEST)
    (domain.directory / "back.py").write_text(BACK)
    (domain.directory / "front.py").write_text(FRONT)
    domain.up("--certificate-lifetime", f"{LIFETIME:.0f}s")

    def expiries() -> dict[str, float]:
        return {p["name"]: p["since"] for p in domain.parts() if p["kind"] == "certificate"}

    def send(client: httpx.Client) -> int:
        answer = client.get(domain.url)
        assert answer.status_code != 200 or answer.text.endswith("/chain/front")
        return answer.status_code

    first = expiries()
    assert set(first) == {"front", "back"}
    with make_load(send) as outcome:
        domain.wait(
            lambda: all(at > first[name] + LIFETIME for name, at in expiries().items()),
            10 * LIFETIME,
            "every certificate is renewed",
        )
    assert outcome.failures == []
    domain.down()


def test_a_proxy_keeps_its_certificates_while_node_and_server_are_away(
    make_domain: Callable[..., Any],
) -> None:
    domain = make_domain(manifest=MANIFEST)
    (domain.directory / "back.py").write_text(BACK)
    (domain.directory / "front.py").write_text(FRONT)
    domain.up()
    domain.kill("node")
    assert httpx.get(domain.url, trust_env=False).status_code == 200
    domain.kill("server")
    assert httpx.get(domain.url, trust_env=False).status_code == 200
    domain.down()
