"""The network interface of a guest: a tap device in the network namespace that the box was given.

The guest and the namespace are the two hosts of one small network. What else the guest reaches is
what that namespace lets through.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import socket
import struct
import threading
from typing import Any, Final

from bedstone.errors import UnavailableError

HOST: Final = "10.107.0.1"
"""The namespace's own address, as the guest sees it."""
GUEST: Final = "10.107.0.2"
PREFIX: Final = 30
TAP: Final = "tap-guest"

_CLONE_NEWNET: Final = 0x40000000
_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_IFF_TAP_NO_PI_VNET: Final = 0x0002 | 0x1000 | 0x4000
_SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFFLAGS = 0x8916, 0x891C, 0x8914
_IFF_UP: Final = 1


def interface() -> dict[str, Any]:
    """The guest's side, for its agent."""
    return {
        "name": "eth0",
        "addresses": [f"{GUEST}/{PREFIX}"],
        "routes": [{"to": "default", "via": HOST}],
    }


def mac(box: str) -> str:
    """A locally administered address, the same for the same box."""
    digest = hashlib.sha256(box.encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def open_tap(netns: str) -> int:
    """Make the tap device in a namespace; it is there while the descriptor is open.

    Raises:
        UnavailableError: without the privilege, or the namespace.
    """
    found: list[int | OSError] = []

    def work() -> None:
        # A thread of its own: it stays in that namespace, and ends.
        try:
            found.append(_make(netns))
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(found[0], OSError):
        raise UnavailableError(f"no tap device in {netns}: {found[0].strerror}") from found[0]
    return found[0]


def _make(netns: str) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    namespace = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(namespace, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(namespace)
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        name = TAP.encode()
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name, _IFF_TAP_NO_PI_VNET))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            mask = socket.inet_ntoa(struct.pack(">I", (0xFFFFFFFF << (32 - PREFIX)) & 0xFFFFFFFF))
            for request, address in ((_SIOCSIFADDR, HOST), (_SIOCSIFNETMASK, mask)):
                packed = struct.pack("=H2x4s8x", socket.AF_INET, socket.inet_aton(address))
                fcntl.ioctl(control, request, struct.pack("16s16s8x", name, packed))
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", name, _IFF_UP))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
