"""Who is at the other end of a gRPC connection, by its certificate."""

from __future__ import annotations

from typing import Any, Protocol

from bedstone.errors import DeniedError, InvalidError
from bedstone.trust.spiffe import SpiffeId

_SAN = "x509_subject_alternative_name"


class Context(Protocol):
    """The part of `grpc.aio.ServicerContext` that carries the peer's identity."""

    def auth_context(self) -> Any:
        """Properties of the connection's authentication, as lists of bytes by name."""
        ...


def peer_identity(context: Context) -> SpiffeId:
    """The SPIFFE id in the peer's verified certificate (X.509-SVID §2: exactly one URI SAN).

    Raises:
        DeniedError: the peer has shown no certificate, or one that is no SVID.
    """
    names = [value.decode(errors="replace") for value in context.auth_context().get(_SAN, ())]
    identities = [name for name in names if name.startswith("spiffe://")]
    if len(identities) != 1:
        raise DeniedError("the peer's certificate carries no SPIFFE id")
    try:
        return SpiffeId.parse(identities[0])
    except InvalidError as error:
        raise DeniedError(f"the peer's SPIFFE id is not valid: {error.message}") from error


def peer_node(context: Context, domain: str) -> str:
    """The name of the node at the other end.

    Raises:
        DeniedError: the peer is no node, or one of another trust domain, which the same authority
            may have signed for.
    """
    identity = peer_identity(context)
    match identity.segments:
        case ("node", name) if identity.domain == domain:
            return name
        case _:
            raise DeniedError(f"{identity} is not a node of {domain}")
