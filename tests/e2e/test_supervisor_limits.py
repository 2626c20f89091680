"""The supervisor with real processes: what each may have, and what it is given of its own."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from bedstone.errors import UnavailableError
from bedstone.processes.spec import Limits, Mount
from bedstone.testing.processes import (
    end_of,
    program,
    script,
    supervised,
    until,
)

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="namespaces and users need root: run the tests as root"
)


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
