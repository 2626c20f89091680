"""Policy as code: what a box may be and do, as one frozen value that denies what it does not name.

The host checks it before it acts, and the agent of a microVM checks the same value again, from the
same JSON. It bounds what is asked *of* a box (its start, each `exec`, each copy), by whoever asks;
what runs inside is bounded by capabilities, seccomp and namespaces, which are made from it.

Rules:
- No policy denies everything, and so does an empty one.
- `*` allows anything, and only where it stands alone. There are no patterns, so that no empty or
  careless one can match more than it says.
- Mounts match one to one: each mount asked for is one that is allowed, each that is allowed is
  asked for, and none twice.
- A denial names the field of the policy that failed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from bedstone.errors import DeniedError, InvalidError

VERSION = 1
ANY = "*"

Network = Literal["none", "given"]
"""`none`: loopback only. `given`: the network namespace that the box was given."""


@dataclass(frozen=True, slots=True, order=True)
class AllowedMount:
    """One mount that has to be there exactly so; the source of a tmpfs is `tmpfs`."""

    source: str
    target: str
    readonly: bool = True


@dataclass(frozen=True, slots=True)
class Policy:
    """What a box may be and do; the defaults allow nothing.

    Args:
        programs: programs that may be the box's command, or be run in it by `exec`, as they are
            named there (`/bin/sh` and `sh` are two names); or `*`.
        exec: whether `exec` may run any of `programs` at all.
        env: names of variables that may be set; or `*`.
        mounts: what is mounted, one to one.
        capabilities: Linux capabilities, as `CAP_CHOWN`; `*` is not allowed here.
        devices: device nodes beyond the harmless ones that each box has; as `/dev/fuse`.
        network: what network it may have.
        users: user ids that programs may run as, in the box's own numbering; `*` is -1.
        tty: whether it may have a terminal.
        writable_root: whether anything may be written beside mounts and temporary folders.
        copy_in: folders that may be copied into, with all below; `/` is everything.
        copy_out: files and folders that may be copied out, with all below.
    """

    programs: tuple[str, ...] = ()
    exec: bool = False
    env: tuple[str, ...] = ()
    mounts: tuple[AllowedMount, ...] = ()
    capabilities: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    network: Network = "none"
    users: tuple[int, ...] = ()
    tty: bool = False
    writable_root: bool = False
    copy_in: tuple[str, ...] = ()
    copy_out: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON-encodable values: the fields by their names, and `version`."""
        return {"version": VERSION, **json.loads(json.dumps(asdict(self)))}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Policy:
        """The reverse of `to_json`; a field missing is its default, which denies.

        Raises:
            InvalidError: another version, an unknown field, or a value of another kind.
        """
        if value.get("version") != VERSION:
            raise InvalidError(f"not a policy of version {VERSION}")
        given = {key: item for key, item in value.items() if key != "version"}
        unknown = sorted(set(given) - {field.name for field in fields(cls)})
        if unknown:
            raise InvalidError(f"a policy has no field {unknown[0]!r}")
        try:
            return cls(**{name: _decode(name, item) for name, item in given.items()})
        except (TypeError, ValueError) as error:
            raise InvalidError(f"not a policy: {error}") from error

    def digest(self) -> str:
        """SHA-256 over the canonical JSON: sorted keys, no spaces, order of lists as given."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _decode(name: str, item: Any) -> Any:
    match name:
        case "exec" | "tty" | "writable_root" if isinstance(item, bool):
            return item
        case "network" if item in ("none", "given"):
            return item
        case "mounts" if isinstance(item, list):
            return tuple(_decode_mount(mount) for mount in item)
        case "users" if isinstance(item, list) and all(type(user) is int for user in item):
            return tuple(item)
        case "programs" | "env" | "capabilities" | "devices" | "copy_in" | "copy_out" if isinstance(
            item, list
        ) and all(isinstance(text, str) for text in item):
            return tuple(item)
        case _:
            raise ValueError(f"got {item!r} as its field {name!r}")


def _decode_mount(value: Mapping[str, Any]) -> AllowedMount:
    mount = AllowedMount(**value)
    if (type(mount.source), type(mount.target), type(mount.readonly)) != (str, str, bool):
        raise ValueError(f"got {value!r} as a mount")
    return mount


ANY_USER = -1


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a box, as far as a policy has a say: its start, or one `exec` in it."""

    program: str
    env: tuple[str, ...] = ()
    user: int = 0
    tty: bool = False
    capabilities: tuple[str, ...] = ()
    mounts: tuple[AllowedMount, ...] = ()
    devices: tuple[str, ...] = ()
    network: Network = "none"
    writable_root: bool = False


