"""The supervisor's side of a fork from a zygote: asks, and gives the child its order.

What the messages are says `bedstone.processes.zygote`. Nothing here waits: the table reads when the
selector says so, and starts the process cold where anything is not as it should be.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from bedstone.processes.launcher import open_outputs
from bedstone.processes.python_command import parse
from bedstone.processes.spec import ProcessSpec

PATIENCE = 20.0
"""Seconds that a zygote gets to load its modules and to fork."""
_MESSAGE = 1 << 16


class RefusedError(Exception):
    """It cannot be forked; the message says why, for people."""


@dataclass(slots=True)
class Fork:
    """A start that was asked for. `child` is its pid once it exists and is ours."""

    link: socket.socket
    child: int | None = None
    noted: tuple[str, ...] = ()


def channel() -> tuple[socket.socket, socket.socket]:
    """The supervisor's end and the zygote's, of what it is asked on."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(0)
    return ours, theirs


def ask(zygote: socket.socket, spec: ProcessSpec) -> Fork:
    """Ask for a child; its `link` says what comes of that.

    Raises:
        RefusedError: it cannot be one.
    """
    command = parse(spec.argv)
    if command is None:
        raise RefusedError("its command gives Python an option, or is not Python's")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    ours.settimeout(0)
    try:
        request = json.dumps({"folder": command.folder(spec.cwd)}).encode()
        socket.send_fds(zygote, [request], [theirs.fileno()])
    except OSError as error:
        ours.close()
        raise RefusedError(f"its zygote takes no request: {error.strerror}") from error
    finally:
        theirs.close()
    return Fork(ours)


def hear(fork: Fork) -> tuple[dict[str, object], int] | None:
    """The next message and the pid of its sender; None at the end. BlockingIOError if none yet."""
    size = socket.CMSG_SPACE(struct.calcsize("3i"))
    try:
        data, extra, _, _ = fork.link.recvmsg(_MESSAGE, size)
    except ConnectionResetError:
        return None
    if not data:
        return None
    sender = 0
    for level, kind, value in extra:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            sender = struct.unpack("3i", value[:12])[0]
    try:
        message = json.loads(data)
    except ValueError:
        return None
    return (message, sender) if isinstance(message, dict) else None


def order(
    fork: Fork,
    spec: ProcessSpec,
    marks: Mapping[str, str],
    channel: socket.socket | None,
    *,
    memory_limited: bool,
) -> None:
    """Tell the child what to be, and hand over its output.

    Raises:
        OSError: its output cannot be opened, or it has gone.
    """
    value = {
        "spec": asdict(spec) | {"env": dict(spec.env)},
        "marks": dict(marks),
        "parent": os.getpid(),
        "memory_limited": memory_limited,
    }
    handles = list(open_outputs(spec))
    try:
        extra = [] if channel is None else [channel.fileno()]
        socket.send_fds(fork.link, [json.dumps(value).encode()], [*handles, *extra])
    finally:
        for handle in set(handles):
            with contextlib.suppress(OSError):
                os.close(handle)
