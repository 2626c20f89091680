"""What processes use: whose they are, and that nothing used is forgotten."""

import os
from pathlib import Path

import pytest

from bedstone.node.collector import machine
from bedstone.node.collector.processes import (
    PAGE,
    TICK,
    Processes,
    identity_of,
    parse_stat,
    read_stats,
)

SUPERVISOR = 10


class Proc:
    """A `/proc` of our own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.add(SUPERVISOR, 1)

    def add(
        self,
        pid: int,
        parent: int,
        *,
        start: int | None = None,
        own: int = 0,
        waited: int = 0,
        pages: int = 0,
        mark: str = "",
        state: str = "S",
    ) -> None:
        folder = self.folder / str(pid)
        folder.mkdir(exist_ok=True)
        fields = [state, parent, *([0] * 9), own, 0, waited, 0, 20, 0, 1, 0, start or pid, 0, pages]
        (folder / "stat").write_text(f"{pid} (a (strange) name) {' '.join(map(str, fields))}\n")
        environment = f"A=1\0BEDSTONE_PROCESS={mark}\0" if mark else "A=1\0"
        (folder / "environ").write_text(environment)

    def end(self, pid: int) -> None:
        for name in ("stat", "environ"):
            (self.folder / str(pid) / name).unlink()
        (self.folder / str(pid)).rmdir()


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def test_a_process_has_what_all_its_descendants_use(proc: Proc) -> None:
    proc.add(20, SUPERVISOR, own=100, pages=2)
    proc.add(21, 20, own=30, pages=3)
    proc.add(22, 21, own=7, pages=4)
    proc.add(30, SUPERVISOR, own=1000, pages=100)
    processes = Processes(proc.folder)
    used = processes.usage({"instance/a": (20, 20), "envoy": (30, 30)}, SUPERVISOR)
    assert used["instance/a"].cpu == 137 / TICK
    assert used["instance/a"].memory == 9 * PAGE
    assert used["envoy"].cpu == 1000 / TICK


def test_an_orphan_belongs_to_whose_mark_it_carries_and_stays_so(proc: Proc) -> None:
    proc.add(20, SUPERVISOR, own=1)
    proc.add(21, SUPERVISOR, own=10, mark="instance/a")
    proc.add(22, 21, own=100)
    proc.add(23, SUPERVISOR, own=1000)
    processes = Processes(proc.folder)
    roots = {"instance/a": (20, 20)}
    assert processes.usage(roots, SUPERVISOR)["instance/a"].cpu == 111 / TICK
    # its parent ends: it was seen whose it is
    proc.end(21)
    proc.add(22, SUPERVISOR, own=100)
    assert processes.usage(roots, SUPERVISOR)["instance/a"].cpu == 111 / TICK


def test_processor_time_never_decreases_when_children_end(proc: Proc) -> None:
    processes = Processes(proc.folder)
    roots = {"a": (20, 20)}
    proc.add(20, SUPERVISOR, own=10)
    proc.add(21, 20, own=5)
    assert processes.usage(roots, SUPERVISOR)["a"].cpu == 15 / TICK
    # waited for: its parent has its time
    proc.end(21)
    proc.add(20, SUPERVISOR, own=10, waited=6)
    assert processes.usage(roots, SUPERVISOR)["a"].cpu == 16 / TICK
    # reaped by somebody else: what was seen of it stays
    proc.add(22, 20, own=9)
    assert processes.usage(roots, SUPERVISOR)["a"].cpu == 25 / TICK
    proc.end(22)
    assert processes.usage(roots, SUPERVISOR)["a"].cpu == 25 / TICK
    proc.add(20, SUPERVISOR, own=12, waited=6)
    assert processes.usage(roots, SUPERVISOR)["a"].cpu == 27 / TICK


def test_another_life_of_a_name_begins_at_zero(proc: Proc) -> None:
    processes = Processes(proc.folder)
    proc.add(20, SUPERVISOR, own=10)
    proc.add(21, 20, own=90)
    processes.usage({"a": (20, 20)}, SUPERVISOR)
    proc.end(21)
    proc.add(20, SUPERVISOR, start=99, own=1)
    assert processes.usage({"a": (20, 99)}, SUPERVISOR)["a"].cpu == 1 / TICK


def test_a_process_that_has_ended_is_left_out_and_not_read_as_zero(proc: Proc) -> None:
    processes = Processes(proc.folder)
    proc.add(20, SUPERVISOR, own=10)
    assert processes.usage({"a": (20, 20), "b": (44, 44)}, SUPERVISOR).keys() == {"a"}
    proc.add(20, SUPERVISOR, own=10, state="Z")
    assert processes.usage({"a": (20, 20)}, SUPERVISOR) == {}
    # the number belongs to somebody else by now
    proc.add(20, SUPERVISOR, start=77, own=10)
    assert processes.usage({"a": (20, 20)}, SUPERVISOR) == {}


def test_this_very_process_is_found_as_the_kernel_tells_it() -> None:
    stats = read_stats()
    own = stats[os.getpid()]
    assert own.parent == os.getppid()
    assert own.pages > 0
    assert identity_of(os.getpid()) == f"{os.getpid()}:{own.start}"
    assert identity_of(2**22 + 1) is None


@pytest.mark.parametrize("text", [b"", b"1 (x", b"1 (x) S 1 2 3"])
def test_what_is_no_line_of_stat_is_none(text: bytes) -> None:
    assert parse_stat(text) is None


def test_the_machine_s_series_have_the_units_they_say() -> None:
    assert machine.cpu_of("cpu  100 20 30 400 5 1 2 3 0 0\ncpu0 1 1\n") == {
        "user": 120 / TICK,
        "system": 36 / TICK,
        "idle": 400 / TICK,
        "iowait": 5 / TICK,
    }
    assert machine.memory_of("MemTotal:  8 kB\nMemFree: 1 kB\nMemAvailable:  3 kB\n") == {
        "total": 8192,
        "available": 3072,
    }


def test_the_real_machine_is_read(tmp_path: Path) -> None:
    values = {
        (series.name, dict(series.labels).get("state", dict(series.labels).get("mode", ""))): value
        for series, value in machine.Machine("n1", tmp_path).read().items()
    }
    assert values["bedstone_node_cores", ""] == os.cpu_count()
    for name in ("bedstone_node_memory_bytes", "bedstone_node_disk_bytes"):
        assert values[name, "total"] > values[name, "available"] > 0
    assert values["bedstone_node_cpu_seconds_total", "user"] > 0
    assert len(machine.incarnation()) == 36


def test_what_the_machine_counts_never_falls(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 10 kB\nMemAvailable: 5 kB\n")

    def idle_and_waited(idle: int, iowait: int) -> tuple[float, float]:
        line = f"cpu  100 0 50 {idle} {iowait} 0 0 0 0 0\n"
        (tmp_path / "stat").write_text(line)
        found = reader.read()
        cpu = {dict(it.labels).get("mode"): value for it, value in found.items()}
        return cpu["idle"] * TICK, cpu["iowait"] * TICK

    reader = machine.Machine("n1", tmp_path, tmp_path)
    assert idle_and_waited(1000, 70) == (1000, 70)
    assert idle_and_waited(1100, 69) == (1100, 70), "proc(5): it may decrease"
    assert idle_and_waited(1099, 72) == (1100, 72)
