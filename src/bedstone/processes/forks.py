"""The supervisor's side of a fork from a zygote: asks, and gives the child its order.

What the messages are says `bedstone.processes.zygote`. Nothing here waits: the table reads when the
selector says so, and starts the process cold where anything is not as it should be.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
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
    if parse(spec.argv) is None:
        raise RefusedError("its command gives Python an option, or is not Python's")
    ahead = _take_ahead(zygote)
    if ahead is not None:
        return Fork(ahead)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    ours.settimeout(0)
    try:
        socket.send_fds(zygote, [b"{}"], [theirs.fileno()])
    except OSError as error:
        ours.close()
        raise RefusedError(f"its zygote takes no request: {error.strerror}") from error
    finally:
        theirs.close()
    return Fork(ours)


def _take_ahead(zygote: socket.socket) -> socket.socket | None:
    """The end of a child that the zygote has forked already; None if none lives."""
    try:
        _, handles, _, _ = socket.recv_fds(zygote, 16, 1)
    except OSError:  # it has offered none
        return None
    if not handles:
        return None
    with contextlib.suppress(OSError):  # so that it forks the next
        zygote.send(b"{}")
    os.set_inheritable(handles[0], False)  # noqa: FBT003 - no keyword
    try:
        link = socket.socket(fileno=handles[0])
    except OSError:  # no socket at all
        os.close(handles[0])
        return None
    link.settimeout(0)
    ends = select.poll()
    ends.register(link, 0)  # whether the other one is closed
    if ends.poll(0):
        link.close()
        return None
    return link


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
