"""Processes forked from a zygote, with a real supervisor: they are as if run, or say why not."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from bedstone.processes.client import SupervisorClient
from bedstone.processes.identity import ProcessIdentity
from bedstone.processes.spec import COLD_START, WARM_START, Limits, ProcessInfo, ProcessSpec
from bedstone.testing.processes import ENV, end_of, gone, program, supervised, until, written
from bedstone.testing.zygotes import zygote

TRACEBACK = """Traceback (most recent call last):
  File "<string>", line 2, in <module>
  File "<string>", line 1, in f
ZeroDivisionError: division by zero
"""
DREW = "after its import, mod has random bytes that every child would have: mod, line 2, drew them"

Check = Callable[[SupervisorClient], Awaitable[None]]


def run(folder: Path, check: Check) -> None:
    """Run a check with a supervisor in `folder`."""

    async def go() -> None:
        async with supervised(folder) as (_, client):
            await check(client)

    asyncio.run(go())


def forked(name: str, text: str, folder: Path, **fields: object) -> ProcessSpec:
    """A process that runs a text of Python in a fork of the zygote `zygote/a`."""
    return program(
        name,
        *(sys.executable, "-c", text),
        **{"zygote": "zygote/a", "stdout": str(folder / f"{name}.log"), **fields},
    )


def reason(info: ProcessInfo) -> str:
    """Why it was started cold."""
    return next(note.removeprefix(COLD_START) for note in info.applied if COLD_START in note)


def warm(info: ProcessInfo) -> bool:
    """Whether it was forked."""
    return any(note.startswith(WARM_START) for note in info.applied)


async def output(client: SupervisorClient, spec: ProcessSpec) -> str:
    """What a process writes until it ends."""
    info = await client.spawn(spec)
    assert info.message is None
    await end_of(client, spec.name)
    return Path(spec.stdout or "").read_text()


@pytest.mark.parametrize(
    ("text", "ending", "said"),
    [
        ("pass", "exit status 0", ""),
        ("import sys; sys.exit(7)", "exit status 7", ""),
        ("raise SystemExit('enough')", "exit status 1", "enough\n"),
        ("import os; os._exit(9)", "exit status 9", ""),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL", ""),
        ("import os; os.abort()", "killed by SIGABRT", ""),
        ("import atexit; atexit.register(print, 'last')", "exit status 0", "last\n"),
        (
            "import threading as t\nt.Timer(0.1, print, ['after']).start()",
            "exit status 0",
            "after\n",
        ),
        (
            "def f(): 1/0\nf()",
            "exit status 1",
            TRACEBACK,
        ),
    ],
)
def test_it_ends_as_a_program_does(tmp_path: Path, text: str, ending: str, said: str) -> None:
    """Exit codes and signals reach the supervisor, whose child it is; nothing of ours is seen."""

    async def check(client: SupervisorClient) -> None:
        await client.spawn(zygote("a", tmp_path))
        spec = forked("x", text, tmp_path)
        info = await client.spawn(spec)
        assert warm(info), info.applied
        assert await end_of(client, "x") == ending
        assert (tmp_path / "x.log").read_text() == said

    run(tmp_path, check)


def test_scripts_modules_and_texts_see_what_an_interpreter_shows_them(tmp_path: Path) -> None:
    """The same command cold and warm: same arguments, same path, same names, same descriptors."""
    folder = tmp_path / "app"
    (folder / "pkg").mkdir(parents=True)
    text = (
        "import os, sys, signal\n"
        "print(__name__, sys.argv, [os.path.realpath(p) for p in sys.path], sorted(os.environ),\n"
        "      os.getcwd(), globals().get('__file__'), __spec__ and __spec__.name, os.umask(0o7),\n"
        "      sys.modules['__main__'].__dict__ is globals(), os.listdir('/proc/self/fd'),\n"
        "      os.getsid(0) == os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, ()),\n"
        "      [signal.getsignal(n) for n in range(1, 32) if n != 2], 'serving' in sys.modules,\n"
        "      open('/proc/self/cmdline').read().split(chr(0))[1:], os.stat('/proc/self').st_uid,\n"
        "      open('/proc/self/environ').read().split('=')[0],\n"
        "      [l for l in open('/proc/self/status') if l[:7] in ('NoNewPr', 'CapEff:')],\n"
        "      [m for m in sys.modules if m.partition('.')[0] == 'bedstone'])\n"
    )
    (folder / "tool.py").write_text(text)
    (folder / "pkg" / "__init__.py").write_text("")
    (folder / "pkg" / "__main__.py").write_text(text)
    commands = (("tool.py", "a", "-b"), ("-m", "pkg", "c"), ("-c", text, "d"), ("-u", "tool.py"))

    async def check(client: SupervisorClient) -> None:
        await client.spawn(zygote("a", tmp_path))
        for number, command in enumerate(commands):
            said = []
            for kind, parent in (("cold", None), ("warm", "zygote/a")):
                name = f"{kind}{number}"
                spec = program(
                    name,
                    *(sys.executable, *command),
                    env=ENV | {"PYTHONUNBUFFERED": "1", "X": "1"},
                    cwd=str(folder),
                    umask=0o027,
                    zygote=parent,
                    stdout=str(tmp_path / f"{name}.log"),
                )
                said.append(await output(client, spec))
                assert warm(await client.get(name)) == (kind == "warm")
            assert said[0] == said[1]
            assert "Traceback" not in said[0]

    run(tmp_path, check)


def test_a_script_that_is_not_there_is_said_as_python_says_it(tmp_path: Path) -> None:
    """Status 2 and the interpreter's own words."""

    async def check(client: SupervisorClient) -> None:
        await client.spawn(zygote("a", tmp_path))
        spec = forked("x", "", tmp_path, argv=(sys.executable, "/nowhere.py"))
        said = await output(client, spec)
        assert (await client.get("x")).exit_code == 2
        assert said.endswith("can't open file '/nowhere.py': [Errno 2] No such file or directory\n")

    run(tmp_path, check)


