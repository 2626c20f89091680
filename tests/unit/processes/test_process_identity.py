from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bedstone.processes import warden
from bedstone.processes.identity import ProcessIdentity, boot_id, read_stat


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "1000"], env={"MARK": "test-a/1", "PATH": os.defpath})
    yield process
    process.kill()
    process.wait()


def identity(process: subprocess.Popen[bytes]) -> ProcessIdentity:
    found = ProcessIdentity.of(process.pid)
    assert found is not None
    return found


def test_another_process_with_the_number_is_not_signalled(
    sleeper: subprocess.Popen[bytes],
) -> None:
    real = identity(sleeper)
    assert real.alive()
    for wrong in (
        replace(real, start_time=real.start_time + 1),
        replace(real, boot_id="another boot"),
    ):
        assert not wrong.alive()
        assert not wrong.send_signal(signal.SIGKILL)
    assert sleeper.poll() is None
    assert real.send_signal(signal.SIGKILL)
    assert sleeper.wait() == -signal.SIGKILL
    assert not real.send_signal(signal.SIGKILL)
    assert ProcessIdentity.of(sleeper.pid) is None


def test_a_zombie_is_not_alive(sleeper: subprocess.Popen[bytes]) -> None:
    real = identity(sleeper)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{sleeper.pid}").exists()
    assert not real.alive()


def test_a_program_name_with_parentheses_is_read(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "1000"]) as process:
        try:
            deadline = time.monotonic() + 5
            while b"sleep" in Path(f"/proc/{process.pid}/comm").read_bytes():
                assert time.monotonic() < deadline
            stat = read_stat(process.pid)
            assert stat is not None
            assert stat[1] == os.getpid()
        finally:
            process.kill()


def test_the_boot_has_an_identity() -> None:
    assert len(boot_id()) == 36


def test_the_search_takes_marked_journalled_and_their_descendants_only(
    sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    parent = subprocess.Popen(
        ["sh", "-c", "env -i sleep 1000 & echo up; wait"],
        env={"PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
    )
    other = subprocess.Popen(["sleep", "1000"], env={"MARK": "test-a/10", "PATH": os.defpath})
    try:
        assert parent.stdout is not None
        parent.stdout.readline()
        real = identity(parent)
        journal = tmp_path / "journal"
        # The last line was cut short by a kill; the second is another process's number by now.
        journal.write_text(
            f'{parent.pid} {real.start_time} "a"\n{other.pid} 1 "b"\n{os.getpid()} 12'
        )
        found = warden.find("MARK=test-a/1", str(journal), frozenset())
        assert sleeper.pid in found
        assert parent.pid in found
        assert other.pid not in found, "a marker is compared whole"
        assert os.getpid() not in found
        assert len(found) == 3, "and the child that has no environment"
        assert other.pid in warden.find("MARK=test-a/", None, frozenset()), "a prefix ends in /"
        assert sleeper.pid not in warden.find("MARK=test-a/1", None, frozenset({sleeper.pid}))
        assert warden.sweep("MARK=test-a/1", str(journal)) == []
        assert other.poll() is None
    finally:
        for process in (parent, other):
            process.kill()
            process.wait()
        if parent.stdout is not None:
            parent.stdout.close()


def test_the_warden_goes_without_a_search_when_told_that_all_is_done(
    sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    for said, survives in ((b"done\n", True), (b"", False)):
        command = [
            sys.executable,
            "-I",
            "-S",
            str(warden.__file__),
            "MARK=test-a/1",
            "/nonexistent",
        ]
        subprocess.run(command, input=said, check=True, env={}, timeout=10)
        assert (sleeper.poll() is None) is survives or not survives
    assert sleeper.wait(5) == -signal.SIGKILL
