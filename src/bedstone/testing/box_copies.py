"""Checks of `bedstone.testing.boxes`: snapshots and copies of boxes, where a driver has them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Final

from bedstone.errors import DeniedError, Error, InvalidError
from bedstone.sandbox.boxes import Forks, Snapshots
from bedstone.sandbox.policy import Policy
from bedstone.testing.box_links import fetch, interfaces, namespaces
from bedstone.testing.boxes import PERMISSIVE, Check, Started, World

_DRAWING: Final = (
    "echo kept > /tmp/kept; echo ready; (while :; do nc -l -p 8090 -e echo of the box; done) & "
    "n=0; while :; do n=$((n+1)); echo $n $(head -c 8 /dev/urandom | od -An -tx1); "
    "usleep 50000; done"
)
"""What tells apart who draws from the same random stream, and where it goes on."""


async def goes_on_as_copies(world: World) -> None:
    """Copies go on where the box was, each with its own random pool, disk, network and end.

    They have this machine's time, and live without the original.
    """
    boxes = world.boxes
    if not isinstance(boxes, Forks):
        return
    with namespaces(world.folder, "original", "first", "second") as networks:
        for network in networks:
            link = await boxes.link(network)
        given = replace(PERMISSIVE, network="given")
        box = await world.launch(world.spec(_DRAWING, netns=networks[0], policy=given))
        await box.said("ready")
        await box.said("\n5 ")
        specs = [replace(box.spec, id=world.spec().id, netns=each) for each in networks[1:]]
        await _refused(InvalidError, "`hostname`", boxes.fork_many(
            box.spec.id, [specs[0], replace(specs[1], hostname="other")]
        ))  # fmt: skip
        before = len(_lines(box))
        launches = await boxes.fork_many(box.spec.id, specs)
        copies = [
            await world.parent(spec, launch) for spec, launch in zip(specs, launches, strict=True)
        ]
        for copy in copies:
            await _said(copy, 5)
        await world.boxes.delete(box.spec.id)
        # What was drawn, or on its way out, when they were made is the same for all.
        drawn = [words[1:] for words in _lines(box)]
        drawn += [words[1:] for copy in copies for words in _lines(copy)[2:]]
        assert len(drawn) == len({tuple(words) for words in drawn})
        for copy, network in zip(copies, networks[1:], strict=True):
            first = int(_lines(copy)[0][0])
            assert before <= first <= len(_lines(box)) + 1
            assert "ready" not in copy.output.decode()
            assert await fetch(network, link.box, 8090) == b"of the box\n"
            _, output, errors = await world.exec(
                copy, f"cat /tmp/kept; cat /mine; echo {copy.spec.id} > /mine; date +%s"
            )
            lines = output.splitlines()
            assert lines[0] == "kept", errors
            assert len(lines) == 2, "a copy writes to another's disk"
            assert abs(int(lines[1]) - time.time()) < 10
        assert interfaces(networks[0]) == ["lo"]
        await world.boxes.signal(copies[0].spec.id, 9)
        assert (await copies[0].end())[0] == 137
        # It begins anew, with its disk.
        again = await world.parent(specs[0], await boxes.prepare(specs[0]))
        await again.said("ready")
        assert specs[0].id in (await world.exec(again, "cat /mine"))[1]


async def goes_on_from_a_snapshot(world: World) -> None:
    """A snapshot is gone on from when its box is gone, and again from the box that did."""
    boxes = world.boxes
    if not isinstance(boxes, Snapshots):
        return
    box = await world.launch(world.spec("echo ready; sleep 1d & read x < /dev/null; n=0; "
        "while :; do n=$((n+1)); echo $n; sleep 0.05; done"))  # fmt: skip
    await box.said("ready")
    await box.said("\n2")
    chain = [world.folder / "one", world.folder / "two"]
    for folder in chain:
        folder.mkdir()
        await boxes.snapshot(box.spec.id, str(folder))
        spec = replace(box.spec, id=world.spec().id)
        await boxes.delete(box.spec.id)
        denied = boxes.restore(str(folder), replace(spec, policy=Policy()))
        await _refused(DeniedError, "policy", denied)
        last = int(_lines(box)[-1][0])
        box = await world.parent(spec, await boxes.restore(str(folder), spec))
        await _said(box, 1)
        assert last <= int(_lines(box)[0][0]) <= last + 2
        _, processes, _ = await world.exec(box, "ps")
        assert sum(line.endswith(" sleep 1d") for line in processes.splitlines()) == 1
    (chain[0] / "snapshot.json").unlink()
    await _refused(InvalidError, "no snapshot", boxes.restore(str(chain[0]), spec))


def _lines(box: Started) -> list[list[str]]:
    """The whole lines that begin with a number, as words."""
    whole = box.output.decode().split("\n")[:-1]
    return [line.split() for line in whole if line[:1].isdigit()]


async def _said(box: Started, lines: int) -> None:
    while len(_lines(box)) < lines:
        assert box.process.returncode is None, bytes(box.output)
        await asyncio.sleep(0.01)


async def _refused(kind: type[Error], text: str, call: object) -> None:
    said = ""
    try:
        await call  # type: ignore[misc]
    except kind as error:
        said = str(error)
    assert text in said, f"{call} was not refused for {text}: {said}"


CHECKS: Final[dict[str, Check]] = {
    check.__name__: check for check in (goes_on_as_copies, goes_on_from_a_snapshot)
}
