"""Commands of the server: whoever asked is answered, whatever happens."""

import asyncio
import base64
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from bedstone.errors import NotFoundError
from bedstone.model.messages import Command, FromNode, Reply
from bedstone.node.commands import Commands
from bedstone.node.config import NodeConfig
from bedstone.node.tap import Taps
from bedstone.node.tasks import Tasks
from bedstone.telemetry.frames import Frame, Series, decode
from bedstone.telemetry.requests import Hop, ProxyRequest


class OneDatabase:
    """A node with one database, used by the operator."""

    def operator_url(self, path: str, user: str) -> str:
        if (path, user) != ("a/default/ledger", "operator"):
            raise NotFoundError(f"database {path} of {user} is not on node n")
        return "postgresql://operator@127.0.0.1/ledger"


class Shares:
    """Notes what it is told to keep to."""

    def __init__(self) -> None:
        self.fixed: list[float | None] = []

    def fix(self, value: float | None) -> None:
        self.fixed.append(value)


SHARES = Shares()
TAPPED: list[float] = []
TAPS = Taps("n", TAPPED.append)
REQUEST = ProxyRequest(
    Hop("gateway", "a", "default", "gateway"),
    *("gateway", "web", "GET", "/", "", 200, "", None, "", 1.0, 0.1, 0, 0, "", ""),
)


class OneFrame:
    """A collector with one series."""

    async def collect(self, second: int, *, full: bool) -> Frame:
        assert full
        return Frame(second, 0, new={1: Series("up", (), "gauge", "node")}, values={1: 1.0})


def answer(folder: Path, command: Command) -> FromNode:
    """What the node says to one command."""

    async def run() -> FromNode:
        said: list[FromNode] = []
        answered = asyncio.Event()

        def send(message: FromNode) -> bool:
            said.append(message)
            answered.set()
            return True

        config = NodeConfig(
            name="n", state_dir=folder, run_dir=folder, api="a", supervisor=folder / "s"
        )
        tasks = Tasks()
        databases, collector = OneDatabase(), OneFrame()
        more = (answered.wait, tasks, databases, collector, SHARES, TAPS)
        commands = Commands(config, send, *more)  # type: ignore[arg-type]
        commands.handle(command)
        await asyncio.wait_for(answered.wait(), 5)
        await tasks.close()
        (reply,) = said
        return reply

    return asyncio.run(run())


def test_a_bug_of_ours_is_an_answer_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    command = Command(id="1", action="call", app="a", url="http://web/", body="a")
    with caplog.at_level(logging.ERROR):
        reply = answer(tmp_path, command)
    assert isinstance(reply, Reply)
    assert (reply.id, reply.final, reply.error) == ("1", True, "internal")
    assert "task failed" in caplog.text


def test_a_share_of_sampled_traces_is_kept_to_until_it_is_taken_back(tmp_path: Path) -> None:
    for subject in ("0.25", "0", ""):
        reply = answer(tmp_path, Command(id="1", action="sampling", subject=subject))
        assert isinstance(reply, Reply)
        assert (reply.final, reply.error) == (True, None)
    assert SHARES.fixed == [0.25, 0.0, None]


def test_a_second_of_the_node_is_told_as_a_frame(tmp_path: Path) -> None:
    command = Command(id="1", action="metrics", since=1_800_000_000.0, full=True)
    reply = answer(tmp_path, command)
    assert isinstance(reply, Reply)
    assert reply.final
    frame = decode(base64.b64decode(reply.body))
    assert (frame.second, frame.values) == (1_800_000_000, {1: 1.0})


def test_the_server_may_ask_where_its_own_database_is(tmp_path: Path) -> None:
    asked = Command(id="1", action="database", subject="a/default/ledger")
    reply = answer(tmp_path, asked)
    assert isinstance(reply, Reply)
    assert (reply.final, reply.error, reply.body) == (
        True,
        None,
        "postgresql://operator@127.0.0.1/ledger",
    )
    reply = answer(tmp_path, asked.model_copy(update={"identity": "web"}))
    assert isinstance(reply, Reply)
    assert (reply.final, reply.error, reply.body) == (True, "not_found", "")


async def until(holds: Callable[[], object]) -> None:
    for _ in range(500):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to hold")


def test_a_tap_is_answered_until_the_stream_ends(tmp_path: Path) -> None:
    """Also without records, which is how that is noticed; a new stream ends what went before."""

    async def run() -> None:
        said: list[FromNode] = []
        connected = [True]

        def send(message: FromNode) -> bool:
            said.append(message)
            return connected[0]

        async def drained() -> None: ...

        config = NodeConfig(
            name="n", state_dir=tmp_path, run_dir=tmp_path, api="a", supervisor=tmp_path / "s"
        )
        tasks = Tasks()
        commands = Commands(config, send, drained, tasks, OneDatabase(), OneFrame(), SHARES, TAPS)
        asked = Command(id="1", action="tap", app="a", share=0.5)
        commands.handle(asked)
        await asyncio.sleep(0)
        assert TAPPED[-1] == 0.5
        TAPS.requests([REQUEST])
        async with asyncio.timeout(5):
            await until(lambda: said)
            (reply,) = said
            assert isinstance(reply, Reply)
            (record,) = json.loads(reply.body)
            assert (record["target"], record["node"]) == ("web", "n")
            connected[0] = False
            TAPS.requests([REQUEST])
            await until(lambda: TAPPED[-1] == 0.0)
            connected[0] = True
            commands.handle(asked.model_copy(update={"id": "2"}))
            await asyncio.sleep(0)
            assert TAPPED[-1] == 0.5
            commands.stop()
            await until(lambda: TAPPED[-1] == 0.0)
        await tasks.close()

    asyncio.run(run())
