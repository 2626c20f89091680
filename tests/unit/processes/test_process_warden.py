"""What the search for a run's processes sees of them."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from bedstone.processes import warden


def test_a_process_that_runs_one_program_after_another_is_always_seen(tmp_path: Path) -> None:
    """In the midst of an exec it has no environment; it must not pass for a stranger then."""
    script = tmp_path / "again.sh"
    script.write_text(f"exec sh {script}\n")
    env = {"BEDSTONE_RUN": "state/1", "PATH": os.environ["PATH"]}
    with subprocess.Popen(["sh", script], env=env) as process:
        try:
            deadline = time.monotonic() + 5
            while not warden.environment(process.pid) and time.monotonic() < deadline:
                time.sleep(0.001)
            looks = [warden.environment(process.pid) for _ in range(3000)]
        finally:
            process.kill()
    missed = sum(b"BEDSTONE_RUN=state/1" not in look for look in looks)
    assert missed == 0, f"{missed} of {len(looks)} looks"


def test_a_process_without_an_environment_is_nobodys_at_once() -> None:
    with subprocess.Popen(["sleep", "60"], env={}) as process:
        try:
            assert warden.environment(process.pid) == []
            assert warden.environment(2) == []  # a thread of the kernel's, or nobody
        finally:
            process.kill()


def test_a_child_that_one_look_has_missed_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parent forked it after the list was made, and ended before it was read."""
    with subprocess.Popen(["sleep", "60"]) as process:
        start = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
        looks = iter([{}, {}, {process.pid: int(start)}, {}, {}, {}])
        monkeypatch.setattr(warden, "find", lambda *_: next(looks))
        assert warden.sweep("X=a/b", None) == []
        assert next(looks, None) is None
        assert process.wait(10) == -9
