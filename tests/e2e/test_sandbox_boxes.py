"""`bedstone run` and `bedstone box …` over real boxes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bedstone.boxes.standalone import Standalone
from bedstone.cli.main import run
from bedstone.errors import NotFoundError, UnavailableError
from bedstone.images.bundles import load
from bedstone.images.store import ContentStore
from bedstone.testing.box_commands import Command, box_place, need
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


def test_run_is_as_the_program_is(command: Command, place: Path) -> None:
    root = str(place / "root")
    done = command(
        "run", "--rm", "--name", "first-box", root, "sh", "-c", "echo o; echo e >&2; exit 3"
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "o\n", "e\n")
    done = command("run", "--rm", "-i", "-e", "A=1", "-u", "5:6", "-w", "/job", root, "sh", "-c",
                   "cat; pwd; id -u; echo $A", given="in\n")  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "in\n/job\n5\n1\n")
    command.answer("run", "-d", "--init", "--name", "first-box", root, "sleep", "60")
    command.answer("box", "stop", "first-box")  # which would be deaf to it as the first process
    assert json.loads(command.answer("box", "ps", "-o", "json"))[0]["exit_code"] == 143
    command.answer("box", "rm", "first-box")
    assert command("run", "--rm", "--init", root, "nope").returncode == 127
    assert not leftovers(place / "boxes", "first-box")
    assert not list((place / "boxes/.run").glob("box-*"))


def test_what_is_wrong_is_said(command: Command, place: Path) -> None:
    root = str(place / "root")
    for words, status, text in (
        (("run", str(place / "none"), "x"), 125, "no directory"),
        (("run", root), 125, "names no command"),
        (("run", "--isolation", "none", root, "x"), 125, "expected one of container"),
        (("run", "-t", root, "x"), 125, "terminal"),
        (("run", "-m", "much", root, "x"), 125, "expected such as 512m"),
        (("run", "-v", "/none:/x", root, "x"), 125, "nothing is at"),
        (("run", "--none"), 125, "No such option"),
        (("run", "-p", "53:53/udp", root, "x"), 125, "UDP is not relayed"),
        (("run", "-p", "192.0.2.1:0:53", root, "x"), 125, "cannot publish 192.0.2.1:0"),
        (("run", "--egress", "a/b", root, "x"), 125, "neither a name nor an address"),
        (("run", "--net", "host", root, "x"), 125, "publish its ports with -p"),
        (("box", "exec", "nothing", "x"), 125, "no box nothing"),
        (("box", "logs", "nothing"), 3, "no box nothing"),
    ):
        done = command(*words)
        assert done.returncode == status, (words, done.stderr)
        assert text in done.stderr
    assert [path.name for path in (place / "boxes").glob("*/isolation")] == []


@pytest.mark.parametrize("isolation", ["container", "gvisor"])
def test_statuses_are_those_of_container_engines(
    isolation: str, command: Command, place: Path
) -> None:
    need(isolation, place)
    root = str(place / "root")
    (place / "root/etc/plain").write_text("no program")
    words = ("--isolation", isolation, "--name", "status-box", root)
    for program, status in (("nope", 127), ("/etc/nope", 127), ("/etc/plain", 126)):
        assert command("run", "--rm", *words, program).returncode == status
    assert command("run", "--rm", *words, "sh", "-c", "exit 128").returncode == 128
    done = command("run", "-d", *words, "nope")
    assert (done.returncode, done.stdout) == (127, "")
    assert "nope" in done.stderr
    (found,) = json.loads(command.answer("box", "ps", "-o", "json"))
    assert (found["state"], found["exit_code"]) == ("stopped", 127)
    command.answer("box", "rm", "status-box")
    command.answer("run", "-d", *words, "sleep", "60")
    for program, status in (("nope", 127), ("/etc/plain", 126), ("false", 1)):
        assert command("box", "exec", "status-box", program).returncode == status
    command.answer("box", "rm", "-f", "status-box")


def test_capabilities_are_dropped_one_by_one(command: Command, place: Path) -> None:
    look = (str(place / "root"), "grep", "CapEff", "/proc/self/status")
    for words, kept in (
        (("--cap-drop", "CHOWN"), 0x4FA),
        (("--cap-drop", "cap_setuid", "--cap-drop", "KILL"), 0x45B),
        (("--cap-drop", "ALL", "--cap-drop", "CHOWN"), 0),
    ):
        assert int(command.answer("run", "--rm", *words, *look).split()[1], 16) == kept
    done = command("run", "--rm", "--cap-drop", "BANANA", *look)
    assert done.returncode == 125
    assert "no capability named 'BANANA'" in done.stderr


def test_a_policy_of_ones_own(command: Command, place: Path) -> None:
    policy = place / "policy.json"
    allowed = {
        "version": 1, "programs": ["/bin/sh"], "env": ["PATH"], "users": [0],
        "writable_root": True,
    }  # fmt: skip
    policy.write_text(json.dumps(allowed))
    words = ("run", "--rm", "--cap-drop", "ALL", "--policy", str(policy))
    assert command(*words, str(place / "root"), "/bin/sh", "-c", "exit 4").returncode == 4
    done = command(*words, str(place / "root"), "/bin/id")
    assert done.returncode == 125
    assert "field `programs`" in done.stderr


def test_the_life_of_a_box(command: Command, place: Path) -> None:
    data = place / "data"
    data.mkdir()
    (data / "file").write_text("shared\n")
    script = "trap 'echo bye; exit 7' TERM; cat /data/file; while :; do sleep 0.05; done"
    words = ("--name", "db-box", "-v", f"{data}:/data:ro", "--hostname", "dbhost")
    command.answer("run", "-d", *words, str(place / "root"), "sh", "-c", script)
    assert command("run", "-d", "--name", "db-box", str(place / "root"), "true").returncode == 125
    while "shared" not in command.answer("box", "logs", "db-box"):
        time.sleep(0.05)
    (found,) = json.loads(command.answer("box", "ps", "-o", "json"))
    assert (found["name"], found["state"], found["exit_code"]) == ("db-box", "running", None)
    assert command.answer("box", "exec", "db-box", "hostname") == "dbhost\n"
    assert command("box", "exec", "-i", "db-box", "cat", given="piped").stdout == "piped"
    assert command("box", "exec", "db-box", "sh", "-c", "exit 9").returncode == 9
    use = json.loads(command.answer("box", "stats", "-o", "json"))["db-box"]
    assert use["memory"] > 0
    command.answer("box", "cp", str(data), "db-box:/job")
    assert command.answer("box", "exec", "db-box", "cat", "/job/data/file") == "shared\n"
    back = place / "back"
    back.mkdir()
    command.answer("box", "cp", "db-box:/job/data", str(back))
    assert (back / "data/file").read_text() == "shared\n"
    command.answer("box", "cp", str(data / "file"), "db-box:/job/renamed")
    assert command.answer("box", "exec", "db-box", "cat", "/job/renamed") == "shared\n"
    packed = subprocess.run(
        [*command.argv, "box", "cp", "db-box:/job/data", "-"],
        env=command.env, capture_output=True, check=True,
    )  # fmt: skip
    subprocess.run(
        [*command.argv, "box", "cp", "-", "db-box:/tmp"],
        env=command.env, input=packed.stdout, check=True,
    )  # fmt: skip
    assert command.answer("box", "exec", "db-box", "cat", "/tmp/data/file") == "shared\n"
    command.answer("box", "pause", "db-box")
    assert json.loads(command.answer("box", "ps", "-o", "json"))[0]["state"] == "paused"
    command.answer("box", "resume", "db-box")
    assert command("box", "rm", "db-box").returncode == 4
    command.answer("box", "stop", "db-box")
    (found,) = json.loads(command.answer("box", "ps", "-o", "json"))
    assert (found["state"], found["exit_code"]) == ("stopped", 7)
    assert command.answer("box", "logs", "-f", "db-box") == "shared\nbye\n"
    command.answer("box", "rm", "db-box")
    assert command.answer("box", "ps").count("\n") == 1
    assert not leftovers(place / "boxes", "db-box")


def test_a_terminal(command: Command, place: Path) -> None:
    master, slave = pty.openpty()
    words = (
        "run",
        "--rm",
        "-it",
        str(place / "root"),
        "sh",
        "-c",
        "read x; echo got:$x:$TERM; exit 5",
    )
    process = subprocess.Popen(
        [*command.argv, *words], env=command.env, stdin=slave, stdout=slave, stderr=slave,
        start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    time.sleep(0.5)
    os.write(master, b"hello\n")
    seen = b""
    with contextlib.suppress(OSError):
        while block := os.read(master, 4096):
            seen += block
    assert process.wait(30) == 5
    os.close(master)
    assert re.search(rb"got:hello:\w", seen)


def test_an_interrupt_reaches_the_program(command: Command, place: Path) -> None:
    process = subprocess.Popen(
        [*command.argv, "run", "--rm", str(place / "root"), "sh", "-c",
         "trap 'exit 6' INT; echo ready; while :; do sleep 0.05; done"],
        env=command.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 6


def test_a_dead_shim_is_told_and_cleared(command: Command, place: Path) -> None:
    home = place / "boxes"
    command.answer("run", "-d", "--name", "orphan", str(place / "root"), "sleep", "60")
    os.kill(int((home / ".run/orphan/pid").read_text()), signal.SIGKILL)
    with pytest.raises(UnavailableError, match="shim of box orphan is gone"):
        asyncio.run(Standalone(home).wait("orphan"))
    command.answer("box", "rm", "-f", "orphan")
    deadline = time.monotonic() + 10  # nobody of ours is the parent of its runtime any more
    while left := leftovers(home, "orphan"):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_one_box_that_nobody_understands_is_no_harm_to_others(
    command: Command, place: Path
) -> None:
    root, run = str(place / "root"), place / "boxes/.run"
    for name in ("one", "two"):
        command.answer("run", "-d", "--name", name, root, "sh", "-c", "echo hello; exec sleep 60")
    record = run / "two/box.json"
    whole = record.read_text()
    record.write_text(whole.replace('"container"', '"broken"'))
    (run / "three").mkdir()  # a start that was killed at once
    found = json.loads(command.answer("box", "ps", "-o", "json"))
    assert [(box["name"], box["state"], box["problem"]) for box in found] == [
        ("one", "running", None),
        ("three", "unknown", "its start was cut off"),
        (
            "two",
            "unknown",
            "no isolation named 'broken', expected one of container, gvisor, microvm",
        ),
    ]
    assert "two: no isolation" in command("box", "ps").stderr
    assert command.answer("box", "logs", "two") == "hello\n"
    done = command("box", "rm", "-f", "two", "none", "three", "one")
    assert (done.returncode, done.stdout) == (2, "three\none\n")
    assert "no isolation named 'broken'" in done.stderr
    assert "no box none" in done.stderr
    record.write_text(whole)
    assert command.answer("box", "rm", "-f", "two") == "two\n"
    assert command("run", "-d", "--name", "one", root, "true").returncode == 0
    command.answer("box", "rm", "-f", "one")


def test_a_name_that_is_taken_harms_nothing(command: Command, place: Path) -> None:
    root = str(place / "root")
    command.answer("run", "-d", "--name", "taken", root, "sleep", "60")
    done = command("run", "--name", "taken", "no-such-image", "true")
    assert (done.returncode, "is there already" in done.stderr) == (125, True)
    assert command.answer("box", "exec", "taken", "echo", "here") == "here\n"
    command.answer("box", "rm", "-f", "taken")


def write_image(folder: Path, root: Path, config: dict[str, Any]) -> None:
    """An OCI layout of one layer (image-spec, image-layout.md)."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("bin/busybox", "bin/sh", "bin/echo", "bin/id", "etc"):
            tar.add(root / name, name)
    layer = blob(out.getvalue(), "application/vnd.oci.image.layer.v1.tar")
    rootfs = {"type": "layers", "diff_ids": [layer["digest"]]}
    document = {"architecture": "amd64", "os": "linux", "config": config, "rootfs": rootfs}
    described = blob(json.dumps(document).encode(), "application/vnd.oci.image.config.v1+json")
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = {"schemaVersion": 2, "mediaType": kind, "config": described, "layers": [layer]}
    named = blob(json.dumps(manifest).encode(), kind)
    named["annotations"] = {"org.opencontainers.image.ref.name": "tool:1"}
    index = {"schemaVersion": 2, "manifests": [named]}
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def test_an_image_is_run_as_its_author_says(command: Command, place: Path) -> None:
    config = {
        "Entrypoint": ["/bin/sh", "-c", 'echo "$0 $@ $B"; id -u'], "Cmd": ["a", "b"],
        "Env": ["PATH=/bin", "B=2"], "User": "1000:1000", "WorkingDir": "/srv",
    }  # fmt: skip
    write_image(place / "layout", place / "root", config)
    store = ContentStore(place / "images")
    load(store, place / "layout")
    assert command.answer("run", "--rm", "tool:1") == "a b 2\n1000\n"
    assert command.answer("run", "--rm", "-e", "B=3", "tool:1", "c") == "c  3\n1000\n"
    assert command.answer("run", "--rm", "-u", "0", "--entrypoint", "echo", "tool:1", "x") == "x\n"
    assert command("run", "--rm", "tool:2").returncode != 0
    command.answer("run", "-d", "--name", "kept", "--entrypoint", "sh", "tool:1", "-c", "exit 0")
    assert "box kept" in {lease.name for lease in store.leases()}
    while json.loads(command.answer("box", "ps", "-o", "json"))[0]["exit_code"] is None:
        time.sleep(0.05)
    command.answer("box", "rm", "kept")
    assert store.leases() == []
    with pytest.raises(NotFoundError):
        asyncio.run(Standalone(place / "boxes").wait("kept"))
