"""SPIFFE ids of a domain: how they are written and read.

Rules (SPIFFE-ID standard, sections 2.1-2.3): scheme `spiffe`, a trust domain of lower-case letters,
digits, dots, dashes and underscores, then path segments of letters, digits, dots, dashes and
underscores; no port, user, query, fragment, empty or relative segment.

Ids of Bedstone: `spiffe://DOMAIN/APP/WORKLOAD` (also `gateway` and `operator` in place of a
workload), `spiffe://DOMAIN/node/NODE`, `spiffe://DOMAIN/server`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bedstone.errors import InvalidError

GATEWAY = "gateway"
OPERATOR = "operator"
_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]+")
_LIMIT = 2048  # SPIFFE-ID, section 2.3


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """An id: the trust domain and the path's segments."""

    domain: str
    segments: tuple[str, ...]

    def __post_init__(self) -> None:
        if not _DOMAIN.fullmatch(self.domain):
            raise InvalidError(f"not a trust domain: {self.domain!r}")
        for segment in self.segments:
            if not _SEGMENT.fullmatch(segment):
                raise InvalidError(f"not a segment of a SPIFFE id: {segment!r}")

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Read `spiffe://DOMAIN/SEGMENT/…`; raises InvalidError for anything else."""
        if not text.startswith("spiffe://") or len(text.encode()) > _LIMIT:
            raise InvalidError(f"not a SPIFFE id: got {text[:80]!r}, expected spiffe://DOMAIN/PATH")
        domain, *segments = text.removeprefix("spiffe://").split("/")
        return cls(domain, tuple(segments))

    def __str__(self) -> str:
        return "/".join((f"spiffe://{self.domain}", *self.segments))


def workload_id(domain: str, app: str, workload: str) -> str:
    """The id of a workload, or of an app's `gateway` or `operator`."""
    return str(SpiffeId(domain, (app, workload)))


def node_id(domain: str, node: str) -> str:
    """The id of a node."""
    return str(SpiffeId(domain, ("node", node)))


def server_id(domain: str) -> str:
    """The id of a server."""
    return str(SpiffeId(domain, ("server",)))
