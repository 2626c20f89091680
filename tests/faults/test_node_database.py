"""A database under a real node agent: it is restarted, adopted, and its data outlives it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import psycopg

from bedstone.model.resources import App, Database, DatabaseStatus, Phase, Revision
from bedstone.model.spec import AppSpec
from bedstone.testing.node import NODE, World, node_world

SERVER = """
import os, socket, time
server = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
print(os.environ["LEDGER_URL"], flush=True)
time.sleep(1000)
"""


def database_status(world: World) -> DatabaseStatus | None:
    found = world.server.statuses.get("status/databases/shop/default/ledger")
    return found if isinstance(found, DatabaseStatus) else None


def declare(world: World) -> Database:
    spec = AppSpec.model_validate(
        {
            "app": "shop",
            "workloads": {"web": {"command": ["python", "server.py"], "uses": ["ledger"]}},
            "databases": {"ledger": {}},
        }
    )
    root = str(world.code)
    revision = Revision(
        app="shop", workload="web", name="r1", spec=spec.workloads["web"], root=root
    )
    database = Database(app="shop", name="ledger", node=NODE, users=["web"])
    world.server.assign(App(name="shop", spec=spec, root=root), revision, database)
    return database


def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(statement)
        return found.fetchall() if found.description else []


async def play(world: World) -> None:
    server = world.server
    database = declare(world)
    web = world.instance("web")
    await server.until_phase(web, Phase.READY, 30)
    log = world.state / "logs" / "instances" / f"{web.path}.log"
    url = log.read_text().split()[0]
    assert url.startswith("postgresql://web:")
    execute(url, "CREATE TABLE entries AS SELECT 42 AS amount")
    first = database_status(world)
    assert first is not None
    assert first.pid is not None

    # It dies: it is back, on the same port, with what was acknowledged.
    os.kill(first.pid, signal.SIGKILL)
    await server.until(
        lambda: (
            (s := database_status(world)) is not None
            and s.phase is Phase.READY
            and s.pid != first.pid
        )
    )
    assert execute(url, "SELECT amount FROM entries") == [(42,)]
    second = database_status(world)
    assert second is not None
    assert second.restarts == 1

    # The agent dies: it is adopted, and is never said to be anything but ready.
    hellos = len(server.hellos)
    await world.supervisor.signal("node", signal.SIGKILL)
    await server.until(lambda: len(server.hellos) > hellos)
    told = server.hellos[-1].databases
    assert [(s.phase, s.pid, s.address) for s in told] == [
        (Phase.READY, second.pid, second.address)
    ]

    # Another workload's role is made while it runs, and nothing is restarted for it.
    server.assign(database.model_copy(update={"users": ["audit", "web"]}))
    await asyncio.sleep(1.0)
    status = database_status(world)
    assert status is not None
    assert (status.phase, status.pid) == (Phase.READY, second.pid)

    # It is no longer declared: it ends, its data stays, and what is private is private.
    server.assign(remove=(web.key, database.key))
    await server.until(lambda: database_status(world) is None)
    names = {info.name for info in await world.supervisor.list()}
    assert not [name for name in names if name.startswith("postgres-")]
    assert (world.state / "data" / "shop" / "default" / "ledger" / "data" / "PG_VERSION").exists()
    kept = list((world.state / "node").rglob("*.json"))
    assert kept
    assert all(Path(path).stat().st_mode & 0o077 == 0 for path in kept)


def test_life_of_a_database() -> None:
    async def run() -> None:
        async with asyncio.timeout(90), node_world({"server.py": SERVER}) as world:
            await play(world)

    asyncio.run(run())
