"""The certificates of what runs on this node: asked for, kept, renewed at half their life.

Invariants: a certificate in use is replaced only by a newer verified one; with no server, what is
here goes on being served; a key is made for each request, and leaves the node in none.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from bedstone.errors import VerificationError
from bedstone.model.messages import Certificate, CertificateRequest
from bedstone.trust.svid import Svid, certificate_request, new_key

FIRST_RETRY = 0.2
LAST_RETRY = 10.0
PATIENCE = 3.0
"""Seconds without an answer after which a request is made again."""
_log = logging.getLogger(__name__)


class _Wanted:
    """One identity: what is there, and the request that is under way."""

    def __init__(self, svid: Svid | None) -> None:
        self.svid = svid
        self.request: str | None = None
        self.key = ""
        self.retry_at = 0.0
        self.pause = FIRST_RETRY


class Certificates:
    """All identities that this node holds for its instances, its apps and itself."""

    def __init__(
        self,
        folder: Path,
        send: Callable[[CertificateRequest], bool],
        changed: Callable[[Svid], None],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Args: where they are kept, how to ask, whom to tell of a new one, the time."""
        self._folder = folder
        self._send = send
        self._changed = changed
        self._clock = clock
        self._wanted: dict[str, _Wanted] = {}
        self._wake = asyncio.Event()

    def get(self, spiffe_id: str) -> Svid | None:
        """The identity, if it is there and valid."""
        found = self._wanted.get(spiffe_id)
        if found is None or found.svid is None or not found.svid.valid(self._clock()):
            return None
        return found.svid

    def current(self) -> list[Svid]:
        """All that are there, even those that have run out."""
        return [wanted.svid for wanted in self._wanted.values() if wanted.svid is not None]

    def adopt(self, svid: Svid) -> None:
        """Look after one that was obtained elsewhere."""
        self._wanted[svid.spiffe_id] = _Wanted(svid)
        self._wake.set()

    def want(self, ids: set[str]) -> None:
        """Hold exactly these; those of others are forgotten, keys included."""
        for spiffe_id in ids - self._wanted.keys():
            stored = Svid.load(self._path(spiffe_id))
            usable = stored is not None and stored.spiffe_id == spiffe_id
            self._wanted[spiffe_id] = _Wanted(stored if usable else None)
            if stored is not None and usable:
                self._changed(stored)
            self._wake.set()
        for spiffe_id in self._wanted.keys() - ids:
            del self._wanted[spiffe_id]
            self._path(spiffe_id).unlink(missing_ok=True)

    def connected(self) -> None:
        """A stream is open: whatever was asked on an earlier one is asked again."""
        for wanted in self._wanted.values():
            wanted.request = None
            wanted.retry_at = 0.0
        self._wake.set()

    def answer(self, message: Certificate) -> None:
        """Take the server's answer."""
        for spiffe_id, wanted in self._wanted.items():
            if wanted.request != message.id:
                continue
            wanted.request = None
            if message.error is None:
                svid = Svid(spiffe_id, wanted.key, message.chain, message.bundle, self._clock())
                try:
                    svid.verify()
                except VerificationError as error:
                    self._postpone(spiffe_id, wanted, error.message)
                    return
                wanted.svid = svid
                wanted.pause = FIRST_RETRY
                wanted.retry_at = 0.0
                try:
                    svid.save(self._path(spiffe_id))
                except OSError as error:
                    # It serves all the same; only the next agent will have to ask again.
                    _log.warning("cannot write", extra={"reason": str(error)})
                self._changed(svid)
                self._wake.set()
            else:
                self._postpone(spiffe_id, wanted, message.message)
            return

    def _postpone(self, spiffe_id: str, wanted: _Wanted, reason: str) -> None:
        _log.warning("certificate refused", extra={"spiffe_id": spiffe_id, "reason": reason})
        wanted.retry_at = self._clock() + wanted.pause
        wanted.pause = min(wanted.pause * 2, LAST_RETRY)
        self._wake.set()

    async def run(self) -> None:
        """Ask for what is missing or half used, until cancelled."""
        while True:
            self._wake.clear()
            due = self._ask()
            try:
                async with asyncio.timeout(due):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _ask(self) -> float | None:
        """Send the requests that are due; seconds until the next one is, None for never."""
        now = self._clock()
        next_due: list[float] = []
        for spiffe_id, wanted in self._wanted.items():
            due = wanted.svid.half if wanted.svid is not None else now
            due = max(due, wanted.retry_at)
            if due <= now:
                wanted.key = new_key()
                wanted.request = secrets.token_hex(8)
                request = CertificateRequest(
                    id=wanted.request,
                    spiffe_id=spiffe_id,
                    request=certificate_request(wanted.key, spiffe_id),
                )
                if not self._send(request):
                    wanted.request = None
                    continue  # `connected` comes
                due = wanted.retry_at = now + PATIENCE
            next_due.append(due)
        return max(0.0, min(next_due) - now) if next_due else None

    def _path(self, spiffe_id: str) -> Path:
        return self._folder / f"{hashlib.sha256(spiffe_id.encode()).hexdigest()[:24]}.json"
