"""The world of a run: the bank as a real installation, with MariaDB and NATS beside it.

Owns `World`: starts and ends everything, and tells the others where things are.

Rules: MariaDB and NATS are reached through proxies of this process, so that they can be cut off;
without MariaDB the bank has two databases. Only what this run started is ever signalled.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import yaml

from bedstone.engines.nats import NatsEngine
from bedstone.errors import UnavailableError
from bedstone.testing.databases import DatabaseServer, mariadb_server
from bedstone.testing.domain import Domain, free_port
from bedstone.testing.faults import CuttingProxy
from bedstone.transactions.broker_nats import NatsBroker

APP = Path(__file__).with_name("app")
LEASE = 3.0
POSTGRES = ("north", "south")


class Nats:
    """A NATS server that may be killed."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        log = folder / "nats.log"
        self.engine = NatsEngine(
            folder / "nats", port, "chaos", secrets.token_hex(16), log, sync_always=False
        )
        self._log = log
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it, and wait until it greets."""
        spec = self.engine.prepare()
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(  # noqa: ASYNC220 - it is started at once
                spec.argv, env=dict(spec.env), cwd=spec.cwd, stdout=output, stderr=output
            )
        await self.engine.wait_ready()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(20)
            self.process = None


class World:
    """Everything that a run needs. An asynchronous context manager.

    Args:
        mariadb: whether to use it, where it is installed.
    """

    def __init__(self, *, mariadb: bool = True) -> None:
        self._wanted = mariadb
        self._stack = AsyncExitStack()
        self.missing = "" if mariadb else "not asked for"
        self.mariadb: DatabaseServer | None = None
        self.mariadb_proxy: CuttingProxy | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    @property
    def banks(self) -> tuple[str, ...]:
        """Those that there are."""
        return (*POSTGRES, "mary") if self.mariadb else POSTGRES

    def url(self, bank: str, workload: str = "teller") -> str:
        """A database's URL, past the proxies."""
        if bank == "mary":
            assert self.mariadb is not None, "there is no MariaDB"
            return self.mariadb.url
        kept = self.domain.state / "node" / "databases" / f"chaos.default.{bank}-db.json"
        found = json.loads(kept.read_text())
        password, port = found["passwords"][workload], found["port"]
        return f"postgresql://{workload}:{password}@127.0.0.1:{port}/{bank}-db"

    async def pids(self) -> dict[str, int]:
        """Processes of the installation by name; none while its supervisor can't say."""
        try:
            return await asyncio.to_thread(self.domain.pids)
        except (UnavailableError, OSError):
            return {}

    async def _start(self) -> None:
        self.domain = Domain.make(APP)
        self._stack.callback(self._end)
        await self._start_mariadb()
        folder = self.domain.directory / "beside"
        folder.mkdir()
        self.nats = Nats(folder)
        await self.nats.start()
        self._stack.callback(self.nats.stop)
        self.nats_proxy = await self._stack.enter_async_context(
            CuttingProxy("127.0.0.1", self.nats.engine.port)
        )
        broker = NatsBroker(self.nats.engine.url)
        await broker.declare("credits", "credit.*")
        await broker.close()
        self._environment("CHAOS_NATS_URL", _through(self.nats.engine.url, self.nats_proxy.port))
        self._environment("CHAOS_LEASE", str(LEASE))
        await asyncio.to_thread(self.domain.up, "--isolate", "never")

    async def _start_mariadb(self) -> None:
        url = ""
        if self._wanted:
            try:
                self.mariadb = self._stack.enter_context(
                    mariadb_server(
                        innodb_lock_wait_timeout=3,
                        max_connections=300,
                        # Data survives a kill of the process, not of the machine.
                        innodb_flush_log_at_trx_commit=2,
                    )
                )
            except UnavailableError as error:
                self.missing = f"{error.message}; {error.hint}"
        if self.mariadb is None:
            _without_mary(self.domain.directory / "bedstone.yaml")
        else:
            port = urlsplit(self.mariadb.url).port
            assert port is not None, "MariaDB has no port"
            self.mariadb_proxy = await self._stack.enter_async_context(
                CuttingProxy("127.0.0.1", port)
            )
            url = _through(self.mariadb.url, self.mariadb_proxy.port)
        self._environment("CHAOS_MARIADB_URL", url)

    def _environment(self, name: str, value: str) -> None:
        os.environ[name] = value
        self._stack.callback(os.environ.pop, name, None)

    def _end(self) -> None:
        try:
            if self.domain.state.exists():
                self.domain.down()
        finally:
            if keep := os.environ.get("CHAOS_KEEP"):
                with suppress(OSError):
                    shutil.copytree(self.domain.state / "logs", keep, dirs_exist_ok=True)
            self.domain.discard()


def _without_mary(manifest: Path) -> None:
    found: dict[str, Any] = yaml.safe_load(manifest.read_text())
    del found["workloads"]["mary"]
    found["workloads"]["teller"]["uses"].remove("mary")
    manifest.write_text(yaml.safe_dump(found))


def _through(url: str, port: int) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}"))
