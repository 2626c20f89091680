"""Checks of `bedstone.testing.boxes`: what boxes must not be able to do, by trying it."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from bedstone.errors import Error, InvalidError
from bedstone.sandbox.box import BoxLimits, Mount
from bedstone.sandbox.policy import AllowedMount
from bedstone.testing.boxes import PERMISSIVE, Check, World, archive, blocks, copied, leftovers

_REFUSED: Final = {errno.EPERM, errno.ENOSYS, errno.EACCES, errno.EAFNOSUPPORT}


async def system_calls_are_refused(world: World) -> None:
    """Mounts, other processes' memory, keys, modules, clocks, namespaces, raw sockets, as root."""
    status, output = await world.run('for a in /attempts/*; do $a; echo "${a##*/} $?"; done')
    assert status == 0, output
    found = {line.split()[0]: int(line.split()[1]) for line in output.splitlines()}
    assert set(found) == {path.name for path in (world.root / "attempts").iterdir()}
    allowed = {name: result for name, result in found.items() if result not in _REFUSED}
    assert not allowed


async def nothing_can_be_gained(world: World) -> None:
    """No capability, none to gain by running a program, and a filter of system calls."""
    status, output = await world.run("grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status")
    assert status == 0
    found = dict(line.split(":\t") for line in output.splitlines())
    assert {int(text, 16) for name, text in found.items() if name.startswith("Cap")} == {0}
    assert found.get("NoNewPrivs", "1") == "1"  # a kernel in user space does not show it
    assert found.get("Seccomp", "2") == "2"


async def kernel_files_cannot_be_written(world: World) -> None:
    """/proc/sys, /proc/sysrq-trigger, /sys and kernel memory stay as they are; keys are hidden."""
    hostname = Path("/proc/sys/kernel/core_pattern").read_text()
    _, output = await world.run(
        "for f in /proc/sys/kernel/core_pattern /proc/sys/kernel/hostname /proc/sysrq-trigger "
        "/proc/sys/vm/drop_caches /sys/kernel/uevent_helper /sys/power/state;"
        " do (echo -1000 > $f) 2>/dev/null && echo wrote $f; done; "
        "cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | head -c 1 | wc -c; "
        "mount -o remount,rw /proc/sys 2>/dev/null && echo remounted; umount /proc/sys && echo un"
    )
    assert "wrote" not in output, output
    assert "remounted" not in output
    assert "un\n" not in output
    assert "0\n" in output
    assert Path("/proc/sys/kernel/core_pattern").read_text() == hostname


async def devices_cannot_be_made(world: World) -> None:
    """No node of a disk can be made or opened, and none of this machine's is there."""
    _, output = await world.run(
        "exec 2>/dev/null; mknod /tmp/d b 8 0 && echo made; mknod /tmp/m c 1 1 && echo made; "
        "cat /tmp/d /tmp/m >/dev/null && echo opened; ls /dev; ls -l /dev | grep -c ^b",
        capabilities=(),
    )
    assert "opened" not in output
    # A kernel in user space may make one of its own; it is this machine's that counts.
    names = set(output.splitlines())
    assert not {"mem", "kmem", "kvm", "sda", "vda", "loop0"} & names
    assert output.strip().splitlines()[-1] == "0"


async def it_sees_only_itself(world: World) -> None:
    """No process, mount, variable or file of this machine, and no other box."""
    other = await world.idle()
    secret = world.folder / "secret"
    secret.write_text("outside")
    _, output = await world.run(
        f"ls -d /proc/[0-9]*; cat {secret}; cat /proc/1/root{secret}; cat /proc/*/root{secret}; "
        f"cat ../../../../../..{secret}; cat /proc/*/environ; cat /proc/self/mountinfo"
    )
    assert "outside" not in output
    assert sum(line.startswith("/proc/") for line in output.splitlines()) <= 4
    assert other.spec.id not in output
    assert "BEDSTONE" not in output


