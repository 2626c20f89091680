"""A real node agent under a real supervisor, with a server that a test commands.

Nothing that the agent runs may end with the agent; nothing may be stopped before it is released.
"""

from __future__ import annotations

import asyncio
import os
import signal

from bedstone.model.resources import Desired, InstanceStatus, Phase
from bedstone.testing.node import World
from bedstone.testing.node_scenes import WEB, is_running, kill_agent, pid_of, scene


def test_instances_start_in_order_of_what_they_use_and_report_ready() -> None:
    async def play(world: World) -> None:
        server = world.server
        world.app(web={**WEB, "uses": ["risk"]}, risk=WEB)
        web, risk = world.instance("web"), world.instance("risk")
        await server.until_phase(risk, Phase.READY)
        status = server.status(web)
        assert status is not None
        assert status.phase is Phase.PENDING
        assert status.reason == "waiting for workload risk"
        assert status.plumbing is not None, "its addresses are told meanwhile"
        server.assign(available={"shop/default/risk": True})
        await server.until_phase(web, Phase.READY)
        status = server.status(web)
        assert status is not None
        assert status.plumbing is not None
        assert status.plumbing.services.keys() == {"risk"}
        assert status.certificate_until is not None
        assert not status.enforced
        domain = server.authority.domain
        assert {f"spiffe://{domain}/shop/{name}" for name in ("web", "risk", "gateway")} <= set(
            server.signed
        )

    scene(play)


def test_a_workload_that_is_to_have_no_instances_is_not_waited_for() -> None:
    async def play(world: World) -> None:
        world.app(web={**WEB, "uses": ["risk"]}, risk={**WEB, "replicas": 0})
        await world.server.until_phase(world.instance("web"), Phase.READY)

    scene(play)


def test_a_circle_of_uses_starts() -> None:
    async def play(world: World) -> None:
        world.app(web={**WEB, "uses": ["risk"]}, risk={**WEB, "uses": ["web"]})
        for name in ("web", "risk"):
            await world.server.until_phase(world.instance(name), Phase.READY)

    scene(play)


def test_nothing_starts_before_its_proxy_listens() -> None:
    async def play(world: World) -> None:
        server = world.server
        server.proxied = False
        world.app(web=WEB)
        web = world.instance("web")
        await server.until(
            lambda: (s := server.status(web)) is not None and s.reason == "waiting for its proxy"
        )
        await asyncio.sleep(0.5)
        assert server.phase(web) is Phase.PENDING
        assert not [i for i in await world.supervisor.list() if i.name.startswith("instance/")]

    scene(play)


def test_killed_agent_adopts_what_runs_and_never_says_otherwise() -> None:
    async def play(world: World) -> None:
        server = world.server
        world.app(web={**WEB, "ready": {"path": "/"}})
        web = world.instance("web")
        await server.until_phase(web, Phase.READY)
        before = server.status(web)
        for number in (signal.SIGKILL, signal.SIGTERM):
            server.history.clear()
            await kill_agent(world, number=number)
            await asyncio.sleep(0.5)
            after = server.status(web)
            assert before is not None
            assert after is not None
            assert (after.pid, after.started_at, after.restarts) == (
                before.pid,
                before.started_at,
                before.restarts,
            )
            assert after.plumbing == before.plumbing, "addresses and credential are kept"
            told = [*server.hellos[-1].instances, *server.history]
            phases = {s.phase for s in told if isinstance(s, InstanceStatus)}
            assert phases == {Phase.READY}, "it was never taken out of service"

    scene(play)


def test_agent_notices_what_ended_while_it_was_away() -> None:
    async def play(world: World) -> None:
        server = world.server
        world.app(web=WEB)
        web = world.instance("web")
        await server.until_phase(web, Phase.READY)
        old = pid_of(world, web)
        await world.supervisor.signal("node", signal.SIGSTOP)
        os.kill(old, signal.SIGKILL)
        await kill_agent(world)
        await server.until(
            lambda: (
                (s := server.status(web)) is not None and s.phase is Phase.READY and s.pid != old
            )
        )

    scene(play)


