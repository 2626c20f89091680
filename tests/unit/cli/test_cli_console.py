"""`open`, `scale`, `rollback`, `undo`, `changes`, and which port the console gets."""

from __future__ import annotations

import json
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bedstone.cli import open as opening
from bedstone.cli.embedded import check_console, console_port
from bedstone.errors import ConflictError, InvalidError, NotFoundError, UnavailableError
from bedstone.model.api import ApplyResult, Change
from bedstone.model.monitoring import ChangeList, ChangeRecord, ConsoleLink, ConsoleSignIn
from bedstone.testing.api import Answer, FakeApi, problem

Command = Callable[..., Any]
URL = "http://bedstone.localhost:24718/login#code=abc"
LINK = ConsoleLink(url=URL, role="operator", expires_at=1.0)
REPLICAS = Change(op="~", subject="workload web: replicas", before="1", after="4", effect="scales")
SCALED = ApplyResult(app="bank", generation=3, changes=(REPLICAS,), notes=("it stands",))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pages that a browser was asked to show."""
    shown: list[str] = []

    def launch(url: str, _: Path) -> bool:
        shown.append(url)
        return True

    monkeypatch.setattr(opening, "_launch", launch)
    return shown


def test_a_link_is_printed_alone_and_opened_where_there_is_a_screen(
    server: FakeApi, command: Command, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers["POST /v1/console/links"] = Answer(LINK)
    monkeypatch.setenv("DISPLAY", ":0")
    ended = command("open")
    assert (ended.status, ended.out) == (0, f"{URL}\n"), "a script can take it"
    assert "opened in the browser" in ended.err
    assert launched == [URL]
    assert server.asked[-1].body == {"role": "operator"}


@pytest.mark.parametrize("screen", [False, True])
def test_without_a_screen_or_where_none_is_wanted_nothing_is_opened(
    server: FakeApi,
    command: Command,
    launched: list[str],
    monkeypatch: pytest.MonkeyPatch,
    screen: bool,  # noqa: FBT001
) -> None:
    server.answers["POST /v1/console/links"] = Answer(LINK)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    options = []
    if screen:
        monkeypatch.setenv("DISPLAY", ":0")
        options = ["--no-browser"]
    ended = command("open", "--role", "reader", *options)
    assert ended.out == f"{URL}\n"
    assert "within two minutes" in ended.err
    assert launched == []
    assert server.asked[-1].body == {"role": "reader"}


def test_a_browser_s_command_line_has_no_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every user of the machine reads command lines, and could be faster than the browser."""
    shown: list[str] = []

    def browse(url: str) -> bool:
        shown.append(url)
        return True

    monkeypatch.setattr("webbrowser.open", browse)
    for code in ("abc", "def"):
        assert opening._launch(f"http://bedstone.localhost:1/login#code={code}", tmp_path)
        page = tmp_path / "open.html"
        assert shown.pop() == page.as_uri()
        assert stat.S_IMODE(page.stat().st_mode) == 0o600
        assert f'content="0; url=http://bedstone.localhost:1/login#code={code}"' in page.read_text()
    assert not opening._launch("http://b", tmp_path / "missing"), "the link is printed all the same"


def test_where_there_is_no_console_it_says_what_to_do(server: FakeApi, command: Command) -> None:
    server.answers["POST /v1/console/links"] = problem(
        ConflictError("this server serves no console", hint="`bedstone down`, then …")
    )
    ended = command("open")
    assert ended.status == 4
    assert "hint: `bedstone down`" in ended.err


def test_who_is_signed_in_is_shown_and_signed_out(server: FakeApi, command: Command) -> None:
    session = ConsoleSignIn(
        id="3fa9c2d1e0b4",
        who="console:ann",
        role="reader",
        created_at=1.0,
        seen_at=2.0,
        expires_at=3.0,
        agent="Firefox\x1b[31m",
    )
    server.answers["GET /v1/console/sessions"] = Answer([session])
    server.answers["DELETE /v1/console/sessions/3fa9c2d1e0b4"] = Answer({"deleted": "3fa"})
    ended = command("open", "--list")
    assert "console:ann" in ended.out
    assert "\x1b[31m" not in ended.out, "a browser's name does not paint the terminal"
    assert command("open", "--revoke", "3fa9c2d1e0b4").status == 0
    assert server.asked[-1].method == "DELETE"
    server.answers["GET /v1/console/sessions"] = Answer([])
    assert "nobody is signed in" in command("open", "--list").err
    assert command("open", "--list", "--revoke", "x").status == 2


