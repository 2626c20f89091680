"""Pulling an image into the store: all of it, or nothing under its name."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bedstone.errors import ConflictError, InvalidError
from bedstone.images import admission, platforms
from bedstone.images.leases import Lease
from bedstone.images.models import (
    CONFIG_BYTES,
    CONFIGS,
    DOCUMENT_BYTES,
    INDEXES,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    parse,
    parse_manifest,
)
from bedstone.images.opening import by_digest
from bedstone.images.reference import Reference
from bedstone.images.registry import RegistryClient
from bedstone.images.store import ContentStore

if TYPE_CHECKING:
    from bedstone.images.signatures import Signed

_LEASE_SECONDS = 86400.0
_LOOK_AGAIN = 0.2
_DEPTH = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """What an image may weigh, in bytes of its layers as they are transferred."""

    layer_bytes: int = 32 << 30
    image_bytes: int = 128 << 30


@dataclass(frozen=True, slots=True)
class Resolved:
    """It is known what the image consists of: content to have, the store's included."""

    content: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Advanced:
    """So many bytes of some content are there."""

    digest: str
    done: int


@dataclass(frozen=True, slots=True)
class Arrived:
    """Content is there, whole; `cached` if it was before."""

    digest: str
    cached: bool


Event = Resolved | Advanced | Arrived


@dataclass(frozen=True, slots=True)
class Image:
    """An image of the store.

    Args:
        reference: its name.
        root: the descriptor that the name means, of an index or a manifest.
        manifests: of the platforms that were asked for: each descriptor and document.
    """

    reference: Reference
    root: Descriptor
    manifests: tuple[tuple[Descriptor, Manifest], ...]


async def pull(
    store: ContentStore,
    client: RegistryClient,
    reference: Reference,
    *,
    platform: Platform | None = None,
    every_platform: bool = False,
    parallel: int = 4,
    limits: Limits | None = None,
    admit: Callable[[Descriptor], Awaitable[None]] | None = None,
    leave: Callable[[Descriptor, Manifest], Awaitable[bool]] | None = None,
    tell: Callable[[Event], None] = lambda _: None,
) -> Image:
    """Fetch what is missing of an image, verify it and name it.

    The policy beside the store (`bedstone.images.admission`) must admit it.

    A pull that is cancelled or killed leaves what it has fetched; the next one goes on from there.

    Args:
        store: where to.
        client: where from.
        reference: the image.
        platform: which of several images of that name; this machine's by default.
        every_platform: fetch all of them instead.
        parallel: how many downloads at once.
        limits: what it may weigh.
        admit: raises what the caller has against it, before anything but its document is fetched.
        leave: whether the layers of an image may stay where they are; asked once it is admitted.
        tell: is told what happens; must not block.

    Raises:
        NotFoundError: the registry has no such image, or none for the platform.
        DeniedError: it refuses, or no rule of the policy admits the image.
        VerificationError: the image is not signed as the policy demands, or the registry serves
            other content than the digests say.
        InvalidError: a document is no image, or the image is larger than the limits.
        UnavailableError: the registry or the disk fails; try later.
    """
    wanted = None if every_platform else platform or platforms.host()
    limits = limits or Limits()
    policy = await asyncio.to_thread(admission.read_policy, store)
    with await asyncio.to_thread(
        store.lease, f"pull-{secrets.token_hex(8)}", seconds=_LEASE_SECONDS
    ) as lease:
        pulling = _Pull(store, client, reference, lease, parallel, tell)
        root = await pulling.root()
        if admit is not None:
            await admit(root)
        signed: list[Signed] = []
        if policy is not None:
            signed = await admission.admit_remote(policy, client, reference, root.digest)
        manifests = await pulling.manifests(root, wanted)
        left = [leave is not None and await leave(*one) for one in manifests]
        content = _content(manifests, reference, limits)
        if all(left):
            configs = {manifest.config.digest for _, manifest in manifests}
            content = tuple(one for one in content if one.digest in configs)
        tell(Resolved(content))
        await pulling.fetch_all(content)
        for descriptor, manifest in manifests:
            _check_config(store, reference.at(descriptor.digest), manifest)
        if signed:
            await asyncio.to_thread(admission.keep, store, root.digest, signed)
        await asyncio.to_thread(store.name, reference, root)
    return Image(reference, root, tuple(manifests))


