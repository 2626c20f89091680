"""From an image's name to a root that boxes can use, by the shortest way.

1. A root that was unpacked before is used as it is.
2. A lazy image is mounted: the one that was made here, else the one beside the image at its
   registry, of which only documents and metadata are fetched.
3. What is missing is pulled, and the image unpacked; why, is said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bedstone.errors import NotFoundError
from bedstone.images.admission import admit
from bedstone.images.lazy.images import root_of
from bedstone.images.opening import Opened, open_image
from bedstone.images.pulling import pull
from bedstone.images.reference import Reference
from bedstone.images.registry import RegistryClient
from bedstone.images.roots import prepare_root, root_path
from bedstone.images.store import ContentStore


@dataclass(frozen=True, slots=True)
class Started:
    """A root in use.

    Attributes:
        image: whose it is.
        path: its directory, which nobody writes to.
        notes: why it was not mounted lazily, if it was not.
    """

    image: Opened
    path: Path
    notes: tuple[str, ...] = ()


async def start_root(
    store: ContentStore,
    reference: Reference,
    user: str,
    *,
    lazy: bool = True,
    tell: Callable[[str], None] = lambda _text: None,
) -> Started:
    """The root of an image, for a user, until that releases its lease.

    Args:
        store: where images are kept.
        reference: the image.
        user: the name of the lease that keeps it.
        lazy: whether it may be mounted before all of it is here.
        tell: is told what is waited for.

    Raises:
        DeniedError, VerificationError: the policy does not admit the image, or content is not what
            its digest says.
        NotFoundError, InvalidError, UnavailableError: it cannot be had.
    """
    try:
        image = open_image(store, reference)
    except NotFoundError:
        await _pull(store, reference, tell)
        image = open_image(store, reference)
    lease = await asyncio.to_thread(store.lease, user)
    await asyncio.to_thread(lease.add, image.root.digest, image.descriptor.digest)
    lazy = lazy and not root_path(store, image.descriptor.digest).is_dir()
    if lazy:
        await asyncio.to_thread(admit, store, reference, image.root.digest)
    try:
        return await _root(store, image, user, lazy=lazy)
    except NotFoundError:  # a layer: it was started lazily before, and cannot be now
        await _pull(store, reference, tell)
        return await _root(store, image, user, lazy=lazy)


async def _root(store: ContentStore, image: Opened, user: str, *, lazy: bool) -> Started:
    if not lazy:
        path, _ = await asyncio.to_thread(prepare_root, store, image)
        return Started(image, path)
    mounted = await root_of(store, image, user)
    notes = (f"unpacked whole: {mounted.reason}",) if mounted.how == "plain" else ()
    return Started(image, mounted.target, notes)


async def _pull(store: ContentStore, reference: Reference, tell: Callable[[str], None]) -> None:
    tell(f"pulling {reference.familiar}")
    async with RegistryClient() as client:
        await pull(store, client, reference)
