"""Makes or enters the network of a box, and becomes the runtime that starts the box there.

- `shared`: the box is in the given network namespace. The runtime is told of none, so that the box
  is where the runtime is: told of it, runc would enter it for each `exec` only once it is a user of
  the box, and be refused.
- `paired`: the box is in a namespace of its own, with one interface, which a kernel in user space
  takes over; a cable leads from there into the given one. The runtime finds it as a descriptor, and
  stays outside, where its other commands look for it. Nothing keeps the namespace but the processes
  of the box: it ends with them, and the cable with it.

A process of its own (`main`). Only the standard library is used.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import signal
import socket
import sys
import time
from typing import Final, Literal

from bedstone.processes.linux import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    MS_BIND,
    MS_REC,
    MS_SLAVE,
    mount,
    setns,
    unshare,
)
from bedstone.sandbox.addresses import BOX, NAMESPACE, PREFIX
from bedstone.sandbox.alone import standard_python
from bedstone.sandbox.netlink import (
    ask,
    default_route,
    delete_link,
    link_up,
    new_address,
    new_pair,
)

INTERFACE: Final = "eth0"
PREFIX_OF_ENDS: Final = "box-"
OWN: Final = 9
"""The descriptor of the box's own namespace, for the runtime."""
_PATIENCE: Final = 2.0
_CURRENT: Final = "/proc/self/ns/net"
_CORE: Final = "/proc/sys/net/core"

How = Literal["shared", "paired"]


def main() -> None:
    """Run a program: arguments are how, the given namespace, a name for the cable's end there."""
    how, netns, name, *argv = sys.argv[1:]
    try:
        if how == "paired":
            pair(netns, name)
        else:
            setns(netns, CLONE_NEWNET)
    except OSError as error:
        sys.exit(f"network namespace {netns}: {error}")
    # Python ignores these; programs expect not to.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    os.execv(argv[0], argv)  # noqa: S606 - what the driver made


def pair(netns: str, name: str) -> None:
    """Make a namespace that is connected with a given one, as descriptor `OWN`.

    Raises:
        OSError: it cannot be made, or another box has the given one.
    """
    before = os.open(_CURRENT, os.O_RDONLY | os.O_CLOEXEC)
    given = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    setns(netns, CLONE_NEWNET)
    free(name)
    unshare(CLONE_NEWNET)
    os.dup2(os.open(_CURRENT, os.O_RDONLY | os.O_CLOEXEC), OWN)
    ask(link_up(socket.if_nametoindex("lo")), new_pair(INTERFACE, name, given))
    _connect(INTERFACE, BOX)
    setns(netns, CLONE_NEWNET)
    _connect(name, NAMESPACE)
    setns(f"/proc/self/fd/{OWN}", CLONE_NEWNET)
    ask(default_route(NAMESPACE))
    _hide_first_namespace()
    setns(f"/proc/self/fd/{before}", CLONE_NEWNET)


def _hide_first_namespace() -> None:
    """Have runsc see that this is not the machine's first network namespace.

    It takes the file for the mark of the first one (gvisor issue 10704), and every one has it since
    Linux 6.10.
    """
    if not os.path.exists(f"{_CORE}/rmem_default"):  # noqa: PTH110
        return
    unshare(CLONE_NEWNS)
    mount(None, "/", MS_SLAVE | MS_REC)
    mount(f"{_CORE}/../ipv4", _CORE, MS_BIND)


def free(name: str) -> None:
    """Take the cable away that an earlier start of the box has left in this namespace.

    Raises:
        OSError: there is one of another box, and it stays.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        ends = [found for _, found in socket.if_nameindex() if found.startswith(PREFIX_OF_ENDS)]
        if name in ends:
            remove(name)
        elif not ends:
            return
        elif time.monotonic() > deadline:
            raise OSError(errno.EBUSY, f"another box has it, as {ends[0]} shows")
        else:
            time.sleep(0.01)  # the namespace of a box that has ended goes a moment later


def remove(name: str) -> None:
    """Take a cable away by its end in this namespace, if it is there."""
    with contextlib.suppress(OSError):  # it may go by itself at the same moment
        ask(delete_link(name))


def end_name(box: str) -> str:
    """Of the cable of a box, in the given namespace."""
    return f"{PREFIX_OF_ENDS}{hashlib.sha256(box.encode()).hexdigest()[:10]}"


def command(how: How, netns: str, box: str, argv: tuple[str, ...]) -> tuple[str, ...]:
    """The command line that runs another in the network of a box."""
    return (*standard_python(__name__), how, netns, end_name(box), *argv)


def _connect(name: str, address: str) -> None:
    index = socket.if_nametoindex(name)
    ask(new_address(index, address, PREFIX), link_up(index))
