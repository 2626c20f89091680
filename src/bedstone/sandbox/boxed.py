"""Sandboxes that are boxes: `container`, `gvisor` and `microvm`, over the driver of that name.

Each instance has a network namespace of its own, where its proxy listens, and a box with an id made
from its path. The supervisor parents the command that the driver gives for the box; when an
instance is started again, its box is made anew. `HOME/.workloads/ID/` has what is made here for a
box: `root/`, `identity/` and `notes.json`.

Rules:
- A driver is opened at first use. Where it cannot work, each start says why; nothing is ever run
  with less isolation than was declared.
- Boxes of this run whose process has ended are deleted when the driver is opened: an agent that was
  killed, or a run that was, left them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from bedstone.errors import ConflictError, Error, InvalidError, NotFoundError, UnavailableError
from bedstone.model.resources import UNAPPLIED, Address, Instance, Plumbing
from bedstone.processes.spec import ProcessInfo, ProcessSpec
from bedstone.sandbox import beside
from bedstone.sandbox.bootstrap import make_folder, write_bootstrap, write_identity
from bedstone.sandbox.box import BoxSpec, Stats
from bedstone.sandbox.boxes import KIND, Boxes, Endings
from bedstone.sandbox.boxing import IDENTITY, Plan, plan, probe_program
from bedstone.sandbox.folders import write
from bedstone.sandbox.namespaces import Sockets, namespace_name, plumb
from bedstone.sandbox.ports import bindable
from bedstone.sandbox.protocol import Host, ImageRoot, Images, Started, Unit, process_name

PROCESS_LABEL: Final = "bedstone.process"
_KILLED: Final = 128 + signal.SIGKILL


class BoxSandbox:
    """Runs instances in boxes; see the module.

    Args:
        host: what it has of its node.
        isolation: the driver's name.
    """

    def __init__(self, host: Host, isolation: str) -> None:
        self._host = host
        self._isolation = isolation
        self._home = Path(os.path.realpath(host.boxes))
        self._sockets = Sockets()
        self._opening = asyncio.Lock()
        self._boxes: Boxes | None = None

    async def open(self) -> None:
        """Clear away what an earlier run has left, if there is something; see the protocol."""
        if _left(self._home, self._host.run_dir, self._isolation):
            with contextlib.suppress(Error):  # who needs the driver is told what is missing
                await self._open()

    @property
    def enforced(self) -> bool:
        """Always: a box is in no network but its own."""
        return True

    async def allot(
        self,
        instance: Instance,
        workloads: Sequence[str],
        databases: Sequence[str],
        previous: Plumbing | None,
        *,
        warm: bool = False,
    ) -> Plumbing:
        """A namespace, and the network between it and the box; see the protocol."""
        del warm
        boxes = await self._open()
        netns = str(await self._host.processes.create_netns(namespace_name(instance)))
        link = await boxes.link(netns)
        return plumb(self._host, netns, link, workloads, databases, previous)

    async def fetch(self, unit: Unit, tell: Callable[[str], None]) -> None:
        """Pull the image; see the protocol."""
        await self._image(unit, self._id(unit.instance), tell)

    async def start(self, unit: Unit) -> Started:
        """Start the box; see the protocol."""
        name = process_name(unit.instance)
        running = await self._process(name)
        box = self._id(unit.instance)
        if running is not None and running.running:
            return Started(running, enforced=True, limits=self._notes(box))
        boxes = await self._open()
        for old in self._made_for(unit.instance):
            await self._clear(boxes, old)
        info, notes = await self._spawn(boxes, unit, box, name, None)
        return Started(info, enforced=True, limits=notes)

    async def run(self, unit: Unit, name: str, command: Sequence[str]) -> ProcessInfo:
        """Run a command in the box if it runs, else in one of its own; see the protocol."""
        boxes = await self._open()
        main = await self._process(process_name(unit.instance))
        box = self._id(unit.instance)
        if main is None or not main.running:
            box = f"{box}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
            before = await self._process(name)
            if before is not None and before.running:
                return before
            await self._clear(boxes, box)
            return (await self._spawn(boxes, unit, box, name, tuple(command)))[0]
        spec = self._spec(box)
        program = await asyncio.to_thread(probe_program, self._host, unit, spec, command)
        file = self._folder(box) / f"exec-{hashlib.sha256(name.encode()).hexdigest()[:8]}.json"
        write(file, beside.encode(program))
        env = {key: os.environ[key] for key in ("PATH", "PYTHONPATH") if key in os.environ}
        return await self._host.processes.spawn(
            ProcessSpec(
                name=name,
                argv=beside.command(self._isolation, self._home, box, file),
                env=env,
                stdout=str(unit.log),
                stop_grace=1.0,
            )
        )

    async def ending(self, instance: Instance, info: ProcessInfo) -> str:
        """With what its driver knows of the box; see the protocol."""
        text = describe(info)
        if info.exit_code == 0 or info.state != "exited":
            return text
        box = self._id(instance)
        try:
            spec, boxes = self._spec(box), await self._open()
            spent = await boxes.spent(box) if isinstance(boxes, Endings) else Stats()
        except Error:
            return text
        if spec.limits.memory is None or spent.oom_kills == 0:
            return text
        limit = f"its memory limit of {spec.limits.memory / (1 << 20):.4g} MiB"
        if spent.oom_kills:
            return f"{text}: it used more than {limit}"
        return f"{text}: perhaps for {limit}" if info.exit_code == _KILLED else text

    async def stats(self, instance: Instance) -> Stats | None:
        """By the box's control group; None for a virtual machine, whose processes tell."""
        if self._isolation == "microvm":
            return None
        return await (await self._open()).stats(self._id(instance))

    async def stop(self, instance: Instance, grace: float) -> None:
        """End the box's command, and the box; see the protocol."""
        await self._host.processes.stop(process_name(instance), grace)
        with contextlib.suppress(UnavailableError):
            await self._clear(await self._open(), self._id(instance))

    async def release(self, instance: Instance, plumbing: Plumbing | None) -> None:
        """Give everything back; see the protocol."""
        await self._host.processes.forget(process_name(instance))
        left = self._made_for(instance)
        if left:
            boxes = await self._open()
            for box in left:
                await self._clear(boxes, box)
        if self._host.images is not None:
            # Also what was fetched for a box that was never made.
            await self._host.images.let_go_all(self._id(instance))
        if plumbing is not None:
            self._host.ports.free(plumbing.inbound.port)
        await self._host.processes.delete_netns(namespace_name(instance))

    def refresh(self, unit: Unit) -> None:
        """Replace the identity's files; see the protocol."""
        box = self._id(unit.instance)
        folder = self._folder(box) / "identity"
        if unit.identity is not None and folder.is_dir():
            try:
                write_identity(folder, unit.identity, folder.stat().st_uid)
            except OSError as error:
                raise _unwritable(folder, error) from error

    def usable(self, plumbing: Plumbing) -> bool:
        """Whether the proxy could listen; see the protocol."""
        return bindable(plumbing.inbound.host, plumbing.inbound.port)

    def app_port_free(self, plumbing: Plumbing) -> bool:
        """Always, in a network of its own."""
        del plumbing
        return True

    def socket(self, address: Address) -> socket.socket:
        """A socket in the network of `address`; see the protocol."""
        return self._sockets.make(address)

    # The driver.

    async def _open(self) -> Boxes:
        """The driver, open. Raises UnavailableError with what is missing."""
        async with self._opening:
            if self._boxes is None:
                if self._host.enforce == "never":
                    raise UnavailableError(
                        f"isolation {self._isolation} needs networks of its own, and this run "
                        "isolates none"
                    )
                boxes: Boxes = KIND.load(self._isolation)(self._home)
                try:
                    await boxes.open()
                except UnavailableError as error:
                    hint = f"; {error.hint}" if error.hint else ""
                    raise UnavailableError(
                        f"no isolation {self._isolation} here: {error.message}{hint}",
                        hint="`bedstone doctor` says what this machine has",
                    ) from error
                await self._sweep(boxes)
                self._boxes = boxes
            return self._boxes

    async def _sweep(self, boxes: Boxes) -> None:
        """Delete the boxes of this run whose process does not run."""
        alive = {info.name for info in await self._host.processes.list() if info.running}
        for box in _left(self._home, self._host.run_dir, self._isolation):
            try:
                name = self._spec(box).labels.get(PROCESS_LABEL)
            except UnavailableError:
                name = None
            if name not in alive:
                await self._clear(boxes, box)

    async def _clear(self, boxes: Boxes, box: str) -> None:
        await _delete(boxes, self._home, box, self._host.images)

    # One box.

    async def _spawn(
        self, boxes: Boxes, unit: Unit, box: str, name: str, command: tuple[str, ...] | None
    ) -> tuple[ProcessInfo, tuple[str, ...]]:
        image = await self._image(unit, box, lambda _text: None)
        made = await asyncio.to_thread(self._plan, unit, box, name, image, command)
        try:
            launch = await boxes.prepare(made.spec)
        except ConflictError as error:
            raise UnavailableError(error.message) from error
        unapplied = (f"{UNAPPLIED}{note}" for note in launch.notes)
        notes = (f"isolation: {self._isolation}", *made.notes, *unapplied)
        if image is not None:
            notes = (*notes, *image.notes, f"image: {image.image}@{image.digest}")
        write(self._folder(box) / "notes.json", json.dumps(notes))
        info = await self._host.processes.spawn(
            ProcessSpec(
                name=name,
                argv=launch.argv,
                env=launch.env,
                stdout=str(unit.log),
                umask=0o022,  # of the places of mounts that a runtime makes
                stop_grace=unit.revision.spec.stop_timeout,
            )
        )
        if info.state == "failed":
            raise (InvalidError if info.lasting else UnavailableError)(info.ending())
        return info, notes

    def _plan(
        self,
        unit: Unit,
        box: str,
        name: str,
        image: ImageRoot | None,
        command: tuple[str, ...] | None,
    ) -> Plan:
        folder = self._folder(box)
        labels = {PROCESS_LABEL: name}
        try:
            folder.parent.mkdir(mode=0o700, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            made = plan(self._host, unit, box, folder, image, command, labels)
            if unit.identity is not None:
                self._identify(unit, folder / "identity", made.spec)
        except OSError as error:
            raise _unwritable(folder, error) from error
        return made

    def _identify(self, unit: Unit, folder: Path, spec: BoxSpec) -> None:
        assert unit.identity is not None  # noqa: S101 - it was asked
        make_folder(folder, spec.user)
        node = f"{unit.instance.app}/{unit.instance.workload}/{unit.instance.name}"
        write_identity(folder, unit.identity, spec.user)
        write_bootstrap(folder, node, unit.xds, spec.user, seen=Path(IDENTITY))

    async def _image(
        self, unit: Unit, holder: str, tell: Callable[[str], None]
    ) -> ImageRoot | None:
        image = unit.revision.spec.image
        if image is None:
            return None
        if self._host.images is None:
            raise UnavailableError("this node has no images")
        lazy = self._isolation != "microvm"  # which reads all of it to make a disk of it
        return await self._host.images.find(image, holder, tell, lazy=lazy)

    async def _process(self, name: str) -> ProcessInfo | None:
        found = [info for info in await self._host.processes.list() if info.name == name]
        return found[0] if found else None

    def _spec(self, box: str) -> BoxSpec:
        """What a box was made as. Raises UnavailableError."""
        try:
            return BoxSpec.from_json(json.loads((self._home / box / "spec.json").read_text()))
        except (OSError, ValueError, InvalidError) as error:
            raise UnavailableError(f"box {box} is gone") from error

    def _notes(self, box: str) -> tuple[str, ...]:
        try:
            return tuple(json.loads((self._folder(box) / "notes.json").read_text()))
        except (OSError, ValueError):
            return ()

    def _made_for(self, instance: Instance) -> list[str]:
        """The boxes, and what is left of them, of an instance and of commands beside it."""
        own = self._id(instance)
        found = {
            path.name
            for folder in (self._home, self._home / ".workloads")
            for path in folder.glob(f"{own}*")
        }
        return sorted(name for name in found if name == own or name.startswith(f"{own}-"))

    def _id(self, instance: Instance) -> str:
        return f"{prefix(self._host.run_dir)}{namespace_name(instance)}"

    def _folder(self, box: str) -> Path:
        return self._home / ".workloads" / box


def describe(info: ProcessInfo) -> str:
    """How a box's command ended: 128 + N is signal N, as runtimes say it."""
    number = (info.exit_code or 0) - 128
    if info.state == "exited" and number in set(signal.Signals):
        return f"killed by {signal.Signals(number).name}"
    return info.ending()


def prefix(run_dir: Path) -> str:
    """How the ids of the boxes of a run begin, which no other run's do."""
    return f"{hashlib.sha256(str(run_dir).encode()).hexdigest()[:10]}-"


async def clear_away(home: Path, run_dir: Path, images: Images | None) -> list[str]:
    """Delete every box of a run that has ended; why some could not be.

    Args:
        home: the folder of all boxes.
        run_dir: of the run.
        images: of this machine.
    """
    home = Path(os.path.realpath(home))
    failures = []
    for isolation in KIND.names():
        left = _left(home, run_dir, isolation)
        if not left:
            continue
        boxes: Boxes = KIND.load(isolation)(home)
        try:
            await boxes.open()
            for box in left:
                await _delete(boxes, home, box, images)
        except Error as error:
            failures.append(f"boxes of isolation {isolation} stay: {error.message}")
    if not failures:
        for folder in (home / ".workloads").glob(f"{prefix(run_dir)}*"):
            shutil.rmtree(folder, ignore_errors=True)
        if images is not None:
            await images.let_go_all(prefix(run_dir))
    return failures


def _left(home: Path, run_dir: Path, isolation: str) -> list[str]:
    """The boxes of a run that are there, running or not, with one isolation."""
    found = []
    for file in home.glob(f"{prefix(run_dir)}*/isolation"):
        with contextlib.suppress(OSError):
            if file.read_text() == isolation:
                found.append(file.parent.name)
    return sorted(found)


async def _delete(boxes: Boxes, home: Path, box: str, images: Images | None) -> None:
    with contextlib.suppress(NotFoundError):
        await boxes.delete(box)
    if images is not None:
        await images.let_go(box)
    shutil.rmtree(home / ".workloads" / box, ignore_errors=True)


def container(host: Host) -> BoxSandbox:
    """By an OCI runtime."""
    return BoxSandbox(host, "container")


def gvisor(host: Host) -> BoxSandbox:
    """By a kernel in user space."""
    return BoxSandbox(host, "gvisor")


def microvm(host: Host) -> BoxSandbox:
    """By a virtual machine."""
    return BoxSandbox(host, "microvm")


def _unwritable(folder: Path, error: OSError) -> UnavailableError:
    return UnavailableError(
        f"cannot write {error.filename or folder}: {error.strerror}",
        hint="make it writable, and see that its disk has room",
    )