def test_stop_is_polite_then_firm(tmp_path: Path) -> None:
    """SIGTERM ends it as it ends any program; handlers of its own are asked; then SIGKILL."""

    async def check(client: SupervisorClient) -> None:
        await client.spawn(zygote("a", tmp_path))
        wait = "print('up', flush=True)\nwhile True: time.sleep(9)"
        handle = "import signal, sys, time\nsignal.signal(15, lambda *_: {})\n"
        for name, text, ending in (
            ("plain", "import time\n" + wait, "killed by SIGTERM"),
            ("own", handle.format("sys.exit(4)") + wait, "exit status 4"),
            ("deaf", handle.format("None") + wait, "killed by SIGKILL"),
        ):
            info = await client.spawn(forked(name, text, tmp_path, stop_grace=0.3))
            assert info.pid is not None
            await until(lambda name=name: written(tmp_path / f"{name}.log"))  # type: ignore[misc]
            assert (await client.stop(name)).ending() == ending

    run(tmp_path, check)


def test_children_outlive_their_zygote_and_die_with_the_supervisor(tmp_path: Path) -> None:
    """They are the supervisor's: the zygote's death is nothing to them, its own is their end."""

    async def check() -> None:
        async with supervised(tmp_path) as (info, client):
            made = await client.spawn(zygote("a", tmp_path))
            child = await client.spawn(forked("x", "import time; time.sleep(60)", tmp_path))
            assert made.pid is not None
            assert child.pid is not None
            assert Path(f"/proc/{child.pid}/stat").read_text().split()[3] == str(info.pid)
            again = await client.spawn(forked("x", "import time; time.sleep(60)", tmp_path))
            assert again.pid == child.pid
            os.kill(made.pid, signal.SIGKILL)
            await end_of(client, "zygote/a")
            await asyncio.sleep(0.1)
            assert (await client.get("x")).running
            identity = ProcessIdentity.of(child.pid)
            assert identity is not None
            info.identity.send_signal(signal.SIGKILL)
            await until(lambda: gone(identity))

    asyncio.run(check())


