"""The context of a request: what travels from an incoming call to every call made for it.

Owns `RequestContext`, the variable that holds the current one, and its header codec.

Rules:
- The codec is pure: time and randomness are parameters at the edge.
- A malformed header never breaks a request. It is ignored; a malformed `traceparent` means that the
  trace restarts (W3C Trace Context §3.2.2.5). A header given twice is malformed.
- A deadline only shrinks on its way down.
- `caller` is never sent: each inbound proxy sets it from the certificate of its peer.

Invariants: everything that `inject` writes, `extract` reads back, the deadline to a millisecond.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace

from bedstone.errors import InvalidError

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
TIMEOUT_IN = "x-envoy-expected-rq-timeout-ms"
TIMEOUT_OUT = "x-envoy-upstream-rq-timeout-ms"
TRANSACTION = "x-bedstone-transaction"
SHARD_KEY = "x-bedstone-shard-key"
CALLER = "x-bedstone-caller"
OUTCOME = "x-bedstone-outcome"
SENDER = "x-bedstone-instance"
"""Whose telemetry it is: set by the proxy, on the way to the node's collector only."""

READ = frozenset((TRACEPARENT, TRACESTATE, TIMEOUT_IN, TIMEOUT_OUT, TRANSACTION, SHARD_KEY, CALLER))
"""The headers that `extract` looks at."""
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_TOKEN = re.compile(r"[!-~]{1,256}")
_MILLISECONDS = re.compile(r"[0-9]{1,12}")
_CALLER = re.compile(r"spiffe://[!-~]{1,2039}")  # SPIFFE-ID §2.3: 2048 bytes at most
_SAMPLED = 0x01


@dataclass(frozen=True, slots=True)
class Trace:
    """A position in a trace (W3C Trace Context level 1).

    Args:
        trace_id: 32 lower-case hexadecimal digits, not all zero.
        span_id: 16 of them: the parent of what is done next.
        sampled: whether the caller may have recorded it.
        state: `tracestate`, as it came.
    """

    trace_id: str
    span_id: str
    sampled: bool = True
    state: str = ""

    @property
    def traceparent(self) -> str:
        """The header that says this."""
        return f"00-{self.trace_id}-{self.span_id}-{_SAMPLED if self.sampled else 0:02x}"


def new_trace() -> Trace:
    """The start of a trace that nobody has begun."""
    return Trace(secrets.token_hex(16), secrets.token_hex(8))


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What is known about the request that is being served.

    Args:
        trace: where in which trace we are.
        deadline: when its result stops to matter, on the clock of `time.monotonic`.
        transaction: id of the distributed transaction that it is part of.
        shard_key: key of the user that it is for.
        caller: SPIFFE id of the workload that sent it.
    """

    trace: Trace | None = None
    deadline: float | None = None
    transaction: str | None = None
    shard_key: str | None = None
    caller: str | None = None

    @property
    def trace_id(self) -> str | None:
        """32 hexadecimal digits, if there is a trace."""
        return self.trace.trace_id if self.trace else None

    def remaining(self, now: float | None = None) -> float | None:
        """Seconds until the deadline, at least 0; None without one."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - (time.monotonic() if now is None else now))


_EMPTY = RequestContext()
_current: ContextVar[RequestContext] = ContextVar("bedstone.request", default=_EMPTY)


def current() -> RequestContext:
    """The context of the request being served; an empty one outside of any."""
    return _current.get()


def enter(context: RequestContext) -> Token[RequestContext]:
    """Make `context` the current one until `leave`; for those who serve requests."""
    return _current.set(context)


def leave(token: Token[RequestContext]) -> None:
    """Undo the `enter` that gave `token`."""
    _current.reset(token)


def mark(error: BaseException, trace: Trace | None) -> None:
    """Note where a failure happened, for whoever logs it when the context is gone."""
    with suppress(AttributeError):  # a class with slots takes no note
        error.__bedstone_trace__ = trace  # type: ignore[attr-defined]


def marked(error: BaseException | None) -> Trace | None:
    """Where a failure happened, if that was noted."""
    found = getattr(error, "__bedstone_trace__", None)
    return found if isinstance(found, Trace) else None


@contextmanager
def _changed(context: RequestContext) -> Iterator[RequestContext]:
    token = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(token)


