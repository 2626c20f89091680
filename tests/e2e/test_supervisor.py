"""The supervisor with real processes: starting, ending, adopting, restarting, shutting down."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from bedstone.errors import ConflictError, InvalidError, NotFoundError, UnavailableError
from bedstone.processes.client import (
    RunInfo,
    SupervisorClient,
    cleanup_stale,
    start_supervisor,
)
from bedstone.processes.identity import ProcessIdentity
from bedstone.processes.spec import STAGE_NODE, STAGE_SERVER, Limits, Mount, ProcessSpec
from bedstone.processes.supervisor import FIRST_DELAY

ENV = {"PATH": os.environ["PATH"]}
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="namespaces and users need root: run the tests as root"
)


def program(name: str, *argv: str, **fields: object) -> ProcessSpec:
    return replace(ProcessSpec(name, argv, env=ENV), **fields)  # type: ignore[arg-type]


def script(name: str, text: str, **fields: object) -> ProcessSpec:
    return program(name, sys.executable, "-I", "-S", "-c", text, **fields)


@asynccontextmanager
async def supervised(
    folder: Path, *processes: ProcessSpec, detached: bool = False
) -> AsyncIterator[tuple[RunInfo, SupervisorClient]]:
    run = await start_supervisor(
        folder / ".bedstone", processes, detached=detached, log=folder / "supervisor.log"
    )
    try:
        async with SupervisorClient(run.socket) as client:
            yield run, client
    finally:
        run.identity.send_signal(signal.SIGTERM)
        await until(lambda: not run.alive())
        assert (folder / "supervisor.log").read_text() == ""


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found if isinstance(found, bool) else await found:
            return
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.01)


def written(path: Path) -> bool:
    return path.exists() and path.read_text().strip() != ""


def gone(process: ProcessIdentity) -> bool:
    return not process.alive()


async def end_of(client: SupervisorClient, name: str) -> str:
    async def ended() -> bool:
        return not (await client.get(name)).running

    await until(ended)
    return (await client.get(name)).ending()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"argv": ("/nonexistent/program",)}, "program not found: /nonexistent/program"),
        ({"argv": ("no-such-program",)}, "program not found: no-such-program"),
        ({"argv": ("/proc/version",)}, "program not executable by this user: /proc/version"),
        (
            {"argv": ("true",), "cwd": "/nonexistent"},
            "cannot enter the working directory /nonexistent: No such file or directory",
        ),
        (
            {"argv": ("true",), "stdout": "/nonexistent/log"},
            "cannot open the output /nonexistent/log: No such file or directory",
        ),
    ],
)
def test_what_cannot_start_says_why(
    tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    async def check() -> None:
        async with supervised(tmp_path) as (_, client):
            info = await client.spawn(program("x", "true", **fields))
            assert (info.state, info.message) == ("failed", message)
            assert info.lasting is ("output" not in message)
            assert (await client.get("x")).ending() == message

    asyncio.run(check())


def test_a_broken_interpreter_and_a_broken_binary_are_told_apart(tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    lost.write_text("#!/nonexistent/python\n")
    corrupt = tmp_path / "corrupt"
    corrupt.write_bytes(b"\x7fELF but no more")
    for path in (lost, corrupt):
        path.chmod(0o755)

    async def check() -> None:
        async with supervised(tmp_path) as (_, client):
            info = await client.spawn(program("lost", str(lost)))
            assert info.message == f"program {lost}: its interpreter was not found"
            info = await client.spawn(program("corrupt", str(corrupt)))
            assert info.message == f"not a program for this machine: {corrupt}"

    asyncio.run(check())


def test_requests_that_are_wrong_are_refused(tmp_path: Path) -> None:
    async def check() -> None:
        async with supervised(tmp_path) as (_, client):
            with pytest.raises(NotFoundError):
                await client.get("nobody")
            with pytest.raises(NotFoundError):
                await client.stop("nobody")
            with pytest.raises(InvalidError):
                await client._request("no-such-operation")
            with pytest.raises(InvalidError):
                await client._request("spawn", spec={"name": "x"})
            with pytest.raises(InvalidError):
                await client._request("netns_create", name="../x")
            await client.forget("nobody")

    asyncio.run(check())


def test_exit_codes_and_signals_are_kept_until_forgotten(tmp_path: Path) -> None:
    async def check() -> None:
        async with supervised(tmp_path) as (_, client):
            await client.spawn(program("three", "sh", "-c", "exit 3"))
            await client.spawn(program("killed", "sh", "-c", "kill -KILL $$"))
            assert await end_of(client, "three") == "exit status 3"
            assert await end_of(client, "killed") == "killed by SIGKILL"
            assert {info.name for info in await client.list()} == {"three", "killed"}
            await client.forget("three")
            assert {info.name for info in await client.list()} == {"killed"}
            with pytest.raises(ConflictError):
                await client.signal("killed", signal.SIGTERM)

    asyncio.run(check())


def test_asking_again_adopts_and_another_specification_conflicts(tmp_path: Path) -> None:
    async def check() -> None:
        spec = program("a", "sleep", "1000")
        async with supervised(tmp_path) as (run, client):
            first = await client.spawn(spec)
            async with SupervisorClient(run.socket) as another:
                assert (await another.spawn(spec)).pid == first.pid
                with pytest.raises(ConflictError):
                    await another.spawn(replace(spec, nice=1))
                with pytest.raises(ConflictError):
                    await another.forget("a")
            assert first.pid is not None
            assert ProcessIdentity(first.pid, first.start_time or 0, first.boot_id).alive(), (
                "nothing dies because a client goes"
            )
            await client.stop("a")
            second = await client.spawn(replace(spec, nice=1))
            assert second.running
            assert second.pid != first.pid

    asyncio.run(check())


def test_many_at_once_each_answered_once(tmp_path: Path) -> None:
    async def check() -> None:
        async with supervised(tmp_path) as (_, client):
            specs = [program(f"p{number}", "sh", "-c", f"exit {number}") for number in range(40)]
            async with asyncio.TaskGroup() as group:
                for spec in (*specs, program("bad", "/nonexistent")):
                    group.create_task(client.spawn(spec))
            for number in range(40):
                assert await end_of(client, f"p{number}") == f"exit status {number}"

    asyncio.run(check())


def test_stop_asks_then_kills_and_takes_what_was_left_behind(tmp_path: Path) -> None:
    async def check() -> None:
        async with supervised(tmp_path) as (_, client):
            await client.spawn(
                script(
                    "polite",
                    "import signal, sys, time\n"
                    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
                    "print('up', flush=True)\ntime.sleep(1000)",
                    stdout=str(tmp_path / "polite.log"),
                )
            )
            await until(lambda: (tmp_path / "polite.log").read_text() == "up\n")
            assert (await client.stop("polite")).exit_code == 7

            marker = tmp_path / "grandchild"
            text = (
                f"trap '' TERM; setsid sh -c 'echo $$ >{marker}; exec sleep 1000' & "
                "while true; do sleep 1; done"
            )
            await client.spawn(program("stubborn", "sh", "-c", text))
            await until(lambda: marker.exists() and marker.read_text() != "")
            grandchild = ProcessIdentity.of(int(marker.read_text()))
            assert grandchild is not None
            start = time.monotonic()
            assert (await client.stop("stubborn", grace=0.2)).exit_signal == signal.SIGKILL
            assert time.monotonic() - start > 0.15
            await until(lambda: not grandchild.alive())

    asyncio.run(check())


def test_what_a_crashed_process_left_behind_is_ended_but_not_a_living_ones(tmp_path: Path) -> None:
    async def check() -> None:
        async with supervised(tmp_path) as (run, client):
            for name, rest in (("crashed", "exit 1"), ("alive", "sleep 1000")):
                daemon = f"(setsid sh -c 'echo $$ >{tmp_path / name}; exec sleep 1000' &)"
                await client.spawn(program(name, "sh", "-c", f"{daemon}; sleep 0.3; {rest}"))
                await until(partial(written, tmp_path / name))
            strays = {
                name: ProcessIdentity.of(int((tmp_path / name).read_text()))
                for name in ("crashed", "alive")
            }
            assert await end_of(client, "crashed") == "exit status 1"
            crashed, alive = strays["crashed"], strays["alive"]
            assert alive is not None
            if crashed is not None:
                await until(partial(gone, crashed))
            assert alive.alive()
            await client.shutdown()
            assert not alive.alive()
            assert not Path(run.run_dir).exists()

    asyncio.run(check())


def test_a_watch_begins_with_what_is_and_misses_nothing(tmp_path: Path) -> None:
    async def check() -> None:
        async with supervised(tmp_path) as (_, client):
            await client.spawn(program("before", "sleep", "1000"))
            events = client.watch()
            first = await anext(events)
            assert (first.kind, first.process and first.process.name) == ("current", "before")
            assert (await anext(events)).kind == "synced"
            await client.spawn(program("after", "sh", "-c", "exit 4"))
            await client.spawn(program("bad", "/nonexistent"))
            seen: dict[tuple[str, str], int | None] = {}
            while len(seen) < 3:
                event = await anext(events)
                if event.process and event.process.name != "before":
                    seen[event.process.name, event.kind] = event.process.exit_code
            assert seen[("after", "exited")] == 4
            assert ("after", "started") in seen
            assert ("bad", "failed") in seen
            await events.aclose()

    asyncio.run(check())


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


def test_output_is_appended_and_the_environment_is_complete(tmp_path: Path) -> None:
    async def check() -> None:
        log = tmp_path / "log"
        log.write_text("before\n")
        spec = script(
            "x",
            "import os, sys\n"
            "print(sorted(os.environ), os.getcwd(), sorted(os.listdir('/proc/self/fd')))\n"
            "print('problem', file=sys.stderr)",
            cwd=str(tmp_path),
            stdout=str(log),
        )
        async with supervised(tmp_path) as (_, client):
            await client.spawn(spec)
            assert await end_of(client, "x") == "exit status 0"
        lines = log.read_text().splitlines()
        assert lines[0] == "before"
        assert "problem" in lines
        names = "['BEDSTONE_PROCESS', 'BEDSTONE_RUN', 'LC_CTYPE', 'PATH']"
        # The fourth descriptor is the listing's own.
        assert f"{names} {tmp_path.resolve()} ['0', '1', '2', '3']" in lines

    asyncio.run(check())


def test_limits_take_effect_or_are_said_not_to(tmp_path: Path) -> None:
    async def check() -> None:
        spec = script(
            "hungry",
            "import resource\n"
            "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], flush=True)\n"
            "data = bytearray(400 << 20)\n"
            "for at in range(0, len(data), 4096): data[at] = 1\n",
            stdout=str(tmp_path / "log"),
            limits=Limits(open_files=64, memory=128 << 20, cpu=0.5),
        )
        async with supervised(tmp_path) as (_, client):
            info = await client.spawn(spec)
            assert any("memory limit by" in text for text in info.applied)
            assert any(text.startswith("cpu limit") for text in info.applied)
            assert await end_of(client, "hungry") != "exit status 0"
        assert (tmp_path / "log").read_text().startswith("64\n")

    asyncio.run(check())


@needs_root
def test_as_root_a_process_gets_its_own_user_network_and_mounts(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "file").write_text("reached\n")

    async def check() -> None:
        async with supervised(tmp_path) as (run, client):
            path = await client.create_netns("inner")
            assert await client.create_netns("inner") == path
            target = f"{run.run_dir}/inside"
            text = (
                "id -u; id -g; id -G; grep -c : /proc/net/dev; grep NoNewPrivs /proc/self/status;"
                f"cat {target}/file; touch {target}/other"
            )
            spec = program(
                "isolated",
                *("sh", "-c", text),
                stdout=str(tmp_path / "log"),
                uid=61234,
                netns=str(path),
                mounts=(Mount(str(closed), target, readonly=True),),
            )
            closed.chmod(0o755)  # the mount's own root must be open; its parents need not
            info = await client.spawn(spec)
            assert info.applied == ("uid 61234", "own network namespace", "own mount namespace")
            assert await end_of(client, "isolated") == "exit status 1"
            *lines, refusal = (tmp_path / "log").read_text().splitlines()
            assert lines == ["61234", "61234", "61234", "1", "NoNewPrivs:\t1", "reached"]
            assert "Read-only file system" in refusal
            assert target not in Path("/proc/self/mountinfo").read_text()
            await client.delete_netns("inner")
            await client.delete_netns("inner")
            assert not path.exists()
            await client.create_netns("left")
            await client.shutdown()
            assert run.run_dir not in Path("/proc/self/mountinfo").read_text()
            assert not Path(run.run_dir).exists()

    asyncio.run(check())


@pytest.mark.skipif(os.geteuid() == 0, reason="shows what is said without root: run as a user")
def test_without_root_a_namespace_is_refused_with_the_fix(tmp_path: Path) -> None:
    async def check() -> None:
        async with supervised(tmp_path) as (_, client):
            with pytest.raises(UnavailableError) as caught:
                await client.create_netns("inner")
            assert "run as root" in (caught.value.hint or "")

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


def test_a_process_over_its_memory_limit_says_so(tmp_path: Path) -> None:
    async def check() -> None:
        async with supervised(tmp_path) as (_, client):
            limits = Limits(memory=64 << 20)
            text = "import time; time.sleep(0.1); x = b'x' * (256 << 20); time.sleep(60)"
            info = await client.spawn(script("hungry", text, limits=limits))
            if "memory limit by control group" not in info.applied:
                pytest.skip("needs a writable memory control group: run the tests as root")

            async def ended() -> bool:
                return not (await client.get("hungry")).running

            await until(ended)
            ending = (await client.get("hungry")).ending()
            assert ending == "killed by SIGKILL: it used more than its memory limit of 64 MiB"

    asyncio.run(check())