class _Pull:
    """One pull."""

    def __init__(
        self,
        store: ContentStore,
        client: RegistryClient,
        reference: Reference,
        lease: Lease,
        parallel: int,
        tell: Callable[[Event], None],
    ) -> None:
        self._store = store
        self._client = client
        self._reference = reference
        self._lease = lease
        self._slots = asyncio.Semaphore(parallel)
        self._tell = tell

    async def root(self) -> Descriptor:
        """What the reference means."""
        here = by_digest(self._store, self._reference)
        if here is not None and self._store.has(here.digest):
            return here
        found = await self._client.document(self._reference)
        # Parsed before it is kept: it may be anything.
        parse_manifest(found.data, found.descriptor.media_type, str(self._reference))
        await self._keep(found.data, found.descriptor.digest)
        return found.descriptor

    async def manifests(
        self, descriptor: Descriptor, wanted: Platform | None, depth: int = 0
    ) -> list[tuple[Descriptor, Manifest]]:
        """The manifests that a descriptor leads to, for one platform or all."""
        what = str(self._reference)
        document = parse_manifest(await self._document(descriptor), descriptor.media_type, what)
        if isinstance(document, Manifest):
            return [(descriptor, document)]
        if depth >= _DEPTH:
            raise InvalidError(f"{what} is an index of indexes, more than {_DEPTH} deep")
        chosen = _chosen(document, wanted, what)
        found: list[tuple[Descriptor, Manifest]] = []
        for child in chosen:
            found += await self.manifests(child, wanted, depth + 1)
        return found

    async def _document(self, descriptor: Descriptor) -> bytes:
        if descriptor.size > DOCUMENT_BYTES:
            raise InvalidError(
                f"{descriptor.digest} has {descriptor.size} bytes, expected at most "
                f"{DOCUMENT_BYTES} of a manifest"
            )
        await asyncio.to_thread(self._lease.add, descriptor.digest)
        if self._store.has(descriptor.digest):
            return await asyncio.to_thread(self._store.read, descriptor.digest)
        found = await self._client.document(self._reference.at(descriptor.digest))
        await self._keep(found.data, descriptor.digest)
        return found.data

    async def _keep(self, data: bytes, digest: str) -> None:
        await asyncio.to_thread(self._lease.add, digest)
        await asyncio.to_thread(self._store.put, data, digest)

    async def fetch_all(self, content: tuple[Descriptor, ...]) -> None:
        """Fetch what is missing, side by side; the first failure ends the others."""
        await asyncio.to_thread(self._lease.add, *(one.digest for one in content))
        async with asyncio.TaskGroup() as group:
            for descriptor in content:
                group.create_task(self._fetch(descriptor))

    async def _fetch(self, descriptor: Descriptor) -> None:
        digest = descriptor.digest
        cached = True
        while not self._store.has(digest):
            cached = False
            try:
                async with self._slots:
                    await self._download(descriptor)
            except ConflictError:
                # Another process fetches it: look again when it may be done, or dead.
                await asyncio.sleep(_LOOK_AGAIN)
        self._tell(Arrived(digest, cached))

    async def _download(self, descriptor: Descriptor) -> None:
        writer = await asyncio.to_thread(self._store.writer, descriptor.digest, descriptor.size)
        with writer:
            await self._client.blob(
                self._reference,
                descriptor,
                writer,
                lambda done: self._tell(Advanced(descriptor.digest, done)),
            )


def _chosen(index: Index, wanted: Platform | None, what: str) -> list[Descriptor]:
    if wanted is not None:
        return [platforms.choose(index, wanted, what)]
    return [one for one in index.manifests if one.platform is None or one.platform.os != "unknown"]


def _content(
    manifests: list[tuple[Descriptor, Manifest]], reference: Reference, limits: Limits
) -> tuple[Descriptor, ...]:
    """What is to be there, each once, the largest first: it takes longest."""
    found: dict[str, Descriptor] = {}
    for _, manifest in manifests:
        for child in manifest.children():
            if child.media_type in INDEXES:
                raise InvalidError(f"{reference} has an index among its layers")
            limit = CONFIG_BYTES if child.media_type in CONFIGS else limits.layer_bytes
            if child.size > limit:
                raise InvalidError(
                    f"{reference} has content of {child.size} bytes, expected at most {limit}"
                )
            if found.setdefault(child.digest, child).size != child.size:
                raise InvalidError(f"{reference} gives two sizes for {child.digest}")
    total = sum(one.size for one in found.values())
    if total > limits.image_bytes:
        raise InvalidError(f"{reference} has {total} bytes, expected at most {limits.image_bytes}")
    return tuple(sorted(found.values(), key=lambda one: (-one.size, one.digest)))


def _check_config(store: ContentStore, reference: Reference, manifest: Manifest) -> None:
    """An image's config fits its manifest; other artifacts have configs of their own."""
    if manifest.config.media_type not in CONFIGS or not manifest.layers:
        return
    if any(layer.compression is None for layer in manifest.layers):
        return  # an artifact that uses the media type of images for its config, as cosign's
    config = parse(ImageConfig, store.read(manifest.config.digest), f"config of {reference}")
    if len(config.rootfs.diff_ids) != len(manifest.layers):
        raise InvalidError(
            f"{reference} has {len(manifest.layers)} layers, and its config speaks of "
            f"{len(config.rootfs.diff_ids)}"
        )
