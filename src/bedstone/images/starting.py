"""From an image's name to a root that boxes can use, by the shortest way.

1. A root that was unpacked before is used as it is.
2. A lazy image is mounted: the one that was made here, else the one beside the image at its
   registry, of which only documents and metadata are fetched.
3. What is missing is pulled, and the image unpacked; why, is said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bedstone.errors import InvalidError, NotFoundError, UnavailableError
from bedstone.images.admission import admit
from bedstone.images.lazy.artifact import is_encrypted, unsealed
from bedstone.images.lazy.images import root_of
from bedstone.images.lazy.mounting import best
from bedstone.images.lazy.remote import Ignored, adopt
from bedstone.images.models import Descriptor, Manifest
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
        notes: why it was not mounted lazily, if it was not; what beside it is not believed.
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
    notes: list[str] = []
    try:
        image = open_image(store, reference)
    except NotFoundError:
        await _pull(store, reference, tell, notes, lazy=lazy)
        image = open_image(store, reference)
    lease = await asyncio.to_thread(store.lease, user)
    await asyncio.to_thread(lease.add, image.root.digest, image.descriptor.digest)
    lazy = is_encrypted(image) or (lazy and not root_path(store, image.descriptor.digest).is_dir())
    if lazy:
        await asyncio.to_thread(admit, store, reference, image.root.digest)
    try:
        return await _root(store, image, user, notes, lazy=lazy)
    except NotFoundError as error:
        if is_encrypted(image):
            raise UnavailableError("; ".join([error.message, *notes])) from error
        # A layer: it was started lazily before, and cannot be now.
        await _pull(store, reference, tell, notes, lazy=False)
        return await _root(store, image, user, notes, lazy=lazy)


async def _root(
    store: ContentStore, image: Opened, user: str, notes: Sequence[str], *, lazy: bool
) -> Started:
    if not lazy:
        path, _ = await asyncio.to_thread(prepare_root, store, image)
        return Started(image, path, tuple(notes))
    mounted = await root_of(store, image, user)
    image = await asyncio.to_thread(unsealed, store, image)
    said = [f"unpacked whole: {mounted.reason}"] if mounted.how == "plain" else []
    return Started(image, mounted.target, (*notes, *said))


async def _pull(
    store: ContentStore,
    reference: Reference,
    tell: Callable[[str], None],
    notes: list[str],
    *,
    lazy: bool,
) -> None:
    """Fetch an image; only its documents, if a lazy image beside it can be mounted here."""

    def ignored(one: Ignored) -> None:
        notes.append(f"not used: {one.type} {one.digest[:19]}: {one.reason}")

    tell(f"pulling {reference.familiar}")
    async with RegistryClient() as client:

        async def leave(descriptor: Descriptor, manifest: Manifest) -> bool:
            try:
                return await adopt(store, client, reference, descriptor, manifest, ignored)
            except (InvalidError, UnavailableError) as error:
                notes.append(f"no lazy image was looked for: {error.message}")
                return False

        may = lazy and best()[0] != "plain"
        await pull(store, client, reference, leave=leave if may else None)
