"""The network between a namespace and a box that has a network stack of its own.

The two are the hosts of one small network. The namespace's address is on its loopback interface
from `link` on, so that its programs can listen on it before the box is there, and while it starts
again. What else the box reaches is what the namespace lets through: nothing, if it has no other
interface.
"""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable
from typing import TypeVar

from bedstone.errors import NotFoundError, UnavailableError
from bedstone.processes.linux import CLONE_NEWNET, setns
from bedstone.sandbox import netlink
from bedstone.sandbox.addresses import BOX, LOOPBACK, NAMESPACE
from bedstone.sandbox.box import Link

_Result = TypeVar("_Result")


def link_stacks(netns: str) -> Link:
    """Give a namespace its address for a box with a stack of its own. Idempotent.

    Raises:
        NotFoundError: no namespace is there.
        UnavailableError: without the privilege.
    """
    inside(netns, _address)
    return Link(NAMESPACE, BOX)


def link_shared(netns: str) -> Link:
    """The same for a box whose stack is the namespace's: each finds the other on loopback."""
    inside(netns, _loopback_up)
    return Link(LOOPBACK, LOOPBACK)


def inside(netns: str, work: Callable[[], _Result]) -> _Result:
    """Do something in a network namespace, in a thread of its own that ends there.

    Raises:
        NotFoundError: no namespace is there.
        UnavailableError: what `work` did, or entering it, raised OSError.
    """
    found: list[_Result | Exception] = []

    def run() -> None:
        try:
            setns(netns, CLONE_NEWNET)
            found.append(work())
        except Exception as error:  # noqa: BLE001 - the caller raises it
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    match found[0]:
        case FileNotFoundError():
            raise NotFoundError(f"no network namespace {netns}") from found[0]
        case OSError():
            raise UnavailableError(f"network namespace {netns}: {found[0]}") from found[0]
        case Exception():
            raise found[0]
        case result:
            return result


def _loopback_up() -> int:
    index = socket.if_nametoindex("lo")
    netlink.ask(netlink.link_up(index))
    return index


def _address() -> None:
    try:
        netlink.ask(netlink.new_address(_loopback_up(), NAMESPACE, 32))
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
