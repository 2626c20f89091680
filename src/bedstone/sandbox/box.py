"""What a box is: a root file system, processes, limits, and a network that it was given.

`BoxSpec` says what it should be; `boxes.Boxes` is what a driver can do with it.

Rules:
- A box has what its specification names and nothing else: no path of the host but its mounts, no
  network but the one given, no capability but those listed.
- Records are plain frozen values that survive a round trip through JSON.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bedstone.errors import InvalidError
from bedstone.sandbox.policy import AllowedMount, Policy, Request

Root = Literal["overlay", "readonly", "direct"]
State = Literal["running", "paused", "stopped"]
"""`stopped`: prepared and not started, or ended and not deleted."""

_ID = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_CAPABILITY = re.compile(r"CAP_[A-Z_]+")
_KERNEL_FOLDERS = ("/proc", "/sys", "/dev")


@dataclass(frozen=True, slots=True)
class Mount:
    """What is mounted over the root.

    Args:
        source: absolute path of this machine for `bind`; ignored for `tmpfs`.
        target: absolute path in the box, made where it is missing.
        readonly: whether the box may not write to it.
        kind: `bind`, or `tmpfs`: an empty one in memory.
        size: bytes of a tmpfs.
    """

    source: str
    target: str
    readonly: bool = True
    kind: Literal["bind", "tmpfs"] = "bind"
    size: int = 64 << 20


@dataclass(frozen=True, slots=True)
class BoxLimits:
    """Limits of a whole box; None is no limit of its own.

    Args:
        memory: bytes, of everything in it.
        cpus: processors, as 0.5.
        pids: processes and threads.
        disk: bytes that it may write to its root (`overlay` only).
        io_read: bytes a second from block devices.
        io_write: bytes a second to block devices.
        files: open files of each process.
    """

    memory: int | None = 512 << 20
    cpus: float | None = None
    pids: int | None = 512
    disk: int | None = 1 << 30
    io_read: int | None = None
    io_write: int | None = None
    files: int | None = 65536


@dataclass(frozen=True, slots=True)
class BoxSpec:
    """One box.

    Args:
        id: unique among the boxes of one home, whatever their isolation; `[a-z0-9][a-z0-9_.-]*`.
        root: absolute path of the root's directory. `microvm` also takes an EROFS image file.
        command: the program and its arguments; a program without a slash is sought on PATH of
            `env`, in the box.
        policy: what it may be and do; None denies everything.
        write: what becomes of writes to the root: `overlay` keeps them apart until the box is
            deleted, `readonly` refuses them, `direct` writes to the directory itself.
        env: the complete environment.
        cwd: absolute, in the box.
        user: user id in the box's own numbering.
        group: group id.
        groups: supplementary group ids.
        hostname: name that the box has for itself.
        mounts: beside the usual ones of /proc, /dev, /sys and /tmp.
        devices: device nodes of this machine, beside the harmless ones.
        limits: of the whole box.
        netns: path of the network namespace that it gets; None gives it loopback only.
        tty: whether its command has a terminal.
        init: whether a small program of ours is its first process, which reaps what is left to it
            and passes signals on; one that is first itself is not ended by a signal that it does
            not handle. The command is a path then. Where a driver's first process does so anyway,
            it makes no difference.
        capabilities: Linux capabilities, as `CAP_CHOWN`; none by default.
        created_at: Unix time, for listings.
        labels: anything that its owner wants to find again.
    """

    id: str
    root: str
    command: tuple[str, ...]
    policy: Policy | None
    write: Root = "overlay"
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "/"
    user: int = 0
    group: int = 0
    groups: tuple[int, ...] = ()
    hostname: str = "box"
    mounts: tuple[Mount, ...] = ()
    devices: tuple[str, ...] = ()
    limits: BoxLimits = field(default_factory=BoxLimits)
    netns: str | None = None
    tty: bool = False
    init: bool = False
    capabilities: tuple[str, ...] = ()
    created_at: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_id(self.id)
        where = f"box {self.id}"
        if not self.root.startswith("/"):
            raise InvalidError(f"{where}: its root is an absolute path, got {self.root!r}")
        _check_process(where, self.command, self.env, self.cwd)
        targets = [mount.target for mount in self.mounts]
        for mount in self.mounts:
            _check_mount(where, mount)
            if targets.count(mount.target) > 1:
                raise InvalidError(f"{where}: two mounts on {mount.target}")
        if self.init and not self.command[0].startswith("/"):
            raise InvalidError(f"{where}: with init, its command is a path, got {self.command[0]}")
        for name in self.capabilities:
            if not _CAPABILITY.fullmatch(name):
                raise InvalidError(f"{where}: got capability {name!r}, expected CAP_CHOWN or such")
        for device in self.devices:
            if not device.startswith("/dev/") or device != posixpath.normpath(device):
                raise InvalidError(f"{where}: a device is a path below /dev, got {device!r}")

    def request(self) -> Request:
        """What its start asks of its policy."""
        return Request(
            program=self.command[0],
            env=tuple(self.env),
            user=self.user,
            tty=self.tty,
            capabilities=self.capabilities,
            mounts=tuple(
                AllowedMount(
                    mount.source if mount.kind == "bind" else "tmpfs", mount.target, mount.readonly
                )
                for mount in self.mounts
            ),
            devices=self.devices,
            network="none" if self.netns is None else "given",
            writable_root=self.write != "readonly",
        )

    def writes_here(self) -> bool:
        """Whether it can write to files of this machine that others of this machine see."""
        shared = any(mount.kind == "bind" and not mount.readonly for mount in self.mounts)
        return shared or self.write == "direct"

    def to_json(self) -> dict[str, Any]:
        """As JSON-encodable values."""
        policy = None if self.policy is None else self.policy.to_json()
        value: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return value | {"policy": policy}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> BoxSpec:
        """The reverse of `to_json`; raises InvalidError for anything else."""
        try:
            policy = value["policy"]
            return cls(
                **{
                    **value,
                    "policy": None if policy is None else Policy.from_json(policy),
                    "command": tuple(value["command"]),
                    "groups": tuple(value["groups"]),
                    "mounts": tuple(Mount(**mount) for mount in value["mounts"]),
                    "devices": tuple(value["devices"]),
                    "limits": BoxLimits(**value["limits"]),
                    "capabilities": tuple(value["capabilities"]),
                }
            )
        except (TypeError, KeyError) as error:
            raise InvalidError(f"not a box specification: {error}") from error

    def digest(self) -> str:
        """SHA-256 over every field."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Exec:
    """One more program in a box that runs. Fields as in `BoxSpec`; `user` None is the box's own."""

    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "/"
    user: int | None = None
    group: int | None = None
    tty: bool = False
    capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_process("exec", self.command, self.env, self.cwd)

    def request(self, spec: BoxSpec) -> Request:
        """What it asks of the policy of its box."""
        return Request(
            program=self.command[0],
            env=tuple(self.env),
            user=spec.user if self.user is None else self.user,
            tty=self.tty,
            capabilities=self.capabilities,
        )


