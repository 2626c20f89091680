"""A real node agent: what it forgot, and what it tells the server and is asked by it."""

from __future__ import annotations

import asyncio
import json
import signal

from bedstone.model.messages import Command
from bedstone.model.resources import Phase
from bedstone.processes.spec import ProcessSpec
from bedstone.testing.node import NODE, World
from bedstone.testing.node_scenes import WEB, is_running, kill_agent, pid_of, scene


def test_what_nobody_wants_or_remembers_is_ended() -> None:
    async def play(world: World) -> None:
        server = world.server
        world.app(web=WEB)
        web = world.instance("web")
        await server.until_phase(web, Phase.READY)
        await world.supervisor.signal("node", signal.SIGSTOP)
        stray = ProcessSpec(name="instance/shop/default/web/lost", argv=("/bin/sleep", "1000"))
        info = await world.supervisor.spawn(stray)
        pid = pid_of(world, web)
        await kill_agent(world)
        async with asyncio.timeout(30):
            while any(each.name == stray.name for each in await world.supervisor.list()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert info.pid is not None
        assert not is_running(info.pid)
        assert pid_of(world, web) == pid

    scene(play)


def test_lost_journal_means_a_new_start_not_an_unknown_address() -> None:
    async def play(world: World) -> None:
        server = world.server
        world.app(web=WEB)
        web = world.instance("web")
        await server.until_phase(web, Phase.READY)
        old = pid_of(world, web)
        await world.supervisor.signal("node", signal.SIGSTOP)
        for record in (world.state / "node" / "instances").iterdir():
            record.unlink()
        await kill_agent(world)
        await server.until(
            lambda: (
                (s := server.status(web)) is not None and s.phase is Phase.READY and s.pid != old
            )
        )
        assert not is_running(old)

    scene(play)


def test_agent_ends_when_a_part_of_it_dies_and_the_next_adopts() -> None:
    async def play(world: World) -> None:
        server = world.server
        world.app(web=WEB)
        web = world.instance("web")
        await server.until_phase(web, Phase.READY)
        pid = pid_of(world, web)
        log = world.state / "logs" / "node.log"
        membership = world.state / "node" / "membership.json"
        membership.unlink()
        right, server.session = server.session, "127.0.0.1:none"
        await world.supervisor.signal("node", signal.SIGKILL)
        async with asyncio.timeout(30):
            # What keeps the proxy cannot read this address: a bug, and it is said.
            while log.read_text().count("invalid literal for int()") < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        server.session = right
        async with asyncio.timeout(20):
            while json.loads(membership.read_text())["session"] != right:
                membership.unlink()
                await world.supervisor.signal("node", signal.SIGKILL)
                while not membership.exists():  # noqa: ASYNC110 - of no event
                    await asyncio.sleep(0.05)
        hellos = len(server.hellos)
        await server.until(lambda: len(server.hellos) > hellos or server.phase(web) is Phase.READY)
        await server.until_phase(web, Phase.READY)
        assert pid_of(world, web) == pid, "it went on all the time"

    scene(play)


def test_certificates_are_renewed_at_half_their_life() -> None:
    async def play(world: World) -> None:
        import datetime as dt

        server = world.server
        server.lifetime = dt.timedelta(seconds=4)
        world.app(web=WEB)
        web = world.instance("web")
        await server.until_phase(web, Phase.READY)
        signed = [name for name in server.signed if name.endswith("/shop/web")]
        await server.until(
            lambda: len([n for n in server.signed if n.endswith("/shop/web")]) > len(signed) + 1,
            10,
        )
        own = f"spiffe://{server.authority.domain}/node/{NODE}"
        assert own in server.signed, "its own too"
        assert server.phase(web) is Phase.READY

    scene(play)


def test_sign_of_life_comes_when_nothing_changes() -> None:
    async def play(world: World) -> None:
        await world.server.until(lambda: len(world.server.heartbeats) >= 4)
        pauses = [
            later - earlier
            for earlier, later in zip(
                world.server.heartbeats[1:], world.server.heartbeats[2:], strict=False
            )
        ]
        # A busy machine makes a pause longer, never shorter.
        assert min(pauses) < 1.5, "half of the lease of 3 s"

    scene(play)


def test_logs_are_shown_and_followed() -> None:
    async def play(world: World) -> None:
        server = world.server
        world.app(web={"command": ["python", "lines.py"]})
        web = world.instance("web")
        await server.until_phase(web, Phase.READY)

        def lines(of: str) -> list[str]:
            return [line.text for reply in server.replies.get(of, []) for line in reply.lines]

        server.command(Command(id="all", action="logs", subject="shop/default/web/"))
        await server.until(lambda: any(r.final for r in server.replies.get("all", [])))
        assert lines("all") == [f"line {i}" for i in range(100)]
        server.command(Command(id="tail", action="logs", subject=web.path, tail=2, follow=True))
        await server.until(lambda: lines("tail") == ["line 98", "line 99"])
        log = world.state / "logs" / "instances" / f"{web.path}.log"
        with log.open("a") as file:
            file.write("later\n")
        await server.until(lambda: lines("tail")[-1:] == ["later"])
        server.command(Command(id="stop", action="cancel", subject="tail"))
        server.command(Command(id="none", action="logs", subject="engine:nothing"))
        await server.until(lambda: bool(server.replies.get("none")))
        assert server.replies["none"][0].error == "not_found"

    scene(play)


def test_call_through_a_missing_proxy_is_unavailable_not_unknown() -> None:
    async def play(world: World) -> None:
        server = world.server
        world.app(web=WEB)
        await server.until_phase(world.instance("web"), Phase.READY)
        server.command(Command(id="c", action="call", app="shop", url="http://web/x"))
        await server.until(lambda: bool(server.replies.get("c")))
        assert server.replies["c"][0].error == "unavailable"

    scene(play)
