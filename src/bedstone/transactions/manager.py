"""The transactions of one process: its log, its coordinator, its participants.

Owns `Transactions`, and the process's own, which `transaction()` and `current()` use.

Rules:
- Log and coordinator live in one event loop, the manager's home: the loop of whoever enters or
  first uses it, or, for blocking code that comes first, one in a thread. When that loop ends, the
  next use makes a new home, under a new owner's name: two lives never share a lease.
- Everybody else, from other loops and threads, sends work there and waits.
- The home's tasks inherit nothing from the request that happened to start them.
- Making a manager does nothing: no file, no connection, no task.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import os
import secrets
import socket
import threading
from collections import ChainMap
from collections.abc import Callable, Coroutine, Iterable, MutableMapping
from concurrent.futures import Future
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from bedstone.errors import InvalidError
from bedstone.telemetry import context as telemetry
from bedstone.transactions.model import Log, Participant
from bedstone.transactions.portal import Portal, run_in
from bedstone.transactions.router import Function, Router, check_name, resource_of
from bedstone.transactions.scope import DEFAULT_TIMEOUT, Scope, innermost

if TYPE_CHECKING:
    from bedstone.transactions.coordinator import Coordinator
    from bedstone.transactions.databases import Database
    from bedstone.transactions.housekeeping import Housekeeper

T = TypeVar("T")
LEASE = 10.0
GRACE = 3600.0
RETENTION = 7 * 86400.0
VARIABLES = ("BEDSTONE_TRANSACTIONS_URL", "TRANSACTIONS_URL")


@dataclass(eq=False)
class _Home:
    """One life of a manager, in one event loop."""

    loop: asyncio.AbstractEventLoop
    portal: Portal | None = None
    ready: Future[tuple[Coordinator, Log, Router]] = field(default_factory=Future)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    ended: Future[None] = field(default_factory=Future)
    task: asyncio.Task[None] | None = None
    process: int = field(default_factory=os.getpid)

    @property
    def usable(self) -> bool:
        """Whether work may still be sent to it."""
        return not (
            self.loop.is_closed()
            or self.stop.is_set()
            or self.ended.done()
            or self.process != os.getpid()
        )

    @property
    def leaving(self) -> bool:
        """Whether it is being stopped in the running loop: what it works on may still ask it."""
        return (
            self.stop.is_set()
            and self.ready.done()
            and not self.ended.done()
            and self.loop is asyncio.get_running_loop()
        )


class Transactions:
    """The distributed transactions of this process. `async with` or `with`, or just used.

    Example:
        >>> async def main() -> None:
        ...     async with Transactions("sqlite:///transactions.db") as transactions:
        ...         async with transactions.transaction("transfer"):
        ...             ...

    Args:
        log: the log, or its URL; by default what $BEDSTONE_TRANSACTIONS_URL or $TRANSACTIONS_URL
            says. A log given as an object is opened and closed by who gave it.
        owner: this process's name in the log; by default a new one each time it starts.
        address: where other services reach this one's participants, such as `http://accounts`; by
            default $BEDSTONE_TRANSACTIONS_ADDRESS, `http://NAME` in a Bedstone workload, and else
            nowhere.
        lease: seconds after which others take over from a process that has died.
        post: how to reach participants elsewhere; over HTTP by default.
        grace: seconds that barrier rows stay after their transaction's end; longer than any
            message is late.
        retention: seconds that an ended transaction stays in the log.
    """

    def __init__(
        self,
        log: Log | str | None = None,
        *,
        owner: str | None = None,
        address: str | None = None,
        lease: float = LEASE,
        post: Participant | None = None,
        grace: float = GRACE,
        retention: float = RETENTION,
    ) -> None:
        self._source = log
        self._owner = owner
        self._address = address or _own_address()
        self._lease = lease
        self._post = post
        self._grace = grace
        self._retention = retention
        self._participants = ChainMap[str, Function]({}, _common)
        self._databases: ChainMap[str, tuple[Database, ...]] = ChainMap({}, _common_databases)
        self._home: _Home | None = None
        self._guard = threading.Lock()

    @property
    def log(self) -> Log:
        """The log, while started; to be used in the loop that the manager was started in."""
        return self._parts()[1]

    @property
    def coordinator(self) -> Coordinator:
        """The coordinator, while started; to be used like `log`."""
        return self._parts()[0]

    @property
    def configured(self) -> bool:
        """Whether a log is given, by the maker or by the environment."""
        return self._source is not None or any(map(os.environ.get, VARIABLES))

    @property
    def participants(self) -> dict[str, Function]:
        """Those of this process, by name."""
        return dict(self._participants)

    def participant(self, name: str, function: Function, *databases: Database) -> None:
        """Let `function` do phase two for the resource `name`; a blocking one runs in a thread.

        Args:
            name: what it is called in the log.
            function: does it.
            databases: where it has a barrier, to be swept.

        Raises:
            InvalidError: the name is none, or another function's.
        """
        _add(self._participants, name, function)
        self._databases[name] = databases

    def resource(self, name: str) -> str:
        """What to write into a branch so that its phase two reaches the participant `name`."""
        return resource_of(self._address, check_name(name))

    def transaction(self, name: str = "", *, timeout: float = DEFAULT_TIMEOUT) -> Scope:
        """A new transaction, or the running code's; see `Scope`."""
        return Scope(self, name, timeout=timeout)

    async def start(self) -> None:
        """Start in this loop, unless it runs already. `async with` does."""
        await self._running()

    async def stop(self) -> None:
        """Stop, and give up the lease, so that others go on at once."""
        home = self._home
        if home is None or not home.usable:
            return
        home.loop.call_soon_threadsafe(home.stop.set)
        await asyncio.wrap_future(home.ended)
        if home.portal is not None:
            await asyncio.to_thread(home.portal.stop)

    async def ask(self, question: Callable[[Coordinator, Log], Coroutine[Any, Any, T]]) -> T:
        """Run `question(coordinator, log)` in the manager's own loop."""
        home = self._home
        if home is None or not home.leaving:
            home = await self._running()
        coordinator, log, _ = home.ready.result()
        if home.loop is asyncio.get_running_loop():
            return await question(coordinator, log)
        sent = asyncio.run_coroutine_threadsafe(question(coordinator, log), home.loop)
        return await asyncio.wrap_future(sent)

    def ask_sync(self, question: Callable[[Coordinator, Log], Coroutine[Any, Any, T]]) -> T:
        """Likewise, from a thread without a loop, which waits."""

        async def asked() -> T:
            coordinator, log, _ = home.ready.result()
            return await question(coordinator, log)

        home = self._started()
        return run_in(home.loop, asked())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the manager's loop from a thread, which waits for its result.

        Raises:
            InvalidError: this thread has a running loop; await the coroutine instead.
        """
        try:
            home = self._started()
        except BaseException:
            coroutine.close()
            raise
        return run_in(home.loop, coroutine)

    async def router(self) -> Router:
        """What calls participants; used by the HTTP endpoint, in the manager's loop."""
        return (await self._running()).ready.result()[2]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    def __enter__(self) -> Self:
        self._started()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """`stop` for blocking code."""
        home = self._home
        if home is None or not home.usable:
            return
        home.loop.call_soon_threadsafe(home.stop.set)
        if home.portal is not None:
            home.ended.result()
            home.portal.stop()

    def _parts(self) -> tuple[Coordinator, Log, Router]:
        home = self._home
        if home is None or not home.usable or not home.ready.done():
            raise InvalidError(
                "the transactions are not started", hint="use `async with Transactions(…)`"
            )
        return home.ready.result()

    async def _running(self) -> _Home:
        home = self._home
        if home is not None and home.ready.done() and home.usable:
            home.ready.result()
            return home
        with self._guard:
            home = self._home
            if home is None or not home.usable:
                home = self._home = _Home(asyncio.get_running_loop())
                # Kept in the home; an empty context, so that no request's deadline stays with it.
                home.task = home.loop.create_task(
                    self._live(home), name="transactions", context=contextvars.Context()
                )
        await asyncio.shield(asyncio.wrap_future(home.ready))
        return home

    def _started(self) -> _Home:
        with self._guard:
            home = self._home
            if home is None or not home.usable:
                _refuse_in_loop()
                portal = Portal()
                home = self._home = _Home(portal.loop, portal)
                asyncio.run_coroutine_threadsafe(self._housed(home), portal.loop)
        try:
            home.ready.result()
        except BaseException:
            if home.portal is not None:
                home.portal.stop()
            raise
        return home

    async def _housed(self, home: _Home) -> None:
        home.task = home.loop.create_task(
            self._live(home), name="transactions", context=contextvars.Context()
        )

    async def _live(self, home: _Home) -> None:
        """The manager's life in its home: until stopped, or until the loop cancels its tasks."""
        try:
            async with AsyncExitStack() as stack:
                log = await self._open(stack)
                router = Router(self._participants, self._address, self._post)
                await stack.enter_async_context(router)
                coordinator = await stack.enter_async_context(
                    _coordinator(log, router, self._owner or _new_owner(), self._lease)
                )
                keeper = self._housekeeper(log)
                keeping = home.loop.create_task(keeper.run(), name="transactions housekeeping")
                stack.push_async_callback(_ended, keeping)
                home.ready.set_result((coordinator, log, router))
                await home.stop.wait()
        except BaseException as error:
            if not home.ready.done():
                home.ready.set_exception(error)
            elif not isinstance(error, asyncio.CancelledError):
                raise
        finally:
            if not home.ended.done():  # a loop that fails at its end cancels who waits for it
                home.ended.set_result(None)

    def _housekeeper(self, log: Log) -> Housekeeper:
        from bedstone.transactions.housekeeping import Housekeeper

        def databases() -> Iterable[Database]:
            return {id(it): it for some in self._databases.values() for it in some}.values()

        return Housekeeper(log, databases, grace=self._grace, retention=self._retention)

    async def _open(self, stack: AsyncExitStack) -> Log:
        source = self._source
        if source is None:
            source = next(filter(None, map(os.environ.get, VARIABLES)), None)
        if source is None:
            raise InvalidError(
                f"no transaction log: none of {' and '.join(VARIABLES)} is set",
                hint="give `Transactions(log=…)` a URL such as sqlite:///transactions.db, or "
                "declare `transactions:` in the manifest",
            )
        if not isinstance(source, str):
            return source
        from bedstone.transactions.logs import open_log

        opened: Log = await stack.enter_async_context(open_log(source))
        return opened


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _coordinator(log: Log, call: Participant, owner: str, lease: float) -> Coordinator:
    from bedstone.transactions.coordinator import Coordinator

    return Coordinator(log, call, owner=owner, lease=lease)


