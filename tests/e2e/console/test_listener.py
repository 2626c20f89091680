"""The console's listener over the running bank, asked by somebody who is no browser of ours."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from bedstone.console.app import CSRF
from bedstone.console.headers import SECURITY
from bedstone.testing.bank import Bank

pytestmark = pytest.mark.timeout(150)


class Visitor:
    """Somebody with an HTTP client."""

    def __init__(self, bank: Bank, *options: str) -> None:
        link = urlsplit(bank.link(*options))
        self.code = link.fragment.removeprefix("code=")
        self.base = f"http://127.0.0.1:{link.port}"
        self.http = httpx.Client(
            base_url=self.base, headers={"origin": self.base}, trust_env=False, timeout=20
        )

    def sign_in(self) -> None:
        answer = self.http.post("/v1/console/login", json={"code": self.code})
        assert answer.status_code == 200, answer.text
        self.http.headers[CSRF] = answer.json()["csrf"]


@pytest.fixture
def reader(bank: Bank) -> Iterator[Visitor]:
    visitor = Visitor(bank, "--role", "reader")
    visitor.sign_in()
    yield visitor
    visitor.http.close()


@pytest.fixture
def operator(bank: Bank) -> Iterator[Visitor]:
    visitor = Visitor(bank)
    visitor.sign_in()
    yield visitor
    visitor.http.close()


@pytest.fixture
def stranger(bank: Bank) -> Iterator[Visitor]:
    visitor = Visitor(bank)
    yield visitor
    visitor.http.close()


def test_a_stranger_gets_pages_and_no_data(stranger: Visitor) -> None:
    visitor = stranger
    for path in ("/v1/overview", "/v1/status", "/metrics", "/prometheus/api/v1/query?query=up"):
        assert visitor.http.get(path).status_code == 401, path
    assert visitor.http.get("/").headers["content-type"].startswith("text/html")
    assert visitor.http.get("/v1/status", headers={"host": "evil.example"}).status_code == 421
    wrong = visitor.http.post("/v1/console/login", json={"code": "A" * 43})
    assert wrong.status_code == 403
    for answer in (visitor.http.get("/"), visitor.http.get("/v1/status"), wrong):
        for name, value in SECURITY:
            assert answer.headers[name.decode()] == value.decode()


def test_a_reader_sees_and_changes_nothing(reader: Visitor, bank: Bank) -> None:
    assert reader.http.get("/v1/overview").json()["apps"][0]["app"] == "bank"
    before = bank.api("/v1/apps/bank/status")["generation"]
    for method, path, body in (
        ("POST", "/v1/apps/bank/workloads/web/scale", {"replicas": 3}),
        ("POST", "/v1/apps/bank/workloads/web/rollback", {"generation": 1}),
        ("POST", "/v1/apps/bank/workloads/web/restart", None),
        ("POST", "/v1/apps/bank/undo", {"generation": 1}),
        ("POST", "/v1/console/links", {"role": "operator"}),
        ("GET", "/v1/console/sessions", None),
        ("DELETE", "/v1/apps/bank", None),
        ("POST", "/v1/tokens", {"name": "x", "role": "operator"}),
    ):
        answer = reader.http.request(method, path, json=body)
        assert answer.status_code == 403, f"{method} {path}: {answer.text}"
        assert "has the role reader, expected operator" in answer.json()["message"]
    assert bank.api("/v1/apps/bank/status")["generation"] == before


def test_what_an_operator_does_is_done_and_audited(operator: Visitor, bank: Bank) -> None:
    path = "/v1/apps/bank/workloads/web"
    scaled = operator.http.post(f"{path}/scale", json={"replicas": 2})
    assert scaled.status_code == 200, scaled.text
    try:
        bank.domain.wait(lambda: bank.api(path)["ready"] == 2, 30, "it is not scaled")
        assert bank.api(path)["declared"] == 1
        assert "web is scaled to 2" in bank.domain.ok("ps")
    finally:
        bank.domain.ok("scale", "web", "1", "--wait")
    newest = bank.api("/v1/changes?limit=2")["items"]
    assert [(c["action"], c["target"]) for c in newest] == [("scale", "bank/web")] * 2
    assert newest[1]["who"].startswith("console:")
    assert newest[0]["who"].startswith("local:")


def test_a_change_is_rolled_back_and_an_undo_undone(operator: Visitor, bank: Bank) -> None:
    """As declared, all three times; the manifest's file is not touched."""
    manifest = bank.domain.directory / "bedstone.yaml"
    before = manifest.read_text().replace("port: 8080", f"port: {bank.domain.port}")
    changed = before.replace(
        "command: [python, risk.py]", "command: [python, risk.py]\n    env: {NOTE: two}"
    )
    assert changed != before

    def declared() -> list[str]:
        (entry,) = (
            each
            for each in operator.http.get("/v1/resources/workload").json()["items"]
            if each["name"] == "bank/risk"
        )
        return list(entry["value"].get("env") or {})

    manifest.write_text(before)
    bank.domain.ok("apply", "-f", str(manifest), "--wait")
    manifest.write_text(changed)
    bank.domain.ok("apply", "-f", str(manifest))
    assert declared() == ["NOTE"]
    rolled = operator.http.post("/v1/apps/bank/workloads/risk/rollback", json={})
    assert rolled.status_code == 200, rolled.text
    assert any("`bedstone up`" in note for note in rolled.json()["notes"])
    assert declared() == []
    undone = bank.domain.ok("undo", str(rolled.json()["generation"]))
    assert "source files were not changed" in undone
    assert declared() == ["NOTE"]
    assert manifest.read_text() == changed
    shown = bank.domain.ok("changes", "--limit", "2")
    assert "undo app bank before generation" in shown
    assert "env.NOTE added" in shown
    assert "env.NOTE removed" in shown
    manifest.write_text(before)
    bank.domain.ok("apply", "-f", str(manifest), "--wait")


def test_another_origin_and_a_missing_token_change_nothing(operator: Visitor) -> None:
    for headers in ({"origin": "http://localhost:8080"}, {CSRF: ""}, {"sec-fetch-site": "none"}):
        answer = operator.http.post(
            "/v1/apps/bank/workloads/web/scale", json={"replicas": 9}, headers=headers
        )
        assert answer.status_code == 403, headers


def test_a_session_outlives_the_server(operator: Visitor, bank: Bank) -> None:
    bank.kill("server")

    def back() -> bool:
        try:
            return operator.http.get("/v1/console/session").status_code == 200
        except httpx.TransportError:
            return False

    bank.domain.wait(back, 30, "the session is lost")
    assert operator.http.get("/v1/overview").status_code == 200


def test_it_listens_on_one_address(bank: Bank) -> None:
    port = urlsplit(bank.link()).port
    assert port is not None
    with socket.socket() as other:
        other.settimeout(2)
        with pytest.raises(ConnectionRefusedError):
            other.connect(("127.0.0.2", port))  # answered if it listened on every address
