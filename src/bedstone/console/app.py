"""The console's ASGI application: what a browser may ask, step by step.

1. `Host` is a name of loopback. A page of another site that has its name point here (DNS
   rebinding) sends its own name.
2. Liveness, and a request that carries its own credential (`Authorization`), are the API's to
   judge: no browser adds that header by itself.
3. A change (any method but GET and HEAD) comes from a page of the console itself: `Origin` is this
   very origin, and `Sec-Fetch-Site` (Fetch Metadata), where it is sent, says the same.
4. Signing in exchanges a one-time code for a session's cookie. Failed attempts are limited.
5. All of the API is read with a session only, and changed only with its token besides, which
   another origin cannot read.
6. Everything else is a file of the pages. They hold no data, and need no session.

The cookie is HttpOnly, SameSite=Strict and has no Domain. It cannot have the prefix `__Host-`: that
demands `Secure`, which not every browser accepts over plain HTTP on loopback. Browsers keep cookies
by host name and not by port, so whatever else is served on `localhost` would be sent it; links
therefore lead to a name of the console's own, `bedstone.localhost`, which browsers resolve to
loopback (RFC 6761 §6.3). The cookie's name carries the port, so that two consoles do not sign each
other out.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import math
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bedstone.console.files import Files, answer
from bedstone.console.headers import secured
from bedstone.console.links import Attempts, Links
from bedstone.console.signins import LIFETIME, VISITOR, SignIns, Visitor
from bedstone.errors import HTTP_STATUS, Error
from bedstone.model.api import Problem
from bedstone.model.monitoring import ConsoleLogin, ConsoleSession

HOST = "bedstone.localhost"
"""The name to which links lead."""
NAMES = frozenset({HOST, "localhost", "127.0.0.1", "[::1]"})
CSRF = "x-bedstone-csrf"
LOGIN, LOGOUT = "/v1/console/login", "/v1/console/logout"
LIVENESS = "/healthz"
_API = ("/v1/", "/prometheus/")
_METRICS = "/metrics"
_SAFE = frozenset({"GET", "HEAD"})
_LARGEST_LOGIN = 4096
_GONE: Message = {"type": "http.disconnect"}
_HERE = Path(__file__).parent
STATIC, LOGIN_PAGE = _HERE / "static", _HERE / "login"


class About(Protocol):
    """What a page may know of the installation before it asks for more."""

    def __call__(self, visitor: Visitor) -> ConsoleSession:
        """Describe a visitor's session."""
        ...


class _Refused(Exception):  # noqa: N818 - an answer
    """A request is answered with a problem."""

    def __init__(
        self, status: int, code: str, message: str, hint: str = "", retry: float = 0.0
    ) -> None:
        super().__init__(message)
        self.status = status
        self.problem = Problem(code=code, message=message, hint=hint or None)
        self.retry = retry


