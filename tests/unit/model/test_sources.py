"""When a workload rolls out: on a change of its source, and on no other."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path, PurePosixPath

import pytest

from bedstone.errors import InvalidError
from bedstone.model.manifest import parse_manifest
from bedstone.model.sources import (
    SourceCache,
    changed_workloads,
    is_source,
    source_digest,
    source_digests,
)
from bedstone.model.spec import AppSpec, WorkloadSpec

SPEC: AppSpec = parse_manifest(
    """\
app: bank
workloads:
  web: {run: "web:app"}
  risk: {command: [python, risk.py]}
  shell: {command: [sh, start.sh], path: shell}
"""
).spec
FILES = {
    "bedstone.yaml": "app: bank",
    "web.py": "import shared, models.user",
    "risk.py": "import shared",
    "shared.py": "",
    "plugin.py": "",
    "models/__init__.py": "",
    "models/user.py": "",
    "templates/index.html": "<html>",
    "shell/start.sh": "exec sleep 1",
    "shell/helper.py": "",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "app"
    for name, content in FILES.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


def after(root: Path, name: str, content: str | None = None) -> list[str]:
    """The workloads that a write makes roll out."""
    before = source_digests(root, SPEC)
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{FILES.get(name, '')}\n# changed" if content is None else content)
    return changed_workloads(before, source_digests(root, SPEC))


def test_too_many_files_are_refused_with_the_way_out(root: Path) -> None:
    with pytest.raises(InvalidError, match="workload web has more than 5 files") as caught:
        source_digests(root, SPEC, max_files=5)
    assert "path:" in (caught.value.hint or "")


def test_a_missing_path_is_refused_by_name(root: Path) -> None:
    shutil.rmtree(root / "shell")
    with pytest.raises(InvalidError, match="the source of workload shell cannot be read"):
        source_digests(root, SPEC)


@pytest.mark.parametrize(
    ("name", "workloads"),
    [
        ("web.py", ["web"]),
        ("models/user.py", ["web"]),
        ("models/__init__.py", ["web"]),
        ("risk.py", ["risk"]),
        ("shared.py", ["risk", "web"]),
        ("plugin.py", ["risk", "web"]),  # imported by nobody we can see: perhaps by name
        ("templates/index.html", ["risk", "web"]),
        ("new.html", ["risk", "web"]),
        ("models/new.py", ["risk", "web"]),
        ("shell/start.sh", ["risk", "shell", "web"]),
        ("shell/helper.py", ["risk", "shell", "web"]),
    ],
)
def test_a_change_rolls_out_those_that_it_may_concern(
    root: Path, name: str, workloads: list[str]
) -> None:
    assert after(root, name) == workloads


@pytest.mark.parametrize(
    "name",
    [
        "bedstone.yaml",
        ".bedstone/store.sqlite",
        ".git/HEAD",
        ".venv/lib/x.py",
        "__pycache__/web.cpython-311.pyc",
        "node_modules/x/index.js",
        "web.py~",
        ".web.py.swp",
        ".#web.py",
        "4913",
        "app.log",
        "local.sqlite3-wal",
        "my-environment/lib/x.py",
    ],
)
def test_what_tools_and_programs_leave_behind_rolls_out_nothing(root: Path, name: str) -> None:
    environment = root / "my-environment"
    environment.mkdir()
    (environment / "pyvenv.cfg").touch()
    assert after(root, name) == []


def test_what_nobody_imports_any_more_may_concern_all(root: Path) -> None:
    assert after(root, "web.py", "import shared") == ["risk", "web"]


def test_a_file_that_comes_goes_or_is_renamed_is_a_change(root: Path) -> None:
    before = source_digests(root, SPEC)
    (root / "templates/index.html").rename(root / "templates/other.html")
    renamed = source_digests(root, SPEC)
    assert changed_workloads(before, renamed) == ["risk", "web"]
    (root / "templates/other.html").unlink()
    gone = source_digests(root, SPEC)
    assert changed_workloads(renamed, gone) == ["risk", "web"]
    (root / "templates/index.html").write_text(FILES["templates/index.html"])
    assert source_digests(root, SPEC) == before


def test_equal_files_have_equal_digests_wherever_and_whenever(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(root, copy)
    for file in copy.rglob("*"):
        os.utime(file, (1, 1))
    assert source_digests(copy, SPEC) == source_digests(root, SPEC)


def test_an_unfinished_edit_is_a_change_not_an_error(root: Path) -> None:
    assert after(root, "shared.py", "def (") == ["risk", "web"]


def test_a_cache_reads_again_only_what_changed(root: Path) -> None:
    for file in root.rglob("*"):
        os.utime(file, (1, 1))
    cache = SourceCache()
    before = source_digests(root, SPEC, cache=cache)
    assert len(cache.files) == len(FILES) - 1
    web = root / "web.py"
    status = web.stat()
    web.write_text("x" * status.st_size)
    os.utime(web, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert source_digests(root, SPEC, cache=cache) == before, "the same time, size and inode"
    os.utime(web, (2, 2))
    assert changed_workloads(before, source_digests(root, SPEC, cache=cache)) != []


def test_a_file_written_just_now_is_not_remembered(root: Path) -> None:
    cache = SourceCache()
    now = time.time()
    os.utime(root / "web.py", (now + 1, now + 1))
    source_digests(root, SPEC, cache=cache)
    assert str(root / "web.py") not in cache.files


def test_special_files_and_links_are_neither_followed_nor_waited_for(root: Path) -> None:
    before = source_digests(root, SPEC)
    os.mkfifo(root / "pipe")
    assert source_digests(root, SPEC) == before
    (root / "loop").symlink_to(root)
    looped = source_digests(root, SPEC)
    assert changed_workloads(before, looped) == ["risk", "web"]
    (root / "loop").unlink()
    (root / "dangling").symlink_to("nowhere")
    assert changed_workloads(before, source_digests(root, SPEC)) == ["risk", "web"]


def test_large_data_is_told_by_size_and_time(root: Path) -> None:
    data = root / "shell/data.bin"
    with data.open("wb") as file:
        file.truncate(1 << 30)
    before = source_digests(root, SPEC)
    assert source_digests(root, SPEC) == before
    os.utime(data, (1, 1))
    assert "shell" in changed_workloads(before, source_digests(root, SPEC))


def test_a_program_installed_elsewhere_is_made_of_all_files(root: Path) -> None:
    workload = WorkloadSpec(run="kinto:app")
    before = source_digest(root, workload)
    (root / "risk.py").write_text("# changed")
    assert source_digest(root, workload) != before


def test_only_workloads_on_both_sides_change() -> None:
    old, new = {"a": "1", "b": "1", "c": "1"}, {"b": "2", "c": "1", "d": "1"}
    assert changed_workloads(old, new) == ["b"]


def test_a_watcher_can_ask_of_a_path() -> None:
    assert is_source(PurePosixPath("pkg/web.py"))
    assert not is_source(PurePosixPath("pkg/__pycache__/web.cpython-311.pyc"))
    assert not is_source(PurePosixPath(".bedstone/run.json"))
