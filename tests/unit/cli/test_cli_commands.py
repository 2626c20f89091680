"""The commands against a fake server, through the one entry point."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bedstone.model.api import (
    CallResult,
    TokenGrant,
)
from bedstone.testing.api import Answer, FakeApi
from bedstone.testing.samples import CHANGED, DOMAIN, READY

Command = Callable[..., Any]


# Which run is meant.


def test_without_an_app_each_command_says_how_to_begin(empty: Path, command: Command) -> None:
    for words in (["ps"], ["logs", "web"], ["down"], ["restart", "web"], ["get", "app"]):
        ended = command(*words)
        assert ended.status == 3, words
        assert "bedstone init" in ended.err
        assert ended.out == ""


def test_where_nothing_runs_the_hint_is_up(app: Path, command: Command) -> None:
    ended = command("ps")
    message = f"error: nothing runs for {app.name}\nhint: start it with `bedstone up`\n"
    assert (ended.status, ended.err) == (7, message)
    (app / "below").mkdir()
    ended = command("ps", "-C", "below")
    assert ended.status == 7


def test_the_nearest_manifest_upwards_is_meant(
    server: FakeApi, app: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    deep = app / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert command("ps").status == 0


def test_a_server_by_url_needs_no_directory_and_a_bad_one_is_refused(
    empty: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEDSTONE_URL", "http://mesh.example.org")
    ended = command("ps")
    assert ended.status == 2
    assert "https://" in ended.err
    monkeypatch.setenv("BEDSTONE_URL", "http://127.0.0.1:1")
    assert command("ps").status == 7
    assert command("down").status == 3
    (empty / "token").write_text("two tokens\n")
    assert command("ps", "--token-file", "token").status == 2
    assert command("ps", "--token-file", "none").status == 2
    assert command("ps", "-C", ".", "--server", "https://x").status == 2


def test_several_apps_want_a_name(server: FakeApi, app: Path, command: Command) -> None:
    other = READY.model_copy(update={"app": "shop"})
    server.answers["GET /v1/status"] = Answer(DOMAIN.model_copy(update={"apps": (READY, other)}))
    server.answers["POST /v1/apps/shop/workloads/web/restart"] = Answer(CHANGED)
    server.answers["POST /v1/apps/bank/workloads/web/restart"] = Answer(CHANGED)
    assert command("restart", "web", "--app", "shop").status == 0
    assert command("restart", "web").status == 0, "the manifest's own app"
    assert server.asked[-1].path == "/v1/apps/bank/workloads/web/restart"
    (app / "bedstone.yaml").unlink()
    ended = command("restart", "web")
    assert ended.status == 2
    assert "bank, shop" in ended.err


# Calls.


def test_call_sends_what_curl_would(server: FakeApi, app: Path, command: Command) -> None:
    answer = CallResult(
        status=201,
        headers=(("content-type", "application/json"),),
        body=base64.b64encode(b'{"id": 1}').decode(),
    )
    server.answers["POST /v1/apps/bank/workloads/web/call"] = Answer(answer)
    assert command("call", "web").out == '{"id": 1}'
    sent = server.asked[-1].body
    assert (sent["method"], sent["path"], sent["identity"]) == ("GET", "/", "operator")
    (app / "body").write_bytes(b"a=\xff")
    ended = command(
        "call", "web/accounts?x=1", "-d", "@body", "-H", "X-Id: 7", "--as", "risk", "-i"
    )
    assert ended.out == 'HTTP 201 Created\ncontent-type: application/json\n\n{"id": 1}'
    sent = server.asked[-1].body
    assert (sent["method"], sent["path"], sent["identity"]) == ("POST", "/accounts?x=1", "risk")
    assert base64.b64decode(sent["body"]) == b"a=\xff"
    assert ["x-id", "7"] in sent["headers"]
    assert ["content-type", "application/x-www-form-urlencoded"] in sent["headers"]
    command("call", "web", "-d", "{}", "-X", "put")
    sent = server.asked[-1].body
    assert sent["method"] == "PUT"
    assert sent["headers"] == [["content-type", "application/json"]]


def test_a_call_as_json_gives_text_as_text_and_says_what_is_not(
    server: FakeApi, command: Command
) -> None:
    path = "POST /v1/apps/bank/workloads/web/call"
    for body, shown in (
        ("grüße".encode(), {"body": "grüße"}),
        (b"", {"body": ""}),
        (b"\xff\x00", {"body_base64": "/wA="}),
    ):
        server.answers[path] = Answer(CallResult(status=200, body=base64.b64encode(body).decode()))
        found = json.loads(command("call", "web", "-o", "json").out)
        assert found == {"status": 200, "headers": [], **shown}


def test_an_answer_from_400_is_a_negative_one(server: FakeApi, command: Command) -> None:
    denied = CallResult(status=403, body=base64.b64encode(b"RBAC: access denied").decode())
    server.answers["POST /v1/apps/bank/workloads/web/call"] = Answer(denied)
    ended = command("call", "web/", "--as", "risk")
    assert (ended.status, ended.out) == (1, "RBAC: access denied")
    assert ended.err == "HTTP 403 Forbidden\n"


def test_a_malformed_header_or_body_is_refused(server: FakeApi, command: Command) -> None:
    assert command("call", "web", "-H", "nothing").status == 2
    assert command("call", "web", "-H", "a: b\r\nc: d").status == 2
    assert command("call", "web", "-d", "@none").status == 2


# Tokens, manifests, this machine.


def test_tokens(server: FakeApi, command: Command) -> None:
    grant = TokenGrant(name="ada", role="operator", secret="bst_x")
    server.answers["POST /v1/tokens"] = Answer(grant)
    server.answers["GET /v1/tokens"] = Answer([grant.model_copy(update={"secret": None})])
    server.answers["DELETE /v1/tokens/ada"] = Answer({"deleted": "ada"})
    made = command("token", "create", "ada", "--role", "operator")
    assert made.out == "bst_x\n", "so that > FILE keeps the secret and nothing else"
    assert "bst_x" not in made.err
    assert command("token", "list").out == "NAME  ROLE\nada   operator\n"
    assert json.loads(command("token", "list", "-o", "json").out) == [
        {"name": "ada", "role": "operator"}
    ]
    assert command("token", "delete", "ada").status == 0
    assert command("token", "create", "Not A Name").status == 2


def test_init_writes_a_manifest_that_is_valid_and_keeps_what_is_there(
    empty: Path, command: Command
) -> None:
    ended = command("init", "my shop")
    assert ended.status == 0, ended.err
    from bedstone.model.manifest import load_manifest

    assert load_manifest(empty / "my shop").spec.app == "my-shop"
    before = (empty / "my shop" / "bedstone.yaml").read_text()
    ended = command("init", "my shop")
    assert ended.status == 4
    assert (empty / "my shop" / "bedstone.yaml").read_text() == before
    (empty / "file").write_text("")
    assert command("init", "file/below").status == 7


def test_schema_is_json(command: Command) -> None:
    assert json.loads(command("schema").out)["type"] == "object"


def test_doctor_looks_at_this_machine(empty: Path, command: Command) -> None:
    ended = command("doctor")
    assert ended.out.startswith("RESULT")
    for check in ("python", "envoy", "postgresql", "disk"):
        assert check in ended.out
    found = json.loads(command("doctor", "-o", "json").out)
    assert all(check["fix"] for check in found if check["result"] != "ok")


def test_doctor_has_a_fix_for_what_fails(
    empty: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bedstone.engines.doctor._SPACE", 1 << 62)
    ended = command("doctor")
    assert ended.status == 1
    assert "fail: disk: free at least" in ended.out


def test_doctor_claims_enforced_identities_only_where_up_would_enforce_them(
    empty: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bedstone.engines.doctor.can_mount", lambda: True)
    monkeypatch.setattr("bedstone.sandbox.interpreter.obstacle", lambda path: None)
    assert "identities are enforced" in command("doctor").out
    monkeypatch.setattr("bedstone.sandbox.interpreter.obstacle", lambda path: "/root")
    ended = command("doctor")
    assert "root, but /root is not open to others: identities are not enforced" in ended.out
    assert "warn: privileges: use a Python interpreter that is not below /root" in ended.out
    assert "not open to others: instances that declare warm start cold" in ended.out


def test_a_command_that_does_not_exist_names_the_nearest(command: Command) -> None:
    ended = command("pss")
    assert ended.status == 2
    assert "did you mean 'ps'?" in ended.err
