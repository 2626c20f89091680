"""What the monitoring's collection costs, and how old what is shown is.

    python benchmarks/collection.py [cost] [traffic] [staleness] [--rounds 8] [--seconds 4]

`cost`: processor time and memory of one second, at the node (Envoy's text to a frame) and at the
server (the frame into the store), by the number of series; of these, as many change each second as
`--changing` says (0.5). And Envoy's own, to say its statistics.

`traffic`: the mesh's path of `mesh_path.py` (client, outbound listener, mutual TLS, inbound
listener, program), four times side by side. `unread` has Envoy's own statistics, which nobody
reads, and neither an access log nor tracing; `none` has not even statistics; `counted` has those
that we keep, counts exceptions and is read once a second, without tracing; `mesh` is what we
generate, tracing included, with a receiver of spans, at the share of traces that a node comes to at
such a rate. Rounds are interleaved; medians of ratios
count.

`staleness`: requests at a small app's gateway at random moments, until the API's tick after which a
query counts them.

Load comes from `wrk` where it is installed (`apt install wrk`). Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self
from unittest import mock

import httpx
from mesh_path import (  # type: ignore[import-not-found]  # beside this file
    answering,
    cpu_seconds,
    envoy,
    load,
)

from bedstone.control.mesh import counting, listeners, tracing
from bedstone.control.monitoring.series_store import SeriesStore
from bedstone.engines.envoy import EnvoyEngine
from bedstone.model.spec import AppSpec, WorkloadSpec
from bedstone.node.collector import otlp_grpc
from bedstone.node.collector.envoy import EnvoyStatistics
from bedstone.node.collector.envoy_text import EnvoyCounts, Naming
from bedstone.node.collector.intake import Discard, Intake
from bedstone.node.collector.runtime import ProxyRuntime, share
from bedstone.node.collector.sampling import LEAST
from bedstone.processes.state import run_directory
from bedstone.telemetry import frames
from bedstone.telemetry.frame_builder import FrameBuilder
from bedstone.telemetry.names import BUCKETS
from bedstone.telemetry.requests import SAMPLING_KEY
from bedstone.testing.domain import Domain
from bedstone.testing.mesh import MeshRig, free_port, mesh_rig

NAMING = Naming("n1", lambda _: "r1")
SMALL = """
app: small
gateway: {port: 8080, routes: [{path: /, to: files}]}
workloads:
  files: {command: [python, serve.py]}
"""


# What one second costs.


def texts(series: int, changing: float, seconds: int) -> Iterator[bytes]:
    """What an Envoy with so many series would say each second."""
    chance = random.Random(1)
    kept = []
    for instance in range(1 + series // (len(BUCKETS) + 7)):
        path = f'envoy_http_conn_manager_prefix="inbound/bank/default/web/w{instance}"'
        name = "envoy_http_downstream_rq_xx"
        kept += [f'{name}{{envoy_response_code_class="{code}",{path}}}' for code in "2345"]
        name = "envoy_http_downstream_rq_time"
        kept += [f'{name}_bucket{{{path},le="{bound - 0.5}"}}' for bound in BUCKETS]
        kept += [f'{name}_bucket{{{path},le="+Inf"}}', f"{name}_sum{{{path}}}"]
        kept.append(f"{name}_count{{{path}}}")
    kept = kept[:series]
    values = [0] * len(kept)
    for _ in range(seconds):
        for i in chance.sample(range(len(kept)), int(changing * len(kept))):
            values[i] += chance.randrange(1, 100)
        lines = (f"{name} {value}" for name, value in zip(kept, values, strict=True))
        yield ("\n".join(lines) + "\n").encode()


def memory() -> float:
    """Resident MiB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def cost(series: int, changing: float, seconds: int = 40) -> dict[str, float]:
    """Milliseconds of processor time a second, MiB and bytes; medians."""
    spoken = list(texts(series, changing, seconds))
    gc.collect()
    before = memory()
    counts, builder = EnvoyCounts(NAMING), FrameBuilder()
    node, server, sizes = [], [], []
    encoded = []
    for second, text in enumerate(spoken):
        start = time.process_time()
        values = counts.update(text)
        frame = builder.build(1_800_000_000 + second, values, {"envoy": "1"}, {})
        encoded.append(frames.encode(frame))
        node.append(time.process_time() - start)
        sizes.append(len(encoded[-1]))
    node_memory = memory() - before
    before = memory()
    with tempfile.TemporaryDirectory() as folder:
        store = SeriesStore(Path(folder) / "metrics.sqlite")
        store.open()
        for second, data in enumerate(encoded):
            start = time.process_time()
            store.ingest("n1", frames.decode(data))
            store.finish(1_800_000_000 + second, {})
            server.append(time.process_time() - start)
        server_memory = memory() - before
        start = time.process_time()
        store.close()
        closing = time.process_time() - start
    half = seconds // 2  # the first have everything new
    return {
        "series": len(counts.values),
        "node_ms": round(statistics.median(node[half:]) * 1000, 2),
        "node_mib": round(node_memory, 1),
        "frame_bytes": statistics.median(sizes[half:]),
        "server_ms": round(statistics.median(server[half:]) * 1000, 2),
        "server_mib": round(server_memory, 1),
        "server_close_ms": round(closing * 1000, 1),
    }