async def it_has_no_network(world: World) -> None:
    """Without one given it has loopback alone, which is not this machine's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        _, output = await world.run(
            f"nc -w 1 127.0.0.1 {port} </dev/null && echo reached; "
            "cat /proc/net/dev; ping -c 1 -w 1 127.0.0.1 >/dev/null 2>&1 && echo pinged"
        )
    assert "reached" not in output
    names = re.findall(r"^\s*(\w+): *\d", output, re.MULTILINE)
    assert set(names) <= {"lo"}, output


async def a_fork_bomb_is_bounded(world: World) -> None:
    """It stays below its limit of processes, and can be deleted at once."""
    limits = BoxLimits(memory=256 << 20, pids=100, disk=None)
    box = await world.launch(world.spec("echo ready; f() { f | f & }; f; sleep 60", limits=limits))
    await box.said("ready")
    for _ in range(10):
        await asyncio.sleep(0.05)
        try:
            stats = await world.boxes.stats(box.spec.id)
        except Error:
            break  # it did not survive its own limit
        assert stats.pids is None or stats.pids <= 100
    began = time.monotonic()
    await world.boxes.delete(box.spec.id)
    assert time.monotonic() - began < 15
    assert not leftovers(world.home, box.spec.id)


async def its_disk_is_bounded(world: World) -> None:
    """What it writes ends at its limit, also what is copied in, and in memory."""
    limits = BoxLimits(memory=256 << 20, disk=16 << 20)
    box = await world.idle(limits=limits)
    status, output, _ = await world.exec(
        box, "dd if=/dev/zero of=/big bs=1M count=40; wc -c < /big; rm /big"
    )
    assert status == 0
    assert int(output) < 16 << 20
    try:
        await world.boxes.copy_in(box.spec.id, "/job", blocks(archive(("big", bytes(40 << 20)))))
    except Error:
        pass
    else:
        raise AssertionError("more was copied in than its disk holds")
    assert (await world.exec(box, "rm -f /job/big; echo fine > /job/f; cat /job/f"))[1] == "fine\n"


async def its_memory_is_bounded(world: World) -> None:
    """Who takes more than its limit is ended, and nobody else is."""
    limits = BoxLimits(memory=96 << 20, pids=256, disk=None)
    status, output = await world.run(
        "dd if=/dev/zero of=/dev/null bs=300M count=1 2>/dev/null && echo took", limits=limits
    )
    assert "took" not in output
    assert status != 0


async def links_do_not_lead_mounts_out(world: World) -> None:
    """A source that is a link is refused; a target that is one leads to somewhere in the box."""
    outside, shared = world.folder / "outside", world.folder / "shared"
    outside.mkdir()
    shared.mkdir()
    (world.folder / "link").symlink_to("/etc")
    source = Mount(str(world.folder / "link"), "/data")
    policy = replace(PERMISSIVE, mounts=(AllowedMount(source.source, "/data"),))
    await _refused(world, replace(world.spec(), mounts=(source,), policy=policy))
    # A link in the root that would lead out of it, if it were followed from outside.
    way = "../" * 12 + str(outside).lstrip("/")
    (world.root / "way-out").symlink_to(way)
    try:
        target = Mount(str(shared), "/way-out/made", readonly=False)
        policy = replace(PERMISSIVE, mounts=(AllowedMount(target.source, target.target, False),))  # noqa: FBT003
        await world.run("echo x > /way-out/made/file", mounts=(target,), policy=policy)
    finally:
        (world.root / "way-out").unlink()
    assert not list(outside.iterdir())


async def shared_folders_lend_nothing(world: World) -> None:
    """A link in a mounted folder, of this machine or of the box, leads to the box's files only.

    And no file that the box's root makes there lends root's rights to who runs it on this machine.
    """
    outside, shared = world.folder / "outside", world.folder / "shared"
    outside.mkdir()
    (outside / "secret").write_text("of this machine")
    shared.mkdir()
    (shared / "far").symlink_to(outside)
    (shared / "up").symlink_to("../outside")
    mount = Mount(str(shared), "/data", readonly=False)
    policy = replace(
        PERMISSIVE,
        mounts=(AllowedMount(mount.source, mount.target, False),),  # noqa: FBT003
    )
    _, output = await world.run(
        f"cd /data; ln -s {outside} mine; ln -s / top; mkdir -p {outside} /outside; exec 2>&1; "
        "for l in far up mine; do cat $l/secret; echo in > $l/written; done; "
        "cat ../outside/secret top/outside/secret; mknod node c 1 3; "
        "cp /bin/busybox su; for m in 4755 2755 6711 u+s g+s; do chmod $m su && echo lent; done; "
        "chmod 711 su; mkdir deep; chmod 1770 deep; mknod pipe p; echo x > plain; chmod 604 plain",
        mounts=(mount,),
        policy=policy,
    )
    assert "of this machine" not in output
    assert [path.name for path in outside.iterdir()] == ["secret"], output
    assert not (shared / "node").exists()
    assert "lent" not in output
    modes = {path.name: path.lstat().st_mode & 0o7777 for path in shared.iterdir()}
    wanted = {"su": 0o711, "deep": 0o1770, "plain": 0o604}
    assert {name: modes[name] for name in wanted} == wanted, output
    assert not [name for name, mode in modes.items() if mode & 0o6000]


async def _refused(world: World, spec: object) -> None:
    try:
        await world.boxes.prepare(spec)  # type: ignore[arg-type]
    except InvalidError:
        return
    raise AssertionError("a link was taken for a mount's source")


async def links_do_not_lead_copies_out(world: World) -> None:
    """Whatever the box makes of its folders meanwhile, copies touch nothing of this machine."""
    outside = world.folder / "outside"
    outside.mkdir()
    (outside / "secret").write_text("outside")
    box = await world.launch(
        world.spec(
            "cd /job; ln -s /proc/1/root p; echo ready; while :; do "
            f"mkdir d; rmdir d; ln -s {outside} d; rm d; ln -s {'../' * 12}{outside} d; rm d; done"
        )
    )
    await box.said("ready")
    data = archive(("d", None), ("d/file", b"x"), ("l", str(outside)), ("l/file", b"x"))
    for _ in range(3):
        for folder in ("/job", "/job/d"):
            try:
                await world.boxes.copy_in(box.spec.id, folder, blocks(data))
            except Error:
                continue
    assert [path.name for path in outside.iterdir()] == ["secret"]
    for path in ("/job", "/job/d", "/job/d/secret", "/job/p", f"/job/p{outside}/secret"):
        try:
            members = await copied(world, box, path)
        except Error:
            continue
        assert not [name for name in members if name.endswith("secret")]
    for name in ("../x", "a/../../x", "/../x"):
        try:
            await world.boxes.copy_in(box.spec.id, "/job", blocks(archive((name, b"x"))))
        except InvalidError:
            continue
        raise AssertionError(f"a member named {name} was taken")


async def users_are_not_this_machines(world: World) -> None:
    """Copies leave out the bits by which a file lends its owner's rights."""
    box = await world.idle()
    data = archive(("tool", b"#!/bin/sh\n"), mode=0o4755)
    await world.boxes.copy_in(box.spec.id, "/job", blocks(data))
    assert (await world.exec(box, "stat -c %a /job/tool"))[1] == "755\n"


CHECKS: Final[dict[str, Check]] = {
    check.__name__: check
    for check in (
        system_calls_are_refused,
        nothing_can_be_gained,
        kernel_files_cannot_be_written,
        devices_cannot_be_made,
        it_sees_only_itself,
        it_has_no_network,
        a_fork_bomb_is_bounded,
        its_disk_is_bounded,
        its_memory_is_bounded,
        links_do_not_lead_mounts_out,
        shared_folders_lend_nothing,
        links_do_not_lead_copies_out,
        users_are_not_this_machines,
    )
}
