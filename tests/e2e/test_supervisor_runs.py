"""The supervisor with real processes: restarts, the order of a shutdown, who outlives whom."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from bedstone.errors import ConflictError, UnavailableError
from bedstone.processes.client import (
    SupervisorClient,
    cleanup_stale,
    start_supervisor,
)
from bedstone.processes.identity import ProcessIdentity
from bedstone.processes.spec import STAGE_NODE, STAGE_SERVER, ProcessSpec
from bedstone.processes.supervisor import FIRST_DELAY
from bedstone.testing.processes import (
    ENV,
    end_of,
    gone,
    program,
    script,
    supervised,
    until,
)


def test_what_must_live_is_restarted_fast_then_slower(tmp_path: Path) -> None:
    log = tmp_path / "starts"

    async def check() -> None:
        keep = program("node", "sleep", "1000", restart="always", stage=STAGE_NODE)
        crashing = script(
            "crashing",
            f"import time\nopen({str(log)!r}, 'a').write(f'{{time.time()}}\\n')\n"
            "raise SystemExit(1)",
            restart="always",
        )
        async with supervised(tmp_path, keep, crashing) as (_, client):
            first = await client.get("node")
            os.kill(first.pid or 0, signal.SIGKILL)

            async def back() -> bool:
                now = await client.get("node")
                return now.running and now.pid != first.pid

            await until(back)
            assert (await client.get("node")).restarts == 1
            assert (await client.get("node")).previous == "killed by SIGKILL"
            assert (await client.get("crashing")).previous in (None, "exit status 1")
            await until(lambda: len(log.read_text().splitlines()) >= 6, 20)
            times = [float(line) for line in log.read_text().splitlines()]
            assert times[5] - times[0] > 10 * FIRST_DELAY, "5 of them, if back-off did not grow"
            with pytest.raises(ConflictError):
                await client.forget("node")
            await client.stop("node")
            await asyncio.sleep(0.3)
            assert not (await client.get("node")).running, "what was stopped stays so"

    asyncio.run(check())


def test_shutdown_goes_stage_by_stage_and_leaves_nothing(tmp_path: Path) -> None:
    order = tmp_path / "order"

    def stage(name: str, number: int) -> ProcessSpec:
        end = f"trap 'sleep 0.1; echo {name} >>{order}; exit 0' TERM; echo >>{order}.up"
        wait = "while true; do sleep 0.01; done"
        return program(name, "sh", "-c", f"{end}; {wait}", stage=number)

    async def check() -> None:
        server = replace(stage("server", STAGE_SERVER), restart="always")
        async with supervised(tmp_path, server) as (run, client):
            await client.spawn(stage("database", 3))
            await client.spawn(stage("node", 0))
            await client.spawn(stage("instance", 1))
            ready = Path(f"{order}.up")
            await until(lambda: ready.exists() and len(ready.read_text()) == 4)
            await client.shutdown()
            assert order.read_text().split() == ["node", "instance", "database", "server"]
            assert not Path(run.run_dir).exists()
            assert not (tmp_path / ".bedstone/run.json").exists()
            with pytest.raises(UnavailableError):
                await client.ping()
            with pytest.raises(UnavailableError):
                await SupervisorClient(run.socket).connect()

    asyncio.run(check())


def test_one_supervisor_a_state_and_the_live_one_is_found(tmp_path: Path) -> None:
    async def check() -> None:
        async with supervised(tmp_path) as (run, client):
            with pytest.raises(ConflictError):
                await start_supervisor(tmp_path / ".bedstone")
            assert cleanup_stale(tmp_path / ".bedstone") == run
            assert await client.ping() == run.run_id
            assert oct(Path(run.socket).stat().st_mode & 0o777) == "0o600"
            left = [path.name for path in (tmp_path / ".bedstone").iterdir()]
            assert sorted(left) == ["run.json", "supervisor.lock"], "no configuration is left"
        assert cleanup_stale(tmp_path / ".bedstone") is None

    asyncio.run(check())


def test_a_foreground_run_ends_in_good_order_with_its_starter(tmp_path: Path) -> None:
    text = (
        "import asyncio, os, signal, sys\nfrom pathlib import Path\n"
        "from bedstone.processes.client import start_supervisor\n"
        "from bedstone.processes.spec import ProcessSpec\n"
        "end = 'trap \"echo ended >' + sys.argv[1] + '/order; exit\" TERM; echo >' + sys.argv[1]"
        " + '/up; while true; do sleep 0.01; done'\n"
        "spec = ProcessSpec('a', ('sh', '-c', end), env={'PATH': os.environ['PATH']})\n"
        "run = asyncio.run(start_supervisor(Path(sys.argv[1], '.bedstone'), [spec]))\n"
        "print(run.pid, run.run_dir, flush=True)\nsignal.pause()\n"
    )

    async def check() -> None:
        starter = await asyncio.create_subprocess_exec(
            sys.executable, "-c", text, str(tmp_path), stdout=asyncio.subprocess.PIPE
        )
        assert starter.stdout is not None
        pid, run_dir = (await starter.stdout.readline()).decode().split()
        supervisor = ProcessIdentity.of(int(pid))
        assert supervisor is not None
        await until((tmp_path / "up").exists)
        starter.kill()
        await starter.wait()
        await until(partial(gone, supervisor))
        assert (tmp_path / "order").read_text() == "ended\n"
        assert not Path(run_dir).exists()

    asyncio.run(check())


def test_a_detached_run_outlives_its_starter(tmp_path: Path) -> None:
    text = (
        "import asyncio, sys\nfrom pathlib import Path\n"
        "from bedstone.processes.client import start_supervisor\n"
        "asyncio.run(start_supervisor(Path(sys.argv[1], '.bedstone'), detached=True))\n"
    )

    async def check() -> None:
        starter = await asyncio.create_subprocess_exec(sys.executable, "-c", text, str(tmp_path))
        assert await starter.wait() == 0
        run = cleanup_stale(tmp_path / ".bedstone")
        assert run is not None
        await asyncio.sleep(0.2)
        async with SupervisorClient(run.socket) as client:
            assert await client.ping() == run.run_id
            await client.shutdown()
        await until(lambda: not run.alive())

    asyncio.run(check())


def test_a_client_that_talks_nonsense_or_never_reads_harms_nobody(tmp_path: Path) -> None:
    async def check() -> None:
        async with supervised(tmp_path) as (run, client):
            for nonsense in (b"hello\n", b"[]\n", b'{"id": "x"}\n', b"{" * (5 << 20)):
                reader, writer = await asyncio.open_unix_connection(run.socket)
                with suppress(ConnectionError):
                    writer.write(nonsense)
                    await writer.drain()
                    assert await reader.read() == b"", "the supervisor hangs up"
                writer.close()
            deaf, writer = await asyncio.open_unix_connection(run.socket, limit=1)
            writer.write(b'{"id": 1, "op": "watch"}\n')
            big = program("big", "true", env={**ENV, "X": "y" * 100_000})
            for _ in range(30):
                await client.spawn(big)
                await end_of(client, "big")
            assert (await client.get("big")).exit_code == 0
            assert "y" * 100 not in repr(await client.list()), "no environment is told"
            writer.close()
            del deaf

    asyncio.run(check())


def test_a_stopped_process_is_stopped_all_the_same(tmp_path: Path) -> None:
    async def check() -> None:
        async with supervised(tmp_path) as (_, client):
            await client.spawn(program("frozen", "sleep", "1000"))
            await client.signal("frozen", signal.SIGSTOP)
            start = time.monotonic()
            assert (await client.stop("frozen", grace=20)).exit_signal == signal.SIGTERM
            assert time.monotonic() - start < 15, "long before it is killed"

    asyncio.run(check())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has what works for others; run as root")
def test_what_works_for_others_too_outlives_the_run(tmp_path: Path) -> None:
    """A daemon that says so is left to them; one that does not say so ends with the run."""
    start = (
        "import os, subprocess, sys\n"
        "kept = {k: v for k, v in os.environ.items() if not k.startswith('BEDSTONE_')}\n"
        "for name, more in (('shared', {'BEDSTONE_SHARED': '1'}), ('own', {})):\n"
        "    child = subprocess.Popen(['sleep', '1000'], env=kept | more, start_new_session=True)\n"
        f"    open({str(tmp_path)!r} + '/' + name, 'w').write(str(child.pid))\n"
    )

    async def check() -> None:
        async with supervised(tmp_path / "state", script("starter", start)) as (_, client):
            await until(lambda: any(file.read_text() for file in tmp_path.glob("own")))
            await client.shutdown()

    asyncio.run(check())
    shared, own = (int((tmp_path / name).read_text()) for name in ("shared", "own"))
    try:
        assert not Path(f"/proc/{own}").exists()
        assert Path(f"/proc/{shared}").exists()
    finally:
        with suppress(ProcessLookupError):
            os.kill(shared, signal.SIGKILL)
