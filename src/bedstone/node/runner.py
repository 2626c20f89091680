"""Runs one instance: gathers the facts, asks `lifecycle.step`, does what it says, and reports.

What a runner knows is in its status, which is written to disk at each change, before anything that
was decided is done; a new agent goes on from it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from bedstone.errors import DeniedError, Error, InvalidError, NotFoundError
from bedstone.model.resources import Desired, Instance, InstanceStatus, Phase, Plumbing, Revision
from bedstone.model.spec import ExecProbe, TcpProbe
from bedstone.node import lifecycle
from bedstone.node.certificates import Certificates
from bedstone.node.journal import Journal, Record
from bedstone.node.lifecycle import (
    Event,
    Exited,
    Facts,
    Look,
    Prepare,
    Probe,
    Probed,
    Spawn,
    Spawned,
    Stage,
    State,
    Stop,
    Timing,
    Told,
)
from bedstone.node.preparations import Preparations, tail
from bedstone.node.probes import Outcome, accepts, probe
from bedstone.node.reports import Reports
from bedstone.node.tasks import Tasks, insist
from bedstone.node.view import View, cycle_of
from bedstone.node.watch import Watch
from bedstone.processes.spec import ProcessInfo
from bedstone.sandbox.protocol import Sandbox, Unit, split_uses
from bedstone.trust.spiffe import workload_id

LISTEN_POLL = 0.01
LISTEN_POLL_LATER = 0.25
FETCH_LOOK = 0.5
"""Seconds after which it is looked whether what is being fetched is still wanted."""
_LASTING = (InvalidError, DeniedError, NotFoundError)
"""What does not pass by itself."""
LISTEN_PATIENCE = 5.0
"""Seconds without its proxy's listeners after which ports that others hold are given up."""
_log = logging.getLogger(__name__)


class Databases(Protocol):
    """What instances need of the databases."""

    def missing(self, app: str, cell: str, name: str) -> str:
        """What there is to wait for, for people; empty when it can be used."""
        ...

    def url(self, app: str, cell: str, name: str, role: str, through: Plumbing) -> str:
        """Its URL for a workload's role, by the instance's own address of it where it has one."""
        ...


@dataclass
class Surroundings:
    """What every runner shares."""

    node: str
    logs: Path
    view: View
    reports: Reports
    watch: Watch
    sandbox: Callable[[str], Sandbox]
    certificates: Certificates
    databases: Databases
    preparations: Preparations
    clock: Callable[[], float]
    xds: Callable[[], str]
    journal: Journal
    failed: Callable[[], None]
    """Called when a task of a runner has failed, and with it the runner."""


