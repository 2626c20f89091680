"""What is said of a process that its memory limit ended."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from bedstone.processes.cgroups import ControlGroups, Membership
from bedstone.processes.spec import Limits, ProcessInfo, ProcessSpec
from bedstone.processes.table import Process, ProcessTable

EVENTS = "low 0\nhigh 0\nmax 12\noom 1\noom_kill {}\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        ("memory.events", EVENTS.format(1), True),
        ("memory.events", EVENTS.format(0), False),
        ("memory.oom_control", CONTROL.format(2), True),
        ("memory.oom_control", CONTROL.format(0), False),
        ("memory.oom_control", "oom_kill\n", None),
        ("other", "", None),
    ],
)
def test_both_versions_of_control_groups_tell(
    tmp_path: Path, *, file: str, text: str, found: bool | None
) -> None:
    (tmp_path / file).write_text(text)
    groups = ControlGroups("k", tmp_path, "")
    assert groups.out_of_memory(Membership((tmp_path,))) is found


@pytest.mark.parametrize(
    ("text", "memory_limited", "ending"),
    [
        (EVENTS.format(1), True, "killed by SIGKILL: it used more than its memory limit of 64 MiB"),
        (EVENTS.format(0), True, "killed by SIGKILL"),
        ("", True, "killed by SIGKILL: perhaps for its memory limit of 64 MiB"),
        ("", False, "killed by SIGKILL"),
    ],
)
def test_the_ending_names_the_limit(
    tmp_path: Path, *, text: str, memory_limited: bool, ending: str
) -> None:
    group = tmp_path / "group"
    group.mkdir()
    (group / "memory.events").write_text(text)
    said: list[ProcessInfo] = []
    table = ProcessTable(
        "s/x",
        tmp_path / "journal",
        ControlGroups("k", tmp_path, ""),
        lambda process: said.append(process.info),
        lambda _: None,
    )
    spec = ProcessSpec("hungry", ("sleep", "100"), limits=Limits(memory=64 << 20))
    process = Process(spec, ProcessInfo("hungry", "running", spec.digest()))
    process.membership = Membership((group,), (), memory_limited)
    child = os.posix_spawnp("sleep", ["sleep", "100"], dict(os.environ))
    os.kill(child, signal.SIGKILL)
    found = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert found is not None
    table._by_pid[child] = process
    table._finish(process, found)
    os.waitpid(child, 0)
    os.close(table._journal)
    assert process.info.ending() == ending
