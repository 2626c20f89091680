"""An instance's own network namespace: its name, its addresses, sockets in it.

The same few ports in every namespace; only where the mesh enters is a port of the node's.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Sequence
from typing import Final

from bedstone.errors import UnavailableError
from bedstone.model.resources import Address, Instance, Plumbing
from bedstone.processes import linux
from bedstone.sandbox.box import Link
from bedstone.sandbox.protocol import Host

APP_PORT: Final = 8080
OUTBOUND_PORT: Final = 15001
TELEMETRY_PORT: Final = 15002
SERVICE_PORTS: Final = 15100
DATABASE_PORTS: Final = 5432
LOOPBACK: Final = Link("127.0.0.1", "127.0.0.1")


def namespace_name(instance: Instance) -> str:
    """A short plain name for an instance's namespace and folder, unique on the node."""
    digest = hashlib.sha256(instance.path.encode()).hexdigest()[:8]
    return f"{instance.workload[:20]}-{digest}"


def plumb(
    host: Host,
    netns: str,
    link: Link,
    workloads: Sequence[str],
    databases: Sequence[str],
    previous: Plumbing | None,
) -> Plumbing:
    """Addresses in a namespace; the node's port is kept where the instance was in it before.

    Args:
        host: of the sandbox.
        netns: the namespace's path.
        link: where the namespace and the program find each other.
        workloads: names of `uses` that are workloads.
        databases: names of `uses` that are databases.
        previous: what it had.
    """
    if previous is not None and previous.app.netns == netns:
        host.ports.hold(previous.inbound.port)
        inbound = previous.inbound
    else:
        inbound = Address(host=host.address, port=host.ports.take(host.address))

    def inside(port: int) -> Address:
        return Address(host=link.namespace, port=port, netns=netns)

    return Plumbing(
        app=Address(host=link.box, port=APP_PORT, netns=netns),
        inbound=inbound,
        outbound=inside(OUTBOUND_PORT),
        services={name: inside(SERVICE_PORTS + i) for i, name in enumerate(sorted(workloads))},
        databases={name: inside(DATABASE_PORTS + i) for i, name in enumerate(sorted(databases))},
        telemetry=inside(TELEMETRY_PORT),
    )


class Sockets:
    """Makes sockets in other namespaces, from a thread that stays in this one."""

    def __init__(self) -> None:
        self._home = -1

    def make(self, address: Address) -> socket.socket:
        """A socket in the network of `address`.

        setns(2) moves the calling thread only, and a socket stays in the namespace that it was made
        in; so the loop's own thread goes there for one call, and no other thread notices.

        Raises:
            UnavailableError: the namespace is gone.
        """
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        if address.netns is None:
            return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        if self._home < 0:
            self._home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            linux.setns(address.netns, linux.CLONE_NEWNET)
        except OSError as error:
            raise UnavailableError(f"its network namespace is gone: {error.strerror}") from error
        try:
            return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        finally:
            linux.setns(f"/proc/self/fd/{self._home}", linux.CLONE_NEWNET)
