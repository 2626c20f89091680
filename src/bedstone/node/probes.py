"""Is a program ready: one probe, one answer.

An HTTP probe reads the status line only and closes the connection.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from bedstone.errors import Error
from bedstone.model.resources import Address
from bedstone.model.spec import HttpProbe, TcpProbe

MakeSocket = Callable[[Address], socket.socket]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether it passed, and what was seen, for people."""

    ok: bool
    message: str = ""


async def connect(make: MakeSocket, address: Address, timeout: float) -> socket.socket:
    """A connection to an address, in whatever network it is; OSError or TimeoutError."""
    link = make(address)
    try:
        async with asyncio.timeout(timeout):
            await asyncio.get_running_loop().sock_connect(link, (address.host, address.port))
    except BaseException:
        link.close()
        raise
    return link


async def accepts(make: MakeSocket, address: Address, timeout: float = 1.0) -> bool:
    """Whether something listens there."""
    try:
        (await connect(make, address, timeout)).close()
    except (OSError, TimeoutError, Error):
        return False
    return True


def _untraced() -> str:
    """A `traceparent` that says not to record: a probe each second would bury all other traces."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"


def _where(address: Address) -> str:
    """What to say of a port that nobody has opened beside this machine's network."""
    if address.host.startswith("127."):
        return ""
    return f"; it starts yet, or listens on 127.0.0.1 instead of 0.0.0.0:{address.port}"


async def probe(  # noqa: PLR0911 - each is another thing that a user can act on
    make: MakeSocket, address: Address, spec: HttpProbe | TcpProbe
) -> Outcome:
    """Probe a program that listens at `address`; it never raises for what the program does."""
    try:
        link = await connect(make, address, spec.timeout)
    except TimeoutError:
        return Outcome(
            ok=False, message=f"port {address.port} did not accept within {spec.timeout:g} s"
        )
    except OSError as error:
        reason = (os.strerror(error.errno) if error.errno else str(error)).lower()
        return Outcome(ok=False, message=f"port {address.port}: {reason}{_where(address)}")
    except Error as error:
        return Outcome(ok=False, message=error.message)
    if isinstance(spec, TcpProbe):
        link.close()
        return Outcome(ok=True)
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(spec.timeout):
            reader, writer = await asyncio.open_connection(sock=link)
            writer.write(
                f"GET {spec.path} HTTP/1.1\r\nHost: {address.host}:{address.port}\r\n"
                "User-Agent: bedstone-probe\r\nAccept: */*\r\nConnection: close\r\n"
                f"traceparent: {_untraced()}\r\n\r\n".encode()
            )
            line = await reader.readline()
    except TimeoutError:
        return Outcome(
            ok=False, message=f"GET {spec.path} gave no answer within {spec.timeout:g} s"
        )
    except (OSError, ValueError) as error:
        return Outcome(ok=False, message=f"GET {spec.path}: {error}")
    finally:
        if writer is not None:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        else:
            link.close()
    parts = line.split()
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/") or not parts[1].isdigit():
        return Outcome(ok=False, message=f"GET {spec.path} was not answered in HTTP")
    status = int(parts[1])
    return Outcome(status < 400, "" if status < 400 else f"GET {spec.path} answered {status}")
