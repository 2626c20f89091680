"""The conformance suite of boxes: what `bedstone.sandbox.boxes` promises, as checks.

A driver's tests give it a home directory, and run every check:

    @pytest.mark.parametrize("check", CHECKS)
    def test_conformance(check: str) -> None:
        run_check(check, MyBoxes, home, root)

`root` is a root file system of `box_programs.make_root`. After each check nothing of its boxes may
be left on the machine: no process, mount, control group or file. Failures are assertion errors.
"""

from __future__ import annotations

import asyncio
import io
import os
import secrets
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from bedstone.sandbox.box import BoxLimits, BoxSpec, Exec, Exit, Launch, Stdio
from bedstone.sandbox.boxes import Boxes
from bedstone.sandbox.policy import ANY, ANY_USER, Policy

LIMIT: Final = 60.0
"""Seconds for one check."""
PERMISSIVE: Final = Policy(
    programs=(ANY,),
    exec=True,
    env=(ANY,),
    users=(ANY_USER,),
    tty=True,
    writable_root=True,
    copy_in=("/",),
    copy_out=("/",),
)
IDLE: Final = ("/bin/sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done")

Make = Callable[[Path], Boxes]


@dataclass
class Started:
    """A box that was started by this suite, and the process that parents it."""

    spec: BoxSpec
    process: asyncio.subprocess.Process
    output: bytearray = field(default_factory=bytearray)
    reading: asyncio.Task[None] | None = None

    async def said(self, text: str) -> None:
        """Wait until its output contains `text`."""
        while text.encode() not in self.output:
            assert self.reading is not None
            assert not self.reading.done(), f"it ended, and had said {bytes(self.output)!r}"
            await asyncio.sleep(0.01)

    async def end(self) -> tuple[int, str]:
        """Its exit status, as a shell has it, and all of its output."""
        status = await self.process.wait()
        if self.reading is not None:
            await self.reading
        return (128 - status if status < 0 else status), self.output.decode(errors="replace")


