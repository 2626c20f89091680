"""A real node agent: probes, preparations, and ports that cannot be had."""

from __future__ import annotations

import asyncio
import socket

from bedstone.model.resources import Phase, Preparation
from bedstone.testing.node import World
from bedstone.testing.node_scenes import WEB, kill_agent, pid_of, scene


def test_failing_probe_takes_it_out_of_service_without_a_restart() -> None:
    async def play(world: World) -> None:
        server = world.server
        probe = {"path": "/", "interval": 0.1, "failures": 2}
        world.app(web={**WEB, "ready": probe})
        web = world.instance("web")
        await server.until_phase(web, Phase.READY)
        pid = pid_of(world, web)
        (world.code / "sick").touch()
        await server.until_phase(web, Phase.UNREADY)
        status = server.status(web)
        assert status is not None
        assert status.reason == "GET / answered 503"
        (world.code / "sick").unlink()
        await server.until_phase(web, Phase.READY)
        assert pid_of(world, web) == pid

    scene(play)


def test_command_probe_and_liveness() -> None:
    async def play(world: World) -> None:
        server = world.server
        check = "import sys, pathlib; sys.exit(pathlib.Path('sick').exists())"
        live = {"path": "/", "interval": 0.1, "failures": 2}
        ready = {"command": ["python", "-c", check], "interval": 0.3}
        world.app(web={**WEB, "ready": ready, "live": live})
        web = world.instance("web")
        await server.until_phase(web, Phase.READY)
        pid = pid_of(world, web)
        (world.code / "sick").touch()
        await server.until(lambda: (s := server.status(web)) is not None and s.restarts >= 1)
        (world.code / "sick").unlink()
        await server.until_phase(web, Phase.READY)
        assert pid_of(world, web) != pid

    scene(play)


def test_prepare_runs_once_for_all_instances() -> None:
    async def play(world: World) -> None:
        server = world.server
        world.app(web={**WEB, "prepare": ["python", "prepare.py"]})
        both = [world.instance("web", "1"), world.instance("web", "2")]
        for instance in both:
            await server.until_phase(instance, Phase.READY)
        logs = (world.state / "logs" / "instances").rglob("web-*.log")
        text = "".join(log.read_text() for log in logs)
        assert text.count("preparing") == 1
        assert text.count("starting") == 2

    scene(play)


def test_failed_prepare_fails_with_its_last_words() -> None:
    async def play(world: World) -> None:
        server = world.server
        world.app(web={**WEB, "prepare": ["python", "broken.py"]})
        web = world.instance("web")
        await server.until_phase(web, Phase.FAILED)
        status = server.status(web)
        assert status is not None
        assert "exit status 4" in status.reason
        assert "no such table: accounts" in status.reason
        assert server.statuses["preparations/shop/default/web/r1"].model_dump()["state"] == "failed"
        await asyncio.sleep(0.3)
        assert server.phase(web) is Phase.FAILED, "it is not repeated"

    scene(play)


def test_preparation_of_another_node_is_awaited_not_repeated() -> None:
    async def play(world: World) -> None:
        server = world.server
        world.app(web={**WEB, "prepare": ["python", "prepare.py"]})
        other = Preparation(
            app="shop", workload="web", revision="r1", node="there", state="running"
        )
        server.assign(other)
        web = world.instance("web")
        await server.until_phase(web, Phase.PREPARING)
        await asyncio.sleep(0.3)
        assert server.phase(web) is Phase.PREPARING
        server.assign(other.model_copy(update={"state": "done"}))
        await server.until_phase(web, Phase.READY)
        log = world.state / "logs" / "instances" / f"{web.path}.log"
        assert "preparing" not in log.read_text()

    scene(play)


def test_taken_port_is_given_up_for_another() -> None:
    async def play(world: World) -> None:
        server = world.server
        world.app(web={**WEB, "uses": ["risk"]}, risk=WEB)
        web = world.instance("web")
        await server.until(lambda: (s := server.status(web)) is not None and s.plumbing is not None)
        status = server.status(web)
        assert status is not None
        assert status.plumbing is not None
        taken = status.plumbing.app.port
        with socket.create_server(("127.0.0.1", taken)):
            server.assign(available={"shop/default/risk": True})
            await server.until_phase(web, Phase.READY)
        status = server.status(web)
        assert status is not None
        assert status.plumbing is not None
        assert status.plumbing.app.port != taken

    scene(play)


def test_ports_that_the_proxy_cannot_have_are_given_up_for_others() -> None:
    async def play(world: World) -> None:
        server = world.server
        server.proxied = False
        world.app(web=WEB)
        web = world.instance("web")
        await server.until(lambda: (s := server.status(web)) is not None and s.plumbing is not None)
        before = server.status(web)
        assert before is not None
        assert before.plumbing is not None
        place = before.plumbing.outbound
        with socket.create_server((place.host, place.port)):
            await asyncio.sleep(0.5)
            assert server.phase(web) is Phase.PENDING, "a stranger's listener is not the proxy's"
            await server.until(
                lambda: (s := server.status(web)) is not None and s.plumbing != before.plumbing
            )
        server.proxied = True
        await kill_agent(world)
        await server.until_phase(web, Phase.READY)

    scene(play)
