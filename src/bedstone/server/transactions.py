"""The apps' distributed transactions: their logs, and the coordinator of last resort.

Every app that declares `transactions:` has a log in one of its databases. The server opens it as
the database's user `operator`, shows it, and takes part as one more coordinator: what no process of
the app goes on with, it does, calling participants through the mesh as the identity `operator`.

Rules:
- A log is opened when it can be, again and again; until then a question gets `UnavailableError`.
- A repair marks a branch as brought to the decided end by a person. It runs nothing.
- Where a second person is demanded, a repair takes effect when two different callers have asked for
  it since the branch became stuck.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from bedstone.control.loop import ControlLoop
from bedstone.control.scheduling import OPERATOR
from bedstone.errors import ConflictError, Error, InvalidError, NotFoundError, UnavailableError
from bedstone.model.api import (
    CallRequest,
    RepairRequest,
    RepairResult,
    RetryRequest,
    TransactionDetail,
    TransactionList,
)
from bedstone.model.messages import Command
from bedstone.model.resources import App, Database
from bedstone.model.spec import TransactionsSpec
from bedstone.server.queries import Queries
from bedstone.server.sessions import Sessions, new_command_id
from bedstone.server.transaction_views import detail, proposer, summary
from bedstone.transactions.coordinator import Coordinator
from bedstone.transactions.logs import open_log
from bedstone.transactions.machine import EVERYWHERE
from bedstone.transactions.model import (
    Branch,
    BranchState,
    Event,
    Log,
    Participant,
    Phase,
    State,
    Transaction,
)
from bedstone.transactions.repairs import repair, retry
from bedstone.transactions.router import check_resource
from bedstone.transactions.web import check_answer, encode

_log = logging.getLogger(__name__)
_FIRST_PAUSE = 0.5
_LAST_PAUSE = 15.0
_CALL_TIMEOUT = 30.0
_NOT_PLACED = "its database is not placed yet"
_HOPELESS = 10
"""Failed attempts after which a person may say that a branch has ended: its participant may be gone
for good."""

Locate = Callable[[Database], Awaitable[str]]
Open = Callable[[str], AbstractAsyncContextManager[Log]]


@dataclass
class _Hosted:
    """One app's log, while it is declared."""

    database: Database
    task: asyncio.Task[None]
    log: Log | None = None
    reason: str = field(default="its log is being opened")


