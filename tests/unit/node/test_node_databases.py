"""The end of a database on its node: its supervisor may refuse, and it may be wanted again."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import cast

from bedstone.errors import UnavailableError
from bedstone.model.messages import Assignments
from bedstone.model.resources import Database, Node, Phase
from bedstone.node.databases import DatabaseManager
from bedstone.node.reports import Reports
from bedstone.node.view import View
from bedstone.node.watch import Watch
from bedstone.processes.client import SupervisorClient
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
