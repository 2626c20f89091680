"""Commands that change: apply, delete, restart and down, against a fake server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bedstone.errors import ConflictError, DeniedError, NotFoundError
from bedstone.model.api import (
    ApplyResult,
    AppStatus,
    Part,
)
from bedstone.model.messages import LogLine
from bedstone.testing.api import Answer, FakeApi, problem
from bedstone.testing.samples import CHANGED, READY

Command = Callable[..., Any]


# Changing.


def test_apply_shows_the_difference(server: FakeApi, app: Path, command: Command) -> None:
    server.answers["PUT /v1/apps/bank"] = Answer(CHANGED)
    server.answers["POST /v1/apps/bank/plan"] = Answer(CHANGED)
    lines = "  ~ workloads.web.replicas: 1 → 2  (starts 1)\n  - workloads.old\n"
    assert command("apply", "-f", "bedstone.yaml").out == (f"{lines}bank: applied (generation 2)\n")
    body = server.asked[-1].body
    assert body["root"] == str(app)
    assert set(body["sources"]) == {"web", "risk"}
    command("apply", "-f", "bedstone.yaml", "--gateway-port", "9000")
    assert server.asked[-1].body["spec"]["gateway"]["port"] == 9000
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
