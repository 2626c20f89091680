"""What one changed endpoint costs the control plane: bytes, time to the last answer, memory.

Simulated delta-ADS clients (in worker processes) subscribe as a node's Envoy does to the clusters
and endpoints of a service with many instances; then one endpoint after another changes. The same
is done with fewer clients, and with a service that few clients use: cost must follow the change.

    python benchmarks/control_scale.py [--clients 1000] [--endpoints 10000] [--changes 20]

Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import grpc.aio

from bedstone.control.mesh.mesh import Mesh
from bedstone.control.mesh.names import Service, Type, leds_collection
from bedstone.control.mesh.protos import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from bedstone.control.mesh.views import NodeProxy
from bedstone.errors import DeniedError
from bedstone.model.resources import (
    Address,
    App,
    Instance,
    InstanceStatus,
    Phase,
    Plumbing,
    Presence,
    Resource,
)
from bedstone.model.spec import AppSpec, WorkloadSpec
from bedstone.server.ads import AdsService, Context

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
DOMAIN = "scale.internal"
APP = "fleet"
RARE = "rare"
OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 256 << 20),
)


def authorize(context: Context) -> NodeProxy:
    for key, value in context.invocation_metadata() or ():
        if key == "node":
            return NodeProxy(str(value))
    raise DeniedError("no node")


def resident() -> int:
    """Resident memory of this process, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) // 1024
    return 0


