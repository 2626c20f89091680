"""The supervisor with real processes: starting, ending, adopting, telling."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from bedstone.errors import ConflictError, InvalidError, NotFoundError
from bedstone.processes.client import (
    SupervisorClient,
)
from bedstone.processes.identity import ProcessIdentity
from bedstone.testing.processes import (
    end_of,
    gone,
    program,
    script,
    supervised,
    until,
    written,
)


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