def test_scaling_says_what_it_changed_and_how_long_it_stands(
    server: FakeApi, command: Command
) -> None:
    server.answers["POST /v1/apps/bank/workloads/web/scale"] = Answer(SCALED)
    ended = command("scale", "web", "4")
    assert ended.status == 0, ended.err
    assert "workload web: replicas: 1 → 4  (scales)" in ended.out + ended.err
    assert "note: it stands" in ended.out + ended.err
    assert server.asked[-1].body == {"replicas": 4}
    shown = json.loads(command("scale", "web", "4", "-o", "json").out)
    assert shown["notes"] == ["it stands"]
    assert command("scale", "web", "-1").status == 2
    assert command("scale", "web", "1001").status == 2


def test_rolling_back_and_undoing_ask_for_a_generation(server: FakeApi, command: Command) -> None:
    server.answers["POST /v1/apps/bank/workloads/web/rollback"] = Answer(SCALED)
    server.answers["POST /v1/apps/bank/undo"] = Answer(SCALED)
    assert command("rollback", "web").status == 0
    assert server.asked[-1].body == {"generation": None}
    assert command("rollback", "web", "--to", "7").status == 0
    assert server.asked[-1].body == {"generation": 7}
    assert command("undo", "12").status == 0
    assert server.asked[-1].body == {"generation": 12}
    server.answers["POST /v1/apps/bank/undo"] = problem(
        NotFoundError("generation 2 of app bank is not kept", hint="the last 100 are")
    )
    assert command("undo", "3").status == 3


def test_changes_are_shown_with_their_difference(server: FakeApi, command: Command) -> None:
    applied = ChangeRecord(
        at=1.0,
        who="local:ann",
        action="apply",
        target="app bank",
        detail="~ workload web: replicas",
        app="bank",
        generation=3,
        changes=(REPLICAS,),
        undo=True,
    )
    restart = ChangeRecord(at=0.5, who="console:bob", action="restart", target="bank/web")
    server.answers["GET /v1/changes"] = Answer(ChangeList(items=(applied, restart)))
    ended = command("changes", "--app", "bank", "--limit", "7")
    lines = ended.out.splitlines()
    assert "local:ann  apply app bank  → generation 3" in lines[0]
    assert "workload web: replicas: 1 → 4  (scales)" in lines[1]
    assert "console:bob  restart bank/web" in lines[2]
    assert server.asked[-1].query == {"limit": "7", "app": "bank"}
    server.answers["GET /v1/changes"] = Answer(ChangeList())
    assert "nothing was changed yet" in command("changes").err


# The port.


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path


def remember(state: Path, address: str | None) -> None:
    (state / "server.json").write_text(json.dumps({"console": address}))


def test_the_console_keeps_its_port(state: Path) -> None:
    first, moved = console_port(state, None, 8080)
    assert (first.isdigit(), moved) == (True, "")
    remember(state, f"127.0.0.1:{first}")
    assert console_port(state, None, 8080) == (first, "")


def test_a_port_that_was_taken_since_is_left_with_a_word(state: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        remember(state, f"127.0.0.1:{port}")
        found, moved = console_port(state, None, 8080)
        assert found != str(port)
        assert f"the console's port {port} is taken" in moved
        assert f"it moves to {found}" in moved


def test_a_port_that_was_asked_for_is_taken_or_refused(state: Path) -> None:
    remember(state, "127.0.0.1:20999")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(ConflictError, match="the console's port") as caught:
            console_port(state, port, 8080)
        assert "--console-port" in (caught.value.hint or "")
    assert console_port(state, port, 8080) == (port, "")
    assert console_port(state, "off", 8080) == ("off", "")
    found, _ = console_port(state, "0", 8080)
    assert found not in {"0", "20999"}


def test_the_gateway_s_port_is_the_gateway_s(state: Path) -> None:
    with pytest.raises(InvalidError, match="port 8080 is the gateway's"):
        console_port(state, "8080", 8080)
    remember(state, "127.0.0.1:8080")
    found, _ = console_port(state, None, 8080)
    assert found != "8080"


def test_what_is_no_port_is_refused() -> None:
    assert [check_console(text) for text in ("0", "8080", "off")] == ["0", "8080", "off"]
    for text in ("65536", "-1", "on", "127.0.0.1:1", ""):
        with pytest.raises(InvalidError, match="expected a port, 0 or off"):
            check_console(text)


def test_a_server_that_does_not_answer_is_told(server: FakeApi, command: Command) -> None:
    server.answers["POST /v1/console/links"] = problem(
        UnavailableError("the console cannot listen on 127.0.0.1:1: Address already in use")
    )
    ended = command("open")
    assert ended.status == 7
    assert "already in use" in ended.err
