"""What a module can do that is loaded for instances with users of their own: nothing to others.

Its interpreter is root in a user namespace. These are attempts to be more than that.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bedstone.processes.client import SupervisorClient
from bedstone.processes.identity import ProcessIdentity
from bedstone.processes.spec import COLD_START
from bedstone.testing.processes import ENV, end_of, gone, program, supervised, until
from bedstone.testing.zygotes import zygote

SYSTEM = Path(f"/usr/bin/python3.{sys.version_info.minor}")
FIRST = 2_101_000_000

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="users of their own need root; run as root"),
    pytest.mark.skipif(not SYSTEM.exists(), reason=f"install {SYSTEM}, which every user may run"),
]

MOUNT = "mount"
# Each answers "ok" if it could be done.
ATTEMPTS = {
    "read what is root's": "open(secret).read()",
    "write what is root's": "open(secret, 'a')",
    "signal a process outside": "os.kill(outside, 0)",
    "read the memory of a process outside": "open(f'/proc/{outside}/mem', 'rb').read(1)",
    "read the environment of a process outside": "open(f'/proc/{outside}/environ').read()",
    "connect to the node": "socket.create_connection(('127.0.0.1', port), 5).close()",
    "enter the node's network": "enter(f'/proc/{outside}/ns/net', 0x40000000)",
    "enter the node's mounts": "enter(f'/proc/{outside}/ns/mnt', 0x20000)",
    "enter the node's users": "enter(f'/proc/{outside}/ns/user', 0x10000000)",
    "enter another workload's network": "enter(foreign, 0x40000000)",
    MOUNT: "mount('/tmp', '/mnt')",
    "be another workload's user": f"os.setresuid(*[{FIRST} + 300] * 3)",
    "be root outside": "os.setresuid(*[-1, 4294967294, -1])",
    "trace a process outside": "check(libc.ptrace(16, outside, 0, 0))",
    "set the clock": "time.clock_settime(time.CLOCK_REALTIME, time.time())",
    "load a module of the kernel": "check(libc.syscall(175, b'x', 1, b''))",
    "make a device": "os.mknod(os.path.join(os.environ['BOX'], 'sda'), 0o060600, 0x800)",
    "write to /proc/sys": "open('/proc/sys/kernel/core_pattern', 'w').write('|/x')",
    "leave its control group": "open('/sys/fs/cgroup/memory/cgroup.procs', 'w').write('0')",
}
MODULE = """
import ctypes, json, os, socket, time
libc = ctypes.CDLL(None, use_errno=True)
outside, secret, foreign, port = json.loads(open({given!r}).read())
def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "no")
def enter(path, kind):
    handle = os.open(path, os.O_RDONLY)
    try:
        check(libc.setns(handle, kind))
    finally:
        os.close(handle)
def mount(source, target):
    check(libc.mount(source.encode(), target.encode(), None, 4096, None))
