"""What runtimes say of programs that they cannot start becomes a status of container engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from bedstone.sandbox.failing import ended, status_of


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ('exec: "nope": executable file not found in $PATH', 127),
        ('exec: "/nope": stat /nope: no such file or directory', 127),
        ("executable file `nope` not found in $PATH: No such file or directory", 127),
        ("creating process: failed to load /x: permission denied", 126),
        ("creating process: failed to load /x: exec format error", 126),
        ('exec: "/etc/x/y": stat /etc/x/y: not a directory', 126),
        ("cannot set memory limit: device or resource busy", 125),
    ],
)
def test_statuses(text: str, status: int) -> None:
    assert status_of(text) == status


def test_the_status_of_what_ran_is_its_own(tmp_path: Path) -> None:
    started, log = tmp_path / "started", tmp_path / "log"
    assert ended(1, str(started), str(log)) == 1  # neither is there: nothing is known
    log.write_text("executable file not found")
    assert ended(1, str(started), str(log)) == 127
    assert ended(0, str(started), str(log)) == 0
    assert ended(1, str(started), "") == 1
    started.write_text("12")
    assert ended(1, str(started), str(log)) == 1
