"""One HTTP request to a Bedstone server: where it goes, and what its failures mean.

Rules:
- Every failure leaves as a `bedstone.errors.Error`. A request that never reached the server is
  `UnavailableError`; one whose answer was lost is `UnknownOutcomeError` if it could have changed
  anything, and `UnavailableError` if it only reads.
- A credential never enters a message.
"""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from bedstone.errors import (
    HTTP_STATUS,
    INTERNAL,
    DeniedError,
    Error,
    InvalidError,
    UnavailableError,
    UnknownOutcomeError,
    VerificationError,
    from_code,
)

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT = 5.0
_SAFE = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server is: a Unix socket, or a URL with a bearer token.

    Args:
        socket: path of the server's Unix socket; the file's mode is the credential.
        url: `https://HOST:PORT` (or `http://` on loopback only), used when `socket` is None.
        token: bearer token; never shown.
        authority: file with the CA certificates (PEM) to trust instead of the system's.
    """

    socket: Path | None = None
    url: str = "http://bedstone"
    token: str | None = field(default=None, repr=False)
    authority: Path | None = None

    def __post_init__(self) -> None:
        if self.socket is not None:
            return
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidError(
                f"the server's URL is {self.url!r}, expected https://HOST:PORT",
                hint="correct --server or BEDSTONE_URL",
            )
        if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
            raise InvalidError(
                f"the server's URL {self.url!r} would send the token in clear, expected https://",
                hint="correct --server or BEDSTONE_URL",
            )

    def __str__(self) -> str:
        return str(self.socket) if self.socket is not None else self.url


class Transport:
    """Connections to one server. Open it with `async with`; requests may run concurrently."""

    def __init__(self, endpoint: Endpoint, *, timeout: float = 30.0) -> None:
        import httpx

        self.endpoint = endpoint
        headers = {"accept": "application/json", "user-agent": "bedstone"}
        if endpoint.token:
            headers["authorization"] = f"Bearer {endpoint.token}"
        if endpoint.socket is not None:
            if len(os.fsencode(endpoint.socket)) > 107:  # sockaddr_un.sun_path, unix(7)
                raise InvalidError(f"the path of the socket {endpoint.socket} exceeds 107 bytes")
            # No TLS on a Unix socket, so no trust store is loaded.
            transport = httpx.AsyncHTTPTransport(uds=str(endpoint.socket), verify=_no_tls())
        else:
            transport = httpx.AsyncHTTPTransport(verify=_trust(endpoint))
        self._timeout = httpx.Timeout(timeout, connect=CONNECT_TIMEOUT)
        self._client = httpx.AsyncClient(
            base_url=endpoint.url if endpoint.socket is None else "http://bedstone",
            transport=transport,
            headers=headers,
            timeout=self._timeout,
            trust_env=False,
            follow_redirects=False,
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout: float | None = None,
    ) -> bytes:
        """The body of a successful answer; raises the error that any other answer stands for."""
        import httpx

        limit = (
            self._timeout if timeout is None else httpx.Timeout(timeout, connect=CONNECT_TIMEOUT)
        )
        headers = {"content-type": "application/json"} if body is not None else {}
        with _Translated(method, self.endpoint):
            answer = await self._client.request(
                method, path, params=params, content=body, headers=headers, timeout=limit
            )
        if answer.is_success:
            return answer.content
        raise _failure(answer.status_code, answer.content, answer.headers.get("retry-after"))

    @asynccontextmanager
    async def lines(
        self, path: str, *, params: Mapping[str, str] | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """A stream of newline-delimited JSON; ends when the server ends it.

        A line that is a `Problem` is raised. Empty lines only show that the server lives.
        """
        import httpx

        limit = httpx.Timeout(None, connect=CONNECT_TIMEOUT)
        with _Translated("GET", self.endpoint):
            async with self._client.stream("GET", path, params=params, timeout=limit) as answer:
                if not answer.is_success:
                    content = await answer.aread()
                    retry = answer.headers.get("retry-after")
                    raise _failure(answer.status_code, content, retry)
                yield self._split(answer)

    async def _split(self, answer: httpx.Response) -> AsyncIterator[bytes]:
        rest = b""
        with _Translated("GET", self.endpoint):
            async for chunk in answer.aiter_bytes():
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    if line.strip():
                        yield _line(line)
        if rest.strip():
            yield _line(rest)


def _line(line: bytes) -> bytes:
    if line.startswith(b'{"code"'):
        raise _failure(500, line, None)
    return line


def _no_tls() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _trust(endpoint: Endpoint) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(
            cafile=str(endpoint.authority) if endpoint.authority else None
        )
    except (OSError, ssl.SSLError) as error:
        raise InvalidError(
            f"cannot read the CA certificates in {endpoint.authority}: {error}",
            hint="name a file with the server's CA certificate in PEM",
        ) from error


class _Translated:
    """Turns the HTTP library's exceptions into ours."""

    def __init__(self, method: str, endpoint: Endpoint) -> None:
        self._method = method
        self._endpoint = endpoint

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import httpx

        if isinstance(error, httpx.HTTPError):
            raise _translate(error, self._method, self._endpoint) from error


def _translate(error: httpx.HTTPError, method: str, endpoint: Endpoint) -> Error:
    import httpx

    hint = "start it with `bedstone up`" if endpoint.socket is not None else "check --server"
    match error:
        case httpx.ConnectError() if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return VerificationError(
                f"the certificate of {endpoint} does not verify",
                hint="name the server's CA certificate with --ca-file or BEDSTONE_CA",
            )
        case httpx.ConnectError() | httpx.ConnectTimeout() | httpx.PoolTimeout():
            return UnavailableError(f"no server answers at {endpoint}", hint=hint)
        case _ if method in _SAFE:
            what = "did not answer in time" if _timed_out(error) else "closed the connection"
            return UnavailableError(
                f"the server at {endpoint} {what}",
                hint="run the command again; `bedstone logs engine:server` shows why",
            )
        case _:
            return UnknownOutcomeError(
                f"the server at {endpoint} was lost before it answered",
                hint="look with `bedstone ps` whether it was applied, then run the command again",
            )


def _timed_out(error: httpx.HTTPError) -> bool:
    import httpx

    return isinstance(error, httpx.TimeoutException)


def _failure(status: int, content: bytes, retry_after: str | None) -> Error:
    """The error that an unsuccessful answer stands for."""
    value: Any = None
    if status == 401:
        return DeniedError(
            "the server wants a valid token", hint="give --token-file or BEDSTONE_TOKEN"
        )
    try:
        value = json.loads(content)
        code, message, hint = value["code"], value["message"], value.get("hint")
    except (ValueError, KeyError, TypeError, AttributeError):
        code = next((code for code, known in HTTP_STATUS.items() if known == status), INTERNAL)
        detail = _detail(value)
        message, hint = f"the server answered {status}{detail}", None
    error = from_code(str(code), str(message), hint=hint)
    if isinstance(error, UnavailableError) and retry_after and retry_after.isdigit():
        error.retry_after = float(retry_after)
    return error


def _detail(value: Any) -> str:
    """What FastAPI says of a request that it refused before our handler saw it."""
    detail = value.get("detail") if isinstance(value, dict) else None
    match detail:
        case str():
            return f": {detail}"
        case [{"loc": list(where), "msg": str(what)}, *_]:
            return f": {'.'.join(map(str, where))}: {what}"
        case _:
            return ""
