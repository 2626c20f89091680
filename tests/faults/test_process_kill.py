"""SIGKILL at the supervisor, the warden, everything at once: nothing leaks, nobody else is hit."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from bedstone.engines.postgres import PostgresEngine
from bedstone.errors import UnavailableError
from bedstone.processes.client import RunInfo, SupervisorClient, cleanup_stale, start_supervisor
from bedstone.processes.identity import ProcessIdentity
from bedstone.processes.spec import Limits, ProcessSpec

ENV = {"PATH": os.environ["PATH"]}


def daemon(name: str, folder: Path) -> ProcessSpec:
    """Leaves a grandchild in a session of its own, twice forked, and lives on."""
    inner = f"echo $$ >{folder / name}; exec sleep 1000"
    return ProcessSpec(name, ("sh", "-c", f"(setsid sh -c '{inner}' &); exec sleep 1000"), env=ENV)


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.01)


def gone(run: RunInfo) -> bool:
    return not run.alive()


def written(path: Path) -> bool:
    return path.exists() and path.read_text().strip() != ""


def identity(pid: int | None) -> ProcessIdentity:
    found = ProcessIdentity.of(pid or 0)
    assert found is not None
    return found


def wardens_of(run: RunInfo) -> list[ProcessIdentity]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"warden.py" in line and run.run_id.encode() in line:
                found.append(identity(int(entry.name)))
    return found


def warden_of(run: RunInfo) -> ProcessIdentity:
    (found,) = wardens_of(run)
    return found


@pytest.fixture
def bystander() -> object:
    """The same program with the same arguments, not of the run."""
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    assert process.poll() is None, "an unrelated process of the same name lives on"
    process.kill()
    process.wait()


def test_a_killed_supervisor_takes_everything_and_nothing_else(
    tmp_path: Path, bystander: object
) -> None:
    async def check() -> None:
        run = await start_supervisor(tmp_path / ".bedstone")
        async with SupervisorClient(run.socket) as client:
            child = identity((await client.spawn(daemon("a", tmp_path))).pid)
            await until(lambda: written(tmp_path / "a"))
            grandchild = identity(int((tmp_path / "a").read_text()))
            warden = warden_of(run)
            run.identity.send_signal(signal.SIGSTOP)  # so that the request stays unanswered
            waiting = asyncio.create_task(client.stop("a", grace=100))
            await asyncio.sleep(0.01)
            run.identity.send_signal(signal.SIGKILL)
            with pytest.raises(UnavailableError):
                await waiting
            await until(lambda: not (child.alive() or grandchild.alive() or warden.alive()), 3.0)
            assert cleanup_stale(tmp_path / ".bedstone") is None
            assert not Path(run.run_dir).exists()
            assert [path.name for path in (tmp_path / ".bedstone").iterdir()] == ["supervisor.lock"]

    asyncio.run(check())


def test_a_killed_warden_is_replaced(tmp_path: Path, bystander: object) -> None:
    async def check() -> None:
        run = await start_supervisor(tmp_path / ".bedstone")
        async with SupervisorClient(run.socket) as client:
            await client.spawn(daemon("a", tmp_path))
            await until(lambda: written(tmp_path / "a"))
            grandchild = identity(int((tmp_path / "a").read_text()))
            first = warden_of(run)
            first.send_signal(signal.SIGKILL)
            await until(lambda: not first.alive())
            await client.ping()
            await until(lambda: first not in wardens_of(run) != [])
            run.identity.send_signal(signal.SIGKILL)
            await until(lambda: not grandchild.alive(), 3.0)
        assert cleanup_stale(tmp_path / ".bedstone") is None

    asyncio.run(check())


def test_everything_killed_at_once_is_cleared_by_the_next_start(
    tmp_path: Path, bystander: object
) -> None:
    async def check() -> None:
        run = await start_supervisor(tmp_path / ".bedstone", detached=True)
        async with SupervisorClient(run.socket) as client:
            await client.spawn(daemon("a", tmp_path))
            await until(lambda: written(tmp_path / "a"))
            grandchild = identity(int((tmp_path / "a").read_text()))
            await client.spawn(
                ProcessSpec("b", ("sleep", "1000"), env=ENV, limits=Limits(memory=1 << 28, cpu=1))
            )
            if os.geteuid() == 0:
                await client.create_netns("left")
        # The warden first, so that only the next start can end the grandchild.
        warden_of(run).send_signal(signal.SIGSTOP)
        warden = warden_of(run)
        run.identity.send_signal(signal.SIGKILL)
        warden.send_signal(signal.SIGKILL)
        await until(lambda: not (run.alive() or warden.alive()))
        assert grandchild.alive(), "nothing was there to end it"
        again = await start_supervisor(tmp_path / ".bedstone", detached=True)
        assert not grandchild.alive()
        assert again.run_id != run.run_id
        assert f"{run.run_dir}/netns/left" not in Path("/proc/self/mountinfo").read_text()
        groups = f"bedstone-{Path(run.run_dir).name}-"
        assert [*Path("/sys/fs/cgroup").rglob(f"{groups}*")] == []
        async with SupervisorClient(again.socket) as client:
            assert await client.list() == []
            await client.shutdown()
        assert not Path(again.run_dir).exists()

    asyncio.run(check())


def test_a_reused_process_number_in_the_run_file_is_not_taken_for_the_supervisor(
    tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    async def check() -> None:
        run = await start_supervisor(tmp_path / ".bedstone")
        path = tmp_path / ".bedstone/run.json"
        text = path.read_text()
        run.identity.send_signal(signal.SIGKILL)
        await until(lambda: not run.alive())
        path.write_text(text.replace(f'"pid": {run.pid}', f'"pid": {bystander.pid}'))
        assert cleanup_stale(tmp_path / ".bedstone") is None
        assert not path.exists()
        path.write_text("{ half a fi")
        assert cleanup_stale(tmp_path / ".bedstone") is None

    asyncio.run(check())


def test_kills_at_many_moments_never_leak(tmp_path: Path, bystander: object) -> None:
    """The supervisor is killed while it forks, at a different moment each time."""

    async def check() -> None:
        for moment in range(6):
            run = await start_supervisor(tmp_path / ".bedstone")
            async with SupervisorClient(run.socket) as client:
                tasks = [
                    asyncio.create_task(client.spawn(daemon(f"{moment}-{number}", tmp_path)))
                    for number in range(5)
                ]
                await asyncio.sleep(moment * 0.004)
                run.identity.send_signal(signal.SIGKILL)
                await asyncio.gather(*tasks, return_exceptions=True)
            await until(partial(gone, run))
            assert cleanup_stale(tmp_path / ".bedstone") is None
            marker = f"BEDSTONE_RUN={Path(run.run_dir).name}/".encode()
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    try:
                        assert marker not in (entry / "environ").read_bytes()
                    except OSError:
                        continue

    asyncio.run(check())


def test_postgres_and_its_backends_go_with_a_killed_supervisor_and_rows_stay(
    tmp_path: Path,
) -> None:
    async def check() -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        run = await start_supervisor(tmp_path / ".bedstone")
        acknowledged = 0
        engine = PostgresEngine(
            tmp_path / ".bedstone/postgres/main", Path(run.run_dir), tmp_path / "pg.log", port
        )
        async with SupervisorClient(run.socket) as client:
            info = await engine.start(client)
            connection = await engine.connect()
            await connection.execute("CREATE TABLE rows (number int)")
            for number in range(50):
                await connection.execute("INSERT INTO rows VALUES (%s)", (number,))
                acknowledged += 1
            server = identity(info.pid)
            backend = identity(connection.info.backend_pid)
            run.identity.send_signal(signal.SIGKILL)
            await until(lambda: not (server.alive() or backend.alive()), 5.0)
            await connection.close()
        run = await start_supervisor(tmp_path / ".bedstone")
        engine = PostgresEngine(engine.directory, Path(run.run_dir), engine.log, port)
        async with SupervisorClient(run.socket) as client:
            await engine.start(client)
            async with await engine.connect() as connection:
                row = await (await connection.execute("SELECT count(*) FROM rows")).fetchone()
                assert row is not None
                assert row[0] >= acknowledged
            await client.shutdown()

    asyncio.run(check())
