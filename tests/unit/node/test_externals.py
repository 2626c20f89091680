"""Databases elsewhere: looked at until they answer, and told of without their passwords."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

from bedstone.model.database_url import Place
from bedstone.model.resources import Database, Node, Phase
from bedstone.node import externals
from bedstone.node.externals import External, unreachable
from bedstone.node.reports import Reports
from bedstone.node.tasks import Tasks

KEY = "status/databases/bank/default/ledger"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def database(port: int, node: str = "here") -> Database:
    url = f"postgresql://bank:topsecret@127.0.0.1:{port}/bank"
    return Database(app="bank", name="ledger", url=url, node=node, users=["web"])


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


async def until(reports: Reports, phase: Phase) -> str:
    await eventually(lambda: KEY in reports.databases and reports.databases[KEY].phase is phase)
    return reports.databases[KEY].reason


async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


def test_it_is_pending_with_the_reason_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(externals, "PERIOD", 0.02)

    async def main() -> None:
        reports, tasks, changes = Reports(Node(name="here", address="127.0.0.1")), Tasks(), []
        port = free_port()
        external = External(
            database(port), "here", reports, lambda: changes.append(external.reason), tasks
        )
        try:
            await eventually(lambda: bool(changes))
            refused = f"cannot connect to 127.0.0.1:{port}: Connection refused"
            assert await until(reports, Phase.PENDING) == refused
            assert external.reason == refused
            server = await asyncio.start_server(hang_up, "127.0.0.1", port)
            assert await until(reports, Phase.READY) == ""
            assert external.reason == ""
            server.close()
            await server.wait_closed()
            assert "Connection refused" in await until(reports, Phase.UNREADY)
            assert "topsecret" not in str(changes)
            external.close()
            assert KEY not in reports.databases
        finally:
            await tasks.close()

    asyncio.run(main())


def test_a_node_that_only_uses_it_reports_nothing() -> None:
    async def main() -> None:
        reports, tasks = Reports(Node(name="here", address="127.0.0.1")), Tasks()
        external = External(database(free_port(), "other"), "here", reports, lambda: None, tasks)
        try:
            await eventually(lambda: "cannot connect" in external.reason)
            assert reports.databases == {}
        finally:
            await tasks.close()

    asyncio.run(main())


def test_a_name_that_nobody_knows_is_a_reason() -> None:
    reason = asyncio.run(unreachable(Place("db.invalid", 5432)))

    assert reason.startswith("cannot connect to db.invalid:5432: ")


def test_a_server_that_does_not_answer_is_a_reason() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        place = Place(*full.getsockname()[:2])
        with socket.create_connection(place), socket.socket() as second:
            second.settimeout(0)
            second.connect_ex(place)  # the queue holds one more than it was told
            reason = asyncio.run(unreachable(place, 0.2))
    assert reason == f"cannot connect to {place}: no answer within 0.2 s"
