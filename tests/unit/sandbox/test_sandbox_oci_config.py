"""What is made of a box for an OCI runtime: the hardening is there, whatever is asked for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bedstone.errors import InvalidError
from bedstone.processes.calls import ALLOWED, CLONE_NAMESPACES, MODES, OPENS
from bedstone.sandbox.box import BoxLimits, BoxSpec, Exec, Mount
from bedstone.sandbox.oci.config import MASKED, Place, config, process, unapplied
from bedstone.sandbox.oci.driver import ContainerBoxes
from bedstone.sandbox.oci.seccomp import profile
from bedstone.sandbox.policy import AllowedMount, Policy

SPEC = BoxSpec(
    id="a",
    root="/srv/root",
    command=("/bin/sh",),
    policy=None,
    env={"PATH": "/bin"},
    limits=BoxLimits(memory=1 << 20, cpus=0.5, pids=9, io_write=1000, files=5000),
)
ALL = frozenset({"memory", "cpu", "pids", "io"})
PLACE = Place("/mnt", (("/mnt/0", "/data", True),), 5000, "g/a", ALL, (254, 0))


def test_the_defaults_harden() -> None:
    made = config(SPEC, PLACE)
    assert made["process"]["noNewPrivileges"] is True
    assert set(map(tuple, made["process"]["capabilities"].values())) == {()}
    assert set(MASKED) == set(made["linux"]["maskedPaths"])
    assert "/proc/sys" in made["linux"]["readonlyPaths"]
    assert made["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    kinds = {space["type"] for space in made["linux"]["namespaces"]}
    assert kinds == {"pid", "ipc", "uts", "mount", "cgroup", "network", "user"}
    assert all("path" not in space for space in made["linux"]["namespaces"])
    assert made["linux"]["resources"]["devices"] == [{"allow": False, "access": "rwm"}]
    mapping = [{"containerID": 0, "hostID": 5000, "size": 65536}]
    assert made["linux"]["uidMappings"] == made["linux"]["gidMappings"] == mapping
    sources = {mount["source"] for mount in made["mounts"] if mount["type"] == "bind"}
    assert sources == {"/mnt/0"}, "nothing of this machine but what was declared"
    data = next(mount for mount in made["mounts"] if mount["destination"] == "/data")
    assert {"ro", "nosuid", "nodev"} <= set(data["options"])


def test_what_writes_to_this_machine_leaves_no_program_with_rights() -> None:
    """Modes are looked at in boxes with a folder to write to, and in those alone."""
    shared = replace(SPEC, mounts=(Mount("/srv/data", "/data", readonly=False),))
    for spec, bounded in (
        (SPEC, False),
        (replace(SPEC, mounts=(Mount("/srv/data", "/data"),)), False),
        (replace(SPEC, mounts=(Mount("tmpfs", "/data", readonly=False, kind="tmpfs"),)), False),
        (shared, True),
        (replace(SPEC, write="direct"), True),
    ):
        calls = config(spec, PLACE)["linux"]["seccomp"]["syscalls"]
        free = {name for call in calls if not call.get("args") for name in call["names"]
                if call["action"] == "SCMP_ACT_ALLOW"}  # fmt: skip
        looked_at = {*MODES, *OPENS, "openat2"}
        assert free & looked_at == (set() if bounded else looked_at)
        rules = [(call["names"][0], rule["index"], rule["value"]) for call in calls
                 for rule in call.get("args", ()) if rule["value"] == 0o6000]  # fmt: skip
        assert len(rules) == (len(MODES) + len(OPENS) if bounded else 0)


def test_file_capabilities_are_not_left_on_this_machine(tmp_path: Path) -> None:
    """They are an extended attribute, whose name no filter of system calls can read."""
    mount = Mount("/srv/data", "/data", readonly=False)
    policy = Policy(
        programs=("*",),
        env=("*",),
        users=(-1,),
        capabilities=("CAP_SETFCAP",),
        mounts=(AllowedMount("/srv/data", "/data", readonly=False),),
        writable_root=True,
    )
    spec = replace(SPEC, mounts=(mount,), capabilities=("CAP_SETFCAP",), policy=policy)
    with pytest.raises(InvalidError, match="CAP_SETFCAP and a folder"):
        asyncio.run(ContainerBoxes(tmp_path).prepare(spec))


def test_limits_are_set_where_they_can_be_and_named_where_not() -> None:
    made = config(SPEC, PLACE)["linux"]["resources"]
    assert made["memory"] == {"limit": 1 << 20}
    assert made["cpu"] == {"quota": 50_000, "period": 100_000}
    assert made["pids"] == {"limit": 9}
    device = {"major": 254, "minor": 0, "rate": 1000}
    assert made["blockIO"] == {"throttleWriteBpsDevice": [device]}
    assert unapplied(SPEC.limits, PLACE) == ()
    bare = replace(PLACE, controllers=frozenset({"pids"}), device=None)
    assert set(config(SPEC, bare)["linux"]["resources"]) == {"pids", "devices"}
    assert [note.split()[0] for note in unapplied(SPEC.limits, bare)] == ["memory", "cpu", "io"]
    assert unapplied(BoxLimits(None, None, None, None), bare) == ()


def test_a_given_network_is_joined_and_not_changed() -> None:
    made = config(replace(SPEC, netns="/run/netns/x"), PLACE)["linux"]
    # The runtime is started in it, and makes none.
    assert "network" not in {each["type"] for each in made["namespaces"]}
    assert "sysctl" not in made
    assert "sysctl" in config(SPEC, PLACE)["linux"]


def test_a_user_that_is_not_root_keeps_its_capabilities() -> None:
    spec = replace(SPEC, capabilities=("CAP_CHOWN",))
    root = process(Exec(("a",), capabilities=("CAP_CHOWN",)), spec)
    assert root["capabilities"]["bounding"] == ["CAP_CHOWN"]
    assert "ambient" not in root["capabilities"]
    other = process(Exec(("a",), user=5, capabilities=("CAP_CHOWN",)), spec)
    assert other["capabilities"]["ambient"] == ["CAP_CHOWN"]
    assert other["user"] == {"uid": 5, "gid": 0, "additionalGids": []}


def test_open_files_stay_below_what_this_process_may_have() -> None:
    limits = process(Exec(("a",)), SPEC, 100)["rlimits"]
    assert limits == [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 100}]
    assert process(Exec(("a",)), SPEC)["rlimits"][0]["hard"] == 5000


@pytest.mark.parametrize(
    "call",
    [
        "add_key", "bpf", "chroot", "clock_settime", "clone", "clone3", "finit_module",
        "init_module", "io_uring_setup", "kexec_load", "keyctl", "mount", "open_by_handle_at",
        "open_tree", "perf_event_open", "pivot_root", "process_vm_writev", "ptrace", "reboot",
        "request_key", "setns", "settimeofday", "socket", "socketcall", "swapon", "umount2",
        "unshare", "userfaultfd", "vhangup",
    ],
)  # fmt: skip
def test_dangerous_calls_are_not_allowed_whole(call: str) -> None:
    assert call not in ALLOWED


def test_capabilities_bring_the_calls_that_they_are_for() -> None:
    plain, admin = profile((), "x86_64"), profile(("CAP_SYS_ADMIN",), "x86_64")
    assert "mount" not in plain["syscalls"][0]["names"]
    assert "mount" in admin["syscalls"][0]["names"]
    clone = [call for call in plain["syscalls"] if call["names"] == ["clone"]]
    assert clone[0]["args"][0]["value"] == CLONE_NAMESPACES
    sockets = [call for call in plain["syscalls"] if call["names"] == ["socket"]]
    assert {call["args"][0]["value"] for call in sockets} == {1, 2, 10, 16}
    assert plain["architectures"] == ["SCMP_ARCH_X86_64"], "no 32-bit calls, which are others"


def test_a_kernel_in_user_space_answers_to_clone3() -> None:
    """Its runtime refuses with EPERM whatever is asked for, and then no thread can be started."""

    def rule(*, sentry: bool) -> dict[str, Any]:
        calls = profile((), "x86_64", sentry=sentry)["syscalls"]
        return next(call for call in calls if call["names"] == ["clone3"])

    assert rule(sentry=True)["action"] == "SCMP_ACT_ALLOW"
    assert rule(sentry=False) | {"names": []} == {
        "names": [],
        "action": "SCMP_ACT_ERRNO",
        "errnoRet": 38,
    }
