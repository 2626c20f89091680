"""Commands of the server: whoever asked is answered, whatever happens."""

import asyncio
import logging
from pathlib import Path

import pytest

from bedstone.model.messages import Command, FromNode, Reply
from bedstone.node.commands import Commands
from bedstone.node.config import NodeConfig
from bedstone.node.tasks import Tasks


def test_a_bug_of_ours_is_an_answer_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> list[FromNode]:
        said: list[FromNode] = []
        answered = asyncio.Event()

        def send(message: FromNode) -> bool:
            said.append(message)
            answered.set()
            return True

        config = NodeConfig(
            name="n", state_dir=tmp_path, run_dir=tmp_path, api="a", supervisor=tmp_path / "s"
        )
        tasks = Tasks()
        commands = Commands(config, send, answered.wait, tasks)  # type: ignore[arg-type]
        url = "http://web/"
        commands.handle(Command(id="1", action="call", app="a", url=url, body="a"))
        await asyncio.wait_for(answered.wait(), 5)
        await tasks.close()
        return said

    with caplog.at_level(logging.ERROR):
        (reply,) = asyncio.run(run())
    assert isinstance(reply, Reply)
    assert (reply.id, reply.final, reply.error) == ("1", True, "internal")
    assert "task failed" in caplog.text
