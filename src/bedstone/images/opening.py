"""Images of the store, as those who run them need them."""

from __future__ import annotations

from dataclasses import dataclass

from bedstone.errors import InvalidError, NotFoundError
from bedstone.images import platforms
from bedstone.images.models import (
    CONFIGS,
    Descriptor,
    ImageConfig,
    Manifest,
    Platform,
    parse,
    parse_manifest,
)
from bedstone.images.reference import Reference
from bedstone.images.store import ContentStore

_DEPTH = 4


@dataclass(frozen=True, slots=True)
class Opened:
    """An image for one platform.

    Args:
        reference: the name by which it was found.
        root: the descriptor that the name means, of an index or a manifest.
        descriptor: of the manifest for the platform.
        manifest: that manifest.
        config: its config.
    """

    reference: Reference
    root: Descriptor
    descriptor: Descriptor
    manifest: Manifest
    config: ImageConfig

    @property
    def layers(self) -> tuple[tuple[Descriptor, str], ...]:
        """Each layer and the digest of its tar archive, the lowest first."""
        return tuple(zip(self.manifest.layers, self.config.rootfs.diff_ids, strict=True))


def open_image(
    store: ContentStore, reference: Reference, platform: Platform | None = None
) -> Opened:
    """Read an image's documents from the store; its layers need not be there.

    Args:
        store: the store.
        reference: its name; with a digest, any tag of the same content will do.
        platform: which of several; this machine's by default.

    Raises:
        NotFoundError: no image has that name here, or none is for the platform.
        InvalidError: what has that name is no image.
        VerificationError: a document is damaged.
    """
    root = resolve(store, reference)
    descriptor, manifest = manifest_of(store, root, platform or platforms.host(), str(reference))
    if manifest.config.media_type not in CONFIGS:
        raise InvalidError(
            f"{reference.familiar} is {manifest.config.media_type!r}, expected an image"
        )
    what = f"config of {reference.familiar}"
    config = parse(ImageConfig, store.read(manifest.config.digest), what)
    if len(config.rootfs.diff_ids) != len(manifest.layers):
        raise InvalidError(f"{what} speaks of another number of layers than the manifest")
    return Opened(reference, root, descriptor, manifest, config)


def resolve(store: ContentStore, reference: Reference) -> Descriptor:
    """What a name means in the store; a digest is found under any tag of its repository.

    Under no other repository, for a name says where content came from. Raises NotFoundError.
    """
    try:
        return store.resolve(reference)
    except NotFoundError:
        found = by_digest(store, reference)
        if found is None:
            raise
        return found


def by_digest(store: ContentStore, reference: Reference) -> Descriptor | None:
    """What was fetched from a reference's repository and has its digest, if anything."""
    for named in store.names():
        same = named.reference.name == reference.name
        if same and named.descriptor.digest == reference.digest:
            return named.descriptor
    return None


def manifest_of(
    store: ContentStore, root: Descriptor, platform: Platform, what: str
) -> tuple[Descriptor, Manifest]:
    """The manifest for a platform that a descriptor leads to; raises as `open_image` does."""
    descriptor = root
    for _ in range(_DEPTH):
        document = parse_manifest(store.read(descriptor.digest), descriptor.media_type, what)
        if isinstance(document, Manifest):
            return descriptor, document
        descriptor = platforms.choose(document, platform, what)
        if not store.has(descriptor.digest):
            raise NotFoundError(
                f"{what} is here, but not for {platform}",
                hint=f"`bedstone image pull {what} --platform {platform}` fetches it",
            )
    raise InvalidError(f"{what} is an index of indexes, more than {_DEPTH} deep")
