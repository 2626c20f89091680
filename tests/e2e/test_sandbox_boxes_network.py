"""Networks of boxes: what is published and what is named, by the command line and in Python."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bedstone.cli.main import run
from bedstone.testing.box_commands import Command, box_place, fetched, need
from bedstone.testing.boxes import leftovers


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with box_place() as found:
        yield found


@pytest.fixture
def command(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    monkeypatch.setenv("BEDSTONE_HOME", str(place))
    return Command(place, capfd, run)


@pytest.mark.parametrize("isolation", ["container", "gvisor", "microvm"])
def test_a_network_is_what_was_asked_for_and_nothing_else(
    isolation: str, command: Command, place: Path
) -> None:
    """Its port is reached here, what is named is reached from it, and when it is gone all is."""
    need(isolation, place)
    with (
        socket.create_server(("127.0.0.1", 0)) as named,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        inside, outside = (each.getsockname()[1] for each in (named, other))
        command.answer(
            *("run", "-d", "--name", "net-box", "--isolation", isolation, "-p", "80"),
            *("--egress", f"127.0.0.1:{inside}", str(place / "root"), "sh", "-c"),
            "mkdir /w; echo page >/w/index.html; exec httpd -f -p 80 -h /w",
        )
        (found,) = json.loads(command.answer("box", "ps", "-o", "json"))
        (port,) = found["ports"]
        assert (port["address"], port["box"]) == ("127.0.0.1", 80)
        assert f"127.0.0.1:{port['port']}->80/tcp" in command.answer("box", "ps")
        deadline = time.monotonic() + 20
        while (page := fetched(port["port"])) is None:
            assert time.monotonic() < deadline
        assert page == b"page\n"
        relay = next(
            process.parent
            for process in Path("/proc").glob("[0-9]*/cmdline")
            if b"bedstone.boxes.relay" in process.read_bytes()
            and b"net-box" in process.read_bytes()
        )
        status = (relay / "status").read_text().splitlines()
        rights = {line.split()[1] for line in status if line.startswith(("Uid", "Gid", "CapPrm"))}
        assert rights == {"65534", "0000000000000000"}
        os.kill(int(relay.name), signal.SIGKILL)  # and another one goes on with its sockets
        while fetched(port["port"]) != b"page\n":
            assert time.monotonic() < deadline
        taken = command("run", "-p", f"{port['port']}:80", str(place / "root"), "true")
        assert (taken.returncode, "cannot publish 127.0.0.1:" in taken.stderr) == (125, True)
        ask = "unset no_proxy; wget -q -O - http://127.0.0.1:"
        asking = subprocess.Popen(
            [*command.argv, "box", "exec", "net-box", "sh", "-c", f"{ask}{inside}/x"],
            env=command.env, stdout=subprocess.PIPE,
        )  # fmt: skip
        named.settimeout(20)
        with named.accept()[0] as link:
            assert link.recv(4096).startswith(b"GET /x HTTP/1.1\r\n")
            link.sendall(b"HTTP/1.0 200 OK\r\n\r\nfrom here")
        assert asking.communicate(timeout=20)[0] == b"from here"
        done = command("box", "exec", "net-box", "sh", "-c", f"{ask}{outside}/")
        assert "403 Forbidden" in done.stderr
        assert f"127.0.0.1:{outside} is not allowed" in command.answer("box", "logs", "net-box")
        # By itself it reaches nothing of this machine, whatever address it tries.
        for address in ("127.0.0.1", "10.107.0.1", "10.0.2.2"):
            script = f"nc -w 2 {address} {outside} </dev/null && echo reached"
            assert "reached" not in command("box", "exec", "net-box", "sh", "-c", script).stdout
    command.answer("box", "rm", "-f", "net-box")
    assert fetched(port["port"]) is None
    assert not leftovers(place / "boxes", "net-box")
    assert not list(Path("/run/bedstone/boxes").glob("*-net-box"))


def test_the_ports_of_a_box_whose_shim_was_killed_are_free(command: Command, place: Path) -> None:
    command.answer("run", "-d", "--name", "lost", "-p", "80", str(place / "root"), "sleep", "60")
    (found,) = json.loads(command.answer("box", "ps", "-o", "json"))
    port = found["ports"][0]["port"]
    os.kill(int((place / "boxes/.run/lost/pid").read_text()), signal.SIGKILL)
    deadline = time.monotonic() + 20
    while command("run", "--rm", "-p", f"{port}:80", str(place / "root"), "true").returncode:
        assert time.monotonic() < deadline
    command.answer("box", "rm", "-f", "lost")
