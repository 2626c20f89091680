"""The agent as an ordinary process, by the protocol that guests speak: no virtual machine."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from bedstone.errors import DeniedError, Error, InvalidError, NotFoundError, UnavailableError
from bedstone.sandbox.microvm import archive, guest, wire
from bedstone.sandbox.microvm.agent import STDERR, STDOUT, Agent, Program
from bedstone.sandbox.microvm.wire import Kind
from bedstone.sandbox.policy import ANY_USER, Policy

ENV = {"PATH": os.environ["PATH"]}
OPEN = Policy(
    programs=("*",),
    exec=True,
    env=("*",),
    users=(ANY_USER,),
    tty=True,
    copy_in=("/",),
    copy_out=("/",),
)

Run = Callable[..., Any]


class Guest:
    """An agent's process, and a way to run something against it."""

    def __init__(self, folder: Path, policy: Policy | None) -> None:
        self.socket = folder / "agent.sock"
        config = folder / "config.json"
        value = {"version": 1, "policy": None if policy is None else policy.to_json()}
        config.write_text(json.dumps(value))
        argv = [str(guest.find_agent()), "--listen", str(self.socket), "--config", str(config)]
        self.process = subprocess.Popen(argv, stderr=subprocess.PIPE)

    def run(self, use: Callable[[Agent], Coroutine[Any, Any, Any]]) -> Any:
        async def connected() -> Any:
            async with asyncio.timeout(20), await Agent.connect(self.socket, 5) as agent:
                return await use(agent)

        return asyncio.run(connected())

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Policy | None], Guest]]:
    try:
        guest.find_agent()
    except UnavailableError as error:
        pytest.skip(f"{error.message}; {error.hint}")
    guests: list[Guest] = []

    def started(policy: Policy | None = OPEN) -> Guest:
        folder = tmp_path / str(len(guests))
        folder.mkdir()
        guests.append(Guest(folder, policy))
        return guests[-1]

    yield started
    for each in guests:
        each.close()


async def output(program: Program) -> dict[int, bytes]:
    parts = {STDOUT: b"", STDERR: b""}
    while (item := await program.read()) is not None:
        parts[item[0]] += item[1]
    return parts


def test_output_and_status_of_a_program(start: Run) -> None:
    async def use(agent: Agent) -> None:
        argv = ["sh", "-c", "echo out; echo err >&2; pwd; printenv X; exit 7"]
        program = await agent.exec(argv, env={**ENV, "X": "é\n"}, cwd="/tmp")
        assert await output(program) == {STDOUT: "out\n/tmp\né\n\n".encode(), STDERR: b"err\n"}
        assert await program.wait() == 7
        program = await agent.exec(["sh", "-c", "kill -SEGV $$"], env=ENV)
        assert await program.wait() == 128 + signal.SIGSEGV

    start().run(use)


def test_much_in_both_directions_is_neither_lost_nor_kept(start: Run) -> None:
    """A program that nobody reads from waits, instead of filling the agent's memory."""
    each = start()

    async def use(agent: Agent) -> None:
        data = os.urandom(1 << 20) * 8
        program = await agent.exec(["cat"], env=ENV, stdin=True)

        async def feed() -> None:
            await program.write(data)
            await program.write(b"")

        feeding = asyncio.ensure_future(feed())
        await asyncio.sleep(0.3)
        assert not feeding.done()
        memory = Path(f"/proc/{each.process.pid}/smaps_rollup").read_text()
        anonymous = next(line for line in memory.splitlines() if line.startswith("Anonymous"))
        assert int(anonymous.split()[1]) < 1024
        assert (await output(program))[STDOUT] == data
        await feeding
        assert await program.wait() == 0

    each.run(use)


