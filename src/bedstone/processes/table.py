"""The processes of one supervisor: forks them, reaps them, and ends what they leave behind.

Rules:
- A child is found dead with WNOWAIT first: while it is a zombie its number, and its process
  group's, can't be given to another, so what it left in its group is killed without a doubt, and
  then it is reaped.
- The supervisor is a subreaper, so whatever is orphaned becomes its child. An orphan carries, in
  its environment, the number of the launch that it came from; when that launch has ended, the
  orphan is killed. One that has changed its environment is known by its user, if that was its
  launch's alone: it is killed when nothing that was launched runs as that user any more.
- Every launch is written to the journal before its program runs, for the warden.
- A process with a zygote is forked from that, and has no pid until its child exists: it can be
  cancelled until then. Whatever goes wrong until then, it is launched cold, and that is said.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bedstone.processes import forks, warden
from bedstone.processes.cgroups import ControlGroups, Membership
from bedstone.processes.forks import Fork, RefusedError
from bedstone.processes.identity import boot_id, read_stat, read_user
from bedstone.processes.launcher import join, launch
from bedstone.processes.spec import (
    COLD_START,
    NAME_MARKER,
    RUN_MARKER,
    SHARED_MARKER,
    WARM_START,
    ProcessInfo,
    ProcessSpec,
)

_JOURNAL_LAUNCHES = 1000
"""How many launches are kept in the journal, at most, besides what runs."""


@dataclass(slots=True)
class Process:
    """One name's record. `report` is open from the fork until the program runs or has failed."""

    spec: ProcessSpec
    info: ProcessInfo
    launch: int = 0
    report: int = -1
    said: bytes = b""
    """What was read from that so far, where it was launched."""
    stopping: bool = False
    delay: float = 0.0
    membership: Membership = field(default_factory=Membership)
    fork: Fork | None = None
    """While its zygote is being asked; then `report` is the descriptor of that."""
    channel: socket.socket | None = None
    """What it is asked on, if it is a zygote."""

    @property
    def pid(self) -> int | None:
        """The running program's, or None."""
        return self.info.pid if self.info.running else None


