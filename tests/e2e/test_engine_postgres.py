"""A real PostgreSQL under the supervisor: made once, restarted, recovered, refused for a reason."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from bedstone.engines.postgres import PostgresEngine
from bedstone.errors import ConflictError, InvalidError, UnavailableError
from bedstone.processes.client import SupervisorClient, start_supervisor
from bedstone.processes.identity import ProcessIdentity
from bedstone.testing.processes import supervised, until


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def served(
    folder: Path, port: int | None = None
) -> AsyncIterator[tuple[PostgresEngine, SupervisorClient]]:
    async with supervised(folder) as (run, client):
        engine = PostgresEngine(
            directory=folder / ".bedstone/postgres/main",
            run_dir=Path(run.run_dir),
            log=folder / "postgres.log",
            port=port or free_port(),
        )
        yield engine, client


async def count(engine: PostgresEngine) -> int:
    async with await engine.connect() as connection:
        row = await (await connection.execute("SELECT count(*) FROM rows")).fetchone()
        assert row is not None
        return int(row[0])


def test_a_taken_port_is_named_and_nothing_stays_running(tmp_path: Path) -> None:
    async def check() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            async with served(tmp_path, port) as (engine, client):
                await engine.initialise(client)
                with pytest.raises(UnavailableError, match=f"port {port} is taken"):
                    await engine.start(client)
                # Taken between the check and the start, the server's log says it.
                await client.spawn(engine.spec())
                with pytest.raises(UnavailableError, match=f"port {port} is taken"):
                    await engine.wait_ready(client)
                assert not (await client.get("postgres")).running
                free = replace(engine, port=free_port())
                assert (await free.start(client)).running

    asyncio.run(check())


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    async def check() -> None:
        async with served(tmp_path) as (engine, client):
            with pytest.raises(UnavailableError) as caught:
                await replace(engine, directory=tmp_path / "file/db").start(client)
            assert str(tmp_path / "file/db") in caught.value.message
            assert await client.list() == []

    asyncio.run(check())


def test_data_of_another_version_is_refused_with_the_reason(tmp_path: Path) -> None:
    async def check() -> None:
        async with served(tmp_path) as (engine, client):
            await engine.initialise(client)
            (engine.data_dir / "PG_VERSION").write_text("12\n")
            with pytest.raises(UnavailableError) as caught:
                await engine.start(client)
            assert "another version" in caught.value.message

    asyncio.run(check())


def test_a_kill_in_the_middle_of_initdb_leaves_nothing_half_done(tmp_path: Path) -> None:
    async def check() -> None:
        async with served(tmp_path) as (engine, client):
            starting = asyncio.create_task(engine.start(client))
            draft = engine.directory / "initialising"
            await until((draft / "PG_VERSION").exists)
            info = await client.get("postgres-initialise")
            os.kill(info.pid or 0, signal.SIGKILL)
            with pytest.raises(UnavailableError, match="killed by SIGKILL"):
                await starting
            assert not engine.data_dir.exists()
            assert not draft.exists()
            assert (await engine.start(client)).running

    asyncio.run(check())


def test_a_supervisor_killed_in_the_middle_of_initdb_leaves_a_directory_that_works(
    tmp_path: Path,
) -> None:
    async def check() -> None:
        run = await start_supervisor(tmp_path / ".bedstone")
        engine = PostgresEngine(
            tmp_path / ".bedstone/postgres/main",
            Path(run.run_dir),
            tmp_path / "postgres.log",
            free_port(),
        )
        async with SupervisorClient(run.socket) as client:
            starting = asyncio.create_task(engine.start(client))
            await until((engine.directory / "initialising/PG_VERSION").exists)
            run.identity.send_signal(signal.SIGKILL)
            with pytest.raises(UnavailableError):
                await starting
        async with served(tmp_path) as (again, client):
            assert (await again.start(client)).running
            assert not (again.directory / "initialising").exists()

    asyncio.run(check())


def test_acknowledged_rows_survive_a_kill_under_load(tmp_path: Path) -> None:
    async def check() -> None:
        async with served(tmp_path) as (engine, client):
            info = await engine.start(client)
            async with await engine.connect() as connection:
                await connection.execute("CREATE TABLE rows (number int)")
            acknowledged = 0

            async def write() -> None:
                nonlocal acknowledged
                connection = await engine.connect()
                try:
                    while True:
                        await connection.execute("INSERT INTO rows VALUES (1)")
                        acknowledged += 1
                finally:
                    await connection.close()

            writers = [asyncio.create_task(write()) for _ in range(4)]
            await until(lambda: acknowledged > 200)
            os.kill(info.pid or 0, signal.SIGKILL)
            results = await asyncio.gather(*writers, return_exceptions=True)
            assert all(isinstance(result, psycopg.OperationalError) for result in results)
            again = await engine.start(client)
            assert again.pid != info.pid
            assert acknowledged <= await count(engine) <= acknowledged + len(writers)

    asyncio.run(check())


def test_a_stale_lock_file_whose_number_lives_again_does_not_stop_the_start(
    tmp_path: Path,
) -> None:
    async def check() -> None:
        async with served(tmp_path) as (engine, client):
            await engine.start(client)
            await client.stop("postgres")
            bystander = await client.spawn(
                replace(engine.spec(), name="bystander", argv=("sleep", "1000"))
            )
            lock = engine.data_dir / "postmaster.pid"
            lock.write_text(f"{bystander.pid}\n{engine.data_dir}\n1\n{engine.port}\n")
            assert (await engine.start(client)).running
            assert (await client.get("bystander")).running

    asyncio.run(check())


def test_a_directory_that_another_server_uses_is_refused(tmp_path: Path) -> None:
    async def check() -> None:
        async with served(tmp_path) as (engine, client):
            info = await engine.start(client)
            other = replace(engine, name="second", port=free_port())
            with pytest.raises(ConflictError, match=f"pid {info.pid}"):
                await other.start(client)
            assert await engine.health() < 5, "the first is not disturbed"

    asyncio.run(check())


def test_starting_again_adopts_and_keeps_the_password(tmp_path: Path) -> None:
    async def check() -> None:
        async with served(tmp_path) as (engine, client):
            first = await engine.start(client)
            password = engine.superuser_password()
            assert (await engine.start(client)).pid == first.pid
            await client.stop("postgres")
            assert (await engine.start(client)).pid != first.pid
            assert engine.superuser_password() == password
            mode = (engine.directory / "superuser.password").stat().st_mode
            assert oct(mode & 0o777) == "0o600"
            assert password not in engine.log.read_text()
            if os.geteuid() == 0:
                assert first.applied == (
                    "uid " + str(engine.data_dir.stat().st_uid),
                    first.applied[1],
                )
                assert engine.data_dir.stat().st_uid >= 61_000

    asyncio.run(check())


def test_only_scram_is_accepted_on_tcp_and_on_the_socket(tmp_path: Path) -> None:
    async def check() -> None:
        async with served(tmp_path) as (engine, client):
            await engine.start(client)
            password = engine.superuser_password()
            entry = engine.socket_dir / f".s.PGSQL.{engine.port}"
            assert entry.stat().st_mode & 0o077 == 0, "an instance comes in by the mesh only"
            for host in ("127.0.0.1", str(engine.socket_dir)):
                where = f"host={host} port={engine.port} user=postgres dbname=postgres"
                with pytest.raises(psycopg.OperationalError):
                    await psycopg.AsyncConnection.connect(where, password="wrong")
                with pytest.raises(psycopg.OperationalError):
                    await psycopg.AsyncConnection.connect(where)
                async with await psycopg.AsyncConnection.connect(
                    where, password=password, require_auth="scram-sha-256"
                ) as connection:
                    rows = await connection.execute(
                        "SELECT current_setting('data_checksums'), current_setting('fsync'),"
                        " getdatabaseencoding(), datcollate FROM pg_database"
                        " WHERE datname = 'postgres'"
                    )
                    assert await rows.fetchone() == ("on", "on", "UTF8", "C.UTF-8")

    asyncio.run(check())


def test_a_role_for_each_workload_reaches_its_databases_and_no_other(tmp_path: Path) -> None:
    awkward = 'we"b; DROP ROLE x'

    async def check() -> None:
        async with served(tmp_path) as (engine, client):
            await engine.start(client)
            for _ in range(2):  # again is the same
                await engine.ensure_role(awkward, "se'cret\\ü")
                await engine.ensure_role("risk", "risk's own")
                await engine.ensure_database("ledger", "ledger_owner", [awkward, "risk"])
                await engine.ensure_database("other", "other_owner", ["risk"])
            async with await psycopg.AsyncConnection.connect(
                engine.url("ledger", awkward, "se'cret\\ü"), autocommit=True
            ) as connection:
                await connection.execute("CREATE TABLE accounts (id int)")
                await connection.execute("INSERT INTO accounts VALUES (7)")
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    await connection.execute("CREATE ROLE mine")
            async with await psycopg.AsyncConnection.connect(
                engine.url("ledger", "risk", "risk's own")
            ) as connection:
                rows = await connection.execute("SELECT id, session_user FROM accounts")
                assert await rows.fetchone() == (7, "risk")
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                await psycopg.AsyncConnection.connect(engine.url("other", awkward, "se'cret\\ü"))
            await engine.ensure_database("ledger", "ledger_owner", ["risk"])
            with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
                await psycopg.AsyncConnection.connect(engine.url("ledger", awkward, "se'cret\\ü"))
            await engine.ensure_role("risk", "another")
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                await psycopg.AsyncConnection.connect(engine.url("ledger", "risk", "risk's own"))
            with pytest.raises(psycopg.OperationalError):
                await psycopg.AsyncConnection.connect(engine.url("ledger", "ledger_owner", ""))
            with pytest.raises(InvalidError):
                await engine.ensure_role("x" * 64, "p")
            log = engine.log.read_text()
            assert "se'cret" not in log
            assert "risk's own" not in log

    asyncio.run(check())


def test_the_databases_of_every_server_are_closed_to_workloads(tmp_path: Path) -> None:
    """There, two workloads could meet, or look at the other's sessions."""

    async def check() -> None:
        async with served(tmp_path) as (engine, client):
            await engine.start(client)
            await engine.ensure_role("web", "p")
            await engine.ensure_database("ledger", "ledger_owner", ["web"])
            for name in ("postgres", "template1"):
                with pytest.raises(psycopg.OperationalError, match="permission denied"):
                    await psycopg.AsyncConnection.connect(engine.url(name, "web", "p"))

    asyncio.run(check())


