"""No box runs as this machine's root for want of users of its own."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from bedstone.errors import UnavailableError
from bedstone.sandbox import mounts
from bedstone.sandbox.box import BoxSpec
from bedstone.sandbox.oci.driver import ContainerBoxes
from bedstone.sandbox.oci.machine import which
from bedstone.sandbox.oci.roots import build


@pytest.mark.skipif(os.geteuid() != 0, reason="without root a box has one user, who is not root")
@pytest.mark.skipif(not (which("runc") or which("crun")), reason="install runc or crun")
def test_a_home_that_others_cannot_reach_is_refused(tmp_path: Path) -> None:
    """A box's users, who are nobody, could not pass; and root is not taken instead."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(UnavailableError, match="is not open for others to pass"):
        asyncio.run(ContainerBoxes(closed / "home").open())


def test_a_root_without_other_owners_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one on a file system that idmapped mounts are not made for."""

    def refuse(*_: object, owner: int | None, size: int, readonly: bool) -> None:
        del size, readonly
        if owner is not None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(mounts, "view", refuse)
    (tmp_path / "root").mkdir()
    spec = BoxSpec(id="a", root=os.path.realpath(tmp_path / "root"), command=("x",), policy=None)
    with pytest.raises(UnavailableError, match="shows no other owners: Invalid argument") as caught:
        build(spec, tmp_path, 2_200_000_000, ())
    assert "ext4" in str(caught.value.hint)
