"""Lazy roots of images in a store: what those who run images call."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from bedstone.errors import NotFoundError, UnavailableError
from bedstone.images.admission import admit
from bedstone.images.lazy import artifact
from bedstone.images.lazy.mounting import How, Mounted, mount
from bedstone.images.lazy.spec import Origin, Spec
from bedstone.images.opening import Opened
from bedstone.images.roots import prepare_root
from bedstone.images.store import ContentStore


@asynccontextmanager
async def lazy_root(
    store: ContentStore,
    image: Opened,
    target: Path,
    *,
    ways: Sequence[How] = ("erofs", "loop", "plain"),
) -> AsyncIterator[Mounted]:
    """An image's root at `target`, read-only, for as long as the context lasts.

    With a lazy image attached (`bedstone.images.lazy.artifact.build`), its tree is mounted at once,
    and content comes from the store, else by ranges from the image's repository. What was touched
    is kept, and read ahead the next time. Otherwise, or where nothing can be mounted, the image is
    unpacked, and `Mounted.target` is the root that all who run it share. `Mounted.reason` says why.

    Args:
        store: has the image's documents; its layers need not be there if a lazy image is.
        image: whose root.
        target: a directory that exists; nothing is in it if the result is plain.
        ways: those that may be used.

    Raises:
        DeniedError, VerificationError: the policy of images does not admit it.
        UnavailableError: no way that may be used works.
        NotFoundError: the image must be unpacked, and a layer is not in the store.
    """
    await asyncio.to_thread(admit, store, image.reference, image.root.digest)
    directory = store.root / "lazy" / f"run-{secrets.token_hex(6)}"
    with store.lease(f"lazy-root-{directory.name}") as lease:
        lease.add(image.root.digest, image.descriptor.digest)
        mounted, unpacked = None, ""
        try:
            lazy = await asyncio.to_thread(artifact.load, store, image)
        except NotFoundError as error:
            unpacked = error.message
        if not unpacked:
            spec = Spec(
                directory,
                store.root / "chunks",
                [Origin(directory=str(store.root / "blobs")), Origin(image=str(image.reference))],
                prefetch=artifact.remembered(store, image),
            )
            mountable = tuple(way for way in ways if way != "plain")
            try:
                mounted = await mount(lazy, spec, target, _refuse, ways=mountable)
            except UnavailableError as error:
                unpacked = error.message
        try:
            if mounted is None:
                if "plain" not in ways:
                    raise UnavailableError(unpacked)
                root, _ = await asyncio.to_thread(prepare_root, store, image)
                mounted = Mounted(root, "plain", unpacked)
            yield mounted
        finally:
            if mounted is not None:
                await mounted.close()
                if touched := mounted.touched():
                    with contextlib.suppress(NotFoundError):
                        await asyncio.to_thread(artifact.remember, store, image, touched)
            shutil.rmtree(directory, ignore_errors=True)


async def _refuse(target: Path) -> None:
    raise UnavailableError(f"nothing may be unpacked into {target}")
