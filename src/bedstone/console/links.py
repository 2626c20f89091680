"""One-time links: codes that are exchanged once, within two minutes, for a session.

A code stands in the fragment of the link's URL, which browsers send to no server and put into no
`Referer`; only the page's script sends it, by POST. So neither a history nor whatever fetches links
ahead can burn it or use it again.

Invariants: a code has 256 random bits; of it only the digest is held, in memory; it is gone at its
first use, right or late.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

LIFETIME = 120.0
"""Seconds."""
_MOST = 64
"""Codes that wait at most; the oldest makes way."""

Role = Literal["reader", "operator"]


@dataclass(frozen=True, slots=True)
class Grant:
    """What a code stands for: `via` is who asked for it."""

    via: str
    role: Role
    expires_at: float


class Links:
    """The codes that wait for their use."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        token: Callable[[], str] = lambda: secrets.token_urlsafe(32),
    ) -> None:
        self._clock = clock
        self._token = token
        self._waiting: dict[str, Grant] = {}

    def make(self, via: str, role: Role) -> tuple[str, Grant]:
        """A new code, and what it stands for."""
        now = self._clock()
        alive = {key: grant for key, grant in self._waiting.items() if grant.expires_at > now}
        while len(alive) >= _MOST:
            del alive[next(iter(alive))]
        code, grant = self._token(), Grant(via, role, now + LIFETIME)
        self._waiting = {**alive, digest(code): grant}
        return code, grant

    def redeem(self, code: str) -> Grant | None:
        """What a code stands for, this once; None if it was used, is too old, or never was."""
        grant = self._waiting.pop(digest(code), None)
        return grant if grant is not None and grant.expires_at > self._clock() else None


class Attempts:
    """A bucket of failed attempts to sign in: `burst` at once, then one each `seconds`."""

    def __init__(
        self,
        burst: int = 10,
        seconds: float = 2.0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._burst = burst
        self._seconds = seconds
        self._clock = clock
        self._used = 0.0
        self._at = clock()

    def wait(self) -> float:
        """Seconds until another attempt is looked at; 0: now."""
        self._leak()
        return max(0.0, (self._used - self._burst + 1) * self._seconds)

    def failed(self) -> None:
        """Count one."""
        self._leak()
        self._used = min(self._used + 1, self._burst)

    def _leak(self) -> None:
        now = self._clock()
        self._used = max(0.0, self._used - (now - self._at) / self._seconds)
        self._at = now


def digest(secret: str) -> str:
    """The digest that is held of a secret: SHA-256 of 256 random bits needs no salt."""
    return hashlib.sha256(secret.encode()).hexdigest()
