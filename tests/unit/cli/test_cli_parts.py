"""The command line's parts: ports, the watch for saves, words, one command at a time."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from contextlib import aclosing
from pathlib import Path

import pytest

from bedstone.cli.changing import directories, saves
from bedstone.cli.embedded import check_listen, ended, exclusive
from bedstone.cli.ports import check_gateway, port_owner
from bedstone.cli.ps import process_row
from bedstone.cli.request import load, request_of
from bedstone.cli.target import nearest
from bedstone.cli.terminal import Terminal, brief, clean, columns, seconds
from bedstone.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from bedstone.processes.spec import ProcessInfo

# Ports.


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0"])
def test_a_listener_is_found_even_if_it_would_share_its_port(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind((address, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConflictError) as caught:
            check_gateway(address, port)
        assert f"(pid {os.getpid()})" in caught.value.message
    check_gateway(address, port)
    assert port_owner(port) is None


def test_an_address_of_another_machine() -> None:
    with pytest.raises(InvalidError):
        check_gateway("192.0.2.1", 18089)  # TEST-NET-1, RFC 5737


def test_what_is_no_address_to_listen_on() -> None:
    assert check_listen("127.0.0.1:8443") == "127.0.0.1:8443"
    for text in ("8443", ":8443", "host:", "host:0", "host:70000", "host:https"):
        with pytest.raises(InvalidError):
            check_listen(text)


# Saves.


def test_only_directories_with_source_are_watched(tmp_path: Path) -> None:
    for name in ("a/b", ".bedstone/data", ".git/objects", "node_modules/x", "a/__pycache__"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "pyvenv.cfg").touch()
    assert directories(tmp_path) == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]


def test_a_save_is_noticed_also_in_a_new_directory_and_noise_is_not(tmp_path: Path) -> None:
    (tmp_path / ".bedstone").mkdir()
    manifest = tmp_path / "bedstone.yaml"
    manifest.touch()

    async def main() -> None:
        async with aclosing(saves(manifest)) as bursts:

            async def burst(patience: float) -> bool:
                try:
                    async with asyncio.timeout(patience):
                        await anext(bursts)
                except TimeoutError:
                    return False
                return True

            async def save(path: Path) -> None:
                await asyncio.sleep(0.3)
                path.parent.mkdir(exist_ok=True)
                path.write_text("x")

            for path in (manifest, tmp_path / "web.py", tmp_path / "new" / "a.py"):
                async with asyncio.TaskGroup() as group:
                    group.create_task(save(path))
                    assert await burst(10), path
            # The new directory is watched from here on.
            async with asyncio.TaskGroup() as group:
                group.create_task(save(tmp_path / "new" / "b.py"))
                assert await burst(10)

    asyncio.run(main())


def test_what_the_run_itself_writes_is_not_a_save(tmp_path: Path) -> None:
    manifest = tmp_path / "bedstone.yaml"
    manifest.touch()

    async def main() -> bool:
        async with aclosing(saves(manifest)) as bursts:

            async def noise() -> None:
                await asyncio.sleep(0.3)
                for name in ("bank.sqlite3", "run.log", ".#web.py", "x.pyc"):
                    (tmp_path / name).write_text("x")

            try:
                async with asyncio.timeout(1.0), asyncio.TaskGroup() as group:
                    group.create_task(noise())
                    await anext(bursts)
            except TimeoutError:
                return True
            return False

    assert asyncio.run(main())


# One command at a time.


def test_a_second_command_waits_for_the_first(tmp_path: Path) -> None:
    order: list[str] = []

    async def one(name: str, hold: float) -> None:
        async with exclusive(tmp_path / "state", lambda: order.append(f"{name} waits")):
            order.append(name)
            await asyncio.sleep(hold)
            order.append(f"{name} is done")

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(one("first", 0.2))
            await asyncio.sleep(0.05)
            group.create_task(one("second", 0))

    asyncio.run(main())
    assert order == ["first", "second waits", "first is done", "second", "second is done"]


# A server that ends.


def failed(exit_code: int | None = None, exit_signal: int | None = None) -> ProcessInfo:
    return ProcessInfo("server", "exited", "", pid=1, exit_code=exit_code, exit_signal=exit_signal)


def test_a_server_that_ends_is_explained_by_what_it_logged(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text('{"event": "older"}\n')
    offset = log.stat().st_size
    line = {"event": "cannot serve", "code": "conflict", "reason": "port taken", "hint": "free it"}
    log.write_text(log.read_text() + json.dumps(line) + "\n")
    error = ended(failed(exit_code=4), log, offset)
    assert isinstance(error, ConflictError)
    assert error.message == "the server does not start: port taken"
    assert error.hint == "free it"


def test_a_server_that_crashes_is_explained_without_its_traceback(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("Traceback (most recent call last):\n  File x\nTypeError: missing a thing\n")
    error = ended(failed(exit_code=1), log)
    assert isinstance(error, UnavailableError)
    assert error.message == (
        "the server does not start: exit status 1\n  TypeError: missing a thing"
    )
    assert str(log) in (error.hint or "")
    assert isinstance(ended(failed(exit_code=3), tmp_path / "none.log"), NotFoundError)
    assert "SIGKILL" in ended(failed(exit_signal=9), tmp_path / "none.log").message


# Words.


def test_durations_for_people() -> None:
    values = (-1, 0.04, 9.94, 10, 59.9, 60, 3599, 3600, 86399, 86400, 400000)
    assert [seconds(value) for value in values] == [
        *("0.0s", "0.0s", "9.9s", "10s", "59s", "1m00s", "59m59s", "1h00m", "23h59m"),
        *("1d00h", "4d15h"),
    ]


def test_several_lines_become_the_one_that_explains() -> None:
    assert brief("") == ""
    assert brief("exit status 1\n") == "exit status 1"
    assert brief("exit status 2\nstarting\nerror: no module x\nhint: y") == (
        "exit status 2: no module x"
    )
    assert brief("prepare failed: exit status 1\nno migration today") == (
        "prepare failed: exit status 1: no migration today"
    )
    assert brief("x" * 500) == "x" * 159 + "…"


def test_control_characters_are_removed_and_letters_are_kept() -> None:
    assert clean("a\x1b[31mb\r\n\x9bc\tä→") == "a[31mbc\tä→"


def test_columns_are_aligned_without_trailing_blanks() -> None:
    rows = [("A", "LONG", "C"), ("\x1b[32mready\x1b[0m", "x"), ("b", "", "z")]
    assert columns(rows) == ["A      LONG  C", "\x1b[32mready\x1b[0m  x", "b            z"]
    assert columns([]) == []


def test_a_long_wait_is_mentioned_less_and_less(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with Terminal().waiting("waiting for web") as waiting:
        for _ in range(100):
            now += 1.0
            waiting.tick()
    assert capsys.readouterr().out == "… waiting for web\n" * 4


def test_the_nearest_manifest_or_live_state_counts(tmp_path: Path) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert nearest(below) is None
    (tmp_path / ".bedstone").mkdir()
    assert nearest(below) is None, "an old state without a run and without a manifest is no app"
    (tmp_path / "bedstone.yaml").touch()
    assert nearest(below) == tmp_path
    (tmp_path / "a" / "bedstone.yaml").touch()
    assert nearest(below) == tmp_path / "a"


# Requests.


def test_a_databases_url_is_taken_from_the_environment_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bedstone.yaml").write_text(
        "app: bank\nworkloads: {web: {command: [web]}}\n"
        "databases: {ledger: {url: '${env.LEDGER_AT}'}}\n"
    )
    monkeypatch.setenv("LEDGER_AT", "postgres://db.example/bank")
    request = request_of(load(tmp_path))
    assert request.spec.databases["ledger"].url == "postgres://db.example/bank"


# What runs.


def test_a_process_that_keeps_ending_shows_how_it_ended() -> None:
    info = ProcessInfo("node", "running", "d", pid=7, restarts=4, previous="exit status 1")
    assert process_row(info)[2:] == ("4", "7", "-", "ended before: exit status 1")
    down = ProcessInfo("node", "exited", "d", restarts=4, exit_code=2, previous="exit status 1")
    assert process_row(down)[2:] == ("4", "-", "-", "exit status 2")
    assert process_row(ProcessInfo("node", "running", "d", pid=7))[-1] == ""
