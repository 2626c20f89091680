"""From a box to OCI's `config.json` (runtime-spec 1.0), as pure functions.

The defaults of every box: no new privileges, no capability but those listed, a filter of system
calls, namespaces of its own for everything, paths of /proc and /sys masked or read-only, no device
but the harmless ones, limits by control group.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bedstone.sandbox.box import BoxLimits, BoxSpec, Exec
from bedstone.sandbox.folders import IDS
from bedstone.sandbox.oci.entering import OWN
from bedstone.sandbox.oci.seccomp import profile

_PERIOD: Final = 100_000
INIT: Final = "/dev/init"
"""Where the box has the program that is its first process."""

MASKED: Final = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/kmsg",
    "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/sysrq-trigger",
    "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
    "/sys/kernel",
)  # fmt: skip
READONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys")
_TIGHT: Final = ("nosuid", "noexec", "nodev")


@dataclass(frozen=True, slots=True)
class Place:
    """What was made for a box on this machine.

    Attributes:
        root: the mounted root.
        binds: (what is shown, where in the box, whether read-only), already as the box's user.
        first_id: this machine's user and group id that is 0 in the box; None where not mapped.
        cgroup: path of its control group, relative to this process's; None where there is none.
        controllers: those that limits can be set with.
        device: (major, minor) of the disk that it writes to.
        sentry: whether a kernel in user space runs it, which has namespaces and filters of its own.
        open_files: the most that a process may have here, which no box can exceed.
        init: the program that is to be its first process, on this machine; None for its command.
        memory: (where in the box, bytes) of file systems in memory that the runtime mounts.
        overlay: options of an overlay that the runtime mounts as the root; empty if it is mounted.
        owner: this machine's user and group that are 0 in the box, which has no others; None where
            root made it.
    """

    root: str
    binds: tuple[tuple[str, str, bool], ...] = ()
    first_id: int | None = None
    cgroup: str | None = None
    controllers: frozenset[str] = frozenset()
    device: tuple[int, int] | None = None
    sentry: bool = False
    open_files: int | None = None
    init: str | None = None
    memory: tuple[tuple[str, int], ...] = ()
    overlay: tuple[str, ...] = ()
    owner: tuple[int, int] | None = None


def config(spec: BoxSpec, place: Place) -> dict[str, Any]:
    """The whole configuration."""
    linux: dict[str, Any] = {
        "namespaces": _namespaces(spec, place),
        "maskedPaths": list(MASKED),
        "readonlyPaths": list(READONLY),
        "seccomp": profile(spec.capabilities, sentry=place.sentry, set_id=not spec.writes_here()),
        "resources": resources(spec.limits, place),
        "devices": [_device(path) for path in spec.devices],
        "rootfsPropagation": "private",
    }
    if place.cgroup is not None:
        linux["cgroupsPath"] = place.cgroup
    if place.first_id is not None:
        mapping = {"containerID": 0, "hostID": place.first_id, "size": IDS}
        linux["uidMappings"] = linux["gidMappings"] = [mapping]
    if spec.netns is None and not place.sentry:
        # Nobody else is in its network, so that no port in it is worth a privilege.
        linux["sysctl"] = {"net.ipv4.ip_unprivileged_port_start": "0"}
    if place.owner is not None:
        for kind, number in zip(("uid", "gid"), place.owner, strict=True):
            linux[f"{kind}Mappings"] = [{"containerID": 0, "hostID": number, "size": 1}]
    else:
        linux["resources"]["devices"] = [
            {"allow": False, "access": "rwm"},
            *(_device_rule(device) for device in linux["devices"]),
        ]
    return {
        "ociVersion": "1.0.2",
        "hostname": spec.hostname,
        "root": {"path": place.root, "readonly": spec.write == "readonly"},
        "process": process(
            Exec(
                spec.command if place.init is None else (INIT, *spec.command),
                spec.env,
                spec.cwd,
                spec.user,
                spec.group,
                spec.tty,
                spec.capabilities,
            ),
            spec,
            place.open_files,
        ),
        "mounts": _mounts(spec, place),
        "linux": linux,
    }


def process(program: Exec, spec: BoxSpec, open_files: int | None = None) -> dict[str, Any]:
    """OCI's `process`: the box's command, or one that `exec` runs in it.

    Args:
        program: what runs.
        spec: the box.
        open_files: as in `Place`.
    """
    user = spec.user if program.user is None else program.user
    group = spec.group if program.group is None else program.group
    capabilities = list(program.capabilities)
    sets = {"bounding": capabilities, "effective": capabilities, "permitted": capabilities}
    if user != 0:
        # A user that is not root loses all but its ambient ones on execve (capabilities(7)).
        sets |= {"inheritable": capabilities, "ambient": capabilities}
    value: dict[str, Any] = {
        "terminal": program.tty,
        "user": {"uid": user, "gid": group, "additionalGids": list(spec.groups)},
        "args": list(program.command),
        "env": [f"{name}={text}" for name, text in program.env.items()],
        "cwd": program.cwd,
        "capabilities": sets,
        "noNewPrivileges": True,
    }
    if spec.limits.files is not None:
        files = min(spec.limits.files, open_files or spec.limits.files)
        value["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": files, "hard": files}]
    return value


def resources(limits: BoxLimits, place: Place) -> dict[str, Any]:
    """OCI's `linux.resources`, of what the controllers can do."""
    found: dict[str, Any] = {}
    if limits.memory is not None and "memory" in place.controllers:
        found["memory"] = {"limit": limits.memory}
    if limits.pids is not None and "pids" in place.controllers:
        found["pids"] = {"limit": limits.pids}
    if limits.cpus is not None and "cpu" in place.controllers:
        quota = max(1000, int(limits.cpus * _PERIOD))
        found["cpu"] = {"quota": quota, "period": _PERIOD}
    throttle: dict[str, Any] = {}
    if place.device is not None and "io" in place.controllers:
        major, minor = place.device
        for name, rate in (("Read", limits.io_read), ("Write", limits.io_write)):
            if rate is not None:
                throttle[f"throttle{name}BpsDevice"] = [
                    {"major": major, "minor": minor, "rate": rate}
                ]
    if throttle:
        found["blockIO"] = throttle
    return found


