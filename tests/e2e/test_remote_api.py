"""The API over TCP: TLS by the domain's own authority, and nothing without a credential."""

from __future__ import annotations

import os
import queue
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from bedstone.errors import EXIT_STATUS
from bedstone.testing.domain import COMMAND, Domain, free_port

pytestmark = pytest.mark.timeout(150)

MANIFEST = """
app: echo
gateway: {port: 8080, routes: [{path: /, to: web}]}
workloads:
  web: {run: web:app, replicas: REPLICAS}
"""

WEB = """
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    print("asked for", scope["path"], flush=True)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})
"""


class Remote:
    """Somebody elsewhere: no manifest, no state, only a URL, a CA certificate and a token."""

    def __init__(self, domain: Domain, port: int, folder: Path) -> None:
        self.url = f"https://127.0.0.1:{port}"
        self.domain = domain
        self.folder = folder
        self.ca = folder / "ca.pem"
        self.ca.write_bytes((domain.state / "authority" / "root.pem").read_bytes())
        self.tokens = {
            name: domain.ok("token", "create", name, "--role", role).strip()
            for name, role in (("rita", "reader"), ("otto", "operator"))
        }

    def environment(self, who: str | None) -> dict[str, str]:
        base = {k: v for k, v in os.environ.items() if not k.startswith("BEDSTONE_")}
        base |= {"BEDSTONE_URL": self.url, "BEDSTONE_CA": str(self.ca), "NO_COLOR": "1"}
        return base | ({"BEDSTONE_TOKEN": self.tokens[who]} if who else {})

    def run(self, who: str | None, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env=self.environment(who),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def http(self, secret: str | None = None) -> httpx.Client:
        headers = {"authorization": f"Bearer {secret}"} if secret else {}
        context = ssl.create_default_context(cafile=str(self.ca))
        return httpx.Client(base_url=self.url, verify=context, headers=headers, trust_env=False)


@pytest.fixture(scope="module")
def remote(make_domain: Callable[..., Domain], tmp_path_factory: pytest.TempPathFactory) -> Remote:
    domain = make_domain(manifest=MANIFEST.replace("REPLICAS", "1"))
    (domain.directory / "web.py").write_text(WEB)
    port = free_port()
    domain.up("--api-listen", f"127.0.0.1:{port}")
    return Remote(domain, port, tmp_path_factory.mktemp("elsewhere"))


def test_only_the_domains_own_authority_vouches_for_it(remote: Remote) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{remote.url}/healthz", trust_env=False)
    stranger = remote.environment("otto")
    del stranger["BEDSTONE_CA"]
    done = subprocess.run(
        [*COMMAND, "ps"],
        cwd=remote.folder,
        env=stranger,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == EXIT_STATUS["verification_failed"], done.stderr
    assert "certificate" in done.stderr
    assert "hint: " in done.stderr
    with pytest.raises(httpx.HTTPError):
        httpx.get(remote.url.replace("https", "http"), trust_env=False)


def test_without_a_credential_only_liveness_is_served(remote: Remote) -> None:
    for secret in (None, "wrong", "", remote.tokens["rita"][:-1]):
        with remote.http(secret) as http:
            assert http.get("/healthz").status_code == 200
            for method, path in (
                ("GET", "/v1/status"),
                ("GET", "/v1/audit"),
                ("GET", "/v1/tokens"),
                ("GET", "/v1/resources/app"),
                ("GET", "/v1/apps/echo"),
                ("GET", "/openapi.json"),
                ("GET", "/docs"),
                ("GET", "/"),
                ("GET", "/v1/nothing"),
                ("POST", "/v1/apply"),
                ("POST", "/v1/tokens"),
                ("POST", "/v1/nodes/local/join"),
                ("DELETE", "/v1/apps/echo"),
            ):
                refused = http.request(method, path)
                assert refused.status_code in (401, 403), f"{method} {path}: {refused.text}"
    done = remote.run(None, "ps")
    assert done.returncode == EXIT_STATUS["denied"], done.stderr
    assert "hint: " in done.stderr


@pytest.mark.parametrize("forged", ["[local:0]", "local:0", "[local:0]:1", "127.0.0.1, [local:0]"])
def test_nobody_becomes_local_by_a_header(remote: Remote, forged: str) -> None:
    with remote.http() as http:
        refused = http.get("/v1/tokens", headers={"x-forwarded-for": forged})
        assert refused.status_code == 401, refused.text


def test_a_reader_sees_and_changes_nothing(remote: Remote) -> None:
    shown = remote.run("rita", "ps")
    assert shown.returncode == 0, shown.stderr
    assert "web-" in shown.stdout
    assert remote.run("rita", "get", "workload").returncode == 0
    assert remote.run("rita", "logs", "web", "--tail", "1").returncode == 0
    (remote.folder / "other.yaml").write_text(MANIFEST.replace("REPLICAS", "3"))
    (remote.folder / "web.py").write_text(WEB)
    for command in (
        ("restart", "web"),
        ("apply", "-f", "other.yaml"),
        ("delete", "app", "echo"),
        ("token", "create", "mallory", "--role", "operator"),
        ("token", "list"),
        ("call", "web/"),
    ):
        done = remote.run("rita", *command)
        assert done.returncode == EXIT_STATUS["denied"], f"{command}: {done.stdout}{done.stderr}"
        assert "has the role reader, expected operator" in done.stderr, done.stderr
    assert [p["name"] for p in remote.domain.parts() if p["kind"] == "instance"].__len__() == 1


def test_an_operator_works_from_elsewhere_and_the_audit_says_who(remote: Remote) -> None:
    called = remote.run("otto", "call", "web/from-afar", "-i")
    assert called.returncode == 0, called.stderr
    assert "HTTP 200" in called.stdout
    assert "hello" in called.stdout
    root = remote.domain.directory
    manifest = root / "bedstone.yaml"
    manifest.write_text(MANIFEST.replace("REPLICAS", "2").replace("8080", str(remote.domain.port)))
    applied = remote.run("otto", "apply", "-f", str(manifest), "--wait")
    assert applied.returncode == 0, applied.stderr
    assert "replicas: 1 → 2" in applied.stdout
    assert len([p for p in remote.domain.parts() if p["kind"] == "instance"]) == 2
    remote.domain.ok("restart", "web", "--wait")
    with remote.http(remote.tokens["otto"]) as http:
        records = http.get("/v1/audit").json()
    records = records["items"] if isinstance(records, dict) else records
    seen = {(record["who"], record["action"]) for record in records}
    assert ("token:otto", "apply") in seen
    assert any(who.startswith("local:") for who, _ in seen), seen
    assert not any(secret in str(records) for secret in remote.tokens.values())
    assert all(record["time"] > 1e9 for record in records if "time" in record)


def test_logs_are_followed_from_elsewhere(remote: Remote) -> None:
    following = subprocess.Popen(
        [*COMMAND, "logs", "web", "-f"],
        cwd=remote.folder,
        env=remote.environment("rita"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert following.stdout is not None
    lines: queue.Queue[str] = queue.Queue()
    output = following.stdout

    def read() -> None:
        for line in output:
            lines.put(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        httpx.get(f"{remote.domain.url}/a-new-one", trust_env=False)
        while "asked for /a-new-one" not in lines.get(timeout=10):
            pass
        assert following.poll() is None
    finally:
        following.terminate()
        following.wait(10)
        reader.join(5)
        output.close()


def test_a_revoked_token_is_refused_at_once(remote: Remote) -> None:
    secret = remote.domain.ok("token", "create", "gone").strip()
    with remote.http(secret) as http:
        assert http.get("/v1/status").status_code == 200
        remote.domain.ok("token", "delete", "gone")
        assert http.get("/v1/status").status_code in (401, 403)
    assert "gone" not in remote.domain.ok("token", "list")


def test_secrets_are_nowhere_on_disk(remote: Remote) -> None:
    files = [path for path in remote.domain.state.rglob("*") if path.is_file()]
    assert files
    for secret in remote.tokens.values():
        assert [str(p) for p in files if secret.encode() in p.read_bytes()] == []


def test_an_address_that_cannot_be_listened_on_is_told(
    make_domain: Callable[..., Domain],
) -> None:
    domain = make_domain(manifest=MANIFEST.replace("REPLICAS", "1"))
    (domain.directory / "web.py").write_text(WEB)
    done = domain.run("up", "--detach", "--api-listen", "nonsense")
    assert done.returncode == EXIT_STATUS["invalid"], done.stderr
    assert "expected HOST:PORT" in done.stderr
