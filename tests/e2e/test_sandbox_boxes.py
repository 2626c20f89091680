"""`bedstone run`, `bedstone box …` and `Sandbox` over real boxes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bedstone.boxes import Sandbox
from bedstone.boxes.standalone import Standalone
from bedstone.cli.main import run
from bedstone.errors import InvalidError, NotFoundError, UnavailableError
from bedstone.images.bundles import load
from bedstone.images.store import ContentStore
from bedstone.sandbox.box import Mount
from bedstone.sandbox.boxes import KIND
from bedstone.sandbox.policy import Policy
from bedstone.testing.box_programs import make_root, supported
from bedstone.testing.boxes import leftovers


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder with a root; every user may pass through it, as the users of boxes must."""
    why = supported()
    if why is not None:
        pytest.skip(why)
    folder = Path(tempfile.mkdtemp(prefix="bedstone-run-"))
    folder.chmod(0o711)
    try:
        asyncio.run(KIND.load("container")(folder / "boxes").open())
    except UnavailableError as error:
        shutil.rmtree(folder)
        pytest.skip(f"{error}; {error.hint}")
    make_root(folder)
    yield folder
    asyncio.run(clear(folder / "boxes"))
    shutil.rmtree(folder)


async def clear(home: Path) -> None:
    """Delete what a test that failed has left."""
    standalone = Standalone(home)
    for listed in await standalone.list():
        await standalone.delete(listed.id)


def need(isolation: str, place: Path) -> None:
    """Skip a test whose driver cannot work here."""
    try:
        asyncio.run(KIND.load(isolation)(place / "boxes").open())
    except UnavailableError as error:
        pytest.skip(f"{error}; {error.hint}")


