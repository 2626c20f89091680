"""The commands against a fake server, through the one entry point."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bedstone.errors import ConflictError, DeniedError, NotFoundError
from bedstone.model.api import (
    ApplyResult,
    AppStatus,
    CallResult,
    Change,
    DomainStatus,
    Part,
    ResourceEntry,
    ResourceList,
    TokenGrant,
)
from bedstone.model.messages import LogLine
from bedstone.model.resources import Condition
from bedstone.testing.api import Answer, FakeApi, problem

Command = Callable[..., Any]

READY = AppStatus(
    app="bank",
    generation=2,
    ready=True,
    gateway="http://localhost:8080",
    parts=(
        Part(kind="proxy", name="local", state="ready", pid=11),
        Part(kind="instance", name="web-1-0", state="ready", workload="web", revision="1", pid=12),
    ),
)
DOMAIN = DomainStatus(domain="d", version="0.1.0", started_at=1.0, complete=True, apps=(READY,))
CHANGED = ApplyResult(
    app="bank",
    generation=2,
    changes=(
        Change(op="~", subject="workloads.web.replicas", before="1", after="2", effect="starts 1"),
        Change(op="-", subject="workloads.old"),
    ),
)


@pytest.fixture
def server(running: FakeApi) -> FakeApi:
    running.answers["GET /v1/status"] = Answer(DOMAIN)
    return running


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


# Showing.


def test_ps_is_a_table_or_json(server: FakeApi, command: Command) -> None:
    ended = command("ps")
    assert ended.status == 0
    assert "web-1-0" in ended.out
    assert "\x1b" not in ended.out
    parsed = json.loads(command("ps", "-o", "json").out)
    assert DomainStatus.model_validate(parsed["status"]) == DOMAIN


def test_a_person_who_waits_is_told_for_what(server: FakeApi, app: Path) -> None:
    """On a terminal only, on standard error, and gone before the answer."""
    server.answers["GET /v1/status"] = Answer(DOMAIN, delay=0.5)
    code = "from bedstone.cli.main import main; main(['ps', '-o', 'json'])"
    master, slave = os.openpty()
    try:
        words = [sys.executable, "-c", code]
        env = {**os.environ, "TERM": "xterm"}
        ended = subprocess.run(
            words, stdout=subprocess.PIPE, stderr=slave, env=env, check=True, timeout=30
        )
        assert os.read(master, 4096).decode() == "asking the server …\r\x1b[K"
    finally:
        os.close(master)
        os.close(slave)
    assert json.loads(ended.stdout)["status"]["domain"] == "d"
    plain = subprocess.run(words, capture_output=True, check=True, timeout=30)
    assert plain.stderr == b""


def test_ps_says_what_it_does_not_know(server: FakeApi, command: Command) -> None:
    trouble = Condition(app="bank", subject="gateway", message="port taken", hint="free it")
    app = READY.model_copy(update={"conditions": (trouble,), "ready": False})
    partial = DOMAIN.model_copy(update={"complete": False, "apps": (app,)})
    server.answers["GET /v1/status"] = Answer(partial)
    out = command("ps").out
    assert "incomplete" in out
    assert "error: gateway: port taken; free it" in out


def test_what_a_server_says_cannot_control_the_terminal(server: FakeApi, command: Command) -> None:
    part = Part(kind="proxy", name="local", state="failed", detail="\x1b]0;owned\x07")
    app = READY.model_copy(update={"parts": (part,)})
    server.answers["GET /v1/status"] = Answer(DOMAIN.model_copy(update={"apps": (app,)}))
    assert "\x1b" not in command("ps").out


def test_logs_show_source_and_text(server: FakeApi, command: Command) -> None:
    line = LogLine(time=1700000000.25, source="web-1-0", text="hello\x1b[2J")
    path = "GET /v1/apps/bank/workloads/web/logs"
    server.answers[path] = Answer([line, line], stream=True)
    assert command("logs", "web").out == "web-1-0 | hello[2J\n" * 2
    assert server.asked[-1].query == {"tail": "200"}
    stamped = command("logs", "web", "-t", "--tail", "1").out.splitlines()[0]
    assert stamped == "2023-11-14T22:13:20.250Z web-1-0 | hello[2J"
    as_json = command("logs", "web", "-o", "json", "--since", "5m").out.splitlines()
    assert json.loads(as_json[0])["text"] == line.text
    since = float(server.asked[-1].query["since"])
    assert abs(time.time() - 300 - since) < 60
    server.answers["GET /v1/engines/envoy/logs"] = Answer([line], stream=True)
    assert command("logs", "engine:envoy", "-f").status == 0
    assert server.asked[-1].query == {"follow": "true", "tail": "200"}


def test_logs_of_our_own_need_no_server(app: Path, command: Command) -> None:
    assert command("logs", "engine:server").status == 3
    logs = app / ".bedstone" / "logs"
    logs.mkdir(parents=True)
    (logs / "server.log").write_text("one\ntwo\nthree\n")
    assert command("logs", "engine:server", "--tail", "2").out == "two\nthree\n"
    as_json = command("logs", "engine:server", "--tail", "1", "-o", "json").out
    assert json.loads(as_json) == {"source": "server", "text": "three"}


def test_logs_of_our_own_begin_where_since_says(app: Path, command: Command) -> None:
    logs = app / ".bedstone" / "logs"
    logs.mkdir(parents=True)
    now = time.time()
    old, new = ({"time": now - ago, "event": f"{ago} s ago"} for ago in (600, 60))
    (logs / "server.log").write_text(f"{json.dumps(old)}\n{json.dumps(new)}\nTraceback\n")
    ended = command("logs", "engine:server", "--since", "5m")
    assert ended.out == f"{json.dumps(new)}\nTraceback\n"
    stamps = [
        time.strftime("%Y-%m-%d %H:%M:%S,250", time.localtime(now - ago)) for ago in (600, 60)
    ]
    (logs / "node.log").write_text("".join(f"{stamp} INFO {stamp}\n" for stamp in stamps))
    ended = command("logs", "engine:node", "--since", "5m")
    assert ended.out == f"{stamps[1]} INFO {stamps[1]}\n"
    ended = command("logs", "engine:node", "--since", "1s")
    assert (ended.status, ended.out, ended.err) == (0, "", "nothing written since then\n")


def test_a_log_without_a_line_is_said_to_be_empty(
    server: FakeApi, app: Path, command: Command
) -> None:
    server.answers["GET /v1/apps/bank/workloads/web/logs"] = Answer([], stream=True)
    ended = command("logs", "web")
    assert (ended.status, ended.out, ended.err) == (0, "", "nothing written yet\n")
    assert command("logs", "web", "-o", "json").out == "", "nothing but records"
    (app / ".bedstone" / "logs").mkdir()
    (app / ".bedstone" / "logs" / "supervisor.log").touch()
    assert command("logs", "engine:supervisor").err == "nothing written yet\n"


def test_followed_logs_go_on_after_the_servers_restart(server: FakeApi, command: Command) -> None:
    lines = [LogLine(time=float(at), source="web-1-0", text=f"line {at}") for at in (1, 2)]
    server.answers["GET /v1/apps/bank/workloads/web/logs"] = [
        Answer(lines[:1], stream=True, cut=True),
        Answer(lines[1:], stream=True),
    ]
    assert command("logs", "web", "-f").out == "web-1-0 | line 1\nweb-1-0 | line 2\n"
    assert server.asked[-1].query == {"follow": "true", "since": "1.001"}


@pytest.mark.parametrize("since", ["yesterday", "5 m", "-3s", "5w", ""])
def test_a_duration_that_is_none_is_a_usage_error(
    server: FakeApi, since: str, command: Command
) -> None:
    ended = command("logs", "web", "--since", since)
    assert ended.status == 2
    assert "5m" in ended.err


def test_get_lists_and_shows(server: FakeApi, command: Command) -> None:
    value = {"name": "bank", "generation": 3, "deleting": False, "root": ""}
    entry = ResourceEntry(kind="app", name="bank", revision=7, value=value)
    server.answers["GET /v1/resources/app"] = Answer(ResourceList(revision=9, items=(entry,)))
    server.answers["GET /v1/resources/app/bank"] = Answer(entry)
    assert command("get", "app").out == (
        "NAME  VERSION  GENERATION  ROOT  DELETING\nbank  7        3           -     no\n"
    )
    assert command("get", "app", "bank").out.startswith("# app bank, version 7\nname: bank\n")
    assert json.loads(command("get", "app", "bank", "-o", "json").out)["value"] == value
    assert json.loads(command("get", "app", "-o", "json").out)["revision"] == 9
    server.answers["GET /v1/resources/node"] = Answer(ResourceList(revision=9, items=()))
    ended = command("get", "node")
    assert (ended.status, ended.out, ended.err) == (0, "", "there is no node\n")
    assert command("get", "planet").status == 2
    assert command("get", "app", "none").status == 3


def test_get_shows_the_phase_that_the_node_reports(server: FakeApi, command: Command) -> None:
    value = {"node": "local", "revision": "web-1", "desired": "running"}
    ready = value | {"status": {"phase": "ready"}}
    items = tuple(
        ResourceEntry(kind="instance", name=name, revision=7, value=held)
        for name, held in (("bank/a", ready), ("bank/b", value))
    )
    server.answers["GET /v1/resources/instance"] = Answer(ResourceList(revision=9, items=items))
    assert [line.split() for line in command("get", "instance").out.splitlines()] == [
        ["NAME", "VERSION", "NODE", "REVISION", "DESIRED", "PHASE"],
        ["bank/a", "7", "local", "web-1", "running", "ready"],
        ["bank/b", "7", "local", "web-1", "running", "-"],
    ]


# Changing.


def test_apply_shows_the_difference(server: FakeApi, app: Path, command: Command) -> None:
    server.answers["PUT /v1/apps/bank"] = Answer(CHANGED)
    server.answers["POST /v1/apps/bank/plan"] = Answer(CHANGED)
    lines = "  ~ workloads.web.replicas: 1 → 2  (starts 1)\n  - workloads.old\n"
    assert command("apply", "-f", "bedstone.yaml").out == (f"{lines}bank: applied (generation 2)\n")
    body = server.asked[-1].body
    assert body["root"] == str(app)
    assert set(body["sources"]) == {"web", "risk"}
    ended = command("apply", "-f", "bedstone.yaml", "--dry-run")
    assert "nothing was changed" in ended.out
    assert server.asked[-1].method == "POST"
    parsed = json.loads(command("apply", "-f", "bedstone.yaml", "-o", "json").out)
    assert ApplyResult.model_validate(parsed) == CHANGED
    server.answers["PUT /v1/apps/bank"] = Answer(ApplyResult(app="bank", generation=2))
    assert "nothing to change" in command("apply", "-f", "bedstone.yaml").out


def test_a_refused_apply_exits_by_its_kind(server: FakeApi, app: Path, command: Command) -> None:
    server.answers["PUT /v1/apps/bank"] = problem(ConflictError("bank is being deleted"))
    assert command("apply", "-f", "bedstone.yaml").status == 4
    server.answers["PUT /v1/apps/bank"] = problem(DeniedError("a reader may not apply"))
    assert command("apply", "-f", "bedstone.yaml").status == 5
    assert command("apply", "-f", "none.yaml").status == 3
    asked = len(server.asked)
    (app / "bedstone.yaml").write_text("app: bank\nworkload: {}\n")
    ended = command("apply", "-f", "bedstone.yaml")
    assert ended.status == 2
    assert "error: bedstone.yaml:2:1: " in ended.err
    assert "Traceback" not in ended.err
    assert len(server.asked) == asked, "nothing is asked of the server"


def test_apply_waits_until_ready(server: FakeApi, command: Command) -> None:
    server.answers["PUT /v1/apps/bank"] = Answer(CHANGED)
    older = READY.model_copy(update={"generation": 1})
    starting = READY.model_copy(update={"ready": False, "waiting_for": ("route /",), "parts": ()})
    lines = [older, starting, READY]
    server.answers["GET /v1/apps/bank/watch"] = Answer(lines, stream=True, hold=True)
    ended = command("apply", "-f", "bedstone.yaml", "--wait", "--timeout", "10")
    assert ended.status == 0, ended.err
    assert ended.out.endswith("bank is ready\n")


def test_a_wait_ends_in_time_and_says_what_it_waits_for(server: FakeApi, command: Command) -> None:
    part = Part(
        kind="instance",
        name="web-1-0",
        state="starting",
        detail="GET /healthz: 500",
        workload="web",
    )
    late = READY.model_copy(
        update={"ready": False, "waiting_for": ("instance web-1-0",), "parts": (part,)}
    )
    server.answers["PUT /v1/apps/bank"] = Answer(CHANGED)
    server.answers["GET /v1/apps/bank/watch"] = Answer([late], stream=True, hold=True)
    line = LogLine(time=1.0, source="web-1-0", text="no database")
    server.answers["GET /v1/apps/bank/workloads/web/logs"] = Answer([line], stream=True)
    ended = command("apply", "-f", "bedstone.yaml", "--wait", "--timeout", "0.5")
    assert ended.status == 7
    assert "instance web-1-0 (starting: GET /healthz: 500)" in ended.err
    assert "web-1-0 | no database" in ended.err
    assert "bedstone logs web" in ended.err


def test_a_wait_ends_at_once_where_a_part_has_failed(server: FakeApi, command: Command) -> None:
    part = Part(kind="instance", name="web-1-0", state="failed", detail="prepare: exit status 1")
    failed = READY.model_copy(
        update={"ready": False, "waiting_for": ("instance web-1-0",), "parts": (part,)}
    )
    server.answers["PUT /v1/apps/bank"] = Answer(CHANGED)
    server.answers["GET /v1/apps/bank/watch"] = Answer([failed], stream=True, hold=True)
    began = time.monotonic()
    ended = command("apply", "-f", "bedstone.yaml", "--wait", "--timeout", "60")
    assert ended.status == 7
    assert "prepare: exit status 1" in ended.err
    assert time.monotonic() - began < 40, "it does not wait for all of its time"


def test_a_wait_survives_the_servers_restart(server: FakeApi, command: Command) -> None:
    server.answers["PUT /v1/apps/bank"] = Answer(CHANGED)
    starting = READY.model_copy(update={"ready": False, "waiting_for": ("route /",)})
    server.answers["GET /v1/apps/bank/watch"] = [
        Answer([starting], stream=True, cut=True),
        Answer([READY], stream=True, hold=True),
    ]
    assert command("apply", "-f", "bedstone.yaml", "--wait", "--timeout", "10").status == 0


def test_delete_an_app_or_an_instance(server: FakeApi, command: Command) -> None:
    server.answers["DELETE /v1/apps/bank"] = Answer(CHANGED)
    server.answers["DELETE /v1/resources/instance/bank/default/web/web-1-0"] = Answer(CHANGED)
    assert command("delete", "app", "bank").out.endswith("app bank: deleted\n")
    assert command("delete", "instance", "bank/default/web/web-1-0").status == 0
    assert command("delete", "instance", "bank/none").status == 3


def test_restart(server: FakeApi, command: Command) -> None:
    server.answers["POST /v1/apps/bank/workloads/web/restart"] = Answer(CHANGED)
    assert command("restart", "web").out == "web is being restarted\n"
    path = "POST /v1/apps/bank/workloads/wep/restart"
    server.answers[path] = problem(NotFoundError("app bank has no workload wep"))
    assert command("restart", "wep").status == 3


def test_restart_waits_for_its_workload_only_and_shows_what_changes(
    server: FakeApi, command: Command
) -> None:
    """Another workload of the app is in trouble all the time."""

    def part(name: str, state: str, *, current: bool = True) -> Part:
        workload = name.partition("-")[0]
        return Part(kind="instance", name=name, state=state, workload=workload, current=current)

    def status(generation: int, *parts: Part) -> AppStatus:
        broken = part("risk-1-0", "failed")
        waiting = tuple(f"instance {p.name}" for p in (broken, *parts) if p.state != "ready")
        update = {"ready": False, "generation": generation, "waiting_for": waiting}
        return READY.model_copy(update={**update, "parts": (broken, *parts)})

    steps = [
        status(2, part("web-1-0", "ready")),
        status(3, part("web-1-0", "ready", current=False)),
        status(3, part("web-1-0", "draining", current=False), part("web-2-0", "ready")),
        status(3, part("web-2-0", "ready")),
    ]
    server.answers["GET /v1/apps/bank/status"] = Answer(steps[0])
    restarted = CHANGED.model_copy(update={"generation": 3})
    server.answers["POST /v1/apps/bank/workloads/web/restart"] = Answer(restarted)
    server.answers["GET /v1/apps/bank/watch"] = Answer(steps, stream=True, hold=True)
    ended = command("restart", "web", "--wait", "--timeout", "10")
    assert ended.status == 0, ended.err
    shown = [line.split()[-2:] for line in ended.out.splitlines()[1:]]
    assert shown == [
        ["web-1-0", "draining"],
        ["web-2-0", "ready"],
        ["web-1-0", "stopped"],
        ["is", "ready"],
    ]
    assert ended.out.endswith("\nweb is ready\n")


# The end.


def test_down_where_nothing_runs_says_so(app: Path, command: Command) -> None:
    assert command("down").out == f"nothing runs for {app.name}\n"
    (app / ".bedstone").mkdir()
    (app / ".bedstone" / "store.sqlite").touch()
    ended = command("down")
    assert (ended.status, ended.out) == (0, f"nothing runs for {app.name}\n")
    assert (app / ".bedstone" / "store.sqlite").exists(), "data stays"


def test_down_takes_its_directory_as_other_commands_do(app: Path, command: Command) -> None:
    (app / "below").mkdir()
    (app / "below" / "bedstone.yaml").write_text("app: below\n")
    assert command("down", "-C", "below").out == "nothing runs for below\n"
    assert command("down", "-C", "none").status == 3
    assert command("down", "below", "-C", "below").status == 2


def test_purge_asks_and_deletes_nothing_that_was_not_named(app: Path, command: Command) -> None:
    (app / ".bedstone").mkdir()
    (app / "below").mkdir()
    ended = command("down", "--purge")
    assert ended.status == 2
    assert "--yes" in ended.err
    assert command("down", "below", "--purge", "--yes").status == 3
    assert (app / ".bedstone").exists()
    ended = command("down", "--purge", "--yes")
    assert ended.status == 0, ended.err
    assert not (app / ".bedstone").exists()
    assert (app / "bedstone.yaml").exists()


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


def test_a_command_that_does_not_exist_names_the_nearest(command: Command) -> None:
    ended = command("pss")
    assert ended.status == 2
    assert "did you mean 'ps'?" in ended.err
