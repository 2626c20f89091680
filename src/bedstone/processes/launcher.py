"""Turns a forked child into the program of a specification. Runs in the child; never returns.

The order matters. The supervisor's descriptors go first: one of them tells the warden that the
supervisor lives. The death signal is set at once, for a step that hangs. Namespaces and mounts need
root, so they come before the credentials change; that change clears the death signal (prctl(2)),
so it is set again after, and the parent is checked once more because it may have died in between.
What was applied is written to the report pipe as a JSON line, and so is whatever fails; a
successful exec closes that pipe.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from bedstone.processes import confinement, linux
from bedstone.processes.cgroups import Membership
from bedstone.processes.spec import UNCONFINED, ProcessSpec

FAILED = 127
CHANNEL = 3
"""The descriptor on which a zygote is asked; see `bedstone.processes.zygote`."""

Steps = tuple[tuple[str, Callable[[], object]], ...]


def launch(
    spec: ProcessSpec,
    env: dict[str, str],
    parent: int,
    report: int,
    membership: Membership,
    channel: int = -1,
) -> NoReturn:
    """Become the program.

    Args:
        spec: what to become.
        env: its complete environment, markers included.
        parent: pid of the supervisor, to notice its death.
        report: write end of a close-on-exec pipe for what was applied, and for a failure.
        membership: the control groups to join.
        channel: the end of the channel that a zygote is asked on; it becomes `CHANNEL`.
    """
    applied: list[str] = []
    limited = membership.memory_limited
    steps: Steps = (
        ("bind to the supervisor's life", lambda: bind_life(spec, parent)),
        ("open a session", os.setsid),
        ("reset signals", _reset_signals),
        ("join the control group", lambda: join(membership, 0)),
        ("enter the network namespace", lambda: enter(spec)),
        ("leave the network", lambda: _leave_network(spec)),
        ("open the output", lambda: _redirect(spec)),
        ("separate it from others", lambda: applied.extend(_separate(spec))),
        ("mount", lambda: mount(spec)),
        *restrictions(spec, parent, applied, memory_limited=limited),
        ("say what was applied", lambda: os.write(report, _applied(applied))),
    )
    step = "start"
    try:
        _close_all_but(report, channel)
        for name, action in steps:
            step = name
            action()
        step = "run the program"
        # Without a folder the name is sought on PATH; the name itself, if not there, will fail.
        found = shutil.which(spec.argv[0], path=env.get("PATH", os.defpath))
        os.execve(found or _lost(spec.argv[0]), list(spec.argv), env)  # noqa: S606 - an exec, not a shell
    except BaseException as error:  # noqa: BLE001 - the child must not return into the supervisor's loop
        with contextlib.suppress(OSError):
            os.write(report, failure(step, spec, error))
    os._exit(FAILED)


def _separate(spec: ProcessSpec) -> list[str]:
    """Namespaces and mounts of its own. Only root can make them."""
    given = spec.confinement
    if given is None or os.geteuid() != 0:
        return []
    notes = confinement.separate(given)
    if notes[0].startswith(UNCONFINED):
        return notes
    return [*notes, confinement.hide_processes()]


def _applied(notes: Sequence[str]) -> bytes:
    return json.dumps({"applied": [*notes]}).encode() + b"\n"


def restrictions(
    spec: ProcessSpec, parent: int, applied: list[str], *, memory_limited: bool
) -> Steps:
    """The last steps, which take away: those of every program, however it is started.

    Args:
        spec: what it is to be.
        parent: pid of the supervisor.
        applied: takes notes on what came of it.
        memory_limited: whether a control group limits its memory.
    """
    return (
        ("set the limits", lambda: _limit(spec, memory_limited=memory_limited)),
        ("change the user", lambda: _become(spec)),
        ("bind to the supervisor's life", lambda: bind_life(spec, parent)),
        ("give up new privileges", lambda: linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)),
        ("enter the working directory", lambda: os.chdir(spec.cwd)),
        ("set the mask of files", lambda: os.umask(spec.umask)),
        ("confine it", lambda: applied.extend(_confine(spec))),
    )


def _confine(spec: ProcessSpec) -> Iterable[str]:
    given = spec.confinement
    if given is None:
        return ()
    if not spec.forks:
        return confinement.restrict(given)
    # Root's children still have namespaces to make; those of others have none.
    return () if os.geteuid() == 0 else (confinement.filter_calls(),)


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


def failure(step: str, spec: ProcessSpec, error: BaseException) -> bytes:
    """What is reported of a step that failed."""
    message = _explain(step, spec, error)[:1000]
    return json.dumps({"message": message, "lasting": _lasts(step, error)}).encode() + b"\n"


def _reset_signals() -> None:
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):
                continue  # the C library keeps two for itself
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.set_wakeup_fd(-1)


def join(membership: Membership, pid: int) -> None:
    """Put a process into its control groups; 0 is the caller."""
    for folder in membership.folders:
        (folder / "cgroup.procs").write_text(str(pid))


def enter(spec: ProcessSpec) -> None:
    """Enter the network namespace of the specification."""
    if spec.netns is not None:
        linux.setns(spec.netns, linux.CLONE_NEWNET)


def _leave_network(spec: ProcessSpec) -> None:
    """Give what loads modules for others a network with nobody in it; only root can."""
    if spec.forks and os.geteuid() == 0:
        with contextlib.suppress(PermissionError):  # a container that may make none
            linux.unshare(linux.CLONE_NEWNET)


def mount(spec: ProcessSpec) -> None:
    """Make the mounts of the specification, which nobody else sees."""
    if not spec.mounts:
        return
    linux.unshare(linux.CLONE_NEWNS)
    # A slave still sees network namespaces that are mounted later, but shows nothing of its own.
    linux.mount(None, "/", linux.MS_REC | linux.MS_SLAVE)
    os.umask(0o022)  # the program's user has to pass through what is made here
    for bind in spec.mounts:
        if os.path.isdir(bind.source):  # noqa: PTH112
            os.makedirs(bind.target, 0o755, exist_ok=True)  # noqa: PTH103
        elif not os.path.exists(bind.target):  # noqa: PTH110
            os.close(os.open(bind.target, os.O_CREAT | os.O_WRONLY, 0o644))
        linux.mount(bind.source, bind.target, linux.MS_BIND | linux.MS_REC)
        if bind.readonly:
            flags = linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY
            linux.mount(None, bind.target, flags | linux.MS_NOSUID | linux.MS_NODEV)


def open_outputs(spec: ProcessSpec) -> tuple[int, int]:
    """Descriptors of standard output and error; both are the same where one file takes both."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY
    out = os.open(spec.stdout or "/dev/null", flags, 0o600)
    return out, os.open(spec.stderr, flags, 0o600) if spec.stderr else out