@contextmanager
def deadline(seconds: float) -> Iterator[RequestContext]:
    """Calls made inside have at most `seconds` left; an earlier deadline stays.

    It bounds calls. To bound your own code as well, use `asyncio.timeout` inside.
    """
    if not seconds > 0:
        raise InvalidError(f"got a deadline of {seconds} s, expected more than 0")
    before = _current.get()
    until = time.monotonic() + seconds
    if before.deadline is not None:
        until = min(until, before.deadline)
    with _changed(replace(before, deadline=until)) as context:
        yield context


@contextmanager
def with_transaction(identifier: str) -> Iterator[RequestContext]:
    """Calls made inside are part of the distributed transaction `identifier`."""
    _check("transaction id", identifier)
    with _changed(replace(_current.get(), transaction=identifier)) as context:
        yield context


@contextmanager
def shard_key(key: str) -> Iterator[RequestContext]:
    """Calls made inside are for the user whose shard key is `key`."""
    _check("shard key", key)
    with _changed(replace(_current.get(), shard_key=key)) as context:
        yield context


def _check(what: str, value: str) -> None:
    if not _TOKEN.fullmatch(value):
        raise InvalidError(
            f"got the {what} {value[:64]!r}, expected 1 to 256 visible ASCII characters"
        )


def extract(
    headers: Mapping[str, str] | Iterable[tuple[str, str]], *, now: float | None = None
) -> RequestContext:
    """The context that a request's headers carry.

    Args:
        headers: names in any case, with their values.
        now: `time.monotonic()` when the request came.

    Headers that are malformed count as absent.
    """
    found: dict[str, str | None] = {}
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        lower = name.lower()
        if lower in READ:
            found[lower] = None if lower in found else value.strip(" \t")
    if not found:
        return _EMPTY
    # The proxy's word on what is left comes first; a caller with no proxy between says it itself.
    timeout = _milliseconds(found.get(TIMEOUT_IN)) or _milliseconds(found.get(TIMEOUT_OUT))
    return RequestContext(
        trace=_trace(found.get(TRACEPARENT), found.get(TRACESTATE)),
        deadline=None
        if timeout is None
        else (time.monotonic() if now is None else now) + timeout / 1000,
        transaction=_matching(_TOKEN, found.get(TRANSACTION)),
        shard_key=_matching(_TOKEN, found.get(SHARD_KEY)),
        caller=_matching(_CALLER, found.get(CALLER)),
    )


def inject(context: RequestContext, *, now: float | None = None) -> dict[str, str]:
    """The headers that carry `context` to the next service."""
    headers = carried(context, now=now)
    if context.trace:
        headers[TRACEPARENT] = context.trace.traceparent
        if context.trace.state:
            headers[TRACESTATE] = context.trace.state
    return headers


def carried(context: RequestContext, *, now: float | None = None) -> dict[str, str]:
    """`inject` without the trace, for where a tracing library writes that."""
    headers = {}
    remaining = context.remaining(now)
    if remaining is not None:
        # Envoy reads 0 as "no time-out", the opposite of what is meant.
        headers[TIMEOUT_OUT] = str(max(1, int(remaining * 1000)))
    if context.transaction:
        headers[TRANSACTION] = context.transaction
    if context.shard_key:
        headers[SHARD_KEY] = context.shard_key
    return headers


def _matching(pattern: re.Pattern[str], value: str | None) -> str | None:
    return value if value is not None and pattern.fullmatch(value) else None


def _milliseconds(value: str | None) -> int | None:
    """None when malformed, and for 0, which means "no time-out"."""
    return int(value) or None if value is not None and _MILLISECONDS.fullmatch(value) else None


def _trace(parent: str | None, state: str | None) -> Trace | None:
    match = _TRACEPARENT.fullmatch(parent or "")
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    # §3.2.2: version ff is forbidden, version 00 has nothing after the flags, ids are not zero.
    if (
        version == "ff"
        or (version == "00" and more)
        or not (int(trace_id, 16) and int(span_id, 16))
    ):
        return None
    usable = state is not None and len(state) <= 512 and state.isascii() and state.isprintable()
    return Trace(
        trace_id, span_id, bool(int(flags, 16) & _SAMPLED), state if usable and state else ""
    )
