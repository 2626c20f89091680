"""The few words of QMP, QEMU's protocol for its owner, that are needed. It blocks."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bedstone.errors import UnavailableError
from bedstone.sandbox.microvm.qemu import QMP

PATIENCE = 10.0
"""Seconds for an answer."""


class Qmp:
    """A connection; QEMU takes one at a time."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._lines = channel.makefile("rb")
        self._lines.readline()  # the greeting
        self("qmp_capabilities")

    def __call__(self, command: str, *descriptors: int, **arguments: Any) -> Any:
        """Run a command, and give what it returns.

        Args:
            command: its name.
            descriptors: sent with it.
            arguments: with `_` for `-` in their names.

        Raises:
            UnavailableError: QEMU does not answer, or refuses.
        """
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        data = json.dumps({"execute": command, "arguments": named}).encode() + b"\n"
        try:
            if descriptors:
                socket.send_fds(self._channel, [data], descriptors)
            else:
                self._channel.sendall(data)
            while line := self._lines.readline():
                value = json.loads(line)
                if "error" in value:
                    raise UnavailableError(f"QEMU refused {command}: {value['error'].get('desc')}")
                if "return" in value:
                    return value["return"]
        except (OSError, ValueError) as error:
            raise UnavailableError(f"QEMU does not answer: {str(error) or 'in time'}") from error
        raise UnavailableError(f"QEMU ended at {command}")

    def migrated(self, patience: float) -> None:
        """Wait until the machine's state is written or read.

        Raises:
            UnavailableError: it could not be.
        """
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            found = self("query-migrate")
            match found.get("status"):
                case "completed":
                    return
                case "failed" | "cancelled":
                    why = found.get("error-desc") or "for a reason that QEMU keeps to itself"
                    raise UnavailableError(f"the machine's state was not taken: {why}")
            time.sleep(0.005)
        raise UnavailableError(f"the machine's state was not taken within {patience:g} s")

    @property
    def peer(self) -> int:
        """QEMU's process id."""
        packed = self._channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int(struct.unpack("iII", packed)[0])


@contextlib.contextmanager
def connected(folder: Path, patience: float = 0.0) -> Iterator[Qmp]:
    """Talk to the QEMU of a box's folder, which may take `patience` seconds to begin to listen.

    Raises:
        UnavailableError: it does not answer.
    """
    deadline = time.monotonic() + patience
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        with contextlib.ExitStack() as stack:
            while True:
                channel = stack.enter_context(socket.socket(socket.AF_UNIX))
                channel.settimeout(PATIENCE)
                try:
                    channel.connect(f"/proc/self/fd/{descriptor}/{QMP}")
                    break
                except OSError as error:
                    # EAGAIN: others wait for their turn.
                    waits = PATIENCE if isinstance(error, BlockingIOError) else 0.0
                    if time.monotonic() >= deadline + waits:
                        raise UnavailableError(f"QEMU does not answer: {error}") from error
                    time.sleep(0.005)
            yield Qmp(channel)
    finally:
        os.close(descriptor)