async def proxy_cost(workloads: int, readings: int = 50) -> dict[str, float]:
    """Envoy's processor time to say its statistics, with so many workloads that are used."""
    async with mesh_rig() as rig:
        program = free_port()
        async with envoy(rig.directory, "program", answering(program), program):
            names = [f"w{i}" for i in range(workloads)]
            specs = {"web": WorkloadSpec(command=("x",), uses=tuple(names))}
            specs |= {name: WorkloadSpec(command=("x",)) for name in names}
            rig.declare(AppSpec(app="bank", workloads=specs))
            web = rig.add("bank", "web", "w", program)
            for name in names:
                rig.add("bank", name, "i", program)
            await rig.settle(60)
            assert web.plumbing is not None
            proxy = f"http://127.0.0.1:{web.plumbing.outbound.port}"
            async with httpx.AsyncClient(proxy=proxy) as client:
                for name in names:
                    (await client.get(f"http://{name}/")).raise_for_status()
            assert rig.envoy is not None
            reader = EnvoyStatistics(rig.engine.admin_socket, NAMING, 5.0)
            took, own = [], []
            used = cpu_seconds(rig.envoy.pid)
            for _ in range(readings):
                start, spent = time.perf_counter(), time.process_time()
                reader.merge()
                values = await asyncio.to_thread(reader.read)
                took.append(time.perf_counter() - start)
                own.append(time.process_time() - spent)
            used = cpu_seconds(rig.envoy.pid) - used
            reader.close()
            return {
                "series": len(values),
                "envoy_ms": round(used / readings * 1000, 2),
                "reading_ms": round(statistics.median(took) * 1000, 2),
                "collector_ms": round(statistics.median(own) * 1000, 2),
            }


# What it costs the traffic.


@contextmanager
def configured(name: str) -> Iterator[None]:
    """What is generated inside is without tracing, and counted as the module's text says."""
    bootstrap = EnvoyEngine.bootstrap
    counted = name == "counted"

    def other(self: EnvoyEngine) -> dict[str, Any]:
        found = bootstrap(self)
        found["stats_config"] = {}
        if name == "none":
            found["stats_config"] = {"stats_matcher": {"reject_all": True}}
        return found

    http = listeners._http  # noqa: SLF001 - what is measured is what it adds

    def plain(name: str, routes: str, **options: Any) -> dict[str, Any]:
        access = [counting.exceptional(name)] if counted else []
        return http(name, routes, **{"access_log": access, **options})

    patches = [
        mock.patch.object(listeners, "_http", plain),
        mock.patch.object(tracing, "spans", return_value={}),
        mock.patch.object(tracing, "as_decided", dict),
        mock.patch.object(tracing, "BEGIN", []),
        mock.patch.object(tracing, "CONTINUE", []),
    ]
    if not counted:
        patches.append(mock.patch.object(EnvoyEngine, "bootstrap", other))
    with started(patches):
        yield


@contextmanager
def started(patches: list[Any]) -> Iterator[None]:
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in reversed(patches):
            patch.stop()


class Reading:
    """A collector: reads one Envoy once a second, and makes a frame of it."""

    def __init__(self, rig: MeshRig) -> None:
        self._reader = EnvoyStatistics(rig.engine.admin_socket, NAMING, 1.0)
        self._builder = FrameBuilder()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.failures = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._reader.close()

    def _run(self) -> None:
        second = 0
        while not self._stop.wait(1.0):
            second += 1
            try:
                self._reader.merge()
                values = self._reader.read()
            except Exception:  # noqa: BLE001 - counted, and said at the end
                self.failures += 1
                continue
            incarnations = {"envoy": self._reader.incarnation}
            frames.encode(self._builder.build(second, values, incarnations, {}))


@asynccontextmanager
async def meshed(program: int, *, spans: bool) -> AsyncIterator[tuple[MeshRig, int]]:
    """A mesh in front of a program; the port of its outbound listener."""
    async with mesh_rig() as rig, AsyncExitStack() as stack:
        if spans:
            intake = Intake(Discard(), Discard(), Discard())
            server = await otlp_grpc.serve(intake, rig.directory / "collector.sock")
            stack.push_async_callback(server.stop, 0)
        workloads = {
            "web": WorkloadSpec(command=("x",), uses=("risk",)),
            "risk": WorkloadSpec(command=("x",)),
        }
        rig.declare(AppSpec(app="bank", workloads=workloads))
        web = rig.add("bank", "web", "w1", program)
        rig.add("bank", "risk", "r1", program)
        await rig.settle()
        if spans:
            # what the node's own sampling comes to at such a rate
            runtime = ProxyRuntime(rig.engine.admin_socket, lambda: 1)
            runtime.set(SAMPLING_KEY, share(LEAST))
            assert await runtime.tell()
        assert web.plumbing is not None
        yield rig, web.plumbing.outbound.port