@dataclass(frozen=True, slots=True)
class Stdio:
    """Three descriptors that a program gets; the driver duplicates and never closes them.

    With a terminal all three are the slave side of one pseudo-terminal, which the driver may set to
    raw mode; its other side is the caller's.
    """

    stdin: int
    stdout: int
    stderr: int


@dataclass(frozen=True, slots=True)
class Launch:
    """How to run a prepared box.

    Args:
        argv: the foreground command. It ends with the exit status of the box's command, or 128 + N
            after signal N. SIGTERM, SIGINT, SIGHUP and SIGWINCH are passed on to the box. With
            `tty`, its standard streams have to be a terminal, and the one that controls it.
        env: the complete environment of that command.
        notes: in words, what of limits and isolation could not be applied, and why.
        started: path of a file that is there once the box's command runs; empty where only `list`
            tells.
        log: path of a file with what kept the command from running, for `failing.ended`; empty
            where the exit status of `argv` says it. Whoever starts the box again removes both files
            first.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    started: str = ""
    log: str = ""


@dataclass(frozen=True, slots=True)
class Link:
    """Where a network namespace and the box that was given it find each other: IPv4 addresses.

    Args:
        namespace: where the box finds what listens in the namespace.
        box: where programs of the namespace find what listens in the box.
    """

    namespace: str
    box: str


@dataclass(frozen=True, slots=True)
class Exit:
    """How a program ended: its exit status, or 128 + N after signal N."""

    code: int


@dataclass(frozen=True, slots=True)
class Stats:
    """What a box uses now, or has used since its start; None where this machine does not say.

    Args:
        cpu_seconds: of all its processors together.
        memory: bytes in use.
        memory_limit: bytes.
        pids: processes and threads.
        io_read: bytes from block devices.
        io_written: bytes to block devices.
        oom_kills: processes that the kernel killed for the memory limit.
    """

    cpu_seconds: float | None = None
    memory: int | None = None
    memory_limit: int | None = None
    pids: int | None = None
    io_read: int | None = None
    io_written: int | None = None
    oom_kills: int | None = None


@dataclass(frozen=True, slots=True)
class BoxInfo:
    """One box of a listing; `pid` is that of its first process, as this machine counts."""

    spec: BoxSpec
    isolation: str
    state: State
    pid: int | None = None
    notes: tuple[str, ...] = ()


def check_id(text: str) -> str:
    """The id itself, if it is one; it also names folders and control groups.

    Raises:
        InvalidError: it is not one.
    """
    if not _ID.fullmatch(text) or ".." in text:
        raise InvalidError(
            f"got box id {text!r}, expected up to 63 of a-z, 0-9, `_`, `.`, `-`, the first of them "
            "a letter or digit"
        )
    return text


def _check_process(where: str, command: tuple[str, ...], env: Mapping[str, str], cwd: str) -> None:
    if not command or not command[0]:
        raise InvalidError(f"{where}: its command is empty")
    if any("\0" in text for text in (*command, *env, *env.values(), cwd)):
        raise InvalidError(f"{where}: an argument or variable contains NUL")
    if any(not name or "=" in name for name in env):
        raise InvalidError(f"{where}: a variable's name is empty or contains =")
    _check_path(where, "working directory", cwd)


def _check_mount(where: str, mount: Mount) -> None:
    _check_path(where, "mount target", mount.target)
    if mount.kind == "bind":
        _check_path(where, "mount source", mount.source)
    if mount.target == "/":
        raise InvalidError(f"{where}: nothing can be mounted over the root")
    for folder in _KERNEL_FOLDERS:
        if mount.target == folder or mount.target.startswith(f"{folder}/"):
            raise InvalidError(f"{where}: nothing can be mounted on {mount.target}")


def _check_path(where: str, what: str, path: str) -> None:
    if not path.startswith("/") or path != posixpath.normpath(path) or path.startswith("//"):
        raise InvalidError(f"{where}: its {what} is an absolute path without `..`, got {path!r}")
