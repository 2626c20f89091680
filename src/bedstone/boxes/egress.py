"""What a box may reach by name, as a pure core: rules, and whether a destination is allowed.

Rules:
- Nothing is reached that no rule names. `HOST` allows ports 80 and 443, `HOST:PORT` that port; the
  host `*` stands for any, and there are no other patterns.
- An address that is not public (loopback, private, link-local, shared, multicast, reserved, or an
  IPv6 address that holds such a one), and one of this machine, is reached only where a rule names
  the address itself, also when a name that is allowed, or `*`, resolves to it: a name server is not
  to decide what of the inside can be reached.

Only the standard library is used.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

ANY: Final = "*"
PORTS: Final = (80, 443)
_NAME: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_SPECIAL: Final = tuple(
    ipaddress.ip_network(text)
    for text in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2001:db8::/32", "3fff::/20")
)
"""Registered for special use (RFC 6890 and later), and public to older versions of Python."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Refused(Exception):  # noqa: N818 - an answer, not a failure
    """Why a destination is not reached, for the box.

    Args:
        reason: in one line; it tells nothing of the inside.
        more: for who runs the box, what would allow it.
    """

    def __init__(self, reason: str, more: str) -> None:
        super().__init__(reason)
        self.more = more


@dataclass(frozen=True, slots=True)
class Rule:
    """A host, as `normal` gives it, or `*`; port None is any of `PORTS`."""

    host: str
    port: int | None = None

    def allows(self, port: int) -> bool:
        """Whether it names the port."""
        return port in PORTS if self.port is None else port == self.port

    def __str__(self) -> str:
        return show(self.host, self.port)


def parse(text: str) -> Rule:
    """A rule from `HOST`, `HOST:PORT`, `*`, `*:PORT`, `[IPV6]`, `[IPV6]:PORT`.

    Raises:
        ValueError: it is none.
    """
    host, port = split(text)
    return Rule(host if host == ANY else normal(host), port)


def split(text: str) -> tuple[str, int | None]:
    """Host and port of `HOST[:PORT]`; brackets around an IPv6 address are taken away.

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(r"(?:\[([^][]+)\]|([^][:]+))(?::(\d{1,5}))?", text)
    if found is None or not 0 < int(found[3] or 1) < 65536:
        raise ValueError(f"got {text!r}, expected HOST or HOST:PORT")
    return found[1] or found[2], int(found[3]) if found[3] else None


def normal(host: str) -> str:
    """A host as rules have it: lower-case, without a dot at its end; addresses in their one form.

    Raises:
        ValueError: it is neither a name nor an address.
    """
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        name = host.lower().removesuffix(".")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{host!r} is neither a name nor an address")
    return name


def check(rules: Iterable[Rule], host: str, port: int) -> None:
    """Whether a destination may be asked for. Its addresses have to pass `choose`, too.

    Raises:
        Refused: it may not.
    """
    if not any(rule.host in (host, ANY) and rule.allows(port) for rule in rules):
        where = show(host, None if port in PORTS else port)
        raise Refused(f"{show(host, port)} is not allowed", f"--egress {where} would allow it")


def choose(
    rules: Iterable[Rule],
    host: str,
    port: int,
    addresses: Iterable[str],
    own: Callable[[str], bool] = lambda _address: False,
) -> list[str]:
    """Those of a host's addresses that may be connected to, in their order.

    Args:
        rules: what may be reached.
        host: as it was asked for.
        port: likewise.
        addresses: what the host resolves to.
        own: whether an address is this machine's.

    Raises:
        Refused: none may.
    """
    named = {rule.host for rule in rules if rule.allows(port)}
    found = [normal(text) for text in addresses]
    chosen = [
        text
        for text in found
        if text in named or (public(ipaddress.ip_address(text)) and not own(text))
    ]
    if not chosen:
        shown = show(found[0], port) if found else "nothing"
        raise Refused(
            f"{show(host, port)} is not public, or this machine's own",
            f"it is {shown}; --egress {shown} would allow it",
        )
    return chosen


def public(address: Address) -> bool:
    """Whether an address belongs to the public Internet, and so does one that it holds."""
    if isinstance(address, ipaddress.IPv6Address):
        for held in (address.ipv4_mapped, address.sixtofour, *(address.teredo or ())):
            if held is not None:
                return public(held)
        if address in _NAT64:
            return public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in _UNICAST:
            return False
    if any(address.version == net.version and address in net for net in _SPECIAL):
        return False
    return address.is_global and not address.is_multicast


def show(host: str, port: int | None) -> str:
    """As it is written in a rule."""
    shown = f"[{host}]" if ":" in host else host
    return shown if port is None else f"{shown}:{port}"
