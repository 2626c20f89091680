"""What a process should be, and what it is: the supervisor's two records.

Rules: plain frozen values that survive a round trip through JSON; the digest of a specification
covers every field, so that "the same" means the same in all respects; an information record never
contains the environment, which may hold credentials.
"""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bedstone.errors import InvalidError

RUN_MARKER = "BEDSTONE_RUN"
"""Environment variable `STATE/RUN` that every descendant carries."""
NAME_MARKER = "BEDSTONE_PROCESS"
"""Environment variable with the name of the process that a descendant belongs to."""

SHARED_MARKER = "BEDSTONE_SHARED"
"""Environment variable, `1`, of a descendant that also works for others, and outlives the run."""

STAGE_NODE = 0
STAGE_INSTANCE = 1
STAGE_ENVOY = 2
STAGE_DATABASE = 3
STAGE_SERVER = 4

COLD_START = "cold start: "
"""How an entry of `ProcessInfo.applied` begins that says why it was not forked from its zygote."""
WARM_START = "warm start: "
UNCONFINED = "not confined: "
"""How one begins that says what a process is not kept from, since the machine cannot."""

State = Literal["running", "exited", "failed"]


@dataclass(frozen=True, slots=True)
class Mount:
    """A bind mount that only this process sees; `target` is created where it is missing."""

    source: str
    target: str
    readonly: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """Resource limits; None leaves what the supervisor has.

    Args:
        open_files: RLIMIT_NOFILE, capped at the hard limit.
        memory: bytes; by control group where one is writable, else RLIMIT_DATA.
        cpu: cores; by control group only.
        processes: by control group (pids) only, since RLIMIT_NPROC counts all of a user.
    """

    open_files: int | None = None
    memory: int | None = None
    cpu: float | None = None
    processes: int | None = None


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a process is kept to, as far as the machine can; `ProcessInfo.applied` says what came.

    It comes with a filter of system calls, no capability that could reach others, and, where root
    starts it, namespaces of its own. Mounts are made where root starts it, too.

    Args:
        writable: files and folders that it may write to, and below; what its user may not, it may
            not either.
        visible: folders that stay in those that are hidden.
        hidden: folders that look empty to it.
        temporary: folder that it sees as /tmp.
        alone: nobody else runs as its user, so that processes of its user are its own.
        root: it runs as the machine's root, whose rights over files it keeps: so it does not see
            what root alone could reach by them.
    """

    writable: tuple[str, ...] = ()
    visible: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    temporary: str | None = None
    alone: bool = False
    root: bool = False

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Confinement:
        """The reverse of `dataclasses.asdict`."""
        lists = {name: tuple(value[name]) for name in ("writable", "visible", "hidden")}
        return cls(**{**value, **lists})


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process to run. `env` is the complete environment; the markers are added to it.

    Args:
        name: unique in the supervisor.
        argv: the program and its arguments; a program without a slash is sought on `env`'s PATH.
        env: the complete environment.
        cwd: working directory, `/` by default.
        stdout: file that output is appended to (created 0600 as the supervisor's user);
            `/dev/null` by default.
        stderr: the same for errors; where `stdout` goes by default.
        uid: user to become; needs root.
        gid: group to become; `uid` by default.
        groups: supplementary groups; none by default when `uid` is given.
        netns: path of a network namespace to enter; needs root.
        userns: path of a user namespace to enter last, which `uid` and `gid` are then numbers of.
        mounts: bind mounts in a private mount namespace; need root.
        limits: resource limits.
        confinement: what it is kept to; None for what is part of Bedstone. A zygote is kept apart
            by it, and each of its children to its own.
        umask: file mode mask.
        nice: added to the supervisor's.
        oom_score_adj: -1000 to 1000; lowering needs root, and is left alone without.
        death_signal: what the kernel sends when the supervisor dies.
        stop_signal: the polite request to end.
        stop_grace: seconds from `stop_signal` to SIGKILL.
        stage: order of shutdown, lowest first.
        restart: "always" is for what the supervisor itself keeps alive.
        zygote: name of a process with `forks` that it is forked from, instead of running `argv`,
            which must be a command of Python; where that is not possible, `argv` is run.
        forks: it is a zygote (`bedstone.processes.zygote`), and is given its channel.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "/"
    stdout: str | None = None
    stderr: str | None = None
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] = ()
    netns: str | None = None
    userns: str | None = None
    mounts: tuple[Mount, ...] = ()
    limits: Limits = field(default_factory=Limits)
    confinement: Confinement | None = None
    umask: int = 0o077
    nice: int = 0
    oom_score_adj: int | None = None
    death_signal: int = signal.SIGKILL
    stop_signal: int = signal.SIGTERM
    stop_grace: float = 10.0
    stage: int = STAGE_INSTANCE
    restart: Literal["never", "always"] = "never"
    zygote: str | None = None
    forks: bool = False

    def __post_init__(self) -> None:
        if not self.name or "\0" in self.name or "\n" in self.name:
            raise InvalidError(f"a process needs a printable name, got {self.name!r}")
        if not self.argv:
            raise InvalidError(f"process {self.name} needs a program, got an empty argv")
        for text in (*self.argv, *self.env.keys(), *self.env.values(), self.cwd):
            if "\0" in text:
                raise InvalidError(f"process {self.name}: an argument or variable contains NUL")
        if any(not key or "=" in key for key in self.env):
            raise InvalidError(f"process {self.name}: a variable's name is empty or contains =")

    def to_json(self) -> dict[str, Any]:
        """The specification as JSON-encodable values."""
        return asdict(self) | {"env": dict(self.env)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ProcessSpec:
        """The reverse of `to_json`; raises InvalidError for anything else."""
        try:
            kept = value.get("confinement")
            return cls(
                **{
                    **value,
                    "argv": tuple(value["argv"]),
                    "groups": tuple(value.get("groups", ())),
                    "mounts": tuple(Mount(**mount) for mount in value.get("mounts", ())),
                    "limits": Limits(**value.get("limits", {})),
                    "confinement": None if kept is None else Confinement.from_json(kept),
                }
            )
        except (TypeError, KeyError) as error:
            raise InvalidError(f"not a process specification: {error}") from error

    def digest(self) -> str:
        """SHA-256 over every field."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """What the supervisor knows of one process.

    Args:
        name: as in the specification.
        state: running; exited (it ran and ended); failed (it never ran, see `message`).
        spec_digest: of the specification it was started from.
        pid: while running or after; None if it failed to start.
        start_time: clock ticks after boot, /proc/PID/stat field 22.
        boot_id: of the kernel that `pid` and `start_time` belong to.
        started_at: Unix time.
        exited_at: Unix time.
        exit_code: 0-255 if it exited.
        exit_signal: if a signal ended it.
        message: why it failed to start.
        lasting: it failed to start, and would again, until the program or its folder changes.
        cause: what ended it, where that is known.
        applied: which limits and isolation took effect, and which did not and why.
        restarts: how often the supervisor has restarted it.
        restart: whether the supervisor restarts it.
        previous: how it ended last, if the supervisor has restarted it.
        stage: order of shutdown.
    """

    name: str
    state: State
    spec_digest: str
    pid: int | None = None
    start_time: int | None = None
    boot_id: str = ""
    started_at: float | None = None
    exited_at: float | None = None
    exit_code: int | None = None
    exit_signal: int | None = None
    message: str | None = None
    lasting: bool = False
    cause: str | None = None
    applied: tuple[str, ...] = ()
    restarts: int = 0
    previous: str | None = None
    restart: str = "never"
    stage: int = STAGE_INSTANCE

    @property
    def running(self) -> bool:
        """Whether it runs, as far as the supervisor knew when it said so."""
        return self.state == "running"

    def ending(self) -> str:
        """How it ended, for people: `exit status 3`, `killed by SIGKILL`, or why it failed.

        With the cause, where it is known: `killed by SIGKILL: it used more than …`.
        """
        return f"{self._ending()}: {self.cause}" if self.cause else self._ending()

    def _ending(self) -> str:
        match self.state:
            case "running":
                return "running"
            case "failed":
                return self.message or "failed to start"
            case "exited" if self.exit_signal is not None:
                try:
                    return f"killed by {signal.Signals(self.exit_signal).name}"
                except ValueError:
                    return f"killed by signal {self.exit_signal}"
            case _:
                return f"exit status {self.exit_code}"

    def to_json(self) -> dict[str, Any]:
        """The record as JSON-encodable values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ProcessInfo:
        """The reverse of `to_json`; fields that this version does not know are ignored."""
        known = {key: value[key] for key in cls.__slots__ if key in value}
        return cls(**{**known, "applied": tuple(value.get("applied", ()))})