def test_who_uses_a_database_no_longer_is_disconnected(tmp_path: Path) -> None:
    """Both the one that loses its last database, and the one that keeps another."""

    async def check() -> None:
        async with served(tmp_path) as (engine, client):
            await engine.start(client)
            for role in ("web", "risk", "stays"):
                await engine.ensure_role(role, "p")
            await engine.ensure_database("ledger", "ledger_owner", ["web", "risk", "stays"])
            await engine.ensure_database("other", "other_owner", ["risk"])
            wanted = [("ledger", "web"), ("ledger", "risk"), ("ledger", "stays"), ("other", "risk")]
            held = {}
            for database, role in wanted:
                url = engine.url(database, role, "p")
                held[database, role] = await psycopg.AsyncConnection.connect(url, autocommit=True)
            await engine.ensure_database("ledger", "ledger_owner", ["stays"])
            for key, connection in held.items():
                if key in (("ledger", "stays"), ("other", "risk")):
                    await connection.execute("SELECT 1")
                else:
                    with pytest.raises(psycopg.OperationalError, match="terminating connection"):
                        await connection.execute("SELECT 1")
                await connection.close()
            with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
                await psycopg.AsyncConnection.connect(engine.url("ledger", "web", "p"))
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                await psycopg.AsyncConnection.connect(engine.url("ledger", "risk", "p"))
            await engine.ensure_role("web", "p")
            await engine.ensure_database("ledger", "ledger_owner", ["stays", "web"])
            async with await psycopg.AsyncConnection.connect(engine.url("ledger", "web", "p")):
                pass

    asyncio.run(check())


