"""A small app for tests of what goes wrong, and what such tests look at.

`failed` is the rule for every failure: an exit status by kind, a reason, and what to do.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
from pathlib import Path

import httpx

from bedstone.errors import EXIT_STATUS
from bedstone.processes.state import state_id
from bedstone.testing.domain import Domain

MANIFEST = """
app: echo
gateway: {port: PORT, routes: [{path: /, to: web}]}
workloads:
  web: {run: web:app}
"""

WEB = """
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    status = 404 if scope["path"] == "/nowhere" else 200
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})
"""


def write(domain: Domain, manifest: str) -> None:
    """Write the app into a domain's directory."""
    text = manifest.replace("PORT", str(domain.port))
    (domain.directory / "bedstone.yaml").write_text(text)
    (domain.directory / "web.py").write_text(WEB)


def nothing_left(domain: Domain) -> None:
    """No process, socket, mount or control group of the domain's runs."""
    if not domain.state.exists():
        return
    assert domain.everything() == []
    assert not (domain.state / "run.json").exists()
    name = state_id(domain.state)
    assert not list(Path("/run/bedstone").glob(f"{name}*"))
    assert name not in Path("/proc/self/mountinfo").read_text()
    groups = Path("/sys/fs/cgroup")
    assert not [str(g) for g in groups.glob(f"**/*{name}*")], "control groups are left"


def failed(
    done: subprocess.CompletedProcess[str], code: str, *expected: str, hint: str = ""
) -> None:
    """The command failed by kind, said why, and what to do."""
    assert done.returncode == EXIT_STATUS[code], f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr + done.stdout
    for pattern in expected:
        assert re.search(pattern, done.stderr), done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("hint: "), done.stderr
    assert hint in last


def listening(port: int) -> socket.socket:
    """A program that has a port."""
    return socket.create_server(("127.0.0.1", port))


def get(domain: Domain, port: int | None = None) -> int:
    """The status of the app's first page; 0 where nothing answers."""
    try:
        url = f"http://127.0.0.1:{port or domain.port}"
        return httpx.get(url, timeout=5, trust_env=False).status_code
    except httpx.HTTPError:
        return 0


def conditions(domain: Domain) -> list[str]:
    """What the control plane says against the app."""
    status = json.loads(domain.ok("ps", "-o", "json"))["status"]
    return [f"{c['subject']}: {c['message']}" for c in status["apps"][0]["conditions"]]
