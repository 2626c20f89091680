"""The databases placed on this node: one PostgreSQL each, kept running, one role per workload.

Those elsewhere, by URL, are only looked at (`externals`).

Ports and passwords are made here, kept in the node's private directory, and used again, so that an
adopted instance's URL stays right. Data is never deleted here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from bedstone.engines.postgres import PostgresEngine
from bedstone.errors import ConflictError, Error, NotFoundError, UnavailableError
from bedstone.model.database_url import Place, dialled_at
from bedstone.model.resources import Address, Database, DatabaseStatus, Phase, Plumbing
from bedstone.node.collector.postgres import Served
from bedstone.node.externals import External
from bedstone.node.reports import Reports
from bedstone.node.tasks import Tasks, insist
from bedstone.node.view import View
from bedstone.node.watch import Watch
from bedstone.processes.client import SupervisorClient
from bedstone.processes.spec import ProcessInfo
from bedstone.sandbox.ports import Ports, bindable
from bedstone.trust.svid import write_private

FIRST_BACKOFF = 0.1
LAST_BACKOFF = 10.0
EXPLAIN_PERIOD = 1.0
_log = logging.getLogger(__name__)


@dataclass
class Credentials:
    """What is kept of one database: its port, and the password of each role."""

    path: Path
    port: int
    passwords: dict[str, str]

    @classmethod
    def load(cls, path: Path) -> Credentials:
        """Read them; an empty record if there is none."""
        try:
            value = json.loads(path.read_text())
            return cls(path, int(value["port"]), dict(value["passwords"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls(path, 0, {})

    def save(self) -> None:
        """Write them, mode 0600; UnavailableError."""
        value = {"port": self.port, "passwords": self.passwords}
        try:
            write_private(self.path, json.dumps(value))
        except OSError as error:
            raise UnavailableError(f"cannot write {self.path}: {error.strerror}") from error

    def password(self, role: str) -> str:
        """A role's password, made on first use."""
        if role not in self.passwords:
            self.passwords[role] = secrets.token_urlsafe(24)
            self.save()
        return self.passwords[role]


def role_of(workload: str) -> str:
    """The role of a workload. An underscore is in no workload's name, so nothing collides."""
    return f"{workload}_workload" if workload == "postgres" else workload


def process_name(database: Database) -> str:
    """What the supervisor calls a database's process."""
    return "postgres-" + database.path.replace("/", "-")


def _starting(trouble: str) -> str:
    return "it is being started" + (f"; {trouble}" if trouble else "")


class _Server:
    """One PostgreSQL, kept running."""

    def __init__(self, database: Database, credentials: Credentials) -> None:
        self.database = database
        self.credentials = credentials
        self.ready = False
        self.reason = "it is being started"
        self.changed = asyncio.Event()
        self.wanted = True
        self.engine: PostgresEngine | None = None
        self.task: asyncio.Task[object] | None = None


