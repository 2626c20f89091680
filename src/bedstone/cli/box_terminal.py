"""Between a person's terminal and a box: input, output, signals and the size of the window."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import signal
import struct
import sys
import termios
import threading
import tty
from collections.abc import Awaitable, Callable, Iterator

from bedstone.boxes import shim
from bedstone.boxes.standalone import Standalone
from bedstone.errors import InvalidError, UnavailableError
from bedstone.sandbox.box import Exec, Stdio
from bedstone.sandbox.boxes import Boxes, Running

_BLOCK = 1 << 16
_PASSED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def terminal_size() -> tuple[int, int]:
    """Rows and columns of this terminal."""
    with contextlib.suppress(OSError):
        size = os.get_terminal_size(0)
        return size.lines, size.columns
    return 24, 80


def demand_terminal() -> None:
    """Raises InvalidError if the input is no terminal."""
    if not sys.stdin.isatty():
        raise InvalidError("-t needs a terminal as input", hint="leave -t out")


async def follow(standalone: Standalone, box: str, *, stdin: bool, terminal: bool) -> int:
    """Attach to a box until it ends; its exit status."""
    reader, writer = await standalone.attach(box)

    def send(kind: int, data: bytes = b"") -> None:
        writer.write(shim.HEADER.pack(kind, len(data)) + data)

    def signalled(number: int) -> None:
        send(shim.SIGNAL, bytes([number]))

    def resized() -> None:
        send(shim.SIZE, struct.pack(">HH", *terminal_size()))

    def given(data: bytes) -> None:
        send(shim.INPUT, data) if data else send(shim.END_OF_INPUT)

    with _signals(signalled, resized if terminal else None), _raw(enabled=terminal):
        if terminal:
            resized()
        if stdin:
            _read_input(given)
        try:
            while True:
                kind, size = shim.HEADER.unpack(await reader.readexactly(shim.HEADER.size))
                data = await reader.readexactly(size)
                if kind == shim.EXIT:
                    return data[0]
                _put(2 if kind == shim.ERRORS else 1, data)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise UnavailableError(f"the shim of box {box} is gone") from error
        finally:
            writer.close()


async def execute(boxes: Boxes, box: str, program: Exec, *, stdin: bool) -> int:
    """Run a program in a box with this terminal's streams; its exit status."""
    if not program.tty:
        null = os.open("/dev/null", os.O_RDONLY)
        try:
            running = await boxes.exec(box, program, Stdio(0 if stdin else null, 1, 2))
        finally:
            os.close(null)
        return await _ended(running, None)
    master, slave = pty.openpty()
    try:
        termios.tcsetwinsize(slave, terminal_size())
        running = await boxes.exec(box, program, Stdio(slave, slave, slave))
    finally:
        os.close(slave)
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def shown() -> None:
        try:
            data = os.read(master, _BLOCK)
        except OSError:
            data = b""
        if data:
            _put(1, data)
        else:
            loop.remove_reader(master)
            done.set()

    with _raw(enabled=True):
        loop.add_reader(master, shown)
        _read_input(lambda data: _put(master, data))
        try:
            code = await _ended(running, lambda: running.resize(*terminal_size()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await done.wait()
        finally:
            loop.remove_reader(master)
            os.close(master)
    return code


async def _ended(running: Running, resize: Callable[[], Awaitable[None]] | None) -> int:
    async with asyncio.TaskGroup() as group:
        tasks: list[asyncio.Task[None]] = []

        async def pass_on(number: int) -> None:
            await running.signal(number)

        async def resized() -> None:
            if resize is not None:
                await resize()

        with _signals(
            lambda number: tasks.append(group.create_task(pass_on(number))),
            (lambda: tasks.append(group.create_task(resized()))) if resize is not None else None,
        ):
            return (await running.wait()).code


@contextlib.contextmanager
def _signals(passed: Callable[[int], None], resized: Callable[[], None] | None) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in _PASSED:
        loop.add_signal_handler(number, passed, number)
    if resized is not None:
        loop.add_signal_handler(signal.SIGWINCH, resized)
    try:
        yield
    finally:
        for number in (*_PASSED, signal.SIGWINCH):
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _raw(*, enabled: bool) -> Iterator[None]:
    """Keys go to the box as they are typed."""
    if not enabled or not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSADRAIN)  # keeps what was typed ahead
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _read_input(given: Callable[[bytes], None]) -> None:
    """Pass input on from a thread that nobody waits for: a read of it cannot be cut off."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        while True:
            try:
                data = os.read(0, _BLOCK)
            except OSError:
                data = b""
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(given, data)
            if not data:
                return

    threading.Thread(target=read, daemon=True).start()


def _put(descriptor: int, data: bytes) -> None:
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(descriptor, data) :]