def test_many_may_declare_the_same_at_once(tmp_path: Path) -> None:
    async def check() -> None:
        async with served(tmp_path) as (engine, client):
            await engine.start(client)
            async with asyncio.TaskGroup() as group:
                for number in range(4):
                    group.create_task(engine.ensure_role(f"role{number}", "p"))
            async with asyncio.TaskGroup() as group:
                for number in range(4):
                    group.create_task(
                        engine.ensure_database(f"db{number}", "owner", [f"role{number}"])
                    )

    asyncio.run(check())


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a small file system needs root and mount(8): run the tests as root")

    async def check() -> None:
        async with served(tmp_path) as (engine, client):
            small = tmp_path / "small"
            small.mkdir()
            mount = await asyncio.create_subprocess_exec(
                "mount", "-t", "tmpfs", "-o", "size=8m", "bedstone-test", small
            )
            if await mount.wait() != 0:
                pytest.skip("mounting is not permitted here: run with CAP_SYS_ADMIN")
            try:
                full = replace(engine, directory=small / "db")
                with pytest.raises(UnavailableError) as caught:
                    await full.start(client)
                assert "the disk is full" in caught.value.message
                assert sorted(path.name for path in full.directory.iterdir()) == [
                    "pg_hba.conf",
                    "superuser.password",
                ]
            finally:
                umount = await asyncio.create_subprocess_exec("umount", "-l", small)
                assert await umount.wait() == 0

    asyncio.run(check())


def test_the_server_dies_with_its_backends_when_only_it_is_killed(tmp_path: Path) -> None:
    async def check() -> None:
        async with served(tmp_path) as (engine, client):
            info = await engine.start(client)
            connection = await engine.connect()
            backend = ProcessIdentity.of(connection.info.backend_pid)
            assert backend is not None
            os.kill(info.pid or 0, signal.SIGKILL)
            await until(lambda: not backend.alive(), 5.0)
            await connection.close()
            with pytest.raises(UnavailableError):
                await engine.health()

    asyncio.run(check())
