"""The conformance suite of sandboxes: what `bedstone.sandbox.protocol` promises, as checks.

A driver's tests make one sandbox over a real supervisor, and run every check:

    @pytest.mark.parametrize("check", CHECKS)
    def test_conformance(check: str, tmp_path: Path) -> None:
        run_check(check, MySandbox, tmp_path, enforce="auto")

The programs that run inside are the standard library's. Failures are assertion errors.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from bedstone.boxes.home import boxes_directory
from bedstone.errors import Error, InvalidError
from bedstone.model.resources import SHARED_USER, Instance, Plumbing, Revision
from bedstone.model.spec import Limits, WorkloadSpec
from bedstone.processes.client import SupervisorClient, start_supervisor
from bedstone.processes.spec import COLD_START, WARM_START
from bedstone.sandbox.boxed import clear_away
from bedstone.sandbox.ports import Ports
from bedstone.sandbox.protocol import Host, Sandbox, Unit, process_name

LIMIT: Final = 60.0
"""Seconds for one check."""

_SERVER = """
import http.server, json, os, resource, signal, sys
if os.environ.get("DEAF"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
def identity():
    if "GRPC_XDS_BOOTSTRAP" not in os.environ:
        return None
    path = os.environ["GRPC_XDS_BOOTSTRAP"]
    bootstrap = json.load(open(path))
    key = bootstrap["certificate_providers"]["default"]["config"]["private_key_file"]
    found = os.stat(key)
    return {
        "node": bootstrap["node"]["id"], "key": open(key).read(), "uid": found.st_uid,
        "mode": found.st_mode & 0o777, "others": os.stat(os.path.dirname(path)).st_mode & 0o077,
    }
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({
            "env": dict(os.environ), "cwd": os.getcwd(), "pid": os.getpid(), "uid": os.getuid(),
            "netns": os.readlink("/proc/self/ns/net"), "argv": sys.argv, "identity": identity(),
            "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "status": dict(line.split(":\\t", 1) for line in open("/proc/self/status")),
        }).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments):
        pass
