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
_NEWLINK, _DELLINK, _NEWADDR, _NEWROUTE = 16, 17, 20, 24
_IFF_UP: Final = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 3, 18, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_RTA_GATEWAY: Final = 5
_TABLE_MAIN, _PROTOCOL_BOOT, _UNICAST = 254, 3, 1


def link_up(index: int) -> bytes:
    """Switch an interface on."""
    return _message(_NEWLINK, 0, struct.pack("=BxHiII", 0, 0, index, _IFF_UP, _IFF_UP))


def new_address(index: int, address: str, prefix: int) -> bytes:
    """Give an interface an IPv4 address; EEXIST if it has it."""
    packed = socket.inet_aton(address)
    body = struct.pack("=BBBBI", socket.AF_INET, prefix, 0, 0, index)
    body += _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
    return _message(_NEWADDR, _CREATE_EXCL, body)


def new_pair(name: str, peer: str, peer_netns: int) -> bytes:
    """Make two interfaces with a cable between them; the descriptor says where the peer is."""
    far = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + _text(_IFLA_IFNAME, peer)
    far += _attribute(_IFLA_NET_NS_FD, struct.pack("=I", peer_netns))
    kind = _text(_IFLA_INFO_KIND, "veth")
    info = kind + _attribute(_IFLA_INFO_DATA, _attribute(_VETH_INFO_PEER, far))
    body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + _text(_IFLA_IFNAME, name)
    return _message(_NEWLINK, _CREATE_EXCL, body + _attribute(_IFLA_LINKINFO, info))


def delete_link(name: str) -> bytes:
    """Remove an interface, and with it the other one of a pair; ENODEV if it is not there."""
    return _message(_DELLINK, 0, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + _text(_IFLA_IFNAME, name))


def default_route(gateway: str) -> bytes:
    """Send what is for nobody near to a neighbour."""
    body = struct.pack(
        "=BBBBBBBBI", socket.AF_INET, 0, 0, 0, _TABLE_MAIN, _PROTOCOL_BOOT, 0, _UNICAST, 0
    )
    body += _attribute(_RTA_GATEWAY, socket.inet_aton(gateway))
    return _message(_NEWROUTE, _CREATE_EXCL, body)


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


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")
