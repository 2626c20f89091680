"""The secret discovery service (SDS): hands certificates and the trust bundle to the node's proxy.

It listens on a Unix socket of mode 0600. A secret's name is the SPIFFE id of a certificate, or
`bundle`. A secret that is asked for before it exists is answered as soon as it does. Renewals are
pushed; the proxy takes them without closing a connection.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from envoy.config.core.v3 import base_pb2
from envoy.extensions.transport_sockets.tls.v3 import (
    common_pb2,
    secret_pb2,
    tls_spiffe_validator_config_pb2,
)
from envoy.service.discovery.v3 import discovery_pb2

from bedstone.trust.svid import Svid

BUNDLE = "bundle"
TYPE_URL = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
_SERVICE = "envoy.service.secret.v3.SecretDiscoveryService"


def certificate_secret(svid: Svid) -> Any:
    """The secret with an identity's chain and key."""
    return secret_pb2.Secret(
        name=svid.spiffe_id,
        tls_certificate=common_pb2.TlsCertificate(
            certificate_chain=base_pb2.DataSource(inline_bytes=svid.chain.encode()),
            private_key=base_pb2.DataSource(inline_bytes=svid.key.encode()),
        ),
    )


def bundle_secret(domain: str, bundle: str) -> Any:
    """The secret by which peers of the domain are verified (Envoy's SPIFFE validator)."""
    validator = tls_spiffe_validator_config_pb2.SPIFFECertValidatorConfig(
        trust_domains=[
            tls_spiffe_validator_config_pb2.SPIFFECertValidatorConfig.TrustDomain(
                name=domain,
                trust_bundle=base_pb2.DataSource(inline_bytes=bundle.encode()),
            )
        ]
    )
    context = common_pb2.CertificateValidationContext()
    context.custom_validator_config.name = "envoy.tls.cert_validator.spiffe"
    context.custom_validator_config.typed_config.Pack(validator)
    return secret_pb2.Secret(name=BUNDLE, validation_context=context)


class Secrets:
    """All secrets by name, as encoded, with a version that is a digest of the content."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[str, bytes]] = {}
        self._watchers: set[asyncio.Event] = set()

    def put(self, secret: Any) -> None:
        """Serve this one."""
        value = secret.SerializeToString(deterministic=True)
        version = hashlib.sha256(value).hexdigest()[:16]
        if self._values.get(secret.name, ("", b""))[0] != version:
            self._values[secret.name] = (version, value)
            for watcher in self._watchers:
                watcher.set()

    def get(self, name: str) -> tuple[str, bytes] | None:
        """Version and content; None if it does not exist yet."""
        return self._values.get(name)

    def retain(self, keep: Callable[[str], bool]) -> None:
        """Forget the others; a proxy keeps what it has been given."""
        for name in [name for name in self._values if not keep(name)]:
            del self._values[name]

    @asynccontextmanager
    async def watcher(self) -> AsyncIterator[asyncio.Event]:
        """An event that is set whenever a secret changes."""
        event = asyncio.Event()
        self._watchers.add(event)
        try:
            yield event
        finally:
            self._watchers.discard(event)


async def serve(secrets: Secrets, path: Path) -> grpc.aio.Server:
    """Serve on a Unix socket; the caller stops the server."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                _SERVICE,
                {
                    "DeltaSecrets": grpc.stream_stream_rpc_method_handler(
                        _Delta(secrets).serve,
                        request_deserializer=discovery_pb2.DeltaDiscoveryRequest.FromString,
                        response_serializer=discovery_pb2.DeltaDiscoveryResponse.SerializeToString,
                    ),
                    "StreamSecrets": grpc.stream_stream_rpc_method_handler(
                        _World(secrets).serve,
                        request_deserializer=discovery_pb2.DiscoveryRequest.FromString,
                        response_serializer=discovery_pb2.DiscoveryResponse.SerializeToString,
                    ),
                },
            ),
        )
    )
    path.unlink(missing_ok=True)
    mask = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    finally:
        os.umask(mask)
    await server.start()
    return server


class _Delta:
    """Incremental SDS: each secret is sent once a version."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    async def serve(self, requests: AsyncIterator[Any], context: Any) -> None:
        """One stream."""
        sent: dict[str, str] = {}
        wanted: set[str] = set()
        nonce = 0
        async with self._secrets.watcher() as changed:

            async def read() -> None:
                async for request in requests:
                    for name in request.resource_names_unsubscribe:
                        wanted.discard(name)
                        sent.pop(name, None)
                    if request.initial_resource_versions:
                        sent.update(request.initial_resource_versions)
                    for name in request.resource_names_subscribe:
                        wanted.add(name)
                        # Asked for again, it is sent again, unless the versions say it is there.
                        if name not in request.initial_resource_versions:
                            sent.pop(name, None)
                    changed.set()

            reader = asyncio.ensure_future(read())
            reader.add_done_callback(lambda _: changed.set())
            try:
                while not reader.done():
                    changed.clear()
                    response = discovery_pb2.DeltaDiscoveryResponse(type_url=TYPE_URL)
                    self._fill(response, wanted, sent)
                    if response.resources:
                        nonce += 1
                        response.nonce = str(nonce)
                        await context.write(response)
                    await changed.wait()
            finally:
                reader.cancel()

    def _fill(self, response: Any, wanted: set[str], sent: dict[str, str]) -> None:
        for name in sorted(wanted):
            found = self._secrets.get(name)
            if found is not None and sent.get(name) != found[0]:
                sent[name], value = found
                resource = response.resources.add(name=name, version=found[0])
                resource.resource.type_url = TYPE_URL
                resource.resource.value = value


class _World:
    """State-of-the-world SDS: each answer has all that is asked for and exists."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    async def serve(self, requests: AsyncIterator[Any], context: Any) -> None:
        """One stream."""
        wanted: tuple[str, ...] = ()
        sent: dict[str, str] = {}
        nonce = 0
        async with self._secrets.watcher() as changed:

            async def read() -> None:
                nonlocal wanted
                async for request in requests:
                    # An acknowledgement repeats the names; it asks for nothing new.
                    names = tuple(request.resource_names)
                    if names != wanted:
                        wanted = names
                        sent.clear()
                        changed.set()

            reader = asyncio.ensure_future(read())
            reader.add_done_callback(lambda _: changed.set())
            try:
                while not reader.done():
                    changed.clear()
                    there = {
                        name: found
                        for name in wanted
                        if (found := self._secrets.get(name)) is not None
                    }
                    versions = {name: found[0] for name, found in there.items()}
                    if there and versions != sent:
                        sent = versions
                        nonce += 1
                        version = hashlib.sha256(repr(sorted(versions.items())).encode())
                        response = discovery_pb2.DiscoveryResponse(
                            version_info=version.hexdigest()[:16],
                            type_url=TYPE_URL,
                            nonce=str(nonce),
                        )
                        for _, value in there.values():
                            response.resources.add(type_url=TYPE_URL, value=value)
                        await context.write(response)
                    await changed.wait()
            finally:
                reader.cancel()