async def traffic(rounds: int, seconds: float, connections: int) -> dict[str, Any]:
    """Throughput and processor time a request, with and without."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bs-")))
        program = free_port()
        start = stack.enter_async_context
        await start(envoy(directory, "program", answering(program), program))
        rigs: dict[str, tuple[MeshRig, int]] = {}
        for name in ("unread", "none", "counted"):
            with configured(name):
                rigs[name] = await start(meshed(program, spans=False))
        rigs["mesh"] = await start(meshed(program, spans=True))
        results: dict[str, list[dict[str, float]]] = {name: [] for name in rigs}
        with Reading(rigs["counted"][0]) as one, Reading(rigs["mesh"][0]) as other:
            for _, port in rigs.values():
                await load(port, 1, connections, "")  # warm
            order = list(rigs)
            for turn in range(rounds):
                for name in order if turn % 2 else reversed(order):
                    rig, port = rigs[name]
                    assert rig.envoy is not None
                    used = cpu_seconds(rig.envoy.pid)
                    found = await load(port, seconds, connections, "")
                    used = cpu_seconds(rig.envoy.pid) - used
                    found["cpu_us"] = used / (found["rps"] * seconds) * 1e6
                    results[name].append(found)
                    print(name, found, file=sys.stderr)
        assert one.failures + other.failures == 0
    return {
        "medians": {
            name: {key: round(statistics.median(r[key] for r in got), 2) for key in got[0]}
            for name, got in results.items()
        },
        **{
            f"{name}_to_{base}": {
                key: round(
                    statistics.median(
                        ours[key] / theirs[key]
                        for ours, theirs in zip(results[name], results[base], strict=True)
                    ),
                    3,
                )
                for key in results[name][0]
            }
            for name, base in (
                ("counted", "unread"),
                ("counted", "none"),
                ("mesh", "counted"),
                ("mesh", "unread"),
            )
        },
    }


# How old what is shown is.


def staleness(events: int) -> dict[str, float]:
    """Seconds from a request to the tick after which the API counts it."""
    domain = Domain.make(manifest=SMALL)
    (domain.directory / "serve.py").write_text(
        "import http.server as h, os\n"
        "h.test(h.SimpleHTTPRequestHandler, port=int(os.environ['PORT']), bind='127.0.0.1')\n"
    )
    sent: list[float] = []
    shown: list[float] = []
    ended = threading.Event()

    def requests() -> None:
        chance = random.Random(2)
        with httpx.Client(trust_env=False) as client:
            for _ in range(events):
                time.sleep(chance.uniform(0.02, 0.4))
                client.get(domain.url)
                sent.append(time.time())
        ended.set()

    try:
        domain.up()
        time.sleep(3)
        socket = os.fspath(run_directory(domain.state) / "api.sock")
        transport = httpx.HTTPTransport(uds=socket)
        query = {"query": 'sum(bedstone_gateway_requests_total{app="small"})'}
        with httpx.Client(transport=transport, base_url="http://server", timeout=30) as client:

            def counted() -> int:
                answer = client.get("/prometheus/api/v1/query", params=query).json()
                result = answer["data"]["result"]
                return int(float(result[0]["value"][1])) if result else 0

            first = counted()
            worker = threading.Thread(target=requests)
            worker.start()
            with client.stream("GET", "/v1/ticks") as ticks:
                for _ in ticks.iter_lines():
                    known = counted() - first
                    shown += [time.time()] * (known - len(shown))
                    if ended.is_set() and len(shown) >= events:
                        break
            worker.join()
    finally:
        domain.down()
        domain.discard()
    ages = sorted(s - e for s, e in zip(shown, sent, strict=True))
    return {
        "events": len(ages),
        "p50_s": round(ages[len(ages) // 2], 3),
        "p99_s": round(ages[int(len(ages) * 0.99)], 3),
        "most_s": round(ages[-1], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("parts", nargs="*", default=["cost", "traffic", "staleness"])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--changing", type=float, default=0.5)
    parser.add_argument("--events", type=int, default=200)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    if "cost" in options.parts:
        found["cost"] = [cost(series, options.changing) for series in (1_000, 10_000)]
        found["proxy"] = [asyncio.run(proxy_cost(workloads)) for workloads in (10, 100)]
    if "traffic" in options.parts:
        found["traffic"] = asyncio.run(
            traffic(options.rounds, options.seconds, options.connections)
        )
    if "staleness" in options.parts:
        found["staleness"] = staleness(options.events)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
