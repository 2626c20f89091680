"""The images of a machine, as its sandboxes have them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bedstone.boxes.roots import lease_name
from bedstone.errors import InvalidError
from bedstone.images.store import ContentStore
from bedstone.node.images import MachineImages


def test_a_name_of_an_image_is_no_directory(tmp_path: Path) -> None:
    """Whatever has checked it before: a directory is past every policy of images."""
    for name in (str(tmp_path), "../..", "."):
        with pytest.raises(InvalidError):
            asyncio.run(MachineImages().find(name, "a", lambda _text: None, lazy=False))


def test_holders_are_let_go_by_name_and_by_how_they_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEDSTONE_HOME", str(tmp_path))
    store = ContentStore(tmp_path / "images")
    for name in ("run-a", "run-b", "run-b-1", "other"):
        store.lease(lease_name(name))
    store.lease("run-b pulls")

    async def let_go() -> None:
        await MachineImages().let_go("run-a")
        await MachineImages().let_go_all("run-b")

    asyncio.run(let_go())
    assert [lease.name for lease in store.leases()] == [lease_name("other"), "run-b pulls"]
