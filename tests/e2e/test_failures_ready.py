"""What never becomes ready, fails at once, or goes away: it is named with its reason."""

from __future__ import annotations

import re
import sys
import time

import pytest

from bedstone.testing.domain import Domain
from bedstone.testing.echo import (
    MANIFEST,
    failed,
    get,
    write,
)

pytestmark = pytest.mark.timeout(120)


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
