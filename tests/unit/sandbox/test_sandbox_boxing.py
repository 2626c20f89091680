"""From an instance to its box: exactly what it declares, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from bedstone.errors import DeniedError, InvalidError
from bedstone.model.resources import Address, Instance, Plumbing, Revision
from bedstone.model.spec import WorkloadSpec
from bedstone.processes.spec import ProcessInfo
from bedstone.sandbox.box import Exec
from bedstone.sandbox.boxed import describe
from bedstone.sandbox.boxing import DISK, PIDS, Plan, plan, probe_program, user_of
from bedstone.sandbox.policy import check_exec, check_start
from bedstone.sandbox.ports import Ports
from bedstone.sandbox.protocol import Host, ImageRoot, Images, Processes, Unit


@dataclass(frozen=True)
class Root:
    """An image that is here."""

    path: Path
    entrypoint: tuple[str, ...] = ("/start",)
    command: tuple[str, ...] = ("serve",)
    env: Mapping[str, str] = field(default_factory=lambda: {"PATH": "/bin", "A": "image"})
    cwd: str = "/opt/"
    user: str = "7"
    image: str = "x:1"
    notes: tuple[str, ...] = ()
    digest: str = "sha256:0"


class OneUser:
    """Images of which all have one user."""

    def user(self, root: ImageRoot) -> tuple[int, int]:
        return int(root.user), int(root.user)


def made(folder: Path, **declared: Any) -> Plan:
    """The plan of an instance of a folder `app` with those declarations."""
    (folder / "app").mkdir(exist_ok=True)
    host, unit = parts(folder, **declared)
    image = Root(folder) if "image" in declared else None
    return plan(host, unit, "box-1", folder, image, None, {"a": "b"})


def parts(folder: Path, host: str = "10.107.0.1", **declared: Any) -> tuple[Host, Unit]:
    spec = WorkloadSpec.model_validate(declared)
    inside = Address(host=host, port=15001, netns="/run/netns/x")
    app = Address(host="127.0.0.1" if host == "127.0.0.1" else "10.107.0.2", port=8080)
    unit = Unit(
        Instance(app="shop", workload="web", name="web-1", revision="r", node="here"),
        Revision(app="shop", workload="web", name="r", spec=spec, root=str(folder)),
        Plumbing(app=app.model_copy(update={"netns": inside.netns}), inbound=app, outbound=inside),
        identity=("KEY", "CHAIN", "BUNDLE"),
    )
    serve = lambda python, target, address, port: (python, target, f"{address}:{port}")  # noqa: E731
    return (
        Host(
            cast("Processes", None),
            Ports(1, 2),
            "127.0.0.1",
            folder / "run",
            serve,
            private=(folder / "app/.bedstone",),
            images=cast("Images", OneUser()),
        ),
        unit,
    )


def test_the_policy_allows_what_is_declared_and_denies_the_rest(tmp_path: Path) -> None:
    """A denial names the field of the policy."""
    spec = made(tmp_path, path="app", command=("sh", "-c", "x"), ready={"command": ("true",)}).spec
    check_start(spec.policy, spec.request())
    check_exec(spec.policy, Exec(("/usr/bin/true",), user=64000).request(spec))
    for program, name in (
        (Exec(("/usr/bin/id",), user=64000), "programs"),
        (Exec(("/usr/bin/true",), user=0), "users"),
        (Exec(("/usr/bin/true",), {"LD_PRELOAD": "x"}, user=64000), "env"),
        (Exec(("/usr/bin/true",), user=64000, capabilities=("CAP_KILL",)), "capabilities"),
    ):
        with pytest.raises(DeniedError, match=f"field `{name}`"):
            check_exec(spec.policy, program.request(spec))
    assert spec.policy is not None
    assert (spec.policy.copy_in, spec.policy.copy_out, spec.policy.tty) == ((), (), False)
    assert not spec.policy.writable_root


def test_without_a_probe_nothing_is_run_in_it(tmp_path: Path) -> None:
    spec = made(tmp_path, path="app", command=("sh",)).spec
    with pytest.raises(DeniedError, match="field `exec`"):
        check_exec(spec.policy, Exec(("/usr/bin/sh",), user=64000).request(spec))


def test_a_program_of_this_machine_is_hardened(tmp_path: Path) -> None:
    plain = made(tmp_path, path="app", run="web:app", python="/usr/bin/python3")
    spec = plain.spec
    assert (spec.write, spec.user, spec.capabilities, spec.init) == ("readonly", 64000, (), True)
    assert spec.command[-2:] == ("0.0.0.0:8080", "--grace=9"), "the proxy is beside the box"
    assert spec.env["HOME"] == spec.env["TMPDIR"] == "/tmp"
    assert "10.107.0.1" in spec.env["NO_PROXY"]
    assert spec.env["GRPC_XDS_BOOTSTRAP"] == "/run/bedstone/grpc-xds.json"
    assert (spec.limits.memory, spec.limits.pids, spec.netns) == (None, PIDS, "/run/netns/x")
    assert str(tmp_path / "app") in {mount.target for mount in spec.mounts}
    assert str(tmp_path) not in {mount.source for mount in spec.mounts}
    with_limits = made(
        tmp_path, path="app", command=("sh",), limits={"memory": 1 << 28, "processes": 9, "cpu": 2}
    ).spec.limits
    assert (with_limits.memory, with_limits.pids, with_limits.cpus) == (1 << 28, 9, 2)


def test_packages_do_not_choose_what_it_sees(tmp_path: Path) -> None:
    """Files of its environment add folders of the app alone, and what they name is said."""
    venv, library = tmp_path / ".venv", tmp_path / "libraries/common"
    packages = venv / "lib/python3.11/site-packages"
    for folder in (venv / "bin", packages, library):
        folder.mkdir(parents=True)
    (venv / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (venv / "bin/python").symlink_to("/usr/bin/python3")
    (packages / "added.pth").write_text(f"{library}\n/etc\n")
    found = made(tmp_path, path="app", run="web:app")
    shown = {mount.source for mount in found.spec.mounts}
    assert {str(library), str(venv)} <= shown
    assert "/etc" not in shown
    assert [note.split(",")[0] for note in found.notes[1:]] == [
        f"shown: {library}", "left out: /etc"
    ]  # fmt: skip


def test_boxes_and_sockets_are_hidden_also_in_its_own_folder(tmp_path: Path) -> None:
    host, unit = parts(tmp_path, path="app", command=("sh",))
    boxes, run = tmp_path / "app/boxes", tmp_path / "app/run"
    boxes.mkdir(parents=True)
    run.mkdir()
    host = replace(host, boxes=boxes, run_dir=run)
    spec = plan(host, unit, "b", tmp_path, None, None, {}).spec
    hidden = {mount.target for mount in spec.mounts if mount.kind == "tmpfs"}
    assert {str(boxes), str(run)} <= hidden
    with pytest.raises(InvalidError, match="which no box sees"):
        plan(replace(host, boxes=tmp_path), unit, "b", tmp_path, None, None, {})


def test_an_image_without_its_program_is_not_started(tmp_path: Path) -> None:
    """The first process would end with 127, and nobody would know of what."""
    (tmp_path / "opt/run").mkdir(parents=True)
    (tmp_path / "opt/data").touch(mode=0o644)
    (tmp_path / "opt/out").symlink_to("/bin/sh")
    for program in ("/bin/nope", "nope", "./nope", "out", "/opt/out", "/opt/data/x"):
        with pytest.raises(InvalidError, match=f"program not found in the image: {program}"):
            started(tmp_path, program)
    for program in ("/opt/data", "./data", "/opt/run"):
        with pytest.raises(InvalidError, match="no program that can be executed"):
            started(tmp_path, program)
    (tmp_path / "opt/data").chmod(0o755)
    for program in ("/opt/data", "./data", "/proc/self/exe"):
        assert started(tmp_path, program) == (program,)
    for line, named in (("#!/bin/sh\r\n", r"'/bin/sh\r'"), ("#! /no\t-x\n", "'/no'")):
        (tmp_path / "opt/data").write_text(line)
        with pytest.raises(InvalidError, match=f"run by {re.escape(named)}, which is not in it"):
            started(tmp_path, "./data")
    (tmp_path / "opt/data").write_text("#!/opt/tool -x\n")
    (tmp_path / "opt/tool").touch(mode=0o755)
    assert started(tmp_path, "./data") == ("./data",)


def started(folder: Path, program: str) -> tuple[str, ...]:
    """The command of an image that has no entry point."""
    host, unit = parts(folder, image="x:1", command=(program,))
    image = Root(folder, entrypoint=())
    return plan(host, unit, "b", folder, image, None, {}).spec.command


def test_an_image_is_run_as_its_author_and_the_manifest_say(tmp_path: Path) -> None:
    (tmp_path / "start").touch(mode=0o755)
    spec = made(tmp_path, image="x:1", env={"B": "own"}).spec
    assert spec.command == ("/start", "serve")
    assert (spec.user, spec.cwd, spec.write, spec.limits.disk) == (7, "/opt", "overlay", DISK)
    assert (spec.env["A"], spec.env["B"], spec.env["PATH"]) == ("image", "own", "/bin")
    assert "HOME" not in spec.env, "this machine's is none of it"
    assert [mount.target for mount in spec.mounts] == ["/run/bedstone"]
    declared = made(tmp_path, image="x:1", env={"A": "own", "PATH": "/p"}).spec
    assert (declared.env["A"], declared.env["PATH"]) == ("own", "/p")


def test_a_command_of_the_manifest_comes_after_the_entry_point(tmp_path: Path) -> None:
    (tmp_path / "start").touch(mode=0o755)
    host, unit = parts(tmp_path, image="x:1", command=("migrate", "now"))
    spec = plan(host, unit, "b", tmp_path, Root(tmp_path), None, {}).spec
    assert spec.command == ("/start", "migrate", "now")
    nothing = Root(tmp_path, entrypoint=(), command=())
    host, unit = parts(tmp_path, image="x:1")
    with pytest.raises(InvalidError, match="names no command"):
        plan(host, unit, "b", tmp_path, nothing, None, {})


def test_closed_source_is_run_by_its_owner_as_the_box_sees_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "code.py").touch(mode=0o600)
    owner = tmp_path.stat()
    uid, gid, why = user_of(tmp_path)
    assert (uid, gid) == (owner.st_uid, owner.st_gid)
    assert f"{tmp_path}/code.py is not open to others" in why
    (tmp_path / "code.py").chmod(0o644)
    assert user_of(tmp_path) == (64000, 64000, "")


def test_a_probe_runs_as_the_box_does(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    host, unit = parts(tmp_path, path="app", command=("sh",), ready={"command": ("true",)})
    spec = plan(host, unit, "b", tmp_path, None, None, {}).spec
    program = probe_program(host, unit, spec, ("true",))
    assert program.command[0] in ("/usr/bin/true", "/bin/true")
    check_exec(spec.policy, program.request(spec))


def test_a_signal_is_named_as_for_any_process() -> None:
    def ended(code: int) -> str:
        return describe(ProcessInfo("a", "exited", "", pid=1, exit_code=code))

    assert ended(137) == "killed by SIGKILL"
    assert ended(143) == "killed by SIGTERM"
    assert ended(3) == "exit status 3"
    assert ended(255) == "exit status 255"
