"""Control groups of both versions are found, read and cleared."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bedstone.sandbox.oci.groups import Groups


def files(folder: Path, **texts: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_version_2(tmp_path: Path) -> None:
    files(
        tmp_path, cgroup__controllers="cpu io memory pids rdma\n", cgroup__subtree_control="memory"
    )
    files(
        tmp_path / "box",
        cpu__stat="usage_usec 1500000\nuser_usec 1\n",
        memory__current="4096\n",
        memory__max="max\n",
        memory__events="low 0\noom 3\noom_kill 2\n",
        pids__current="7\n",
        io__stat="8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2\n",
    )
    groups = Groups(tmp_path, "0::/user.slice\n")
    assert groups.controllers() == {"cpu", "io", "memory", "pids"}
    assert groups.path("box") == "/box"
    assert groups.folders("box") == [tmp_path / "box"]
    stats = groups.stats("box")
    assert (stats.cpu_seconds, stats.memory, stats.memory_limit, stats.pids) == (1.5, 4096, None, 7)
    assert (stats.io_read, stats.io_written, stats.oom_kills) == (11, 22, 2)


def test_version_1_below_the_own_group(tmp_path: Path) -> None:
    files(tmp_path / "memory/own", cgroup__procs="")
    files(tmp_path / "cpu", cgroup__procs="")
    files(
        tmp_path / "memory/own/box",
        memory__usage_in_bytes="5\n",
        memory__limit_in_bytes="9223372036854771712\n",
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
    )
    files(tmp_path / "cpuacct/box", cpuacct__usage="2000000000\n")
    groups = Groups(tmp_path, "4:memory:/own\n2:cpuacct:/\n1:cpu:/\n0::/\n")
    assert groups.controllers() == {"memory", "cpu"}
    assert groups.path("box") == "box"
    assert set(groups.folders("box")) == {tmp_path / "memory/own/box", tmp_path / "cpuacct/box"}
    stats = groups.stats("box")
    assert (stats.cpu_seconds, stats.memory, stats.memory_limit) == (2.0, 5, None)
    assert (stats.pids, stats.io_read, stats.oom_kills) == (None, None, 1)


def test_a_group_may_vanish_while_it_is_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime that was killed removes its groups too."""
    files(tmp_path, cgroup__controllers="")
    folder = tmp_path / "box"
    folder.mkdir()
    groups = Groups(tmp_path, "0::/\n")

    def vanish(_path: Path, _pattern: str) -> list[Path]:
        shutil.rmtree(folder)
        raise FileNotFoundError(folder)

    monkeypatch.setattr(Path, "glob", vanish)
    groups.clear("box", remove=True)
    assert not folder.exists()


def test_nothing_to_write_to(tmp_path: Path) -> None:
    groups = Groups(tmp_path, "0::/\n")
    assert groups.controllers() == frozenset()
    assert groups.folders("box") == []
    groups.clear("box", remove=True)
    assert groups.stats("box").memory is None
