r"""Sandboxes in Python, each used as a context manager.

async with Sandbox.create("python:3.12", isolation="gvisor") as box:
    result = await box.exec("python", "-c", "print(1 + 1)")
    assert result.stdout == b"2\\n"
"""

from __future__ import annotations

import asyncio
import io
import os
import posixpath
import secrets
import tarfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bedstone.boxes.home import boxes_directory
from bedstone.boxes.idle import FALLBACK, TARGET, idle
from bedstone.boxes.network import parse_egress, parse_port
from bedstone.boxes.roots import DEFAULT_PATH, Root, find_root, find_user
from bedstone.boxes.standalone import Standalone, Started
from bedstone.boxes.streams import Program, running
from bedstone.errors import InvalidError, UnavailableError
from bedstone.sandbox.box import BoxLimits, BoxSpec, Exec, Mount, Stats
from bedstone.sandbox.boxes import KIND, Boxes, Forks
from bedstone.sandbox.policy import ANY, ANY_USER, AllowedMount, Policy
from bedstone.sandbox.policy import Network as PolicyNetwork
from bedstone.sandbox.views import program_inside

CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE",
    "CAP_SETGID", "CAP_SETUID",
)  # fmt: skip
"""What programs of images expect of root, such as package managers; all within the box's users."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a program ended: its exit status, or 128 + N after signal N, and what it wrote."""

    code: int
    stdout: bytes
    stderr: bytes


def specify(
    box: str,
    root: Root,
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    user: str | None = None,
    hostname: str | None = None,
    mounts: Sequence[Mount] = (),
    limits: BoxLimits | None = None,
    readonly: bool = False,
    tty: bool = False,
    capabilities: Sequence[str] = CAPABILITIES,
    policy: Policy | None = None,
    network: PolicyNetwork = "none",
    init: bool = False,
) -> BoxSpec:
    """A box for a root, as the image's author and the arguments say; the arguments win.

    Args:
        box: its id.
        root: what `find_root` gave.
        command: the whole command, with the image's entry point where that is meant.
        env: variables, added to the image's.
        cwd: working directory; the image's by default.
        user: `USER[:GROUP]`; the image's by default.
        hostname: the id by default.
        mounts: what is mounted.
        limits: of the whole box.
        readonly: whether nothing can be written but to mounts and /tmp.
        tty: whether it has a terminal.
        capabilities: of its command.
        policy: what it may be and do; by default exactly what these arguments say, and any `exec`
            and copy.
        network: what its own policy allows it.
        init: whether its first process is ours, which passes signals on and reaps.
    """
    uid, gid = find_user(root.path, root.user if user is None else user)
    allowed = tuple(
        AllowedMount(m.source if m.kind == "bind" else "tmpfs", m.target, m.readonly)
        for m in mounts
    )
    whole = dict(root.env) | dict(env or {})
    if init and command:
        found = program_inside(root.path, command[0], whole.get("PATH", DEFAULT_PATH))
        # What is not there is for the runtime to say.
        init = found.startswith("/")
        command = (found, *command[1:])
    return BoxSpec(
        id=box,
        root=str(root.path),
        command=tuple(command),
        policy=policy
        or Policy(
            programs=(ANY,),
            exec=True,
            env=(ANY,),
            mounts=allowed,
            capabilities=tuple(capabilities),
            users=(ANY_USER,),
            tty=True,
            network=network,
            writable_root=not readonly,
            copy_in=("/",),
            copy_out=("/",),
        ),
        write="readonly" if readonly else "overlay",
        env=whole,
        cwd=root.cwd if cwd is None else cwd,
        user=uid,
        group=gid,
        hostname=(hostname or box)[:63],
        mounts=tuple(mounts),
        limits=limits or BoxLimits(),
        tty=tty,
        init=init,
        capabilities=tuple(capabilities),
        created_at=time.time(),
        labels={"image": root.image or str(root.path)},
    )


def new_id() -> str:
    """An id for a box that was given no name."""
    return f"box-{secrets.token_hex(4)}"


