"""The network interface of a guest: a tap device in the network namespace that the box was given.

The guest and the namespace are the two hosts of one small network. What else the guest reaches is
what that namespace lets through.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import struct
from typing import Any, Final

from bedstone.sandbox.addresses import BOX, NAMESPACE, PREFIX
from bedstone.sandbox.links import inside
from bedstone.sandbox.netlink import ask, link_up, new_address

TAP: Final = "tap-guest"

_TUNSETIFF: Final = 0x400454CA
_IFF_TAP_NO_PI_VNET: Final = 0x0002 | 0x1000 | 0x4000


def interface() -> dict[str, Any]:
    """The guest's side, for its agent."""
    return {
        "name": "eth0",
        "addresses": [f"{BOX}/{PREFIX}"],
        "routes": [{"to": "default", "via": NAMESPACE}],
    }


def mac(box: str) -> str:
    """A locally administered address, the same for the same box."""
    digest = hashlib.sha256(box.encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def open_tap(netns: str) -> int:
    """Make the tap device in a namespace; it is there while the descriptor is open.

    Raises:
        NotFoundError: no namespace is there.
        UnavailableError: without the privilege, or another box has the namespace.
    """
    return inside(netns, _make)


def _make() -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        request = struct.pack("16sH22x", TAP.encode(), _IFF_TAP_NO_PI_VNET)
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
        index = socket.if_nametoindex(TAP)
        ask(new_address(index, NAMESPACE, PREFIX), link_up(index))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