def _redirect(spec: ProcessSpec) -> None:
    # Opened before the credentials change: a log directory need not be the program's.
    null = os.open("/dev/null", os.O_RDONLY)
    for source, target in zip((null, *open_outputs(spec)), (0, 1, 2), strict=True):
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
    confined = spec.confinement is not None
    hard = 0 if confined else resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    if spec.confinement is not None and spec.confinement.alone:
        most = limits.processes or confinement.PROCESSES
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
    if spec.nice:
        os.nice(spec.nice)
    if spec.oom_score_adj is not None:
        with contextlib.suppress(PermissionError):  # lowering needs CAP_SYS_RESOURCE; it is advice
            Path("/proc/self/oom_score_adj").write_text(str(spec.oom_score_adj))


def _become(spec: ProcessSpec) -> None:
    # One that is forked from a zygote may be there already, and nobody can enter where he is.
    if spec.userns is not None and not os.path.samefile(spec.userns, "/proc/self/ns/user"):  # noqa: PTH121
        linux.setns(spec.userns, linux.CLONE_NEWUSER)
    if spec.uid is None:
        if spec.confinement is not None and os.geteuid() == 0 and not spec.forks:
            linux.bar_capabilities(confinement.ROOT_KEPT)
            linux.drop_capabilities(confinement.ROOT_KEPT)
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


def bind_life(spec: ProcessSpec, parent: int) -> None:
    """Have the kernel signal this process when its parent dies; end if it has died already."""
    linux.prctl(linux.PR_SET_PDEATHSIG, spec.death_signal)
    if os.getppid() != parent:
        os._exit(FAILED)


def _close_all_but(report: int, channel: int) -> None:
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208
        number = int(entry)
        if number > 2 and number not in (report, channel):
            with contextlib.suppress(OSError):  # the listing's own
                os.close(number)
    if channel >= 0:
        # Never the report's own number: the supervisor has more than this open before either.
        os.dup2(channel, CHANNEL)
        os.set_inheritable(CHANNEL, True)  # noqa: FBT003 - no keyword
