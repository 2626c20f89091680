"""Sandboxes in Python, over real boxes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from bedstone.boxes import Sandbox
from bedstone.errors import InvalidError, NotFoundError, UnavailableError
from bedstone.sandbox.box import Mount
from bedstone.sandbox.policy import Policy
from bedstone.testing.box_commands import box_place, fetched, need
from bedstone.testing.boxes import leftovers


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with box_place() as found:
        yield found


@pytest.mark.parametrize("isolation", ["container", "gvisor"])
def test_sandbox_in_python(isolation: str, place: Path) -> None:
    home = place / "boxes"

    async def work() -> str:
        mounts = [Mount(str(place / "root/etc"), "/outside")]
        async with Sandbox.create(
            str(place / "root"), isolation=isolation, home=home, mounts=mounts, env={"A": "1"}
        ) as box:
            result = await box.exec("sh", "-c", "cat; echo $A >&2; exit 4", stdin=b"x" * 200_000)
            assert (result.code, len(result.stdout), result.stderr) == (4, 200_000, b"1\n")
            found = await asyncio.gather(*(box.exec("echo", str(n)) for n in range(4)))
            assert [each.stdout for each in found] == [b"0\n", b"1\n", b"2\n", b"3\n"]
            with pytest.raises(TimeoutError):
                await box.exec("sleep", "30", timeout=0.3)
            assert (await box.exec("cat", "/outside/of-the-box")).stdout == b"yes\n"
            assert (await box.exec("true", stdin=b"x" * 1_000_000)).code == 0
            # More at once than there are threads, and each has more to say than a pipe holds.
            script = "head -c 200000 /dev/zero; head -c 100000 /dev/zero >&2; cat"
            many = await asyncio.gather(
                *(box.exec("sh", "-c", script, stdin=b"y" * 100_000) for _ in range(8))
            )
            assert {(len(each.stdout), len(each.stderr)) for each in many} == {(300_000, 100_000)}
            await box.write("/job/a file", b"\0data", mode=0o600)
            assert await box.read("/job/a file") == b"\0data"
            assert (await box.exec("stat", "-c", "%a %u", "/job/a file")).stdout == b"600 0\n"
            for path, kind in (("/job", InvalidError), ("/none", NotFoundError)):
                with pytest.raises(kind):
                    await box.read(path)
            with pytest.raises(NotFoundError):
                await box.write("/none/file", b"")
            async with box.exec_stream("sh", "-c", "read x; echo $x; read y; exit 5") as program:
                await program.write(b"hello\n")
                async for chunk in program:
                    assert (chunk.data, chunk.error) == (b"hello\n", False)
                    await program.close()
                assert await program.wait() == 5
            async with box.exec_stream("sh", "-c", "echo $$; exec sleep 60") as program:
                pid = (await anext(program)).data.decode().strip()
            assert (await box.exec("kill", "-0", pid)).code == 1  # it went with its block
            with pytest.raises(UnavailableError, match=f"{isolation} boxes cannot be forked"):
                await box.fork_many(2).__aenter__()
            return box.id

    need(isolation, place)
    assert not leftovers(home, asyncio.run(work()))


def test_a_sandbox_with_a_command_and_a_network_of_its_own(place: Path) -> None:
    async def work() -> None:
        async with Sandbox.create(
            str(place / "root"),
            command=(
                "sh",
                "-c",
                "mkdir /w; echo page >/w/index.html; httpd -p 80 -h /w; sleep 60; exit 7",
            ),
            ports=["80"],
            egress=["a.example"],
            home=place / "boxes",
        ) as box:
            await box.exec("sh", "-c", "until nc 127.0.0.1 80 </dev/null; do sleep 0.05; done")
            assert await asyncio.to_thread(fetched, box.ports[0].port) == b"page\n"
            script = "wget -q -O - http://b.example"
            assert b"403" in (await box.exec("sh", "-c", script)).stderr
            assert b"b.example:80 is not allowed" in b"".join([part async for part in box.logs()])
            await box.exec("killall", "sleep")
            assert await box.wait() == 7

    asyncio.run(work())


def test_copies_of_a_sandbox_go_on_where_it_is(place: Path) -> None:
    """Each with its own network, random numbers and files, and all of them go at the end."""

    async def work() -> list[str]:
        async with Sandbox.create(
            str(place / "root"),
            isolation="microvm",
            ports=["80"],
            egress=["a.example"],
            home=place / "boxes",
        ) as box:
            await box.write("/job/index.html", b"page\n")
            await box.exec("httpd", "-p", "80", "-h", "/job")
            async with box.fork_many(2) as (one, two):
                await one.write("/job/index.html", b"other\n")
                pages = [
                    await asyncio.to_thread(fetched, each.ports[0].port) for each in (box, one, two)
                ]
                assert pages == [b"page\n", b"other\n", b"page\n"]
                script = "head -c 8 /dev/urandom | md5sum; wget -q -O - http://b.example"
                found = await asyncio.gather(
                    *(each.exec("sh", "-c", script) for each in (box, one, two))
                )
                assert len({each.stdout for each in found}) == 3
                assert all(b"403" in each.stderr for each in found)
                return [box.id, one.id, two.id]

    need("microvm", place)
    for box in asyncio.run(work()):
        assert not leftovers(place / "boxes", box)
        assert not list(Path("/run/bedstone/boxes").glob(f"*-{box}"))


def test_a_sandbox_that_is_refused_leaves_nothing(place: Path) -> None:
    async def work() -> None:
        async with Sandbox.create(str(place / "root"), home=place / "boxes", policy=Policy()):
            raise AssertionError

    with pytest.raises(InvalidError, match="policy"):
        asyncio.run(work())
    assert not list((place / "boxes").glob("box-*"))
