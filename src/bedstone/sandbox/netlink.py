"""Interfaces, addresses and routes of a network namespace, by rtnetlink (rtnetlink(7)).

Messages are made by pure functions; `ask` sends one in the namespace of the calling thread.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Final

_REQUEST_ACK: Final = 0x1 | 0x4
_CREATE_EXCL: Final = 0x400 | 0x200
_NEWLINK, _NEWADDR = 16, 20
_IFF_UP: Final = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2


def link_up(index: int) -> bytes:
    """Switch an interface on."""
    return _message(_NEWLINK, 0, struct.pack("=BxHiII", 0, 0, index, _IFF_UP, _IFF_UP))


def new_address(index: int, address: str, prefix: int) -> bytes:
    """Give an interface an IPv4 address; EEXIST if it has it."""
    packed = socket.inet_aton(address)
    body = struct.pack("=BBBBI", socket.AF_INET, prefix, 0, 0, index)
    body += _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
    return _message(_NEWADDR, _CREATE_EXCL, body)


def ask(*messages: bytes) -> None:
    """Send messages, each once the one before was done.

    Raises:
        OSError: the kernel refuses.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as channel:
        for message in messages:
            channel.send(message)
            (number,) = struct.unpack_from("=i", channel.recv(1 << 16), 16)
            if number:
                raise OSError(-number, os.strerror(-number))


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, _REQUEST_ACK | flags, 1, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
