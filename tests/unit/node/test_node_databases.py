"""The end of a database on its node: its supervisor may refuse, and it may be wanted again."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import cast

import pytest

from bedstone.errors import NotFoundError, UnavailableError
from bedstone.model.messages import Assignments
from bedstone.model.resources import Database, DatabaseStatus, Node, Phase
from bedstone.node import databases
from bedstone.node.databases import DatabaseManager
from bedstone.node.reports import Reports, Status
from bedstone.node.view import View
from bedstone.node.watch import Watch
from bedstone.processes.client import SupervisorClient
from bedstone.processes.spec import ProcessInfo, ProcessSpec
from bedstone.sandbox.ports import Ports

LEDGER = Database(app="shop", name="ledger", node="here", users=["web"])
STATUS = f"status/{LEDGER.key}"


class BusySupervisor:
    """Refuses to stop as often as a test says."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.calls: list[str] = []

    async def stop(self, name: str) -> None:
        self.calls.append(f"stop {name}")
        if self.refusals:
            self.refusals -= 1
            raise UnavailableError("the supervisor is busy")

    async def forget(self, name: str) -> None:
        self.calls.append(f"forget {name}")


class StuckSupervisor(BusySupervisor):
    """Runs, it says, what never answers; what it was to run writes why into its log."""

    def __init__(self, words: str) -> None:
        super().__init__(0)
        self.words = words
        self.ends = False

    async def get(self, name: str) -> ProcessInfo:
        return ProcessInfo(name, "exited" if self.ends else "running", "", pid=1, exit_code=1)

    async def spawn(self, spec: ProcessSpec) -> ProcessInfo:
        log = Path(spec.stdout or "")
        log.parent.mkdir(exist_ok=True)
        log.write_text(self.words)
        return await self.get(spec.name)


class Scene:
    """One node's databases."""

    def __init__(self, folder: Path, supervisor: BusySupervisor, ports: Ports) -> None:
        self.view = View()
        self.reports = Reports(Node(name="here", address="127.0.0.1"))
        client = cast("SupervisorClient", supervisor)
        self.manager = DatabaseManager(
            "here",
            folder,
            folder,
            self.view,
            self.reports,
            Watch(client),
            client,
            ports,
            lambda: None,
            lambda: None,
            time.time,
        )

    def assign(self, *databases: Database) -> None:
        self.view.apply(Assignments(complete=True, domain="d", databases=databases))
        self.manager.reconcile()


def test_a_database_is_forgotten_only_once_it_has_ended(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    kept = tmp_path / "node" / "databases" / "shop.default.ledger.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps({"port": port, "passwords": {}}))
    ports = Ports(port, port)
    ports.hold(port)
    supervisor = BusySupervisor(3)

    async def run() -> None:
        scene = Scene(tmp_path, supervisor, ports)
        try:
            scene.assign(LEDGER)
            scene.assign()
            async with asyncio.timeout(10):
                while supervisor.refusals > 1:  # noqa: ASYNC110 - of no event
                    await asyncio.sleep(0.005)
                assert scene.reports.databases[STATUS].phase is Phase.DRAINING
                scene.view.apply(Assignments(complete=True, domain="d", databases=(LEDGER,)))
                missing = scene.manager.missing("shop", "default", "ledger")
                assert missing == "database ledger: it is being stopped"
                scene.assign()
                assert scene.manager.expected(), "it is ours until it has ended"
                while scene.manager.expected():  # noqa: ASYNC110 - likewise
                    await asyncio.sleep(0.005)
            assert STATUS not in scene.reports.databases
        finally:
            await scene.manager.close()

    asyncio.run(run())
    name = "postgres-shop-default-ledger"
    assert supervisor.calls == [f"stop {name}"] * 4 + [f"forget {name}"]
    assert ports.take() == port, "its port may be used again"


def test_a_start_that_takes_long_says_what_the_log_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "EXPLAIN_PERIOD", 0.05)
    supervisor = StuckSupervisor(
        'FATAL:  could not write lock file "postmaster.pid": No space left on device\n'
        "FATAL:  the database system is starting up\n"
    )

    data = tmp_path / "data" / "shop" / "default" / "ledger" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("17")

    async def run() -> None:
        scene = Scene(tmp_path, supervisor, Ports())
        seen: list[tuple[Phase, str]] = []
        put = scene.reports.put

        def noted(status: Status) -> bool:
            if isinstance(status, DatabaseStatus):
                seen.append((status.phase, status.reason))
            return put(status)

        monkeypatch.setattr(scene.reports, "put", noted)

        async def until(phase: Phase, words: str) -> None:
            async with asyncio.timeout(10):
                while not any(p is phase and words in r for p, r in seen):  # noqa: ASYNC110
                    await asyncio.sleep(0.005)

        try:
            scene.assign(LEDGER)
            await until(Phase.STARTING, "it is being started; the disk is full: free some space")
            supervisor.ends = True
            await until(Phase.BACKOFF, "")
            seen.clear()
            # It is tried again, and why it failed stays said.
            await until(Phase.STARTING, "it is being started; ")
        finally:
            await scene.manager.close()

    asyncio.run(run())


def test_the_server_is_told_the_url_of_a_ready_database_that_it_uses(
    tmp_path: Path,
) -> None:
    """Not of one that starts, and not with the credentials of a user that it is not given."""

    async def scenario() -> None:
        ledger = LEDGER.model_copy(update={"users": ["operator", "web"]})
        scene = Scene(tmp_path, StuckSupervisor(""), Ports(1, 1))
        scene.view.apply(Assignments(domain="d", databases=(ledger,)))
        credentials = databases.Credentials(tmp_path / "ledger.json", 5433, {})
        server = scene.manager._servers[ledger.path] = databases._Server(ledger, credentials)
        with pytest.raises(UnavailableError, match="started"):
            scene.manager.operator_url(ledger.path, "operator")
        server.ready = True
        url = scene.manager.operator_url(ledger.path, "operator")
        assert url.startswith("postgresql://operator:")
        assert url.endswith("/ledger")
        with pytest.raises(NotFoundError, match="of nobody"):
            scene.manager.operator_url(ledger.path, "nobody")
        await scene.manager.close()

    asyncio.run(scenario())
