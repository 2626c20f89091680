"""What an image is made of, as its makers say: a CycloneDX document beside it.

It is looked for where tools put it: among the image's referrers (distribution-spec 1.1, artifact
type `application/vnd.cyclonedx+json`), and under cosign's tag `sha256-HEX.sbom`. It is a claim of
whoever may write to the repository; nothing here verifies it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bedstone.errors import InvalidError, NotFoundError
from bedstone.images import digests
from bedstone.images.models import Descriptor, Manifest, parse_manifest
from bedstone.images.reference import Reference
from bedstone.images.registry import RegistryClient
from bedstone.images.store import ContentStore

KIND = "sbom"
"""Of the attachment that keeps it."""
MEDIA_TYPE = "application/vnd.cyclonedx+json"
_BYTES = 32 << 20
_REFERRERS = 64


@dataclass(frozen=True, slots=True)
class Component:
    """A part of an image.

    Args:
        name: with its group, where it has one.
        version: may be empty.
        kind: `library`, `operating-system` …
        licenses: identifiers or names.
    """

    name: str
    version: str
    kind: str
    licenses: tuple[str, ...]


async def fetch(client: RegistryClient, reference: Reference, digest: str) -> bytes:
    """The document beside an image at its registry.

    Raises:
        NotFoundError: there is none.
        InvalidError: it is larger than 32 MiB.
        DeniedError, UnavailableError, VerificationError: as the client.
    """
    for place in await _places(client, reference, digest):
        try:
            found = await client.document(place)
        except NotFoundError:
            continue
        document = parse_manifest(found.data, found.descriptor.media_type, str(place))
        if not isinstance(document, Manifest):
            continue
        for layer in document.layers:
            if layer.media_type == MEDIA_TYPE:
                return await client.small_blob(place, layer, _BYTES)
    raise NotFoundError(
        f"{reference.familiar} has no CycloneDX document beside it",
        hint="its makers attach one, for example with `cosign attach sbom` or `oras attach`",
    )


async def _places(client: RegistryClient, reference: Reference, digest: str) -> list[Reference]:
    referrers = await client.referrers(reference, digest)
    found = [reference.at(one.digest) for one in referrers if one.artifact_type in (MEDIA_TYPE, "")]
    return [*found[:_REFERRERS], reference.tagged("-".join(digests.parts(digest)) + ".sbom")]


def keep(store: ContentStore, digest: str, data: bytes) -> None:
    """Keep a document with its image, durably. Raises as the store."""
    with store.lease(f"sbom-{digest}", seconds=60.0) as lease:
        lease.add(digests.of(data))
        descriptor = Descriptor(media_type=MEDIA_TYPE, digest=store.put(data), size=len(data))
        store.attach(digest, KIND, descriptor)


def kept(store: ContentStore, digest: str) -> bytes | None:
    """The document that was kept, if one was. Raises as the store."""
    descriptor = store.attached(digest).get(KIND)
    return None if descriptor is None else store.read(descriptor.digest, _BYTES)


def components(data: bytes) -> list[Component]:
    """The components that a document lists, those within others too, sorted.

    Raises:
        InvalidError: it is no CycloneDX document in JSON.
    """
    try:
        body = json.loads(data)
        if body["bomFormat"] != "CycloneDX":
            raise InvalidError("the document is in no format of CycloneDX")
        found = set(_components(body))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidError(f"the CycloneDX document cannot be read: {error!r}") from error
    return sorted(found, key=lambda one: (one.name, one.version))


def _components(body: dict[str, Any]) -> Iterator[Component]:
    for one in body.get("components") or ():
        group = one.get("group")
        licenses = [entry.get("license") or {} for entry in one.get("licenses") or ()]
        expressions = [entry.get("expression") for entry in one.get("licenses") or ()]
        named = [*(it.get("id") or it.get("name") for it in licenses), *expressions]
        yield Component(
            f"{group}/{one['name']}" if group else str(one["name"]),
            str(one.get("version") or ""),
            str(one.get("type") or ""),
            tuple(str(name) for name in named if name),
        )
        yield from _components(one)