def _own_address() -> str | None:
    workload = os.environ.get("BEDSTONE_WORKLOAD")
    given = os.environ.get("BEDSTONE_TRANSACTIONS_ADDRESS")
    return given or (f"http://{workload}" if workload else None)


def _new_owner() -> str:
    """A name that nobody had; before its `/` a workload's, whose instances take over (`heirs`)."""
    who = os.environ.get("BEDSTONE_INSTANCE") or socket.gethostname()
    rest = f"{who[:40].replace('/', '.')}-{os.getpid()}-{secrets.token_hex(4)}"
    workload = os.environ.get("BEDSTONE_WORKLOAD")
    if not workload:
        return rest
    cell = os.environ.get("BEDSTONE_CELL", "default")
    return f"{workload if cell == 'default' else f'{workload}.{cell}'}/{rest}"


def _refuse_in_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise InvalidError(
        "a blocking transaction inside a running event loop would stop the loop",
        hint="use `async with` and `await`, or call from a thread (`asyncio.to_thread`)",
    )


def _add(participants: MutableMapping[str, Function], name: str, function: Function) -> None:
    if participants.setdefault(check_name(name), function) != function:
        raise InvalidError(
            f"two participants are named {name!r}", hint="give one of them another name"
        )


_common: dict[str, Function] = {}
_common_databases: dict[str, tuple[Database, ...]] = {}
_process: Transactions | None = None
_process_guard = threading.Lock()


