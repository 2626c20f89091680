"""Turns a forked child into the program of a specification. Runs in the child; never returns.

The order matters. The supervisor's descriptors go first: one of them tells the warden that the
supervisor lives. The death signal is set at once, for a step that hangs. Namespaces and mounts need
root, so they come before the credentials change; that change clears the death signal (prctl(2)),
so it is set again after, and the parent is checked once more because it may have died in between.
Whatever fails is written to the report pipe as one JSON line; a successful exec closes that pipe.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from bedstone.processes import linux
from bedstone.processes.cgroups import Membership
from bedstone.processes.spec import ProcessSpec

_FAILED = 127


def launch(
    spec: ProcessSpec,
    env: dict[str, str],
    parent: int,
    report: int,
    membership: Membership,
) -> NoReturn:
    """Become the program.

    Args:
        spec: what to become.
        env: its complete environment, markers included.
        parent: pid of the supervisor, to notice its death.
        report: write end of a close-on-exec pipe for the failure.
        membership: the control groups to join.
    """
    steps: tuple[tuple[str, Callable[[], object]], ...] = (
        ("bind to the supervisor's life", lambda: _bind_life(spec, parent)),
        ("open a session", os.setsid),
        ("reset signals", _reset_signals),
        ("join the control group", lambda: _join(membership)),
        ("enter the network namespace", lambda: _enter(spec)),
        ("mount", lambda: _mount(spec)),
        ("open the output", lambda: _redirect(spec)),
        ("set the limits", lambda: _limit(spec, memory_limited=membership.memory_limited)),
        ("change the user", lambda: _become(spec)),
        ("bind to the supervisor's life", lambda: _bind_life(spec, parent)),
        ("give up new privileges", lambda: linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)),
        ("enter the working directory", lambda: os.chdir(spec.cwd)),
    )
    step = "start"
    try:
        _close_all_but(report)
        for name, action in steps:
            step = name
            action()
        step = "run the program"
        os.umask(spec.umask)
        # Without a folder the name is sought on PATH; the name itself, if not there, will fail.
        found = shutil.which(spec.argv[0], path=env.get("PATH", os.defpath))
        os.execve(found or _lost(spec.argv[0]), list(spec.argv), env)  # noqa: S606 - an exec, not a shell
    except BaseException as error:  # noqa: BLE001 - the child must not return into the supervisor's loop
        _tell(report, _explain(step, spec, error), lasting=_lasts(step, error))
    os._exit(_FAILED)


def _lost(program: str) -> str:
    """What to run, to have the kernel say what is wrong with it."""
    return program if "/" in program else f"/nonexistent/{program}"


def _explain(step: str, spec: ProcessSpec, error: BaseException) -> str:  # noqa: PLR0911 - one a cause
    program = spec.argv[0]
    match error, step:
        case FileNotFoundError(), "run the program":
            if "/" in program and os.path.exists(program):  # noqa: PTH110
                return f"program {program}: its interpreter was not found"
            return f"program not found: {program}"
        case PermissionError(), "run the program":
            return f"program not executable by this user: {program}"
        case OSError(errno=errno.ENOEXEC), "run the program":
            return f"not a program for this machine: {program}"
        case OSError(), "enter the working directory":
            return f"cannot enter the working directory {spec.cwd}: {error.strerror}"
        case OSError(), _:
            where = f" {error.filename}" if error.filename else ""
            return f"cannot {step}{where}: {error.strerror}"
        case _:
            return f"cannot {step}: {type(error).__name__}: {error}"


def _lasts(step: str, error: BaseException) -> bool:
    """Whether the same would happen at every start: the program is at fault, or its folder."""
    faults = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENOEXEC, errno.ELOOP)
    ours = step in ("run the program", "enter the working directory")
    return ours and isinstance(error, OSError) and error.errno in faults


def _tell(report: int, message: str, *, lasting: bool) -> None:
    with contextlib.suppress(OSError):
        os.write(report, json.dumps({"message": message[:1000], "lasting": lasting}).encode())


def _reset_signals() -> None:
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):
                continue  # the C library keeps two for itself
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.set_wakeup_fd(-1)


def _join(membership: Membership) -> None:
    for folder in membership.folders:
        (folder / "cgroup.procs").write_text("0")


def _enter(spec: ProcessSpec) -> None:
    if spec.netns is not None:
        linux.setns(spec.netns, linux.CLONE_NEWNET)


def _mount(spec: ProcessSpec) -> None:
    if not spec.mounts:
        return
    linux.unshare(linux.CLONE_NEWNS)
    # A slave still sees network namespaces that are mounted later, but shows nothing of its own.
    linux.mount(None, "/", linux.MS_REC | linux.MS_SLAVE)
    os.umask(0o022)  # the program's user has to pass through what is made here
    for mount in spec.mounts:
        if os.path.isdir(mount.source):  # noqa: PTH112
            os.makedirs(mount.target, 0o755, exist_ok=True)  # noqa: PTH103
        elif not os.path.exists(mount.target):  # noqa: PTH110
            os.close(os.open(mount.target, os.O_CREAT | os.O_WRONLY, 0o644))
        linux.mount(mount.source, mount.target, linux.MS_BIND | linux.MS_REC)
        if mount.readonly:
            flags = linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY
            linux.mount(None, mount.target, flags | linux.MS_NOSUID | linux.MS_NODEV)


def _redirect(spec: ProcessSpec) -> None:
    # Opened before the credentials change: a log directory need not be the program's.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY
    null = os.open("/dev/null", os.O_RDONLY)
    out = os.open(spec.stdout or "/dev/null", flags, 0o600)
    err = os.open(spec.stderr, flags, 0o600) if spec.stderr else out
    for source, target in ((null, 0), (out, 1), (err, 2)):
        os.dup2(source, target)


def _limit(spec: ProcessSpec, *, memory_limited: bool) -> None:
    limits = spec.limits
    if limits.open_files is not None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        wanted = limits.open_files if hard < 0 else min(limits.open_files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    # Only where no control group was joined. Unlike RLIMIT_AS it does not count what a program
    # merely reserves, as Go, Java and Envoy do.
    if limits.memory is not None and not memory_limited:
        resource.setrlimit(resource.RLIMIT_DATA, (limits.memory, limits.memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if spec.nice:
        os.nice(spec.nice)
    if spec.oom_score_adj is not None:
        with contextlib.suppress(PermissionError):  # lowering needs CAP_SYS_RESOURCE; it is advice
            Path("/proc/self/oom_score_adj").write_text(str(spec.oom_score_adj))


def _become(spec: ProcessSpec) -> None:
    if spec.uid is None:
        return
    gid = spec.gid if spec.gid is not None else spec.uid
    if spec.uid != 0:
        linux.bar_capabilities()
    os.setgroups(spec.groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(spec.uid, spec.uid, spec.uid)
    if spec.uid != 0:
        # The kernel takes only those in force, and not those that would be inherited.
        linux.drop_capabilities()


def _bind_life(spec: ProcessSpec, parent: int) -> None:
    linux.prctl(linux.PR_SET_PDEATHSIG, spec.death_signal)
    if os.getppid() != parent:
        os._exit(_FAILED)


def _close_all_but(keep: int) -> None:
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208
        number = int(entry)
        if number > 2 and number != keep:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(number)