def test_what_a_child_leaves_is_ended_and_what_others_left_is_not(tmp_path: Path) -> None:
    """A daemon that it forked ends with it, also where its group does not; its siblings' live."""
    daemon = (
        "import os, time, sys\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        print(os.getpid(), flush=True)\n"
        "        time.sleep(60)\n"
        "    os._exit(0)\n"
        "time.sleep(60)\n"
    )

    async def check(client: SupervisorClient) -> None:
        made = await client.spawn(zygote("a", tmp_path))
        left = []
        for name in ("x", "y"):
            await client.spawn(forked(name, daemon, tmp_path))
            log = tmp_path / f"{name}.log"
            await until(lambda log=log: written(log))  # type: ignore[misc]
            identity = ProcessIdentity.of(int(log.read_text()))
            assert identity is not None
            left.append(identity)
        await client.stop("zygote/a", 0.0)
        assert made.pid is not None
        await client.stop("x", 0.0)
        await until(lambda: gone(left[0]))
        assert left[1].alive()

    run(tmp_path, check)


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (
            "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()",
            "after its import, mod has 1 thread(s)",
        ),
        ("import socket\ns = socket.socket()", "after its import, mod keeps a socket open"),
        ("import os\np = os.pipe()", "after its import, mod keeps a pipe open"),
        ("f = open(__file__)", "after its import, mod keeps {folder}/mod.py open"),
        (
            "import select\ne = select.epoll()",
            "after its import, mod keeps eventpoll open",
        ),
        (
            "import subprocess\np = subprocess.Popen(['sleep', '60'])",
            "after its import, mod has a child process",
        ),
        ("import secrets\nKEY = secrets.token_hex()", DREW),
        ("import uuid\nID = uuid.uuid4()", DREW),
        ("1/0", "mod cannot be imported: ZeroDivisionError: division by zero"),
        (
            "import none_such",
            "mod cannot be imported: ModuleNotFoundError: No module named 'none_such'",
        ),
        ("raise SystemExit(3)", "mod cannot be imported: SystemExit: 3"),
        ("import os\nos._exit(3)", "its zygote ended while it forked"),
    ],
)
def test_what_cannot_be_forked_starts_cold_and_says_why(
    tmp_path: Path, module: str, why: str
) -> None:
    """The program runs all the same."""
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "mod.py").write_text(module)

    async def check(client: SupervisorClient) -> None:
        await client.spawn(zygote("a", tmp_path, modules=("mod",), folder=str(folder)))
        spec = forked("x", "print('ran')", tmp_path)
        assert await output(client, spec) == "ran\n"
        info = await client.get("x")
        assert reason(info) == why.format(folder=folder)
        assert info.exit_code == 0

    run(tmp_path, check)


def test_a_thread_that_ends_is_waited_for(tmp_path: Path) -> None:
    """A module may use a thread while it is imported."""
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "mod.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(0.05,)).start()\n"
    )

    async def check(client: SupervisorClient) -> None:
        await client.spawn(zygote("a", tmp_path, modules=("mod",), folder=str(folder)))
        assert warm(await client.spawn(forked("x", "pass", tmp_path)))

    run(tmp_path, check)


def test_a_module_of_the_application_that_one_loaded_would_hide(tmp_path: Path) -> None:
    """Cold, its own `json` would be imported; a fork has the other one already."""
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "json.py").write_text("mine = True")
    (folder / "main.py").write_text("import json; print(json.mine)")

    async def check(client: SupervisorClient) -> None:
        await client.spawn(zygote("a", tmp_path))
        argv = (sys.executable, "main.py")
        spec = forked("x", "", tmp_path, argv=argv, cwd=str(folder))
        assert await output(client, spec) == "True\n"
        why = "its own json.py has the name of a module that is loaded"
        assert reason(await client.get("x")) == why

    run(tmp_path, check)


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (("python", "-X", "dev", "-c", "print('ran')"), "option"),
        (("sh", "-e", "-c", "echo ran"), "is not Python's"),
        (("python", "-c", "print('ran')"), "its zygote does not run"),
    ],
)
def test_what_was_never_to_be_forked(tmp_path: Path, argv: tuple[str, ...], why: str) -> None:
    """An option of the interpreter, another program, no zygote."""

    async def check(client: SupervisorClient) -> None:
        if why != "its zygote does not run":
            await client.spawn(zygote("a", tmp_path))
        program_ = sys.executable if argv[0] == "python" else argv[0]
        spec = forked("x", "", tmp_path, argv=(program_, *argv[1:]))
        assert await output(client, spec) == "ran\n"
        assert why in reason(await client.get("x"))

    run(tmp_path, check)


def test_a_zygote_that_is_killed_while_it_forks(tmp_path: Path) -> None:
    """Every process runs once, forked or cold, whenever the zygote was killed."""

    async def check(client: SupervisorClient) -> None:
        made = await client.spawn(zygote("a", tmp_path))
        specs = [forked(f"x{i}", "print('ran', flush=True)", tmp_path) for i in range(30)]

        async def kill() -> None:
            for _ in range(3):
                await asyncio.sleep(0.02)
            assert made.pid is not None
            os.kill(made.pid, signal.SIGKILL)

        infos, _ = await asyncio.gather(
            asyncio.gather(*(client.spawn(spec) for spec in specs)), kill()
        )
        for spec, info in zip(specs, infos, strict=True):
            assert info.message is None
            assert await end_of(client, spec.name) == "exit status 0"
            assert Path(spec.stdout or "").read_text() == "ran\n"
            assert warm(info) or reason(info).startswith("its zygote")
        assert any(not warm(info) for info in infos)

    run(tmp_path, check)


