"""Who is signed in: sessions in the store, which outlive a restart of the server.

Invariants:
- The cookie's secret has 256 random bits and is nowhere but in the browser; the store holds its
  digest.
- A session ends after `IDLE` seconds without a request, `LIFETIME` seconds after its beginning,
  when its person signs out, when an operator revokes it, or with the token through which it was
  begun.
- Nobody is signed in or out without an audit record: it is written first.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from bedstone.console.links import Grant, Role, digest
from bedstone.errors import ConflictError, Error, NotFoundError
from bedstone.model.monitoring import ConsoleSignIn
from bedstone.model.resources import SignIn, Token
from bedstone.store import Delete, Put, Store

T = TypeVar("T")
VISITOR = "bedstone.visitor"
"""Key in an ASGI scope: the `Visitor` whom the console has let in. No request can set it."""
IDLE = 12 * 3600.0
LIFETIME = 7 * 86400.0
LOOK = 5.0
"""Seconds between looks for whether a session with an open stream has ended."""
_SEEN_AGAIN = 60.0
"""Seconds after which it is written down anew that a session was used."""
_MOST = 200
_AGENT = 200


class Audit(Protocol):
    """Where it is recorded who did what."""

    async def noted(self, who: str, action: str, target: str, detail: str) -> None:
        """Record it; durable when it returns."""
        ...


@dataclass(frozen=True, slots=True)
class Visitor:
    """Whom a request's cookie names; `csrf` is what a change must show besides.

    `ended` is set when the session ends before `until`.
    """

    id: str
    who: str
    role: Role
    csrf: str
    until: float
    ended: asyncio.Event


class SignIns:
    """The sessions of the console."""

    def __init__(
        self,
        store: Store,
        audit: Audit,
        *,
        clock: Callable[[], float] = time.time,
        token: Callable[[], str] = lambda: secrets.token_urlsafe(32),
    ) -> None:
        self._store = store
        self._audit = audit
        self._clock = clock
        self._token = token
        self._seen: dict[str, float] = {}
        self._ending: dict[str, asyncio.Event] = {}

    async def begin(self, grant: Grant, agent: str) -> tuple[str, Visitor]:
        """Begin a session; gives the cookie's secret, which is told this once."""
        await self._sweep()
        secret, now = self._token(), self._clock()
        # Who is signed in may invite; it is still the token behind them that counts.
        via = grant.via.removeprefix("console:")
        session = SignIn(
            digest=digest(secret),
            who=f"console:{via.removeprefix('local:')}",
            role=grant.role,
            via=via,
            created_at=now,
            seen_at=now,
            agent=agent[:_AGENT],
        )
        await self._audit.noted(session.who, "sign-in", f"console {_id(session)}", session.role)
        await self._store.commit([Put(session.key, session.encode())])
        return secret, self._visitor(session, secret)

    async def find(self, secret: str) -> Visitor | None:
        """Who presents this cookie; None if its session has ended, or never was.

        Raises:
            UnavailableError: the store cannot be asked.
        """
        entry = await self._store.get(f"signins/{digest(secret)}")
        if entry is None:
            return None
        session, now = SignIn.decode(entry.value), self._clock()
        if self._expired(session, now) or await self._cut_off(session):
            await self._forget(session)
            return None
        if now - self._last_seen(session) >= _SEEN_AGAIN:
            self._seen[session.digest] = now
            fresh = session.model_copy(update={"seen_at": now})
            # One that was ended meanwhile must not come back to life.
            with contextlib.suppress(ConflictError):
                await self._store.commit([Put(session.key, fresh.encode(), entry.revision)])
        return self._visitor(session, secret)

    async def while_alive(self, visitor: Visitor, waiting: Awaitable[T]) -> T | None:
        """What is waited for; None as soon as the session has ended.

        That its token was revoked is seen within `LOOK` seconds.
        """
        tasks = (asyncio.ensure_future(waiting), asyncio.ensure_future(visitor.ended.wait()))
        try:
            while True:
                left = max(0.0, min(visitor.until - self._clock(), LOOK))
                await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if tasks[0].done():
                    return tasks[0].result()
                over = tasks[1].done() or self._clock() >= visitor.until
                if over or await self._is_over(visitor):
                    return None
        finally:
            for task in tasks:
                task.cancel()

    async def _is_over(self, visitor: Visitor) -> bool:
        """Whether a session has ended of which nobody has asked since."""
        try:
            for session in await self._all():
                if _id(session) == visitor.id:
                    if self._expired(session, self._clock()) or await self._cut_off(session):
                        await self._forget(session)
                        return True
                    return False
        except Error:
            return False  # the store cannot be asked: the next look will tell
        return True

    async def listed(self) -> list[ConsoleSignIn]:
        """Who is signed in, the latest first."""
        await self._sweep()
        found = sorted(await self._all(), key=lambda s: s.created_at, reverse=True)
        return [
            ConsoleSignIn(
                id=_id(session),
                who=session.who,
                role=session.role,
                created_at=session.created_at,
                seen_at=self._last_seen(session),
                expires_at=min(self._last_seen(session) + IDLE, session.created_at + LIFETIME),
                agent=session.agent,
            )
            for session in found
        ]

    async def end(self, session_id: str, who: str, action: str = "sign-out") -> None:
        """End a session; its open streams end with it.

        Raises:
            NotFoundError: there is none of that id.
        """
        for session in await self._all():
            if _id(session) == session_id:
                await self._audit.noted(who, action, f"console {session_id}", session.who)
                await self._forget(session)
                return
        raise NotFoundError(
            f"nobody is signed in as session {session_id}", hint="see bedstone open --list"
        )

    def _visitor(self, session: SignIn, secret: str) -> Visitor:
        # Made of the secret, so that it needs no keeping and differs from session to session.
        csrf = hmac.new(secret.encode(), b"csrf", hashlib.sha256).hexdigest()
        return Visitor(
            _id(session),
            session.who,
            session.role,
            csrf,
            session.created_at + LIFETIME,
            self._ending.setdefault(session.digest, asyncio.Event()),
        )

    async def _all(self) -> list[SignIn]:
        listing = await self._store.list("signins/")
        return [SignIn.decode(entry.value) for entry in listing.entries]

    async def _sweep(self) -> None:
        """Forget what has expired, and the oldest beyond the most that are kept."""
        now = self._clock()
        sessions = sorted(await self._all(), key=self._last_seen, reverse=True)
        for number, session in enumerate(sessions):
            if number >= _MOST or self._expired(session, now):
                await self._forget(session)

    async def _forget(self, session: SignIn) -> None:
        await self._store.commit([Delete(session.key)])
        self._seen.pop(session.digest, None)
        if event := self._ending.pop(session.digest, None):
            event.set()

    def _last_seen(self, session: SignIn) -> float:
        return max(session.seen_at, self._seen.get(session.digest, 0.0))

    def _expired(self, session: SignIn, now: float) -> bool:
        idle = now - self._last_seen(session)
        return idle >= IDLE or now - session.created_at >= LIFETIME

    async def _cut_off(self, session: SignIn) -> bool:
        """Whether the token through which it was begun is gone, or is another of that name."""
        kind, _, name = session.via.partition(":")
        if kind != "token":
            return False
        entry = await self._store.get(f"tokens/{name}")
        return entry is None or Token.decode(entry.value).created_at > session.created_at


def _id(session: SignIn) -> str:
    """What people call a session: it says nothing of its secret."""
    return session.digest[:12]
