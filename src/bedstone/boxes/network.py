"""The network of a stand-alone box: none, or a namespace with nothing but what was asked for.

The namespace has a loopback interface, and the link to the box. What leads in and out are sockets
of the box's relay: on this machine for ports that are published, in the namespace for the proxy.
They are made here, before anything of the box is, and handed on as descriptors.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bedstone.boxes import egress
from bedstone.errors import InvalidError, UnavailableError
from bedstone.processes import linux
from bedstone.processes.netns import delete_netns, is_kept
from bedstone.sandbox.alone import standard_python
from bedstone.sandbox.box import Link
from bedstone.sandbox.links import inside

HOST: Final = "127.0.0.1"
"""Where ports are published that name no address. Container engines take every address of the
machine, and so open a port to the whole network that was meant for this machine."""
_FOLDER: Final = Path("/run/bedstone/boxes")
_BACKLOG: Final = 1024
_NO_PROXY: Final = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Port:
    """A TCP port of the box, published at a port of an address of this machine; 0 is any."""

    address: str
    port: int
    box: int

    def __str__(self) -> str:
        return f"{egress.show(self.address, self.port)}->{self.box}/tcp"


def parse_port(text: str) -> Port:
    """A port from `[[ADDRESS:]PORT:]PORT[/tcp]`, the last one the box's.

    Raises:
        InvalidError: it is none, or UDP.
    """
    whole, _, protocol = text.partition("/")
    if protocol.lower() == "udp":
        raise InvalidError(f"cannot publish {text}: UDP is not relayed", hint="publish a TCP port")
    head, _, box = whole.rpartition(":")
    address, _, port = head.rpartition(":")
    try:
        if protocol.lower() not in ("", "tcp") or not (port or "0").isdecimal():
            raise ValueError
        if ":" in address and not re.fullmatch(r"\[.*\]", address):
            raise ValueError
        found = Port(
            str(ipaddress.ip_address(address.strip("[]") or HOST)), int(port or 0), int(box)
        )
        if found.port > 65535 or not 0 < found.box < 65536:
            raise ValueError
    except ValueError as error:
        raise InvalidError(
            f"got port {text!r}, expected [ADDRESS:]PORT:PORT, as 8080:80",
            hint="an address is one of this machine's, as 127.0.0.1 or 0.0.0.0",
        ) from error
    return found


def parse_egress(text: str) -> egress.Rule:
    """A rule from `HOST[:PORT]`. Raises InvalidError."""
    try:
        return egress.parse(text)
    except ValueError as error:
        raise InvalidError(
            f"egress: {error}", hint="as api.example.org, or db.example:5432"
        ) from error


@dataclass
class Network:
    """What was made for a box; `close` it once the shim has its descriptors.

    Attributes:
        netns: path of the namespace.
        ports: those that are published, with their real numbers.
        env: what programs need to find the proxy.
        sockets: those that the relay gets.
        relay: what it is told.
        rules: what may be reached.
        proxy_port: of the proxy in the namespace.
    """

    netns: str
    ports: tuple[Port, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    sockets: list[socket.socket] = field(default_factory=list)
    relay: dict[str, Any] = field(default_factory=dict)
    rules: tuple[egress.Rule, ...] = ()
    proxy_port: int = 0

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Those of the sockets."""
        return tuple(made.fileno() for made in self.sockets)

    def command(self, newline: str) -> tuple[str, ...]:
        """The relay's command line."""
        config = json.dumps({**self.relay, "newline": newline})
        return (*standard_python("bedstone.boxes.relay"), config)

    def close(self) -> None:
        """Close the sockets here."""
        for made in self.sockets:
            made.close()


def path_of(home: Path, box: str) -> Path:
    """Where a box's namespace is kept: not in its home, since it ends with this boot."""
    return _FOLDER / f"{home.stat().st_ino:x}-{box}"


