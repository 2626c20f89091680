"""Checks of `bedstone.testing.boxes`: what boxes do."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import shutil
import signal
import struct
import termios
import time
from dataclasses import replace
from typing import Final

from bedstone.errors import ConflictError, DeniedError, InvalidError, NotFoundError
from bedstone.sandbox.box import BoxLimits, Exec, Mount, Stdio
from bedstone.sandbox.policy import AllowedMount, Policy
from bedstone.testing.boxes import PERMISSIVE, Check, World, archive, blocks, copied, leftovers

_TERMINAL: Final = (
    "[ -t 0 ] && echo is-one; read line; echo got:$line; "
    "until stty size | grep '40 120'; do sleep 0.05; done"
)


async def runs_a_command(world: World) -> None:
    """A command runs with its arguments, environment, folder, host name and exit status alone."""
    os.environ["UNRELATED_VARIABLE"] = "leaked"
    try:
        status, output = await world.run(
            'env; pwd; hostname; id -u; echo "$1"; exit 7', env={"PATH": "/bin", "A": "1 2"},
            cwd="/job", hostname="inside",
        )  # fmt: skip
    finally:
        del os.environ["UNRELATED_VARIABLE"]
    assert status == 7, output
    lines = output.splitlines()
    assert "A=1 2" in lines
    assert "/job" in lines
    assert "inside" in lines
    assert "0" in lines
    assert "UNRELATED_VARIABLE" not in output


async def tells_how_it_ended(world: World) -> None:
    """A signal ends it with 128 + its number; what is sent to the parent reaches the command."""
    status, _ = await world.run("kill -9 $$; exit 0")
    # The first process of a PID namespace cannot kill itself (pid_namespaces(7)).
    assert status in (0, 137)
    box = await world.idle()
    box.process.send_signal(signal.SIGTERM)
    assert (await box.end())[0] == 9
    box = await world.idle()
    await world.boxes.signal(box.spec.id, signal.SIGKILL)
    assert (await box.end())[0] == 137


async def runs_as_a_user(world: World) -> None:
    """Its user and groups are those asked for, and it cannot become root."""
    status, output = await world.run(
        "id -u; id -g; id -G; su -c id 2>&1; touch /etc/x 2>&1", user=1000, group=1001, groups=(7,)
    )
    lines = output.splitlines()
    assert lines[:2] == ["1000", "1001"]
    assert set(lines[2].split()) == {"1001", "7"}
    assert "uid=0" not in output
    assert status != 0


async def executes_beside(world: World) -> None:
    """`exec` has its own streams, whole; environment, folder, user and exit status."""
    box = await world.idle()
    data = os.urandom(300_000).hex().encode()
    status, output, errors = await world.exec(box, "cat; echo bad >&2; exit 5", data)
    assert (status, output, errors) == (5, data.decode(), "bad\n")
    status, output, _ = await world.exec(
        box, "env; pwd; id -u", env={"PATH": "/bin", "B": "2"}, cwd="/job", user=12, group=12
    )
    assert status == 0
    assert {"B=2", "/job", "12"} <= set(output.splitlines())
    found = await asyncio.gather(*(world.exec(box, f"echo {n}; exit {n}") for n in range(5)))
    assert [(status, output) for status, output, _ in found] == [(n, f"{n}\n") for n in range(5)]


async def shares_files_with_its_caller(world: World) -> None:
    """A program of `exec` reads and writes files of its caller where that one is in them."""
    box = await world.idle()
    given, log = world.folder / "given", world.folder / "log"
    given.write_text("read before\ngiven\n")
    log.write_text("first\n")
    program = Exec(("/bin/sh", "-c", "cat; echo out"), {"PATH": "/bin"})
    with given.open("rb", buffering=0) as source, log.open("r+b", buffering=0) as target:
        source.readline()
        target.seek(0, os.SEEK_END)
        stdio = Stdio(source.fileno(), target.fileno(), target.fileno())
        running = await world.boxes.exec(box.spec.id, program, stdio)
        assert (await running.wait()).code == 0
        target.write(b"last\n")
    assert log.read_text() == "first\ngiven\nout\nlast\n"


async def executed_programs_are_signalled(world: World) -> None:
    """A program of `exec` ends by the signal that it is sent, and the box lives on."""
    box = await world.idle()
    null = os.open("/dev/null", os.O_RDWR)
    try:
        running = await world.boxes.exec(
            box.spec.id, Exec(("/bin/sleep", "60")), Stdio(null, null, null)
        )
        await running.signal(signal.SIGKILL)
        assert (await running.wait()).code == 137
        await running.signal(signal.SIGKILL)  # nothing happens
    finally:
        os.close(null)
    assert (await world.exec(box, "true"))[0] == 0


async def has_a_terminal(world: World) -> None:
    """With `tty`, a program of `exec` has a terminal, with the size that its owner gives it."""
    box = await world.idle()
    master, slave = pty.openpty()
    try:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
        program = Exec(
            (
                "/bin/sh",
                "-c",
                _TERMINAL,
            ),
            {"PATH": "/bin"},
            tty=True,
        )
        running = await world.boxes.exec(box.spec.id, program, Stdio(slave, slave, slave))
        os.close(slave)
        slave = -1
        seen = await _until(master, b"", b"is-one")
        os.write(master, b"hello\n")
        seen = await _until(master, seen, b"got:hello")
        await running.resize(40, 120)
        await _until(master, seen, b"40 120")
        assert (await running.wait()).code == 0
    finally:
        os.close(master)
        if slave >= 0:
            os.close(slave)


async def _until(master: int, seen: bytes, text: bytes) -> bytes:
    os.set_blocking(master, False)
    deadline = time.monotonic() + 20
    while text not in seen:
        assert time.monotonic() < deadline, f"no {text!r} in {seen!r}"
        try:
            seen += os.read(master, 4096)
        except BlockingIOError:
            await asyncio.sleep(0.01)
        except OSError as error:
            raise AssertionError(f"the terminal ended after {seen!r}") from error
    return seen


async def pauses_and_resumes(world: World) -> None:
    """A paused box does nothing and refuses `exec`; pausing and resuming may be repeated."""
    box = await world.launch(world.spec("echo ready; while :; do echo x; sleep 0.02; done"))
    await box.said("ready")
    await world.boxes.pause(box.spec.id)
    await world.boxes.pause(box.spec.id)
    await asyncio.sleep(0.1)
    before = len(box.output)
    await asyncio.sleep(0.3)
    assert len(box.output) == before
    assert [info.state for info in await world.boxes.list() if info.spec == box.spec] == ["paused"]
    await _raises(ConflictError, world.exec(box, "true"))
    await world.boxes.resume(box.spec.id)
    await world.boxes.resume(box.spec.id)
    await asyncio.sleep(0.3)
    assert len(box.output) > before


async def says_what_it_uses(world: World) -> None:
    """Statistics are there, and grow."""
    box = await world.launch(
        world.spec("echo ready; while :; do :; done", limits=BoxLimits(memory=128 << 20))
    )
    await box.said("ready")
    first = await world.boxes.stats(box.spec.id)
    await asyncio.sleep(0.5)
    second = await world.boxes.stats(box.spec.id)
    assert first.cpu_seconds is not None
    assert second.cpu_seconds is not None
    assert second.cpu_seconds > first.cpu_seconds
    assert second.memory is not None
    assert 0 < second.memory <= 128 << 20


async def copies_both_ways(world: World) -> None:
    """Files, folders, links and modes arrive; owners are numbers of the box."""
    box = await world.idle()
    data = archive(("a", None), ("a/file", b"x" * 100_000), ("a/link", "file"), uid=5, gid=6)
    await world.boxes.copy_in(box.spec.id, "/job", blocks(data))
    status, output, _ = await world.exec(
        box, "stat -c '%u %g %s %a' /job/a/file; readlink /job/a/link; wc -c < /job/a/link"
    )
    assert status == 0
    assert output.split("\n")[:3] == ["5 6 100000 644", "file", "100000"]
    await world.exec(box, "mkdir -p /job/b/c; echo deep > /job/b/c/d; chmod 600 /job/b/c/d")
    members = await copied(world, box, "/job/b")
    assert set(members) == {"b", "b/c", "b/c/d"}
    assert members["b/c/d"].size == 5
    assert members["b/c/d"].mode == 0o600
    assert (members["b"].uid, members["b"].gid) == (0, 0)
    assert set(await copied(world, box, "/job/a/file")) == {"file"}
    await _raises(NotFoundError, copied(world, box, "/nothing"))
    await _raises(NotFoundError, world.boxes.copy_in(box.spec.id, "/nothing", blocks(data)))
    await _raises(InvalidError, world.boxes.copy_in(box.spec.id, "/job", blocks(b"no" * 900)))


async def mounts_what_is_declared(world: World) -> None:
    """A mount shows this machine's folder or file, read-only unless it says otherwise."""
    shared, file = world.folder / "shared", world.folder / "file"
    shared.mkdir(mode=0o755)
    (shared / "here").write_text("from outside\n")
    file.write_text("one file\n")
    mounts = (
        Mount(str(shared), "/data", readonly=False),
        Mount(str(shared), "/job/seen"),
        Mount(str(file), "/etc/file"),
        Mount("", "/scratch", readonly=False, kind="tmpfs", size=1 << 20),
    )
    allowed = tuple(
        AllowedMount(m.source if m.kind == "bind" else "tmpfs", m.target, m.readonly)
        for m in mounts
    )
    status, output = await world.run(
        "exec 2>/dev/null; cat /data/here /etc/file; echo in > /data/written && echo w1; "
        "echo in > /job/seen/x || echo r1; echo in > /etc/file || echo r2; "
        "dd if=/dev/zero of=/scratch/big bs=64k count=64; wc -c < /scratch/big",
        mounts=mounts,
        policy=replace(PERMISSIVE, mounts=allowed),
    )
    assert status == 0, output
    assert "from outside\none file\nw1\n" in output
    assert "r1\n" in output
    assert "r2\n" in output
    assert int(output.splitlines()[-1]) <= 1 << 20
    assert (shared / "written").read_text() == "in\n"
    assert not (shared / "x").exists()
    assert file.read_text() == "one file\n"


