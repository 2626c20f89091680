"""Between a program in a guest and three descriptors of this machine.

Descriptors may be anything that can be read or written: pipes, terminals, files. They are
duplicated and never set to non-blocking, which would change them for everybody who has them open;
what may block is left to threads of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
from concurrent.futures import ThreadPoolExecutor

from bedstone.errors import Error
from bedstone.sandbox.box import Stdio
from bedstone.sandbox.microvm.agent import STDOUT, Program

_BLOCK = 32 * 1024


class Pump:
    """Moves a program's bytes until it has ended. Start it with `run`."""

    def __init__(self, program: Program, stdio: Stdio) -> None:
        self._program = program
        self._stdin, self._stdout, self._stderr = (
            os.dup(descriptor) for descriptor in (stdio.stdin, stdio.stdout, stdio.stderr)
        )
        self._woken, self._wake = os.pipe()

    async def run(self) -> int:
        """Move all bytes, and give the exit status.

        Raises:
            UnavailableError: the guest is gone.
        """
        loop = asyncio.get_running_loop()
        reading = threading.Thread(target=self._read, args=(loop,), daemon=True)
        reading.start()
        # Threads of its own: those of the loop may all wait for what this gives.
        with ThreadPoolExecutor(1) as pool:
            try:
                await self._forward(loop, pool)
                return await self._program.wait()
            finally:
                os.close(self._stdout)
                os.close(self._stderr)
                os.write(self._wake, b"x")
                await asyncio.shield(loop.run_in_executor(pool, reading.join))
                for descriptor in (self._stdin, self._woken, self._wake):
                    os.close(descriptor)

    async def _forward(self, loop: asyncio.AbstractEventLoop, pool: ThreadPoolExecutor) -> None:
        gone: set[int] = set()
        while (item := await self._program.read()) is not None:
            descriptor = self._stdout if item[0] == STDOUT else self._stderr
            if not item[1] or descriptor in gone:
                continue
            # Whoever read it may have gone; the program then goes on unheard.
            if not await loop.run_in_executor(pool, _write, descriptor, item[1]):
                gone.add(descriptor)

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        with contextlib.suppress(OSError):
            poll.register(self._stdin, select.POLLIN)
        while True:
            if any(descriptor == self._woken for descriptor, _ in poll.poll()):
                return
            try:
                data = os.read(self._stdin, _BLOCK)
            except OSError:
                data = b""
            # Ends also when the program does, since nothing is sent after that.
            sending = asyncio.run_coroutine_threadsafe(self._program.write(data), loop)
            try:
                sending.result()
            except Error:
                return
            if not data:
                return


def _write(descriptor: int, data: bytes) -> bool:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
        except OSError:
            return False
    return True
