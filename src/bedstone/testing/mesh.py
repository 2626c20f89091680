"""A small real mesh for tests and benchmarks: one Envoy, its certificates, and our ADS server.

Everything is real but the node agent: the rig itself allots ports and reports statuses. Programs
behind instances are whatever listens on the port that `add` is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio

from bedstone.control.mesh.mesh import Mesh
from bedstone.control.mesh.views import Proxy
from bedstone.engines.envoy import AdsAddress, AdsTls, EnvoyEngine
from bedstone.model.resources import (
    Address,
    App,
    Desired,
    Instance,
    InstanceStatus,
    Node,
    Phase,
    Plumbing,
    Presence,
    Resource,
)
from bedstone.model.spec import AppSpec
from bedstone.node import sds
from bedstone.server.ads import AdsService, by_certificate
from bedstone.trust.authority import Authority
from bedstone.trust.spiffe import node_id, server_id, workload_id
from bedstone.trust.svid import Svid, certificate_request, new_key

HOST = "127.0.0.1"


_HANDED_OUT: set[int] = set()


def free_port() -> int:
    """A TCP port that nobody listens on at the moment, and that was not given before."""
    while True:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port = int(probe.getsockname()[1])
        if port not in _HANDED_OUT:
            _HANDED_OUT.add(port)
            return port


def issue(authority: Authority, spiffe_id: str, hosts: tuple[str, ...] = ()) -> Svid:
    """A new identity, signed by the authority."""
    key = new_key()
    issued = authority.sign(certificate_request(key, spiffe_id), spiffe_id, hosts=hosts)
    return Svid(spiffe_id, key, issued.chain, authority.bundle)


@dataclass
class MeshRig:
    """One node's proxy and the control plane that configures it.

    Attributes:
        directory: short, private; holds sockets, logs and certificates.
        mesh: what the control plane knows.
        ads: its ADS service.
        engine: the Envoy's configuration and admin interface.
        ads_port: where ADS listens (mutual TLS).
    """

    directory: Path
    mesh: Mesh
    ads: AdsService
    authority: Authority
    engine: EnvoyEngine
    secrets: sds.Secrets
    ads_port: int
    node: str = "n1"
    leds_threshold: int = 1000
    instances: dict[str, Instance] = field(default_factory=dict)
    statuses: dict[str, InstanceStatus] = field(default_factory=dict)
    envoy: asyncio.subprocess.Process | None = None
    _apps: dict[str, App] = field(default_factory=dict)
    _server: grpc.aio.Server | None = None

    @property
    def proxy(self) -> Proxy:
        """The Envoy, as the control plane calls it."""
        from bedstone.control.mesh.views import NodeProxy

        return NodeProxy(self.node)

    def identity(self, app: str, identity: str) -> Svid:
        """A new certificate of an identity, for clients that tests play themselves."""
        return issue(self.authority, workload_id(self.authority.domain, app, identity))

    def declare(self, spec: AppSpec) -> None:
        """Apply a manifest, and serve the certificates of its identities."""
        for identity in (*spec.workloads, "gateway", "operator"):
            spiffe_id = workload_id(self.authority.domain, spec.app, identity)
            if self.secrets.get(spiffe_id) is None:
                self.secrets.put(sds.certificate_secret(issue(self.authority, spiffe_id)))
        self._apps[spec.app] = App(name=spec.app, spec=spec)
        self.mesh.apply([self._apps[spec.app]])

    def add(
        self,
        app: str,
        workload: str,
        name: str,
        port: int,
        *,
        services: Iterable[str] = (),
        credential: str | None = None,
        phase: Phase = Phase.READY,
    ) -> InstanceStatus:
        """Report an instance whose program listens on `port`."""
        instance = Instance(app=app, workload=workload, name=name, revision="r1", node=self.node)
        status = InstanceStatus(
            app=app,
            workload=workload,
            name=name,
            node=self.node,
            revision="r1",
            phase=phase,
            plumbing=Plumbing(
                app=Address(host=HOST, port=port),
                inbound=Address(host=HOST, port=free_port()),
                outbound=Address(host=HOST, port=free_port()),
                services={callee: Address(host=HOST, port=free_port()) for callee in services},
                telemetry=Address(host=HOST, port=free_port()),
                credential=credential,
            ),
        )
        self.instances[instance.path] = instance
        self.statuses[instance.path] = status
        self.mesh.apply([instance, status])
        return status

    def update(self, status: InstanceStatus, *, phase: Phase) -> InstanceStatus:
        """Report another phase of an instance."""
        changed = status.model_copy(update={"phase": phase})
        self.statuses[status.path] = changed
        self.mesh.apply([changed])
        return changed

    def drain(self, status: InstanceStatus) -> None:
        """Want an instance no more."""
        instance = self.instances[status.path].model_copy(update={"desired": Desired.DRAINED})
        self.instances[status.path] = instance
        self.mesh.apply([instance])

    async def settle(self, timeout: float = 10.0) -> None:
        """Wait until the proxy is connected and has answered everything that was sent to it."""
        async with asyncio.timeout(timeout):
            while not self._settled():
                await self.ads.progressed()
        # an acknowledged listener may not be open yet
        await self.listening(timeout)

    def _settled(self) -> bool:
        mine = [p for p in self.ads.proxies() if p.proxy == str(self.proxy)]
        return bool(mine) and not any(p.pending for p in mine) and "LDS" in mine[-1].subscribed

    async def listening(self, timeout: float = 10.0) -> None:
        """Wait until every TCP listener of the instances is open."""
        async with asyncio.timeout(timeout):
            for status in self.statuses.values():
                if status.plumbing is None or status.phase in (Phase.STOPPED, Phase.FAILED):
                    continue
                for address in (status.plumbing.inbound, status.plumbing.outbound):
                    await wait_open(address.port)

    async def start_control(self) -> None:
        """Serve ADS, on the same port as before."""
        self._server = grpc.aio.server()
        self.ads.add_to(self._server)
        own = issue(self.authority, server_id(self.authority.domain), (HOST,))
        credentials = grpc.ssl_server_credentials(
            [(own.key.encode(), own.chain.encode())],
            root_certificates=self.authority.bundle.encode(),
            require_client_auth=True,
        )
        self.ads_port = self._server.add_secure_port(f"{HOST}:{self.ads_port}", credentials)
        await self._server.start()

    async def stop_control(self) -> None:
        """End ADS, and forget everything that it knew; the mesh is another one afterwards."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None
        domain = self.authority.domain
        self.mesh = Mesh(domain, leds_threshold=self.leds_threshold)
        self.ads = AdsService(self.mesh, by_certificate(domain))

    def known(self) -> list[Resource]:
        """All that the rig has told the mesh."""
        return [
            *(self._apps.values()),
            *self.instances.values(),
            *self.statuses.values(),
            Node(name=self.node, address=HOST, calls=str(self.directory / "calls")),
            Presence(node=self.node),
        ]

    async def start_envoy(self) -> None:
        """Start the proxy, or start it again."""
        spec = self.engine.prepare()
        with Path(self.directory / "envoy.log").open("ab") as log:
            self.envoy = await asyncio.create_subprocess_exec(
                *spec.argv, stdout=log, stderr=log, env=dict(spec.env)
            )
        await self.engine.wait_ready()

    async def stop_envoy(self) -> None:
        """Kill the proxy."""
        if self.envoy is not None and self.envoy.returncode is None:
            self.envoy.kill()
            await self.envoy.wait()


