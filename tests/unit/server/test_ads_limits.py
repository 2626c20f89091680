"""ADS and a workload that asks for more than any gRPC client needs: it loses its stream only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio
import pytest

from bedstone.control.mesh.mesh import Mesh
from bedstone.control.mesh.names import Type
from bedstone.control.mesh.protos import DiscoveryRequest, DiscoveryResponse
from bedstone.control.mesh.views import GrpcClient
from bedstone.model.resources import App
from bedstone.model.spec import AppSpec, WorkloadSpec
from bedstone.server.ads import NAMES_MOST, REQUEST_MOST, SERVICE, STREAMS_EACH, AdsService

Scenario = Callable[[AdsService, Any, Any], Awaitable[None]]


def run(scenario: Scenario) -> None:
    async def main() -> None:
        mesh = Mesh("d.internal")
        spec = AppSpec(app="bank", workloads={"web": WorkloadSpec(command=("x",))})
        mesh.apply([App(name="bank", spec=spec)])
        ads = AdsService(mesh, lambda _: GrpcClient("bank", "web"))
        server = grpc.aio.server()
        ads.add_to(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                sotw: Any = channel.stream_stream(f"/{SERVICE}/StreamAggregatedResources")
                delta: Any = channel.stream_stream(f"/{SERVICE}/DeltaAggregatedResources")
                await scenario(ads, sotw, delta)
        finally:
            await server.stop(0)

    asyncio.run(main())


def ask(*names: str, version: str = "") -> bytes:
    request = DiscoveryRequest(type_url=Type.LDS.value, resource_names=names, version_info=version)
    return bytes(request.SerializeToString())


async def refused(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(anext(aiter(call)), 5)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    return str(caught.value.details())


async def served(call: Any) -> int:
    answer = DiscoveryResponse.FromString(await asyncio.wait_for(call.read(), 5))
    return len(answer.resources)


def test_too_many_names() -> None:
    async def scenario(ads: AdsService, sotw: Any, delta: Any) -> None:
        names = [f"x{number}" for number in range(NAMES_MOST + 1)]
        call = sotw()
        await call.write(ask(*names[:-1]))
        assert await served(call) == NAMES_MOST
        call.cancel()
        call = sotw()
        await call.write(ask(*names))
        assert "1001 names" in await refused(call)

    run(scenario)


def test_a_request_that_is_too_large() -> None:
    async def scenario(ads: AdsService, sotw: Any, delta: Any) -> None:
        call = sotw()
        await call.write(ask("x", version="x" * REQUEST_MOST))
        assert "bytes" in await refused(call)
        assert ads.proxies() == []

    run(scenario)


def test_too_many_streams() -> None:
    async def scenario(ads: AdsService, sotw: Any, delta: Any) -> None:
        calls = [sotw() for _ in range(STREAMS_EACH)]
        for call in calls:
            await call.write(ask("x"))
            assert await served(call) == 1
        assert "8 streams" in await refused(sotw())
        calls.pop().cancel()
        async with asyncio.timeout(5):
            while len(ads.proxies()) == STREAMS_EACH:
                await ads.progressed()
        call = sotw()
        await call.write(ask("x"))
        assert await served(call) == 1, "one that ended makes room"
        for held in (*calls, call):
            held.cancel()

    run(scenario)


def test_the_dialect_that_no_grpc_client_speaks() -> None:
    async def scenario(ads: AdsService, sotw: Any, delta: Any) -> None:
        assert "StreamAggregatedResources" in await refused(delta())

    run(scenario)
