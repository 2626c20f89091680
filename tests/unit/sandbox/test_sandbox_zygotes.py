"""How long the interpreters are kept that instances are forked from."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import cast

from bedstone.model.resources import Address, Instance, Plumbing, Revision
from bedstone.model.spec import WorkloadSpec
from bedstone.processes.spec import ProcessInfo, ProcessSpec
from bedstone.sandbox.protocol import Processes, Unit
from bedstone.sandbox.zygotes import PREFIX, Policy, Zygotes


class Supervisor:
    """Remembers what it was asked to run."""

    def __init__(self) -> None:
        self.running: list[str] = []

    async def spawn(self, spec: ProcessSpec) -> ProcessInfo:
        if spec.name not in self.running:
            self.running.append(spec.name)
        return ProcessInfo(spec.name, "running", spec.digest(), pid=1)

    async def stop(self, name: str, grace: float | None = None) -> ProcessInfo:
        assert grace == 0.0
        self.running.remove(name)
        return ProcessInfo(name, "exited", "", exit_code=0)

    async def forget(self, name: str) -> None:
        assert name not in self.running

    async def list(self) -> list[ProcessInfo]:
        return [ProcessInfo(name, "running", "", pid=1) for name in self.running]


def unit(name: str) -> Unit:
    address = Address(host="127.0.0.1", port=1)
    instance = Instance(app="shop", workload="web", name=name, revision="r1", node="here")
    revision = Revision(
        app="shop",
        workload="web",
        name="r1",
        spec=WorkloadSpec(run="web:app", warm=("json",)),
        root="/nowhere",
        source="",
    )
    return Unit(instance, revision, Plumbing(app=address, inbound=address, outbound=address))


def test_they_are_kept_for_a_while_and_ended_when_nothing_has_needed_them(tmp_path: Path) -> None:
    async def scene() -> None:
        supervisor = Supervisor()
        supervisor.running = ["instance/other", f"{PREFIX}of-an-earlier-agent"]
        zygotes = Zygotes(cast("Processes", supervisor), tmp_path, ("os",), "", kept=0.2)
        argv = (sys.executable, "-m", "bedstone.runtime.serve")

        async def start(name: str) -> str | None:
            one = unit(name)
            spec = ProcessSpec(one.instance.path, argv, cwd=str(tmp_path))
            return (await zygotes.prepare(one, spec, Policy()))[0].zygote

        first = await start("web-1")
        await zygotes.release("shop/default/web/nobody")
        await zygotes.release(unit("web-1").instance.path)
        assert first in supervisor.running, "it may be needed again at once"
        assert await start("web-2") == first
        for _ in range(100):
            await asyncio.sleep(0.02)
            if len(supervisor.running) == 3:
                break
        assert set(supervisor.running) >= {"instance/other", first}, "it is needed"
        assert len(supervisor.running) == 3, "its own two, and none of an earlier agent"
        await zygotes.release(unit("web-2").instance.path)
        for _ in range(100):
            await asyncio.sleep(0.02)
            if supervisor.running == ["instance/other"]:
                break
        assert supervisor.running == ["instance/other"]

    asyncio.run(scene())