class ProcessTable:
    """Forks and reaps.

    Args:
        marker: value of the run's marker.
        journal: file that every launch is appended to.
        groups: control groups for limits.
        ended: called with a process after it was reaped, and what it left was killed.
        closing: called with a report's descriptor before it is closed.
    """

    def __init__(
        self,
        marker: str,
        journal: Path,
        groups: ControlGroups,
        ended: Callable[[Process], None],
        closing: Callable[[int], object],
    ) -> None:
        self._marker = marker
        self._journal_path = journal
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._groups = groups
        self._ended = ended
        self._closing = closing
        self._launches = 0
        self.by_name: dict[str, Process] = {}
        self._by_pid: dict[int, Process] = {}
        self._kept: set[int] = set()
        """Children that are no process of the table: the warden."""
        self._users: set[int] = set()
        """Those that processes had for themselves which have ended."""

    def running(self) -> Iterator[Process]:
        """The processes that run."""
        return iter(tuple(self._by_pid.values()))

    def keep(self, pid: int) -> None:
        """Take a child of the supervisor's own out of the orphans."""
        self._kept.add(pid)

    def kept(self, pid: int) -> bool:
        """Whether the supervisor's own child has not been reaped yet."""
        return pid in self._kept

    def start(self, process: Process) -> None:
        """Start a process; its `report` tells later whether its program runs.

        `report` may become another descriptor while that is read.
        """
        self._launches += 1
        process.launch = self._launches
        process.stopping = False
        process.membership = self._groups.prepare(process.spec.name, process.spec.limits)
        if process.spec.zygote is None:
            self._launch(process, ())
            return
        try:
            process.fork = self._ask(process.spec)
        except RefusedError as error:
            self._launch(process, (f"{COLD_START}{error}",))
            return
        process.report = process.fork.link.fileno()
        process.info = replace(process.info, state="running", pid=None, message=None)

    def _ask(self, spec: ProcessSpec) -> Fork:
        zygote = self.by_name.get(spec.zygote or "")
        if zygote is None or zygote.channel is None or not zygote.info.running:
            raise RefusedError("its zygote does not run")
        return forks.ask(zygote.channel, spec)

    def _marks(self, process: Process) -> dict[str, str]:
        return {
            RUN_MARKER: self._marker,
            NAME_MARKER: f"{process.spec.name}/{process.launch}",
        }

    def _launch(self, process: Process, notes: tuple[str, ...]) -> None:
        """Fork from the supervisor, and run the program."""
        spec = process.spec
        env = {**spec.env, **self._marks(process)}
        parent = os.getpid()
        read, write = os.pipe()
        os.set_blocking(read, False)
        theirs = self._open_channel(process)
        # A signal that reached the child before it has its own handlers would be written to the
        # supervisor's wake-up descriptor, and be taken for the supervisor's.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                handle = -1 if theirs is None else theirs.fileno()
                launch(spec, env, parent, write, process.membership, handle)
        except OSError:
            os.close(read)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(write)
            if theirs is not None:
                theirs.close()
        process.report = read
        process.said = b""
        self._begun(process, pid, notes)

    def _open_channel(self, process: Process) -> socket.socket | None:
        """A zygote's end of its channel; None for what is none."""
        if not process.spec.forks:
            return None
        if process.channel is not None:
            process.channel.close()
        process.channel, theirs = forks.channel()
        return theirs

    def _begun(self, process: Process, pid: int, notes: tuple[str, ...]) -> None:
        """Write down a child that is ours now."""
        stat = read_stat(pid)
        start_time = stat[2] if stat else 0
        with contextlib.suppress(OSError):  # a full disk; the marker is there still
            if self._launches % _JOURNAL_LAUNCHES == 0:
                self._shorten_journal()
            os.write(self._journal, _entry(pid, start_time, process.spec.name))
        process.info = replace(
            process.info,
            state="running",
            pid=pid,
            start_time=start_time,
            boot_id=boot_id(),
            started_at=time.time(),
            exited_at=None,
            exit_code=None,
            exit_signal=None,
            message=None,
            lasting=False,
            cause=None,
            applied=process.membership.applied + _isolation(process.spec) + notes,
        )
        self._by_pid[pid] = process

    def read_report(self, process: Process) -> bool:
        """Take the report of a start; False if there is none yet, or another descriptor to read."""
        if process.report < 0:
            return True
        if process.fork is not None:
            return self._read_fork(process, process.fork)
        while True:
            try:
                chunk = os.read(process.report, 8192)
            except BlockingIOError:
                return False
            if not chunk:
                break
            process.said += chunk
        self._close_report(process)
        for line in process.said.splitlines():
            try:
                self._take_report(process, json.loads(line))
            except (ValueError, KeyError, TypeError):
                process.info = replace(process.info, message="the launcher failed", lasting=False)
        return True

    def _take_report(self, process: Process, report: Mapping[str, Any]) -> None:
        if "applied" in report:
            applied = (*process.info.applied, *map(str, report["applied"]))
            process.info = replace(process.info, applied=applied)
        else:
            message, lasting = str(report["message"]), report["lasting"] is True
            process.info = replace(process.info, message=message, lasting=lasting)

    def _read_fork(self, process: Process, fork: Fork) -> bool:
        """Take the next step of a start from a zygote."""
        try:
            heard = forks.hear(fork)
        except BlockingIOError:
            return False
        message, sender = heard or ({}, 0)
        if fork.child is None:
            return self._take_child(process, fork, message, sender)
        if "refused" in message and self._by_pid.pop(fork.child, None) is not None:
            return self._fall_back(process, str(message["refused"]))  # it ends by itself
        self._close_report(process)
        running = message.get("running")
        if isinstance(running, list):
            applied = (*process.info.applied, *map(str, running))
            process.info = replace(process.info, applied=applied)
        elif message:
            process.info = replace(
                process.info,
                message=str(message.get("message", "its zygote failed")),
                lasting=message.get("lasting") is True,
            )
        return True

    def _take_child(
        self, process: Process, fork: Fork, message: dict[str, object], sender: int
    ) -> bool:
        """Make a child that has come into being a process; else launch it cold."""
        stat = read_stat(sender) if sender else None
        # The kernel says who sent it; a zygote cannot give us any other process.
        ours = stat is not None and stat[1] == os.getpid() and sender not in self._by_pid
        if "refused" in message or not ours or sender in self._kept:
            reason = message.get("refused", "its zygote ended while it forked")
            return self._fall_back(process, str(reason))
        theirs = self._open_channel(process)
        try:
            join(process.membership, sender)
            self._begun(process, sender, (f"{WARM_START}forked from {process.spec.zygote}",))
            forks.order(
                fork,
                process.spec,
                self._marks(process),
                theirs,
                memory_limited=process.membership.memory_limited,
            )
        except OSError as error:
            self._by_pid.pop(sender, None)  # it ends by itself, and is reaped as an orphan is
            return self._fall_back(process, f"its zygote's child cannot begin: {error.strerror}")
        finally:
            if theirs is not None:
                theirs.close()
        fork.child = sender
        return False

    def fall_back(self, process: Process, reason: str) -> None:
        """Launch a process cold that its zygote has not forked; what comes late ends by itself."""
        if process.fork is not None and process.fork.child is None:
            self._fall_back(process, reason)

    def _fall_back(self, process: Process, reason: str) -> bool:
        self._close_report(process)
        self._launch(process, (f"{COLD_START}{reason}",))
        return False

    def cancel(self, process: Process) -> bool:
        """Give a start up whose child does not exist yet; False if it is too late for that."""
        if process.fork is None or process.fork.child is not None:
            return False
        self._close_report(process)
        message = "stopped before it was forked"
        process.info = replace(process.info, state="failed", message=message)
        self._groups.release(process.membership)
        self._ended(process)
        return True

    def reap(self) -> None:
        """Reap every dead child, and end what dead launches left behind."""
        reaped = False
        finished = []
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if found is None:
                break
            reaped = True
            process = self._by_pid.get(found.si_pid)
            if process is not None:
                self.kill_group(found.si_pid)
            os.waitpid(found.si_pid, 0)
            self._kept.discard(found.si_pid)
            if process is not None:
                self._finish(process, found)
                finished.append(process)
        if reaped:
            self._end_orphans()
        for process in finished:
            self._ended(process)

    def kill_group(self, pid: int) -> None:
        """SIGKILL the process group of a child that has not been reaped."""
        try:
            os.killpg(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return

    def kill_children(self) -> bool:
        """SIGKILL every child but the supervisor's own, and others'; False when there was none."""
        pids = [pid for pid in _children() if pid not in self._kept and not _shared(pid)]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)  # ours and not reaped, so nobody else has the number
        return bool(pids)

    def _finish(self, process: Process, found: os.waitid_result) -> None:
        del self._by_pid[found.si_pid]
        if _has_own_user(process.spec) and found.si_uid not in (0, os.geteuid()):
            self._users.add(found.si_uid)
        self.read_report(process)
        self._close_report(process)
        if process.channel is not None:
            process.channel.close()
            process.channel = None
        exited = found.si_code == os.CLD_EXITED
        process.info = replace(
            process.info,
            state="failed" if process.info.message else "exited",
            exited_at=time.time(),
            exit_code=found.si_status if exited else None,
            exit_signal=None if exited else found.si_status,
            cause=self._cause(process, found),
        )
        self._groups.release(process.membership)

    def _cause(self, process: Process, found: os.waitid_result) -> str | None:
        """Why it ended, if that was its memory limit."""
        memory = process.spec.limits.memory
        if memory is None or found.si_status == 0 or process.stopping:
            return None
        limit = f"its memory limit of {memory / (1 << 20):.4g} MiB"
        known = self._groups.out_of_memory(process.membership)
        if known is not None:
            return f"it used more than {limit}" if known else None
        grouped = process.membership.memory_limited
        # Without a group, an allocation fails instead; a program that does not expect it crashes.
        suspects = (signal.SIGKILL,) if grouped else (signal.SIGABRT, signal.SIGSEGV)
        killed = found.si_code != os.CLD_EXITED and found.si_status in suspects
        return f"perhaps for {limit}" if killed else None

    def _shorten_journal(self) -> None:
        """Keep only what runs, so that a crash loop doesn't fill the disk."""
        draft = self._journal_path.with_suffix(".new")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        for pid, process in self._by_pid.items():
            os.write(handle, _entry(pid, process.info.start_time or 0, process.spec.name))
        draft.replace(self._journal_path)
        os.close(self._journal)
        self._journal = handle

    def _close_report(self, process: Process) -> None:
        if process.report >= 0:
            self._closing(process.report)
            if process.fork is None:
                os.close(process.report)
            else:
                process.fork.link.close()
                process.fork = None
            process.report = -1

    def _running_users(self) -> set[int | None]:
        return {read_user(pid) for pid, its in self._by_pid.items() if _has_own_user(its.spec)}

    def _end_orphans(self) -> None:
        live = {
            f"{NAME_MARKER}={process.spec.name}/{process.launch}".encode()
            for process in self._by_pid.values()
        }
        prefix = f"{NAME_MARKER}=".encode()
        run = f"{RUN_MARKER}={self._marker}".encode()
        pids = [pid for pid in _children() if pid not in self._by_pid and pid not in self._kept]
        users = {pid: read_user(pid) for pid in pids} if self._users else {}
        ended = self._users.intersection(users.values())
        ended -= self._running_users() if ended else set()
        for pid in pids:
            if users.get(pid) in ended:
                os.kill(pid, signal.SIGKILL)
                continue
            variables = warden.environment(pid)
            if run in variables and not any(
                variable in live for variable in variables if variable.startswith(prefix)
            ):
                os.kill(pid, signal.SIGKILL)


def _has_own_user(spec: ProcessSpec) -> bool:
    """Whether nothing else runs as its user but what belongs to it, or for a zygote, its kind."""
    kept = spec.confinement
    return spec.userns is not None or (kept is not None and kept.alone)


def _entry(pid: int, start_time: int, name: str) -> bytes:
    return f"{pid} {start_time} {json.dumps(name)}\n".encode()


def _children() -> list[int]:
    pid = os.getpid()
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN
        numbers = (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208
        return [number for number in numbers if (read_stat(number) or ("", 0, 0))[1] == pid]


def _shared(pid: int) -> bool:
    """Whether a child works for others, too: it says so, and is root's as this process is."""
    if os.geteuid() != 0 or f"{SHARED_MARKER}=1".encode() not in warden.environment(pid):
        return False
    try:
        return Path(f"/proc/{pid}").stat().st_uid == 0
    except OSError:
        return False


def _isolation(spec: ProcessSpec) -> tuple[str, ...]:
    applied = []
    if spec.uid is not None:
        applied.append(f"uid {spec.uid}")
    if spec.netns is not None:
        applied.append("own network namespace")
    if spec.mounts:
        applied.append("own mount namespace")
    return tuple(applied)
