"""The driver `microvm`: each box is a virtual machine of QEMU with a kernel of its own.

KVM is used only where a guest was seen to start with it; else the processor is emulated, which
needs no privilege. The policy and the limits are sealed into the guest before it starts, and
checked there again.

Nothing is kept in memory between calls: any process of this machine can go on with a box that
another one made. A box has one connection for its command and some for everything else; each
operation takes one for itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import math
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

from bedstone.errors import ConflictError, Error, InvalidError, NotFoundError, UnavailableError
from bedstone.sandbox.box import BoxInfo, BoxSpec, Exec, Exit, Launch, Link, State, Stats, Stdio
from bedstone.sandbox.folders import write
from bedstone.sandbox.links import link_stacks
from bedstone.sandbox.microvm import build, making, monitor, snapshots
from bedstone.sandbox.microvm.agent import Agent, Program
from bedstone.sandbox.microvm.archive import to_records, to_tar
from bedstone.sandbox.microvm.build import Tools
from bedstone.sandbox.microvm.folders import ISOLATION, Folders
from bedstone.sandbox.microvm.locks import LOCK, holder, kill_holder, lock_folder
from bedstone.sandbox.microvm.qemu import MOST_PORTS, Accelerator, port_socket
from bedstone.sandbox.microvm.qmp import connected
from bedstone.sandbox.microvm.stdio import Pump
from bedstone.sandbox.policy import ANY_USER, Policy, check_copy, check_exec, check_start

PATIENCE: Final = 30.0
PROBE_PATIENCE: Final = 5.0


class MicrovmRunning:
    """A program that `exec` started; see the protocol `Running`."""

    def __init__(self, agent: Agent, program: Program, stdio: Stdio, port: int) -> None:
        self._agent = agent
        self._program = program
        self._port = port
        self._end = asyncio.ensure_future(self._run(Pump(program, stdio)))

    async def _run(self, pump: Pump) -> Exit:
        try:
            return Exit(await pump.run())
        finally:
            await self._agent.close()
            os.close(self._port)

    async def wait(self) -> Exit:
        """Its end."""
        return await asyncio.shield(self._end)

    async def signal(self, number: int) -> None:
        """Signal it; nothing happens when it has ended."""
        if not self._program.ended:
            await self._program.signal(number)

    async def resize(self, rows: int, columns: int) -> None:
        """Its terminal has another size now."""
        if not self._program.ended:
            await self._program.resize(rows, columns)


class Unstarted:
    """A program that could not be started; see the protocol `Running`."""

    def __init__(self, end: Exit) -> None:
        self._end = end

    async def wait(self) -> Exit:
        """Its status, at once."""
        return self._end

    async def signal(self, number: int) -> None:
        """Nothing is there to be signalled."""

    async def resize(self, rows: int, columns: int) -> None:
        """Nothing has a terminal."""


class MicrovmBoxes:
    """See the protocol `Boxes`.

    Args:
        home: the folder of all boxes.
    """

    def __init__(self, home: Path) -> None:
        self._folders = Folders(home.absolute())
        self._tools: Tools | None = None
        self._accelerator: Accelerator = "tcg"
        self._tsc = 0

    @property
    def isolation(self) -> str:
        """The driver's name."""
        return ISOLATION

    @property
    def accelerator(self) -> Accelerator:
        """What guests run on; known once it is open."""
        return self._accelerator

    async def open(self) -> None:
        """Find what is needed, and try KVM by starting a guest; see the protocol.

        What was found is kept, and sought again after a restart of the machine or another version.
        """
        await asyncio.to_thread(self._folders.open)
        self._tools = build.find_tools(self._folders.home)
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        key = f"{boot} {self._tools.key()}"
        kept = self._folders.state / f"{ISOLATION}.json"
        with contextlib.suppress(OSError, ValueError):
            value = json.loads(kept.read_text())
            if value["key"] == key:
                self._accelerator, self._tsc = value["accelerator"], value["tsc"]
                return
        asked = await asyncio.create_subprocess_exec(
            str(self._tools.agent), "--tsc", stdout=subprocess.PIPE
        )
        self._tsc = int((await asked.communicate())[0] or 0)
        if os.access("/dev/kvm", os.R_OK | os.W_OK) and await self._boots("kvm"):
            self._accelerator = "kvm"
        value = {"key": key, "accelerator": self._accelerator, "tsc": self._tsc}
        await asyncio.to_thread(write, kept, json.dumps(value))

    async def _boots(self, accelerator: Accelerator) -> bool:
        """Whether a guest starts with it. Its root is empty, and it is told to run nothing."""
        before, self._accelerator = self._accelerator, accelerator
        box = f"probe-{os.getpid()}-{time.monotonic_ns()}"
        policy = Policy(programs=("/none",), users=(ANY_USER,))
        root = self._folders.state / f"root-{box}"
        root.mkdir()
        spec = BoxSpec(box, str(root), ("/none",), policy, write="readonly")
        try:
            await self.prepare(spec)
            folder = self._folders.folder(box)
            lock = lock_folder(folder)
            if lock is None:
                return False
            guest = monitor.Guest(folder, lock)
            try:
                async with asyncio.timeout(PROBE_PATIENCE), await guest.start():
                    return True
            finally:
                os.close(lock)
                await guest.stop()
        except (UnavailableError, TimeoutError):
            return False
        finally:
            self._accelerator = before
            await asyncio.to_thread(self._folders.clear, box)
            self._folders.unlock_for_good(box)
            root.rmdir()

    async def link(self, netns: str) -> Link:
        """The guest's tap is made when it starts; see the protocol."""
        return await asyncio.to_thread(link_stacks, netns)

    async def prepare(self, spec: BoxSpec) -> Launch:
        """Check the policy and make the box; see the protocol."""
        check_start(spec.policy, spec.request())
        build.check(spec)
        return await asyncio.to_thread(self._prepare, spec)

    def _prepare(self, spec: BoxSpec, snapshot: Path | None = None) -> Launch:
        host = making.Host(self._found, self._accelerator, self._tsc)
        folder = self._folders.folder(spec.id)
        with self._folders.locked(spec.id):
            if self._folders.launch(spec.id) is not None:
                if (
                    self._folders.owner(spec.id) == ISOLATION
                    and self._folders.spec(spec.id) == spec
                ):
                    return self._launch(spec)
                raise ConflictError(f"box {spec.id} is another one")
            if self._folders.owner(spec.id) not in (None, ISOLATION):
                raise ConflictError(f"box {spec.id} is another one")
            self._folders.clear(spec.id)
            try:
                folder.mkdir()
                folder.chmod(0o711)  # whatever the umask: QEMU's user has to pass
                write(folder / "isolation", ISOLATION)
                write(folder / "spec.json", json.dumps(spec.to_json()))
                making.make(spec, self._folders, host, snapshot)
            except BaseException:
                self._folders.clear(spec.id)
                raise
        return self._launch(spec)

    def _launch(self, spec: BoxSpec) -> Launch:
        notes = []
        cpus = spec.limits.cpus
        if cpus is not None and cpus != math.ceil(cpus):
            notes.append(f"{math.ceil(cpus)} whole processors instead of {cpus}")
        if self._accelerator == "tcg":
            notes.append("the processor is emulated: no guest started with KVM here")
        launch = self._folders.launch(spec.id)
        if launch is not None:
            notes += launch["notes"]
            if launch["user"] is None:
                notes.append("QEMU has no user of its own")
        env = {"PATH": os.environ.get("PATH", "/usr/bin:/bin")}
        if path := os.environ.get("PYTHONPATH"):
            env["PYTHONPATH"] = path
        folder = self._folders.folder(spec.id)
        argv = (sys.executable, "-m", monitor.__name__, str(folder))
        return Launch(argv, env, tuple(notes), str(folder / monitor.STARTED))

    async def exec(self, box: str, program: Exec, stdio: Stdio) -> MicrovmRunning | Unstarted:
        """Run one more program; see the protocol."""
        spec = self._running(box)
        check_exec(spec.policy, program.request(spec))
        agent, port = await self._connect(box)
        try:
            started = await agent.exec(
                program.command,
                env=program.env,
                cwd=program.cwd,
                user=spec.user if program.user is None else program.user,
                group=spec.group if program.group is None else program.group,
                groups=spec.groups if program.user is None else (),
                capabilities=program.capabilities,
                tty=program.tty,
                size=monitor.window_size(stdio.stdin) if program.tty else (24, 80),
                stdin=True,
            )
        except BaseException as error:
            await agent.close()
            os.close(port)
            if isinstance(error, Error) and (status := monitor.unstarted(error)) is not None:
                with contextlib.suppress(OSError):
                    os.write(stdio.stderr, f"bedstone: {error.message}\n".encode())
                return Unstarted(Exit(status))
            raise
        return MicrovmRunning(agent, started, stdio, port)

    async def signal(self, box: str, number: int) -> None:
        """Signal the box's command; see the protocol."""
        self._running(box)
        async with self._agent(box) as agent:
            await agent.request("signal", signal=int(number), group=True)

    async def pause(self, box: str) -> None:
        """Stop the machine's processors; see the protocol."""
        if self._state(box) == "paused":
            return
        self._running(box)
        async with self._agent(box) as agent:
            await agent.request("pause")
        folder = self._folders.folder(box)
        (folder / "paused").touch()
        await asyncio.to_thread(_tell, folder, "stop")

    async def resume(self, box: str) -> None:
        """Let them run again, at this machine's time; see the protocol."""
        self._running(box, paused=True)
        folder = self._folders.folder(box)
        await asyncio.to_thread(_tell, folder, "cont")
        (folder / "paused").unlink(missing_ok=True)
        async with self._agent(box) as agent:
            entropy = os.urandom(64).hex()
            await agent.request("resume", nanoseconds=time.time_ns(), entropy=entropy)

    async def stats(self, box: str) -> Stats:
        """What the guest's kernel says that it uses; see the protocol."""
        spec = self._running(box)
        async with self._agent(box) as agent:
            value = await agent.request("stats")
        return Stats(
            cpu_seconds=value["cpu_microseconds"] / 1e6,
            memory=value["memory_used"],
            memory_limit=spec.limits.memory or making.MEMORY,
            pids=value["tasks"],
            io_read=value["io_read"],
            io_written=value["io_written"],
            oom_kills=value["oom_kills"],
        )

    async def copy_in(self, box: str, folder: str, archive: AsyncIterator[bytes]) -> None:
        """Unpack a tar stream; see the protocol."""
        spec = self._running(box)
        check_copy(spec.policy, "copy_in", folder)
        async with self._agent(box) as agent:
            try:
                await agent.put(folder, to_records(archive))
            except UnavailableError as error:
                if "Not a directory" in error.message:
                    raise NotFoundError(f"{folder} is not a folder of the box") from error
                raise

    async def copy_out(self, box: str, path: str) -> AsyncIterator[bytes]:
        """A tar stream; see the protocol."""
        spec = self._running(box)
        check_copy(spec.policy, "copy_out", path)
        async with self._agent(box) as agent:
            async for part in to_tar(agent.get(path)):
                yield part

    async def snapshot(self, box: str, folder: str) -> None:
        """Write what a copy of the machine goes on from; see the protocol `Snapshots`."""
        self._running(box)
        kept = self._folders.launch(box)
        if kept is None or kept["shares"] is not None:
            raise InvalidError(
                f"box {box} has mounts of this machine, whose server cannot be copied"
            )
        spec = self._folders.spec(box)
        values = {"spec": spec.to_json(), "tools": self._found.key()}
        kept = {key: kept[key] for key in ("machine", "root")} | values
        await self.pause(box)
        try:
            work = asyncio.ensure_future(
                asyncio.to_thread(snapshots.take, self._folders.folder(box), Path(folder), kept)
            )
            try:
                await asyncio.shield(work)
            finally:
                await asyncio.wait({work})
        finally:
            await self.resume(box)

    async def restore(self, folder: str, spec: BoxSpec) -> Launch:
        """A box that goes on from a snapshot; see the protocol `Snapshots`."""
        check_start(spec.policy, spec.request())
        snapshots.check(Path(folder), spec, self._found.key())
        return await asyncio.to_thread(self._prepare, spec, Path(folder))

    async def fork_many(self, box: str, specs: Sequence[BoxSpec]) -> list[Launch]:
        """Copies of a running box; see the protocol `Forks`."""
        place = self._folders.state / f"snapshot-{box}-{secrets.token_hex(4)}"
        place.mkdir(mode=0o700)
        made: list[Launch] = []
        try:
            await self.snapshot(box, str(place))
            for spec in specs:
                made += [await self.restore(str(place), spec)]
        except BaseException:
            for spec in specs[: len(made)]:
                await self.delete(spec.id)
            raise
        finally:
            await asyncio.to_thread(shutil.rmtree, place)
        return made

    async def delete(self, box: str) -> None:
        """End it and remove it; see the protocol."""
        if self._folders.owner(box) not in (ISOLATION, None):
            return
        await asyncio.to_thread(self._delete, box)

    def _delete(self, box: str) -> None:
        folder = self._folders.folder(box)
        if not self._folders.state.is_dir():
            return
        with self._folders.locked(box):
            deadline = time.monotonic() + PATIENCE
            lock = None
            while folder.is_dir() and (lock := lock_folder(folder)) is None:
                # This process's child or not: who holds the lock is the monitor, or its QEMU,
                # which ends with it.
                kill_holder(folder / LOCK, monitor.__name__)
                if time.monotonic() > deadline:
                    raise UnavailableError(f"the machine of box {box} does not end")
                time.sleep(0.005)
            # With the lock held, a monitor that is only starting now finds it taken, or no folder.
            self._folders.clear(box)
            if lock is not None:
                os.close(lock)
            if folder.is_dir():
                raise UnavailableError(f"{folder} cannot be removed")
            self._folders.unlock_for_good(box)

    async def list(self) -> list[BoxInfo]:
        """Every box; see the protocol."""
        found = []
        for box in self._folders.boxes():
            with contextlib.suppress(NotFoundError):
                spec = self._folders.spec(box)
                pid = holder(self._folders.folder(box) / LOCK)
                notes = self._launch(spec).notes
                found.append(BoxInfo(spec, ISOLATION, self._state(box), pid, notes))
        return found

    @property
    def _found(self) -> Tools:
        if self._tools is None:
            raise UnavailableError("the driver is not open")
        return self._tools

    def _state(self, box: str) -> State:
        folder = self._folders.folder(box)
        if holder(folder / LOCK) is None:
            return "stopped"
        return "paused" if (folder / "paused").exists() else "running"

    def _running(self, box: str, *, paused: bool = False) -> BoxSpec:
        spec = self._folders.spec(box)
        state = self._state(box)
        if state == "stopped":
            raise ConflictError(f"box {box} does not run")
        if state == "paused" and not paused:
            raise ConflictError(f"box {box} is paused", hint="resume it first")
        return spec

    @contextlib.asynccontextmanager
    async def _agent(self, box: str) -> AsyncIterator[Agent]:
        agent, port = await self._connect(box)
        try:
            async with agent:
                yield agent
        finally:
            os.close(port)

    async def _connect(self, box: str) -> tuple[Agent, int]:
        """A connection of one's own, and the lock that keeps others from its port."""
        folder = self._folders.folder(box)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if holder(folder / LOCK) is None:
                raise ConflictError(f"box {box} does not run")
            for number in range(2, MOST_PORTS + 1):
                path = folder / f"port{number}.lock"
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(descriptor)
                    continue
                try:
                    await asyncio.to_thread(_add_port, folder, number)
                    return await Agent.connect(folder / port_socket(number), PATIENCE), descriptor
                except BaseException:
                    os.close(descriptor)
                    raise
            await asyncio.sleep(0.02)
        raise UnavailableError(f"box {box} is busy with {MOST_PORTS - 1} programs", retry_after=1)


def _add_port(folder: Path, number: int) -> None:
    """Give the guest one more port, if it has none of that number. Who calls it holds its lock."""
    if (folder / port_socket(number)).exists():
        return
    with connected(folder) as qmp:
        address = {"type": "unix", "data": {"path": port_socket(number)}}
        socket = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
        qmp("chardev-add", id=f"port{number}", backend=socket)
        device = {"driver": "virtserialport", "chardev": f"port{number}", "nr": number}
        qmp("device_add", **device)


def _tell(folder: Path, command: str) -> None:
    with connected(folder) as qmp:
        qmp(command)
