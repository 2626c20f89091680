"""Whether the gateway or the console could listen, and if not, who is in the way.

The test binds without SO_REUSEPORT, so that it also finds a listener that would share the port.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from pathlib import Path

from bedstone.errors import ConflictError, DeniedError, InvalidError, UnavailableError

_LISTEN = "0A"  # TCP_LISTEN, include/net/tcp_states.h


def check_gateway(address: str, port: int) -> None:
    """Return if the gateway's port can be listened on; raises as `check_port`."""
    check_port(address, port, "gateway", "--gateway-port")


def check_port(address: str, port: int, whose: str, option: str) -> None:
    """Return if a port can be listened on.

    Args:
        address: on which of this machine's.
        port: which.
        whose: what shall listen there, in messages.
        option: of `bedstone up`, that chooses another.

    Raises:
        ConflictError: another program listens on it; names it where /proc shows it.
        DeniedError: the port needs a privilege.
        InvalidError: the address is not this machine's.
    """
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise _explained(error, address, port, (whose, option)) from error


def _explained(error: OSError, address: str, port: int, names: tuple[str, str]) -> Exception:
    whose, option = names
    match error.errno:
        case errno.EADDRINUSE:
            owner = port_owner(port)
            return ConflictError(
                f"the {whose}'s port {port} is taken{f' by {owner}' if owner else ''}",
                hint=f"stop that program, or choose another port: `bedstone up {option} N`",
            )
        case errno.EACCES | errno.EPERM:
            return DeniedError(
                f"the {whose}'s port {port} needs a privilege",
                hint=f"choose one from 1024: `bedstone up {option} N`",
            )
        case errno.EADDRNOTAVAIL:
            return InvalidError(
                f"the {whose}'s address {address} is not one of this machine's",
                hint=f"correct {whose}.address in the manifest",
            )
        case _:
            return UnavailableError(f"cannot listen on {address}:{port}: {error.strerror}")


def port_owner(port: int) -> str | None:
    """`NAME (pid N)` of a program that listens on a TCP port; None if it cannot be told."""
    inodes = {
        f"socket:[{fields[9]}]"
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for fields in _rows(table)
        if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port
    }
    if not inodes:
        return None
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and _holds(folder / "fd", inodes):
            try:
                name = (folder / "comm").read_text().strip()
            except OSError:
                continue
            return f"{name} (pid {folder.name})"
    return None


def _rows(table: str) -> list[list[str]]:
    try:
        lines = Path(table).read_text().splitlines()[1:]
    except OSError:
        return []
    return [fields for line in lines if len(fields := line.split()) > 9]


def _holds(folder: Path, inodes: set[str]) -> bool:
    try:
        names = os.listdir(folder)  # noqa: PTH208 - one call for each process
    except OSError:
        return False
    for name in names:
        try:
            if str((folder / name).readlink()) in inodes:
                return True
        except OSError:
            continue
    return False
