"""From a branch's resource to who does its phase two: a function here, or another service.

Owns `Router`, the one `Participant` that a process's coordinator calls.

Rules:
- What is registered here under the resource's name is called here, also when the resource is this
  service's own URL; every other URL of a participant is posted to, and no other URL.
- Phase two runs outside of any transaction and deadline: it must end whatever the request that
  decided it does. Its trace goes on.
- Blocking functions run in threads of the router's own, so that callers that fill the loop's
  default threads, and wait for phase two in them, never wait for themselves.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import os
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from bedstone.errors import DeniedError, InvalidError, NotFoundError
from bedstone.telemetry import context as telemetry
from bedstone.transactions.errors import FencedError, TransactionDecidedError
from bedstone.transactions.model import Branch, Mode, Participant, Phase, State, Transaction

Function = Callable[[Transaction, Branch, Phase], Awaitable[None] | None]
"""What does phase two, asynchronous or blocking."""

LOCAL = "local:"
PATH = "/.bedstone/transactions/"
THREADS = 16
_NAME = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
_DOTS = {".", ".."}
_WHEN = {
    Phase.TRY: State.ACTIVE,
    Phase.CONFIRM: State.COMMITTING,
    Phase.CANCEL: State.ABORTING,
}


def check_name(name: str) -> str:
    """A participant's name, which is part of a URL.

    Raises:
        InvalidError: it is none.
    """
    if not _is_name(name):
        raise InvalidError(
            f"got the participant name {name[:80]!r}, expected up to 200 of A-Z a-z 0-9 . _ - /"
        )
    return name


def check_resource(resource: str) -> None:
    """Refuse a URL that is no participant's: whoever may write the log names it, and we call it.

    Raises:
        DeniedError: it leads elsewhere; what it names would be asked with our rights.
    """
    if not _is_resource(resource):
        raise DeniedError(
            f"got the resource {resource.rpartition('@')[2][:200]!r}, "
            f"expected http://SERVICE{PATH}NAME",
            hint="find out who registered the branch: nothing but participants is called",
        )


def proved(
    found: Transaction, name: str, number: int, phase: Phase, epoch: int
) -> tuple[Transaction, Branch]:
    """The transaction and branch of a message, as the log has them; who sent it may err, or lie.

    Args:
        found: the transaction, as the log has it.
        name: the participant that is asked.
        number: the branch that is named.
        phase: what is asked.
        epoch: the sender's.

    Raises:
        DeniedError: the branch is not that participant's.
        FencedError: another coordinator owns the transaction.
        TransactionDecidedError: the log does not say that this phase is due.
    """
    branch = next((it for it in found.branches if it.number == number), None)
    if branch is None or branch.resource.partition(PATH)[2] != name:
        raise DeniedError(f"transaction {found.xid} has no branch {number} of participant {name!r}")
    if epoch != found.epoch:
        raise FencedError(f"transaction {found.xid} is in epoch {found.epoch}, got {epoch}")
    tried_again = phase is not Phase.TRY or branch.mode is Mode.SAGA
    if found.state is not _WHEN[phase] or not tried_again:
        raise TransactionDecidedError(
            f"got {phase} for branch {number} of transaction {found.xid}, which is {found.state}"
        )
    return found, branch


def _is_resource(resource: str) -> bool:
    try:
        parts = urlsplit(resource)
    except ValueError:
        return False
    _, found, name = parts.path.partition(PATH)
    plain = not (parts.query or parts.fragment or parts.username or "%" in parts.path)
    return parts.scheme in {"http", "https"} and bool(found) and plain and _is_name(name)


def _is_name(name: str) -> bool:
    parts = name.split("/")
    return len(name) <= 200 and _NAME.fullmatch(name) is not None and _DOTS.isdisjoint(parts)


def resource_of(address: str | None, name: str) -> str:
    """The resource that names the participant `name` of the service at `address`."""
    return f"{LOCAL}{name}" if address is None else f"{address.rstrip('/')}{PATH}{name}"


@contextmanager
def neutral() -> Iterator[None]:
    """Outside of any transaction and deadline; the trace stays."""
    token = telemetry.enter(telemetry.RequestContext(trace=telemetry.current().trace))
    try:
        yield
    finally:
        telemetry.leave(token)


class Threads:
    """Runs blocking functions in a few threads of its own, in the caller's context.

    A process that was forked gets new ones: those of its parent are not there.
    """

    def __init__(self, size: int = THREADS, name: str = "bedstone-participant") -> None:
        self._make = functools.partial(ThreadPoolExecutor, size, thread_name_prefix=name)
        self._pool, self._process = self._make(), os.getpid()

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a blocking function; a cancelled caller leaves it running to its end."""
        if self._process != os.getpid():
            self._pool, self._process = self._make(), os.getpid()
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, context.run, function, *arguments)

    def stop(self) -> None:
        """Take no more work; what runs goes on to its end."""
        self._pool.shutdown(wait=False)


class Router:
    """Calls participants, wherever they are. An asynchronous context manager.

    Args:
        participants: functions by name; may grow at any time.
        address: this service's own URL, if it has one.
        post: calls a participant by its URL; by default over HTTP, by the environment's proxy.
    """

    def __init__(
        self,
        participants: Mapping[str, Function],
        address: str | None = None,
        post: Participant | None = None,
    ) -> None:
        self._participants = participants
        self._address = address
        self._post = post
        self._threads = Threads()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.stop()
        close = getattr(self._post, "close", None)
        if close is not None:
            await close()

    async def __call__(self, transaction: Transaction, branch: Branch, phase: Phase) -> None:
        """Do what `Participant` says.

        Raises:
            NotFoundError: nobody here or elsewhere has the resource.
            DeniedError: the resource is no participant's address.
        """
        with neutral():
            function = self._here(branch.resource)
            if function is not None:
                await self.call(function, transaction, branch, phase)
            elif branch.resource.startswith(("http://", "https://")):
                check_resource(branch.resource)
                await self._remote()(transaction, branch, phase)
            else:
                raise NotFoundError(
                    f"this process has no participant for {branch.resource!r}",
                    hint="run a process with the application's code, or set an address, so that "
                    "participants are reached over HTTP",
                )

    async def call(
        self, function: Function, transaction: Transaction, branch: Branch, phase: Phase
    ) -> None:
        """Call a function of this process, in a thread if it blocks."""
        if is_async(function):
            pending = function(transaction, branch, phase)
        else:
            pending = await self._threads.run(function, transaction, branch, phase)
        if inspect.isawaitable(pending):
            await pending

    def _here(self, resource: str) -> Function | None:
        prefixes = [LOCAL]
        if self._address is not None:
            prefixes.append(resource_of(self._address, ""))
        for prefix in prefixes:
            if resource.startswith(prefix):
                return self._participants.get(resource.removeprefix(prefix))
        return None

    def _remote(self) -> Participant:
        if self._post is None:
            from bedstone.transactions.web import HttpCaller

            self._post = HttpCaller()
        return self._post


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives an awaitable at once."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(type(function), "__call__", None)  # noqa: B004  # its kind, not whether there is one
    )