def publish(ports: Sequence[Port]) -> list[socket.socket]:
    """Listen for each of them on this machine.

    Raises:
        UnavailableError: one is taken, or its address is not this machine's.
    """
    made: list[socket.socket] = []
    try:
        for port in ports:
            family = socket.AF_INET6 if ":" in port.address else socket.AF_INET
            made.append(socket.socket(family, socket.SOCK_STREAM))
            made[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                made[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made[-1].bind((port.address, port.port))
            made[-1].listen(_BACKLOG)
    except OSError as error:
        for each in made:
            each.close()
        where = egress.show(port.address, port.port)
        raise UnavailableError(
            f"cannot publish {where}: {error.strerror}", hint="choose another port or address"
        ) from error
    return made


def make_namespace(path: Path) -> None:
    """Make a network namespace at `path`, all of whose ports any user may listen on.

    One that is there was left by another box of that name.

    Raises:
        UnavailableError: without the privilege.
    """
    problems: list[OSError] = []

    def make() -> None:
        # A thread of its own, since it never comes back from there.
        try:
            path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
            if is_kept(path):
                delete_netns(path)
            linux.unshare(linux.CLONE_NEWNET)
            # The box is nobody here, and nobody else is in its network.
            Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text("0")
            path.touch(mode=0o600)
            linux.mount("/proc/thread-self/ns/net", str(path), linux.MS_BIND)
        except OSError as error:
            problems.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if problems:
        path.unlink(missing_ok=True)
        raise UnavailableError(
            f"no network namespace can be made: {problems[0].strerror}", hint="run it as root"
        ) from problems[0]


def remove_namespace(home: Path, box: str) -> None:
    """Let go of a box's namespace, if it has one. Idempotent. Raises UnavailableError."""
    path = path_of(home, box)
    if path.exists() or is_kept(path):
        delete_netns(path)


def proxy(
    link: Link, netns: str, port: int, rules: Sequence[egress.Rule]
) -> tuple[socket.socket, dict[str, str]]:
    """Listen for the proxy in a namespace; the socket, and the variables that lead to it.

    What a rule names leads to the proxy, also where it is this machine's loopback.
    """

    def listen() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.bind((link.namespace, port))
        made.listen(_BACKLOG)
        return made

    made = inside(netns, listen)
    url = f"http://{link.namespace}:{made.getsockname()[1]}"
    own = ",".join(host for host in _NO_PROXY if host not in {rule.host for rule in rules})
    values = {"HTTP_PROXY": url, "HTTPS_PROXY": url, "ALL_PROXY": url, "NO_PROXY": own}
    return made, {**values, **{name.lower(): value for name, value in values.items()}}


def make(
    path: Path,
    link: Link,
    ports: Sequence[Port],
    rules: Sequence[egress.Rule],
    proxy_port: int = 0,
) -> Network:
    """The sockets of a box's network, whose namespace is there and linked.

    Args:
        path: of the namespace.
        link: what the driver's `link` said.
        ports: to be published.
        rules: what may be reached; without any there is no proxy.
        proxy_port: where the box expects its proxy; 0 where it is told.
    """
    found = Network(str(path), rules=tuple(rules))
    with contextlib.ExitStack() as stack:
        stack.callback(found.close)
        found.sockets += publish(ports)
        found.ports = tuple(
            Port(port.address, made.getsockname()[1], port.box)
            for port, made in zip(ports, found.sockets, strict=True)
        )
        found.relay = {
            "netns": str(path),
            "box": link.box,
            "ports": [
                [made.fileno(), port.box] for port, made in zip(ports, found.sockets, strict=True)
            ],
            "proxy": None,
            "egress": [str(rule) for rule in rules],
        }
        if rules:
            made, found.env = proxy(link, str(path), proxy_port, rules)
            found.proxy_port = made.getsockname()[1]
            found.sockets.append(made)
            found.relay["proxy"] = made.fileno()
        stack.pop_all()
    return found
