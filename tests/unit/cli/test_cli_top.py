"""`bedstone top`: what one second looks like, and how the command ends."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click import unstyle as plain

from bedstone.cli.terminal import clean
from bedstone.cli.top_view import duration, headline, number, ordered, share, size, view
from bedstone.model.monitoring import (
    AppLine,
    Finding,
    NodeLine,
    Overview,
    Signals,
    Tick,
    WorkloadLine,
    WorkloadList,
)
from bedstone.testing.api import Answer, FakeApi

Command = Callable[..., Any]
SECOND = 1_800_000_000
WEB = WorkloadLine(
    app="bank",
    name="web",
    health="error",
    reason="half of its answers are failures",
    declared=2,
    wanted=2,
    ready=2,
    restarts=3,
    signals=Signals(rate=1234.5, errors=0.5, p50=0.0021, p99=1.25, cpu=0.4, memory=52 << 20),
)
IDLE = WorkloadLine(app="bank", name="idle", health="ok", declared=1, wanted=1, ready=1)
OVERVIEW = Overview(
    domain="bank.internal",
    second=SECOND,
    complete=True,
    apps=(AppLine(app="bank", health="error", generation=1, ready=3, wanted=3),),
    nodes=(
        NodeLine(
            node="local",
            health="ok",
            instances=3,
            cores=2,
            cpu=0.75,
            memory=3 << 30,
            memory_total=4 << 30,
        ),
    ),
    findings=(
        Finding(severity="error", app="bank", subject="web", message="many failures", hint="look"),
    ),
)


def test_one_second_says_everything_of_each_workload() -> None:
    lines = [plain(line) for line in view(OVERVIEW, (WEB, IDLE))]
    assert lines[0].startswith("bank.internal  ")
    assert lines[0].endswith("  complete")
    assert lines[2].split() == [
        *("WORKLOAD", "STATE", "READY", "RATE/S", "ERRORS", "P50", "P99"),
        *("CPU", "MEMORY", "RESTARTS"),
    ]
    assert lines[3].split() == ["idle", "ok", "1/1", *["-"] * 6, "0"]
    assert lines[4].split() == [
        *("web", "error", "2/2", "1234", "50%", "2.1ms", "1.25s", "0.40", "52MiB", "3"),
    ]
    assert lines[7].split() == ["local", "ok", "3", "0.75/2", "3GiB/4GiB"]
    assert lines[9] == "web error: half of its answers are failures"
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "error: bank/web: many failures; look"


def test_what_is_missing_in_a_second_is_said() -> None:
    missing = {f"n{i}/envoy": "no answer\x1b[2J" for i in range(5)}
    line = headline(OVERVIEW.model_copy(update={"complete": False, "missing": missing}))
    assert plain(line).endswith(
        "incomplete: n0/envoy (no answer[2J), n1/envoy (no answer[2J), n2/envoy (no answer[2J), "
        "and 2 more"
    )
    nothing = OVERVIEW.model_copy(update={"second": 0, "complete": False})
    assert "nothing collected yet" in headline(nothing)


def test_workloads_are_sorted_with_the_most_first() -> None:
    assert [line.name for line in ordered((WEB, IDLE), "name")] == ["idle", "web"]
    for order in ("rate", "errors", "p99", "cpu", "memory"):
        assert [line.name for line in ordered((IDLE, WEB), order)] == ["web", "idle"]


@pytest.mark.parametrize(
    ("shown", "value", "text"),
    [
        (number, 0.0, "0"),
        (number, 0.25, "0.25"),
        (number, 99.95, "100"),
        (number, None, "-"),
        (share, 0.0, "0%"),
        (share, 0.00001, "<0.01%"),
        (share, 1.0, "100%"),
        (duration, 0.0004, "0.4ms"),
        (duration, 0.9999, "1s"),
        (size, 0.0, "0B"),
        (size, float(1 << 20), "1MiB"),
        (size, float(1 << 50), "1.05e+06GiB"),
    ],
)
def test_numbers_for_people(
    shown: Callable[[float | None], str], value: float | None, text: str
) -> None:
    assert shown(value) == text


@pytest.fixture
def monitored(server: FakeApi) -> FakeApi:
    """A server with one second of monitoring."""
    server.answers["GET /v1/overview"] = Answer(OVERVIEW)
    server.answers["GET /v1/workloads"] = Answer(WorkloadList(second=SECOND, items=(WEB, IDLE)))
    return server


def test_once_and_into_a_pipe_it_writes_one_second(monitored: FakeApi, command: Command) -> None:
    for arguments in (["top", "--once"], ["top"]):
        ended = command(*arguments)
        assert ended.status == 0
        assert "web" in ended.out


def test_for_programs_it_writes_one_object(monitored: FakeApi, command: Command) -> None:
    ended = command("top", "--once", "-o", "json")
    value = json.loads(ended.out)
    assert value["overview"]["second"] == SECOND
    assert [line["name"] for line in value["workloads"]] == ["web", "idle"]


def test_on_a_terminal_it_shows_each_second_until_q_and_leaves_it_as_it_was(
    monitored: FakeApi, app: Path
) -> None:
    ticks = [Tick(second=SECOND + i, complete=True) for i in range(3)]
    monitored.answers["GET /v1/ticks"] = Answer(ticks, stream=True, hold=True)
    main, other = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "from bedstone.cli.main import main; main()", "top"],
        cwd=app,
        stdin=other,
        stdout=other,
        stderr=other,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "30"},
    )
    os.close(other)
    seen = b""
    deadline = time.monotonic() + 20
    pressed = False
    while time.monotonic() < deadline:
        ready, _, _ = select.select([main], [], [], 0.2)
        if ready:
            try:
                seen += os.read(main, 65536)
            except OSError:  # its end of the terminal is closed
                break
        if b"many failures" in seen and not pressed:
            os.write(main, b"sq")
            pressed = True
    assert process.wait(timeout=10) == 0, seen
    os.close(main)
    text = seen.decode()
    assert "\x1b[?1049h" in text, "it takes a screen of its own"
    assert text.rindex("\x1b[?1049l") > text.rindex("many failures"), "and gives it back"
    assert "q quit   s sort by rate" in clean(text)
