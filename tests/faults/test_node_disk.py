"""A node whose disk has no room: what runs goes on, and the status says what is wrong."""

from __future__ import annotations

import os
import shutil
import signal

from bedstone.model.resources import Phase
from bedstone.testing.node import World
from bedstone.testing.node_scenes import WEB, pid_of, scene


def test_a_record_that_cannot_be_written_is_told_and_stops_nothing() -> None:
    async def play(world: World) -> None:
        server = world.server
        folder = world.state / "node" / "instances"
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.touch()  # stands for a disk without room
        world.app(web=WEB)
        web = world.instance("web")
        await server.until_phase(web, Phase.READY)
        reason = "cannot write its record: File exists"
        await server.until(lambda: (s := server.status(web)) is not None and s.reason == reason)
        folder.unlink()
        os.kill(pid_of(world, web), signal.SIGKILL)
        await server.until(
            lambda: (
                (s := server.status(web)) is not None
                and (s.phase, s.reason, s.restarts) == (Phase.READY, "", 1)
            )
        )

    scene(play)
