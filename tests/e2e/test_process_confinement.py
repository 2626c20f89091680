"""What a confined process cannot do, by trying it, and what it still can; as root and as nobody.

Three kinds: a user of its own, as where identities are enforced; root, where code is not open to
others; and whoever runs the tests. Each cold, and forked from a warm interpreter.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import pty
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bedstone.processes import landlock
from bedstone.processes.client import SupervisorClient
from bedstone.processes.identity import ProcessIdentity
from bedstone.processes.spec import Confinement, ProcessSpec
from bedstone.testing.confined import ATTEMPTS, NUMBERS, OUTPUT, PROGRAM, WORK
from bedstone.testing.processes import ENV, end_of, gone, program, supervised, until, written
from bedstone.testing.zygotes import zygote

ROOT = os.geteuid() == 0
SYSTEM = Path(f"/usr/bin/python3.{sys.version_info.minor}")
OWN = 2_101_000_007
KINDS = ["own user", "root"] if ROOT else ["shared user"]
PLACE = "/run" if ROOT else "/tmp"
"""Where what is made is not below a folder that such a process has for itself."""

pytestmark = [
    pytest.mark.skipif(not SYSTEM.exists(), reason=f"install {SYSTEM}, which every user may run"),
    pytest.mark.skipif(landlock.version() < 6, reason="needs Linux 6.12 for all that is tried"),
    pytest.mark.skipif(platform.machine() not in NUMBERS, reason="the calls are not known here"),
]


@dataclass
class Scene:
    """A folder that every user may enter, with what is to be out of reach."""

    folder: Path
    kind: str

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def confined(self, name: str, text: str, *arguments: str, **fields: Any) -> ProcessSpec:
        """A process of this kind that runs a text of Python in its own folder."""
        log = self.folder / f"{name}.log"
        own = self.kind == "own user"
        kept = Confinement((str(self.home), "/tmp", "/dev/shm"), alone=own)
        if own:
            kept = replace(kept, temporary=str(self.home / "tmp"))
            fields |= {"uid": OWN, "gid": OWN}
        elif self.kind == "root":
            hidden = (str(self.folder / "state"), str(self.folder))
            kept = replace(kept, hidden=hidden, visible=(str(self.home),), root=True)
        return program(
            name,
            *(str(SYSTEM), "-c", text, *arguments),
            env=ENV | {"HOME": str(self.home), "TMPDIR": str(self.home), "PYTHONUNBUFFERED": "1"},
            cwd=str(self.home),
            stdout=str(log),
            confinement=kept,
            **fields,
        )

    async def said(self, client: SupervisorClient, spec: ProcessSpec) -> str:
        """What it has written when it has ended well."""
        info = await client.spawn(spec)
        assert info.message is None
        ending = await end_of(client, spec.name)
        text = Path(spec.stdout or "").read_text()
        assert ending == "exit status 0", text
        return text


@pytest.fixture(params=KINDS)
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    folder = Path(tempfile.mkdtemp(prefix="bedstone-confined-", dir=PLACE))
    folder.chmod(0o777)
    found = Scene(folder, request.param)
    for path in (found.home, found.home / "tmp", folder / "state"):
        path.mkdir()
        path.chmod(0o777)
    (folder / "state" / "key").write_text("hush")
    yield found
    shutil.rmtree(folder)


async def warm(client: SupervisorClient, scene: Scene) -> str:
    """The name of a zygote for processes of the scene."""
    spec = zygote("a", scene.folder, ("json",))
    spec = replace(spec, argv=(str(SYSTEM), *spec.argv[1:]), cwd="/", confinement=Confinement())
    if scene.kind == "own user":
        users = str(await client.create_userns("web", OWN - 7, 256))
        spec = replace(spec, userns=users, uid=0, gid=0)
    notes = (await client.spawn(spec)).applied
    assert ("system calls filtered" in notes) == (scene.kind == "shared user"), notes
    return spec.name


@pytest.mark.parametrize("start", ["cold", "warm"])
def test_it_cannot_reach_beyond_itself_and_works(scene: Scene, start: str) -> None:
    outside = Path(tempfile.mkdtemp(prefix="bedstone-outside-", dir=PLACE)) / "file"
    outside.parent.chmod(0o777)
    outside.write_text("theirs")
    outside.chmod(0o666)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0bedstone-confined-{os.getpid()}")
        listener.listen()

        async def check(client: SupervisorClient) -> None:
            sibling = await client.spawn(scene.confined("sibling", "import time; time.sleep(60)"))
            given = {} if start == "cold" else {"zygote": await warm(client, scene)}
            calls = NUMBERS[platform.machine()]
            found: dict[str, str] = {}
            for name, tried in (("attempts", ATTEMPTS), ("work", WORK)):
                argument = json.dumps(
                    [calls, tried, sibling.pid, str(outside), listener.getsockname().decode()]
                )
                spec = scene.confined(name, PROGRAM, argument, **given)
                if name == "attempts" and spec.confinement is not None:
                    kept = replace(spec.confinement, writable=(str(scene.home),))
                    spec = replace(spec, confinement=kept)
                found |= json.loads((await scene.said(client, spec)).strip().splitlines()[-1])
                notes = (await client.get(name)).applied
                assert "system calls filtered" in notes
                assert any("Landlock" in note for note in notes), notes
                if ROOT:
                    assert "own mount, ipc, uts namespaces" in notes
                    assert "sees no processes of others" in notes
            if scene.kind == "own user":
                del found[OUTPUT]  # its file is root's
            assert {name: result for name, result in found.items() if result != "ok"}.keys() == (
                ATTEMPTS.keys()
            ), found

        try:
            asyncio.run(_supervised(scene, check))
            assert outside.read_text() == "theirs"
        finally:
            shutil.rmtree(outside.parent)


async def _supervised(scene: Scene, check: Any) -> None:
    async with supervised(scene.folder) as (_, client):
        await check(client)


def test_what_it_sees_is_its_own(scene: Scene) -> None:
    """Processes, temporary files, and folders of Bedstone's: where root has arranged it."""
    if not ROOT:
        pytest.skip("mounts need root")
    text = (
        "import json, os\n"
        "open('/tmp/mine', 'w').write('x'); open('here', 'w').write('x')\n"
        "pids = [name for name in os.listdir('/proc') if name.isdigit()]\n"
        f"folder = {str(scene.folder)!r}\n"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "alone = [int(pid) for pid in pids] == [os.getpid()]\n"
        "print(json.dumps([alone, sorted(os.listdir(folder)),\n"
        "    os.path.exists('/tmp/theirs'), status['CapEff'].strip(), status['CapBnd'].strip(),\n"
        "    status['NoNewPrivs'].strip()]))\n"
    )
    theirs = Path("/tmp/theirs")
    theirs.write_text("x")

    async def check(client: SupervisorClient) -> None:
        alone, around, temporary, able, bound, new = json.loads(
            await scene.said(client, scene.confined("x", text))
        )
        assert alone
        assert new == "1"
        if scene.kind == "own user":
            assert "state" in around
            assert (temporary, int(able, 16), int(bound, 16)) == (False, 0, 0)
            assert (scene.home / "tmp" / "mine").exists()
        else:
            # Root sees what it may read; what is left of its rights reaches no one else.
            assert (around, temporary) == (["home"], True)
            assert int(able, 16) == int(bound, 16) == 0x5FB
        assert (scene.home / "here").exists()

    try:
        asyncio.run(_supervised(scene, check))
    finally:
        theirs.unlink()
        Path("/tmp/mine").unlink(missing_ok=True)


