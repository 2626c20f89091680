"""Boxes that are virtual machines: the checks that all drivers pass, and what is theirs."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bedstone.errors import InvalidError, UnavailableError
from bedstone.sandbox.box import BoxSpec
from bedstone.sandbox.microvm.driver import MicrovmBoxes
from bedstone.sandbox.microvm.qemu import MOST_PORTS
from bedstone.testing.box_checks import CHECKS
from bedstone.testing.box_copies import CHECKS as COPIES
from bedstone.testing.box_escapes import CHECKS as ESCAPES
from bedstone.testing.box_links import CHECKS as LINKS
from bedstone.testing.box_programs import make_root, supported
from bedstone.testing.boxes import PERMISSIVE, World, _world, run_check

# Not those that mount this machine's folders, which a guest has none of; and of the rest those that
# start few guests, since an emulated one takes seconds.
SHARED = (
    "executes_beside",
    "copies_both_ways",
    "pauses_and_resumes",
    "refuses_what_the_policy_does",
    "gives_everything_back",
    "system_calls_are_refused",
    "is_linked_to_its_namespace",
    "goes_on_as_copies",
    "goes_on_from_a_snapshot",
    "mounts_what_is_declared",
    "shared_folders_lend_nothing",
)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    why = supported()
    if why is not None:
        pytest.skip(why)
    folder = Path(tempfile.mkdtemp(prefix="bedstone-microvm-"))
    folder.chmod(0o711)
    make_root(folder)
    try:
        asyncio.run(MicrovmBoxes(folder / "home").open())
    except UnavailableError as error:
        shutil.rmtree(folder)
        pytest.skip(f"{error}; {error.hint}")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("check", SHARED)
def test_conformance(check: str, place: Path) -> None:
    assert check in {**CHECKS, **COPIES, **ESCAPES, **LINKS}
    folder = Path(tempfile.mkdtemp(dir=place))
    run_check(check, MicrovmBoxes, place / "home", place / "root", folder)


def test_a_guest_is_a_machine_of_its_own(place: Path) -> None:
    """Its kernel, its time, its root, and QEMU without rights, files or network of this machine."""

    async def use() -> None:
        async with _world(MicrovmBoxes, place / "home", place / "root", place) as world:
            box = await world.idle()
            status, output, errors = await world.exec(
                box,
                "uname -r; date +%s; grep ' / ' /proc/mounts; hostname; ls /dev; cat /proc/1/comm",
            )
            lines = output.splitlines()
            assert "cloud" in lines[0]
            assert abs(int(lines[1]) - time.time()) < 10
            assert lines[2].startswith("overlay / overlay rw")
            assert lines[3] == "box"
            assert not [
                line for line in lines if line.startswith(("vd", "vport", "ttyS", "console"))
            ]
            assert "init" not in lines, errors
            assert status != 0
            _, output, _ = await world.exec(box, "cat /etc/hosts /etc/hostname")
            assert output == "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 box\nbox\n"
            for command, expected in (("nope", 127), ("/etc/passwd", 126), ("false", 1)):
                status, _, errors = await world.exec(box, (command,))
                assert (status, command in errors) == (expected, expected > 1)
            assert_confined(world, box.spec)

    asyncio.run(use())


def test_many_programs_run_at_once(place: Path) -> None:
    """More than a guest has ports for at first, and no more than it can have; then others wait."""

    async def use() -> None:
        async with _world(MicrovmBoxes, place / "home", place / "root", place) as world:
            box = await world.idle()
            count = MOST_PORTS + 3
            found = await asyncio.gather(
                *(world.exec(box, f"sleep 1; echo {number}") for number in range(count))
            )
            assert [output for _, output, _ in found] == [f"{number}\n" for number in range(count)]

    asyncio.run(use())


def assert_confined(world: World, spec: BoxSpec) -> None:
    """QEMU has a user, a network namespace and a filter of its own, and ends with the box."""
    root = str(world.home / spec.id)
    machines = [
        path.parent
        for path in Path("/proc").glob("[0-9]*/exe")
        if "qemu" in _link(path) and _link(path.parent / "cwd") == root
    ]
    assert len(machines) == 1
    status = dict(
        line.split(":\t", 1) for line in (machines[0] / "status").read_text().splitlines()
    )
    assert int(status["Seccomp"]) == 2
    if os.geteuid() == 0:
        assert int(status["Uid"].split()[1]) > 2_000_000_000
        assert int(status["CapEff"], 16) == 0
        assert _link(machines[0] / "ns/net") != _link(Path("/proc/self/ns/net"))


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


def test_what_a_guest_cannot_have_is_refused_before_anything_is_made(place: Path) -> None:
    async def use() -> None:
        boxes = MicrovmBoxes(place / "home")
        await boxes.open()
        spec = BoxSpec(
            "refused",
            str(place / "root"),
            ("/bin/sh",),
            replace(PERMISSIVE, devices=("/dev/fuse",)),
        )
        for changed in (
            replace(spec, write="direct"),
            replace(spec, devices=("/dev/fuse",)),
            replace(spec, root=str(place / "none")),
        ):
            with pytest.raises(InvalidError, match="box refused"):
                await boxes.prepare(changed)
        assert await boxes.list() == []

    asyncio.run(use())