def check_start(policy: Policy | None, request: Request) -> None:
    """Allow a box to be what `request` says.

    Raises:
        DeniedError: with the field that failed.
    """
    policy = _present(policy)
    _check_process(policy, request)
    _check_mounts(policy.mounts, request.mounts)
    _subset("devices", policy.devices, request.devices)
    if request.network not in ("none", policy.network):
        raise denied("network", f"a network ({request.network})", policy.network)
    if request.writable_root and not policy.writable_root:
        raise denied("writable_root", "a writable root", "false")


def check_exec(policy: Policy | None, request: Request) -> None:
    """Allow a program to be run in a box that runs already.

    Raises:
        DeniedError: with the field that failed.
    """
    policy = _present(policy)
    if not policy.exec:
        raise denied("exec", f"to run {request.program}", "false")
    _check_process(policy, request)


def check_copy(policy: Policy | None, field: Literal["copy_in", "copy_out"], path: str) -> None:
    """Allow a copy to or from `path`, which is absolute and normalized.

    Raises:
        DeniedError: with the field that failed.
    """
    allowed: tuple[str, ...] = getattr(_present(policy), field)
    for folder in allowed:
        inside = folder.rstrip("/") + "/"
        if folder and (path == folder or path.startswith(inside)):
            return
    raise denied(field, path, _words(allowed))


def denied(field: str, wanted: str, allowed: str) -> DeniedError:
    """The refusal of a field."""
    return DeniedError(
        f"the policy's field `{field}` does not allow {wanted}, it allows {allowed}",
        hint=f"add it to `{field}` of the policy, if it is meant to be allowed",
    )


def _present(policy: Policy | None) -> Policy:
    if policy is None:
        raise DeniedError("there is no policy, and none denies everything", hint="give it one")
    return policy


def _check_process(policy: Policy, request: Request) -> None:
    if ANY not in policy.programs and request.program not in policy.programs:
        raise denied("programs", request.program, _words(policy.programs))
    if ANY not in policy.env:
        _subset("env", policy.env, request.env)
    if ANY_USER not in policy.users and request.user not in policy.users:
        raise denied("users", f"user {request.user}", _words(map(str, policy.users)))
    if request.tty and not policy.tty:
        raise denied("tty", "a terminal", "false")
    _subset("capabilities", policy.capabilities, request.capabilities)


def _check_mounts(allowed: Sequence[AllowedMount], asked: Sequence[AllowedMount]) -> None:
    more = Counter(asked) - Counter(allowed)
    for mount in more:
        raise denied("mounts", _mount(mount), _words(_mount(each) for each in allowed))
    for mount in Counter(allowed) - Counter(asked):
        raise denied("mounts", f"to leave out {_mount(mount)}", "exactly what it names")


def _subset(field: str, allowed: Sequence[str], asked: Sequence[str]) -> None:
    for item in asked:
        if item not in allowed:
            raise denied(field, item, _words(allowed))


def _mount(mount: AllowedMount) -> str:
    return f"{mount.source}:{mount.target}:{'ro' if mount.readonly else 'rw'}"


def _words(items: Iterable[str]) -> str:
    return ", ".join(items) or "nothing"
