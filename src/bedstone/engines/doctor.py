"""What this machine has and lacks for Bedstone, each with what to do about it.

A check that fails either stops Bedstone (`required`) or only takes something away, which its detail
names.
"""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bedstone.engines.privilege import can_mount
from bedstone.engines.programs import envoy_program, postgres_program
from bedstone.errors import Error
from bedstone.processes import landlock, seccomp
from bedstone.processes.state import run_directory

NO_USERS = "without users of their own"
"""What is said of warm starts where no instance has one."""
_FILES = 4096
_SPACE = 1 << 30


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `bedstone doctor`."""

    name: str
    ok: bool
    detail: str
    fix: str | None = None
    required: bool = True


async def doctor(state_dir: Path | None = None) -> list[Check]:
    """Look at everything.

    Args:
        state_dir: where a run would keep its state; the current directory's `.bedstone` by default.
    """
    state = state_dir if state_dir is not None else Path.cwd() / ".bedstone"
    envoy, postgres = await asyncio.gather(
        _version("envoy", envoy_program), _version("postgresql", postgres_program)
    )
    return [
        _python(),
        envoy,
        postgres,
        _run_dir(state),
        _disk(state),
        _loopback(),
        _files(),
        _pidfd(),
        _namespaces(),
        _confinement(),
        _users(),
        _control_groups(),
    ]


async def _version(name: str, find: Callable[[], Path]) -> Check:
    try:
        program = find()
    except Error as error:
        return Check(name, ok=False, detail=error.message, fix=error.hint)
    process = None
    try:
        process = await asyncio.create_subprocess_exec(
            program, "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        async with asyncio.timeout(20):
            output, _ = await process.communicate()
    except (OSError, TimeoutError) as error:
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()
        reason = getattr(error, "strerror", None) or "no answer within 20 s"
        return Check(name, ok=False, detail=f"{program}: {reason}", fix="reinstall the package")
    text = output.decode(errors="replace").strip()
    if process.returncode != 0:
        last = text.splitlines()[-1] if text else f"exit status {process.returncode}"
        return Check(name, ok=False, detail=f"{program}: {last}", fix="reinstall the package")
    if "version:" in text:  # Envoy: `PATH version: COMMIT/VERSION/...`
        text = text.split("version:")[1].strip().split("/")[1]
    return Check(name, ok=True, detail=text.splitlines()[0])


def _python() -> Check:
    ok = sys.version_info >= (3, 11)
    fix = None if ok else "install Python 3.11 or later"
    return Check("python", ok=ok, detail=platform.python_version(), fix=fix)


def _run_dir(state: Path) -> Check:
    base = _existing(state)
    try:
        folder = run_directory(base)
    except Error as error:
        return Check("run directory", ok=False, detail=error.message, fix=error.hint)
    if not any(folder.iterdir()):
        folder.rmdir()
    return Check("run directory", ok=True, detail=str(folder.parent))


def _disk(state: Path) -> Check:
    base = _existing(state)
    free = shutil.disk_usage(base).free
    detail = f"{free / (1 << 30):.1f} GiB free at {base}"
    if not os.access(base, os.W_OK):
        fix = "make the directory writable for you"
        return Check("disk", ok=False, detail=f"{base} is not writable", fix=fix)
    ok = free >= _SPACE
    return Check("disk", ok=ok, detail=detail, fix=None if ok else "free at least 1 GiB")


def _loopback() -> Check:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = server.getsockname()
            with socket.create_connection(address, timeout=2):
                return Check("loopback", ok=True, detail="127.0.0.1 accepts connections")
    except OSError as error:
        fix = "bring the loopback interface up: ip link set lo up"
        return Check("loopback", ok=False, detail=f"127.0.0.1: {error.strerror}", fix=fix)


def _files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ok = hard < 0 or hard >= _FILES
    fix = None if ok else f"raise it: ulimit -Hn {_FILES}"
    return Check("open files", ok=ok, detail=f"{soft}, at most {hard}", fix=fix)


def _pidfd() -> Check:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        fix = "use a kernel of 5.3 or later"
        return Check("pidfd", ok=False, detail=str(error.strerror), fix=fix)
    return Check("pidfd", ok=True, detail=f"kernel {platform.release()}")


def _namespaces() -> Check:
    if can_mount():
        detail = "namespaces and users of their own: identities are enforced"
        return Check("privileges", ok=True, detail=detail, required=False)
    who = "root without CAP_SYS_ADMIN" if os.geteuid() == 0 else "an ordinary user"
    return Check(
        "privileges",
        ok=False,
        detail=f"{who}: identities on this machine are cooperative, not enforced",
        fix="run as root for namespaces and users of their own",
        required=False,
    )


def _confinement() -> Check:
    """What needs no privilege, but a kernel that can."""
    known = landlock.version()
    missing = []
    if known < landlock.OLDEST:
        missing.append("instances write wherever their user may: no Landlock 2")
    if seccomp.program() is None or not Path("/proc/sys/kernel/seccomp").exists():
        missing.append("system calls are not filtered")
    if not missing:
        detail = f"system calls filtered, writes confined by Landlock {known}"
        return Check("confinement", ok=True, detail=detail, required=False)
    return Check(
        "confinement",
        ok=False,
        detail="; ".join(missing),
        fix="use Linux 5.19 or later on x86-64 or aarch64, with CONFIG_SECURITY_LANDLOCK",
        required=False,
    )


def _users() -> Check:
    """Whether workloads that declare `warm` can have users of their own; nothing else needs it."""
    name = "warm starts"
    if not can_mount():
        return Check(name, ok=True, detail=NO_USERS, required=False)
    try:
        allowed = int(Path("/proc/sys/user/max_user_namespaces").read_text()) > 0
    except (OSError, ValueError):
        allowed = False
    if allowed:
        return Check(name, ok=True, detail="with users of their own", required=False)
    return Check(
        name,
        ok=False,
        detail="instances with users of their own start cold: no user namespaces",
        fix="allow them: sysctl user.max_user_namespaces=10000",
        required=False,
    )


def _control_groups() -> Check:
    root = Path("/sys/fs/cgroup")
    writable = os.access(root, os.W_OK) and (
        (root / "cgroup.controllers").exists() or (root / "memory/cgroup.procs").exists()
    )
    if writable:
        detail = "memory, processor and process limits are applied"
        return Check("control groups", ok=True, detail=detail, required=False)
    return Check(
        "control groups",
        ok=False,
        detail="memory limits by RLIMIT_DATA; processor limits are not applied",
        fix="run as root, with a writable /sys/fs/cgroup",
        required=False,
    )


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
