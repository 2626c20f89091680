"""`warm` in a manifest: instances of a running app are forked, and where not, `ps` says why."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from bedstone.sandbox.interpreter import obstacle
from bedstone.testing.domain import Domain

SYSTEM = Path(f"/usr/bin/python3.{sys.version_info.minor}")
MANIFEST = """\
app: shop
gateway:
  port: PORT
  routes:
    - {path: /, to: web}
workloads:
  web:
    run: web:app
    warm: [numpy, fastapi]PYTHON
  worker:
    command: [python, worker.py]
    warm: [threading_at_import]PYTHON
"""
WEB = """
import os, random, uuid
import numpy
from fastapi import FastAPI
app = FastAPI()

@app.get("/")
def said():
    return {
        "instance": os.environ["BEDSTONE_INSTANCE"],
        "pid": os.getpid(),
        "drawn": [random.random(), float(numpy.random.random()), str(uuid.uuid4())],
    }
"""
WORKER = """
import http.server, os
address = ("127.0.0.1", int(os.environ["PORT"]))
http.server.HTTPServer(address, http.server.SimpleHTTPRequestHandler).serve_forever()
"""
THREAD = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"


def test_an_app_is_scaled_by_forking(make_domain: Callable[..., Domain]) -> None:
    """Twenty instances, all forked, each with what is its own; another workload starts cold."""
    domain = make_domain(manifest="app: shop")
    text = MANIFEST.replace("PORT", str(domain.port))
    domain.directory.chmod(0o755)
    others = obstacle(Path(sys.executable)) is None
    if os.geteuid() == 0 and not others and not SYSTEM.exists():
        pytest.skip(f"root's own interpreter loads nothing for others: install {SYSTEM}")
    python = "" if others or os.geteuid() != 0 else f"\n    python: {SYSTEM}"
    (domain.directory / "bedstone.yaml").write_text(text.replace("PYTHON", python))
    (domain.directory / "web.py").write_text(WEB)
    (domain.directory / "worker.py").write_text(WORKER)
    (domain.directory / "threading_at_import.py").write_text(THREAD)
    try:
        domain.up()
        domain.ok("scale", "web", "20", "--wait")
        parts = [part for part in domain.parts() if part["kind"] == "instance"]
        cold = {part["workload"]: part["cold_start"] for part in parts}
        assert cold == {
            "web": "",
            "worker": "after its import, threading_at_import has 1 thread(s)",
        }
        shown = domain.ok("ps")
        assert f"worker starts cold: {cold['worker']}" in shown
        assert "web starts cold" not in shown
        answers: dict[str, dict[str, Any]] = {}
        with httpx.Client(trust_env=False) as client:
            for _ in range(400):
                answer = client.get(domain.url).json()
                answers.setdefault(answer["instance"], answer)
        assert len(answers) == 20
        web = {part["name"]: part["pid"] for part in parts if part["workload"] == "web"}
        assert {name: answer["pid"] for name, answer in answers.items()} == web
        drawn = [value for answer in answers.values() for value in answer["drawn"]]
        assert len(set(drawn)) == 60
        zygotes = [name for name in domain.pids() if name.startswith("zygote/")]
        assert len(zygotes) == 3, "what serving needs, its libraries, and the one that is refused"
    finally:
        domain.down()