async def keeps_the_root_as_it_was(world: World) -> None:
    """Writes are the box's alone, and gone when it is; a read-only box writes to /tmp only."""
    box = await world.idle()
    other = await world.idle()
    status, output, errors = await world.exec(
        box, "echo mine > /new; rm /etc/of-the-box; echo changed > /etc/passwd; cat /new"
    )
    assert (status, output) == (0, "mine\n"), errors
    assert (await world.exec(other, "cat /new || cat /etc/of-the-box"))[1] == "yes\n"
    assert not (world.root / "new").exists()
    assert (world.root / "etc/of-the-box").exists()
    readonly = replace(PERMISSIVE, writable_root=False)
    status, output = await world.run(
        "exec 2>/dev/null; echo x > /new || echo a; touch /etc/passwd || echo b; "
        "echo x > /tmp/t && echo c",
        write="readonly",
        policy=readonly,
    )
    assert status == 0
    assert {"a", "b", "c"} <= set(output.splitlines()), output


async def knows_its_own_names(world: World) -> None:
    """Where its root has no /etc/hosts, or an empty one, it has one, whatever may be written."""
    command = "cat /etc/hosts /etc/hostname; echo ::2 more >> /etc/hosts && tail -n 1 /etc/hosts"
    expected = "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 inside\ninside\n"
    assert await world.run(command, hostname="inside") == (0, f"{expected}::2 more\n")
    root = world.folder / "direct"
    shutil.copytree(world.root, root, symlinks=True)
    (root / "etc/hosts").touch(mode=0o600)
    (root / "etc/hostname").write_text("of the root\n")
    expected = expected.replace("inside\ninside", "inside\nof the root")
    policy = replace(PERMISSIVE, writable_root=False)
    change = {"root": str(root), "hostname": "inside"}
    _, output = await world.run(command, write="readonly", policy=policy, **change)
    assert output.startswith(expected)
    assert "more" not in output
    if world.boxes.isolation != "microvm":
        assert await world.run(command, write="direct", **change) == (0, f"{expected}::2 more\n")
    assert (root / "etc/hosts").read_text() == ""


