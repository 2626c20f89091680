"""Phase two between services, over HTTP: the endpoint of participants, and its caller.

Owns `TransactionsMiddleware` (ASGI 3), `HttpCaller`, and the message between them.

`POST /.bedstone/transactions/NAME` with a JSON object `{xid, epoch, phase, branch: {number, mode,
payload}}` and, for the participant's use, `name`, `deadline`, `created`, `owner` and `state`:

| answer | means |
|---|---|
| 200 | `{"done": true}`: done; a 200 that does not say so is none of a participant's |
| 400, 413, 415 | not such a message |
| 403 | it came through the gateway, from outside; or the branch is another participant's |
| 404 | no participant or transaction of that name; the caller tries again, and shows it |
| 409 | `code: stuck` with `report`, or `code: aborted`, or the phase is not due by the log |
| 503 | later; with `code: waiting`, at `until` |

Rules:
- The log says what is done, and with which payload; the message only says what to look for. So who
  can reach the endpoint and not write the log can do no more than ask for what is due anyway.
- An answer that is not 200 is a failed attempt; only `stuck`, `waiting` and `aborted` mean more.
- Errors that are not Bedstone's are told by their kind alone; the log of the service has the rest.
- The participant runs outside of the deadline of the request that calls it: what is half done would
  be done again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from bedstone.errors import (
    HTTP_STATUS,
    INTERNAL,
    Error,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnknownOutcomeError,
    from_code,
)
from bedstone.telemetry.context import CALLER
from bedstone.transactions.errors import StuckError, TransactionAbortedError, WaitingError
from bedstone.transactions.model import Branch, Mode, Phase, State, Transaction
from bedstone.transactions.router import PATH, neutral, proved

if TYPE_CHECKING:
    from bedstone.transactions.manager import Transactions

AsgiScope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[AsgiScope, Receive, Send], Awaitable[None]]

TIMEOUT = 10.0
"""Seconds for one attempt of phase two."""
LARGEST = 16 * 1024 * 1024
"""Bytes of a message that are read."""
GATEWAY = re.compile(r"spiffe://[^/]+/[^/]+/gateway")
"""Who calls for somebody outside. The proxy of this instance writes the caller's name."""
DONE = '{"done":true}'
_STUCK, _WAITING, _ABORTED = "stuck", "waiting", "aborted"
logger = logging.getLogger(__name__)


def encode(transaction: Transaction, branch: Branch, phase: Phase) -> bytes:
    """The message that asks for one phase of one branch."""
    return json.dumps(
        {
            "xid": transaction.xid,
            "epoch": transaction.epoch,
            "phase": phase,
            "branch": {
                "number": branch.number,
                "mode": branch.mode,
                "payload": branch.payload.decode("utf-8", "surrogateescape"),
            },
            "name": transaction.name,
            "deadline": transaction.deadline,
            "created": transaction.created,
            "owner": transaction.owner,
            "state": transaction.state,
        }
    ).encode()


