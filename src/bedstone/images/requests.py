"""Requests to registries: authorized, bounded, sent again while that can help.

Errors are `NotFoundError`, `DeniedError`, `UnavailableError` (try later), `InvalidError`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from bedstone.errors import DeniedError, Error, InvalidError, NotFoundError, UnavailableError
from bedstone.images.auth import Authorizer
from bedstone.images.credentials import Keyring
from bedstone.images.endpoints import Endpoint

Answer = TypeVar("Answer")

_MOMENTARY = frozenset({408, 425, 429, 500, 502, 503, 504})
_ERROR_BYTES = 8192
_LONGEST_WAIT = 30.0
_LOOPBACK: Mapping[str, None] = {
    "all://localhost": None,
    "all://127.0.0.1": None,
    "all://[::1]": None,
}


@dataclass(frozen=True, slots=True)
class Patience:
    """How often requests are sent again.

    Args:
        attempts: of a request, and of a download that makes no progress.
        first_wait: seconds before the second attempt; doubled for each further.
        read_timeout: seconds without a byte after which a connection is given up.
    """

    attempts: int = 4
    first_wait: float = 0.5
    read_timeout: float = 30.0

    def wait(self, failures: int, asked: float | None = None) -> float:
        """Seconds to wait after so many failures, a little at random so that clients spread.

        Args:
            failures: so far.
            asked: seconds that the server asked for, followed up to a limit.
        """
        wait = self.first_wait * 2.0 ** (failures - 1) * random.uniform(0.75, 1.25)  # noqa: S311
        return float(min(max(wait, asked or 0.0), _LONGEST_WAIT))


class Requests:
    """Sends requests to registries; safe for many tasks at once.

    Args:
        keyring: credentials.
        patience: how often to try.
        http: a client to use instead of one of its own.
    """

    def __init__(
        self, keyring: Keyring, patience: Patience, http: httpx.AsyncClient | None = None
    ) -> None:
        self.patience = patience
        self.http = http or httpx.AsyncClient(
            timeout=httpx.Timeout(patience.read_timeout, connect=10.0),
            follow_redirects=True,  # which sends no credentials to another origin
            max_redirects=5,
            mounts=dict(_LOOPBACK),  # no proxy between this machine and itself
            headers={"User-Agent": "bedstone", "Accept-Encoding": "identity"},
            event_hooks={"response": [_stay_private]},
        )
        self._auth = Authorizer(self.http, keyring)

    def authorization(self, endpoint: Endpoint, scope: str) -> dict[str, str]:
        """The header that was accepted for a scope before, if there is one."""
        known = self._auth.known(endpoint, scope)
        return {"Authorization": known} if known else {}

    @asynccontextmanager
    async def stream(
        self, endpoint: Endpoint, method: str, path: str, scope: str, **more: Any
    ) -> AsyncIterator[httpx.Response]:
        """One request, authorized when that is demanded; the answer is not read yet.

        Raises:
            DeniedError, NotFoundError, InvalidError, UnavailableError: for any status but 2xx
                and 416.
        """
        headers = dict(more.pop("headers", {}))
        url = endpoint.url + path
        sent = self._auth.known(endpoint, scope)
        for last in (False, False, True):
            if sent is not None:
                headers["Authorization"] = sent
            async with self.http.stream(method, url, headers=headers, **more) as response:
                challenge = response.headers.get("www-authenticate", "")
                if response.status_code != 401 or last or not challenge:
                    await require(response, endpoint)
                    yield response
                    return
            answer = await self._auth.answer(endpoint, scope, challenge, sent)
            if answer is None:
                raise denied(endpoint, 401, "credentials are missing or wrong")
            sent = answer

    async def small(
        self, endpoint: Endpoint, method: str, path: str, scope: str, *, limit: int, **more: Any
    ) -> tuple[httpx.Response, bytes]:
        """One request and its whole answer, of at most `limit` bytes; raises as `stream` does."""
        async with self.stream(endpoint, method, path, scope, **more) as response:
            data = bytearray()
            async for block in response.aiter_raw():
                data += block
                if len(data) > limit:
                    raise InvalidError(f"{endpoint.url} answers more than {limit} bytes to {path}")
            return response, bytes(data)

    async def patiently(self, attempt: Callable[[], Awaitable[Answer]]) -> Answer:
        """Do something that can fail for a moment, until it does not or patience ends."""
        failures = 0
        while True:
            try:
                return await attempt()
            except (UnavailableError, httpx.HTTPError) as error:
                failures += 1
                told = as_error(error)
                if failures >= self.patience.attempts or not momentary(error):
                    raise told from error
            await asyncio.sleep(self.patience.wait(failures, told.retry_after))


async def _stay_private(response: httpx.Response) -> None:
    """Refuse to be led from TLS to what is without."""
    if response.has_redirect_location and response.url.scheme == "https":
        target = response.url.join(response.headers["location"])
        if target.scheme != "https":
            raise DeniedError(f"{response.url.host} leads to {target}, which is without TLS")


def momentary(error: Exception) -> bool:
    """Whether another attempt can help."""
    if isinstance(error, httpx.HTTPError):
        # A wrong URL, or redirects without end, stay so.
        return not isinstance(error, httpx.UnsupportedProtocol | httpx.TooManyRedirects)
    return isinstance(error, UnavailableError)


def as_error(error: Exception) -> UnavailableError:
    """A failed connection in our words."""
    if isinstance(error, UnavailableError):
        return error
    request = getattr(error, "_request", None)
    host = request.url.host if request is not None else "the registry"
    text = str(error) or type(error).__name__
    return UnavailableError(
        f"no answer from {host}: {text}", hint="check the network, a proxy, or set a mirror"
    )


async def require(response: httpx.Response, endpoint: Endpoint) -> None:
    """Raise what a status means, with what the registry says about it."""
    status = response.status_code
    if response.is_success or status == 416:
        return
    said = await _reason(response)
    path = response.request.url.path
    match status:
        case 401 | 403:
            raise denied(endpoint, status, said)
        case 404:
            raise NotFoundError(f"{endpoint.url} has no {path.removeprefix('/v2/')}{said}")
        case _ if status in _MOMENTARY:
            raise UnavailableError(
                f"{endpoint.url} answers {status} to {path}{said}",
                retry_after=_retry_after(response),
            )
        case _:
            raise InvalidError(f"{endpoint.url} answers {status} to {path}{said}")


def denied(endpoint: Endpoint, status: int, said: str) -> Error:
    """A refusal, with what to do about it."""
    return DeniedError(
        f"{endpoint.url} refuses: status {status} {said}".rstrip(),
        hint=f"check the image's name, and `docker login {endpoint.registry}`",
    )


async def _reason(response: httpx.Response) -> str:
    """What a registry says about an error (distribution-spec, "Error codes")."""
    data = bytearray()
    try:
        async for block in response.aiter_raw():
            data += block
            if len(data) > _ERROR_BYTES:
                return ""
        import json

        first = json.loads(data)["errors"][0]
        return f": {first.get('code', '')} {first.get('message', '')}".rstrip()
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return ""


def _retry_after(response: httpx.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else None