@dataclass
class World:
    """One driver, a root file system, and an empty folder of this machine."""

    boxes: Boxes
    home: Path
    root: Path
    folder: Path
    ids: list[str] = field(default_factory=list)
    started: list[Started] = field(default_factory=list)

    def spec(self, command: tuple[str, ...] | str = IDLE, **change: Any) -> BoxSpec:
        """A box with a permissive policy; text is run by a shell."""
        box = f"check-{secrets.token_hex(4)}"
        self.ids.append(box)
        argv = ("/bin/sh", "-c", command) if isinstance(command, str) else command
        spec = BoxSpec(
            id=box,
            root=str(self.root),
            command=argv,
            policy=PERMISSIVE,
            env={"PATH": "/bin"},
            limits=BoxLimits(memory=256 << 20, pids=256, disk=64 << 20),
        )
        return replace(spec, **change)

    async def launch(self, spec: BoxSpec) -> Started:
        """Prepare a box and run it, with its output and errors in one pipe."""
        return await self.parent(spec, await self.boxes.prepare(spec))

    async def parent(self, spec: BoxSpec, launch: Launch) -> Started:
        """Run a prepared box."""
        process = await asyncio.create_subprocess_exec(
            *launch.argv,
            env=dict(launch.env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        found = Started(spec, process)
        found.reading = asyncio.ensure_future(_read(found))
        self.started.append(found)
        return found

    async def idle(self, **change: Any) -> Started:
        """A box that waits, and has started."""
        found = await self.launch(self.spec(**change))
        await found.said("ready")
        return found

    async def run(self, command: str | tuple[str, ...], **change: Any) -> tuple[int, str]:
        """Run a command as a box's own, to its end: exit status and output."""
        return await (await self.launch(self.spec(command, **change))).end()

    async def exec(
        self,
        box: Started,
        command: str | tuple[str, ...],
        given: bytes = b"",
        env: Mapping[str, str] | None = None,
        **change: Any,
    ) -> tuple[int, str, str]:
        """Run a command in a box to its end: exit status, output, errors."""
        argv = ("/bin/sh", "-c", command) if isinstance(command, str) else command
        program = Exec(argv, {"PATH": "/bin"} if env is None else env, **change)
        pipes = [os.pipe() for _ in range(3)]
        try:
            stdio = Stdio(pipes[0][0], pipes[1][1], pipes[2][1])
            running = await self.boxes.exec(box.spec.id, program, stdio)
            for descriptor in (pipes[0][0], pipes[1][1], pipes[2][1]):
                os.close(descriptor)
            _, output, errors, ended = await asyncio.gather(
                asyncio.to_thread(_feed, pipes[0][1], given),
                asyncio.to_thread(_drain, pipes[1][0]),
                asyncio.to_thread(_drain, pipes[2][0]),
                running.wait(),
            )
        except BaseException:
            for descriptor in {end for pipe in pipes for end in pipe}:
                _close(descriptor)
            raise
        assert isinstance(ended, Exit)
        return ended.code, output.decode(errors="replace"), errors.decode(errors="replace")

    async def end(self) -> None:
        """Delete every box; nothing may be left."""
        for box in self.ids:
            await self.boxes.delete(box)
        for found in self.started:
            await found.end()
        for box in self.ids:
            left = leftovers(self.home, box)
            assert not left, f"left of {box}: {left}"


async def _read(found: Started) -> None:
    assert found.process.stdout is not None
    while block := await found.process.stdout.read(1 << 16):
        found.output += block


def _feed(descriptor: int, given: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(given)


def _drain(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:
        return


def leftovers(home: Path, box: str) -> list[str]:
    """What there still is of a box on this machine."""
    found = [str(path) for path in home.glob(f"**/*{box}*")]
    found += [
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"/{box}/" in line
    ]
    for folder, names, _ in os.walk("/sys/fs/cgroup"):  # glob fails when others' groups go
        found += [f"{folder}/{name}" for name in names if box in name]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = process.read_bytes()
        except OSError:
            continue
        if box.encode() in text:
            found.append(f"{process}: {text!r}")
    return found


def archive(*members: tuple[str, bytes | str | None], **change: Any) -> bytes:
    """A tar archive: bytes are a file, text is a symbolic link's target, None a folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.mode = 0o644
            for key, value in change.items():
                setattr(member, key, value)
            match content:
                case bytes():
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                case str():
                    member.type, member.linkname = tarfile.SYMTYPE, content
                    tar.addfile(member)
                case None:
                    member.type, member.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(member)
    return out.getvalue()


async def blocks(data: bytes, size: int = 4096) -> AsyncIterator[bytes]:
    """A stream of `data`."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def copied(world: World, box: Started, path: str) -> dict[str, tarfile.TarInfo]:
    """The members of what `copy_out` gives, by their names."""
    data = b"".join([block async for block in world.boxes.copy_out(box.spec.id, path)])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: member for member in tar}


Check = Callable[[World], Awaitable[None]]


@asynccontextmanager
async def _world(make: Make, home: Path, root: Path, folder: Path) -> AsyncIterator[World]:
    boxes = make(home)
    await boxes.open()
    world = World(boxes, home, root, folder)
    try:
        yield world
    finally:
        await world.end()


def run_check(check: str, make: Make, home: Path, root: Path, folder: Path) -> None:
    """Run one check of `CHECKS`.

    Args:
        check: its name.
        make: constructs the driver for a home.
        home: which may be shared by checks; every user may pass through it.
        root: of `make_root`.
        folder: empty, of this machine; every user may pass through it.
    """
    from bedstone.testing import box_checks, box_copies, box_escapes, box_links

    checks: dict[str, Check] = {}
    for module in (box_checks, box_copies, box_escapes, box_links):
        checks |= module.CHECKS

    async def run() -> None:
        async with asyncio.timeout(LIMIT), _world(make, home, root, folder) as world:
            await checks[check](world)

    asyncio.run(run())