print("listening", flush=True)
address = (os.environ.get("HOST", "127.0.0.1"), int(os.environ["PORT"]))
http.server.HTTPServer(address, Handler).serve_forever()
"""

Make = Callable[[Host], Sandbox]


@dataclass(frozen=True, slots=True)
class World:
    """One sandbox over one supervisor, and a directory of code."""

    sandbox: Sandbox
    supervisor: SupervisorClient
    code: Path
    logs: Path
    declared: Mapping[str, object] = field(default_factory=dict)
    """What every workload declares, unless a check says otherwise."""
    boxed: bool = False
    """Whether instances have processes, users and files of their own."""

    def instance(self, name: str, workload: str = "web") -> Instance:
        """An instance of the app `shop`."""
        return Instance(app="shop", workload=workload, name=name, revision="r1", node="here")

    async def unit(self, name: str, **spec: object) -> Unit:
        """An instance with its addresses, running the test server unless `spec` says otherwise."""
        declared = WorkloadSpec.model_validate(
            {"command": ("python", "server.py"), **self.declared, **spec}
        )
        if self.boxed:
            # The only address that a program has in a network stack of its own.
            declared = declared.model_copy(update={"env": {"HOST": "0.0.0.0", **declared.env}})  # noqa: S104
        instance = self.instance(name)
        plumbing = await self.sandbox.allot(
            instance, ["risk"], ["ledger"], None, warm=declared.warm is not None
        )
        revision = Revision(
            app="shop", workload="web", name="r1", spec=declared, root=str(self.code)
        )
        return Unit(
            instance=instance,
            revision=revision,
            plumbing=plumbing,
            databases={"ledger": "postgresql://web:secret@127.0.0.1:5432/ledger"},
            log=self.logs / f"{name}.log",
            domain="test.internal",
            xds="127.0.0.1:1",
            identity=("KEY", "CHAIN", "BUNDLE"),
        )

    async def ask(self, plumbing: Plumbing) -> dict[str, object]:
        """What the test server says of itself."""
        async with asyncio.timeout(10):
            while True:
                link = self.sandbox.socket(plumbing.app)
                try:
                    loop = asyncio.get_running_loop()
                    await loop.sock_connect(link, (plumbing.app.host, plumbing.app.port))
                    break
                except OSError:
                    link.close()
                    await asyncio.sleep(0.02)
            reader, writer = await asyncio.open_connection(sock=link)
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            text = await reader.read()
            writer.close()
            await writer.wait_closed()
        answer: dict[str, object] = json.loads(text.partition(b"\r\n\r\n")[2])
        return answer


async def serves_its_port(world: World) -> None:
    """A program that listens on `$PORT` is reached at the address that was allotted."""
    unit = await world.unit("a")
    started = await world.sandbox.start(unit)
    answer = await world.ask(unit.plumbing)
    assert world.boxed or answer["pid"] == started.info.pid
    assert answer["cwd"] == str(world.code)
    shared = any(note.startswith(SHARED_USER) for note in started.limits)
    assert started.enforced == (world.sandbox.enforced and not shared)


async def environment_says_where_everything_is(world: World) -> None:
    """Proxy, services, databases and identity are found through the environment."""
    os.environ["UNRELATED_VARIABLE"] = "leaked"
    try:
        unit = await world.unit("a", env={"MODE": "x${databases.ledger.port}", "PORT": "1"})
        await world.sandbox.start(unit)
        answer = await world.ask(unit.plumbing)
    finally:
        del os.environ["UNRELATED_VARIABLE"]
    env = answer["env"]
    assert isinstance(env, dict)
    assert env["PORT"] == str(unit.plumbing.app.port), "the manifest cannot change PORT"
    assert env["MODE"] == "x5432"
    assert env["HTTP_PROXY"] == env["http_proxy"]
    proxy, risk = unit.plumbing.outbound, unit.plumbing.services["risk"]
    assert env["HTTP_PROXY"].endswith(f"{proxy.host}:{proxy.port}")
    assert env["RISK_URL"] == f"http://{risk.host}:{risk.port}"
    assert risk.host in env["no_proxy"], "what goes to a service goes there directly"
    assert env["LEDGER_URL"] == unit.databases["ledger"]
    assert env["BEDSTONE_INSTANCE"] == "a"
    assert "127.0.0.1" in env["no_proxy"]
    assert "UNRELATED_VARIABLE" not in env


async def caller_is_told_apart(world: World) -> None:
    """Two instances differ by network namespace, or by a credential that is not guessable."""
    one, other = await world.unit("a"), await world.unit("b")
    if not world.sandbox.enforced:
        assert one.plumbing.credential != other.plumbing.credential
        assert len(one.plumbing.credential or "") > 32
        ports = {one.plumbing.app.port, other.plumbing.app.port, one.plumbing.outbound.port}
        assert len(ports) == 3
        return
    assert one.plumbing.credential is None
    assert len({one.plumbing.app.netns, other.plumbing.app.netns, None}) == 3
    if world.boxed:
        return
    await world.sandbox.start(one)
    await world.sandbox.start(other)
    said = [await world.ask(one.plumbing), await world.ask(other.plumbing)]
    spaces = {said[0]["netns"], said[1]["netns"], str(Path("/proc/self/ns/net").readlink())}
    assert len(spaces) == 3, "each has a network of its own"


async def bootstrap_is_private(world: World) -> None:
    """The files for proxyless gRPC are there, readable to the instance alone, and renewed."""
    unit = await world.unit("a")
    await world.sandbox.start(unit)
    answer = await world.ask(unit.plumbing)
    found = {"node": "shop/web/a", "key": "KEY", "uid": answer["uid"], "mode": 0o600, "others": 0}
    assert answer["identity"] == found
    world.sandbox.refresh(dataclasses.replace(unit, identity=("KEY2", "CHAIN2", "BUNDLE2")))
    again = await world.ask(unit.plumbing)
    assert again["identity"] == {**found, "key": "KEY2"}


async def who_shares_a_user_is_not_enforced(world: World) -> None:
    """Code that is closed to others: either a user of its own reads it all the same, or it says so.

    Root and the owner of the code could take the credentials of whatever else they run.
    """
    world.code.chmod(0o700)
    unit = await world.unit("a")
    started = await world.sandbox.start(unit)
    answer = await world.ask(unit.plumbing)
    alone = world.boxed or answer["uid"] not in (0, os.getuid(), world.code.stat().st_uid)
    assert started.enforced == (world.sandbox.enforced and alone)


async def has_no_capability(world: World) -> None:
    """A user of its own has none, can inherit none, and cannot gain one by running a program.

    Whoever it runs as, its system calls are filtered.
    """
    unit = await world.unit("a")
    await world.sandbox.start(unit)
    answer = await world.ask(unit.plumbing)
    status = answer["status"]
    assert isinstance(status, dict)
    assert status.get("NoNewPrivs", "1").strip() == "1"
    # A kernel in user space shows no filter.
    assert status.get("Seccomp", "2").strip() == "2"
    if world.sandbox.enforced and answer["uid"] != 0:
        names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
        assert {name: int(status[name], 16) for name in names} == dict.fromkeys(names, 0)


async def start_is_idempotent(world: World) -> None:
    """Starting what runs gives the same process: an agent that died in between asks again."""
    unit = await world.unit("a")
    first = await world.sandbox.start(unit)
    second = await world.sandbox.start(unit)
    assert first.info.pid == second.info.pid


async def allot_is_idempotent(world: World) -> None:
    """Allotting again with what was had keeps every address."""
    unit = await world.unit("a")
    again = await world.sandbox.allot(
        unit.instance, ["risk"], ["ledger"], unit.plumbing, warm="warm" in world.declared
    )
    assert again == unit.plumbing


async def stop_is_polite_then_firm(world: World) -> None:
    """SIGTERM first; a program that ignores it is killed when its time is up."""
    polite, deaf = await world.unit("a"), await world.unit("b", env={"DEAF": "1"})
    for unit in (polite, deaf):
        await world.sandbox.start(unit)
        await world.ask(unit.plumbing)
    await world.sandbox.stop(polite.instance, 5.0)
    info = await world.supervisor.get(process_name(polite.instance))
    ended = await world.sandbox.ending(polite.instance, info)
    assert ended == "killed by SIGTERM"
    await world.sandbox.stop(deaf.instance, 0.2)
    info = await world.supervisor.get(process_name(deaf.instance))
    assert await world.sandbox.ending(deaf.instance, info) == "killed by SIGKILL"


async def release_leaves_nothing(world: World) -> None:
    """After a release, files and namespaces of the instance are gone; repeating it is harmless."""
    unit = await world.unit("a")
    await world.sandbox.start(unit)
    env = (await world.ask(unit.plumbing))["env"]
    assert isinstance(env, dict)
    await world.sandbox.stop(unit.instance, 1.0)
    for _ in range(2):
        await world.sandbox.release(unit.instance, unit.plumbing)
    assert world.boxed or not Path(env["GRPC_XDS_BOOTSTRAP"]).parent.exists()
    if unit.plumbing.app.netns is not None:
        assert not Path(unit.plumbing.app.netns).exists()
    assert process_name(unit.instance) not in {info.name for info in await world.supervisor.list()}


async def refuses_what_cannot_run(world: World) -> None:
    """A missing program, directory or interpreter is an error that says which, and lasts."""
    for name, spec, word in (
        ("a", {"command": ("no-such-program",)}, "no-such-program"),
        ("b", {"path": "nowhere"}, "nowhere"),
        ("c", {"python": "./no-python"}, "no-python"),
    ):
        unit = await world.unit(name, **spec)
        error = await _failure(world.sandbox.start(unit))
        assert isinstance(error, InvalidError), f"got {error!r}"
        assert word in error.message


async def _failure(attempt: Awaitable[object]) -> Error:
    try:
        result = await attempt
    except Error as error:
        return error
    raise AssertionError(f"got {result!r}, expected an error")


async def command_runs_beside(world: World) -> None:
    """A command has the instance's environment and network, and its output is the instance's."""
    unit = await world.unit("a")
    script = "import os; print('beside', os.environ['BEDSTONE_INSTANCE'], flush=True)"
    info = await world.sandbox.run(unit, "probe/a", ["python", "-c", script])
    assert info.name == "probe/a"
    async with asyncio.timeout(10):
        while info.running:
            await asyncio.sleep(0.02)
            info = await world.supervisor.get("probe/a")
    assert info.exit_code == 0
    assert "beside a" in unit.log.read_text()


async def warm_is_said(world: World) -> None:
    """An instance that is to be started warm was, or it says why not; others say nothing of it.

    No interpreter loads modules with root's rights, which a machine's own root would need for it.
    """
    unit = await world.unit("a")
    started = await world.sandbox.start(unit)
    answer = await world.ask(unit.plumbing)
    said = [note for note in started.limits if note.startswith((WARM_START, COLD_START))]
    assert len(said) == int("warm" in world.declared), started.limits
    if not said:
        return
    root = answer["uid"] == 0
    assert said[0].startswith(f"{COLD_START}it runs as root" if root else WARM_START), said
    await world.sandbox.stop(unit.instance, 1.0)
    await world.sandbox.release(unit.instance, unit.plumbing)
    left = [info.name for info in await world.supervisor.list()]
    assert bool(left) != root
    assert all(name.startswith("zygote/") for name in left), "what it was forked from is kept"


async def limits_are_said(world: World) -> None:
    """Declared limits are applied, or it is said that they are not."""
    unit = await world.unit("a", limits=Limits(files=128, memory=512 << 20))
    started = await world.sandbox.start(unit)
    assert (await world.ask(unit.plumbing))["files"] == 128
    assert started.limits, "what came of the limits is said"


_CHECKS: Final[dict[str, Callable[[World], Awaitable[None]]]] = {
    check.__name__: check
    for check in (
        serves_its_port,
        environment_says_where_everything_is,
        caller_is_told_apart,
        bootstrap_is_private,
        who_shares_a_user_is_not_enforced,
        has_no_capability,
        start_is_idempotent,
        allot_is_idempotent,
        stop_is_polite_then_firm,
        release_leaves_nothing,
        refuses_what_cannot_run,
        command_runs_beside,
        limits_are_said,
        warm_is_said,
    )
}
CHECKS: Final[Sequence[str]] = tuple(_CHECKS)


@asynccontextmanager
async def _world(
    make: Make, enforce: Literal["auto", "never"], declared: Mapping[str, object], *, boxed: bool
) -> AsyncIterator[World]:
    # Not the test's own folder: an instance's user must be able to pass through.
    base = Path(tempfile.mkdtemp(prefix="bedstone-sandbox-"))
    base.chmod(0o755)
    code, logs = base / "code", base / "logs"
    code.mkdir(mode=0o755)
    logs.mkdir()
    (code / "server.py").write_text(_SERVER)
    (code / "server.py").chmod(0o644)
    run = await start_supervisor(base / "state")
    try:
        async with SupervisorClient(run.socket) as supervisor:
            host = Host(
                supervisor,
                Ports(21000, 31000),
                "127.0.0.1",
                Path(run.run_dir),
                lambda *_: (sys.executable,),
                enforce,
                boxes=boxes_directory(),
            )
            sandbox = make(host)
            await sandbox.open()
            try:
                yield World(sandbox, supervisor, code, logs, declared, boxed)
            finally:
                await supervisor.shutdown()
                if boxed:
                    failures = await clear_away(host.boxes, host.run_dir, None)
                    assert failures == []
    finally:
        shutil.rmtree(base, ignore_errors=True)


def run_check(
    check: str,
    make: Make,
    *,
    enforce: Literal["auto", "never"] = "auto",
    declared: Mapping[str, object] | None = None,
    boxed: bool = False,
) -> bool:
    """Run one check of `CHECKS` on a new sandbox; whether identities were enforced.

    `declared` is what every workload declares besides its command; `boxed` says that instances
    have processes, users and files of their own.
    """

    async def run() -> bool:
        async with (
            asyncio.timeout(LIMIT),
            _world(make, enforce, declared or {}, boxed=boxed) as world,
        ):
            await _CHECKS[check](world)
            return world.sandbox.enforced

    return asyncio.run(run())
