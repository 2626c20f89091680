"""One PostgreSQL: its data directory, its process and its readiness.

Layout of `directory`: `data` (the cluster), `initialising` (a cluster that is not complete; deleted
and begun again), `superuser.password`, `pg_hba.conf`. The cluster appears by one rename, so a kill
during initdb leaves nothing half-done. Only SCRAM is accepted, on loopback and on the Unix socket.

As root it runs under a user of its own (see `privilege`); otherwise as the caller.

Invariant: a lock file of a dead postmaster is removed only when no process works in the data
directory, found by the directory's inode and not by the number in the file, which another process
may have by now.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bedstone.engines import postgres_files as files
from bedstone.engines import roles
from bedstone.engines.privilege import (
    account_uid,
    can_mount,
    engine_uid,
    open_state,
    reachable,
)
from bedstone.engines.programs import postgres_program
from bedstone.errors import ConflictError, NotFoundError, UnavailableError
from bedstone.processes.client import SupervisorClient
from bedstone.processes.spec import STAGE_DATABASE, Mount, ProcessInfo, ProcessSpec

if TYPE_CHECKING:
    import psycopg

SUPERUSER = "postgres"

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    # A network namespace keeps nobody from a path: instances reach the server by the mesh only.
    "unix_socket_permissions": "0700",
    "password_encryption": "scram-sha-256",
    "max_connections": "100",
    "max_prepared_transactions": "100",  # for XA; as many as connections, as PostgreSQL advises
    "shared_buffers": "32MB",
    "max_wal_size": "256MB",
    "min_wal_size": "64MB",
    "io_workers": "1",
    "jit": "off",
    # In the data directory rather than in /dev/shm, where a killed server would leave it.
    "dynamic_shared_memory_type": "mmap",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_line_prefix": "%m [%p] %u@%d ",
    "timezone": "UTC",
    "log_timezone": "UTC",
}

_HBA = """\
# Written by Bedstone at every start.
local all all scram-sha-256
host all all 127.0.0.1/32 scram-sha-256
"""


@dataclass(frozen=True, slots=True)
class PostgresEngine:
    """One PostgreSQL server.

    Args:
        directory: what it owns, created if missing.
        run_dir: short directory for its socket.
        log: file that its output is appended to.
        port: on 127.0.0.1.
        name: of the process.
        settings: more server settings, as (name, value).
    """

    directory: Path
    run_dir: Path
    log: Path
    port: int
    name: str = "postgres"
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def data_dir(self) -> Path:
        """The cluster."""
        return self.directory / "data"

    @property
    def socket_dir(self) -> Path:
        """What a client names as `host` to use the Unix socket."""
        return self._base / "socket"

    @property
    def _base(self) -> Path:
        return self.run_dir / re.sub(r"[^A-Za-z0-9_-]", "_", self.name)

    @property
    def _uid(self) -> int | None:
        if os.geteuid() != 0:
            return None
        try:
            owner = self.data_dir.stat().st_uid
        except OSError:
            owner = 0  # not there yet; what is wrong with its parents is said when it is made
        if owner:
            return owner
        # initdb insists on a name for its user. With mounts it is given one, otherwise only an
        # account has one.
        return engine_uid(str(self.directory.resolve())) if can_mount() else account_uid()

    def superuser_password(self) -> str:
        """The superuser's; it never leaves the node."""
        try:
            return (self.directory / "superuser.password").read_text().strip()
        except OSError as error:
            raise UnavailableError(
                f"cannot read {self.directory / 'superuser.password'}: {error.strerror}"
            ) from error

    def url(self, database: str, role: str, password: str) -> str:
        """A connection URL for an application."""
        from urllib.parse import quote

        user = f"{quote(role, safe='')}:{quote(password, safe='')}"
        return f"postgresql://{user}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    async def start(self, supervisor: SupervisorClient, timeout: float = 60.0) -> ProcessInfo:
        """Initialise if new, start or adopt, and wait until it accepts connections. Idempotent."""
        mark = None
        info = await self._adopted(supervisor)
        if info is None:
            await self.initialise(supervisor)
            await self._clear_locks()
            self._check_port()
            mark = files.size(self.log)
            info = await supervisor.spawn(self.spec())
        if not info.running:
            raise UnavailableError(f"{self.name}: {info.ending()}")
        await self.wait_ready(supervisor, timeout, mark)
        return info

    async def initialise(self, supervisor: SupervisorClient) -> None:
        """Make the cluster, once."""
        self._prepare_directories()
        if (self.data_dir / "PG_VERSION").exists():
            return
        initialiser = f"{self.name}-initialise"
        # One that a dead node left running would write into the directory that is cleared here.
        with contextlib.suppress(NotFoundError):
            await supervisor.stop(initialiser, 0.0)
        draft = self.directory / "initialising"
        shutil.rmtree(draft, ignore_errors=True)
        files.write_private(
            self.directory / "superuser.password", secrets.token_urlsafe(32), self._uid
        )
        program = self._program("initdb")
        spec = self._spec(
            initialiser,
            (
                program,
                *("--pgdata", f"{self._inside}/initialising", "--username", SUPERUSER),
                *("--pwfile", f"{self._inside}/superuser.password", "--auth", "scram-sha-256"),
                *("--encoding", "UTF8", "--locale", "C.UTF-8", "--data-checksums"),
                *("--set", "dynamic_shared_memory_type=mmap"),
            ),
        )
        mark = files.size(self.log)
        info = await _run_to_end(supervisor, spec)
        if info.state != "exited" or info.exit_code != 0:
            shutil.rmtree(draft, ignore_errors=True)
            raise self._explain(f"initdb: {info.ending()}", mark)
        draft.rename(self.data_dir)
        files.sync_directory(self.directory)

    def spec(self) -> ProcessSpec:
        """What to run, once initialised."""
        settings = {
            **_SETTINGS,
            "port": str(self.port),
            "unix_socket_directories": str(self.socket_dir),
            "hba_file": f"{self._inside}/pg_hba.conf",
            **dict(self.settings),
        }
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        argv = (self._program("postgres"), "-D", f"{self._inside}/data", *options)
        return self._spec(self.name, argv)

    async def wait_ready(
        self,
        supervisor: SupervisorClient | None = None,
        timeout: float = 60.0,
        mark: int | None = None,
    ) -> None:
        """Return when a SCRAM connection over TCP succeeds; replay after a crash counts as waiting.

        Args:
            supervisor: asked whether the process has ended meanwhile, to fail at once.
            timeout: seconds.
            mark: where in the log the reason for an early end would be.
        """
        import psycopg

        deadline = time.monotonic() + timeout
        reason = "no answer"
        while time.monotonic() < deadline:
            try:
                async with await self.connect():
                    return
            except UnavailableError as error:
                reason = error.message
            except psycopg.Error as error:
                reason = str(error).strip()
            if supervisor is not None:
                info = await supervisor.get(self.name)
                if not info.running:
                    raise self._explain(f"{self.name} ended: {info.ending()}", mark)
            await asyncio.sleep(0.02)
        raise UnavailableError(
            f"{self.name} is not ready after {timeout:g} s: {reason}", hint=f"see {self.log}"
        )

    async def connect(self, database: str = "postgres") -> psycopg.AsyncConnection:
        """A superuser's connection, autocommit; UnavailableError."""
        import psycopg

        try:
            return await psycopg.AsyncConnection.connect(
                host="127.0.0.1",
                port=self.port,
                user=SUPERUSER,
                password=self.superuser_password(),
                dbname=database,
                connect_timeout=5,
                autocommit=True,
                sslmode="disable",
                require_auth="scram-sha-256",
            )
        except psycopg.OperationalError as error:
            raise UnavailableError(f"{self.name}: {str(error).strip()}") from error

    async def ensure_role(self, role: str, password: str) -> None:
        """See `roles.ensure_role`."""
        async with await self.connect() as connection:
            await roles.ensure_role(connection, role, password)

    async def ensure_database(self, database: str, owner: str, members: Iterable[str]) -> None:
        """See `roles.ensure_database`."""
        async with await self.connect() as connection:
            await roles.ensure_database(connection, database, owner, members)

    async def health(self) -> float:
        """Seconds that a connection and a query took; UnavailableError."""
        import psycopg

        start = time.monotonic()
        try:
            async with await self.connect() as connection:
                await connection.execute("SELECT 1")
        except psycopg.Error as error:
            raise UnavailableError(f"{self.name}: {str(error).strip()}") from error
        return time.monotonic() - start

    # Directories and privileges.

    @property
    def _inside(self) -> str:
        """`directory` as the server's own user sees it."""
        uid = self._uid
        if uid is None or reachable(self.directory / "data", uid, uid):
            return str(self.directory.resolve())
        return str(self._base / "home")

    def _program(self, name: str) -> str:
        program = postgres_program(name)
        uid = self._uid
        if uid is None or reachable(program, uid, uid):
            return str(program)
        package = program.parents[2]
        return str(self._base / "programs" / program.relative_to(package.parent))

    def _mounts(self) -> tuple[Mount, ...]:
        uid = self._uid
        if uid is None:
            return ()
        mounts = []
        if self._inside != str(self.directory.resolve()):
            mounts.append(Mount(str(self.directory.resolve()), str(self._base / "home")))
        program = postgres_program("postgres")
        if self._program("postgres") != str(program):
            package = program.parents[2]
            # The libraries of the wheel lie beside the package, found by $ORIGIN.
            for source in (package, package.with_name(f"{package.name}.libs")):
                if source.is_dir():
                    target = self._base / "programs" / source.name
                    mounts.append(Mount(str(source), str(target), readonly=True))
        if mounts and not can_mount():
            raise UnavailableError(
                f"{self.name} can't run as root, and its own user can't reach {self.directory}",
                hint="run as an ordinary user, or move the project below a directory that others "
                "may enter, or grant CAP_SYS_ADMIN",
            )
        if can_mount():
            mounts.append(Mount(str(self._base / "passwd"), "/etc/passwd", readonly=True))
        return tuple(mounts)

    def _prepare_directories(self) -> None:
        uid = self._uid
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            uid = self._uid
            self._base.mkdir(mode=0o711, exist_ok=True)
            self.socket_dir.mkdir(mode=0o711, exist_ok=True)
            if uid is not None:
                for folder in (self._base, self.socket_dir):
                    folder.chmod(0o711)
                for folder in (self._base / "home", self._base / "programs"):
                    folder.mkdir(exist_ok=True)
                    folder.chmod(0o711)
                passwd = self._base / "passwd"
                passwd.write_text(f"{SUPERUSER}:x:{uid}:{uid}::/:/bin/false\n")
                passwd.chmod(0o644)
                os.chown(self.socket_dir, uid, uid)
                files.give(self.directory, uid)
                if not can_mount():
                    open_state(self.directory.resolve())
            files.write_private(self.directory / "pg_hba.conf", _HBA, uid)
        except OSError as error:
            raise UnavailableError(
                f"cannot prepare {error.filename or self.directory}: {error.strerror}",
                hint="make it writable, and see that the disk has room",
            ) from error

    def _spec(self, name: str, argv: tuple[str, ...]) -> ProcessSpec:
        uid = self._uid
        return ProcessSpec(
            name=name,
            argv=argv,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": "/"},
            stdout=str(self.log),
            uid=uid,
            gid=uid,
            mounts=self._mounts(),
            # SIGQUIT ends every backend too, at once and without a shutdown checkpoint.
            death_signal=signal.SIGQUIT,
            # SIGINT is the fast shutdown: it doesn't wait for clients to leave.
            stop_signal=signal.SIGINT,
            stop_grace=30.0,
            stage=STAGE_DATABASE,
            oom_score_adj=-500,
        )

    # Adoption and recovery.

    async def _adopted(self, supervisor: SupervisorClient) -> ProcessInfo | None:
        try:
            info = await supervisor.get(self.name)
        except NotFoundError:
            return None
        if not info.running:
            return None
        return await supervisor.spawn(self.spec())  # conflict if the declaration changed

    async def _clear_locks(self, patience: float = 5.0) -> None:
        """Remove what a killed server left, once nobody works in its directory."""
        deadline = time.monotonic() + patience
        while owners := files.working_in(self.data_dir):
            if time.monotonic() > deadline:
                raise ConflictError(
                    f"another PostgreSQL (pid {owners[0]}) uses {self.data_dir}",
                    hint="stop it first",
                )
            await asyncio.sleep(0.02)
        (self.data_dir / "postmaster.pid").unlink(missing_ok=True)
        for path in self.socket_dir.glob(".s.PGSQL.*"):
            path.unlink(missing_ok=True)

    def _check_port(self) -> None:
        """Say it at once: a connection to another server's port may hang instead of failing."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.port))
            except OSError as error:
                raise UnavailableError(
                    f"{self.name}: port {self.port} is taken", hint="free the port"
                ) from error

    def mark(self) -> int:
        """Where its log ends now."""
        return files.size(self.log)

    def trouble(self, mark: int | None = None) -> str:
        """What its log says after `mark` of why it does not work, for people; or nothing."""
        tail = files.tail(self.log, mark)
        cause = files.cause(tail, port=self.port, directory=self.directory)
        return f"{cause[0]}: {cause[1]}" if cause is not None else files.last_words(tail)

    def _explain(self, what: str, mark: int | None = None) -> UnavailableError:
        tail = files.tail(self.log, mark)
        cause = files.cause(tail, port=self.port, directory=self.directory)
        if cause is not None:
            return UnavailableError(f"{self.name}: {cause[0]}", hint=cause[1])
        words = files.last_words(tail)
        return UnavailableError(f"{what}{': ' + words if words else ''}", hint=f"see {self.log}")


async def _run_to_end(supervisor: SupervisorClient, spec: ProcessSpec) -> ProcessInfo:
    async with contextlib.aclosing(supervisor.watch()) as events:
        async for event in events:
            if event.kind == "synced":
                break
        started = await supervisor.spawn(spec)
        end = started if started.state == "failed" else None
        while end is None:
            found = (await anext(events)).process
            if found and found.name == spec.name and not found.running:
                # The number tells this start from an earlier one of the same name.
                end = found if found.started_at == started.started_at else None
    await supervisor.forget(spec.name)
    return end