def test_root_reaches_no_socket_that_obeys_root(scene: Scene) -> None:
    """Such as a container engine's, which would start whatever root asks for, with all rights."""
    if scene.kind != "root":
        pytest.skip("rights keep others from it")
    place = Path(tempfile.mkdtemp(prefix="bedstone-outside-", dir="/run"))
    text = (
        "import json, os, socket, sys\n"
        "found = {}\n"
        "for path in sys.argv[1:]:\n"
        "    try: found[path] = socket.socket(socket.AF_UNIX).connect(path) or 'reached'\n"
        "    except OSError as error: found[path] = error.strerror\n"
        f"found['link'] = open({str(place / 'link')!r}).read()\n"
        f"found['deep'] = sorted(os.listdir({str(place / 'deep')!r}))\n"
        "print(json.dumps(found))\n"
    )
    (place / "deep" / "er").mkdir(parents=True)
    (place / "deep" / "file").write_text("read by many")
    (place / "link").symlink_to("deep/file")
    roots, deep, named, theirs = paths = [
        str(place / name) for name in ("engine", "deep/engine", "named", "database")
    ]
    listeners = [socket.socket(socket.AF_UNIX) for _ in paths]
    for path, listener in zip(paths, listeners, strict=True):
        listener.bind(path)
        listener.listen()
        os.chmod(path, 0o600)  # noqa: PTH101
    os.chown(theirs, 65534, 65534)

    async def check(client: SupervisorClient) -> None:
        spec = scene.confined("x", text, *paths)
        assert spec.confinement is not None
        visible = (*spec.confinement.visible, named)
        kept = replace(spec.confinement, visible=visible)
        found = json.loads(await scene.said(client, replace(spec, confinement=kept)))
        gone = "No such file or directory"
        assert [found[path] for path in paths] == [gone, gone, "reached", "reached"]
        assert (found["link"], found["deep"]) == ("read by many", ["er", "file"])

    try:
        asyncio.run(_supervised(scene, check))
        assert {path for path in (roots, deep) if Path(path).is_socket()} == {roots, deep}
    finally:
        for listener in listeners:
            listener.close()
        shutil.rmtree(place)


