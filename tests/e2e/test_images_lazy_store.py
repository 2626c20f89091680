"""Lazy images in a store: made of an image that is there, mounted, kept and collected with it."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from bedstone.errors import NotFoundError, VerificationError
from bedstone.images.bundles import load
from bedstone.images.collection import collect
from bedstone.images.lazy import artifact
from bedstone.images.lazy.images import lazy_root
from bedstone.images.lazy.mounting import best
from bedstone.images.opening import Opened, open_image
from bedstone.images.reference import Reference
from bedstone.images.roots import prepare_root
from bedstone.images.store import ContentStore
from bedstone.testing.layers import entry, folder, hardlink, oci_layout, snapshot, symlink, tar

NAME = Reference.parse("localhost/it:1")
LAYERS = [
    tar([folder("bin"), entry("bin/tool", os.urandom(300_000)), symlink("sh", "bin/tool")]),
    tar([entry("other", b"text\n" * 1000, owner=(7, 8)), hardlink("same", "bin/tool")]),
]


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a test in a loop of its own."""

    @functools.wraps(test)
    def run(*given: Any, **named: Any) -> None:
        asyncio.run(test(*given, **named))

    return run


def stored(scratch: Path) -> tuple[ContentStore, Opened]:
    oci_layout(scratch / "layout", LAYERS, "1")
    store = ContentStore(scratch / "store")
    load(store, scratch / "layout", tag="1", name=NAME)
    return store, open_image(store, NAME)


def remembered(store: ContentStore, image: Opened) -> list[int]:
    return artifact.remembered(store, image, artifact.find(store, image).digest)


@pytest.mark.skipif(best()[0] == "plain", reason=best()[1])
@pytest.mark.parametrize("form", ["converted", "index"])
@in_loop
async def test_a_lazy_root_is_the_one_that_is_unpacked(tmp_path: Path, form: artifact.Form) -> None:
    store, image = stored(tmp_path)
    artifact.build(store, image, form)
    collect(store)
    plain, _ = prepare_root(store, image)
    async with lazy_root(store, image) as mounted:
        assert mounted.how != "plain"
        shown = await asyncio.to_thread(snapshot, mounted.target)
        assert shown == snapshot(plain)
    assert len(remembered(store, image)) == 3
    assert [*(store.root / "lazy").glob("run-*")] == []
    async with lazy_root(store, image) as mounted:
        assert await asyncio.to_thread((mounted.target / "other").read_bytes) == b"text\n" * 1000


@in_loop
async def test_an_image_without_a_lazy_one_is_unpacked_and_it_is_said_why(tmp_path: Path) -> None:
    store, image = stored(tmp_path)
    async with lazy_root(store, image) as mounted:
        assert mounted.how == "plain"
        assert "no lazy image" in mounted.reason
        assert (mounted.target / "other").read_bytes() == b"text\n" * 1000


def test_a_lazy_image_is_kept_with_its_image_and_goes_with_it(tmp_path: Path) -> None:
    store, image = stored(tmp_path)
    before = dict(store.blobs())
    built = artifact.build(store, image, "converted")
    assert collect(store).removed == ()
    lazy = artifact.load(store, artifact.find(store, image))
    assert all(store.has(blob.digest) for blob in lazy.table.blobs)
    artifact.remember(store, image.descriptor.digest, built.digest, [2, 0])
    assert remembered(store, image) == [2, 0]
    artifact.build(store, image, "index")
    assert remembered(store, image) == [], "the chunks of another form have other numbers"
    collect(store)
    assert len(dict(store.blobs())) < len(before) + 9
    store.unname(NAME)
    collect(store)
    assert dict(store.blobs()) == {}


def test_a_damaged_lazy_image_is_refused(tmp_path: Path) -> None:
    store, image = stored(tmp_path)
    with pytest.raises(NotFoundError):
        artifact.load(store, artifact.find(store, image))
    built = artifact.build(store, image, "converted")
    path = store.path(built.digest)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"lazy", b"lazx", 1))
    with pytest.raises(VerificationError):
        artifact.load(store, artifact.find(store, image))