class Command:
    """The command line with a home of its own: in this process, where it needs no input."""

    def __init__(self, home: Path, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self.env = {**os.environ, "BEDSTONE_HOME": str(home), "NO_COLOR": "1"}
        self.argv = (sys.executable, "-c", "from bedstone.cli.main import main; main()")

    def __call__(self, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
        if not given:
            self._capture.readouterr()
            status = run(words)
            seen = self._capture.readouterr()
            return subprocess.CompletedProcess(words, status, seen.out, seen.err)
        return subprocess.run(
            [*self.argv, *words],
            env=self.env,
            input=given,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def answer(self, *words: str) -> str:
        done = self(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def command(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    monkeypatch.setenv("BEDSTONE_HOME", str(place))
    return Command(place, capfd)


def test_run_is_as_the_program_is(command: Command, place: Path) -> None:
    root = str(place / "root")
    done = command(
        "run", "--rm", "--name", "first-box", root, "sh", "-c", "echo o; echo e >&2; exit 3"
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "o\n", "e\n")
    done = command("run", "--rm", "-i", "-e", "A=1", "-u", "5:6", "-w", "/work", root, "sh", "-c",
                   "cat; pwd; id -u; echo $A", given="in\n")  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "in\n/work\n5\n1\n")
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
    command.answer("box", "cp", str(data), "db-box:/work")
    assert command.answer("box", "exec", "db-box", "cat", "/work/data/file") == "shared\n"
    back = place / "back"
    back.mkdir()
    command.answer("box", "cp", "db-box:/work/data", str(back))
    assert (back / "data/file").read_text() == "shared\n"
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
    words = ("run", "--rm", "-it", str(place / "root"), "sh", "-c", "read x; echo got:$x; exit 5")
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
    assert b"got:hello" in seen


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
    assert not relay.exists()
    assert not leftovers(place / "boxes", "net-box")
    assert not list(Path("/run/bedstone/boxes").glob("*-net-box"))


def fetched(port: int) -> bytes | None:
    """The page of a published port; None if nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            page: bytes = answer.read()
            return page
    except OSError:
        return None


def test_the_ports_of_a_box_whose_shim_was_killed_are_free(command: Command, place: Path) -> None:
    command.answer("run", "-d", "--name", "lost", "-p", "80", str(place / "root"), "sleep", "60")
    (found,) = json.loads(command.answer("box", "ps", "-o", "json"))
    port = found["ports"][0]["port"]
    os.kill(int((place / "boxes/.run/lost/pid").read_text()), signal.SIGKILL)
    deadline = time.monotonic() + 20
    while command("run", "--rm", "-p", f"{port}:80", str(place / "root"), "true").returncode:
        assert time.monotonic() < deadline
    command.answer("box", "rm", "-f", "lost")


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


@pytest.mark.parametrize("isolation", ["container", "gvisor"])
def test_sandbox_in_python(isolation: str, place: Path) -> None:
    home = place / "boxes"

    async def work() -> str:
        mounts = [Mount(str(place / "root/etc"), "/outside")]
        async with Sandbox.create(
            str(place / "root"), isolation=isolation, home=home, mounts=mounts, env={"A": "1"}
        ) as box:
            result = await box.exec("sh", "-c", "cat; echo $A >&2; exit 4", stdin=b"x" * 200_000)
            assert (result.code, len(result.stdout), result.stderr) == (4, 200_000, b"1\n")
            found = await asyncio.gather(*(box.exec("echo", str(n)) for n in range(4)))
            assert [each.stdout for each in found] == [b"0\n", b"1\n", b"2\n", b"3\n"]
            with pytest.raises(TimeoutError):
                await box.exec("sleep", "30", timeout=0.3)
            assert (await box.exec("cat", "/outside/of-the-box")).stdout == b"yes\n"
            assert (await box.exec("true", stdin=b"x" * 1_000_000)).code == 0
            # More at once than there are threads, and each has more to say than a pipe holds.
            script = "head -c 200000 /dev/zero; head -c 100000 /dev/zero >&2; cat"
            many = await asyncio.gather(
                *(box.exec("sh", "-c", script, stdin=b"y" * 100_000) for _ in range(8))
            )
            assert {(len(each.stdout), len(each.stderr)) for each in many} == {(300_000, 100_000)}
            await box.write("/work/a file", b"\0data", mode=0o600)
            assert await box.read("/work/a file") == b"\0data"
            assert (await box.exec("stat", "-c", "%a %u", "/work/a file")).stdout == b"600 0\n"
            for path, kind in (("/work", InvalidError), ("/none", NotFoundError)):
                with pytest.raises(kind):
                    await box.read(path)
            with pytest.raises(NotFoundError):
                await box.write("/none/file", b"")
            async with box.exec_stream("sh", "-c", "read x; echo $x; read y; exit 5") as program:
                await program.write(b"hello\n")
                async for chunk in program:
                    assert (chunk.data, chunk.error) == (b"hello\n", False)
                    await program.close()
                assert await program.wait() == 5
            async with box.exec_stream("sh", "-c", "echo $$; exec sleep 60") as program:
                pid = (await anext(program)).data.decode().strip()
            assert (await box.exec("kill", "-0", pid)).code == 1  # it went with its block
            return box.id

    need(isolation, place)
    assert not leftovers(home, asyncio.run(work()))


def test_a_sandbox_with_a_command_and_a_network_of_its_own(place: Path) -> None:
    async def work() -> None:
        async with Sandbox.create(
            str(place / "root"),
            command=(
                "sh",
                "-c",
                "mkdir /w; echo page >/w/index.html; httpd -p 80 -h /w; sleep 60; exit 7",
            ),
            ports=["80"],
            egress=["a.example"],
            home=place / "boxes",
        ) as box:
            await box.exec("sh", "-c", "until nc 127.0.0.1 80 </dev/null; do sleep 0.05; done")
            assert await asyncio.to_thread(fetched, box.ports[0].port) == b"page\n"
            script = "wget -q -O - http://b.example"
            assert b"403" in (await box.exec("sh", "-c", script)).stderr
            assert b"b.example:80 is not allowed" in b"".join([part async for part in box.logs()])
            await box.exec("killall", "sleep")
            assert await box.wait() == 7

    asyncio.run(work())


def test_a_sandbox_that_is_refused_leaves_nothing(place: Path) -> None:
    async def work() -> None:
        async with Sandbox.create(str(place / "root"), home=place / "boxes", policy=Policy()):
            raise AssertionError

    with pytest.raises(InvalidError, match="policy"):
        asyncio.run(work())
    assert not list((place / "boxes").glob("box-*"))


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