def test_a_program_with_another_users_rights_gains_none(scene: Scene) -> None:
    """A set-user-id program of root's, run by a user of its own, is that user's."""
    if scene.kind != "own user":
        pytest.skip("root gains nothing; only root can make such a program")
    tool = scene.folder / "id"
    shutil.copy(shutil.which("id") or "", tool)
    tool.chmod(0o4755)
    text = f"import subprocess; print(subprocess.run([{str(tool)!r}], capture_output=True))"

    async def check(client: SupervisorClient) -> None:
        said = await scene.said(client, scene.confined("x", text))
        assert f"uid={OWN}" in said
        assert "euid" not in said

    asyncio.run(_supervised(scene, check))


def test_root_changes_nothing_elsewhere(scene: Scene) -> None:
    """Neither whose a file is nor what may be done with it; nor does it open others' terminals."""
    if scene.kind != "root":
        pytest.skip("rights keep others from it")
    theirs = Path(tempfile.mkdtemp(prefix="bedstone-outside-", dir="/run")) / "file"
    theirs.touch(0o600)
    before = theirs.stat()
    ours, other = pty.openpty()
    text = (
        "import json, os, pty, sys\n"
        "path, terminal = sys.argv[1:]\n"
        "open('own', 'w').close()\n"
        "found = []\n"
        "for each in ('own', path, '/dev/null'):\n"
        "    for attempt in (lambda: os.chmod(each, 0o4755), lambda: os.chown(each, 7, 7),\n"
        "            lambda: os.utime(each, (1, 1)), lambda: os.chown(each, 0, 0)):\n"
        "        try: found.append(attempt() or 'ok')\n"
        "        except OSError as error: found.append(error.strerror)\n"
        "try: found.append(os.open(terminal, os.O_RDWR | os.O_NOCTTY))\n"
        "except OSError as error: found.append(error.strerror)\n"
        "mine = pty.openpty()[1]\n"
        "found.append(os.ttyname(mine))\n"
        "os.fchmod(mine, 0o600)\n"
        "print(json.dumps(found))\n"
    )

    async def check(client: SupervisorClient) -> None:
        spec = scene.confined("x", text, str(theirs), os.ttyname(other))
        found = json.loads(await scene.said(client, spec))
        refused = ["Read-only file system"] * 4
        assert found == [*["ok"] * 4, *refused, *refused, "No such file or directory", "/dev/pts/0"]
        notes = (await client.get("x")).applied
        assert {"own terminals", "all else read-only"} <= set(notes)

    try:
        asyncio.run(_supervised(scene, check))
        found = theirs.stat()
        assert (found.st_mode, found.st_uid) == (before.st_mode, before.st_uid)
        assert found.st_mtime == before.st_mtime
    finally:
        os.close(ours)
        os.close(other)
        shutil.rmtree(theirs.parent)


def test_what_hides_from_its_end_is_found_by_its_user(scene: Scene) -> None:
    """It has left its session and its parent, and has nothing left that says whose it is."""
    if scene.kind != "own user":
        pytest.skip("who shares a user is not known by it")
    text = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        print(os.getpid(), flush=True)\n"
        "        os.execve('/bin/sleep', ['sleep', '60'], {})\n"
        "    os._exit(0)\n"
        "time.sleep(60)\n"
    )

    async def check(client: SupervisorClient) -> None:
        spec = scene.confined("x", text)
        await client.spawn(spec)
        beside = scene.confined("beside", "import time; time.sleep(60)")
        await client.spawn(beside)
        await until(lambda: written(scene.folder / "x.log"))
        left = ProcessIdentity.of(int((scene.folder / "x.log").read_text()))
        assert left is not None
        await client.stop("x", 0.0)
        assert left.alive(), "its user still runs something that was asked for"
        await client.stop("beside", 0.0)
        await until(lambda: gone(left))

    asyncio.run(_supervised(scene, check))


def test_processes_are_bounded(scene: Scene) -> None:
    """A fork bomb of a user of its own ends at its limit, with no control group."""
    if scene.kind != "own user":
        pytest.skip("who shares a user shares its limit")
    text = (
        "import os, signal, time\n"
        "made = []\n"
        "try:\n"
        "    while True:\n"
        "        pid = os.fork()\n"
        "        if pid == 0: time.sleep(60); os._exit(0)\n"
        "        made.append(pid)\n"
        "except BlockingIOError: print(len(made))\n"
        "for pid in made: os.kill(pid, 9)\n"
        "import resource; print(resource.getrlimit(resource.RLIMIT_CORE))\n"
    )

    async def check(client: SupervisorClient) -> None:
        spec = scene.confined("x", text)
        limits = replace(spec.limits, processes=20)
        assert await scene.said(client, replace(spec, limits=limits)) == "19\n(0, 0)\n"

    asyncio.run(_supervised(scene, check))
