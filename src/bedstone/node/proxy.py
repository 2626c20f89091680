"""The node's Envoy: started as soon as the control plane's address is known, and kept running."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bedstone.engines.envoy import AdsAddress, AdsTls, EnvoyEngine
from bedstone.errors import ConflictError, Error, UnavailableError
from bedstone.model.resources import Phase
from bedstone.node.config import NodeConfig
from bedstone.node.http import request
from bedstone.node.join import Membership
from bedstone.node.reports import Reports
from bedstone.node.watch import Supervisor, Watch
from bedstone.processes.spec import ProcessInfo
from bedstone.trust.spiffe import server_id
from bedstone.trust.svid import Svid

FIRST_BACKOFF = 0.1
LAST_BACKOFF = 5.0
STABLE = 5.0
_log = logging.getLogger(__name__)


class Proxy:
    """One Envoy."""

    def __init__(
        self,
        config: NodeConfig,
        reports: Reports,
        watch: Watch,
        supervisor: Supervisor,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._reports = reports
        self._watch = watch
        self._supervisor = supervisor
        self._clock = clock
        self._membership: Membership | None = None
        self._moved = asyncio.Event()
        self._restarts = 0

    @property
    def admin(self) -> Path:
        """The socket of its administration."""
        return self._config.run_dir / "envoy-admin.sock"

    def identify(self, svid: Svid) -> None:
        """Give it the node's certificate; it takes a renewal by watching the directory.

        On a full disk it keeps the one that it has, for as long as that is valid.
        """
        folder = self._config.private / "tls"
        parts = {"key": svid.key, "chain": svid.chain, "bundle": svid.bundle}
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name, text in parts.items():
                self._draft(folder / f".{name}.new", text)
            # All or none: a key without its certificate would be of no use.
            for name in parts:
                (folder / f".{name}.new").replace(folder / f"{name}.pem")
        except OSError as error:
            _log.error("cannot write", extra={"reason": str(error)})

    @staticmethod
    def _draft(path: Path, text: str) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)

    def follow(self, membership: Membership) -> None:
        """Where its control plane is; another place than before means a new start."""
        if membership != self._membership:
            self._membership = membership
            self._moved.set()

    async def run(self) -> None:
        """Keep it running until cancelled, then leave it running."""
        pause = FIRST_BACKOFF
        while True:
            if self._membership is None:
                self._moved.clear()
                await self._moved.wait()
                continue
            self._moved.clear()
            begun = self._clock()
            try:
                info = await self._start(self._membership)
            except (Error, OSError) as error:  # its files cannot be written, on a full disk
                _log.warning("proxy", extra={"reason": str(error)})
                self._say(Phase.BACKOFF, str(error))
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAST_BACKOFF)
                continue
            ended = await self._until_ended(info)
            if ended is None:
                continue
            self._restarts += 1
            self._say(Phase.BACKOFF, ended.ending())
            _log.warning("proxy ended", extra={"ending": ended.ending()})
            # The first restart is immediate: everything waits for it.
            if self._clock() - begun < STABLE:
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAST_BACKOFF)
            else:
                pause = FIRST_BACKOFF

    async def _start(self, membership: Membership) -> ProcessInfo:
        spec = self._engine(membership).prepare()
        self._config.calls.mkdir(mode=0o700, exist_ok=True)
        try:
            info = await self._supervisor.spawn(spec)
        except ConflictError:
            await self._supervisor.stop(spec.name)
            info = await self._supervisor.spawn(spec)
        if not info.running:
            raise UnavailableError(f"envoy: {info.ending()}")
        return info

    async def _until_ended(self, info: ProcessInfo) -> ProcessInfo | None:
        """Watch it; None when it is to be started anew for another control plane."""
        if not await self._live():
            self._say(Phase.STARTING, "connecting to the control plane", info.pid)
        ended = asyncio.ensure_future(self._watch.ended(info))
        moved = asyncio.ensure_future(self._moved.wait())
        ready = asyncio.ensure_future(self._ready(info))
        try:
            await asyncio.wait((ended, moved), return_when=asyncio.FIRST_COMPLETED)
            return ended.result() if ended.done() else None
        finally:
            for task in (ended, moved, ready):
                task.cancel()

    async def _ready(self, info: ProcessInfo) -> None:
        pause = 0.02
        while not await self._live():
            await asyncio.sleep(pause)
            pause = min(pause * 1.3, 0.25)
        self._say(Phase.READY, "", info.pid)

    async def _live(self) -> bool:
        """Whether it has its first configuration."""
        try:
            answer = await request(str(self.admin), "GET", "/ready", timeout=2.0)
        except Error:
            return False
        return answer.body.strip() == b"LIVE"

    async def configuration(self) -> bytes:
        """What it has, endpoints included, as its administration says it (JSON)."""
        answer = await request(
            str(self.admin), "GET", "/config_dump?include_eds", timeout=10.0, largest=None
        )
        return answer.body

    def _engine(self, membership: Membership) -> EnvoyEngine:
        host, _, port = membership.session.rpartition(":")
        folder = self._config.private / "tls"
        return EnvoyEngine(
            node_id=self._config.name,
            cluster=membership.domain,
            run_dir=self._config.run_dir,
            log=self._config.logs / "envoy.log",
            ads=AdsAddress(host=host, port=int(port)),
            tls=AdsTls(
                certificate=folder / "chain.pem",
                key=folder / "key.pem",
                authority=folder / "bundle.pem",
                server_name=server_id(membership.domain),
            ),
            sds_socket=self._config.sds,
            collector_socket=self._config.collector,
            telemetry_socket=self._config.telemetry,
        )

    def _say(self, phase: Phase, reason: str, pid: int | None = None) -> None:
        update: dict[str, Any] = {
            "proxy": phase,
            "proxy_reason": reason,
            "proxy_pid": pid,
            "proxy_restarts": self._restarts,
        }
        self._reports.put(self._reports.node.model_copy(update=update))


def digests(dump: bytes) -> dict[str, str]:
    """What the proxy has, as digests; pure."""
    from bedstone.control.mesh.digests import digests_from_config_dump

    return digests_from_config_dump(json.loads(dump))