def test_a_start_can_be_stopped_while_its_zygote_loads(tmp_path: Path) -> None:
    """Its child does not exist yet; it never will."""
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "mod.py").write_text("import time\ntime.sleep(1)\n")

    async def check(client: SupervisorClient) -> None:
        await client.spawn(zygote("a", tmp_path, modules=("mod",), folder=str(folder)))
        spec = forked("x", "print('ran')", tmp_path)
        begun = time.monotonic()
        starting = asyncio.ensure_future(client.spawn(spec))
        await asyncio.sleep(0.1)
        assert (await client.stop("x")).ending() == "stopped before it was forked"
        assert time.monotonic() - begun < 0.9
        assert (await starting).state == "failed"
        await client.forget("x")
        assert warm(await client.spawn(forked("y", "pass", tmp_path)))
        assert not (tmp_path / "x.log").exists()
        # A shutdown, too, does not wait for what has not begun.
        await client.stop("zygote/a", 0.0)
        await client.forget("zygote/a")
        await client.spawn(zygote("a", tmp_path, modules=("mod",), folder=str(folder)))
        starting = asyncio.ensure_future(client.spawn(forked("z", "pass", tmp_path)))
        await asyncio.sleep(0.1)
        await client.shutdown()
        assert (await starting).state == "failed"

    run(tmp_path, check)


def test_the_child_that_is_forked_ahead_may_be_killed_and_ends_with_its_zygote(
    tmp_path: Path,
) -> None:
    """It belongs to nobody yet: who asks next is forked, and nothing of it is left."""

    async def check(client: SupervisorClient) -> None:
        made = await client.spawn(zygote("a", tmp_path))
        assert warm(await client.spawn(forked("x", "pass", tmp_path)))
        supervisor = Path(f"/proc/{made.pid}/stat").read_text().split()[3]
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children")

        title = _title(made.pid)

        def ahead() -> list[int]:
            pids = [int(pid) for pid in children.read_text().split()]
            return [pid for pid in pids if pid != made.pid and _title(pid) == title]

        await until(lambda: len(ahead()) == 1)
        [first] = ahead()
        os.kill(first, signal.SIGKILL)
        await until(lambda: first not in ahead())
        # Its zygote does not know, and forks another for who asks.
        info = await client.spawn(forked("y", "pass", tmp_path))
        assert warm(info), info.applied
        await until(lambda: len(ahead()) == 1)
        [second] = ahead()
        await end_of(client, "y")
        info = await client.spawn(forked("z", "import time; time.sleep(60)", tmp_path))
        assert info.pid == second, "it is who was forked ahead"
        await until(lambda: len(ahead()) == 1)
        await client.stop("zygote/a")
        await until(lambda: ahead() == [])
        assert (await client.get("z")).running

    run(tmp_path, check)


def _title(pid: int | None) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_step_that_fails_says_which(tmp_path: Path) -> None:
    """As for a program that is run."""

    async def check(client: SupervisorClient) -> None:
        await client.spawn(zygote("a", tmp_path))
        info = await client.spawn(forked("x", "pass", tmp_path, cwd="/nonexistent"))
        message = "cannot enter the working directory /nonexistent: No such file or directory"
        assert (info.state, info.message, info.lasting) == ("failed", message, True)

    run(tmp_path, check)


def test_limits_are_its_own(tmp_path: Path) -> None:
    """Control groups, resource limits and priority are those of the child, not of the zygote."""
    text = (
        "import resource, os\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], os.nice(0))\n"
        "print(open('/proc/self/cgroup').read())"
    )

    async def check(client: SupervisorClient) -> None:
        await client.spawn(zygote("a", tmp_path))
        limits = Limits(open_files=99, memory=1 << 28, processes=20)
        spec = forked("x", text, tmp_path, limits=limits, nice=3)
        said = await output(client, spec)
        assert said.startswith("99 3\n")
        applied = (await client.get("x")).applied
        assert any(note.startswith("memory limit") for note in applied)
        if "memory limit by control group" in applied:
            assert "bedstone-" in said

    run(tmp_path, check)