def unapplied(limits: BoxLimits, place: Place) -> tuple[str, ...]:
    """In words, which limits could not be applied."""
    wanted = {
        "memory": limits.memory is not None,
        "cpu": limits.cpus is not None,
        "pids": limits.pids is not None,
        "io": limits.io_read is not None or limits.io_write is not None,
    }
    notes = [
        f"{name} limit not applied: no writable control group"
        for name, want in wanted.items()
        if want and name not in place.controllers
    ]
    if wanted["io"] and "io" in place.controllers and place.device is None:
        notes.append("io limit not applied: its files are on no block device of this machine")
    return tuple(notes)


def _namespaces(spec: BoxSpec, place: Place) -> list[dict[str, str]]:
    found = [{"type": name} for name in ("pid", "ipc", "uts", "mount", "cgroup")]
    # What a box is given is not the runtime's to enter, see `entering`.
    if spec.netns is None:
        found.append({"type": "network"})
    elif place.sentry:
        found.append({"type": "network", "path": f"/proc/self/fd/{OWN}"})
    if place.first_id is not None or place.owner is not None:
        found.append({"type": "user"})
    return found


def _mounts(spec: BoxSpec, place: Place) -> list[dict[str, Any]]:
    pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    if place.first_id is None and place.owner is None:
        pts.append("gid=5")
    found = [_mount("/", "overlay", place.overlay)] if place.overlay else []
    found += [
        _mount("/proc", "proc", _TIGHT),
        _mount("/dev", "tmpfs", ("nosuid", "noexec", "strictatime", "mode=755", "size=65536k")),
        _mount("/dev/pts", "devpts", pts),
        _mount("/dev/shm", "tmpfs", (*_TIGHT, "mode=1777", "size=65536k")),  # noqa: S108
        _mount("/dev/mqueue", "mqueue", _TIGHT),
    ]
    if spec.netns is not None and place.first_id is not None:
        # The kernel shows sysfs only to the owner of the network namespace, which the box is not.
        found.append(_mount("/sys", "tmpfs", (*_TIGHT, "ro", "mode=555", "size=0")))
    else:
        found.append(_mount("/sys", "sysfs", (*_TIGHT, "ro")))
        if not place.sentry and place.cgroup is not None:
            found.append(_mount("/sys/fs/cgroup", "cgroup", (*_TIGHT, "relatime", "ro")))
    binds = place.binds if place.init is None else (*place.binds, (place.init, INIT, True))
    for source, target, readonly in sorted(binds, key=lambda bind: bind[1]):
        options = ("bind", "private", "nosuid", "nodev", "ro" if readonly else "rw")
        found.append(_mount(target, "bind", options, source))
    for target, size in place.memory:
        found.append(_mount(target, "tmpfs", ("nosuid", "nodev", "mode=1777", f"size={size}")))
    return found


def _mount(target: str, kind: str, options: Any, source: str | None = None) -> dict[str, Any]:
    return {
        "destination": target,
        "type": kind,
        "source": source if source is not None else kind,
        "options": list(options),
    }


def _device(path: str) -> dict[str, Any]:
    found = Path(path).stat()
    return {
        "path": path,
        "type": "b" if stat.S_ISBLK(found.st_mode) else "c",
        "major": os.major(found.st_rdev),
        "minor": os.minor(found.st_rdev),
        "fileMode": 0o666,
        "uid": 0,
        "gid": 0,
    }


def _device_rule(device: dict[str, Any]) -> dict[str, Any]:
    return {
        "allow": True,
        "access": "rw",
        **{key: device[key] for key in ("type", "major", "minor")},
    }
