"""How runs end, in good order and otherwise: nothing is left, and nobody else is harmed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time

import pytest

from bedstone.testing.domain import COMMAND, Domain
from bedstone.testing.echo import (
    MANIFEST,
    failed,
    get,
    nothing_left,
    write,
)
from bedstone.testing.foreground import Foreground

pytestmark = pytest.mark.timeout(120)


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