def test_a_secret_of_a_child_is_in_no_other_process(tmp_path: Path) -> None:
    """Neither the zygote's memory nor a sibling's ever had it."""
    text = "import os, time; print(os.environ['SECRET'], flush=True); time.sleep(60)"
    if os.geteuid() != 0:
        pytest.skip("reads the memory of other processes: needs root")

    async def check(client: SupervisorClient) -> None:
        made = await client.spawn(zygote("a", tmp_path))
        pids = []
        for name in ("x", "y"):
            env = ENV | {"SECRET": f"hush-{name}-{'7' * 20}"}
            info = await client.spawn(forked(name, text, tmp_path, env=env))
            pids.append(info.pid)
            await until(lambda name=name: written(tmp_path / f"{name}.log"))  # type: ignore[misc]
        needle = [f"hush-{name}-{'7' * 20}".encode() for name in ("x", "y")]
        assert _holds(pids[0], needle[0])
        assert not _holds(pids[0], needle[1])
        assert _holds(pids[1], needle[1])
        assert not _holds(pids[1], needle[0])
        assert not any(_holds(made.pid, word) for word in needle)

    run(tmp_path, check)


def _holds(pid: int | None, word: bytes) -> bool:
    """Whether a process has some bytes anywhere in its writable memory."""
    with Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            places, rights, *_ = line.split()
            if not rights.startswith("rw"):
                continue
            start, end = (int(place, 16) for place in places.split("-"))
            memory.seek(start)
            try:
                if word in memory.read(end - start):
                    return True
            except OSError:
                continue
    return False


def test_a_zygote_is_forked_from_a_zygote(tmp_path: Path) -> None:
    """Base, libraries, application: each has what those above it loaded."""
    folder = tmp_path / "app"
    folder.mkdir()
    # The application's own Bedstone is another one, and stays loaded.
    other = tmp_path / "other"
    (other / "bedstone").mkdir(parents=True)
    (other / "bedstone" / "__init__.py").write_text("")
    (other / "bedstone" / "errors.py").write_text("ANOTHER = 1")
    (folder / "mine.py").write_text("import random\nNAME = 'mine'\nstream = random.Random(1)\n")
    text = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "print('decimal' in sys.modules, 'wave' in sys.modules, sys.modules['mine'].NAME)\n"
        "assert sys.modules['bedstone.errors'].ANOTHER\n"
        "import mine, os; print(mine.stream.random())\n"
    )

    async def check(client: SupervisorClient) -> None:
        above = ("decimal", "bedstone.errors")
        await client.spawn(zygote("base", tmp_path, modules=above, folder=str(other)))
        library = zygote("library", tmp_path, modules=("wave",), parent="zygote/base")
        middle = await client.spawn(library)
        assert warm(middle)
        leaf = zygote("a", tmp_path, ("mine",), folder=str(folder), parent="zygote/library")
        assert warm(await client.spawn(leaf))
        streams = set()
        for name in ("x", "y"):
            argv = (sys.executable, "-c", text, str(folder))
            said = await output(client, forked(name, "", tmp_path, argv=argv))
            assert said.startswith("True True mine\n")
            streams.add(said)
        assert len(streams) == 2, "generators that a module has made are renewed"

    run(tmp_path, check)


def test_numeric_libraries_have_their_threads_in_the_child(tmp_path: Path) -> None:
    """One thread in the zygote; in a child as many as its environment says, or as it has cores."""
    text = (
        "import os, ctypes, glob, numpy\n"
        "lib = glob.glob(os.path.dirname(numpy.__file__) + '.libs/*openblas*')[0]\n"
        "lib = ctypes.CDLL(lib)\n"
        "names = [f'{a}openblas_get_num_threads{b}' for a in ('scipy_', '') for b in ('64_', '')]\n"
        "print(next(getattr(lib, n) for n in names if hasattr(lib, n))())\n"
        "print(float((numpy.ones((300, 300)) @ numpy.ones((300, 300))).sum()))\n"
    )

    async def check(client: SupervisorClient) -> None:
        await client.spawn(zygote("a", tmp_path, modules=("numpy",)))
        cores = len(os.sched_getaffinity(0))
        for name, env, number in (("x", {}, cores), ("y", {"OPENBLAS_NUM_THREADS": "1"}, 1)):
            spec = forked(name, text, tmp_path, env=ENV | env)
            assert await output(client, spec) == f"{number}\n27000000.0\n"
            assert warm(await client.get(name))

    run(tmp_path, check)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("children", "libraries"), [(10_000, ()), (300, ("libraries",))])
def test_children_share_nothing_random(children: int, libraries: tuple[str, ...]) -> None:
    """Streams, ids and keys of whichever kind: of all forks of an interpreter, no two the same."""
    program_ = Path(__file__).with_name("programs") / "forks.py"
    done = subprocess.run(
        [sys.executable, str(program_), str(children), *libraries],
        check=True,
        capture_output=True,
        text=True,
    )
    distinct = json.loads(done.stdout)
    assert set(distinct) >= {"random", "uuid1", "uuid4", "secrets", "authkey", "libc"}
    assert set(distinct.values()) == {children}, distinct
