"""Stock grpcio clients: through the HTTP proxy by CONNECT, and proxyless by `xds:///`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from bedstone.model.resources import InstanceStatus, Phase
from bedstone.model.spec import AppSpec, WorkloadSpec
from bedstone.testing.mesh import HOST, MeshRig
from bedstone.testing.mesh_programs import run

CLIENT = """
import sys, time, grpc
target, kind, calls = sys.argv[1], sys.argv[2], int(sys.argv[3])
if kind == "xds":
    channel = grpc.secure_channel(target, grpc.xds_channel_credentials())
else:
    channel = grpc.insecure_channel(target)
call = channel.unary_unary("/bedstone.test.Echo/Say")
for _ in range(calls):
    try:
        print("ok", call(b"hello", timeout=10).decode(), flush=True)
    except grpc.RpcError as error:
        print("error", error.code().name, error.details(), flush=True)
"""


class _Echo(grpc.GenericRpcHandler):
    def __init__(self, name: str, delay: float = 0.0) -> None:
        self.name = name
        self.delay = delay

    def service(self, details: Any) -> Any:
        async def say(request: bytes, context: Any) -> bytes:
            await asyncio.sleep(self.delay)
            metadata = dict(context.invocation_metadata())
            caller = metadata.get("x-bedstone-caller", "").rpartition("/")[2]
            return f"{self.name} {request.decode()} {caller}".encode()

        return grpc.unary_unary_rpc_method_handler(say)


@contextlib.asynccontextmanager
async def grpc_program(name: str, delay: float = 0.0) -> AsyncIterator[int]:
    server = grpc.aio.server(handlers=[_Echo(name, delay)])
    port = server.add_insecure_port(f"{HOST}:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


async def client(target: str, kind: str, calls: int, **env: str) -> list[str]:
    """Lines that the client prints, one for each call."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", CLIENT, target, kind, str(calls)),
        stdout=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], **env},
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    return output.decode().splitlines()


def bootstrap(rig: MeshRig, workload: str, instance: str) -> Path:
    """What a proxyless client is started with."""
    svid = rig.identity("bank", workload)
    chain, key, authority = (rig.directory / f"{workload}-{n}" for n in ("chain", "key", "ca"))
    chain.write_text(svid.chain)
    key.write_text(svid.key)
    authority.write_text(svid.bundle)
    files = {
        "certificate_file": str(chain),
        "private_key_file": str(key),
        "ca_certificate_file": str(authority),
    }
    path = rig.directory / f"{workload}.json"
    path.write_text(
        json.dumps(
            {
                "xds_servers": [
                    {
                        "server_uri": f"{HOST}:{rig.ads_port}",
                        "channel_creds": [{"type": "tls", "config": files}],
                        "server_features": ["xds_v3"],
                    }
                ],
                "node": {"id": f"bank/{workload}/{instance}"},
                "certificate_providers": {
                    "default": {
                        "plugin_name": "file_watcher",
                        "config": {**files, "refresh_interval": "60s"},
                    }
                },
            }
        )
    )
    return path


def declare(rig: MeshRig) -> None:
    workloads = {
        "web": WorkloadSpec(command=("unused",), uses=("risk",)),
        "risk": WorkloadSpec(command=("unused",), protocol="grpc"),
        "other": WorkloadSpec(command=("unused",), protocol="grpc"),
    }
    rig.declare(AppSpec(app="bank", workloads=workloads))


def outbound(status: InstanceStatus, credential: str = "") -> str:
    assert status.plumbing is not None
    user = f"{credential}@" if credential else ""
    return f"http://{user}{HOST}:{status.plumbing.outbound.port}"


def test_grpc_goes_through_the_http_proxy_by_connect() -> None:
    async def scenario(rig: MeshRig) -> None:
        async with grpc_program("one") as port:
            declare(rig)
            web = rig.add("bank", "web", "w1", port, credential="Basic dzpzZWNyZXQ=")
            rig.add("bank", "risk", "r1", port)
            rig.add("bank", "other", "o1", port)
            await rig.settle()
            proxy = outbound(web, "w:secret")
            assert await client("risk:80", "tcp", 3, http_proxy=proxy) == ["ok one hello web"] * 3
            (denied,) = await client("other:80", "tcp", 1, http_proxy=proxy)
            assert denied.startswith("error UNAVAILABLE")
            (anonymous,) = await client("risk:80", "tcp", 1, http_proxy=outbound(web))
            assert anonymous.startswith("error UNAVAILABLE")

    run(scenario)


def test_proxyless_client_reaches_what_it_declares_only() -> None:
    async def scenario(rig: MeshRig) -> None:
        async with grpc_program("one") as one, grpc_program("two") as two:
            declare(rig)
            rig.add("bank", "risk", "r1", one)
            second = rig.add("bank", "risk", "r2", two)
            rig.add("bank", "other", "o1", one)
            await rig.settle()
            env = {"GRPC_XDS_BOOTSTRAP": str(bootstrap(rig, "web", "w1"))}
            lines = await client("xds:///risk", "xds", 6, **env)
            assert sorted(set(lines)) == ["ok one hello web", "ok two hello web"]
            rig.update(second, phase=Phase.UNREADY)
            assert await rig.ads.settled("bank", "risk", 20)
            assert set(await client("xds:///risk", "xds", 4, **env)) == {"ok one hello web"}
            (denied,) = await client("xds:///other", "xds", 1, **env)
            assert denied.startswith("error UNAVAILABLE")
            # the certificate says who the client is, whatever it calls itself
            risk = {"GRPC_XDS_BOOTSTRAP": str(bootstrap(rig, "risk", "r1"))}
            (other,) = await client("xds:///risk", "xds", 1, **risk)
            assert other.startswith("error UNAVAILABLE")

    run(scenario)


def test_grpc_deadline_bounds_a_call_through_the_mesh() -> None:
    async def scenario(rig: MeshRig) -> None:
        async with grpc_program("slow", delay=60) as port:
            declare(rig)
            web = rig.add("bank", "web", "w1", port, services=["risk"])
            rig.add("bank", "risk", "r1", port)
            await rig.settle()
            assert web.plumbing is not None
            target = f"{HOST}:{web.plumbing.services['risk'].port}"
            async with grpc.aio.insecure_channel(target) as channel:
                call: Any = channel.unary_unary("/bedstone.test.Echo/Say")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(b"x", timeout=0.3)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    run(scenario)
