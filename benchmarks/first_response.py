"""From `replicas: 1` to the first HTTP 200 through the gateway, by isolation; and what it weighs.

Usage: python benchmarks/first_response.py [--runs 5] [--together 20] [--only container,warm]

Two applications: one of FastAPI, and one that imports numpy and fills 64 MiB. Each is declared once
for each way in which an instance can start, with no instance; then it is scaled to one, again and
again. The time runs from the moment in which `bedstone` asks for the instance until a client of the
gateway has its first 200: placement, network, start, import, probe, and the proxies' routes are in
it. The interpreter is the one that runs this, or where other users may not read that one, the
machine's own of the same version. `bare` is the same application started by Bedstone's server
program alone, with no platform. Weighed is a whole instance, with whatever parents it or emulates
it: proportional memory (PSS).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from bedstone.client.api import Client
from bedstone.client.transport import Endpoint
from bedstone.model.api import Part
from bedstone.model.monitoring import ScaleRequest
from bedstone.processes.state import run_directory
from bedstone.sandbox.interpreter import obstacle
from bedstone.testing.domain import Domain, free_port

APPS = {
    "fast": """
from fastapi import FastAPI
app = FastAPI()

@app.get("/{path:path}")
def answer(path: str) -> dict[str, str]:
    return {"path": path}
""",
    "arrays": """
import numpy

DATA = numpy.ones(64 << 17)  # 64 MiB of 8-byte numbers

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = str(DATA.sum()).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
""",
}
MODULES = {"fast": "fastapi", "arrays": "numpy"}
WAYS = {
    "cold": "isolation: process",
    "warm": "warm: [{module}]",
    "container": "isolation: container",
    "gvisor": "isolation: gvisor",
    "microvm": "isolation: microvm",
}

HEAVY = ("microvm",)
"""Ways of which `--together` starts four only: each takes a processor of its own for seconds."""
PAUSE = 0.002


def interpreter() -> str:
    """One that users without rights can read, as instances with a user of their own must."""
    if obstacle(Path(sys.executable)) is None:
        return sys.executable
    return f"/usr/bin/python3.{sys.version_info.minor}"


def manifest(ways: list[str]) -> str:
    """Each application once for each way."""
    routes, workloads = [], []
    for app, module in MODULES.items():
        for way in ways:
            name = f"{app}-{way}"
            routes.append(f"    - {{path: /{name}, to: {name}}}")
            workloads.append(
                f"  {name}:\n    run: {app}:app\n    replicas: 0\n    "
                + WAYS[way].format(module=module)
                + f"\n    python: {interpreter()}\n    ready: /\n    start_timeout: 120"
            )
    return "\n".join(
        [
            "app: bench",
            "gateway:",
            "  port: 8080",
            "  routes:",
            *routes,
            "workloads:",
            *workloads,
            "",
        ]
    )


def first_answer(url: str, limit: float = 120.0) -> float:
    """When the first 200 has come."""
    until = time.monotonic() + limit
    with httpx.Client(trust_env=False, timeout=10) as client:
        while time.monotonic() < until:
            with contextlib.suppress(httpx.HTTPError):
                if client.get(url).status_code == 200:
                    return time.monotonic()
            time.sleep(PAUSE)
    raise SystemExit(f"no answer of {url} within {limit:g} s")


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def pss(pids: list[int]) -> float:
    """Their proportional memory, MiB."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total / 1024


class Bench:
    """The app, up."""

    def __init__(self, domain: Domain, client: Client) -> None:
        self._domain = domain
        self._client = client

    async def instances(self, name: str) -> list[Part]:
        """Those of a workload."""
        status = await self._client.app_status("bench")
        return [p for p in status.parts if p.kind == "instance" and p.workload == name]

    async def scale(self, name: str, number: int) -> None:
        """Ask for so many."""
        await self._client.scale("bench", name, ScaleRequest(replicas=number))

    async def until(self, name: str, good: Callable[[list[Part]], bool], what: str) -> None:
        """Wait for the instances to be as they should."""
        for _ in range(60_000):
            found = await self.instances(name)
            if good(found):
                return
            await asyncio.sleep(0.01)
        raise SystemExit(f"{name}: not {what}: {[(part.name, part.detail) for part in found]}")

    async def gone(self, name: str) -> None:
        """Ask for none, and wait for it."""
        await self.scale(name, 0)
        await self.until(name, lambda found: not found, "gone")

    async def once(self, name: str) -> float:
        """Seconds from asking for one instance to its first answer."""
        begun = time.monotonic()
        answered = asyncio.ensure_future(
            asyncio.to_thread(first_answer, f"{self._domain.url}/{name}/")
        )
        await self.scale(name, 1)
        seconds = await answered - begun
        await self.gone(name)
        return seconds

    async def together(self, name: str, number: int) -> tuple[float, float]:
        """Seconds until so many are ready that were asked for at once; MiB of each."""
        begun = time.monotonic()
        await self.scale(name, number)
        await self.until(
            name, lambda found: [part.state for part in found] == ["ready"] * number, "ready"
        )
        seconds = time.monotonic() - begun
        pids = await asyncio.to_thread(self._domain.pids)
        weights = [
            pss(tree(pid))
            for process, pid in pids.items()
            if process.startswith("instance/") and f"/{name}/" in process
        ]
        if len(weights) != number:
            raise SystemExit(f"{name}: {len(weights)} processes of {number}")
        await self.gone(name)
        return seconds, statistics.median(weights)


@contextlib.contextmanager
def bare(domain: Domain, app: str) -> Iterator[str]:
    """The application under the server program alone; its URL."""
    port = free_port()
    command = [sys.executable, "-m", "bedstone.runtime.serve", f"{app}:app"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, cwd=domain.directory, stdout=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def show(name: str, seconds: list[float], rest: str = "") -> None:
    ranked = sorted(seconds)
    print(
        f"{name:<20} first 200: median {statistics.median(ranked):6.2f} s, "
        f"{ranked[0]:.2f} to {ranked[-1]:.2f}{rest}",
        flush=True,
    )


async def measure(domain: Domain, ways: list[str], runs: int, number: int) -> None:
    """Print it all."""
    print(f"load {os.getloadavg()[0]:.1f} before")
    socket = Path(run_directory(domain.state), "api.sock")
    async with Client(Endpoint(socket=socket)) as client:
        bench = Bench(domain, client)
        for app in APPS:
            alone = []
            for _ in range(runs):
                begun = time.monotonic()
                with bare(domain, app) as url:
                    alone.append(await asyncio.to_thread(first_answer, url) - begun)
            show(f"{app}, bare", alone)
            for way in ways:
                name = f"{app}-{way}"
                if way == "warm":
                    await bench.once(name)  # its interpreters load once
                singles = [await bench.once(name) for _ in range(runs)]
                many = 4 if way in HEAVY else number
                seconds, weight = await bench.together(name, many)
                show(
                    f"{app}, {way}",
                    singles,
                    f"; {many} at once {seconds:.2f} s, {weight:.1f} MiB each",
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--together", type=int, default=20)
    parser.add_argument("--only", default=",".join(WAYS))
    given = parser.parse_args()
    ways = given.only.split(",")
    domain = Domain.make(manifest=manifest(ways))
    try:
        for app, text in APPS.items():
            (domain.directory / f"{app}.py").write_text(text)
        domain.up()
        asyncio.run(measure(domain, ways, given.runs, given.together))
    finally:
        domain.down()
        domain.discard()


if __name__ == "__main__":
    main()
