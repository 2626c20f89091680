"""What tracing costs a request at its proxies: the same mesh with and without it.

Two hops: client → outbound listener → mutual TLS → inbound listener → program. `plain` is what we
generate less spans, decisions and records; `unsampled` decides and passes `traceparent` on, and
makes no span; `sampled` makes spans of the share that `--share` says (whole percents), which a
collector takes. The program is an Envoy that answers with 1 KiB, or with `--application` a small
ASGI application, as `run:` serves it. Short rounds are interleaved; `cpu_us` is the processor time
of proxy and program for a request, in the lower quartile of the rounds, which a busy machine
disturbs least.

    python benchmarks/tracing.py [--rounds 20] [--seconds 1] [--connections 16] [--share 0.01]
                                 [--application]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.mesh_path import answering, envoy, load

from bedstone.control.mesh import tracing
from bedstone.model.spec import AppSpec, WorkloadSpec
from bedstone.node.collector import otlp_grpc
from bedstone.node.collector.intake import Discard, Intake
from bedstone.node.collector.runtime import share
from bedstone.telemetry.requests import SAMPLING_KEY
from bedstone.testing.mesh import MeshRig, free_port, mesh_rig, wait_open


async def declared(rig: MeshRig, program: int) -> tuple[int, int]:
    """The port of the caller's proxy, and the process that serves it."""
    workloads = {
        "web": WorkloadSpec(command=("x",), uses=("risk",)),
        "risk": WorkloadSpec(command=("x",)),
    }
    rig.declare(AppSpec(app="bank", workloads=workloads))
    web = rig.add("bank", "web", "w1", program)
    rig.add("bank", "risk", "r1", program)
    await rig.settle()
    assert web.plumbing is not None
    assert rig.envoy is not None
    return web.plumbing.outbound.port, rig.envoy.pid


async def sample(rig: MeshRig, value: float) -> None:
    """Sample so many of the requests."""
    transport = httpx.AsyncHTTPTransport(uds=str(rig.engine.admin_socket))
    async with httpx.AsyncClient(transport=transport) as admin:
        wanted = {SAMPLING_KEY: share(value)}
        answer = await admin.post("http://envoy/runtime_modify", params=wanted)
        answer.raise_for_status()


def without_tracing() -> ExitStack:
    """The mesh generates no spans, decisions and records while this is entered."""
    stack = ExitStack()
    for name in ("spans", "as_decided"):
        stack.enter_context(patch.object(tracing, name, lambda *_: {}))
    stack.enter_context(patch.object(tracing, "CONTINUE", []))
    stack.enter_context(patch.object(tracing, "RESTORE", {}))
    from bedstone.control.mesh import counting

    stack.enter_context(patch.object(tracing, "records", lambda: counting.exceptional("again")))
    return stack


def used(*pids: int) -> int:
    """Nanoseconds that all threads of these processes have run."""
    return sum(
        int(path.read_text().split()[0])
        for pid in pids
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat")
    )


@asynccontextmanager
async def application(directory: Path, port: int) -> AsyncIterator[int]:
    """An ASGI application as `run:` serves it; its process id."""
    (directory / "small.py").write_text(
        "async def app(scope, receive, send):\n"
        "    await send({'type': 'http.response.start', 'status': 200,\n"
        "                'headers': [(b'content-length', b'1024')]})\n"
        "    await send({'type': 'http.response.body', 'body': b'x' * 1024})\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bedstone.runtime.serve", "small:app", f"--port={port}"),
        cwd=directory,
    )
    try:
        async with asyncio.timeout(20):
            await wait_open(port)
        yield process.pid
    finally:
        process.kill()
        await process.wait()


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        start = stack.enter_async_context
        program = free_port()
        places: dict[str, tuple[int, int]] = {}
        with without_tracing():
            rig = await start(mesh_rig())
            answers = (
                application(rig.directory, program)
                if options.application
                else envoy(rig.directory, "program", answering(program), program)
            )
            answering_pid = await start(answers)
            places["plain"] = await declared(rig, program)
        for name, value in (("unsampled", 0.0), ("sampled", options.share)):
            rig = await start(mesh_rig())
            nothing = Discard()
            server = await otlp_grpc.serve(
                Intake(nothing, nothing, nothing), rig.directory / "collector.sock"
            )
            stack.push_async_callback(server.stop, 0)
            places[name] = await declared(rig, program)
            await sample(rig, value)
        results: dict[str, list[dict[str, float]]] = {name: [] for name in places}
        for port, _ in places.values():
            await load(port, 1, options.connections, "")  # warm
        for turn in range(options.rounds):
            names = list(places)
            for name in names[turn % 3 :] + names[: turn % 3]:
                port, pid = places[name]
                before = used(pid, answering_pid)
                found = await load(port, options.seconds, options.connections, "")
                spent = used(pid, answering_pid) - before
                found["cpu_us"] = spent / 1e3 / (found["rps"] * options.seconds)
                results[name].append(found)
    told = {
        name: {
            "rps": statistics.median(one["rps"] for one in rounds),
            "cpu_us": statistics.quantiles((one["cpu_us"] for one in rounds), n=4)[0],
        }
        for name, rounds in results.items()
    }
    ratios = {
        f"{name}_to_plain": {
            key: round(told[name][key] / told["plain"][key], 3) for key in ("rps", "cpu_us")
        }
        for name in ("unsampled", "sampled")
    }
    return {**told, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--application", action="store_true", help="answered by an application")
    print(json.dumps(asyncio.run(measure(parser.parse_args())), indent=1))


if __name__ == "__main__":
    main()
