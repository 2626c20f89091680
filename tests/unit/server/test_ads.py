"""ADS over gRPC: who may have what. A client is a raw gRPC channel; identity comes by metadata."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio
import pytest

from bedstone.control.mesh.mesh import Mesh
from bedstone.control.mesh.names import Type
from bedstone.control.mesh.protos import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from bedstone.control.mesh.views import NodeProxy
from bedstone.errors import DeniedError
from bedstone.model.resources import App, Node
from bedstone.model.spec import AppSpec, Gateway, Route, WorkloadSpec
from bedstone.server.ads import AdsService, Context, by_certificate

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"


def by_metadata(context: Context) -> NodeProxy:
    for key, value in context.invocation_metadata() or ():
        if key == "node":
            return NodeProxy(str(value))
    raise DeniedError("the client says no name")


def app(port: int = 8080) -> App:
    spec = AppSpec(
        app="bank",
        gateway=Gateway(port=port, routes=(Route(to="web"),)),
        workloads={"web": WorkloadSpec(command=("x",))},
    )
    return App(name="bank", spec=spec)


def run(scenario: Callable[[Mesh, AdsService, Any], Awaitable[None]]) -> None:
    async def main() -> None:
        mesh = Mesh("d.internal")
        mesh.apply([app(), Node(name="n1", address="127.0.0.1")])
        ads = AdsService(mesh, by_metadata)
        server = grpc.aio.server()
        ads.add_to(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                await scenario(mesh, ads, channel.stream_stream(METHOD))
        finally:
            await server.stop(0)

    asyncio.run(main())


def ask(kind: Type, **more: Any) -> bytes:
    return bytes(DeltaDiscoveryRequest(type_url=kind.value, **more).SerializeToString())


async def names(call: Any) -> list[str]:
    response = DeltaDiscoveryResponse.FromString(await asyncio.wait_for(call.read(), 5))
    await call.write(ask(Type.LDS, response_nonce=response.nonce))
    return [resource.name for resource in response.resources]


def test_client_without_identity_is_refused() -> None:
    async def scenario(mesh: Mesh, ads: AdsService, method: Any) -> None:
        call = method(iter([ask(Type.LDS)]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(call))
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert caught.value.details() == "the client says no name"
        assert ads.proxies() == []

    run(scenario)


def test_client_gets_its_own_and_changes_of_it() -> None:
    async def scenario(mesh: Mesh, ads: AdsService, method: Any) -> None:
        mine, other = method(metadata=(("node", "n1"),)), method(metadata=(("node", "n2"),))
        await mine.write(ask(Type.LDS))
        await other.write(ask(Type.LDS))
        assert await names(mine) == ["gateway/bank"]
        assert await names(other) == []
        mesh.apply([app(port=9090)])
        assert await names(mine) == ["gateway/bank"]
        async with asyncio.timeout(5):
            while any(state.pending for state in ads.proxies()):
                await ads.progressed()
        assert {state.proxy for state in ads.proxies()} == {"node:n1", "node:n2"}
        mine.cancel()
        async with asyncio.timeout(5):
            while len(ads.proxies()) > 1:
                await ads.progressed()
        other.cancel()

    run(scenario)


def test_unknown_type_is_ignored() -> None:
    async def scenario(mesh: Mesh, ads: AdsService, method: Any) -> None:
        call = method(metadata=(("node", "n1"),))
        await call.write(
            bytes(DeltaDiscoveryRequest(type_url="type.googleapis.com/x").SerializeToString())
        )
        await call.write(ask(Type.LDS))
        assert await names(call) == ["gateway/bank"]
        call.cancel()

    run(scenario)


class _Certificate:
    def __init__(self, *names: str) -> None:
        self.names = [name.encode() for name in names]

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_subject_alternative_name": self.names}


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["spiffe://d.internal/node/n1"], "node:n1"),
        (["127.0.0.1", "spiffe://d.internal/bank/web"], "bank/default/web"),
    ],
)
def test_identity_is_the_certificates(names: list[str], found: str) -> None:
    certificate: Any = _Certificate(*names)
    assert str(by_certificate("d.internal")(certificate)) == found


@pytest.mark.parametrize(
    "name",
    [
        "spiffe://other.internal/node/n1",
        "spiffe://d.internal/node",
        "spiffe://d.internal/server",
        "d.internal/node/n1",
        "spiffe://d.internal/bank/operator",
        "",
    ],
)
def test_other_certificates_are_refused(name: str) -> None:
    certificate: Any = _Certificate(name)
    with pytest.raises(DeniedError):
        by_certificate("d.internal")(certificate)


def test_a_client_that_talks_nonsense_is_forgotten() -> None:
    """Otherwise every drain would wait for its acknowledgement."""

    async def scenario(mesh: Mesh, ads: AdsService, method: Any) -> None:
        call = method(metadata=(("node", "n1"),))
        await call.write(ask(Type.LDS))
        assert await names(call) == ["gateway/bank"]
        await call.write(b"\xff\xff\xff")
        assert await call.read() is grpc.aio.EOF
        async with asyncio.timeout(5):
            while ads.proxies():
                await ads.progressed()
        assert ads.listening("n1") == frozenset()

    run(scenario)


def test_a_proxy_that_runs_but_is_not_connected_has_not_settled() -> None:
    """After the server's restart a proxy still sends to what is drained, until it is told."""

    async def scenario(mesh: Mesh, ads: AdsService, method: Any) -> None:
        assert await ads.settled("bank", "web", 0.01)
        assert not await ads.settled("bank", "web", 0.01, ["n1"])
        call = method(metadata=(("node", "n1"),))
        await call.write(ask(Type.LDS))
        await names(call)
        assert not await ads.settled("bank", "web", 0.01, ["n1"])
        service = "bank/default/web"
        await call.write(ask(Type.EDS, resource_names_subscribe=[service]))
        response = DeltaDiscoveryResponse.FromString(await asyncio.wait_for(call.read(), 5))
        assert [resource.name for resource in response.resources] == [service]
        await call.write(ask(Type.EDS, response_nonce=response.nonce))
        assert await ads.settled("bank", "web", 5, ["n1"])
        call.cancel()

    run(scenario)
