"""Artifacts beside an image at its registry: manifests whose `subject` is the image's manifest.

A registry that knows such lists keeps them itself; for others the list is an index under the tag
`sha256-HEX` (distribution-spec 1.1, "Referrers Tag Schema"). Two that add to that index at once may
lose one of their entries, as the specification says.
"""

from __future__ import annotations

import json

from bedstone.errors import InvalidError, NotFoundError
from bedstone.images import digests
from bedstone.images.models import (
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    dump,
    parse,
)
from bedstone.images.reference import Reference
from bedstone.images.registry import Document, RegistryClient
from bedstone.images.store import ContentStore


def artifacts(store: ContentStore, subject: str) -> list[Document]:
    """The artifacts about a manifest that can be sent, for all of their content is in the store."""
    found = []
    for _, descriptor in sorted(store.attached(subject).items()):
        if descriptor.media_type != OCI_MANIFEST or not store.has(descriptor.digest):
            continue
        data = store.read(descriptor.digest)
        manifest = parse(Manifest, data, f"artifact {descriptor.digest}")
        of = manifest.subject.digest if manifest.subject else ""
        if of == subject and all(store.has(child.digest) for child in manifest.children()):
            found.append(Document(data, descriptor))
    return found


async def announce(client: RegistryClient, reference: Reference, document: Document) -> None:
    """Send an artifact's manifest, whose content is there, and put it on its subject's list.

    One of the same type and annotations takes the other's place where we keep the list.

    Raises: as the client.
    """
    manifest = parse(Manifest, document.data, f"artifact {document.descriptor.digest}")
    if manifest.subject is None:
        raise InvalidError(f"artifact {document.descriptor.digest} is about nothing")
    if await client.put_document(reference.at(document.descriptor.digest), document):
        return
    entry = Descriptor(
        media_type=document.descriptor.media_type,
        digest=document.descriptor.digest,
        size=len(document.data),
        artifact_type=manifest.artifact_type,
        annotations=manifest.annotations,
    )
    place = reference.tagged("-".join(digests.parts(manifest.subject.digest)))
    try:
        listed = parse(Index, (await client.document(place)).data, str(place)).manifests
    except NotFoundError:
        listed = ()
    kept = [one for one in listed if not _same(one, entry)]
    index = Index(manifests=(*kept, entry))
    data = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, **dump(index)}).encode()
    root = Descriptor(media_type=OCI_INDEX, digest=digests.of(data), size=len(data))
    await client.put_document(place, Document(data, root))


def _same(one: Descriptor, other: Descriptor) -> bool:
    return one.digest == other.digest or (
        one.artifact_type == other.artifact_type and one.annotations == other.annotations
    )
