"""A real Envoy under the supervisor, against a small delta ADS server."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from envoy.config.listener.v3 import listener_pb2  # type: ignore[import-untyped, unused-ignore]
from envoy.extensions.filters.http.router.v3 import (  # type: ignore[import-untyped, unused-ignore]
    router_pb2,
)
from envoy.extensions.filters.network.http_connection_manager.v3 import (  # type: ignore[import-untyped, unused-ignore]
    http_connection_manager_pb2,
)
from envoy.service.discovery.v3 import (  # type: ignore[import-untyped, unused-ignore]
    ads_pb2_grpc,
    discovery_pb2,
)
from google.protobuf import any_pb2, json_format

from bedstone.engines.envoy import AdsAddress, AdsTls, EnvoyEngine
from bedstone.errors import UnavailableError
from bedstone.testing.processes import supervised, until

_PARSED = (router_pb2, http_connection_manager_pb2)
"""Imported, so that protobuf knows the messages inside the listener."""
_LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
_SERVER = "spiffe://test/bedstone/server"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def listener(port: int) -> any_pb2.Any:
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        "stat_prefix": "test",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"prefix": "/"},
                            "direct_response": {"status": 200, "body": {"inline_string": "hello"}},
                        }
                    ],
                }
            ]
        },
        "http_filters": [
            {
                "name": "router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                },
            }
        ],
    }
    value = {
        "name": "web",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    packed = any_pb2.Any()
    packed.Pack(json_format.ParseDict(value, listener_pb2.Listener()))
    return packed


@dataclass
class Ads(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc, unused-ignore]
    """Serves one listener; keeps who asked."""

    port: int
    nodes: list[str] = field(default_factory=list)
    peers: list[int] = field(default_factory=list)

    async def DeltaAggregatedResources(  # noqa: N802 - the name of the RPC
        self,
        requests: AsyncIterator[Any],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[Any]:
        pem = context.auth_context().get("x509_pem_cert")
        if pem:
            self.peers.append(x509.load_pem_x509_certificate(next(iter(pem))).serial_number)
        async for request in requests:
            if request.node.id:
                self.nodes.append(request.node.id)
            if request.response_nonce:
                continue
            resources = []
            if request.type_url == _LISTENER:
                resources = [
                    discovery_pb2.Resource(name="web", version="1", resource=listener(self.port))
                ]
            yield discovery_pb2.DeltaDiscoveryResponse(
                type_url=request.type_url, nonce="1", resources=resources
            )


@asynccontextmanager
async def serving(
    ads: Ads, address: str, credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[int]:
    server = grpc.aio.server()
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(ads, server)
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


@dataclass
class Authority:
    """A certificate authority for one test."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        return cls(key, _sign(key, key, "authority", None))

    def issue(self, uri: str) -> tuple[bytes, bytes, int]:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _sign(key, self.key, "leaf", uri)
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return pem, private, certificate.serial_number

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def _sign(
    key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey, name: str, uri: str | None
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)

    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named("authority"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=uri is None, path_length=None), critical=True)
    )
    if uri is not None:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(signer, hashes.SHA256())


def replace_files(folder: Path, chain: bytes, key: bytes) -> None:
    for name, text in (("key.pem", key), ("chain.pem", chain)):
        (folder / f"{name}.new").write_bytes(text)
        (folder / f"{name}.new").replace(folder / name)


async def body(port: int) -> str:
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(f"http://127.0.0.1:{port}/")).text


def test_a_control_plane_on_tcp_needs_certificates(tmp_path: Path) -> None:
    engine = EnvoyEngine("n", "c", tmp_path, tmp_path / "log", AdsAddress("127.0.0.1", 1))
    with pytest.raises(UnavailableError, match="needs certificates"):
        engine.prepare()
    assert list(tmp_path.iterdir()) == []


