"""Lazy roots of images in a store, for as long as a context lasts."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from bedstone.errors import InvalidError, NotFoundError, UnavailableError, VerificationError
from bedstone.images.admission import admit
from bedstone.images.lazy.artifact import is_encrypted
from bedstone.images.lazy.holding import hold, sweep
from bedstone.images.lazy.mounting import How, Mounted
from bedstone.images.opening import Opened
from bedstone.images.roots import prepare_root
from bedstone.images.store import ContentStore


@asynccontextmanager
async def lazy_root(
    store: ContentStore,
    image: Opened,
    *,
    ways: Sequence[How] = ("erofs", "loop", "plain"),
) -> AsyncIterator[Mounted]:
    """An image's root, read-only, for as long as the context lasts.

    With a lazy image attached, its tree is mounted at once, and content comes from the store, else
    by ranges from the image's repository. What was touched is kept, and read ahead the next time.
    Otherwise, or where nothing can be mounted, the image is unpacked, and `Mounted.target` is the
    root that all who run it share. `Mounted.reason` says why.

    Args:
        store: has the image's documents; its layers need not be there if a lazy image is.
        image: whose root.
        ways: those that may be used.

    Raises:
        DeniedError, VerificationError: the policy of images does not admit it.
        UnavailableError: no way that may be used works.
        NotFoundError: the image must be unpacked, and a layer is not in the store.
    """
    await asyncio.to_thread(admit, store, image.reference, image.root.digest)
    user = f"lazy-root-{secrets.token_hex(8)}"
    lease = await asyncio.to_thread(store.lease, user)
    try:
        await asyncio.to_thread(lease.add, image.root.digest, image.descriptor.digest)
        yield await root_of(store, image, user, ways=ways)
    finally:
        lease.release()
        await asyncio.to_thread(sweep, store)


async def root_of(
    store: ContentStore,
    image: Opened,
    user: str,
    *,
    ways: Sequence[How] = ("erofs", "loop", "plain"),
) -> Mounted:
    """The root of an admitted image for a user (`holding.hold`), unpacked if it cannot be lazy.

    Raises: as `lazy_root`.
    """
    try:
        return await hold(store, image, user, ways=ways)
    except (NotFoundError, UnavailableError, InvalidError, VerificationError) as error:
        if "plain" not in ways or is_encrypted(image):
            raise
        root, _ = await asyncio.to_thread(prepare_root, store, image)
        return Mounted(root, "plain", error.message)
