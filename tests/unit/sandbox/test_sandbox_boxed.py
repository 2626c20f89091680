"""Sandboxes that are boxes, where a driver cannot work or need not."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Literal, cast

import pytest

from bedstone.errors import UnavailableError
from bedstone.model.resources import Instance
from bedstone.sandbox.boxed import BoxSandbox, clear_away, gvisor, prefix
from bedstone.sandbox.ports import Ports
from bedstone.sandbox.protocol import Host, Processes

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


def test_without_networks_of_their_own_there_are_no_boxes(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="isolation gvisor needs networks of its own"):
        asyncio.run(sandbox(tmp_path, "never").allot(WEB, [], [], None))
