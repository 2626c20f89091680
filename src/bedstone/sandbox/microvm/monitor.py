"""The foreground process of one box: `python -m bedstone.sandbox.microvm.monitor FOLDER`.

It starts QEMU, has the agent run the box's command with its own standard streams, passes signals
on, and ends as the command does. QEMU ends with it, however it ends. What it does is all in the
folder's `launch.json`; who holds the folder's lock is alive: this process, and QEMU after it.

Exit status: the command's; 125 if the machine did not start, 126 and 127 if the command did not.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import sys
import termios
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bedstone.errors import DeniedError, Error, NotFoundError, UnavailableError
from bedstone.sandbox.box import Stdio
from bedstone.sandbox.failing import FAILED
from bedstone.sandbox.microvm import network, sharing, snapshots
from bedstone.sandbox.microvm.agent import Agent, Program
from bedstone.sandbox.microvm.locks import lock_folder
from bedstone.sandbox.microvm.qemu import CONSOLE, RUN, Machine, port_socket
from bedstone.sandbox.microvm.stdio import Pump

BOOT_PATIENCE: Final = 60.0
LOCK: Final = "lock"
STARTED: Final = "started"

_PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
_PDEATHSIG: Final = 1
_CLONE_NEWNET: Final = 0x40000000


def confine(user: int | None, parent: int, *, unshare: bool) -> None:
    """What a child does before it is QEMU: no network, a user of its own, no life of its own.

    It ends at once if `parent`, which it is to end with, is gone already.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if unshare and libc.unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    # Last: a change of user clears it.
    libc.prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(125)
    os.umask(0o077)


class Guest:
    """A machine that runs, from its folder's `launch.json`."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self._lock = lock
        self._memory = folder / RUN / snapshots.MEMORY
        self.is_copy = (folder / snapshots.STATE).exists()
        self.launch: dict[str, Any] = json.loads((folder / "launch.json").read_text())
        self.process: asyncio.subprocess.Process | None = None
        self.server: asyncio.subprocess.Process | None = None

    async def start(self) -> Agent:
        """Start QEMU and wait for the agent.

        Raises:
            UnavailableError: it did not come up; with the last of what the kernel said.
        """
        for path in (self.folder / RUN).glob("*"):
            if path != self._memory or not self.is_copy:
                path.unlink()  # of an earlier run
        machine = Machine(**self.launch["machine"])
        with contextlib.ExitStack() as stack:
            root = _closed_by(stack, os.open(self.launch["root"], os.O_RDONLY | os.O_CLOEXEC))
            tap = shares = copy = None
            if self.launch["netns"] is not None:
                tap = _closed_by(stack, network.open_tap(self.launch["netns"]))
            log = stack.enter_context((self.folder / "qemu.log").open("wb"))
            if self.is_copy:
                flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
                copy = _closed_by(stack, os.open(self._memory, flags))
            if self.launch["shares"] is not None:
                shares = _closed_by(stack, await self._share(log.fileno()))
            user, parent = self.launch["user"], os.getpid()
            self.process = await asyncio.create_subprocess_exec(
                *machine.argv(root, tap, shares, copy),
                cwd=self.folder,
                env={"PATH": "/usr/bin:/bin"},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=log,
                pass_fds=[
                    each for each in (root, self._lock, tap, shares, copy) if each is not None
                ],
                start_new_session=True,
                preexec_fn=lambda: confine(user, parent, unshare=os.geteuid() == 0),
            )
        connecting = asyncio.ensure_future(self._connect())
        ended = asyncio.ensure_future(self.process.wait())
        try:
            await asyncio.wait({connecting, ended}, return_when=asyncio.FIRST_COMPLETED)
            if connecting.done():
                return connecting.result()
            problem = f"the machine ended with status {ended.result()}"
        except Error as error:
            problem = error.message
        finally:
            connecting.cancel()
            ended.cancel()
            await asyncio.gather(connecting, ended, return_exceptions=True)
        raise UnavailableError(f"{problem}{self.said()}")

    async def _connect(self) -> Agent:
        if self.is_copy:
            with (self.folder / snapshots.STATE).open("rb") as state:
                await asyncio.to_thread(snapshots.go_on, self.folder, state.fileno())
        return await Agent.connect(self.folder / port_socket(1), BOOT_PATIENCE)

    async def begin(self, agent: Agent) -> Program:
        """Run the box's command, or go on with it in a copy.

        Raises:
            Error: it cannot be run.
        """
        if self.is_copy:
            program = await agent.adopt()
            entropy = os.urandom(64).hex()
            await agent.request("resume", nanoseconds=time.time_ns(), entropy=entropy)
            # It begins anew, with its disk as it is, when it is started again.
            (self.folder / snapshots.STATE).unlink()
            self._memory.unlink(missing_ok=True)
            self.is_copy = False
            return program
        await fresh(agent)
        main = self.launch["main"]
        return await agent.exec(**main, size=window_size(0), stdin=True, main=True)

    async def _share(self, log: int) -> int:
        """Start the server of the guest's mounts; a connection to it, for QEMU."""
        with socket.socket(socket.AF_UNIX) as listener:
            folder = os.open(self.folder, os.O_PATH | os.O_DIRECTORY)
            try:
                # A socket's path has at most 107 bytes.
                path = f"/proc/self/fd/{folder}/shares.sock"
                (self.folder / "shares.sock").unlink(missing_ok=True)
                listener.bind(path)
                listener.listen(1)
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.connect(path)
                    descriptor = connection.detach()
                (self.folder / "shares.sock").unlink()
            finally:
                os.close(folder)
            wanted = {"socket": listener.fileno(), "parent": os.getpid()}
            self.server = await asyncio.create_subprocess_exec(
                *sharing.command(self.launch["shares"] | wanted),
                env={},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(listener.fileno(), self._lock),
                start_new_session=True,
            )
        return descriptor

    def said(self) -> str:
        """The end of what QEMU and the guest's kernel said."""
        text = ""
        for name in ("qemu.log", CONSOLE):
            with contextlib.suppress(OSError):
                # QEMU could have put anything into its own folder.
                descriptor = os.open(
                    self.folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
                )
                with os.fdopen(descriptor, "rb") as file:
                    text += file.read()[-2000:].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return "".join(f"\n  {line}" for line in lines[-5:])

    async def stop(self) -> None:
        """Switch it off at once. Idempotent."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
        if self.server is not None:
            # It ends by itself once QEMU has.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.server.wait(), 2)
            if self.server.returncode is None:
                self.server.kill()
                await self.server.wait()


def unstarted(error: Error) -> int | None:
    """The exit status of a program that the guest has not, or does not execute; None otherwise."""
    if isinstance(error, NotFoundError):
        return 127
    # What the policy refuses has a hint.
    return 126 if isinstance(error, DeniedError) and error.hint is None else None


def _closed_by(stack: contextlib.ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


async def fresh(agent: Agent) -> None:
    """Give a guest this machine's time, and random bytes that no other guest has."""
    await agent.request("reseed", entropy=os.urandom(64).hex())
    await agent.request("clock", nanoseconds=time.time_ns())