def process() -> Transactions:
    """The process's own manager, made at its first use from the environment."""
    global _process  # noqa: PLW0603  # the one per process is what this is
    with _process_guard:
        if _process is None:
            _process = Transactions()
        return _process


def use(transactions: Transactions) -> Transactions:
    """Make `transactions` the process's own, in the place of the one made from the environment."""
    global _process  # noqa: PLW0603
    with _process_guard:
        _process = transactions
    return transactions


def register(name: str, function: Function, *databases: Database) -> None:
    """Let `function` do phase two for the resource `name`, whatever manager is in use.

    What a module declares as it is imported is registered so: the manager may be made later.

    Raises:
        InvalidError: the name is none, or another function's.
    """
    _add(_common, name, function)
    _common_databases[name] = databases


def transaction(name: str = "", *, timeout: float = DEFAULT_TIMEOUT) -> Scope:
    """A transaction for the length of a block; inside another one, a part of it.

    Example:
        >>> async def transfer() -> None:
        ...     async with transaction("transfer", timeout=5.0):
        ...         await debit(account="a", amount=5)
        ...         await credit(account="b", amount=5)

    Blocking code writes `with transaction():`.

    Args:
        name: what it is for, for people.
        timeout: seconds for the whole, from here to the decision.

    Raises:
        TransactionAbortedError: at the block's end: nothing of it stays.
        TransactionTimeoutError: likewise, because of the time-out.
        DecisionUnknownError: the log did not answer; ask by `scope.xid`.
    """
    return process().transaction(name, timeout=timeout)


def current() -> Scope:
    """The transaction that the running code is part of: its block's, or its request's.

    Raises:
        InvalidError: it is part of none.
    """
    scope = innermost()
    if scope is not None:
        return scope
    xid = telemetry.current().transaction
    if xid is None:
        raise InvalidError(
            "this code is not inside a transaction",
            hint="put `async with transaction():` around it",
        )
    return Scope.of_request(process(), xid)


def _stop_at_exit() -> None:
    if _process is not None:
        _process.close()


# Before the thread pools end, which logs write with; `atexit` comes after that.
getattr(threading, "_register_atexit", atexit.register)(_stop_at_exit)