async def refuses_what_the_policy_does(world: World) -> None:
    """A denial names the field, and nothing of the box is made."""
    spec = world.spec(policy=None)
    await _raises(DeniedError, world.boxes.prepare(spec))
    asked = {
        "programs": replace(PERMISSIVE, programs=("/bin/true",)),
        "env": replace(PERMISSIVE, env=()),
        "users": replace(PERMISSIVE, users=(1,)),
        "writable_root": replace(PERMISSIVE, writable_root=False),
        "mounts": replace(PERMISSIVE, mounts=(AllowedMount("/srv", "/srv"),)),
    }
    for field, policy in asked.items():
        denied = world.spec(policy=policy)
        error = await _raises(DeniedError, world.boxes.prepare(denied))
        assert f"`{field}`" in str(error)
        assert not leftovers(world.home, denied.id)
    narrow = Policy(
        programs=("/bin/sh",), exec=True, env=("PATH",), users=(0,), writable_root=True,
        copy_in=("/job",),
    )  # fmt: skip
    box = await world.idle(policy=narrow)
    assert (await world.exec(box, "true"))[0] == 0
    refused = {
        "programs": world.exec(box, ("/bin/id",)),
        "env": world.exec(box, "true", env={"PATH": "/bin", "LD_PRELOAD": "x"}),
        "users": world.exec(box, "true", user=1),
        "tty": world.exec(box, "true", tty=True),
        "copy_in": world.boxes.copy_in(box.spec.id, "/etc", blocks(archive(("a", b"")))),
        "copy_out": copied(world, box, "/etc"),
    }
    for field, call in refused.items():
        assert f"`{field}`" in str(await _raises(DeniedError, call))


