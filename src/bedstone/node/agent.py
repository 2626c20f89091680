"""The node agent: wires the parts, and turns what the server says into what they do.

Everything it started goes on when it ends, and is adopted by the next agent.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Awaitable
from contextlib import AsyncExitStack

from bedstone.boxes.home import boxes_directory
from bedstone.errors import Error, UnavailableError
from bedstone.images.home import images_directory
from bedstone.model.messages import (
    Assignments,
    Certificate,
    Command,
    Digests,
    FromServer,
    ProxyState,
)
from bedstone.model.resources import Node
from bedstone.node import proxy, sds
from bedstone.node.certificates import Certificates
from bedstone.node.collector import otlp_grpc, otlp_http
from bedstone.node.collector.application import ApplicationMetrics, Life
from bedstone.node.collector.application_logs import ApplicationLogs
from bedstone.node.collector.boxes import BoxStatistics
from bedstone.node.collector.collector import Collector
from bedstone.node.collector.intake import Intake
from bedstone.node.collector.outgoing import Outgoing
from bedstone.node.collector.postgres import DatabaseStatistics
from bedstone.node.collector.runtime import ProxyRuntime, share
from bedstone.node.collector.sampling import Sampling
from bedstone.node.commands import Commands
from bedstone.node.config import NodeConfig
from bedstone.node.databases import DatabaseManager
from bedstone.node.images import MachineImages
from bedstone.node.instances import Instances
from bedstone.node.join import Membership, join, load_membership
from bedstone.node.journal import Journal
from bedstone.node.logs import LogKeeper
from bedstone.node.preparations import Preparations
from bedstone.node.reports import Reports
from bedstone.node.runner import Surroundings
from bedstone.node.session import Session
from bedstone.node.tap import Taps
from bedstone.node.tasks import Tasks
from bedstone.node.view import View
from bedstone.node.watch import Watch
from bedstone.processes.client import SupervisorClient
from bedstone.runtime import command as runtime
from bedstone.sandbox.ports import Ports
from bedstone.sandbox.protocol import KIND, Host, Sandbox
from bedstone.telemetry.requests import SLOW_KEY, TAP_KEY
from bedstone.trust.spiffe import GATEWAY, OPERATOR, node_id, workload_id
from bedstone.trust.svid import Svid

DIGEST_PERIOD = 10.0
LOG_PERIOD = 1.0
SAMPLING_PERIOD = 1.0
ADOPTION_PATIENCE = 1.5
REJOIN_PAUSE = 0.5
SWEPT = ("instance/", "prepare/", "postgres-")
"""Prefixes of the names of processes that only a node agent starts."""
_log = logging.getLogger(__name__)


class Agent:
    """One node. `run` returns only by cancellation or when the supervisor is gone."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._tasks = Tasks()
        self._broken = asyncio.Event()
        """Set when a task has failed without which something would stand still for ever."""
        self._vital = Tasks(self._broken.set)
        self._view = View()
        self._secrets = sds.Secrets()
        self._save_wake = asyncio.Event()
        self._membership = Membership("", "")
        self._identity: Svid | None = None
        self._last_join = 0.0
        origin = time.time() - time.monotonic()
        # Wall-clock time that never jumps while this agent lives.
        self._clock = lambda: origin + time.monotonic()

    async def run(self) -> None:
        """Run the node."""
        config = self._config
        config.private.mkdir(mode=0o700, parents=True, exist_ok=True)
        config.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        async with AsyncExitStack() as stack:
            supervisor = await stack.enter_async_context(SupervisorClient(config.supervisor))
            run_id = await supervisor.ping()
            stack.push_async_callback(self._tasks.close)
            stack.push_async_callback(self._vital.close)
            watch = Watch(supervisor)
            watching = asyncio.ensure_future(watch.run())
            stack.callback(watching.cancel)
            server = await sds.serve(self._secrets, config.sds)
            stack.push_async_callback(server.stop, 0)
            self._written = ApplicationLogs(config.logs)
            stack.callback(self._written.close)
            self._applications = ApplicationMetrics(
                config.name, self._life, self._written.tell, time.monotonic
            )
            ports = Ports(*config.port_range)
            self._sandboxes: dict[str, Sandbox] = {}
            host = Host(
                supervisor,
                ports,
                config.address,
                config.run_dir,
                lambda python, target, host, port: runtime.serve_command(
                    python, target, host=host, port=port
                ),
                config.enforce,
                runtime.MODULES,
                runtime.libraries(),
                (config.state_dir, images_directory()),
                config.boxes or boxes_directory(),
                MachineImages(),
            )
            for name in KIND.names():
                self._sandboxes[name] = KIND.load(name)(host)
                await self._sandboxes[name].open()
            sandbox = self._sandboxes["process"]
            self._reports = Reports(
                Node(
                    name=config.name,
                    address=config.address,
                    enforced=sandbox.enforced,
                    run_id=run_id,
                    gateway=config.gateway,
                    calls=str(config.calls),
                    pid=os.getpid(),
                )
            )
            await watch.synced.wait()
            self._build(supervisor, watch, ports, run_id)
            receiver = await otlp_grpc.serve(self._intake, config.collector)
            stack.push_async_callback(receiver.stop, 0)
            await stack.enter_async_context(otlp_http.serve(self._intake, config.telemetry))
            stack.push_async_callback(self._instances.close)
            stack.push_async_callback(self._databases.close)
            stack.callback(self._collector.close)
            stack.push_async_callback(self._statistics.close)
            # None of these ever ends; when one fails, all do, and the supervisor starts an agent
            # anew, which adopts what runs.
            async with asyncio.TaskGroup() as group:
                for work in (watching, self._proxy.run(), self._until_broken()):
                    group.create_task(_forever(work))
                # Databases need no identity: they start while the server does.
                self._view.load(config.private / "view.json")
                self._databases.reconcile()
                await self._enter_domain()
                await self._resume()
                for work in (
                    self._certificates.run(),
                    self._session.run(),
                    self._compare(),
                    self._save(),
                    self._keep_logs(),
                    self._outgoing.run(),
                    self._runtime.run(),
                    self._sample(),
                ):
                    group.create_task(_forever(work))

    def _build(self, supervisor: SupervisorClient, watch: Watch, ports: Ports, run_id: str) -> None:
        config = self._config
        self._supervisor, self._watch = supervisor, watch
        self._session = Session(
            lambda: self._membership.session,
            self._node_identity,
            self._reports,
            self._receive,
            self._session_failed,
            self._session_opened,
            heartbeat=config.lease / 3.4,
        )
        self._certificates = Certificates(
            config.private / "identities", self._session.send, self._certified
        )
        self._proxy = proxy.Proxy(config, self._reports, watch, supervisor, self._clock)
        self._databases = DatabaseManager(
            config.name,
            config.state_dir,
            config.run_dir,
            self._view,
            self._reports,
            watch,
            supervisor,
            ports,
            self._database_changed,
            self._broken.set,
            self._clock,
        )
        preparations = Preparations(
            config.name, self._view, self._reports, watch, self._vital, self._database_changed
        )
        self._instances = Instances(
            Surroundings(
                node=config.name,
                logs=config.logs,
                view=self._view,
                reports=self._reports,
                watch=watch,
                sandbox=lambda name: self._sandboxes[name],
                certificates=self._certificates,
                databases=self._databases,
                preparations=preparations,
                clock=self._clock,
                xds=lambda: self._membership.session,
                journal=Journal(config.private / "instances", run_id),
                failed=self._broken.set,
            )
        )
        self._statistics = DatabaseStatistics(config.name, self._databases.served)
        boxes = BoxStatistics(
            config.name,
            lambda: list(self._reports.instances.values()),
            watch.latest,
            lambda isolation, instance: self._sandboxes[isolation].stats(instance),
        )
        self._collector = Collector(
            config.name,
            config.state_dir,
            self._proxy.admin,
            run_id,
            self._view,
            self._reports,
            watch,
            self._applications,
            (self._statistics.read, boxes.read),
        )
        self._outgoing = Outgoing(self._session.send, self._session.drained)
        self._runtime = ProxyRuntime(self._proxy.admin, lambda: self._reports.node.proxy_pid)
        taps = Taps(config.name, lambda part: self._runtime.set(TAP_KEY, share(part)))
        self._intake = Intake(
            self._outgoing, self._written, self._applications, (self._outgoing, taps)
        )
        self._sampling = Sampling(self._runtime, self._outgoing.begun, self._outgoing.written)
        self._commands = Commands(
            config,
            self._session.send,
            self._session.drained,
            self._tasks,
            self._databases,
            self._collector,
            self._sampling,
            taps,
        )

    # Membership.

    def _node_identity(self) -> Svid:
        if self._identity is None:
            raise AssertionError("a session is opened only by a member")
        return self._identity

    async def _enter_domain(self) -> None:
        """Be a member: by an earlier certificate that is still valid, or by joining now."""
        stored = load_membership(self._config)
        if (
            stored is not None
            and stored[0].run_id == self._reports.node.run_id
            and stored[1].valid(time.time())
        ):
            self._become(*stored)
            return
        pause = 0.02
        said = ""
        while True:
            try:
                self._become(*await join(self._config, self._reports.node.run_id))
                return
            except Error as error:
                if error.message != said:
                    said = error.message
                    _log.info("cannot join yet", extra={"reason": said})
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 1.0)

    def _become(self, membership: Membership, svid: Svid) -> None:
        self._membership = membership
        self._identity = svid
        self._proxy.identify(svid)
        self._certificates.adopt(svid)
        self._secrets.put(sds.bundle_secret(membership.domain, svid.bundle))
        self._proxy.follow(membership)
        _log.info("member", extra={"domain": membership.domain, "session": membership.session})

    async def _session_failed(self) -> None:
        """The server may have moved, or forgotten us: ask again where it is and who we are."""
        now = time.monotonic()
        if now - self._last_join < REJOIN_PAUSE:
            return
        self._last_join = now
        known = self._membership
        try:
            self._become(*await join(self._config, known.run_id, known.domain))
        except Error as error:
            _log.info("cannot join", extra={"reason": error.message})

    def _session_opened(self) -> None:
        self._commands.stop()
        self._certificates.connected()

    async def _resume(self) -> None:
        """Go on with what an earlier agent ran, and look at it before a server hears of it."""
        if self._view.known and self._view.domain != self._membership.domain:
            self._view.clear()
            return
        self._instances.load()
        if self._view.known:
            self._reconcile()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._instances.settled(ADOPTION_PATIENCE))
                group.create_task(self._databases.settled(ADOPTION_PATIENCE))

    # What the server says.

    def _receive(self, message: FromServer) -> None:
        match message:
            case Assignments():
                self._view.apply(message)
                self._reconcile()
                if message.complete:
                    self._tasks.start(self._sweep())
            case ProxyState():
                self._view.apply_proxy(message)
                self._instances.proxy_changed()
            case Certificate():
                self._certificates.answer(message)
            case Command():
                self._commands.handle(message)

    def _reconcile(self) -> None:
        domain = self._membership.domain
        ids = {node_id(domain, self._config.name)}
        for instance in self._view.instances():
            for name in (instance.workload, GATEWAY, OPERATOR):
                ids.add(workload_id(domain, instance.app, name))
        self._certificates.want(ids)
        self._secrets.retain(lambda name: name in ids or name == sds.BUNDLE)
        self._databases.reconcile()
        self._instances.reconcile()
        self._save_wake.set()

    async def _sweep(self) -> None:
        """End what an earlier agent ran and nobody wants or remembers any more."""
        expected = self._instances.expected() | self._databases.expected()
        for name, info in list(self._watch.latest.items()):
            if not name.startswith(SWEPT) or name in expected:
                continue
            _log.warning("ending what nobody wants", extra={"what": name, "pid": info.pid})
            try:
                await self._supervisor.stop(name)
                await self._supervisor.forget(name)
            except Error as error:
                _log.warning("cannot stop", extra={"what": name, "reason": error.message})

    def _life(self, path: str) -> Life | None:
        """The process of an instance that runs here."""
        info = self._watch.latest.get(f"instance/{path}")
        status = self._reports.instances.get(f"status/instances/{path}")
        if info is None or status is None or not info.running:
            return None
        return Life(status.revision, f"{info.pid}:{info.start_time}")

    def _database_changed(self) -> None:
        self._instances.kick()

    def _certified(self, svid: Svid) -> None:
        """A new certificate is here."""
        domain = self._membership.domain
        if svid.spiffe_id == node_id(domain, self._config.name):
            self._identity = svid
            try:
                svid.save(self._config.private / "identity.json")
            except OSError as error:
                _log.error("cannot write", extra={"reason": str(error)})
            self._proxy.identify(svid)
        else:
            self._secrets.put(sds.certificate_secret(svid))
        self._secrets.put(sds.bundle_secret(domain, svid.bundle))
        self._instances.renewed(svid.spiffe_id)

    # Regular work.

    async def _until_broken(self) -> None:
        """End when a task of a runner, a database or a preparation has failed: it was logged."""
        await self._broken.wait()
        raise UnavailableError("a part of the node agent has failed")

    async def _save(self) -> None:
        """Write down what the server wants, at most a few times a second."""
        while True:
            await self._save_wake.wait()
            self._save_wake.clear()
            try:
                self._view.save(self._config.private / "view.json")
            except OSError as error:
                _log.error("cannot write", extra={"reason": str(error)})
                self._save_wake.set()
                await asyncio.sleep(1.0)
            await asyncio.sleep(0.1)

    async def _compare(self) -> None:
        """Tell the server what the proxy really has, whenever that has changed."""
        seen = b""
        told = False
        while True:
            await asyncio.sleep(DIGEST_PERIOD)
            if not self._session.connected.is_set():
                told = False
                continue
            try:
                dump = await self._proxy.configuration()
                digest = hashlib.blake2b(dump, digest_size=16).digest()
                if digest == seen and told:
                    continue
                values = await asyncio.to_thread(proxy.digests, dump)
                told = self._session.send(Digests(digests=values))
                seen = digest
            except Error as error:
                _log.info("no digests", extra={"reason": error.message})

    async def _sample(self) -> None:
        """Let the rate of requests decide how many of them begin a trace."""
        while True:
            await asyncio.sleep(SAMPLING_PERIOD)
            said = [
                app.spec.monitoring.traces.slow for app in self._view.apps() if app.spec.monitoring
            ]
            self._outgoing.slow = max(1, round(min([*said, 0.5]) * 1000))
            self._runtime.set(SLOW_KEY, str(self._outgoing.slow))
            self._sampling.tick()

    async def _keep_logs(self) -> None:
        """Note how the logs grow, and bound them."""
        keeper = LogKeeper(self._config.logs)
        while True:
            alive = {instance.path for instance in self._view.instances()}
            await asyncio.to_thread(keeper.look, time.time(), alive)
            await asyncio.sleep(LOG_PERIOD)


async def _forever(work: Awaitable[None]) -> None:
    await work
    raise UnavailableError("a part of the node agent has ended")
