"""Lazy images beside their images at a registry: which is believed, and what of it is fetched.

A lazy image says which tree an image has, and nothing in the image's own digests can confirm that
before all of the image is here. So it is believed as far as somebody vouches for it:

1. It is for the manifest that was asked for, and its parts are those that it names.
2. Where the policy demands signatures of the image, it must have one, by one of the same keys.
3. Without such a rule, the registry is believed, as it is for what a tag means. A name with a
   digest says not to believe it: then only a signature counts, or the key that it is encrypted by.
4. Layers that it reads from are layers of the image; other blobs are its own.

A list of chunks to read ahead is taken only with a signature by a key of the policy.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from dataclasses import dataclass

from bedstone.errors import Error, InvalidError, NotFoundError, VerificationError
from bedstone.images import admission
from bedstone.images.lazy import artifact
from bedstone.images.lazy.artifact import Artifact
from bedstone.images.lazy.making import Lazy
from bedstone.images.models import ENCRYPTED, OCI_MANIFEST, Descriptor, Manifest, parse
from bedstone.images.reference import Reference
from bedstone.images.registry import Document, RegistryClient
from bedstone.images.signatures import Signed, fetch
from bedstone.images.store import ContentStore

_LOOKED_AT = 16  # artifacts of a type
_DEVICE_BLOCKS = 1152 + 64  # where metadata says how large its device is


@dataclass(frozen=True, slots=True)
class Ignored:
    """An artifact beside an image that is not believed, and why."""

    digest: str
    type: str
    reason: str


async def adopt(
    store: ContentStore,
    client: RegistryClient,
    reference: Reference,
    descriptor: Descriptor,
    manifest: Manifest,
    tell: Callable[[Ignored], None] = lambda _: None,
) -> bool:
    """Fetch and attach the lazy image that a registry has of an image; whether there is one.

    Nothing of its content is fetched. Whoever calls holds a lease on the image.

    Args:
        store: where to.
        client: where from.
        reference: the image's name.
        descriptor: of its manifest, which was admitted.
        manifest: that.
        tell: is told of what is there and not taken.

    Raises:
        UnavailableError, DeniedError: as the client.
    """
    listed = await client.referrers(reference, descriptor.digest)
    lazy = [one for one in listed if one.artifact_type == artifact.TYPE]
    lazy.sort(key=lambda one: one.annotations.get(artifact.FORM) != "converted")
    for one in lazy[:_LOOKED_AT]:
        try:
            await _take(store, client, reference, descriptor, manifest, one)
        except (InvalidError, NotFoundError, VerificationError) as error:
            tell(Ignored(one.digest, one.artifact_type, error.message))
            continue
        lists = [it for it in listed if it.artifact_type == artifact.TOUCHED]
        for touched in lists[:_LOOKED_AT]:
            try:
                await _take_list(store, client, reference, descriptor.digest, one.digest, touched)
                break
            except Error as error:
                tell(Ignored(touched.digest, touched.artifact_type, error.message))
        return True
    return False


async def _take(
    store: ContentStore,
    client: RegistryClient,
    reference: Reference,
    descriptor: Descriptor,
    manifest: Manifest,
    listed: Descriptor,
) -> None:
    document = await _document(client, reference, listed)
    found = artifact.read(document.data, descriptor.digest)
    if (found.seal is not None) is not (ENCRYPTED in manifest.annotations):
        raise InvalidError("of it and its image, one is encrypted, and the other is not")
    signed = await fetch(client, reference, found.digest)
    _vouched(store, reference, found, signed)
    with store.lease(f"lazy-pull-{found.digest}", seconds=3600) as lease:
        small = [one for one in found.manifest.layers if one.media_type != artifact.CHUNKS]
        await asyncio.to_thread(lease.add, *(one.digest for one in small))
        for one in (found.manifest.config, *small):
            data = await client.small_blob(reference, one, artifact.PART)
            await asyncio.to_thread(store.put, data, one.digest)
        lazy = await asyncio.to_thread(artifact.load, store, found)
        check(lazy, found, manifest)
        await asyncio.to_thread(lease.add, found.digest)
        await asyncio.to_thread(store.put, document.data, found.digest)
        if signed:
            await asyncio.to_thread(admission.keep, store, found.digest, signed)
        store.attach(descriptor.digest, artifact.PULLED, document.descriptor)


async def _take_list(
    store: ContentStore,
    client: RegistryClient,
    reference: Reference,
    subject: str,
    lazy: str,
    listed: Descriptor,
) -> None:
    signed = await fetch(client, reference, listed.digest)
    policy = admission.read_policy(store)
    if policy is None or policy.admit(reference, listed.digest, signed) is None:
        raise VerificationError("no key of the policy is for this image, and so for its lists")
    document = await _document(client, reference, listed)
    manifest = parse(Manifest, document.data, "a list of chunks")
    if manifest.subject is None or manifest.subject.digest != subject:
        raise VerificationError("the list of chunks is of another image")
    with store.lease(f"lazy-pull-{listed.digest}", seconds=3600) as lease:
        await asyncio.to_thread(lease.add, *(one.digest for one in manifest.children()))
        for one in manifest.children():
            data = await client.small_blob(reference, one, artifact.PART)
            await asyncio.to_thread(store.put, data, one.digest)
        artifact.listed(store, manifest, lazy)
        await asyncio.to_thread(lease.add, listed.digest)
        await asyncio.to_thread(store.put, document.data, listed.digest)
        await asyncio.to_thread(admission.keep, store, listed.digest, signed)
        store.attach(subject, artifact.TOUCHED_KIND, document.descriptor)


async def _document(client: RegistryClient, reference: Reference, listed: Descriptor) -> Document:
    document = await client.document(reference.at(listed.digest))
    if document.descriptor.media_type != OCI_MANIFEST:
        raise InvalidError(f"it is a {document.descriptor.media_type!r}, expected a manifest")
    return document


def vouch(store: ContentStore, reference: Reference, found: Artifact) -> None:
    """Ask the policy of today again about a lazy image that was pulled, by the signatures kept.

    Raises:
        VerificationError, DeniedError: nobody vouches for it.
    """
    _vouched(store, reference, found, admission.kept(store, found.digest))


def _vouched(
    store: ContentStore, reference: Reference, found: Artifact, signed: list[Signed]
) -> None:
    policy = admission.read_policy(store)
    by = policy.admit(reference, found.digest, signed) if policy else None
    if by is None and reference.digest and found.seal is None:
        raise VerificationError(
            f"lazy image {found.digest} is not signed, and the image was named by its digest",
            hint="name it by a tag, or let the policy demand a signature",
        )


def check(lazy: Lazy, found: Artifact, manifest: Manifest) -> None:
    """Hold a lazy image against its image.

    Raises:
        VerificationError: it reads from what is neither the image's nor its own, or its metadata is
            of another table.
    """
    layers = {layer.digest for layer in manifest.layers}
    own = {part.digest for part in found.manifest.layers if part.media_type == artifact.CHUNKS}
    for blob in lazy.table.blobs:
        if blob.digest not in (own if blob.kind == "chunks" else layers):
            raise VerificationError(f"lazy image {found.digest} reads blob {blob.digest}, not its")
    if len(lazy.metadata) < 4096 or lazy.metadata[1024:1028] != b"\xe2\xe1\xf5\xe0":
        raise VerificationError(f"lazy image {found.digest} has no EROFS metadata")
    (blocks,) = struct.unpack_from("<I", lazy.metadata, _DEVICE_BLOCKS)
    if blocks != lazy.table.addresses()[1]:
        raise VerificationError(f"lazy image {found.digest} has metadata of another table")