async def an_id_is_one_box(world: World) -> None:
    """Preparing again is the same box; another specification is refused; what is gone is not there.

    A box that has ended can be started again, with what it wrote.
    """
    spec = world.spec("echo x >> /file; wc -l < /file")
    first = await world.boxes.prepare(spec)
    assert (await world.boxes.prepare(spec)).argv == first.argv
    await _raises(ConflictError, world.boxes.prepare(replace(spec, hostname="other")))
    assert (await (await world.parent(spec, first)).end())[1].strip() == "1"
    await _raises(ConflictError, world.boxes.stats(spec.id))
    again = await world.boxes.prepare(spec)
    assert (await (await world.parent(spec, again)).end())[1].strip() == "2"
    assert spec.id in {info.spec.id for info in await world.boxes.list()}
    await world.boxes.delete(spec.id)
    await world.boxes.delete(spec.id)
    assert spec.id not in {info.spec.id for info in await world.boxes.list()}
    for call in (
        world.boxes.signal(spec.id, 15),
        world.boxes.pause(spec.id),
        world.boxes.resume(spec.id),
        world.boxes.stats(spec.id),
        copied(world, world.started[0], "/"),
    ):
        await _raises(NotFoundError, call)


async def gives_everything_back(world: World) -> None:
    """A start that fails, or is killed at any moment, leaves nothing once it is deleted."""
    status, output = await world.run(("/bin/nothing-here",))
    assert status not in (0, 9), output
    await _raises(InvalidError, world.boxes.prepare(world.spec(root=str(world.folder / "none"))))
    absent = Mount(str(world.folder / "none"), "/data")
    policy = replace(PERMISSIVE, mounts=(AllowedMount(absent.source, "/data"),))
    spec = world.spec(mounts=(absent,), policy=policy)
    await _raises(InvalidError, world.boxes.prepare(spec))
    assert not leftovers(world.home, spec.id)
    for delay in (0.0, 0.01, 0.02, 0.04, 0.08, 0.3):
        box = await world.launch(world.spec())
        await asyncio.sleep(delay)
        if box.process.returncode is None:
            box.process.kill()
        await world.boxes.delete(box.spec.id)
        await box.end()
        assert not leftovers(world.home, box.spec.id)


async def _raises(kind: type[Exception], call: object) -> Exception:
    try:
        await call  # type: ignore[misc]
    except kind as error:
        return error
    raise AssertionError(f"{call} raised no {kind.__name__}")


CHECKS: Final[dict[str, Check]] = {
    check.__name__: check
    for check in (
        runs_a_command,
        tells_how_it_ended,
        runs_as_a_user,
        executes_beside,
        shares_files_with_its_caller,
        executed_programs_are_signalled,
        has_a_terminal,
        pauses_and_resumes,
        says_what_it_uses,
        copies_both_ways,
        mounts_what_is_declared,
        keeps_the_root_as_it_was,
        knows_its_own_names,
        refuses_what_the_policy_does,
        an_id_is_one_box,
        gives_everything_back,
    )
}
