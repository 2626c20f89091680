"""Sandboxes that are boxes, where a driver cannot work or need not."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Literal, cast

import pytest

from bedstone.errors import UnavailableError
from bedstone.model.resources import Address, Instance, Plumbing, Revision
from bedstone.model.spec import WorkloadSpec
from bedstone.sandbox.boxed import BoxSandbox, clear_away, gvisor, prefix
from bedstone.sandbox.ports import Ports
from bedstone.sandbox.protocol import Host, Images, Processes, Unit

WEB = Instance(app="shop", workload="web", name="web-1", revision="r", node="here")


def sandbox(folder: Path, enforce: Literal["auto", "never"] = "auto") -> BoxSandbox:
    """Of gVisor, with a home of its own; the supervisor is not asked."""
    host = Host(
        cast("Processes", None),
        Ports(1, 2),
        "127.0.0.1",
        folder / "run",
        lambda *_: (),
        enforce,
        boxes=folder / "boxes",
    )
    return gvisor(host)


def left(folder: Path, isolation: str) -> Path:
    """What is left of a box of an earlier run."""
    box = folder / "boxes" / f"{prefix(folder / 'run')}web-1"
    box.mkdir(parents=True)
    (box / "isolation").write_text(isolation)
    return box


def test_a_driver_is_opened_for_its_own_leftovers_only(tmp_path: Path) -> None:
    """To open one may take seconds, in which an agent that comes back would look dead."""
    left(tmp_path, "container")
    asyncio.run(sandbox(tmp_path).open())
    assert not (tmp_path / "boxes/.state").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="without root, nothing else is missing first")
def test_what_is_missing_is_named_and_nothing_is_run_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bedstone.sandbox.oci.driver.which", lambda _name: None)
    with pytest.raises(UnavailableError) as caught:
        asyncio.run(sandbox(tmp_path).allot(WEB, [], [], None))
    assert caught.value.message == (
        "no isolation gvisor here: runsc is not installed; install it (Debian: runsc)"
    )
    box = left(tmp_path, "gvisor")
    failures = asyncio.run(clear_away(tmp_path / "boxes", tmp_path / "run", None))
    assert failures == ["boxes of isolation gvisor stay: runsc is not installed"]
    assert box.exists(), "it is not forgotten"


class Held:
    """Images that are found, and who holds them."""

    def __init__(self) -> None:
        self.holders: set[str] = set()

    async def find(self, image: str, holder: str, tell: object, *, lazy: bool) -> str:
        self.holders.add(holder)
        return image

    async def let_go(self, holder: str) -> None:
        self.holders.discard(holder)

    async def let_go_all(self, beginning: str) -> None:
        self.holders -= {holder for holder in self.holders if holder.startswith(beginning)}


class NoProcesses:
    """A supervisor that runs nothing."""

    async def forget(self, name: str) -> None:
        """There is none."""

    async def delete_netns(self, name: str) -> None:
        """There is none."""


def test_an_image_fetched_for_a_box_that_is_never_made_is_let_go(tmp_path: Path) -> None:
    """With the instance, and whatever is left with the run; what others hold stays."""
    images = Held()
    host = Host(
        cast("Processes", NoProcesses()),
        Ports(1, 2),
        "127.0.0.1",
        tmp_path / "run",
        lambda *_: (),
        boxes=tmp_path / "boxes",
        images=cast("Images", images),
    )
    spec = WorkloadSpec.model_validate({"image": "x:1"})
    revision = Revision(app="shop", workload="web", name="r", spec=spec, root=str(tmp_path))
    there = Address(host="127.0.0.1", port=1)
    unit = Unit(WEB, revision, Plumbing(app=there, inbound=there, outbound=there))

    async def fetch() -> None:
        await gvisor(host).fetch(unit, lambda _text: None)
        (own,) = images.holders
        beside = f"{prefix(tmp_path / 'run')}web-2"
        images.holders |= {f"{own}-abcdef", beside, "others"}
        await gvisor(host).release(WEB, None)
        assert images.holders == {beside, "others"}
        assert await clear_away(tmp_path / "boxes", tmp_path / "run", host.images) == []
        assert images.holders == {"others"}

    asyncio.run(fetch())


def test_without_networks_of_their_own_there_are_no_boxes(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="isolation gvisor needs networks of its own"):
        asyncio.run(sandbox(tmp_path, "never").allot(WEB, [], [], None))
