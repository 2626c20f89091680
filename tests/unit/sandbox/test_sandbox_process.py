"""The process sandbox where its files cannot be written: an error that its caller expects."""

import os
from pathlib import Path
from typing import Any, cast

import pytest

from bedstone.errors import InvalidError, UnavailableError
from bedstone.model.resources import Address, Instance, Plumbing, Revision
from bedstone.model.spec import WorkloadSpec
from bedstone.sandbox.ports import Ports
from bedstone.sandbox.process import ProcessSandbox, user_id
from bedstone.sandbox.protocol import Host, Unit


def test_what_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    """Any other error would end the one task that starts the instance, in silence."""
    blocked = tmp_path / "run"
    blocked.write_text("a file where a directory belongs")
    host = Host(cast("Any", None), Ports(21000, 31000), "127.0.0.1", blocked, lambda *_: ())
    address = Address(host="127.0.0.1", port=1)
    unit = Unit(
        instance=Instance(app="bank", workload="web", name="w1", revision="r", node="n"),
        revision=Revision(
            app="bank",
            workload="web",
            name="r",
            spec=WorkloadSpec(command=("x",)),
            root=str(tmp_path),
        ),
        plumbing=Plumbing(app=address, inbound=address, outbound=address),
        databases={},
        log=tmp_path / "log",
    )
    with pytest.raises(UnavailableError, match=r"cannot write .*run"):
        ProcessSandbox(host).specification(unit)


def test_the_same_app_in_two_domains_of_a_machine_is_two_users(tmp_path: Path) -> None:
    """One user could read the key and the environment of the other domain's instance."""
    instance = Instance(app="bank", workload="web", name="w1", revision="r", node="n")
    one, other = user_id(instance, tmp_path / "one"), user_id(instance, tmp_path / "other")
    assert one != other
    assert one == user_id(instance, tmp_path / "one"), "the same after a restart"


@pytest.mark.parametrize("program", ["/bin/true", "./serve", "bin/serve"])
def test_a_program_may_be_a_path(tmp_path: Path, program: str) -> None:
    """An error of another kind would end the agent, and with it every instance of the node."""
    host = Host(cast("Any", None), Ports(21000, 31000), "127.0.0.1", tmp_path, lambda *_: ())
    address = Address(host="127.0.0.1", port=1)
    unit = Unit(
        instance=Instance(app="bank", workload="web", name="w1", revision="r", node="n"),
        revision=Revision(
            app="bank",
            workload="web",
            name="r",
            spec=WorkloadSpec(command=(program, "-v")),
            root=str(tmp_path),
        ),
        plumbing=Plumbing(app=address, inbound=address, outbound=address),
    )
    spec, _ = ProcessSandbox(host).specification(unit)
    assert spec.argv == (program, "-v")


def test_where_a_program_may_write_is_where_its_manifest_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its source, its own and temporary folders, its user's cache, and what `writes` names."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TMPDIR", raising=False)
    (tmp_path / "app" / "web").mkdir(parents=True)
    private = tmp_path / "state"
    host = Host(
        cast("Any", None),
        Ports(21000, 31000),
        "127.0.0.1",
        tmp_path / "run",
        lambda *_: (),
        private=(private,),
        boxes=tmp_path / "state" / "boxes",
    )
    address = Address(host="127.0.0.1", port=1)

    def unit(*writes: str) -> Unit:
        spec = WorkloadSpec(command=("x",), path="web", writes=writes)
        root = str(tmp_path / "app")
        return Unit(
            instance=Instance(app="bank", workload="web", name="w1", revision="r", node="n"),
            revision=Revision(app="bank", workload="web", name="r", spec=spec, root=root),
            plumbing=Plumbing(app=address, inbound=address, outbound=address),
        )

    with pytest.raises(InvalidError, match=r"`writes` names .*/home/data, which does not exist"):
        ProcessSandbox(host).specification(unit("~/data"))
    for path in (tmp_path / "home" / "data", tmp_path / "app" / "shared"):
        path.mkdir(parents=True)
    spec, _ = ProcessSandbox(host).specification(unit("~/data", "shared"))
    kept = spec.confinement
    assert kept is not None
    found = {path.removeprefix(str(tmp_path)) for path in kept.writable}
    own = {path for path in found if path.startswith("/run/instances/")}
    assert len(own) == 1
    assert found - own == {
        *("/app/web", "/home/data", "/app/shared", "/home/.cache"),
        *("/tmp", "/var/tmp", "/dev/shm"),
    }
    if os.geteuid() == 0:
        places = (str(private), str(tmp_path / "run"), "/run/bedstone", "/run/user/0")
        assert sorted(kept.hidden) == sorted(places), "of this run and all others"
        assert str(tmp_path / "app" / "web") in kept.visible