def test_the_last_of_an_output_needs_no_other_event(
    start: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a grant lets a program that has ended say is sent at once, and its end."""

    async def use(agent: Agent) -> None:
        link = agent._link
        grant = link.send_window
        monkeypatch.setattr(link, "send_window", lambda *_: None)
        size = wire.WINDOW + 50_000
        program = await agent.exec(["head", "-c", str(size), "/dev/zero"], env=ENV)
        seen = 0
        while seen < wire.WINDOW:
            item = await program.read()
            assert item is not None
            seen += len(item[1])
        async with asyncio.timeout(5):
            while (await agent.request("programs"))["programs"]:  # noqa: ASYNC110 - it is remote
                await asyncio.sleep(0.01)
        grant(program._stream.number, STDOUT, 100_000)
        assert sum([len(data) async for data in rest(program)]) == 50_000

    async def rest(program: Program) -> AsyncIterator[bytes]:
        while (item := await asyncio.wait_for(program.read(), 5)) is not None:
            yield item[1]

    start(OPEN).run(use)


def test_a_terminal_with_its_size_and_the_end_of_its_input(start: Run) -> None:
    async def use(agent: Agent) -> None:
        argv = ["sh", "-c", "stty -echo; tty; stty size; read x; stty size; echo $x; cat"]
        program = await agent.exec(argv, env=ENV, tty=True, size=(7, 9), stdin=True)
        lines = b""
        while b"7 9" not in lines:
            item = await program.read()
            assert item is not None
            lines += item[1]
        await program.resize(30, 100)
        await program.write(b"hello\n")
        await program.write(b"")
        lines += (await output(program))[STDOUT]
        assert b"/dev/pts/" in lines
        assert lines.endswith(b"30 100\r\nhello\r\n")
        assert await program.wait() == 0

    start().run(use)


def test_signals_reach_the_group_and_no_stranger(start: Run) -> None:
    async def use(agent: Agent) -> None:
        program = await agent.exec(["sh", "-c", "sleep 60; true"], env=ENV)
        await program.signal(signal.SIGTERM)
        assert await program.wait() == 128 + signal.SIGTERM
        await program.signal(signal.SIGTERM)  # it has ended
        with pytest.raises(NotFoundError):
            await agent.request("signal", pid=os.getpid(), signal=0)

    start().run(use)


def test_a_grandchild_that_holds_the_output_is_not_waited_for(start: Run) -> None:
    async def use(agent: Agent) -> None:
        program = await agent.exec(["sh", "-c", "echo one; sleep 30 & exit 3"], env=ENV)
        assert (await output(program))[STDOUT] == b"one\n"
        assert await program.wait() == 3

    start().run(use)


def test_what_a_connection_started_ends_with_it(start: Run) -> None:
    each = start()

    async def leave(agent: Agent) -> int:
        return (await agent.exec(["sleep", "60"], env=ENV)).pid

    pid = each.run(leave)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)

    async def none_left(agent: Agent) -> Any:
        return await agent.request("programs")

    assert each.run(none_left) == {"programs": []}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may reseed the kernel")
def test_a_paused_command_waits_for_a_host_to_adopt_it(start: Run) -> None:
    """As in a copy of a guest, whose connections are none. Its output goes on; others end."""
    guest = start(OPEN)

    async def leave(agent: Agent) -> tuple[int, int]:
        other = await agent.exec(["sleep", "60"], env=ENV)
        script = "echo one; read a; echo got $a; exit 5"
        main = await agent.exec(["sh", "-c", script], env=ENV, stdin=True, main=True)
        assert await main.read() == (STDOUT, b"one\n")
        with pytest.raises(NotFoundError):
            await agent.adopt()
        await agent.request("pause")
        return main.pid, other.pid

    pid, other = guest.run(leave)

    async def adopt(agent: Agent) -> None:
        program = await agent.adopt()
        assert program.pid == pid
        await agent.request("resume", nanoseconds=time.time_ns(), entropy="ab" * 32)
        assert (await agent.request("wait", pid=other))["exit"] > 128
        await program.write(b"x\n")
        assert (await output(program))[STDOUT] == b"got x\n"
        assert await program.wait() == 5

    guest.run(adopt)


def test_another_connection_waits_for_a_program(start: Run) -> None:
    each = start()

    async def use(agent: Agent) -> None:
        program = await agent.exec(["sh", "-c", "read x; exit 9"], env=ENV, stdin=True)
        async with await Agent.connect(each.socket, 5) as other:
            waiting = asyncio.ensure_future(other.request("wait", pid=program.pid))
            await asyncio.sleep(0.05)
            await program.write(b"\n")
            assert await waiting == {"exit": 9}
            assert await other.request("wait", pid=program.pid) == {"exit": 9}

    each.run(use)


def test_what_cannot_be_started_says_why(start: Run) -> None:
    async def use(agent: Agent) -> None:
        with pytest.raises(NotFoundError, match="nonexistent"):
            await agent.exec(["/nonexistent"], env=ENV)
        with pytest.raises(NotFoundError):
            await agent.exec(["sh"], env=ENV, cwd="/nonexistent")
        with pytest.raises(InvalidError, match="argv"):
            await agent.exec([], env=ENV)
        with pytest.raises(InvalidError, match="op"):
            await agent.request("reboot")
        with pytest.raises(InvalidError, match="sinal"):
            await agent.request("stats", sinal=9)
        with pytest.raises(DeniedError):
            await agent.request("clock", nanoseconds=0)

    start().run(use)


@pytest.mark.parametrize(
    ("policy", "field", "change"),
    [
        (None, "exec", {}),
        (Policy(), "exec", {}),
        (Policy(exec=True), "programs", {}),
        (Policy(exec=True, programs=("/bin/sh",)), "programs", {}),
        (Policy(exec=True, programs=("true",)), "env", {}),
        (Policy(exec=True, programs=("true",), env=("PATH",)), "users", {}),
        (Policy(exec=True, programs=("*",), env=("*",), users=(0,)), "users", {"user": 5}),
        (Policy(exec=True, programs=("*",), env=("*",), users=(0,)), "tty", {"tty": True}),
        (
            Policy(exec=True, programs=("*",), env=("*",), users=(0,)),
            "capabilities",
            {"capabilities": ["CAP_SYS_ADMIN"]},
        ),
    ],
)
def test_the_guest_denies_by_the_field_that_failed(
    start: Run, policy: Policy | None, field: str, change: dict[str, Any]
) -> None:
    async def use(agent: Agent) -> None:
        with pytest.raises(DeniedError, match=f"`{field}`"):
            await agent.exec(["true"], env=ENV, **change)

    start(policy).run(use)


async def parts(data: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), 10_000):
        yield data[begin : begin + 10_000]


def test_files_go_in_and_come_out_as_they_were(start: Run, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep/er").mkdir(parents=True)
    (source / "deep/er/big").write_bytes(os.urandom(1 << 20))
    (source / "deep/empty").touch(mode=0o600)
    (source / "link").symlink_to("deep/er")
    os.link(source / "deep/er/big", source / "same")
    target = tmp_path / "target"
    target.mkdir()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(source, "copy")

    async def use(agent: Agent) -> bytes:
        await agent.put(str(target), archive.to_records(parts(out.getvalue())))
        stream = archive.to_tar(agent.get(str(target / "copy")))
        return b"".join([part async for part in stream])

    back = start().run(use)
    compared = subprocess.run(
        ["diff", "-r", "--no-dereference", source, target / "copy"], check=False
    )
    assert compared.returncode == 0
    assert (target / "copy/same").stat().st_ino == (target / "copy/deep/er/big").stat().st_ino
    assert (target / "copy/deep/empty").stat().st_mode & 0o777 == 0o600
    with tarfile.open(fileobj=io.BytesIO(back)) as tar:
        assert sorted(tar.getnames()) == sorted(
            f"copy{name}"
            for name in ("", "/deep", "/deep/er", "/deep/er/big", "/deep/empty", "/link", "/same")
        )


def test_no_link_in_the_way_leads_a_copy_elsewhere(start: Run, tmp_path: Path) -> None:
    """Neither one that is there before, nor one that the archive itself makes."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (inside / "there").symlink_to(outside)
    (inside / "file").symlink_to(outside / "file")
    each = start(Policy(copy_in=(str(inside),), copy_out=(str(inside),)))

    def tar_of(*members: tuple[str, str]) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for name, link in members:
                info = tarfile.TarInfo(name)
                info.uid, info.gid = os.getuid(), os.getgid()
                if link:
                    info.type, info.linkname = tarfile.SYMTYPE, link
                tar.addfile(info)
        return out.getvalue()

    async def use(agent: Agent) -> None:
        for members in (
            [("there/x", "")],
            [("new", str(outside)), ("new/x", "")],
            [("up", ".."), ("up/outside/x", "")],
        ):
            with pytest.raises(Error):
                await agent.put(str(inside), archive.to_records(parts(tar_of(*members))))
        await agent.put(str(inside), archive.to_records(parts(tar_of(("file", "")))))
        with pytest.raises(DeniedError, match="copy_in"):
            await agent.put(str(inside / "there"), archive.to_records(parts(tar_of(("x", "")))))
        for path in (inside / "there/..", outside, inside / "../outside"):
            with pytest.raises(Error):
                async for _ in agent.get(str(path)):
                    pass

    each.run(use)
    assert list(outside.iterdir()) == []
    assert not (inside / "file").is_symlink()


@pytest.mark.parametrize(
    "data",
    [
        wire.encode(Kind.REQUEST, 1, b'{"op":"stats"}'),  # no greeting
        b"\xff" * 64,
        wire.encode(Kind.HELLO, 1, b"n" * 65),
        wire.encode(Kind.HELLO, 1, b"n") + wire.encode(Kind.RESULT, 1, b"{}"),
        wire.encode(Kind.HELLO, 1, b"n") + wire.encode(Kind.DATA, 1, b""),
        wire.encode(Kind.HELLO, 1, b"n") + wire.encode(Kind.WINDOW, 1, b"\0"),
    ],
)
def test_who_does_not_speak_the_protocol_is_cut_off(start: Run, data: bytes) -> None:
    each = start()
    each.run(lambda agent: agent.request("stats"))
    with socket.socket(socket.AF_UNIX) as rude:
        rude.settimeout(5)
        rude.connect(str(each.socket))
        rude.sendall(data)
        while rude.recv(4096):
            pass
    each.run(lambda agent: agent.request("stats"))


def test_random_frames_never_stop_the_agent(start: Run) -> None:
    each = start(Policy())
    each.run(lambda agent: agent.request("stats"))
    random = __import__("random").Random(1)
    requests = [b'{"op":"exec","argv":["x"]}', b'{"op":"put","path":"/"}', b"{", b'{"op":1}', b""]
    for _ in range(60):
        with socket.socket(socket.AF_UNIX) as rude:
            rude.connect(str(each.socket))
            data = wire.encode(Kind.HELLO, 1, b"n")
            for _ in range(20):
                payload = random.choice([*requests, random.randbytes(random.randrange(40))])
                data += wire.encode(random.choice(list(Kind)), random.randrange(3), payload)
            try:
                rude.sendall(data)
            except ConnectionError:
                continue  # it has hung up already
    each.run(lambda agent: agent.request("stats"))
    assert each.process.poll() is None


def test_shutdown_ends_programs_and_the_agent(start: Run) -> None:
    each = start()

    async def use(agent: Agent) -> None:
        deaf = await agent.exec(["sh", "-c", "trap '' TERM; echo; sleep 60"], env=ENV)
        await deaf.read()
        await agent.request("shutdown", grace_milliseconds=100)
        assert await asyncio.wait_for(deaf.wait(), 5) == 128 + signal.SIGKILL

    each.run(use)
    assert each.process.wait(5) == 0