class Console:
    """What answers on the console's listener.

    Args:
        api: the HTTP API; it finds whom it serves in the scope, under `VISITOR`.
        links: the one-time codes.
        signins: the sessions.
        about: describes a session to its page.
        port: the listener's, for the name of the cookie.
        files: the pages.
        attempts: how often signing in may fail.
    """

    def __init__(
        self,
        api: ASGIApp,
        links: Links,
        signins: SignIns,
        about: About,
        *,
        port: int,
        files: Files | None = None,
        attempts: Attempts | None = None,
    ) -> None:
        self._api = api
        self._links = links
        self._signins = signins
        self._about = about
        self._cookie = f"bedstone-{port}"
        self._files = files or Files(STATIC)
        self._login_files = Files(LOGIN_PAGE, "/login.html")
        self._attempts = attempts or Attempts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        send = secured(send)
        request = Request(scope, receive)
        try:
            await self._serve(request, send)
        except _Refused as refused:
            headers = {"Retry-After": str(math.ceil(refused.retry))} if refused.retry else None
            response = JSONResponse(refused.problem.model_dump(), refused.status, headers)
            await response(scope, receive, send)
        except Error as error:
            problem = Problem(code=error.code, message=error.message, hint=error.hint)
            response = JSONResponse(problem.model_dump(), HTTP_STATUS[error.code])
            await response(scope, receive, send)

    async def _serve(self, request: Request, send: Send) -> None:
        scope, receive = request.scope, request.receive
        path = scope["path"]  # what the API goes by; a URL is cut at what was a %23 or %3f
        host = request.headers.get("host", "")
        if _name(host) not in NAMES:
            message = f"got the host {host[:80]!r}, expected {HOST} or localhost"
            raise _Refused(421, "denied", message, "open the link that bedstone open prints")
        if path == LIVENESS or (_is_api(path) and "authorization" in request.headers):
            await self._api(scope, receive, send)
            return
        if request.method not in _SAFE:
            _same_origin(request, host)
        if path == LOGIN:
            await (await self._login(request))(scope, receive, send)
        elif _is_api(path):
            visitor = await self._visitor(request)
            if path == LOGOUT:
                await (await self._logout(request, visitor))(scope, receive, send)
            else:
                await self._through({**scope, VISITOR: visitor}, receive, send, visitor)
        else:
            await self._file(request)(scope, receive, send)

    async def _visitor(self, request: Request) -> Visitor:
        """Who is signed in; a change shows the session's token too."""
        if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
            raise _Refused(403, "denied", "another site may not read the console")
        secret = request.cookies.get(self._cookie)
        visitor = await self._signins.find(secret) if secret else None
        if visitor is None:
            raise _Refused(401, "denied", "nobody is signed in", "run bedstone open for a link")
        shown = request.headers.get(CSRF, "")
        if request.method not in _SAFE and not hmac.compare_digest(
            shown.encode(), visitor.csrf.encode()
        ):
            raise _Refused(
                403, "denied", f"the header {CSRF} is missing or wrong", "load the page again"
            )
        return visitor

    async def _login(self, request: Request) -> Response:
        if request.method != "POST":
            raise _Refused(405, "invalid", f"got {request.method}, expected POST")
        if wait := self._attempts.wait():
            message = "too many attempts to sign in have failed"
            raise _Refused(429, "unavailable", message, "wait, then use a new link", wait)
        try:
            login = ConsoleLogin.model_validate_json(await _body(request))
        except ValidationError as error:
            self._attempts.failed()
            raise _Refused(422, "invalid", "the body is not a code to sign in with") from error
        grant = self._links.redeem(login.code)
        if grant is None:
            self._attempts.failed()
            raise _Refused(
                403,
                "denied",
                "this link was used already, or is older than two minutes",
                "run bedstone open for a new one",
            )
        secret, visitor = await self._signins.begin(grant, request.headers.get("user-agent", ""))
        response = JSONResponse(self._about(visitor).model_dump())
        response.set_cookie(
            self._cookie,
            secret,
            max_age=int(LIFETIME),
            path="/",
            httponly=True,
            samesite="strict",
        )
        return response

    async def _logout(self, request: Request, visitor: Visitor) -> Response:
        if request.method != "POST":
            raise _Refused(405, "invalid", f"got {request.method}, expected POST")
        await self._signins.end(visitor.id, visitor.who)
        response = JSONResponse({"deleted": visitor.id})
        response.delete_cookie(self._cookie, path="/", httponly=True, samesite="strict")
        return response

    async def _through(self, scope: Scope, receive: Receive, send: Send, visitor: Visitor) -> None:
        """Let the API answer; a stream ends with its session, as if its reader had gone."""
        more = False

        async def receiving() -> Message:
            return await self._signins.while_alive(visitor, receive()) or _GONE

        async def sending(message: Message) -> None:
            nonlocal more
            more = bool(message.get("more_body", message["type"] == "http.response.start"))
            await send(message)

        # A server that stops cancels its streams: their readers see an end, and the log no failure.
        with contextlib.suppress(asyncio.CancelledError):
            await self._api(scope, receiving, sending)
        if more:
            await send({"type": "http.response.body", "body": b""})

    def _file(self, request: Request) -> Response:
        if request.method not in _SAFE:
            raise _Refused(405, "invalid", f"got {request.method}, expected GET")
        path = request.scope["path"]
        files = self._files
        if path == "/login" or path.startswith("/login/"):
            files, path = self._login_files, path.removeprefix("/login")
        found = files.find(path)
        if found is not None:
            return answer(found, request.method, request.headers)
        if files.find("/") is None:
            message = "the console's pages are missing from this installation"
            raise _Refused(503, "unavailable", message, "reinstall bedstone; the API works")
        raise _Refused(404, "not_found", f"there is no {path[:200]}", "the console begins at /")


def _is_api(path: str) -> bool:
    return path == _METRICS or path.startswith(_API)


def _name(host: str) -> str:
    """A `Host` header without its port: a tunnel may end at another."""
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdigit() else host.lower()


def _same_origin(request: Request, host: str) -> None:
    origin = request.headers.get("origin", "")
    site = request.headers.get("sec-fetch-site", "same-origin")
    if origin.lower() != f"http://{host.lower()}" or site != "same-origin":
        raise _Refused(403, "denied", "a change must come from a page of the console itself")


async def _body(request: Request) -> bytes:
    """The body of an attempt to sign in, which nobody has vouched for: a short one."""
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > _LARGEST_LOGIN:
            raise _Refused(413, "invalid", "the body is too large to be a code")
    return content
