"""One second of a node: every source is asked, one that fails is named, and nothing is mixed."""

import asyncio
import os
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from bedstone.errors import UnavailableError
from bedstone.model.resources import InstanceStatus, Node, Phase
from bedstone.node.collector.collector import Collector
from bedstone.node.collector.processes import identity_of
from bedstone.node.collector.reading import Reading
from bedstone.node.reports import Reports
from bedstone.node.view import View
from bedstone.node.watch import Watch
from bedstone.processes.spec import ProcessInfo
from bedstone.telemetry.frame_builder import Received
from bedstone.telemetry.frames import Frame, Series

PATH = "bank/default/web/w1"
OWN = Series("own_total", (), "counter", "app/x")


class Applications:
    """An application that exports one metric."""

    def collect(self) -> tuple[Mapping[Series, float], Mapping[str, str]]:
        return {OWN: 3.0}, {"app/x": "1"}


def info(name: str, pid: int, start: int, **more: object) -> ProcessInfo:
    return ProcessInfo(name, "running", "d", pid, start, **more)  # type: ignore[arg-type]


class Made:
    """A collector of a node with one instance, played by this very process."""

    def __init__(self, folder: Path, *others: object) -> None:
        reports = Reports(Node(name="n1", address="127.0.0.1", proxy_restarts=2))
        reports.put(
            InstanceStatus(
                app="bank",
                workload="web",
                name="w1",
                node="n1",
                revision="r1",
                phase=Phase.READY,
                restarts=4,
            )
        )
        self.reports = reports
        self.watch = Watch(None)  # type: ignore[arg-type]
        identity = identity_of(os.getpid())
        assert identity is not None
        self.start = int(identity.partition(":")[2])
        self.watch.latest[f"instance/{PATH}"] = info(f"instance/{PATH}", os.getpid(), self.start)
        self.collector = Collector(
            "n1",
            folder,
            folder / "admin.sock",
            "run-1",
            View(),
            reports,
            self.watch,
            Applications(),
            tuple(others),  # type: ignore[arg-type]
        )
        self.known = Received()

    async def take(self, second: int, *, full: bool = False) -> Frame:
        frame = await self.collector.collect(second, full=full)
        assert self.known.apply(frame)
        return frame

    def value(self, name: str, **labels: str) -> float:
        found = [
            value
            for series, value in self.known.current().items()
            if series.name == name and labels.items() <= dict(series.labels).items()
        ]
        assert len(found) == 1, (name, labels, self.known.current())
        return found[0]


def test_a_second_has_instances_engines_machine_and_what_applications_export(
    tmp_path: Path,
) -> None:
    made = Made(tmp_path)
    frame = asyncio.run(made.take(7))
    assert (frame.second, frame.sequence, frame.missing) == (7, 0, {})
    assert made.value("bedstone_instance_up", instance="w1", revision="r1") == 1
    assert made.value("bedstone_instance_restarts_total", workload="web") == 4
    assert made.value("bedstone_instance_memory_bytes", app="bank") > 1 << 20
    assert made.value("bedstone_instance_cpu_seconds_total") > 0
    assert made.value("bedstone_engine_restarts_total", engine="envoy") == 2
    assert made.value("bedstone_engine_memory_bytes", engine="supervisor") > 0
    assert made.value("bedstone_node_cores") == os.cpu_count()
    assert made.value("own_total") == 3
    lives = made.known.incarnations
    assert lives[f"instance/{PATH}"] == f"{os.getpid()}:{made.start}"
    assert lives["run"] == "run-1"


def test_only_what_changed_is_said_again(tmp_path: Path) -> None:
    made = Made(tmp_path)

    async def two() -> tuple[Frame, Frame]:
        return await made.take(7), await made.take(8)

    first, second = asyncio.run(two())
    assert (second.sequence, second.new) == (1, {})
    assert len(second.values) < len(first.values)


def test_a_process_that_is_gone_is_missing_and_not_zero(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.watch.latest[f"instance/{PATH}"] = info(f"instance/{PATH}", 2**22 + 1, 5)
    frame = asyncio.run(made.take(7))
    assert frame.missing == {f"instance/{PATH}": "its process has just ended"}
    assert not [s for s in made.known.current() if s.name == "bedstone_instance_memory_bytes"]


def test_a_proxy_that_runs_and_does_not_answer_is_missing(tmp_path: Path) -> None:
    made = Made(tmp_path)
    with socket.socket(socket.AF_UNIX) as hung, subprocess.Popen(["sleep", "60"]) as proxy:
        identity = identity_of(proxy.pid)
        assert identity is not None
        start = int(identity.partition(":")[2])
        made.watch.latest["envoy"] = info("envoy", proxy.pid, start)
        hung.bind(str(tmp_path / "admin.sock"))
        hung.listen()
        begun = time.monotonic()
        frame = asyncio.run(made.take(7))
        took = time.monotonic() - begun
        proxy.kill()
    assert frame.missing == {"envoy": "envoy does not answer: no answer in time"}
    assert took < 0.8, "a hung source costs less than the server waits"
    assert made.value("bedstone_instance_up") == 1


def test_a_proxy_that_was_never_there_is_not_missing(tmp_path: Path) -> None:
    assert asyncio.run(Made(tmp_path).take(7)).missing == {}


def test_what_other_sources_say_and_miss_is_in_the_frame(tmp_path: Path) -> None:
    series = Series("x", (), "gauge", "database/a")

    async def databases() -> Reading:
        return Reading({series: 1.0}, {"database/a": "1"}, {"database/b": "no answer"})

    made = Made(tmp_path, databases)
    frame = asyncio.run(made.take(7))
    assert frame.missing == {"database/b": "no answer"}
    assert made.value("x") == 1


def test_two_readings_never_mix_and_a_cancelled_one_ends_by_itself(tmp_path: Path) -> None:
    go = threading.Event()
    asked: list[int] = []

    async def scenario() -> None:
        began = asyncio.Event()

        async def slow() -> Reading:
            asked.append(len(asked))
            began.set()
            await asyncio.to_thread(go.wait, 5)
            return Reading()

        made = Made(tmp_path, slow)
        first = asyncio.ensure_future(made.take(7))
        await began.wait()
        with pytest.raises(UnavailableError, match="still being collected"):
            await made.take(8)
        first.cancel()  # the server has given it up
        with pytest.raises(asyncio.CancelledError):
            await first
        with pytest.raises(UnavailableError, match="still being collected"):
            await made.take(8)
        go.set()
        while True:  # it ends by itself
            try:
                frame = await made.take(9, full=True)
                break
            except UnavailableError:
                await asyncio.sleep(0)
        assert (frame.second, frame.sequence) == (9, 0)

    asyncio.run(asyncio.wait_for(scenario(), 10))
    assert asked == [0, 1]