class Runner:
    """One instance, from its assignment to its end."""

    def __init__(
        self,
        around: Surroundings,
        instance: Instance,
        revision: Revision,
        record: Record | None,
    ) -> None:
        old = record.status if record else None
        self._around = around
        self._tasks = Tasks(around.failed)
        self._events: deque[Event] = deque()
        self._wake = asyncio.Event()
        self._ended: dict[int, ProcessInfo] = {}
        self._network_reason = ""
        self._failure = ""
        """Why it could not be started the last time."""
        self._unwritten = ""
        self._listening = False
        self._listen_task: asyncio.Task[object] | None = None
        self.served = record is not None and record.served
        """It was ready at some time: its proxy listens, and what it uses was there."""
        self._enforced = old.enforced if old else False
        self._limits = old.limits if old else []
        self.instance = instance
        self.revision = revision
        self.plumbing: Plumbing | None = None
        self.state = _restored(old)
        self.settled = asyncio.Event()
        """Set once an adopted instance has been probed, or there is nothing to adopt."""
        self.forgotten = asyncio.Event()
        """Set once the server has deleted it."""
        self.sandbox = around.sandbox(revision.spec.isolation)

    @property
    def spiffe_id(self) -> str:
        """The identity of its workload."""
        return workload_id(self._around.view.domain, self.instance.app, self.instance.workload)

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self._around.logs / "instances" / f"{self.instance.path}.log"

    def assign(self, instance: Instance) -> None:
        """What is wanted of it has changed."""
        self.instance = instance
        self.kick()

    def kick(self) -> None:
        """Something that it may wait for has changed."""
        self._wake.set()

    def ended(self, info: ProcessInfo) -> None:
        """The supervisor says that its process has ended."""
        if info.pid is None:
            return
        if info.pid == self.state.pid:
            self._tasks.start(self._tell_end(info))
        else:
            # The end may be heard before the answer to the start.
            self._ended = {info.pid: info}

    async def _tell_end(self, info: ProcessInfo) -> None:
        self._tell(Exited(await self.sandbox.ending(self.instance, info)))

    async def run(self, previous: Plumbing | None, process: ProcessInfo | None) -> None:
        """Run it to its end: returns once it has stopped and is not wanted."""
        around = self._around
        if process is not None and process.running and process.pid is not None:
            if previous is None:
                # Nobody knows its addresses any more: it cannot be adopted.
                await insist("stop", self.instance.path, self._end_process)
            else:
                self.plumbing = previous
                begun = process.started_at or around.clock()
                self._tell(Spawned(process.pid, begun, adopted=True))
        elif self.state.pid is not None:
            if process is not None:
                await self._tell_end(process)
            else:
                self._tell(Exited("it ended while no agent was there"))
        self._tasks.start(self._allot(previous))
        try:
            while True:
                event = self._events.popleft() if self._events else Look()
                decision = self._decide(event)
                self._publish()
                for action in decision.actions:
                    self._tasks.start(self._perform(action))
                if self.state.pid is None or self.state.phase is Phase.READY:
                    self.settled.set()
                if self._events:
                    continue
                if self.state.stage is Stage.STOPPED:
                    return
                await self._pause(decision.wake)
        finally:
            self.settled.set()
            await self._tasks.close()

    def _decide(self, event: Event) -> lifecycle.Decision:
        had_failed = self.state.phase is Phase.FAILED
        decision = lifecycle.step(self.state, event, self._facts(), self._around.clock())
        self.state = decision.state
        if self.state.phase is Phase.READY:
            self.served = True
        elif self.state.phase is Phase.FAILED:
            # Its proxy takes the listeners away, and opens them again for the next try.
            self._listening = False
        elif had_failed:
            self.kick()
        return decision

    async def _pause(self, wake: float | None) -> None:
        pause = None if wake is None else max(0.0, wake - self._around.clock())
        try:
            async with asyncio.timeout(pause):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    def _tell(self, event: Event) -> None:
        self._events.append(event)
        self._wake.set()

    # Facts.

    def _facts(self) -> Facts:
        spec = self.revision.spec
        around = self._around
        preparation, reason = around.preparations.outcome(self.instance)
        ready = spec.ready or TcpProbe()
        live = spec.live
        certified = around.certificates.get(self.spiffe_id) is not None
        failed = self.state.phase is Phase.FAILED
        if certified and self.plumbing is not None and not self._listening and not failed:
            self._await_proxy()
        return Facts(
            timing=Timing(
                ready_interval=ready.interval,
                ready_failures=ready.failures,
                live=live is not None,
                live_interval=live.interval if live else 1.0,
                live_failures=live.failures if live else 1,
                start_timeout=spec.start_timeout,
            ),
            wanted=self.instance.desired is Desired.RUNNING,
            released=self.instance.released,
            needs=self._needs(),
            network=self.plumbing is not None,
            network_reason=self._network_reason,
            certified=certified,
            listening=self._listening,
            must_prepare=spec.prepare is not None,
            preparation=preparation,
            preparation_reason=reason,
        )

    def _uses(self) -> tuple[list[str], list[str]]:
        app = self._around.view.app(self.instance.app)
        return split_uses(self.revision.spec.uses, list(app.spec.databases) if app else [])

    def _needs(self) -> str:
        instance, view = self.instance, self._around.view
        workloads, databases = self._uses()
        missing = [
            reason
            for name in databases
            if (reason := self._around.databases.missing(instance.app, instance.cell, name))
        ]
        app = view.app(instance.app)
        # One that has served before does not wait for others again: an outage must not spread.
        if app is not None and not self.served:
            circle = cycle_of(app.spec, instance.workload)
            missing += [
                f"workload {name}"
                for name in workloads
                if name not in circle
                # One that nobody wants to run would be waited for without end.
                and app.replicas(name) > 0
                and not view.available.get(f"{instance.app}/{instance.cell}/{name}", False)
            ]
        return ", ".join(missing)

    def _await_proxy(self) -> None:
        if self._listen_task is None or self._listen_task.done():
            self._listen_task = self._tasks.start(self._await_listeners())

    async def _await_listeners(self) -> None:
        """Until the proxy has acknowledged the listeners, and they are open."""
        around = self._around
        begun = around.clock()
        while self.plumbing is not None and not self._listening:
            plumbing = self.plumbing
            waited = around.clock() - begun
            known = self.instance.path in around.view.acknowledged or self.served
            if known and await accepts(self.sandbox.socket, plumbing.outbound):
                if await accepts(self.sandbox.socket, plumbing.inbound):
                    self._listening = True
                    self.kick()
                    return
            elif waited > LISTEN_PATIENCE and not known and not self.sandbox.usable(plumbing):
                _log.warning("ports taken", extra={"instance": self.instance.path})
                await self._allot(None)
                begun = around.clock()
            # An acknowledged listener opens within milliseconds, or something is wrong.
            quick = known and waited < LISTEN_PATIENCE
            await asyncio.sleep(LISTEN_POLL if quick else LISTEN_POLL_LATER)

    def proxy_changed(self) -> None:
        """The proxy's acknowledgements have changed: look at once."""
        if not self._listening and self.instance.path in self._around.view.acknowledged:
            if self._listen_task is not None:
                self._listen_task.cancel()
                self._listen_task = None
            self.kick()

    # Hands.

    async def _allot(self, previous: Plumbing | None) -> None:
        pause = 0.2
        while True:
            workloads, databases = self._uses()
            try:
                self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self.plumbing = await self.sandbox.allot(
                    self.instance,
                    workloads,
                    databases,
                    previous,
                    warm=self.revision.spec.warm is not None,
                )
            except (Error, OSError) as error:  # on a full disk there is no room for its log
                _log.warning(
                    "no network", extra={"instance": self.instance.path, "reason": str(error)}
                )
                self._network_reason = str(error)
                self.kick()
                await asyncio.sleep(pause)
                pause = min(pause * 2, 10.0)
            else:
                break
        self._network_reason = ""
        self._listening = False
        self.kick()

    async def _perform(self, action: lifecycle.Action) -> None:
        match action:
            case Prepare():
                try:
                    self._around.preparations.ensure(self.sandbox, self.unit())
                except Error as error:
                    self._tell(Exited(error.message))
                # Asking is answered at once; the outcome comes as a fact.
            case Spawn():
                await self._spawn()
            case Probe(kind):
                await self._probe(kind)
            case Stop():
                await self._stop()

    async def _spawn(self) -> None:
        plumbing = self.plumbing
        if plumbing is not None and not self.sandbox.app_port_free(plumbing):
            await self._allot(None)
            self._tell(Exited(f"port {plumbing.app.port} is taken; it gets another one"))
            return
        try:
            if not await self._fetched():
                self._tell(Exited("stopped before it was started"))
                return
            started = await self.sandbox.start(self.unit())
        except Error as error:
            self._failure = error.message
            self._tell(Exited(error.message, lasting=isinstance(error, _LASTING)))
            return
        self._failure = ""
        info = started.info
        self._enforced = started.enforced
        self._limits = list(started.limits)
        if info.pid is None:
            self._tell(Exited(info.ending()))
            return
        self._tell(Spawned(info.pid, info.started_at or self._around.clock()))
        if info.pid in self._ended:
            await self._tell_end(self._ended.pop(info.pid))

    async def _fetched(self) -> bool:
        """Have what it is started from, or False if it is not wanted any more meanwhile.

        It takes as long as it takes: the time to become ready begins with the process.
        """
        fetching = asyncio.ensure_future(self.sandbox.fetch(self.unit(), self._say))
        try:
            while not fetching.done():
                if self.instance.desired is not Desired.RUNNING:
                    return False
                await asyncio.wait((fetching,), timeout=FETCH_LOOK)
            await fetching
        finally:
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)
        return True

    def _say(self, text: str) -> None:
        self._tell(Told(f"{text}; before: {self._failure}" if self._failure else text))

    async def _probe(self, kind: str) -> None:
        pid = self.state.pid
        declared = self.revision.spec.ready if kind == "ready" else self.revision.spec.live
        spec = declared or TcpProbe()
        if pid is None or self.plumbing is None:
            return
        if isinstance(spec, ExecProbe):
            outcome = await self._execute(kind, spec)
        else:
            outcome = await probe(self.sandbox.socket, self.plumbing.app, spec)
        self._tell(Probed(pid, "ready" if kind == "ready" else "live", outcome.ok, outcome.message))

    async def _execute(self, kind: str, spec: ExecProbe) -> Outcome:
        name = f"probe/{kind}/{self.instance.path}"
        supervisor = self._around.watch.supervisor
        try:
            info = await self.sandbox.run(self.unit(), name, spec.command)
            try:
                async with asyncio.timeout(spec.timeout):
                    info = await self._around.watch.ended(info)
            except TimeoutError:
                await supervisor.stop(name, 0.0)
                return Outcome(ok=False, message=f"its probe did not end within {spec.timeout:g} s")
            finally:
                await supervisor.stop(name, 0.0)
                await supervisor.forget(name)
        except Error as error:
            return Outcome(ok=False, message=error.message)
        return Outcome(info.exit_code == 0, f"its probe ended: {info.ending()}")

    async def _stop(self) -> None:
        pid = self.state.pid

        async def attempt() -> None:
            try:
                await self._end_process()
            except NotFoundError:
                self._tell(Exited("stopped"))

        # Another process, which is started once this one has ended by itself, is not meant.
        await insist(
            "stop",
            self.instance.path,
            attempt,
            lambda: pid is not None and self.state.pid == pid,
        )

    async def _end_process(self) -> None:
        await self.sandbox.stop(self.instance, self.revision.spec.stop_timeout)

    def unit(self) -> Unit:
        """Everything that its process is made from."""
        if self.plumbing is None:
            raise AssertionError("a process is made only after its network")
        around, instance = self._around, self.instance
        _, databases = self._uses()
        svid = around.certificates.get(self.spiffe_id)
        return Unit(
            instance=instance,
            revision=self.revision,
            plumbing=self.plumbing,
            databases={
                name: around.databases.url(
                    instance.app, instance.cell, name, instance.workload, self.plumbing
                )
                for name in databases
            },
            log=self.log,
            domain=around.view.domain,
            xds=around.xds(),
            identity=(svid.key, svid.chain, svid.bundle) if svid else None,
        )

    def renewed(self) -> None:
        """Its workload has a new certificate."""
        if self.state.pid is not None and self.plumbing is not None:
            try:
                self.sandbox.refresh(self.unit())
            except Error as error:
                _log.error(
                    "cannot renew",
                    extra={"instance": self.instance.path, "reason": error.message},
                )
        self.kick()

    def _publish(self) -> None:
        state, instance = self.state, self.instance
        svid = self._around.certificates.get(self.spiffe_id)
        reason = state.reason or self._unwritten
        ended = state.stage is Stage.BACKOFF and state.phase is Phase.BACKOFF
        if ended and state.attempts > 1 and "\n" not in reason:
            reason += tail(self.log)
        status = InstanceStatus(
            app=instance.app,
            cell=instance.cell,
            workload=instance.workload,
            name=instance.name,
            node=self._around.node,
            revision=instance.revision,
            isolation=self.revision.spec.isolation,
            phase=state.phase,
            reason=reason,
            plumbing=self.plumbing,
            pid=state.pid,
            started_at=state.started_at,
            ready_at=state.ready_at,
            restarts=state.restarts,
            exit_status=state.exit_status,
            enforced=self._enforced,
            limits=self._limits,
            certificate_until=svid.until if svid else None,
        )
        if self._around.reports.put(status):
            # Before anything that was decided is done.
            unwritten = self._around.journal.write(Record(status, self.served))
            if unwritten != self._unwritten:
                self._unwritten = unwritten
                self.kick()


def _restored(old: InstanceStatus | None) -> State:
    """The machine's memory of an instance from its last status."""
    if old is None:
        return State()
    state = State(
        pid=old.pid,
        started_at=old.started_at,
        ready_at=old.ready_at,
        restarts=old.restarts,
        exit_status=old.exit_status,
    )
    match old.phase:
        case Phase.DRAINING if old.pid is not None:
            return replace(state, stage=Stage.DRAIN, phase=Phase.DRAINING)
        case Phase.STOPPED:
            return replace(state, stage=Stage.STOPPED, phase=Phase.STOPPED)
        case _:
            return replace(state, phase=old.phase, reason=old.reason)