def test_envoy_is_configured_over_a_socket_and_back_within_two_seconds_of_a_kill(
    tmp_path: Path,
) -> None:
    async def check() -> None:
        ads = Ads(free_port())
        path = tmp_path / "ads.sock"
        async with supervised(tmp_path) as (run, client):
            engine = EnvoyEngine(
                node_id="node-1",
                cluster="test",
                run_dir=Path(run.run_dir),
                log=tmp_path / "envoy.log",
                ads=AdsAddress(path=str(path)),
                sds_socket=tmp_path / "sds.sock",
            )
            assert (await client.spawn(engine.prepare())).running
            with pytest.raises(UnavailableError, match="not ready after"):
                await engine.wait_ready(0.5)
            async with serving(ads, f"unix:{path}"):
                await engine.wait_ready(20)
                assert await body(ads.port) == "hello"
                assert ads.nodes == ["node-1"]
                assert oct(engine.admin_socket.stat().st_mode & 0o777) == "0o600"
                assert "web" in str(await engine.config_dump())
                stats = await engine.stats("listener_manager.total_listeners_active")
                assert stats["listener_manager.total_listeners_active"] == 1
                first = await client.spawn(engine.prepare())
                os.kill(first.pid or 0, signal.SIGKILL)

                async def ended() -> bool:
                    return not (await client.get("envoy")).running

                await until(ended)
                second = await client.spawn(engine.prepare())
                await engine.wait_ready(20)
                assert await body(ads.port) == "hello"
                assert second.pid != first.pid
            # The control plane's end does not disturb traffic.
            assert await body(ads.port) == "hello"
            await engine.drain()
            assert (await client.stop("envoy")).exit_code == 0
            with pytest.raises(UnavailableError, match="does not answer"):
                await engine.stats()

    asyncio.run(check())


def test_ads_is_mutual_tls_and_a_renewed_certificate_is_used_without_a_restart(
    tmp_path: Path,
) -> None:
    async def check() -> None:
        authority = Authority.make()
        chain, key, first = authority.issue("spiffe://test/node")
        folder = tmp_path / "tls"
        folder.mkdir()
        (folder / "authority.pem").write_bytes(authority.pem)
        replace_files(folder, chain, key)
        port = free_port()
        ads = Ads(free_port())

        def credentials(uri: str) -> grpc.ServerCredentials:
            server_chain, server_key, _ = authority.issue(uri)
            return grpc.ssl_server_credentials(
                [(server_key, server_chain)], authority.pem, require_client_auth=True
            )

        async with supervised(tmp_path) as (run, client):
            engine = EnvoyEngine(
                node_id="node-1",
                cluster="test",
                run_dir=Path(run.run_dir),
                log=tmp_path / "envoy.log",
                ads=AdsAddress("127.0.0.1", port),
                tls=AdsTls(
                    folder / "chain.pem", folder / "key.pem", folder / "authority.pem", _SERVER
                ),
            )
            address = f"127.0.0.1:{port}"
            info = await client.spawn(engine.prepare())
            async with serving(ads, address, credentials("spiffe://test/impostor")):
                with pytest.raises(UnavailableError, match="not ready"):
                    await engine.wait_ready(1.0)
                assert ads.nodes == [], "a server with another identity learns nothing"
            async with serving(ads, address, credentials(_SERVER)):
                await engine.wait_ready(20)
                assert set(ads.peers) == {first}
            chain, key, second = authority.issue("spiffe://test/node")
            replace_files(folder, chain, key)

            async def taken() -> bool:
                stats = await engine.stats("bedstone_ads.*ssl_context_update_by_sds")
                return sum(stats.values()) >= 3  # the first of each secret, and the new one

            await until(taken)
            async with serving(ads, address, credentials(_SERVER)):
                # Envoy's own back-off goes up to 30 s, ours does not.
                await until(lambda: second in ads.peers, 15)
            assert (await client.get("envoy")).pid == info.pid

    asyncio.run(check())