async def wait_open(port: int) -> None:
    """Return when somebody listens on a port."""
    while True:
        try:
            _, writer = await asyncio.open_connection(HOST, port)
        except OSError:
            await asyncio.sleep(0.005)
            continue
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return


@contextlib.asynccontextmanager
async def mesh_rig(
    *, node: str = "n1", leds_threshold: int = 1000, concurrency: int = 1, start: bool = True
) -> AsyncIterator[MeshRig]:
    """A running rig; everything it started ends with it."""
    with tempfile.TemporaryDirectory(prefix="bs-") as name:
        directory = Path(name)
        authority = Authority.open(directory / "authority")
        domain = authority.domain
        secrets = sds.Secrets()
        secrets.put(sds.bundle_secret(domain, authority.bundle))
        sds_server = await sds.serve(secrets, directory / "sds.sock")
        certificates = directory / "ads"
        certificates.mkdir(mode=0o700)
        client = issue(authority, node_id(domain, node))
        (certificates / "key.pem").write_text(client.key)
        (certificates / "chain.pem").write_text(client.chain)
        (certificates / "authority.pem").write_text(authority.bundle)
        ads_port = free_port()
        engine = EnvoyEngine(
            node_id=node,
            cluster="test",
            run_dir=directory,
            log=directory / "envoy.log",
            ads=AdsAddress(host=HOST, port=ads_port),
            tls=AdsTls(
                certificates / "chain.pem",
                certificates / "key.pem",
                certificates / "authority.pem",
                server_id(domain),
            ),
            sds_socket=directory / "sds.sock",
            collector_socket=directory / "collector.sock",
            telemetry_socket=directory / "telemetry.sock",
            concurrency=concurrency,
        )
        mesh = Mesh(domain, leds_threshold=leds_threshold)
        ads = AdsService(mesh, by_certificate(domain))
        rig = MeshRig(
            directory, mesh, ads, authority, engine, secrets, ads_port, node, leds_threshold
        )
        (directory / "calls").mkdir(mode=0o700)
        try:
            await rig.start_control()
            rig.mesh.apply(rig.known())
            if start:
                await rig.start_envoy()
            yield rig
        finally:
            await rig.stop_envoy()
            await rig.stop_control()
            await sds_server.stop(0)
