"""Sagas: long transactions of steps that are undone by compensations, or go on until they succeed.

Owns what a developer uses: `Saga`, its parts, `saga`, `signal`.

Rules:
- A saga is one branch of a transaction of its own. Its TRY runs all its steps; COMMITTED means that
  all have succeeded, ABORTED that the compensations of all that may have run have succeeded.
- It survives its process: another one with the same code goes on where it was.
- It ends by the plan that it began with. Steps may be added to the code and moved while some run;
  to remove or rename one, or to give it a database, give the changed saga another name (`trip-2`)
  and keep the old one until its last has ended. What is missing needs a person; it is never left
  out.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from bedstone.errors import InvalidError, UnavailableError
from bedstone.transactions import manager, saga_plan
from bedstone.transactions.databases import Source
from bedstone.transactions.databases import database as as_database
from bedstone.transactions.errors import (
    StuckError,
    TransactionAbortedError,
    TransactionTimeoutError,
)
from bedstone.transactions.model import Branch, Event, Log, Mode, State, Transaction
from bedstone.transactions.saga_machine import Kind, leaves, replay
from bedstone.transactions.saga_plan import Context, Definition, Group, Part, Step, Timer
from bedstone.transactions.saga_run import payload
from bedstone.transactions.saga_service import Service

if TYPE_CHECKING:
    from bedstone.transactions.coordinator import Coordinator
    from bedstone.transactions.manager import Transactions

__all__ = ["Context", "Saga", "event", "parallel", "saga", "sequence", "signal", "step", "timer"]

_log = logging.getLogger(__name__)

PREFIX = "saga/"
DEFAULT_TIMEOUT = 60.0
FORWARD_TIMEOUT = 10 * 365 * 86_400.0
_FIRST_LOOK, _LAST_LOOK = 0.05, 1.0


def step(
    name: str,
    action: Callable[..., Any],
    undo: Callable[..., Any] | None = None,
    *,
    database: Source | None = None,
    fails_on: tuple[type[Exception], ...] = (),
    attempts: int = saga_plan.ATTEMPTS,
    timeout: float | None = None,
) -> Step:
    """One step of a saga.

    With a database, `action(db, context)` and `undo(db, context)` each run in a local transaction
    with a barrier: each takes effect once, in the right order, whatever is repeated or late.
    Without one, `action(context)` and `undo(context)` may be called again: pass `context.key` on as
    the idempotency key. Such an `undo` is called also where it is not known whether the action had
    its effect (`context.ended` is false then).

    Args:
        name: unique within the saga, for ever.
        action: does it; its result, as JSON, is `context.results[name]` of later steps.
        undo: its compensation; without one there is nothing to undo.
        database: where a local step's effects are.
        fails_on: errors that end the saga at once, and by which the action says that it did
            nothing. `TransactionAbortedError` is one of them. Others are tried again.
        attempts: how often it is tried before the saga gives up; a forward saga never does.
        timeout: seconds for one attempt. A blocking action is waited for nevertheless.

    Raises:
        InvalidError: the functions don't fit.
    """
    source = None if database is None else as_database(database)
    return saga_plan.check_step(
        Step(name, action, undo, source, tuple(fails_on), attempts, timeout)
    )


def sequence(*parts: Part) -> Group:
    """Parts, one after the other."""
    return Group(saga_plan.checked_parts(parts))


def parallel(*parts: Part) -> Group:
    """Parts, side by side; over when all are."""
    return Group(saga_plan.checked_parts(parts), parallel=True)


def timer(seconds: float | Callable[[Context], float], *, name: str = "timer") -> Timer:
    """A pause that outlives the process.

    Args:
        seconds: how long, or a function that says it from the context, asked once.
        name: unique within the saga.
    """
    if not callable(seconds):
        saga_plan.seconds_of(seconds)
    return Timer(name, seconds)


def event(name: str, *, timeout: float | None = None) -> saga_plan.Event:
    """A wait for `signal(xid, name, …)`; its payload is `context.results[name]`.

    Args:
        name: unique within the saga.
        timeout: seconds after which the saga fails; by default it waits until its deadline.
    """
    if timeout is not None:
        saga_plan.seconds_of(timeout)
    return saga_plan.Event(name, timeout)


class Saga(Definition):
    """A saga: what it does, and the calls to run it. Nested in another one, it is a part of it.

    Example:
        >>> trip = Saga(
        ...     "trip",
        ...     sequence(
        ...         parallel(
        ...             step("flight", book_flight, undo=cancel_flight, database=flights),
        ...             step("hotel", book_hotel, undo=cancel_hotel, database=hotels),
        ...         ),
        ...         event("paid", timeout=3600),
        ...         step("tickets", send_tickets),
        ...     ),
        ... )
        >>> saga(trip)
        >>> result = await trip.run({"traveller": "ada"}, timeout=7200)

    Args:
        name: its name in the log.
        body: a part, mostly a `sequence`.
        recovery: `backward`: what fails for good is undone, all of it, in reverse order. `forward`:
            every step is repeated until it succeeds.
        input: what it gets as a part of another saga, from that one's context.
        output: what it returns, from its context; by default its results by name.
        compensation_attempts: how often a compensation may fail before a person is asked; where
            somebody is only away (a connection, a time-out), it is tried for ever.
    """

    def __init__(
        self,
        name: str,
        body: Part,
        *,
        recovery: Literal["backward", "forward"] = "backward",
        input: Callable[[Context], Any] | None = None,  # noqa: A002 - the word it has everywhere
        output: Callable[[Context], Any] | None = None,
        compensation_attempts: int = saga_plan.UNDO_ATTEMPTS,
    ) -> None:
        if recovery not in {"backward", "forward"}:
            raise InvalidError(f"got recovery {recovery!r}, expected 'backward' or 'forward'")
        super().__init__(
            name,
            *saga_plan.checked_parts([body]),
            forward=recovery == "forward",
            input=input,
            output=output,
            undo_attempts=compensation_attempts,
        )
        self._own: Transactions | None = None
        self._service: Service | None = None

    def __repr__(self) -> str:
        return f"Saga({self.name!r})"

    def register(self, transactions: Transactions | None) -> None:
        """Let this process run it; see `saga`."""
        service = Service(self.compiled, lambda: transactions or manager.process(), random.random)
        if transactions is None:
            manager.register(PREFIX + self.name, service, *self.databases())
        else:
            transactions.participant(PREFIX + self.name, service, *self.databases())
        self._own, self._service = transactions, service

    async def run(self, input: Any = None, *, timeout: float | None = None) -> Any:  # noqa: A002
        """Run it here, and wait for its end; it goes on if the caller is cancelled.

        Args:
            input: for all steps, as JSON.
            timeout: seconds until it is aborted; by default 60, for a forward saga ten years.

        Returns:
            Its output.

        Raises:
            TransactionAbortedError: it failed, and is undone or being undone; the step's error is
                the cause, where the step failed in this process.
            InvalidError: it is not registered, or the input is not JSON.
        """
        service = self._registered()
        return await self._manager().ask(
            lambda coordinator, log: self._run(service, coordinator, log, input, timeout)
        )

    def run_sync(self, input: Any = None, *, timeout: float | None = None) -> Any:  # noqa: A002
        """`run` for blocking code."""
        service = self._registered()
        return self._manager().ask_sync(
            lambda coordinator, log: self._run(service, coordinator, log, input, timeout)
        )

    async def start(self, input: Any = None, *, timeout: float | None = None) -> str:  # noqa: A002
        """Begin it, durably, and return its transaction id at once."""
        service = self._registered()
        return await self._manager().ask(
            lambda coordinator, _: self._start(service, coordinator, input, timeout)
        )

    def start_sync(self, input: Any = None, *, timeout: float | None = None) -> str:  # noqa: A002
        """`start` for blocking code."""
        service = self._registered()
        return self._manager().ask_sync(
            lambda coordinator, _: self._start(service, coordinator, input, timeout)
        )

    async def result(self, xid: str) -> Any:
        """Wait for the end of one that was started anywhere; returns its output.

        Raises:
            TransactionAbortedError: it failed, and is undone.
            StuckError: it waits for a person.
            UnknownTransactionError: there is none of that id.
        """
        return await self._manager().ask(lambda _, log: self._result(log, xid))

    def result_sync(self, xid: str) -> Any:
        """`result` for blocking code."""
        return self._manager().ask_sync(lambda _, log: self._result(log, xid))

    def _manager(self) -> Transactions:
        return self._own or manager.process()

    def _registered(self) -> Service:
        if self._service is None:
            raise InvalidError(
                f"saga {self.name} is not registered", hint="call `saga(…)` with it as you start"
            )
        return self._service

    async def _start(
        self, service: Service, coordinator: Coordinator, given: Any, timeout: float | None
    ) -> str:
        transaction = await self._begin(coordinator, given, timeout)
        service.go(coordinator, transaction)
        service.forget(transaction.xid)
        return transaction.xid

    async def _run(
        self,
        service: Service,
        coordinator: Coordinator,
        log: Log,
        given: Any,
        timeout: float | None,
    ) -> Any:
        transaction = await self._begin(coordinator, given, timeout)
        xid = transaction.xid
        end = service.go(coordinator, transaction)
        try:
            while True:
                await asyncio.wait([end], timeout=_LAST_LOOK)
                try:
                    ended = end.done() or (await log.get(xid)).state.ended
                    if end.done():
                        return end.result()
                    if ended:
                        return await self._result(log, xid)
                except UnavailableError as error:
                    if end.done():  # the saga's own
                        raise
                    # Not for the caller, to whom it would say that nothing was done.
                    extra = {"xid": xid, "reason": error.message}
                    _log.info("the log does not say how a saga is", extra=extra)
        finally:
            service.forget(xid)

    async def _begin(
        self, coordinator: Coordinator, given: Any, timeout: float | None
    ) -> Transaction:
        if timeout is None:
            timeout = FORWARD_TIMEOUT if self.forward else DEFAULT_TIMEOUT
        if not timeout > 0:
            raise InvalidError(f"got a time-out of {timeout} s, expected more than 0")
        resource = self._manager().resource(PREFIX + self.name)
        branch = Branch(0, Mode.SAGA, resource, payload(self.compiled, given))
        return await coordinator.begin(self.name, timeout, (branch,))

    async def _result(self, log: Log, xid: str) -> Any:
        look = _FIRST_LOOK
        while True:
            transaction = await log.get(xid)
            branch = transaction.branches[0] if transaction.branches else None
            if branch is None or not branch.resource.endswith(PREFIX + self.name):
                raise InvalidError(
                    f"transaction {xid} is {transaction.name!r}, expected a run of {self.name!r}"
                )
            if branch.stuck is not None:
                raise StuckError(
                    f"saga {self.name} of transaction {xid} waits for a person: {branch.error}",
                    report=branch.stuck,
                )
            match transaction.state:
                case State.COMMITTED:
                    history = replay(await log.events(xid))
                    given = saga_plan.input_of(branch.payload)
                    return self.compiled.output(xid, given, history.ended)
                case State.ABORTED:
                    raise _aborted(transaction, await log.events(xid))
            await asyncio.sleep(look)
            look = min(2 * look, _LAST_LOOK)


def saga(definition: Saga, transactions: Transactions | None = None) -> Saga:
    """Let this process run a saga, and go on with those whose process has died.

    Every process that is to go on with it registers it as it starts.

    Args:
        definition: the saga; those nested in it need no registration.
        transactions: the manager; by default the process's own.

    Raises:
        InvalidError: another saga has that name.
    """
    definition.register(transactions)
    return definition


async def signal(
    xid: str, name: str, payload: Any = None, *, transactions: Transactions | None = None
) -> None:
    """Tell a saga that an event has come; durable when this returns. Of several the first counts.

    It may come before the saga waits for it, and while no process runs the saga.

    Args:
        xid: the saga's transaction id.
        name: the event's, behind those of nested sagas: `payment.paid`.
        payload: the event's result, as JSON.
        transactions: the manager; by default the process's own.

    Raises:
        InvalidError: the saga waits for no event of that name, now or later.
        UnknownTransactionError: there is no saga of that id.
        TransactionDecidedError: it has ended.
    """
    what = _signal(name, payload)
    await (transactions or manager.process()).ask(
        lambda coordinator, log: _told(coordinator, log, xid, what)
    )


def signal_sync(
    xid: str, name: str, payload: Any = None, *, transactions: Transactions | None = None
) -> None:
    """`signal` for blocking code."""
    what = _signal(name, payload)
    (transactions or manager.process()).ask_sync(
        lambda coordinator, log: _told(coordinator, log, xid, what)
    )


def _signal(name: str, payload: Any) -> Event:
    saga_plan.encode(f"the payload of event {name}", payload)
    return Event(0.0, "signal", 1, {"name": name, "payload": payload})


async def _told(coordinator: Coordinator, log: Log, xid: str, what: Event) -> None:
    transaction = await log.get(xid)
    known = [
        leaf.path
        for branch in transaction.branches
        if branch.mode is Mode.SAGA
        for leaf in leaves(saga_plan.plan_of(branch.payload))
        if leaf.kind is Kind.EVENT
    ]
    if what.detail["name"] not in known:
        raise InvalidError(
            f"got the event {what.detail['name']!r}, expected one of transaction {xid}: "
            f"{', '.join(known) or 'it has none'}"
        )
    await log.amend(xid, what)
    coordinator.wake()


def _aborted(transaction: Transaction, events: Any) -> TransactionAbortedError:
    history = replay(events)
    state = "aborted" if transaction.state.ended else "being aborted, and its steps undone"
    what = f"saga {transaction.name} of transaction {transaction.xid} is {state}"
    for path, error in history.failed.items():
        return TransactionAbortedError(f"{what}: {path} failed: {error}")
    decided = next((it for it in events if it.kind == "decided"), None)
    if decided is not None and decided.at >= transaction.deadline:
        return TransactionTimeoutError(f"{what}: its deadline passed")
    return TransactionAbortedError(what)