def test_agent_goes_on_without_a_server_and_after_a_restart_without_one() -> None:
    async def play(world: World) -> None:
        server = world.server
        world.app(web=WEB)
        web = world.instance("web")
        await server.until_phase(web, Phase.READY)
        await server.stop()
        os.kill(pid_of(world, web), signal.SIGKILL)
        name = f"instance/{web.path}"
        first = await restarted(world, name, pid_of(world, web))
        await world.supervisor.signal("node", signal.SIGKILL)
        await asyncio.sleep(1.0)
        os.kill(first, signal.SIGKILL)
        second = await restarted(world, name, first)
        await server.start()
        await server.until(
            lambda: (
                (s := server.status(web)) is not None and s.phase is Phase.READY and s.pid == second
            )
        )

    async def restarted(world: World, name: str, old: int) -> int:
        async with asyncio.timeout(10):
            while True:
                info = await world.supervisor.get(name)
                if info.running and info.pid is not None and info.pid != old:
                    return info.pid
                await asyncio.sleep(0.05)

    scene(play)


def test_crash_is_reported_at_once_and_restarted_with_backoff() -> None:
    async def play(world: World) -> None:
        server = world.server
        world.app(web=WEB, bad={"command": ["python", "crash.py"]})
        web, bad = world.instance("web"), world.instance("bad")
        await server.until_phase(web, Phase.READY)
        os.kill(pid_of(world, web), signal.SIGKILL)
        await server.until(lambda: server.phase(web) is not Phase.READY)
        await server.until(
            lambda: (
                (s := server.status(web)) is not None and s.phase is Phase.READY and s.restarts == 1
            )
        )
        await server.until(lambda: (s := server.status(bad)) is not None and s.restarts >= 3)
        status = next(
            s
            for s in reversed(server.history)
            if isinstance(s, InstanceStatus) and s.name == bad.name and s.phase is Phase.BACKOFF
        )
        assert "exit status 3" in status.reason
        assert "cannot go on" in status.reason, "its last words are shown"

    scene(play)


def test_drain_is_reported_and_only_a_release_stops() -> None:
    async def play(world: World) -> None:
        server = world.server
        world.app(web=WEB)
        web = world.instance("web")
        await server.until_phase(web, Phase.READY)
        pid = pid_of(world, web)
        drained = web.model_copy(update={"desired": Desired.DRAINED})
        server.assign(drained)
        await server.until_phase(web, Phase.DRAINING)
        await asyncio.sleep(0.5)
        os.kill(pid, 0)  # it still serves
        server.assign(drained.model_copy(update={"released": True}))
        await server.until_phase(web, Phase.STOPPED)
        status = server.status(web)
        assert status is not None
        assert status.exit_status == "killed by SIGTERM"
        server.assign(remove=(web.key,))
        await server.until(lambda: server.status(web) is None)
        log = world.state / "logs" / "instances" / f"{web.path}.log"
        assert log.exists(), "its log stays"

    scene(play)


def test_drain_goes_on_over_a_kill_of_the_agent() -> None:
    async def play(world: World) -> None:
        server = world.server
        world.app(web=WEB)
        web = world.instance("web")
        await server.until_phase(web, Phase.READY)
        drained = web.model_copy(update={"desired": Desired.DRAINED})
        server.assign(drained)
        await server.until_phase(web, Phase.DRAINING)
        await asyncio.sleep(0.3)
        await kill_agent(world)
        server.assign(drained.model_copy(update={"released": True}))
        await server.until_phase(web, Phase.STOPPED)

    scene(play)


def test_deleted_while_the_agent_was_away_is_ended() -> None:
    async def play(world: World) -> None:
        server = world.server
        world.app(web=WEB)
        web = world.instance("web")
        await server.until_phase(web, Phase.READY)
        pid = pid_of(world, web)
        await asyncio.sleep(0.3)
        await world.supervisor.signal("node", signal.SIGSTOP)
        server.assign(remove=(web.key,))
        await kill_agent(world)
        await server.until(lambda: server.status(web) is None)
        assert not is_running(pid)

    scene(play)