class Sandbox:
    """One box that runs. `create` is how to get one."""

    def __init__(self, standalone: Standalone, boxes: Boxes, started: Started) -> None:
        self.id = started.spec.id
        self.notes = started.notes
        """In words, what of limits and isolation could not be applied."""
        self.ports = started.network.ports if started.network is not None else ()
        """What is published of it, with the real numbers."""
        self._standalone = standalone
        self._boxes = boxes
        self._started = started
        self._spec = started.spec

    @classmethod
    @asynccontextmanager
    async def create(
        cls,
        root: str,
        *,
        command: Sequence[str] | None = None,
        isolation: str = "container",
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        mounts: Sequence[Mount] = (),
        memory: int | None = 512 << 20,
        cpus: float | None = None,
        pids: int | None = 512,
        disk: int | None = 1 << 30,
        readonly: bool = False,
        policy: Policy | None = None,
        ports: Sequence[str] = (),
        egress: Sequence[str] = (),
        lazy: bool = True,
        home: Path | None = None,
    ) -> AsyncIterator[Sandbox]:
        """A box that waits for programs to run; deleted with all that is in it at the end.

        Args:
            root: a directory (a path with a leading `/` or `.`), or an image.
            command: its own command; by default it only waits for others.
            isolation: `container`, `gvisor` or `microvm`, or any other driver's name.
            name: its id.
            env: variables of all programs, added to the image's.
            cwd: their working directory.
            user: `USER[:GROUP]` that they run as.
            mounts: what is mounted.
            memory: bytes of everything in it.
            cpus: processors, as 0.5.
            pids: processes and threads.
            disk: bytes that it may write.
            readonly: whether nothing can be written but to mounts and /tmp.
            policy: what it may be and do; by default what these arguments say.
            ports: what is published of it, as `8080:80` or `127.0.0.1:8080:80`; `Sandbox.ports`
                has the real numbers.
            egress: what it may reach through a proxy, as `api.example`, `db.example:5432` or `*`.
            lazy: whether an image may be mounted before all of it is here, where that works.
            home: where boxes are kept.

        Raises:
            Error: as `find_root` and `Boxes.prepare`.
        """
        box = name or new_id()
        standalone = Standalone(home or boxes_directory())
        published = [parse_port(text) for text in ports]
        rules = [parse_egress(text) for text in egress]
        async with standalone.making(box, isolation):
            # A microVM's root is made of all of its files at once.
            found = await find_root(root, box, lazy=lazy and isolation != "microvm")
            whole, file = (
                await asyncio.to_thread(_waiting, standalone, isolation, found)
                if command is None
                else (tuple(command), None)
            )
            if file is not None:
                mounts = (*mounts, Mount(file, TARGET))
                if policy is not None:
                    raise InvalidError("a policy of one's own needs a command of one's own")
            spec = specify(
                box,
                found,
                whole,
                env=env,
                cwd=cwd,
                user=user,
                mounts=mounts,
                limits=BoxLimits(memory, cpus, pids, disk),
                readonly=readonly,
                policy=policy,
                network="given" if published or rules else "none",
            )
            started = await standalone.start(spec, isolation, ports=published, egress=rules)
            started = replace(started, notes=(*found.notes, *started.notes))
            await _demand_started(standalone, box)
        try:
            yield cls(standalone, await standalone.driver(isolation), started)
        finally:
            await standalone.delete(box)

    async def exec(
        self,
        *command: str,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: int | None = None,
        timeout: float | None = None,
    ) -> Result:
        """Run a program to its end.

        Args:
            command: the program, sought on PATH, and its arguments.
            stdin: its input.
            env: variables, added to the box's.
            cwd: working directory; the box's by default.
            user: user id; the box's by default.
            timeout: seconds, after which it is killed and TimeoutError raised.
        """
        found = {False: bytearray(), True: bytearray()}
        async with (
            asyncio.timeout(timeout),
            self.exec_stream(*command, env=env, cwd=cwd, user=user) as program,
        ):
            feeding = asyncio.ensure_future(_feed(program, stdin))
            try:
                async for chunk in program:
                    found[chunk.error] += chunk.data
                code = await program.wait()
            finally:
                feeding.cancel()
        return Result(code, bytes(found[False]), bytes(found[True]))

    def exec_stream(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: int | None = None,
    ) -> AbstractAsyncContextManager[Program]:
        """Run a program and talk with it.

        async with box.exec_stream("pip", "install", "attrs") as program:
            await program.close()  # it gets no input
            async for chunk in program:
                print(chunk.data)
            print(await program.wait())

        At the end of the block it is killed, if it has not ended. Arguments are those of `exec`.
        """
        whole = dict(self._spec.env) | dict(env or {})
        place = self._spec.cwd if cwd is None else cwd
        asked = Exec(command, whole, place, user, capabilities=self._spec.capabilities)
        return running(self._boxes, self.id, asked)

    async def wait(self) -> int:
        """The exit status of its own command, once it has ended.

        Raises:
            UnavailableError: nobody knows.
        """
        return await self._standalone.wait(self.id)

    def logs(self, *, follow: bool = False) -> AsyncIterator[bytes]:
        """What its own command wrote, and what its network refused; see `Standalone.logs`."""
        return self._standalone.logs(self.id, follow=follow)

    async def read(self, path: str) -> bytes:
        """A file of it, as a whole.

        Raises:
            InvalidError: it is no file.
            NotFoundError: nothing is there.
        """
        data = b"".join([block async for block in self.copy_out(path)])
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            member = archive.next()
            file = archive.extractfile(member) if member is not None and member.isfile() else None
            if file is None:
                raise InvalidError(f"{path} is no file")
            return file.read()

    async def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Make or replace a file of it, which is its root user's.

        Raises:
            NotFoundError: its folder is not there.
        """
        folder, name = posixpath.split(path)
        member = tarfile.TarInfo(name)
        member.size, member.mode, member.mtime = len(data), mode, time.time()
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            archive.addfile(member, io.BytesIO(data))

        async def blocks() -> AsyncIterator[bytes]:
            yield out.getvalue()

        await self.copy_in(folder, blocks())

    @asynccontextmanager
    async def fork_many(self, count: int) -> AsyncIterator[list[Sandbox]]:
        """Copies of it as it is now, memory, processes and files; deleted at the end of the block.

        A copy has random numbers and a time of its own from the kernel, and what the programs in it
        have seeded themselves is theirs to seed again. What it publishes is published of each, at
        free ports. Programs that `exec` started are not in them.

        Raises:
            UnavailableError: its isolation cannot do that.
            InvalidError: it has what cannot be copied, as mounts of this machine.
        """
        ids = [new_id() for _ in range(count)]
        standalone, isolation = self._standalone, self._boxes.isolation
        async with AsyncExitStack() as making:
            for box in ids:
                await making.enter_async_context(standalone.making(box, isolation))
            found = await standalone.fork_many(self._started, isolation, ids)
            await asyncio.gather(*(_demand_started(standalone, box) for box in ids))
        try:
            yield [Sandbox(standalone, self._boxes, started) for started in found]
        finally:
            await asyncio.gather(*(standalone.delete(box) for box in ids))

    @asynccontextmanager
    async def fork(self) -> AsyncIterator[Sandbox]:
        """One copy; see `fork_many`."""
        async with self.fork_many(1) as (copy,):
            yield copy

    async def stats(self) -> Stats:
        """What it uses."""
        return await self._boxes.stats(self.id)

    async def pause(self) -> None:
        """Let nothing in it run."""
        await self._boxes.pause(self.id)

    async def resume(self) -> None:
        """Let it run again."""
        await self._boxes.resume(self.id)

    async def copy_in(self, folder: str, archive: AsyncIterator[bytes]) -> None:
        """Unpack a tar stream into a folder."""
        await self._boxes.copy_in(self.id, folder, archive)

    def copy_out(self, path: str) -> AsyncIterator[bytes]:
        """A tar stream of a file or folder."""
        return self._boxes.copy_out(self.id, path)


async def _feed(program: Program, data: bytes) -> None:
    await program.write(data)
    await program.close()


async def _demand_started(standalone: Standalone, box: str) -> None:
    if not await standalone.started(box):
        text = b"".join([block async for block in standalone.logs(box)])
        said = text.decode(errors="replace").strip().splitlines()
        raise UnavailableError(f"box {box} did not start: {said[-1:] or 'it said nothing'}")


def _waiting(
    standalone: Standalone, isolation: str, root: Root
) -> tuple[tuple[str, ...], str | None]:
    """A command that waits, and the file to mount for it, if it is not the root's own."""
    # What is mounted of this machine cannot be forked.
    if issubclass(KIND.load(isolation), Forks):
        for folder in root.env.get("PATH", DEFAULT_PATH).split(":"):
            if os.path.lexists(f"{root.path}{folder}/{FALLBACK[0]}"):
                return FALLBACK, None
    return idle(standalone.home)
