"""Runners whose sandbox fails: nothing stands still, and nothing is given up that still runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from bedstone.errors import DeniedError, Error, NotFoundError, UnavailableError
from bedstone.model.messages import Assignments
from bedstone.model.resources import (
    Address,
    App,
    Desired,
    Instance,
    InstanceStatus,
    Node,
    Phase,
    Plumbing,
    Revision,
)
from bedstone.model.spec import AppSpec
from bedstone.node.certificates import Certificates
from bedstone.node.instances import Instances
from bedstone.node.journal import Journal, Record
from bedstone.node.lifecycle import Exited, Stage, Told
from bedstone.node.preparations import Preparations
from bedstone.node.reports import Reports
from bedstone.node.runner import Databases, Runner, Surroundings
from bedstone.node.tasks import Tasks
from bedstone.node.view import View
from bedstone.node.watch import Supervisor, Watch
from bedstone.processes.spec import ProcessInfo
from bedstone.sandbox.protocol import Sandbox

SPEC = AppSpec.model_validate({"app": "shop", "workloads": {"web": {"command": ["x"]}}})
WEB = Instance(app="shop", workload="web", name="web-1", revision="r1", node="here")
PROCESS = ProcessInfo(f"instance/{WEB.path}", "running", "", pid=4, started_at=1.0)
PLACE = Address(host="127.0.0.1", port=1)
PLUMBING = Plumbing(app=PLACE, inbound=PLACE, outbound=PLACE)


class FailingSandbox:
    """Fails to stop and to release as often as a test says."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.stopped = 0
        self.released = 0

    async def allot(self, *_: object, **__: object) -> Plumbing:
        return PLUMBING

    def app_port_free(self, _: Plumbing) -> bool:
        return True

    async def ending(self, _: Instance, info: ProcessInfo) -> str:
        return info.ending()

    async def stop(self, _: Instance, __: float) -> None:
        self.stopped += 1
        if self.errors:
            raise self.errors.pop(0)

    async def release(self, _: Instance, __: Plumbing | None) -> None:
        self.released += 1
        if self.errors:
            raise self.errors.pop(0)


class Scene:
    """The instances of one node, one of which runs already."""

    def __init__(self, folder: Path, *, remembered: bool) -> None:
        self.sandbox = FailingSandbox()
        self.failures = 0
        self.reports = Reports(Node(name="here", address="127.0.0.1"))
        self.watch = Watch(cast("Supervisor", None))
        self.watch.latest[PROCESS.name] = PROCESS
        self.view = View()
        journal = Journal(folder / "instances", "run")
        if remembered:
            status = InstanceStatus(
                app="shop",
                workload="web",
                name="web-1",
                node="here",
                revision="r1",
                phase=Phase.DRAINING,
                pid=4,
                started_at=1.0,
                plumbing=PLUMBING,
            )
            journal.write(Record(status, served=True))
        self.instances = Instances(
            Surroundings(
                node="here",
                logs=folder,
                view=self.view,
                reports=self.reports,
                watch=self.watch,
                sandbox=lambda _: cast("Sandbox", self.sandbox),
                certificates=Certificates(folder / "ids", lambda _: False, lambda _: None),
                databases=cast("Databases", None),
                preparations=Preparations(
                    "here", self.view, self.reports, self.watch, Tasks(), lambda: None
                ),
                clock=time.time,
                xds=lambda: "",
                journal=journal,
                failed=self.fail,
            )
        )
        self.instances.load()

    def fail(self) -> None:
        self.failures += 1

    def assign(self, *instances: Instance) -> None:
        revision = Revision(app="shop", workload="web", name="r1", spec=SPEC.workloads["web"])
        self.view.apply(
            Assignments(
                complete=True,
                domain="d",
                apps=(App(name="shop", spec=SPEC),),
                revisions=(revision,),
                instances=instances,
            )
        )
        self.instances.reconcile()

    def end(self) -> None:
        """The process ends, and the supervisor says so."""
        ended = replace(PROCESS, state="exited", exit_code=0)
        self.watch.latest[PROCESS.name] = ended
        for _, listener in self.watch._listeners:
            listener(ended)

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - of no event
                await asyncio.sleep(0.005)


