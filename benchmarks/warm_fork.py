"""How long an interpreter takes that is forked, beside one that is started; and what it weighs.

Usage: python benchmarks/warm_fork.py [--modules numpy,fastapi] [--samples 100] [--instances 20]

Both are processes of a supervisor, import the same modules, and are confined as instances are:
system calls, writes, and as root their own mount, IPC, UTS and network namespaces. Measured from
the request until the program's first line has run (it writes the time into a pipe): the whole way,
for either; after a pause, in which a zygote forks one child ahead, and with the next request as
soon as one has been answered. Weighed is a child that waits in its first line, with all
`--instances` there: proportional (PSS) and private memory. On a busy machine most is the wait for a
processor: read minima too, or give the benchmark priority (`chrt -r 5`), and say so.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from bedstone.errors import Error
from bedstone.processes.client import SupervisorClient, start_supervisor
from bedstone.processes.spec import WARM_START, Confinement, ProcessSpec
from bedstone.testing.zygotes import zygote

ENV = {"PATH": os.environ["PATH"], "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
PAUSE = 0.1
TEXT = """import {modules}
import time, os, struct
handle = os.open({pipe!r}, os.O_WRONLY)
os.write(handle, struct.pack("d", time.monotonic()))
time.sleep({stay})
"""


class Bench:
    """A supervisor, a zygote of it, and a pipe on which programs say when they ran."""

    def __init__(self, client: SupervisorClient, folder: Path, modules: list[str]) -> None:
        self._client = client
        self._modules = ", ".join(modules) or "sys"
        self._pipe = folder / "pipe"
        os.mkfifo(self._pipe)
        self._handle = os.open(self._pipe, os.O_RDWR)
        self._count = 0
        self.netns: str | None = None

    def spec(self, *, warm: bool, stay: float) -> ProcessSpec:
        """A program that says when its first line runs, and stays for some seconds."""
        self._count += 1
        text = TEXT.format(modules=self._modules, pipe=str(self._pipe), stay=stay)
        return ProcessSpec(
            f"x{self._count}",
            (sys.executable, "-c", text),
            env=ENV,
            netns=self.netns,
            confinement=Confinement(("/tmp", "/var/tmp", "/dev/shm", str(self._pipe.parent))),
            zygote="zygote/a" if warm else None,
        )

    async def ran(self) -> float:
        """When the next program that says so has run its first line."""
        text = await asyncio.to_thread(os.read, self._handle, 8)
        return float(struct.unpack("d", text)[0])

    async def once(self, *, warm: bool) -> float:
        """Seconds from the request to the first line."""
        spec = self.spec(warm=warm, stay=0)
        begun = time.monotonic()
        info = await self._client.spawn(spec)
        if info.message is not None:
            raise RuntimeError(info.message)
        ran = await self.ran()
        forked = any(note.startswith(WARM_START) for note in info.applied)
        if forked != warm:
            raise RuntimeError(f"expected warm={warm}, got {info.applied}")
        await self._client.stop(spec.name)
        await self._client.forget(spec.name)
        return ran - begun

    async def together(self, number: int, *, warm: bool) -> tuple[float, list[int], list[int]]:
        """Seconds until `number` at once have run their first line; PSS and private KiB of each."""
        specs = [self.spec(warm=warm, stay=60) for _ in range(number)]
        begun = time.monotonic()
        starting = [asyncio.ensure_future(self._client.spawn(spec)) for spec in specs]
        last = max([await self.ran() for _ in specs])
        infos = await asyncio.gather(*starting)
        pss, private = [], []
        for info in infos:
            text = Path(f"/proc/{info.pid}/smaps_rollup").read_text()
            found = {name: int(size) for name, size in re.findall(r"(\w+): +(\d+) kB", text)}
            pss.append(found["Pss"])
            private.append(found["Private_Dirty"] + found["Private_Clean"])
        for spec in specs:
            await self._client.stop(spec.name, 0.0)
            await self._client.forget(spec.name)
        return last - begun, pss, private


@asynccontextmanager
async def bench(modules: list[str]) -> AsyncIterator[Bench]:
    """One with its zygote loaded."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = await start_supervisor(folder / "state")
        async with SupervisorClient(run.socket) as client:
            found = Bench(client, folder, modules)
            try:
                try:
                    found.netns = str(await client.create_netns("bench"))
                except Error:
                    print("no network namespace: needs root")
                spec = replace(zygote("a", folder, modules), confinement=Confinement())
                await client.spawn(spec)
                await found.once(warm=True)
                yield found
            finally:
                await client.shutdown()


def show(name: str, seconds: list[float]) -> None:
    """One line of numbers, ms."""
    ranked = sorted(1000 * value for value in seconds)
    p90 = ranked[int(len(ranked) * 0.9)]
    print(f"{name:<34} p50 {statistics.median(ranked):7.1f}  p90 {p90:7.1f}  min {ranked[0]:7.1f}")


async def measure(modules: list[str], samples: int, instances: int) -> None:
    """Print it all."""
    async with bench(modules) as found:
        warm, hasty, cold = [], [], []
        for number in range(samples):
            await asyncio.sleep(PAUSE)
            warm.append(await found.once(warm=True))
            hasty.append(await found.once(warm=True))
            if number % 5 == 0:
                cold.append(await found.once(warm=False))
        names = ", ".join(modules)
        print(f"start to first line, ms, with {names}; load {os.getloadavg()[0]:.1f}")
        show("  forked, after a pause", warm)
        show("  forked, at once after another", hasty)
        show("  cold", cold)
        for kind in (True, False):
            seconds, pss, private = await found.together(instances, warm=kind)
            print(
                f"{instances} at once, {'forked' if kind else 'cold':<7} {seconds:6.2f} s; each: "
                f"PSS {statistics.median(pss) / 1024:.1f} MiB, "
                f"private {statistics.median(private) / 1024:.1f} MiB"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modules", default="numpy,fastapi")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--instances", type=int, default=20)
    options = parser.parse_args()
    modules = [name for name in options.modules.split(",") if name]
    asyncio.run(measure(modules, options.samples, options.instances))


if __name__ == "__main__":
    main()
