"""Workloads of a manifest in containers: with the mesh, probes, logs and limits that all have."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bedstone.boxes.home import boxes_directory
from bedstone.testing.domain import Domain
from bedstone.testing.isolation import missing
from bedstone.testing.workloads import server

MANIFEST = """\
app: shop
gateway:
  port: PORT
  routes:
    - {path: /, to: web}
workloads:
  web:
    path: web
    run: web:app
    isolation: container
    uses: [stock]
    prepare: [python, -c, "print('prepared', __import__('os').getpid())"]
    ready: {command: [python, -c, "import socket; socket.create_connection(('127.0.0.1', 8080))"]}
    limits: {memory: 256MiB, processes: 100}
  stock:
    path: stock
    command: [python, stock.py]
    isolation: container
    stop_timeout: 20s
  other:
    path: stock
    command: [python, stock.py]
"""
WEB = """
import os, signal, socket, subprocess, sys
import httpx
from fastapi import FastAPI
app = FastAPI()
held = []

@app.get("/")
async def said():
    async with httpx.AsyncClient() as client:
        stock = (await client.get("http://stock/")).text
        other = (await client.get("http://other/")).status_code
    print("asked", flush=True)
    return {
        "stock": stock, "other": other, "uid": os.getuid(), "pid": os.getpid(),
        "status": dict(line.split(":\\t", 1) for line in open("/proc/self/status")),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "env": dict(os.environ),
    }

@app.get("/list")
def listed(at: str):
    try:
        return sorted(os.listdir(at))
    except OSError as error:
        return error.strerror

@app.get("/write")
def write(at: str):
    try:
        open(at, "w").close()
    except OSError as error:
        return error.strerror
    return "written"

@app.get("/hold")
def hold(size: int):
    held.append(b"x" * size)
"""
STOCK = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "1")
        self.end_headers()
        self.wfile.write(b"3")
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def shop(make_domain: Callable[..., Domain]) -> Iterator[Domain]:
    """The shop, up."""
    why = missing("container")
    if why:
        pytest.skip(why)
    domain = make_domain(manifest="app: shop")
    (domain.directory / "bedstone.yaml").write_text(MANIFEST.replace("PORT", str(domain.port)))
    for name, text in (("web", WEB), ("stock", STOCK)):
        (domain.directory / name).mkdir()
        (domain.directory / name / f"{name}.py").write_text(text)
    (domain.directory / "neighbour").mkdir()
    domain.up()
    yield domain
    domain.down()
    assert boxes_of(domain) == [], "nothing is left of its boxes"


def boxes_of(domain: Domain) -> list[str]:
    """The boxes that run an app's instances."""
    home = boxes_directory()
    return [
        file.parent.name
        for file in home.glob("*/spec.json")
        if str(domain.directory) in file.read_text()
    ]


def ask(domain: Domain, path: str = "/", **parameters: Any) -> Any:
    """What the web workload answers."""
    with httpx.Client(trust_env=False, timeout=20) as client:
        answer = client.get(f"{domain.url}{path}", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def web(domain: Domain) -> dict[str, Any]:
    """The one instance of the web workload."""
    parts = server(domain, "/v1/apps/shop/status")["parts"]
    found = (part for part in parts if part["kind"] == "instance" and part["workload"] == "web")
    return next(found)


def memory(domain: Domain) -> float:
    """Bytes of the web workload's instance, in the last second that is known."""
    query = 'bedstone_instance_memory_bytes{workload="web"}'
    result = server(domain, "/prometheus/api/v1/query", query=query)["data"]["result"]
    return float(result[0]["value"][1]) if result else 0.0


def test_it_is_in_the_mesh_and_in_a_box(shop: Domain) -> None:
    """It calls what it uses and nothing else; prepare, probe and output are the box's."""
    said = ask(shop)
    assert said["stock"] == "3"
    assert said["other"] == 403, "what it does not use is denied"
    assert said["pid"] < 10, "a process namespace of its own"
    assert said["uid"] == 64000
    assert said["interfaces"] == ["lo"]
    assert said["status"]["NoNewPrivs"].strip() == "1"
    names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    assert {int(said["status"][name], 16) for name in names} == {0}
    part = web(shop)
    assert part["enforced"]
    owner = Path(f"/proc/{part['pid']}").stat().st_uid
    assert owner == 0, "the runtime's"
    assert "isolation container: stock, web" in shop.ok("ps")
    log = shop.ok("logs", "web")
    assert re.search(r"prepared \d\n", log), "in a process namespace, too"
    assert "asked" in log


def test_no_other_path_of_the_machine_is_there(shop: Domain) -> None:
    """Of the app's folder only its own path, and of the machine what programs need."""
    assert ask(shop, "/list", at=str(shop.directory)) == ["web"]
    assert ask(shop, "/list", at=str(shop.directory / "web")) == ["web.py"]
    assert ask(shop, "/list", at="/var") == os.strerror(2)
    assert ask(shop, "/list", at="/home") == os.strerror(2)
    assert ask(shop, "/list", at="/run") == ["bedstone"]
    assert "shadow" not in ask(shop, "/list", at="/etc")
    assert ask(shop, "/write", at=str(shop.directory / "web/x")) == os.strerror(30)
    assert ask(shop, "/write", at="/usr/x") == os.strerror(30)
    assert ask(shop, "/write", at="/x") == os.strerror(30)
    assert ask(shop, "/write", at="/tmp/x") == "written"


def test_a_box_outlives_its_agent_and_is_made_anew_when_it_is_killed(shop: Domain) -> None:
    before = web(shop)
    shop.kill("node")
    shop.wait(lambda: web(shop)["state"] == "ready", what="adopted")
    assert web(shop)["pid"] == before["pid"]
    os.kill(before["pid"], signal.SIGKILL)
    shop.wait(lambda: web(shop)["pid"] != before["pid"] and web(shop)["state"] == "ready")
    assert ask(shop, "/write", at="/tmp/x") == "written"
    assert len(boxes_of(shop)) == 2, "one for each instance in a box"


def test_what_is_beyond_its_memory_limit_is_named(shop: Domain) -> None:
    """The box's limit, its use by the second, and its end for it."""
    shop.wait(lambda: 20 << 20 < memory(shop) < 256 << 20, what="use by the second")

    def named() -> bool:
        part = web(shop)
        if part["state"] == "ready":
            # Each time it waits longer before it starts again, and can be seen.
            with contextlib.suppress(AssertionError, httpx.HTTPError):
                ask(shop, "/hold", size=400 << 20)
        return "used more than its memory limit of 256 MiB" in part["detail"]

    shop.wait(named, timeout=60, what="the limit is named")
    shop.wait(lambda: web(shop)["state"] == "ready", what="started again")
