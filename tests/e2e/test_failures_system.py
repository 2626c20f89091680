"""What the machine refuses, rights, disk, paths, addresses: it is said, with what to do."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bedstone.testing.domain import Domain
from bedstone.testing.echo import (
    MANIFEST,
    failed,
    get,
    listening,
    nothing_left,
    write,
)

pytestmark = pytest.mark.timeout(120)
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="mounts a file system or changes a user: run the tests as root"
)


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