def decode(body: bytes, resource: str) -> tuple[Transaction, Branch, Phase]:
    """What a message asks for.

    Raises:
        InvalidError: it is none.
    """
    try:
        message = json.loads(body)
        inner = message["branch"]
        branch = Branch(
            _number(inner, "number"),
            Mode(inner["mode"]),
            resource,
            _text(inner, "payload").encode("utf-8", "surrogateescape"),
        )
        transaction = Transaction(
            _text(message, "xid"),
            str(message.get("name", "")),
            float(message.get("deadline", 0.0)),
            float(message.get("created", 0.0)),
            str(message.get("owner", "")),
            _number(message, "epoch"),
            State(message.get("state", State.ACTIVE)),
            (branch,),
        )
        return transaction, branch, Phase(message["phase"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidError(
            f"got no message of a transaction's second phase: {error!r}",
            hint="send {xid, epoch, phase, branch: {number, mode, payload}} as JSON",
        ) from error


class TransactionsMiddleware:
    """An ASGI application: `app`, with the endpoint of its participants and a started manager.

    An application that Bedstone serves by `run:` gets it by itself.

    Example:
        >>> app = TransactionsMiddleware(FastAPI(), Transactions("sqlite:///transactions.db"))

    Args:
        app: the application.
        transactions: the manager; by default the process's own.
    """

    def __init__(self, app: Application, transactions: Transactions | None = None) -> None:
        self._app = app
        self._given = transactions
        self._working: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        if not self._transactions.configured:
            await self._app(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] == "http" and scope["path"].startswith(PATH):
            await self._serve(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    @property
    def _transactions(self) -> Transactions:
        from bedstone.transactions.manager import process

        return process() if self._given is None else self._given

    async def _lifespan(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Run the manager around the application's life, also where it has no such protocol."""
        life, transactions = _Life(receive, send), self._transactions
        try:
            await transactions.start()
        except Exception as error:  # noqa: BLE001  # a server overlooks what is raised here
            await life.receive()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        try:
            try:
                await self._app(scope, life.receive, life.send)
            except Exception:
                if life.answered:
                    raise
                logger.debug("transactions.no_lifespan", exc_info=True)
            if not life.answered:
                await life.alone()
        finally:
            await transactions.stop()
            await life.end()

    async def _serve(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        name = scope["path"].removeprefix(PATH)
        try:
            _admit(scope)
            message = await _body(receive)
            try:
                transaction, branch, phase = decode(message, name)
            except InvalidError as error:
                raise _RefusedError(400, error.message) from error
            function = self._transactions.participants.get(name)
            if function is None:
                raise NotFoundError(
                    f"this service has no participant {name!r}",
                    hint="deploy the code that registers it, or repair the branch",
                )
            number, epoch, xid = branch.number, transaction.epoch, transaction.xid
            found = await self._transactions.ask(lambda _, log: log.get(xid))
            transaction, branch = proved(found, name, number, phase, epoch)
            router = await self._transactions.router()
            with neutral():
                work = asyncio.ensure_future(router.call(function, transaction, branch, phase))
            self._working.add(work)
            work.add_done_callback(self._worked)
            # Cut off by nobody: it would be done again, and again from its beginning.
            await asyncio.shield(work)
        except Exception as error:  # noqa: BLE001  # becomes an answer
            await _answer(send, *_problem(error, name))
        else:
            await _answer(send, 200, {"done": True})

    def _worked(self, work: asyncio.Task[None]) -> None:
        self._working.discard(work)
        if not work.cancelled() and (error := work.exception()) is not None:
            # It is looked at here, for the case that nobody waits any more; the next attempt tells.
            logger.debug("transactions.participant_failed error=%s", error)


class _Life:
    """The lifespan protocol between server and application, with the last word kept back."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._last: MutableMapping[str, Any] | None = None
        self._asked = False
        self.answered = False

    async def receive(self) -> MutableMapping[str, Any]:
        self._asked = True
        return await self._receive()

    async def send(self, message: MutableMapping[str, Any]) -> None:
        self.answered = True
        if message["type"].startswith("lifespan.shutdown."):
            self._last = message
        else:
            await self._send(message)

    async def alone(self) -> None:
        """Speak for an application that does not."""
        if not self._asked:
            await self.receive()
        await self.send({"type": "lifespan.startup.complete"})
        await self.receive()
        await self.send({"type": "lifespan.shutdown.complete"})

    async def end(self) -> None:
        """Say the last word, now that everything has stopped."""
        if self._last is not None:
            await self._send(self._last)


class HttpCaller:
    """Asks other services for phase two. A `Participant` for branches whose resource is a URL.

    Args:
        timeout: seconds for one attempt.
        client: an `httpx.AsyncClient`; by default one that goes through the environment's proxy.
    """

    def __init__(self, timeout: float = TIMEOUT, client: Any = None) -> None:
        self._timeout = timeout
        self._client = client

    async def __call__(self, transaction: Transaction, branch: Branch, phase: Phase) -> None:
        """Post once.

        Raises:
            StuckError: the participant says that only a person can go on.
            UnavailableError: it was not reached.
            UnknownOutcomeError: no answer came.
            Error: what it answered.
        """
        import httpx

        if self._client is None:
            self._client = httpx.AsyncClient(follow_redirects=False)
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._client.post(
                    branch.resource,
                    content=encode(transaction, branch, phase),
                    headers={"content-type": "application/json"},
                    timeout=self._timeout,
                )
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise UnavailableError(
                f"{branch.resource} can't be reached: {type(error).__name__}",
                hint="see whether the service runs; it is tried again",
            ) from error
        except (httpx.HTTPError, TimeoutError) as error:
            raise UnknownOutcomeError(
                f"no answer from {branch.resource} within {self._timeout:g} s: "
                f"{type(error).__name__}",
                hint="it is asked again; participants may be asked twice",
            ) from error
        except httpx.InvalidURL as error:
            raise InvalidError(f"got the resource {branch.resource!r}, expected a URL") from error
        check_answer(response.status_code, response.text, branch.resource)

    async def close(self) -> None:
        """Close connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None


def check_answer(status: int, text: str, resource: str) -> None:
    """Return if it says that the phase is done.

    Raises:
        Error: what else it says.
    """
    if status != 200:
        raise _refusal(status, text, resource)
    if text.replace(" ", "") != DONE:  # an application that answers 200 to anything
        raise UnavailableError(
            f"{resource} answered 200, but not as a participant does",
            hint="see whether the service there uses transactions, or another has its name",
        )


def _refusal(status: int, text: str, resource: str) -> Error:
    """The error that an answer other than 200 means."""
    try:
        problem = json.loads(text)
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {}
    said = problem.get("detail")
    detail = f"{resource} answered {status}" + (f": {str(said)[:500]}" if said else "")
    hint = problem.get("hint")
    match problem.get("code"), problem:
        case "stuck", {"report": dict(report)}:
            return StuckError(detail, report=report, hint=hint)
        case "waiting", {"until": int() | float() as until}:
            return WaitingError(detail, until=float(until))
        case "aborted", _:
            return TransactionAbortedError(detail, hint=hint)
        case str(code), _:
            return from_code(code, detail, hint=hint)
    return UnavailableError(detail)


def _problem(error: Exception, name: str) -> tuple[int, dict[str, Any]]:
    """Status and body of the answer that tells an error (RFC 9457)."""
    if not isinstance(error, Error):
        logger.error("transactions.participant_failed name=%s", name, exc_info=error)
        error = Error(f"the participant {name!r} raised {type(error).__name__}")
    code, status = error.code, HTTP_STATUS.get(error.code, HTTP_STATUS[INTERNAL])
    more: dict[str, Any] = {}
    match error:
        case StuckError():
            code, more = _STUCK, {"report": error.report}
        case WaitingError():
            code, more = _WAITING, {"until": error.until}
        case TransactionAbortedError():
            code = _ABORTED
        case _RefusedError():
            status = error.status
    return status, {
        "type": "about:blank",
        "status": status,
        "code": code,
        "detail": error.message,
        "hint": error.hint,
        **more,
    }


class _RefusedError(InvalidError):
    """A request that is none of ours."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def _admit(scope: AsgiScope) -> None:
    if scope["method"] != "POST":
        raise _RefusedError(405, f"got {scope['method']}, expected POST")
    if b"%" in scope.get("raw_path", b""):  # the proxies decide by the path as it is written
        raise _RefusedError(400, "got an encoded path, expected the participant's name as it is")
    for name, value in scope["headers"]:
        if name == CALLER.encode() and GATEWAY.fullmatch(value.decode("latin-1")):
            raise _RefusedError(403, "this address is not for requests from outside")


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _RefusedError(400, "the request was cut off")
        body += message.get("body", b"")
        if len(body) > LARGEST:
            raise _RefusedError(413, f"got more than {LARGEST} bytes")
        if not message.get("more_body"):
            return bytes(body)


async def _answer(send: Send, status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content, default=str).encode()
    kind = b"application/json" if status == 200 else b"application/problem+json"
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _number(inner: dict[str, Any], key: str) -> int:
    value = inner[key]
    if type(value) is not int or value < 1:
        raise ValueError(f"{key} is {value!r}, expected a number from 1")
    return value


def _text(inner: dict[str, Any], key: str) -> str:
    value = inner[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is a {type(value).__name__}, expected text")
    return value