class DatabaseManager:
    """All databases of this node."""

    def __init__(
        self,
        node: str,
        state_dir: Path,
        run_dir: Path,
        view: View,
        reports: Reports,
        watch: Watch,
        supervisor: SupervisorClient,
        ports: Ports,
        changed: Callable[[], None],
        failed: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._node = node
        self._state_dir = state_dir
        self._run_dir = run_dir
        self._view = view
        self._reports = reports
        self._watch = watch
        self._supervisor = supervisor
        self._ports = ports
        self._changed = changed
        self._clock = clock
        self._tasks = Tasks(failed)
        self._servers: dict[str, _Server] = {}
        self._externals: dict[str, External] = {}

    def reconcile(self) -> None:
        """Run exactly the databases that the view places here."""
        wanted = {
            database.path: database
            for database in self._view.databases()
            if database.node == self._node and database.url is None
        }
        for path, database in wanted.items():
            server = self._servers.get(path)
            if server is None:
                folder = self._state_dir / "node" / "databases"
                name = path.replace("/", ".")
                credentials = Credentials.load(folder / f"{name}.json")
                server = self._servers[path] = _Server(database, credentials)
                server.task = self._tasks.start(self._run(server))
            elif server.database != database:
                server.database = database
                server.changed.set()
        for path, server in list(self._servers.items()):
            if path not in wanted and server.wanted:
                server.wanted = server.ready = False
                server.reason = "it is being stopped"
                server.changed.set()
        self._reconcile_externals()

    def _reconcile_externals(self) -> None:
        elsewhere = {d.path: d for d in self._view.databases() if d.url is not None}
        for path, external in list(self._externals.items()):
            now = elsewhere.get(path)
            if now is None or (now.url, now.node) != (
                external.database.url,
                external.database.node,
            ):
                external.close()
                del self._externals[path]
        for path, database in elsewhere.items():
            # An engine that was here before ends first; both have one status.
            if path not in self._externals and path not in self._servers:
                self._externals[path] = External(
                    database, self._node, self._reports, self._changed, self._tasks
                )

    def expected(self) -> set[str]:
        """Names of the processes that belong to the databases of this node."""
        names = {process_name(server.database) for server in self._servers.values()}
        return names | {f"{name}-initialise" for name in names}

    async def settled(self, timeout: float) -> None:
        """Wait until those that ran already are ready again, but no longer than `timeout`."""
        deadline = self._clock() + timeout
        while self._clock() < deadline:
            running = {name for name, info in self._watch.latest.items() if info.running}
            if all(
                server.ready or process_name(server.database) not in running
                for server in self._servers.values()
            ):
                return
            await asyncio.sleep(0.01)

    def missing(self, app: str, cell: str, name: str) -> str:
        """See `runner.Databases`."""
        database = self._view.database(app, cell, name)
        if database is None:
            return f"database {name}"
        if database.url is not None:
            external = self._externals.get(database.path)
            reason = external.reason if external else "it is being connected to"
            return f"database {name}: {reason}" if reason else ""
        server = self._servers.get(database.path)
        if server is None:
            return f"database {name}, which is on node {database.node}"
        return "" if server.ready else f"database {name}: {server.reason}"

    def url(self, app: str, cell: str, name: str, role: str, through: Plumbing) -> str:
        """See `runner.Databases`."""
        database = self._view.database(app, cell, name)
        inside = through.databases.get(name)
        if database is not None and database.url is not None:
            if inside is None:
                return database.url
            return dialled_at(database.url, Place(inside.host, inside.port))
        server = self._servers.get(f"{app}/{cell}/{name}")
        if server is None:
            raise NotFoundError(f"database {name} is not on this node")
        address = inside or Address(host="127.0.0.1", port=server.credentials.port)
        return self._url(server, name, role, address.host, address.port)

    def _url(self, server: _Server, name: str, role: str, host: str, port: int) -> str:
        user = role_of(role)
        password = quote(server.credentials.password(user), safe="")
        return f"postgresql://{quote(user)}:{password}@{host}:{port}/{quote(name)}"

    def operator_url(self, path: str, user: str) -> str:
        """See `commands.Databases`.

        Raises:
            NotFoundError: no such database is on this node, or `user` is none of its users.
            UnavailableError: it is not ready.
        """
        database = next((d for d in self._view.databases() if d.path == path), None)
        if database is None or database.node != self._node or user not in database.users:
            raise NotFoundError(f"database {path} of {user} is not on node {self._node}")
        if database.url is not None:
            return database.url
        server = self._servers.get(path)
        if server is None or not server.ready:
            reason = server.reason if server else "it is being started"
            raise UnavailableError(f"database {path}: {reason}", retry_after=1.0)
        return self._url(server, database.name, user, "127.0.0.1", server.credentials.port)

    def served(self) -> dict[str, Served]:
        """The databases that are ready, for their statistics."""
        return {
            path: Served(
                server.database,
                server.engine,
                {role_of(workload): workload for workload in server.database.users},
            )
            for path, server in self._servers.items()
            if server.ready and server.engine is not None
        }

    async def close(self) -> None:
        """Let go of everything, leaving it running."""
        await self._tasks.close()

    async def _run(self, server: _Server) -> None:
        pause = FIRST_BACKOFF
        restarts = 0
        trouble = ""
        while server.wanted:
            server.changed.clear()
            if not server.ready:
                # Why the last try failed is what people need to know during the next.
                self._say(server, Phase.STARTING, _starting(trouble), restarts)
            try:
                engine = self._engine(server)
                explaining = asyncio.ensure_future(
                    self._explain(server, engine, engine.mark(), restarts)
                )
                try:
                    info = await self._start(engine, server)
                finally:
                    explaining.cancel()
            except (Error, OSError) as error:
                _log.warning(
                    "database", extra={"database": server.database.path, "reason": str(error)}
                )
                trouble = str(error)
                self._say(server, Phase.BACKOFF, trouble, restarts)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAST_BACKOFF)
                continue
            begun = self._clock()
            server.engine = engine
            self._say(server, Phase.READY, "", restarts, info.pid, info.started_at)
            ended = asyncio.ensure_future(self._watch.ended(info))
            changed = asyncio.ensure_future(server.changed.wait())
            try:
                await asyncio.wait((ended, changed), return_when=asyncio.FIRST_COMPLETED)
                if ended.done():
                    restarts += 1
                    pause = FIRST_BACKOFF if self._clock() - begun > 5.0 else pause
                    trouble = ended.result().ending()
                    self._say(server, Phase.BACKOFF, trouble, restarts)
                    if self._clock() - begun < 1.0:
                        await asyncio.sleep(pause)
                        pause = min(pause * 2, LAST_BACKOFF)
            finally:
                ended.cancel()
                changed.cancel()
        await self._end(server)

    async def _explain(
        self, server: _Server, engine: PostgresEngine, mark: int, restarts: int
    ) -> None:
        """Say what the log tells after `mark` of a start that takes long."""
        while True:
            await asyncio.sleep(EXPLAIN_PERIOD)
            words = await asyncio.to_thread(engine.trouble, mark)
            if words and not server.ready:
                self._say(server, Phase.STARTING, _starting(words), restarts)

    async def _start(self, engine: PostgresEngine, server: _Server) -> ProcessInfo:
        try:
            info = await engine.start(self._supervisor)
        except ConflictError:
            # It runs as an earlier version of us declared it.
            await self._supervisor.stop(engine.name)
            info = await engine.start(self._supervisor)
        database = server.database
        roles = [role_of(workload) for workload in sorted(database.users)]
        for role in roles:
            await engine.ensure_role(role, server.credentials.password(role))
        await engine.ensure_database(database.name, f"{database.name}_owner", roles)
        return info

    async def _end(self, server: _Server) -> None:
        name = process_name(server.database)
        # Who needs it waits, also one that was declared again meanwhile: it is started anew.
        self._say(server, Phase.DRAINING, "it is being stopped", 0)
        await insist("stop", name, lambda: self._supervisor.stop(name))
        await insist("forget", name, lambda: self._supervisor.forget(name))
        self._ports.free(server.credentials.port)
        del self._servers[server.database.path]
        self._reports.remove(f"status/databases/{server.database.path}")
        self.reconcile()

    def _engine(self, server: _Server) -> PostgresEngine:
        database, credentials = server.database, server.credentials
        name = process_name(database)
        running = self._watch.latest.get(name)
        mine = running is not None and running.running
        if credentials.port == 0 or not (mine or bindable("127.0.0.1", credentials.port)):
            credentials.port = self._ports.take()
            credentials.save()
        self._ports.hold(credentials.port)
        return PostgresEngine(
            directory=self._state_dir / "data" / database.path,
            run_dir=self._run_dir,
            log=self._state_dir / "logs" / f"{name}.log",
            port=credentials.port,
            name=name,
        )

    def _say(
        self,
        server: _Server,
        phase: Phase,
        reason: str,
        restarts: int,
        pid: int | None = None,
        started_at: float | None = None,
    ) -> None:
        server.ready = phase is Phase.READY
        server.reason = reason
        database = server.database
        self._reports.put(
            DatabaseStatus(
                app=database.app,
                cell=database.cell,
                name=database.name,
                node=self._node,
                phase=phase,
                reason=reason,
                address=Address(host="127.0.0.1", port=server.credentials.port),
                pid=pid,
                started_at=started_at,
                restarts=restarts,
            )
        )
        self._changed()