SAID = {{}}
for name, text in {attempts!r}.items():
    try:
        exec(text)
    except OSError as error:
        SAID[name] = error.strerror
    else:
        SAID[name] = "ok"
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that every user may enter."""
    path = Path(tempfile.mkdtemp(prefix="bedstone-warm-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_a_module_that_is_loaded_has_no_rights_outside(folder: Path) -> None:
    """As root of its namespace, in the zygote, and as the instance's user, in the child."""
    secret, given, box = folder / "secret", folder / "given.json", folder / "box"
    secret.write_text("hush")
    secret.chmod(0o600)
    box.mkdir()
    box.chmod(0o777)
    module = folder / "module.py"
    module.write_text(MODULE.format(given=str(given), attempts=ATTEMPTS))
    text = f"exec(open({str(module)!r}).read()); import json; print(json.dumps(SAID))"
    inner = "import module, json, os; print(json.dumps(module.SAID), os.getuid(), os.getgid())"

    async def check(client: SupervisorClient) -> None:
        users = str(await client.create_userns("web", FIRST, 256))
        others = str(await client.create_userns("other", FIRST + 256, 256))
        network = str(await client.create_netns("web-1", users))
        foreign = str(await client.create_netns("other-1", others))
        outside = await client.spawn(program("outside", "sleep", "60"))
        port = listener.getsockname()[1]
        given.write_text(json.dumps([outside.pid, str(secret), foreign, port]))
        spec = zygote("a", folder, ("module",), folder=str(folder))
        spec = replace(
            spec,
            argv=(str(SYSTEM), *spec.argv[1:]),
            env={**spec.env, "BOX": str(box)},
            cwd="/",
            userns=users,
            uid=0,
            gid=0,
        )
        base = zygote("base", folder, ("json",))
        base = replace(base, argv=(str(SYSTEM), *base.argv[1:]), userns=users, uid=0, gid=0)
        for made in (base, replace(spec, zygote=base.name)):
            info = await client.spawn(made)
            assert info.message is None
            assert Path(f"/proc/{info.pid}").stat().st_uid == FIRST
        assert any(note.startswith("warm start") for note in info.applied), info.applied
        user = FIRST + 7
        for name, script in (("loaded", inner), ("itself", text)):
            child = program(
                name,
                *(str(SYSTEM), "-c", script),
                env=ENV | {"PYTHONPATH": str(folder), "BOX": str(box)},
                cwd=str(folder),
                zygote="zygote/a",
                stdout=str(folder / f"{name}.log"),
                netns=network,
                uid=user,
                gid=user,
            )
            started = await client.spawn(child)
            assert any(note.startswith("warm start") for note in started.applied), started.applied
            assert await end_of(client, name) == "exit status 0"
            said = (folder / f"{name}.log").read_text()
            attempts = json.loads(said[: said.index("}") + 1])
            assert set(attempts) == set(ATTEMPTS)
            could = [key for key, result in attempts.items() if result == "ok"]
            # Root of a namespace may mount: what it alone sees, and those that it forks.
            assert could in ([], [MOUNT] if name == "loaded" else []), name
            for seen in ("self", str(outside.pid)):
                assert " /mnt " not in Path(f"/proc/{seen}/mountinfo").read_text()
        assert (folder / "loaded.log").read_text().split("}")[1].split() == [str(user)] * 2

    async def run() -> None:
        async with supervised(folder) as (_, client):
            await check(client)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        asyncio.run(run())


@pytest.mark.parametrize("loads", [True, False])
def test_what_a_module_starts_ends_with_its_zygote(folder: Path, loads: bool) -> None:  # noqa: FBT001
    """Also if it has hidden from it, and says nothing of where it comes from."""
    pid = folder / "pid"
    pid.touch()
    pid.chmod(0o666)
    hide = "ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)" if loads else ""
    (folder / "module.py").write_text(
        f"import ctypes, os\n{hide}\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        f"        open({str(pid)!r}, 'w').write(str(os.getpid()))\n"
        "        os.execve('/bin/sleep', ['sleep', '60'], {})\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        f"while not os.path.getsize({str(pid)!r}): pass\n"
    )

    async def check(client: SupervisorClient) -> None:
        users = str(await client.create_userns("web", FIRST, 256))
        spec = zygote("a", folder, ("module",), folder=str(folder))
        spec = replace(spec, argv=(str(SYSTEM), *spec.argv[1:]), userns=users, uid=0, gid=0)
        await client.spawn(spec)
        one = program("x", str(SYSTEM), "-c", "pass", zygote="zygote/a", uid=FIRST + 7)
        info = await client.spawn(one)
        assert await end_of(client, "x") == "exit status 0"
        left = ProcessIdentity.of(int(pid.read_text()))
        if loads:
            assert any(note.startswith("warm start") for note in info.applied), info.applied
            assert left is not None
            await client.stop("zygote/a", 0.0)
            await until(lambda: gone(left))
        else:
            assert f"{COLD_START}after its import, module has a child process" in info.applied
            assert left is None or gone(left)

    async def run() -> None:
        async with supervised(folder) as (_, client):
            await check(client)

    asyncio.run(run())
