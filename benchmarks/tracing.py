"""What tracing costs a request at its proxies: the same mesh with and without it.

Two hops: client → outbound listener → mutual TLS → inbound listener → program (an Envoy that
answers with 1 KiB). `plain` is what we generate less spans, decisions and records; `unsampled`
decides and passes `traceparent` on, and makes no span; `sampled` makes spans of the share that
`--share` says, which a collector takes. Rounds are interleaved; `cpu_us` is the proxy's processor
time for a request, and the ratios of medians to `plain` are what counts.

    python benchmarks/tracing.py [--rounds 6] [--seconds 3] [--connections 32] [--share 0.01]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.mesh_path import answering, cpu_seconds, envoy, load

from bedstone.control.mesh import tracing
from bedstone.model.spec import AppSpec, WorkloadSpec
from bedstone.node.collector import otlp_grpc
from bedstone.node.collector.intake import Discard, Intake
from bedstone.telemetry.requests import SAMPLING_KEY
from bedstone.testing.mesh import MeshRig, free_port, mesh_rig


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


async def share(rig: MeshRig, value: float) -> None:
    """Sample so many of the requests."""
    text = json.dumps({"numerator": round(value * 10_000), "denominator": "TEN_THOUSAND"})
    transport = httpx.AsyncHTTPTransport(uds=str(rig.engine.admin_socket))
    async with httpx.AsyncClient(transport=transport) as admin:
        url = httpx.URL("http://envoy/runtime_modify", params={SAMPLING_KEY: text})
        answer = await admin.post(str(url).replace("+", "%20"))
        answer.raise_for_status()


def without_tracing() -> AsyncExitStack:
    """The mesh generates no spans, decisions and records while this is entered."""
    stack = AsyncExitStack()
    for name in ("spans", "as_decided"):
        stack.enter_context(patch.object(tracing, name, lambda *_: {}))
    stack.enter_context(patch.object(tracing, "CONTINUE", []))
    stack.enter_context(patch.object(tracing, "RESTORE", {}))
    from bedstone.control.mesh import counting

    stack.enter_context(patch.object(tracing, "records", lambda: counting.exceptional("again")))
    return stack


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        start = stack.enter_async_context
        program = free_port()
        places: dict[str, tuple[int, int]] = {}
        async with without_tracing():
            rig = await start(mesh_rig())
            await start(envoy(rig.directory, "program", answering(program), program))
            places["plain"] = await declared(rig, program)
        for name, value in (("unsampled", 0.0), ("sampled", options.share)):
            rig = await start(mesh_rig())
            nothing = Discard()
            server = await otlp_grpc.serve(
                Intake(nothing, nothing, nothing), rig.directory / "collector.sock"
            )
            stack.push_async_callback(server.stop, 0)
            places[name] = await declared(rig, program)
            await share(rig, value)
        results: dict[str, list[dict[str, float]]] = {name: [] for name in places}
        for port, _ in places.values():
            await load(port, 1, options.connections, "")  # warm
        for turn in range(options.rounds):
            for name in sorted(places, reverse=turn % 2 == 0):
                port, pid = places[name]
                used = cpu_seconds(pid)
                found = await load(port, options.seconds, options.connections, "")
                used = cpu_seconds(pid) - used
                found["cpu_us"] = used / (found["rps"] * options.seconds) * 1e6
                results[name].append(found)
                print(name, found, file=sys.stderr)
    medians = {
        name: {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        for name, rounds in results.items()
    }
    ratios = {
        f"{name}_to_plain": {
            key: round(
                statistics.median(
                    ours[key] / theirs[key]
                    for ours, theirs in zip(results[name], results["plain"], strict=True)
                ),
                3,
            )
            for key in results[name][0]
        }
        for name in ("unsampled", "sampled")
    }
    return {**medians, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--share", type=float, default=0.01)
    print(json.dumps(asyncio.run(measure(parser.parse_args())), indent=1))


if __name__ == "__main__":
    main()
