from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from bedstone.errors import ConflictError, DeniedError, UnavailableError
from bedstone.processes import state
from bedstone.processes.cgroups import ControlGroups
from bedstone.processes.netns import is_kept
from bedstone.processes.spec import Limits

as_user = pytest.mark.skipif(
    os.geteuid() == 0, reason="root has one fixed run directory: run as an ordinary user"
)


def test_nothing_to_clear_is_nothing_to_do(tmp_path: Path) -> None:
    assert state.cleanup_stale(tmp_path / "missing") is None
    assert not (tmp_path / "missing").exists()
    assert state.cleanup_stale(tmp_path) is None


def test_the_lock_has_one_holder(tmp_path: Path) -> None:
    with state.locked(tmp_path), pytest.raises(ConflictError), state.locked(tmp_path, 0.05):
        raise AssertionError("two holders")
    with state.locked(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run_id": "x"}', "null"])
def test_a_damaged_run_file_is_no_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    assert state.read_run(tmp_path) is None
    assert state.live_run(tmp_path) is None
    assert state.cleanup_stale(tmp_path) is None
    assert not (tmp_path / "run.json").exists()


def test_a_run_directory_is_short_ours_and_the_same_again(tmp_path: Path) -> None:
    path = state.run_directory(tmp_path)
    try:
        assert path == state.run_directory(tmp_path)
        assert len(str(path)) < 80
        found = path.stat()
        assert found.st_uid == os.getuid()
        assert found.st_mode & 0o777 == (0o711 if os.getuid() == 0 else 0o700)
        path.chmod(0o777)
        state.run_directory(tmp_path)
        assert path.stat().st_mode & 0o022 == 0
        path.rmdir()
        path.symlink_to(tmp_path)
        with pytest.raises(DeniedError):
            state.run_directory(tmp_path)
    finally:
        path.unlink() if path.is_symlink() else shutil.rmtree(path)


def test_a_copy_of_a_state_directory_is_another_state(tmp_path: Path) -> None:
    first, moved = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    identity = state.state_id(first)
    assert identity == state.state_id(tmp_path / "x" / ".." / "a")
    shutil.copytree(first, moved)
    assert state.state_id(moved) != identity


def test_a_run_directory_that_cannot_be_made_says_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:
        pytest.skip("root has one fixed run directory: run as an ordinary user")
    closed = tmp_path / "runtime"
    closed.mkdir()
    (closed / "bedstone").write_text("a file")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(closed))
    with pytest.raises(UnavailableError) as caught:
        state.run_directory(tmp_path)
    assert "XDG_RUNTIME_DIR" in (caught.value.hint or "")


def test_a_plain_file_is_no_namespace(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert not is_kept(tmp_path / "x")
    assert not is_kept(tmp_path / "missing")


def test_control_groups_of_version_2_are_below_the_root_group(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("memory cpu pids")
    groups = ControlGroups("run", root=tmp_path, own="0::/user.slice\n")
    membership = groups.prepare("a/../b", Limits(memory=1 << 20, cpu=0.25, processes=5))
    folder = tmp_path / "run" / "a_.._b"
    assert membership.folders == (folder,)
    assert membership.memory_limited
    assert (folder / "memory.max").read_text() == str(1 << 20)
    assert (folder / "cpu.max").read_text() == "25000 100000"
    assert (folder / "pids.max").read_text() == "5"


def test_control_groups_of_version_1_are_below_the_own_group(tmp_path: Path) -> None:
    for name in ("memory", "cpu"):
        (tmp_path / name / "mine").mkdir(parents=True)
        (tmp_path / name / "mine" / "cgroup.procs").touch()
    groups = ControlGroups("run", root=tmp_path, own="4:memory:/mine\n2:cpu,cpuacct:/mine\n")
    membership = groups.prepare("a", Limits(memory=4096, cpu=2, processes=5))
    assert membership.folders == (tmp_path / "memory/mine/run/a", tmp_path / "cpu/mine/run/a")
    assert (tmp_path / "cpu/mine/run/a/cpu.cfs_quota_us").read_text() == "200000"
    assert membership.applied == (
        "memory limit by control group",
        "cpu limit by control group",
        "pids limit not applied: no writable control group",
    )


def test_without_control_groups_the_loss_is_said(tmp_path: Path) -> None:
    groups = ControlGroups("run", root=tmp_path / "missing", own="")
    membership = groups.prepare("a", Limits(memory=4096, cpu=2))
    assert membership.folders == ()
    assert not membership.memory_limited
    assert membership.applied == (
        "memory limit by RLIMIT_DATA: no writable control group",
        "cpu limit not applied: no writable control group",
    )
    assert groups.prepare("b", Limits()).applied == ()
    groups.close()