def play(scene: Scene, story: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        try:
            await story()
        finally:
            await scene.instances.close()

    asyncio.run(run())


def test_a_runner_that_dies_is_told_and_its_trace_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(tmp_path, remembered=False)
    scene.sandbox.errors = [RuntimeError("a bug of ours")]

    async def story() -> None:
        scene.assign(WEB)
        await scene.until(lambda: scene.failures)

    with caplog.at_level(logging.ERROR):
        play(scene, story)
    assert "a bug of ours" in caplog.text


def test_no_room_for_a_log_is_waited_for(tmp_path: Path) -> None:
    scene = Scene(tmp_path, remembered=False)
    scene.watch.latest.clear()
    blocked = tmp_path / "instances" / "shop"
    blocked.parent.mkdir(exist_ok=True)
    blocked.touch()

    async def story() -> None:
        scene.assign(WEB)
        await asyncio.sleep(0.1)
        assert scene.reports.instances[f"status/instances/{WEB.path}"].plumbing is None
        blocked.unlink()
        await scene.until(
            lambda: scene.reports.instances[f"status/instances/{WEB.path}"].plumbing == PLUMBING
        )

    play(scene, story)
    assert scene.failures == 0


def refused(times: int) -> list[Exception]:
    return [UnavailableError("the supervisor is busy") for _ in range(times)]


def test_a_stop_that_fails_is_tried_again(tmp_path: Path) -> None:
    scene = Scene(tmp_path, remembered=True)
    gone = WEB.model_copy(update={"desired": Desired.DRAINED, "released": True})

    async def story() -> None:
        scene.sandbox.errors = refused(2)
        scene.assign(gone)
        await scene.until(lambda: scene.sandbox.stopped == 3)
        scene.end()
        status = f"status/instances/{WEB.path}"
        await scene.until(lambda: scene.reports.instances[status].phase is Phase.STOPPED)
        scene.sandbox.errors = refused(2)
        scene.assign()
        await scene.until(lambda: status not in scene.reports.instances)

    play(scene, story)
    assert scene.sandbox.stopped == 3
    assert scene.sandbox.released == 3
    assert scene.failures == 0


def test_what_ended_by_itself_is_not_stopped_any_more(tmp_path: Path) -> None:
    scene = Scene(tmp_path, remembered=True)
    gone = WEB.model_copy(update={"desired": Desired.DRAINED, "released": True})

    async def story() -> None:
        scene.sandbox.errors = refused(100)
        scene.assign(gone)
        await scene.until(lambda: scene.sandbox.stopped == 1)
        scene.end()
        await asyncio.sleep(0.5)

    play(scene, story)
    assert scene.sandbox.stopped == 1


def test_what_the_server_forgot_is_stopped_however_often_that_fails(tmp_path: Path) -> None:
    scene = Scene(tmp_path, remembered=True)

    async def story() -> None:
        scene.sandbox.errors = refused(3)
        scene.assign()
        await scene.until(lambda: not scene.reports.instances)

    play(scene, story)
    assert (scene.sandbox.stopped, scene.sandbox.released) == (4, 1)
    assert scene.failures == 0


def test_what_cannot_be_adopted_is_stopped_however_often_that_fails(tmp_path: Path) -> None:
    scene = Scene(tmp_path, remembered=False)

    async def story() -> None:
        scene.sandbox.errors = refused(2)
        scene.assign(WEB)
        status = f"status/instances/{WEB.path}"
        await scene.until(lambda: status in scene.reports.instances)

    play(scene, story)
    assert scene.sandbox.stopped == 3
    assert scene.failures == 0


def fetching(scene: Scene, fetch: Callable[..., Awaitable[None]]) -> Runner:
    """An instance that is to be started, whose image is fetched so."""
    setattr(scene.sandbox, "fetch", fetch)  # noqa: B010 - the sandbox of a scene has none
    scene.assign()
    spec = SPEC.workloads["web"]
    revision = Revision(app="shop", workload="web", name="r1", spec=spec)
    runner = Runner(scene.instances._around, WEB, revision, None)
    runner.plumbing = PLUMBING
    runner.state = replace(runner.state, stage=Stage.SPAWN)
    return runner


def test_what_is_fetched_for_nobody_any_more_is_given_up(tmp_path: Path) -> None:
    """A pull may take minutes, and whoever wants it gone need not wait for it."""
    scene = Scene(tmp_path, remembered=False)

    async def story() -> None:
        began, gone = asyncio.Event(), asyncio.Event()

        async def fetch(_: object, tell: Callable[[str], None]) -> None:
            tell("pulling x:1")
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                gone.set()

        runner = fetching(scene, fetch)
        starting = asyncio.ensure_future(runner._spawn())
        await began.wait()
        assert runner._events.pop() == Told("pulling x:1")
        runner.assign(WEB.model_copy(update={"desired": Desired.DRAINED}))
        await starting
        assert gone.is_set()
        assert runner._events.pop() == Exited("stopped before it was started")

    play(scene, story)


@pytest.mark.parametrize(
    ("error", "lasting"),
    [
        (UnavailableError("no answer"), False),
        (DeniedError("not admitted"), True),
        (NotFoundError("no such image"), True),
    ],
)
def test_what_cannot_be_fetched_is_said_with_every_try(
    tmp_path: Path, error: Error, *, lasting: bool
) -> None:
    scene = Scene(tmp_path, remembered=False)

    async def story() -> None:
        async def fetch(_: object, tell: Callable[[str], None]) -> None:
            tell("pulling x:1")
            raise error

        runner = fetching(scene, fetch)
        await runner._spawn()
        assert list(runner._events) == [Told("pulling x:1"), Exited(error.message, lasting)]
        await runner._spawn()
        assert runner._events[2] == Told(f"pulling x:1; before: {error.message}")

    play(scene, story)