class Transactions:
    """All apps' transactions.

    Args:
        loop: what is declared.
        locate: the URL of a database, for the user `operator`.
        participant: calls one of an app's participants, through the mesh.
        open_log: opens a log by URL.
    """

    def __init__(
        self,
        loop: ControlLoop,
        locate: Locate,
        participant: Callable[[str], Participant],
        *,
        open_log: Open = open_log,
    ) -> None:
        self._loop = loop
        self._locate = locate
        self._participant = participant
        self._open = open_log
        self._hosted: dict[str, _Hosted] = {}

    async def run(self) -> None:
        """Keep the log of every app that has one open, until cancelled."""
        async with asyncio.TaskGroup() as group:
            version = -1
            while True:
                version = await self._loop.changed(version)
                self._reconcile(group)

    def _reconcile(self, group: asyncio.TaskGroup) -> None:
        wanted = {}
        for name, app in self._loop.snapshot.apps().items():
            for database in self._loop.snapshot.of(Database, name):
                spec = app.spec.transactions
                if spec and not app.deleting and database.name == spec.database:
                    wanted[name] = database
        for name, hosted in list(self._hosted.items()):
            if wanted.get(name) != hosted.database:
                hosted.task.cancel()
                del self._hosted[name]
        for name, database in wanted.items():
            if name not in self._hosted:
                task = group.create_task(self._host(name, database))
                self._hosted[name] = _Hosted(database, task)

    async def _host(self, app: str, database: Database) -> None:
        """Be a coordinator of one log; come back to it when it goes away."""
        pause = _FIRST_PAUSE
        while True:
            hosted = self._hosted[app]
            try:
                async with self._open(await self._locate(database)) as log:
                    owner = f"{EVERYWHERE}/server-{secrets.token_hex(4)}"
                    async with Coordinator(log, self._participant(app), owner=owner):
                        hosted.log, pause = log, _FIRST_PAUSE
                        await asyncio.Event().wait()
            except Error as error:
                hosted.reason = error.message
                _log.info("transaction log", extra={"app": app, "reason": error.message})
            except Exception:  # noqa: BLE001 - a bug here must not end the others' control plane
                hosted.reason = "an error of ours; see bedstone logs engine:server"
                _log.exception("transaction log", extra={"app": app})
            finally:
                hosted.log = None
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LAST_PAUSE)

    def logs(self) -> Mapping[str, Log | str]:
        """Of each app that declares transactions, its log, or why that is not open."""
        declared = self._loop.snapshot.apps().items()
        found: dict[str, Log | str] = {}
        for name, app in declared:
            if app.spec.transactions and not app.deleting:
                hosted = self._hosted.get(name)
                found[name] = (hosted.log or hosted.reason) if hosted else _NOT_PLACED
        return found

    async def list(
        self, app: str, state: str, after: str, limit: int, *, stuck: bool
    ) -> TransactionList:
        """Some of an app's transactions, by id."""
        if state and state not in set(State):
            raise InvalidError(f"got state {state!r}, expected one of {', '.join(State)}")
        states = (State(state),) if state else ()
        found = await self._log(app).list(states, stuck=stuck, after=after, limit=limit + 1)
        items = tuple(summary(transaction) for transaction in found[:limit])
        more = items[-1].xid if len(found) > limit else None
        return TransactionList(app=app, items=items, next=more)

    async def show(self, app: str, xid: str) -> TransactionDetail:
        """One transaction, whole."""
        log = self._log(app)
        return detail(app, await log.get(xid), await log.events(xid))

    async def retry(self, app: str, xid: str, request: RetryRequest, who: str) -> TransactionDetail:
        """Have its owner try again at once."""
        await retry(self._log(app), xid, who, request.why)
        return await self.show(app, xid)

    async def repair(self, app: str, xid: str, request: RepairRequest, who: str) -> RepairResult:
        """Record a branch as repaired, or that somebody proposes it.

        Raises:
            ConflictError: the branch is not stuck, nor has it failed often.
        """
        log = self._log(app)
        transaction = await log.get(xid)
        _stuck(transaction, request.branch)
        committing = transaction.state is State.COMMITTING
        reached = BranchState.CONFIRMED if committing else BranchState.CANCELLED
        checked = None
        if self._spec(app).second_person:
            checked = proposer(await log.events(xid), request.branch, who)
            if checked is None:
                told: dict[str, object] = {"by": who, "why": request.why}
                await log.amend(xid, Event(0.0, "proposed", request.branch, told))
                return RepairResult(outcome="proposed", detail=await self.show(app, xid))
        await repair(log, xid, request.branch, reached, by=who, why=request.why, second=checked)
        return RepairResult(outcome="repaired", detail=await self.show(app, xid))

    def _spec(self, app: str) -> TransactionsSpec:
        declared = self._loop.snapshot.get(App, f"apps/{app}")
        if declared is None:
            raise NotFoundError(f"there is no app {app}", hint="see bedstone ps")
        if declared.spec.transactions is None:
            raise NotFoundError(
                f"app {app} declares no transactions",
                hint="write transactions: {database: NAME} into its manifest",
            )
        return declared.spec.transactions

    def _log(self, app: str) -> Log:
        self._spec(app)
        hosted = self._hosted.get(app)
        if hosted is None or hosted.log is None:
            reason = hosted.reason if hosted else _NOT_PLACED
            raise UnavailableError(f"transactions of app {app}: {reason}", retry_after=1.0)
        return hosted.log


def located(sessions: Sessions) -> Locate:
    """Asks a database's node for its URL."""

    async def locate(database: Database) -> str:
        if database.node is None:
            raise UnavailableError(f"database {database.path} is on no node yet", retry_after=1.0)
        command = Command(
            id=new_command_id(), action="database", subject=database.path, identity=OPERATOR
        )
        return (await sessions.call(database.node, command)).body

    return locate


def through_mesh(queries: Queries) -> Callable[[str], Participant]:
    """Calls an app's participants as the identity `operator`."""

    def of_app(app: str) -> Participant:
        async def call(transaction: Transaction, branch: Branch, phase: Phase) -> None:
            url = urlsplit(branch.resource)
            if url.scheme != "http" or not url.hostname:
                raise UnavailableError(
                    f"{branch.resource} is reached only by a process with the application's code",
                    hint="start the workload that registered it",
                )
            check_resource(
                branch.resource
            )  # the operator may call everything; the log's writers not
            body = encode(transaction, branch, phase)
            result = await queries.call(
                app,
                url.hostname,
                CallRequest(
                    path=url.path,
                    method="POST",
                    headers=(("content-type", "application/json"),),
                    body=base64.b64encode(body).decode(),
                    timeout=_CALL_TIMEOUT,
                ),
            )
            text = base64.b64decode(result.body).decode("utf-8", "replace")
            check_answer(result.status, text, branch.resource)

        return call

    return of_app


def _stuck(transaction: Transaction, number: int) -> Branch:
    branch = next((b for b in transaction.branches if b.number == number), None)
    if branch is None:
        known = ", ".join(str(b.number) for b in transaction.branches) or "none"
        raise NotFoundError(f"transaction {transaction.xid} has no branch {number}, it has {known}")
    if branch.state is not BranchState.REGISTERED:
        raise ConflictError(
            f"branch {number} of transaction {transaction.xid} is already {branch.state}"
        )
    if branch.stuck is None and branch.attempts < _HOPELESS:
        raise ConflictError(
            f"branch {number} of transaction {transaction.xid} is not stuck, and has failed "
            f"{branch.attempts} times",
            hint=f"one that waits for a person, or has failed {_HOPELESS} times, can be repaired",
        )
    return branch
