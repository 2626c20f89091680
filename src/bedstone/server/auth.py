"""Who is calling the API, and what they may do.

- On the Unix socket, the kernel says who is at the other end (SO_PEERCRED); our own user and root
  are operators, nobody else gets in, whatever the socket's mode has become.
- On TCP, a bearer token (RFC 6750) names a role. Without one, only liveness is served.
- On the console's listener, a session's cookie does; `bedstone.console` has checked it before.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import pwd
import socket
import struct
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from uvicorn.protocols.http.h11_impl import H11Protocol

from bedstone.errors import DeniedError
from bedstone.model.resources import Token
from bedstone.server.changes import digest
from bedstone.store import Store

LOCAL = "local"
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller: `who` goes into the audit; `local` came over the Unix socket."""

    who: str
    role: Literal["reader", "operator"]
    local: bool = False

    def require(self, role: Literal["reader", "operator"]) -> None:
        """Refuse a caller whose role is not enough.

        Raises:
            DeniedError: the caller is a reader, and an operator is needed.
        """
        if role == "operator" and self.role != "operator":
            raise DeniedError(
                f"{self.who} has the role reader, expected operator",
                hint="use an operator's token",
            )


class PeerProtocol(H11Protocol):
    """HTTP/1.1 that tells the application the user at the other end of a Unix socket.

    Who has connected is unknown until a request is there; so neither may there be more than `MOST`
    connections to a listener, nor may one be silent for longer than `PATIENCE`: else anybody here
    could use up the files that the server may open.
    """

    MOST: ClassVar[int] = 512
    PATIENCE: ClassVar[float] = 20.0
    """Seconds."""
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Put `local:UID` where the peer's host name would be."""
        super().connection_made(transport)
        if len(self.connections) > self.MOST:
            transport.abort()
            return
        self._waiting = self.loop.call_later(self.PATIENCE, self._give_up)
        peer: socket.socket | None = transport.get_extra_info("socket")
        if peer is not None and peer.family == socket.AF_UNIX:
            raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            self.client = (f"{LOCAL}:{_CREDENTIALS.unpack(raw)[1]}", 0)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self._waiting is not None:
            self._waiting.cancel()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        request: object = self.cycle  # None until there is one
        if request is None:
            self.transport.abort()


async def authenticate(client: str, authorization: str | None, store: Store) -> Principal:
    """Tell who is calling.

    Args:
        client: the peer's address, or `local:UID`.
        authorization: the `Authorization` header.
        store: where tokens are kept.

    Raises:
        DeniedError: nobody we know.
    """
    kind, _, uid = client.partition(":")
    if kind == LOCAL:
        if int(uid) not in {0, os.getuid()}:
            raise DeniedError(f"user {_user(int(uid))} may not use this socket")
        return Principal(f"{LOCAL}:{_user(int(uid))}", "operator", local=True)
    scheme, _, secret = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not secret:
        raise DeniedError("no credential", hint="send Authorization: Bearer TOKEN")
    given = digest(secret.strip())
    for entry in (await store.list("tokens/")).entries:
        token = Token.decode(entry.value)
        if hmac.compare_digest(token.digest, given):
            return Principal(f"token:{token.name}", token.role)
    raise DeniedError("the credential is not known", hint="see bedstone token list")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