def node_resources(node: int, per_node: int, nodes: int) -> list[Resource]:
    """A node with one instance that calls, and its share of the large service."""
    name = f"n{node}"
    result: list[Resource] = [Presence(node=name)]
    callers = ["web"] + (["few"] if node < max(1, nodes // 100) else [])
    own = [(caller, f"{caller}-{node}") for caller in callers]
    own += [("risk", f"risk-{node}-{i}") for i in range(per_node)]
    if node < 3:
        own.append((RARE, f"rare-{node}"))
    for i, (workload, instance) in enumerate(own):
        ids: dict[str, Any] = {"app": APP, "workload": workload, "name": instance, "node": name}
        host = f"10.{node >> 8}.{node & 255}.1"
        address = [Address(host=host, port=10_000 + 3 * i + k) for k in range(3)]
        plumbing = Plumbing(app=address[0], inbound=address[1], outbound=address[2])
        result.append(Instance(**ids, revision="r"))
        result.append(InstanceStatus(**ids, revision="r", phase=Phase.READY, plumbing=plumbing))
    return result


async def client(address: str, node: int) -> None:
    """Subscribe as an Envoy does, and acknowledge everything."""
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        call: Any = channel.stream_stream(METHOD)(metadata=(("node", f"n{node}"),))
        followed: set[str] = set()

        async def send(**fields: Any) -> None:
            await call.write(DeltaDiscoveryRequest(**fields).SerializeToString())

        async def follow(kind: Type, name: str) -> None:
            if name not in followed:
                followed.add(name)
                await send(type_url=kind.value, resource_names_subscribe=[name])

        await send(type_url=Type.CDS.value)
        while (data := await call.read()) is not grpc.aio.EOF:
            response = DeltaDiscoveryResponse.FromString(data)
            for resource in response.resources:
                match resource.name.split("/"):
                    case ["to", app, cell, _, callee]:
                        await follow(Type.EDS, f"{app}/{cell}/{callee}")
                    case [app, cell, workload] if b"xdstp" in resource.resource.value:
                        service = Service(app, cell, workload)
                        await follow(Type.LEDS, leds_collection(DOMAIN, service))
                    case _:
                        pass
            answer = {"type_url": response.type_url, "response_nonce": response.nonce}
            del data, response  # large, and the next read may be long in coming
            await send(**answer)


def worker(address: str, nodes: list[int]) -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            for node in nodes:
                tasks.create_task(client(address, node))
                await asyncio.sleep(0.002)

    try:
        asyncio.run(main())
    except (KeyboardInterrupt, ExceptionGroup):
        sys.exit(0)


async def idle(ads: AdsService, clients: int) -> None:
    """Wait until all clients are connected and have acknowledged everything."""
    while True:
        states = ads.proxies()
        done = (not s.pending and {"EDS", "LEDS"} <= s.subscribed.keys() for s in states)
        if len(states) == clients and all(done):
            return
        print(f"{len(states)} of {clients} clients connected", file=sys.stderr)
        await asyncio.sleep(0.5)  # to look costs as much as there are clients


async def measure(
    mesh: Mesh, ads: AdsService, statuses: list[InstanceStatus], workload: str, changes: int
) -> dict[str, Any]:
    """One endpoint after another leaves and comes back."""
    times, sent, responses, cpu = [], [], [], []
    for i in range(changes):
        status = statuses[i // 2 % len(statuses)]
        phase = Phase.UNREADY if i % 2 == 0 else Phase.READY
        before, before_responses = ads.bytes_sent, ads.responses_sent
        start, start_cpu = time.perf_counter(), time.process_time()
        mesh.apply([status.model_copy(update={"phase": phase})])
        assert await ads.settled(APP, workload, 60)
        times.append((time.perf_counter() - start) * 1000)
        cpu.append((time.process_time() - start_cpu) * 1000)
        sent.append(ads.bytes_sent - before)
        responses.append(ads.responses_sent - before_responses)
        await asyncio.sleep(0.02)
    return {
        "last_ack_ms_p50": round(statistics.median(times), 2),
        "last_ack_ms_max": round(max(times), 2),
        "server_cpu_ms_p50": round(statistics.median(cpu), 2),
        "bytes_per_change": round(statistics.mean(sent)),
        "bytes_per_change_and_client": round(statistics.mean(sent) / statistics.mean(responses)),
        "clients_told_per_change": round(statistics.mean(responses)),
    }


async def scenario(clients: int, endpoints: int, changes: int) -> dict[str, Any]:
    mesh = Mesh(DOMAIN)
    nodes = max(clients, 1)
    workloads = {
        "web": WorkloadSpec(command=("x",), uses=("risk",)),
        "few": WorkloadSpec(command=("x",), uses=(RARE,)),
        "risk": WorkloadSpec(command=("x",)),
        RARE: WorkloadSpec(command=("x",)),
    }
    mesh.hold()
    mesh.apply([App(name=APP, spec=AppSpec(app=APP, workloads=workloads))])
    start = time.perf_counter()
    everything = [r for n in range(nodes) for r in node_resources(n, endpoints // nodes, nodes)]
    built = time.perf_counter() - start
    start = time.perf_counter()
    mesh.apply(everything)
    applied = time.perf_counter() - start
    ads = AdsService(mesh, authorize)
    server = grpc.aio.server()
    ads.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    mesh.release()
    memory = {"rss_before_clients_mib": resident()}
    context = multiprocessing.get_context("spawn")
    count = min(2, os.cpu_count() or 1)
    workers = [
        context.Process(
            target=worker, args=(f"127.0.0.1:{port}", list(range(i, clients, count))), daemon=True
        )
        for i in range(count)
    ]
    start = time.perf_counter()
    for process in workers:
        process.start()
    try:
        await idle(ads, clients)
        connected = time.perf_counter() - start
        memory["rss_connected_mib"] = resident()
        ready = [r for r in everything if isinstance(r, InstanceStatus)]
        large = [s for s in ready if s.workload == "risk"]
        rare = [s for s in ready if s.workload == RARE]
        result = {
            "clients": clients,
            "endpoints": len(large),
            "snapshot_applied_s": round(applied, 3),
            "models_built_s": round(built, 3),
            "all_clients_synced_s": round(connected, 2),
            "bytes_for_first_sync": ads.bytes_sent,
            "large_service": await measure(mesh, ads, large, "risk", changes),
            "service_of_few": await measure(mesh, ads, rare, RARE, changes),
        }
        memory["rss_after_changes_mib"] = resident()
        return result | memory
    finally:
        for process in workers:
            process.terminate()
        for process in workers:
            process.join()
        await server.stop(0)


def child(clients: int, endpoints: int, changes: int, out: Any) -> None:
    out.send(asyncio.run(scenario(clients, endpoints, changes)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--endpoints", type=int, default=10_000)
    parser.add_argument("--changes", type=int, default=20)
    options = parser.parse_args()
    results = []
    context = multiprocessing.get_context("spawn")
    for clients in sorted({max(1, options.clients // 10), options.clients}):
        # a process each, so that memory is that of one run
        receive, send = context.Pipe(duplex=False)
        process = context.Process(
            target=child, args=(clients, options.endpoints, options.changes, send)
        )
        process.start()
        send.close()
        results.append(receive.recv())
        process.join()
    print(json.dumps({"cpus": os.cpu_count(), "runs": results}, indent=1))


if __name__ == "__main__":
    main()
