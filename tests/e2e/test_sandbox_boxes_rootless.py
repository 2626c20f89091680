"""Boxes of a user without rights: as others, but for what they say that they cannot."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import bedstone
from bedstone.sandbox.oci.machine import which
from bedstone.testing.box_programs import make_root, supported

NOBODY = 65534
SCRIPT = r"""
import asyncio, sys
from pathlib import Path
from bedstone.boxes import Sandbox
from bedstone.errors import Error, InvalidError, UnavailableError
from bedstone.sandbox.box import Mount

place = Path(sys.argv[1])
home, root = place / "boxes", str(place / "root")


async def refused(kind, text, **change):
    try:
        async with Sandbox.create(root, home=home, **change):
            raise AssertionError(change)
    except kind as error:
        assert text in error.message, error.message


async def main():
    mounts = [Mount(str(place / "root/etc"), "/outside"), Mount("", "/mem", False, "tmpfs")]
    async with Sandbox.create(root, home=home, name="own-box", mounts=mounts) as box:
        notes = " ".join(box.notes)
        for part in ("one user", "disk limit not applied", "memory limit not applied"):
            assert part in notes, notes
        script = "id -u; touch /etc/new /mem/new && ls /mem; cat /outside/of-the-box; id; echo $$"
        done = await box.exec("sh", "-c", script)
        assert done.stdout.splitlines()[:3] == [b"0", b"new", b"yes"], done
        for attempt in ("mount", "ptrace", "keyctl", "unshare_user", "bpf", "reboot", "raw_socket"):
            assert (await box.exec(f"/attempts/{attempt}")).code == 1, attempt
        assert (await box.exec("sh", "-c", "touch /outside/x")).code == 1
        assert (await box.exec("cat", "/secret")).code == 1
        assert (await box.exec("nope")).code == 127
        await box.write("/job/file", b"data")
        assert await box.read("/job/file") == b"data"
        # What would keep its folder from being removed.
        script = "mkdir -m 0 /job/shut; mkdir -m 0555 /job/fast; ln -s / /job/l"
        assert (await box.exec("sh", "-c", script)).code == 0
        try:
            await box.exec("id", user=5)
            raise AssertionError
        except InvalidError as error:
            assert "one user" in error.message
        try:
            await box.pause()
            raise AssertionError
        except UnavailableError:
            pass
    assert not list(home.glob("*own-box*")) and not list(home.glob(".run/own-box"))
    await refused(InvalidError, "one user", user="5")
    await refused(UnavailableError, "namespace", ports=["80"])
    await refused(UnavailableError, "need root", isolation="gvisor")
    async with Sandbox.create(root, home=home, readonly=True) as box:
        tried = await box.exec("sh", "-c", "touch /tmp/x && ! touch /x")
        assert tried.code == 0, tried
        assert (await box.exec("cat", "/etc/hosts")).stdout.startswith(b"127.0.0.1 localhost")
    assert [path.name for path in home.iterdir() if not path.name.startswith(".")] == []


try:
    asyncio.run(main())
except UnavailableError as error:
    print(error)
    sys.exit(77)
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder of the user without rights, with a root of that user's, and a file of another."""
    if (why := supported()) is not None:
        pytest.skip(why)
    if which("runc") is None and which("crun") is None:
        pytest.skip("neither runc nor crun is installed")
    folder = Path(tempfile.mkdtemp(prefix="bedstone-rootless-"))
    root = make_root(folder)
    (root / "secret").touch(mode=0o600)
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            if path.name != "secret":
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    else:
        (root / "secret").chmod(0)
    yield folder
    shutil.rmtree(folder)


def python() -> str | None:
    """An interpreter that the user without rights may run."""
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    for program in (sys.executable, "/usr/bin/python3"):
        words = [program, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            if subprocess.run(words, check=False, cwd="/", **user).returncode == 0:  # type: ignore[call-overload]
                return program
        except OSError:
            continue
    return None


def test_a_user_has_boxes_too(place: Path) -> None:
    program = python()
    source = Path(bedstone.__file__).parents[1]
    if program is None or not all(
        folder.stat().st_mode & stat.S_IXOTH for folder in (source, *source.parents)
    ):
        pytest.skip("a user without rights has no Python 3.11 here, or may not read this one")
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run(  # type: ignore[call-overload]
        [program, "-c", SCRIPT, str(place)],
        env={
            "PATH": os.environ["PATH"], "PYTHONPATH": str(source), "HOME": str(place),
            "BEDSTONE_HOME": str(place), "PYTHONDONTWRITEBYTECODE": "1",
        },
        cwd="/", capture_output=True, text=True, timeout=100, check=False, **user,
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stderr
