"""Authentication to registries (distribution spec, "token authentication"; RFC 7235, RFC 7617).

Rules:
- Credentials go to the registry that they are for and to the token service that it names, and the
  latter only by TLS, unless the registry itself is spoken to without.
- A token is kept for one registry and one scope, in memory only.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from bedstone.errors import DeniedError, UnavailableError
from bedstone.images.credentials import Credentials, Keyring
from bedstone.images.endpoints import Endpoint

if TYPE_CHECKING:
    import httpx

_SCHEME = re.compile(r"\s*([A-Za-z0-9!#$%&'*+.^_`|~-]+)(?:\s+|\s*$)")
_PARAMETER = re.compile(r'\s*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))\s*(?:,|$)')
_CLIENT_ID = "bedstone"
_TOKEN_SECONDS = 60.0
_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a server demands: a scheme in lower case, and its parameters."""

    scheme: str
    parameters: Mapping[str, str]


def challenges(header: str) -> list[Challenge]:
    """Those of a header `WWW-Authenticate`; what cannot be read ends the list."""
    found: list[Challenge] = []
    position = 0
    while match := _SCHEME.match(header, position):
        position = match.end()
        parameters: dict[str, str] = {}
        while parameter := _PARAMETER.match(header, position):
            quoted = parameter[2]
            value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else parameter[3]
            parameters[parameter[1].lower()] = value
            position = parameter.end()
        found.append(Challenge(match[1].lower(), parameters))
    return found


class Authorizer:
    """Knows the header `Authorization` for a server and a scope.

    Args:
        http: sends the requests for tokens.
        keyring: knows credentials.
        clock: seconds, steady.
    """

    def __init__(
        self, http: httpx.AsyncClient, keyring: Keyring, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._http = http
        self._keyring = keyring
        self._clock = clock
        self._known: dict[tuple[str, str], tuple[str, float]] = {}
        self._asking = asyncio.Lock()

    def known(self, endpoint: Endpoint, scope: str) -> str | None:
        """The header that was accepted before, while it is valid."""
        header, until = self._known.get((endpoint.url, scope), ("", 0.0))
        return header if self._clock() < until else None

    async def answer(
        self, endpoint: Endpoint, scope: str, header: str, refused: str | None
    ) -> str | None:
        """The header that answers a challenge; None if there is none to give.

        Args:
            endpoint: who demands it.
            scope: what for, e.g. `repository:library/python:pull`.
            header: the challenge (`WWW-Authenticate`).
            refused: the header that was refused just now, if one was sent.

        Raises:
            DeniedError: the token service refuses.
            UnavailableError: it cannot be reached, or answers nonsense.
        """
        async with self._asking:
            known = self.known(endpoint, scope)
            if known is not None and known != refused:
                return known  # another request got it meanwhile
            credentials = await asyncio.to_thread(self._keyring.find, endpoint.registry)
            for challenge in challenges(header):
                match challenge.scheme:
                    case "bearer":
                        value, seconds = await self._token(endpoint, scope, challenge, credentials)
                    case "basic" if credentials is not None and credentials.username:
                        value, seconds = credentials.basic(), float("inf")
                    case _:
                        continue
                if value == refused:
                    return None
                self._known[endpoint.url, scope] = value, self._clock() + seconds
                return value
            return None

    async def _token(
        self, endpoint: Endpoint, scope: str, challenge: Challenge, credentials: Credentials | None
    ) -> tuple[str, float]:

        realm = challenge.parameters.get("realm", "")
        split = urlsplit(realm)
        if split.scheme != "https" and not (split.scheme == "http" and endpoint.plain):
            raise DeniedError(
                f"{endpoint.url} sends to {realm or 'nowhere'} for a token, expected https://…"
            )
        query = {"scope": scope}
        if service := challenge.parameters.get("service"):
            query["service"] = service
        if credentials is not None and credentials.identity_token:
            form = {
                **query,
                "grant_type": "refresh_token",
                "client_id": _CLIENT_ID,
                "refresh_token": credentials.identity_token,
            }
            status, data = await self._ask("POST", realm, data=form)
        else:
            headers = {"Authorization": credentials.basic()} if credentials else {}
            status, data = await self._ask("GET", realm, params=query, headers=headers)
        if status in (400, 401, 403):
            raise DeniedError(
                f"{split.netloc} gives no token for {scope}: status {status}",
                hint=_login_hint(endpoint, credentials),
            )
        if status != 200:
            raise UnavailableError(f"{split.netloc} gives no token: status {status}")
        try:
            body = json.loads(data)
            token = str(body.get("token") or body["access_token"])
            seconds = float(body.get("expires_in") or _TOKEN_SECONDS)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UnavailableError(f"{split.netloc} answers no token") from error
        # A little early: it must still hold when it arrives.
        return f"Bearer {token}", seconds * 0.9

    async def _ask(self, method: str, realm: str, **more: Any) -> tuple[int, bytes]:
        import httpx

        data = bytearray()
        try:
            # Not redirected: credentials go to whom the registry has named, and to nobody else.
            async with self._http.stream(method, realm, follow_redirects=False, **more) as response:
                async for block in response.aiter_raw():
                    data += block
                    if len(data) > _ANSWER_BYTES:
                        raise UnavailableError(f"{realm} answers more than {_ANSWER_BYTES} bytes")
                return response.status_code, bytes(data)
        except httpx.HTTPError as error:
            text = str(error) or type(error).__name__
            raise UnavailableError(f"no token from {realm}: {text}") from error


def _login_hint(endpoint: Endpoint, credentials: Credentials | None) -> str:
    if credentials is None:
        return f"put credentials for {endpoint.registry} in docker's config.json (`docker login`)"
    return f"check the credentials for {endpoint.registry} in docker's config.json"
