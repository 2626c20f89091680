"""The shim keeps output, status and input of a program, whoever looks on."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bedstone.boxes import shim

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def run(command: str, **change: Any) -> subprocess.Popen[bytes]:
        config = {
            "argv": ["/bin/sh", "-c", command],
            "env": {"PATH": "/bin:/usr/bin"},
            "tty": False,
            "stdin": False,
            "size": [24, 80],
            "wait_for_client": False,
            "after": [],
            "started": "",
            "log": "",
            "relay": [],
            "descriptors": [],
        }
        (tmp_path / "shim.json").write_text(json.dumps(config | change))
        process = subprocess.Popen([sys.executable, "-I", "-S", shim.__file__, str(tmp_path)])
        started.append(process)
        deadline = time.monotonic() + 20
        while not (tmp_path / "pid").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


Connect = Callable[[], socket.socket]


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Connect]:
    links: list[socket.socket] = []

    def attach() -> socket.socket:
        link = socket.socket(socket.AF_UNIX)
        links.append(link)
        link.settimeout(20)
        with contextlib.chdir(tmp_path):
            link.connect("attach")
        return link

    yield attach
    for link in links:
        link.close()


def frames(link: socket.socket) -> Iterator[tuple[int, bytes]]:
    with link.makefile("rb") as file:
        while header := file.read(5):
            kind, size = struct.unpack(">BI", header)
            yield kind, file.read(size)


def told(link: socket.socket) -> dict[int, bytes]:
    found = {1: b"", 2: b"", 3: b""}
    for kind, data in frames(link):
        found[kind] += data
    return found


def send(link: socket.socket, kind: int, data: bytes = b"") -> None:
    link.sendall(shim.HEADER.pack(kind, len(data)) + data)


def code(folder: Path) -> int:
    return int(json.loads((folder / "exit.json").read_text())["code"])


def test_output_and_status_are_kept(start: Start, tmp_path: Path) -> None:
    start("echo out; echo err >&2; exit 3").wait(20)
    assert code(tmp_path) == 3
    assert sorted((tmp_path / "output").read_text().splitlines()) == ["err", "out"]


def test_a_signal_is_a_status(start: Start, tmp_path: Path) -> None:
    start("kill -9 $$").wait(20)
    assert code(tmp_path) == 137


def test_who_attaches_first_misses_nothing(start: Start, connect: Connect) -> None:
    start("echo out; echo err >&2; exit 4", wait_for_client=True)
    assert told(connect()) == {1: b"out\n", 2: b"err\n", 3: b"\x04"}


def test_input_arrives_whole_and_ends(start: Start, connect: Connect) -> None:
    process = start("cat | wc -c", stdin=True, wait_for_client=True)
    link = connect()
    for _ in range(40):
        send(link, shim.INPUT, b"x" * 50_000)
    send(link, shim.END_OF_INPUT)
    found = told(link)
    assert found[1].strip() == b"2000000"
    assert process.wait(20) == 0


def test_without_input_there_is_none(start: Start, tmp_path: Path) -> None:
    start("cat; echo done").wait(20)
    assert (tmp_path / "output").read_text() == "done\n"


def test_a_terminal_has_a_size(start: Start, connect: Connect) -> None:
    start("read x; stty size; echo [$x]", tty=True, size=[11, 22], wait_for_client=True)
    link = connect()
    send(link, shim.SIZE, struct.pack(">HH", 33, 44))
    send(link, shim.INPUT, b"hello\n")
    text = told(link)[1].decode()
    assert "33 44" in text
    assert "[hello]" in text


def test_signals_are_passed_on(start: Start, connect: Connect, tmp_path: Path) -> None:
    process = start("trap 'exit 6' TERM; echo ready; while :; do sleep 0.05; done")
    link = connect()
    while b"ready" not in (tmp_path / "output").read_bytes():
        time.sleep(0.01)
    send(link, shim.SIGNAL, bytes([15]))
    assert told(link)[3] == b"\x06"
    process.wait(20)
    process = start("trap 'exit 7' TERM; echo ready2; while :; do sleep 0.05; done")
    while b"ready2" not in (tmp_path / "output").read_bytes():
        time.sleep(0.01)
    process.terminate()
    process.wait(20)
    assert code(tmp_path) == 7


def test_two_who_attach_see_the_same(start: Start, connect: Connect) -> None:
    start("read x; echo $x", stdin=True, wait_for_client=True)
    one, two = connect(), connect()
    time.sleep(0.2)
    send(one, shim.INPUT, b"hello\n")
    assert told(one)[1] == told(two)[1] == b"hello\n"


def test_a_slow_reader_loses_nothing_and_bounds_memory(start: Start, connect: Connect) -> None:
    process = start("head -c 6000000 /dev/zero", wait_for_client=True)
    link = connect()
    time.sleep(1)
    status = Path(f"/proc/{process.pid}/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    assert int(resident.split()[1]) < 40_000
    assert len(told(link)[1]) == 6_000_000


def test_output_is_bounded(start: Start, tmp_path: Path) -> None:
    start(f"head -c {3 * shim.LIMIT} /dev/zero").wait(60)
    sizes = [path.stat().st_size for path in tmp_path.glob("output*")]
    assert max(sizes) <= shim.LIMIT + (1 << 16)
    assert sum(sizes) <= 2 * shim.LIMIT + (1 << 17)


def test_nonsense_ends_the_connection_alone(start: Start, connect: Connect) -> None:
    start("read x; echo $x", stdin=True, wait_for_client=True)
    bad = connect()
    bad.sendall(b"\x00\xff\xff\xff\xff")
    assert bad.recv(1) == b""
    good = connect()
    send(good, 99, b"?")
    send(good, shim.INPUT, b"fine\n")
    assert told(good)[1] == b"fine\n"


def test_something_runs_afterwards(start: Start, tmp_path: Path) -> None:
    start("exit 0", after=["/bin/sh", "-c", f"touch {tmp_path}/after"]).wait(20)
    assert (tmp_path / "after").exists()


def test_what_a_runtime_could_not_start_has_a_status_of_its_own(
    start: Start, tmp_path: Path
) -> None:
    started, log = tmp_path / "started", tmp_path / "log"
    files = {"started": str(started), "log": str(log)}
    log.write_text('{"msg": "exec: \\"/x\\": permission denied"}')
    start("exit 1", **files).wait(20)
    assert code(tmp_path) == 126
    (tmp_path / "pid").unlink()
    started.write_text("7")
    start("exit 1", **files).wait(20)
    assert code(tmp_path) == 1


def test_a_relay_is_replaced_unless_it_cannot_live(start: Start, tmp_path: Path) -> None:
    script = f"echo x >>{tmp_path}/relays; sleep 1.2; exit"
    process = start("sleep 2.1; exit 4", relay=["/bin/sh", "-c", script])
    process.wait(20)
    assert len((tmp_path / "relays").read_text()) in (4, 6)
    (tmp_path / "pid").unlink()
    (tmp_path / "relays").unlink()
    start("sleep 0.5; exit 5", relay=["/bin/sh", "-c", f"echo x >>{tmp_path}/relays"]).wait(20)
    assert (tmp_path / "relays").read_text() == "x\n" * 3
    assert "ends at once" in (tmp_path / "output").read_text()
    assert code(tmp_path) == 5
