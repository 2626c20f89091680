"""Commands that show: ps, logs and get, against a fake server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from bedstone.errors import NotFoundError
from bedstone.model.api import (
    DomainStatus,
    Part,
    ResourceEntry,
    ResourceList,
)
from bedstone.model.messages import LogLine
from bedstone.model.monitoring import TapRecord
from bedstone.model.resources import Condition
from bedstone.model.traces import LogPage, StructuredLine
from bedstone.testing.api import Answer, FakeApi, problem
from bedstone.testing.samples import DOMAIN, READY

Command = Callable[..., Any]


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


def test_logs_of_one_trace_are_found_in_all_workloads(server: FakeApi, command: Command) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    fields = {"event": "paid", "level": "info", "trace_id": trace, "amount": 5}
    line = StructuredLine(
        time=1.0, app="bank", workload="web", instance="web-1", text="paid", fields=fields
    )
    plain = line.model_copy(update={"fields": {}, "text": f"of {trace}", "instance": "risk-1"})
    path = "GET /v1/apps/bank/lines"
    server.answers[path] = Answer(LogPage(items=(line, plain), truncated=True))
    ended = command("logs", "--trace", trace, "--tail", "2")
    assert server.asked[-1].query == {"trace": trace, "limit": "2"}
    assert ended.out == f"web-1 | {json.dumps(fields)}\nrisk-1 | of {trace}\n", "a pipe gets it raw"
    assert "older" in ended.err
    workload = "GET /v1/apps/bank/workloads/web/logs"
    server.answers[workload] = Answer([], stream=True)
    command("logs", "web", "--level", "ERROR", "-f")
    assert server.asked[-1].query == {"follow": "true", "tail": "200", "level": "error"}
    for wrong in (
        ["logs"],
        ["logs", "-f", "--trace", trace],
        ["logs", "engine:envoy", "--trace", "x"],
    ):
        assert command(*wrong).status == 2


def test_lines_are_readable_on_a_terminal(
    server: FakeApi, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Colour is for the level alone, and no field controls the terminal."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    texts = [
        {"time": 1700000000.25, "level": "warn", "msg": "slow\x1b[2J", "ms": 12, "who": "a b"},
        {"severity": "ERROR", "message": "lost", "trace_id": trace, "exception": "Trace:\n  x"},
    ]
    lines = [LogLine(time=1.0, source="web-1", text=json.dumps(text)) for text in texts]
    lines.append(LogLine(time=1.0, source="web-1", text="plain"))
    server.answers["GET /v1/apps/bank/workloads/web/logs"] = Answer(lines, stream=True)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    shown = command("logs", "web").out
    assert [click.unstyle(line) for line in shown.splitlines()] == [
        'web-1 | 22:13:20 warning  slow[2J ms=12 who="a b"',
        "web-1 | error    lost trace=4bf92f35",
        "    Trace:",
        "      x",
        "web-1 | plain",
    ]


def test_a_tap_shows_each_request_once(
    server: FakeApi, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its caller's proxy saw it; what a server says cannot control the terminal."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    seen = TapRecord(
        time=1700000000.25,
        node="local",
        side="gateway",
        app="bank",
        source="gateway",
        target="web",
        method="GET",
        path="/accounts/\x1b[2J",
        status=200,
        seconds=0.0123,
        trace=trace,
    )
    inbound = seen.model_copy(update={"side": "inbound", "path": "/again"})
    failed = seen.model_copy(
        update={"side": "outbound", "source": "web", "target": "", "status": 0, "kind": "reset"}
    )
    lost = seen.model_copy(update={"left_out": 7, "path": "/last"})
    path = "GET /v1/apps/bank/tap"
    records = [seen, inbound, failed, lost]
    server.answers[path] = [Answer(records, stream=True), problem(NotFoundError("it is gone"))]
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    ended = command("tap", "web", "--errors", "--share", "0.5")
    assert server.asked[-1].query == {"workload": "web", "errors": "true", "share": "0.5"}
    assert ended.out.splitlines() == [
        (
            "22:13:20.250  gateway → web             200      12.3 ms  GET /accounts/[2J  "
            f"trace={trace}"
        ),
        (
            "22:13:20.250  web → ?                     —      12.3 ms  GET /accounts/[2J  reset  "
            f"trace={trace}"
        ),
        f"22:13:20.250  gateway → web             200      12.3 ms  GET /last  trace={trace}",
    ]
    assert "7 requests came too fast" in ended.err
    server.answers[path] = [Answer(records, stream=True), problem(NotFoundError("it is gone"))]
    lines = command("tap", "--hops", "-o", "json").out.splitlines()
    assert [json.loads(line)["side"] for line in lines if line.startswith("{")] == [
        "gateway",
        "inbound",
        "outbound",
        "gateway",
    ]


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


def test_a_log_without_a_line_that_fits_is_not_said_to_be_empty(
    server: FakeApi, command: Command
) -> None:
    server.answers["GET /v1/apps/bank/workloads/web/logs"] = Answer([], stream=True)
    assert command("logs", "web", "--trace", "4bf92f35").err == "no line of trace 4bf92f35\n"
    ended = command("logs", "web", "--level", "error", "--since", "1h")
    assert ended.err == "no line since then of level error or above\n"


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