def window_size(descriptor: int) -> tuple[int, int]:
    """Rows and columns of a terminal."""
    try:
        packed = fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(8))
    except OSError:
        return 24, 80
    rows, columns, _, _ = struct.unpack("HHHH", packed)
    return max(1, rows), max(1, columns)


@contextlib.contextmanager
def raw_terminal(descriptor: int, *, wanted: bool) -> Iterator[None]:
    """Every key goes to the guest's terminal, which has the meaning of each."""
    if not wanted or not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


async def run(folder: Path, lock: int) -> int:
    """Run the box of a folder; the exit status."""
    guest = Guest(folder, lock)
    pending: list[int] = []
    running: list[Program] = []
    tasks: set[asyncio.Future[None]] = set()
    loop = asyncio.get_running_loop()

    def pass_on(number: int) -> None:
        if not running:
            pending.append(number)
            return
        if number == signal.SIGWINCH:
            call = running[0].resize(*window_size(0))
        else:
            call = running[0].signal(number)
        task = asyncio.ensure_future(call)
        tasks.add(task)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        task.add_done_callback(tasks.discard)

    main = guest.launch["main"]
    for number in (*_PASSED_ON, *((signal.SIGWINCH,) if main["tty"] else ())):
        loop.add_signal_handler(number, pass_on, number)
    try:
        agent = await guest.start()
        try:
            program = await guest.begin(agent)
        except Error as error:
            print(f"bedstone: {error}", file=sys.stderr)  # noqa: T201 - there is nobody else
            return unstarted(error) or FAILED
        (folder / STARTED).touch()
        running.append(program)
        for number in pending:
            pass_on(number)
        with raw_terminal(0, wanted=main["tty"]):
            status = await Pump(program, Stdio(0, 1, 2)).run()
        # What it wrote is to be there when the box is started again.
        with contextlib.suppress(Error, TimeoutError):
            await asyncio.wait_for(agent.request("shutdown", grace_milliseconds=0), 10)
        return status
    except Error as error:
        print(f"bedstone: {error}", file=sys.stderr)  # noqa: T201
        return FAILED
    finally:
        await guest.stop()


def main() -> int:
    """See the module."""
    folder = Path(sys.argv[1])
    try:
        lock = lock_folder(folder)
    except OSError as error:
        print(f"bedstone: {error}", file=sys.stderr)  # noqa: T201
        return FAILED
    if lock is None:
        print("bedstone: the box runs already", file=sys.stderr)  # noqa: T201
        return FAILED
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    (folder / STARTED).unlink(missing_ok=True)
    return asyncio.run(run(folder, lock))


if __name__ == "__main__":
    sys.exit(main())
