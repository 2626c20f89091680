"""The mesh's path against the same Envoy with a hand-written static configuration of the same hops.

All: client → listener (HTTP/1.1) → mutual TLS, HTTP/2 → listener → program. The program is an
Envoy of its own that answers with 1 KiB, so that it is not what is measured. `bare` only connects;
`equal` also says who may call, tells the program the caller, and retries, as anyone would write it
who needs what the mesh gives; `mesh` is what we generate, with deadlines and outcomes besides.
Rounds are interleaved; medians and their ratios count, and not the absolute numbers. `cpu_us` is
the proxy's processor time for a request, which a busy machine disturbs least.

    python benchmarks/mesh_path.py [--rounds 6] [--seconds 3] [--connections 32] [--credential]

Load comes from `wrk` where it is installed (`apt install wrk`), else from a small loader in Python,
which is slower than what it measures. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from bedstone.engines.programs import envoy_program
from bedstone.model.spec import AppSpec, WorkloadSpec
from bedstone.testing.mesh import HOST, MeshRig, free_port, mesh_rig, wait_open
from bedstone.trust.svid import Svid

TYPE = "type.googleapis.com/envoy."
BODY = "x" * 1024


def at(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": HOST, "port_value": port}}


ROUTER = {
    "name": "envoy.filters.http.router",
    "typed_config": {"@type": f"{TYPE}extensions.filters.http.router.v3.Router"},
}


def allow(spiffe_id: str) -> dict[str, Any]:
    """The filter that lets one identity in."""
    principal = {"authenticated": {"principal_name": {"exact": spiffe_id}}}
    policy = {"permissions": [{"any": True}], "principals": [principal]}
    return {
        "name": "envoy.filters.http.rbac",
        "typed_config": {
            "@type": f"{TYPE}extensions.filters.http.rbac.v3.RBAC",
            "rules": {"action": "ALLOW", "policies": {"callers": policy}},
        },
    }


def http(routes: dict[str, Any], *filters: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": f"{TYPE}extensions.filters.network.http_connection_manager.v3"
            ".HttpConnectionManager",
            "stat_prefix": "h",
            "generate_request_id": False,
            "route_config": {
                "virtual_hosts": [{"name": "h", "domains": ["*"], "routes": [routes]}]
            },
            "http_filters": [*filters, ROUTER],
        },
    }


def cluster(name: str, port: int, protocol: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at(port)}}]}],
        },
        "circuit_breakers": {
            "thresholds": [
                dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), 100000)
            ]
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{TYPE}extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {protocol: {}},
            }
        },
        **more,
    }


def tls(kind: str, svid: Svid, directory: Path, **more: Any) -> dict[str, Any]:
    stem = directory / svid.spiffe_id.rpartition("/")[2]
    for suffix, text in ((".pem", svid.chain), (".key", svid.key), (".ca", svid.bundle)):
        stem.with_suffix(suffix).write_text(text)
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{TYPE}extensions.transport_sockets.tls.v3.{kind}",
            "common_tls_context": {
                "alpn_protocols": ["h2"],
                "tls_params": {
                    "tls_minimum_protocol_version": "TLSv1_3",
                    "tls_maximum_protocol_version": "TLSv1_3",
                },
                "tls_certificates": [
                    {
                        "certificate_chain": {"filename": str(stem.with_suffix(".pem"))},
                        "private_key": {"filename": str(stem.with_suffix(".key"))},
                    }
                ],
                "validation_context": {"trusted_ca": {"filename": str(stem.with_suffix(".ca"))}},
            },
            **more,
        },
    }


def listener(name: str, port: int, filters: Any, **chain: Any) -> dict[str, Any]:
    return {
        "name": name,
        "address": at(port),
        "enable_reuse_port": False,
        "filter_chains": [{"filters": [filters], **chain}],
    }


def to(name: str) -> dict[str, Any]:
    return {"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "60s"}}


def static(rig: MeshRig, entry: int, inbound: int, program: int, *, equal: bool) -> dict[str, Any]:
    """The same hops, written by hand."""
    web, risk = rig.identity("bank", "web"), rig.identity("bank", "risk")
    up = tls("UpstreamTlsContext", web, rig.directory)
    down = tls("DownstreamTlsContext", risk, rig.directory, require_client_certificate=True)
    outward, inward, filters = to("risk"), to("program"), []
    if equal:
        outward["route"]["retry_policy"] = {
            "retry_on": "connect-failure,refused-stream,reset,gateway-error",
            "num_retries": 2,
        }
        caller = {"key": "x-bedstone-caller", "value": "%DOWNSTREAM_PEER_URI_SAN%"}
        inward["request_headers_to_add"] = [
            {"header": caller, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        ]
        filters.append(allow(web.spiffe_id))
    return {
        "static_resources": {
            "listeners": [
                listener("outbound", entry, http(outward)),
                listener("inbound", inbound, http(inward, *filters), transport_socket=down),
            ],
            "clusters": [
                cluster("risk", inbound, "http2_protocol_options", transport_socket=up),
                cluster("program", program, "http_protocol_options"),
            ],
        }
    }


def answering(port: int) -> dict[str, Any]:
    reply = {"status": 200, "body": {"inline_string": BODY}}
    route = {"match": {"prefix": "/"}, "direct_response": reply}
    return {"static_resources": {"listeners": [listener("program", port, http(route))]}}


@asynccontextmanager
async def envoy(
    directory: Path, name: str, config: dict[str, Any], port: int
) -> AsyncIterator[int]:
    """A running Envoy; its process id."""
    path = directory / f"{name}.json"
    path.write_text(json.dumps(config))
    with (directory / f"{name}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            str(envoy_program()),
            *("-c", str(path), "--concurrency", "1", "--disable-hot-restart", "-l", "warning"),
            stdout=log,
            stderr=log,
        )
    try:
        async with asyncio.timeout(20):
            await wait_open(port)
        yield process.pid
    finally:
        process.kill()
        await process.wait()


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(port: int, seconds: float, connections: int, header: str) -> dict[str, float]:
    """Requests a second, and the 50th and 99th percentile in milliseconds."""
    if shutil.which("wrk"):
        headers = ["-H", "Host: risk", *(["-H", header] if header else [])]
        process = await asyncio.create_subprocess_exec(
            "wrk",
            *("-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", *headers),
            f"http://{HOST}:{port}/",
            stdout=asyncio.subprocess.PIPE,
        )
        output = (await process.communicate())[0].decode()
        if "Non-2xx" in output:
            raise SystemExit(f"requests failed:\n{output}")
        unit = {"us": 0.001, "ms": 1.0, "s": 1000.0}

        def percentile(which: str) -> float:
            found = re.search(rf"{which}%\s+([\d.]+)(us|ms|s)", output)
            return float(found[1]) * unit[found[2]] if found else float("nan")

        rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
        return {
            "rps": float(rate[1]) if rate else float("nan"),
            "p50_ms": percentile("50"),
            "p99_ms": percentile("99"),
        }
    return await _python_load(port, seconds, connections, header)


async def _python_load(
    port: int, seconds: float, connections: int, header: str
) -> dict[str, float]:
    request = f"GET / HTTP/1.1\r\nhost: risk\r\n{header + chr(13) + chr(10) if header else ''}\r\n"
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def connection() -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        while (start := time.perf_counter()) < end:
            writer.write(request.encode())
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(head.decode())
            await reader.readexactly(len(BODY))
            times.append(time.perf_counter() - start)
        writer.close()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(connection())
    ordered = sorted(times)
    return {
        "rps": len(times) / seconds,
        "p50_ms": ordered[len(ordered) // 2] * 1000,
        "p99_ms": ordered[int(len(ordered) * 0.99)] * 1000,
    }


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        rig = await stack.enter_async_context(mesh_rig())
        program = free_port()
        start = stack.enter_async_context
        await start(envoy(rig.directory, "program", answering(program), program))
        ports: dict[str, int] = {}
        pids: dict[str, int] = {}
        for kind in ("bare", "equal"):
            entry, inbound = free_port(), free_port()
            config = static(rig, entry, inbound, program, equal=kind == "equal")
            pids[kind] = await start(envoy(rig.directory, kind, config, entry))
            ports[kind] = entry
        workloads = {
            "web": WorkloadSpec(command=("x",), uses=("risk",)),
            "risk": WorkloadSpec(command=("x",)),
        }
        rig.declare(AppSpec(app="bank", workloads=workloads))
        credential = "Basic dzpzZWNyZXQ=" if options.credential else None
        web = rig.add("bank", "web", "w1", program, credential=credential)
        rig.add("bank", "risk", "r1", program)
        await rig.settle()
        assert web.plumbing is not None
        header = f"Proxy-Authorization: {credential}" if credential else ""
        ports["mesh"] = web.plumbing.outbound.port
        assert rig.envoy is not None
        pids["mesh"] = rig.envoy.pid
        results: dict[str, list[dict[str, float]]] = {name: [] for name in ports}
        for port in ports.values():
            await load(port, 1, options.connections, header)  # warm
        for turn in range(options.rounds):
            for name in sorted(ports, reverse=turn % 2 == 0):
                used = cpu_seconds(pids[name])
                found = await load(ports[name], options.seconds, options.connections, header)
                used = cpu_seconds(pids[name]) - used
                found["cpu_us"] = used / (found["rps"] * options.seconds) * 1e6
                results[name].append(found)
                print(name, found, file=sys.stderr)
    medians = {
        name: {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        for name, rounds in results.items()
    }
    ratios = {
        f"mesh_to_{base}": {
            key: round(
                statistics.median(
                    ours[key] / theirs[key]
                    for ours, theirs in zip(results["mesh"], results[base], strict=True)
                ),
                3,
            )
            for key in results["mesh"][0]
        }
        for base in ("bare", "equal")
    }
    return {"loader": "wrk" if shutil.which("wrk") else "python", **medians, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--credential", action="store_true", help="with a proxy credential")
    print(json.dumps(asyncio.run(measure(parser.parse_args())), indent=1))


if __name__ == "__main__":
    main()
