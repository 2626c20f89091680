"""Lazy images in the content store: an OCI artifact beside the image that it is made of.

The artifact is a manifest whose `subject` is the image's manifest; its layers are the metadata, the
table, the points of gzip layers, and the blobs of chunks. It is attached to the subject, so the
garbage collector keeps it as long, and it is sent to a registry with the image. What a first run
has touched is an artifact of its own, for it changes while the image does not.

An encrypted image is one of its own: its manifest says nothing but a platform, and all else, the
config of the original included, is in the lazy image attached to it, sealed.
"""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from bedstone.errors import Error, InvalidError, NotFoundError
from bedstone.images import digests
from bedstone.images.files import make_directory
from bedstone.images.lazy.making import Layer, Lazy, convert, index
from bedstone.images.lazy.packing import pack, unpack
from bedstone.images.lazy.sealing import Cipher, KeyProvider, Seal
from bedstone.images.lazy.spans import Spans
from bedstone.images.lazy.table import Table
from bedstone.images.leases import Lease
from bedstone.images.models import (
    ENCRYPTED,
    OCI_CONFIG,
    OCI_EMPTY,
    OCI_MANIFEST,
    Descriptor,
    ImageConfig,
    Manifest,
    RootFs,
    dump,
    parse,
)
from bedstone.images.opening import Opened
from bedstone.images.reference import Reference
from bedstone.images.store import ContentStore

Form = Literal["converted", "index"]

TYPE = "application/vnd.bedstone.image.lazy.v1"
TOUCHED = f"{TYPE}.touched"
METADATA = f"{TYPE}.erofs+zstd"
TABLE = f"{TYPE}.table"
SPANS = f"{TYPE}.spans"
CHUNKS = f"{TYPE}.chunks"
CONFIG = f"{TYPE}.config"
FORM = "dev.bedstone.lazy.form"
SEAL = "dev.bedstone.lazy.seal"
LAYER = "dev.bedstone.layer"  # of points: the digest of their layer
KIND = "lazy"
PULLED = "lazy-pulled"
TOUCHED_KIND = "lazy-touched"
PART = 1 << 30
"""Bytes of the largest part that is read whole."""
_TOUCHED_JSON = f"{TOUCHED}+json"
_CHUNKS_OF_LIST = 1 << 20


@dataclass(frozen=True, slots=True)
class Artifact:
    """A lazy image of the store, as its manifest has it.

    Attributes:
        digest: of its manifest.
        manifest: that.
        seal: says of its key, if it is encrypted.
        pulled: whether it came from a registry, rather than be made here.
    """

    digest: str
    manifest: Manifest
    seal: Seal | None
    pulled: bool = False

    def part(self, store: ContentStore, kind: str) -> bytes:
        """The part of a kind that it has one of. Raises InvalidError, and as the store."""
        for layer in self.manifest.layers:
            if layer.media_type == kind:
                return store.read(layer.digest, PART)
        raise InvalidError(f"lazy image {self.digest} has no {kind}")


def build(store: ContentStore, image: Opened, form: Form) -> Descriptor:
    """Make a lazy image of one whose layers are all in the store, and attach it to that.

    Blocks; the caller holds a lease on the image's root digest. The lazy image that was attached
    before is replaced.

    Raises:
        NotFoundError: a layer is not in the store.
        InvalidError: a layer cannot be read, or has a form that cannot be indexed.
        UnavailableError: the disk refuses.
    """
    return _build(store, image, image.descriptor, form, None)


def build_encrypted(
    store: ContentStore, image: Opened, name: Reference, key: KeyProvider
) -> Descriptor:
    """Make an encrypted image of one whose layers are all in the store, and name it.

    Args:
        store: the store.
        image: the original, which stays as it is.
        name: of the encrypted image.
        key: wraps the image's own.

    Returns: the descriptor of the encrypted image's manifest. Raises as `build`.
    """
    with store.lease(f"encrypting-{digests.of(str(name).encode())}", seconds=86400) as lease:
        keep = _keeping(store, lease)
        empty = keep(b"{}", OCI_EMPTY)
        platform = image.config.model_dump(include={"os", "architecture", "variant"})
        config = ImageConfig(**platform, rootfs=RootFs(diff_ids=(empty.digest,)))
        manifest = Manifest(
            config=keep(_json(dump(config)), OCI_CONFIG),
            layers=(empty,),
            # Two conversions are two images, with keys of their own.
            annotations={ENCRYPTED: secrets.token_hex(16)},
        )
        data = _json({"schemaVersion": 2, "mediaType": OCI_MANIFEST, **dump(manifest)})
        root = keep(data, OCI_MANIFEST)
        seal, cipher = Seal.make(key, root.digest)
        _build(store, image, root, "converted", (seal, cipher))
        store.name(name, root)
    return root


def _build(
    store: ContentStore,
    image: Opened,
    subject: Descriptor,
    form: Form,
    sealing: tuple[Seal, Cipher] | None,
) -> Descriptor:
    layers = [_layer(store, descriptor, diff_id) for descriptor, diff_id in image.layers]
    cipher = sealing[1] if sealing else None
    annotations = {FORM: form} | ({SEAL: sealing[0].encode()} if sealing else {})
    kept: list[Descriptor] = []
    # The artifact's parts must not be collected before it names them.
    lease = store.lease(f"lazy-{subject.digest.replace(':', '-')}", seconds=86400)
    put = _keeping(store, lease)

    def part(data: bytes, kind: str, about: dict[str, str] | None = None) -> None:
        data = cipher.seal(kind, 0, data) if cipher else data
        kept.append(put(data, kind, about))

    def keep(path: Path) -> str:
        digest = digests.of_file(path, "sha256")
        lease.add(digest)
        _import(store, path, digest)
        kept.append(_described(CHUNKS, digest, path.stat().st_size))
        return digest

    try:
        make_directory(store.root / "lazy", 0o700)
        with tempfile.TemporaryDirectory(dir=store.root / "lazy", prefix=".new-") as scratch:
            if form == "converted":
                made = convert(layers, keep, Path(scratch), cipher=cipher)
            else:
                made = index(layers, keep, Path(scratch))
        if cipher:
            part(store.read(image.manifest.config.digest), CONFIG)
        part(pack(made.metadata), METADATA)
        part(made.table.encode(), TABLE)
        for digest, spans in made.spans.items():
            part(spans.encode(), SPANS, {LAYER: digest})
        manifest = Manifest(
            artifact_type=TYPE,
            config=put(b"{}", OCI_EMPTY),
            layers=tuple(kept),
            subject=_plain(subject),
            annotations=annotations,
        )
        artifact = put(_document(manifest), OCI_MANIFEST)
        store.attach(subject.digest, KIND, artifact)
    finally:
        lease.release()
    return artifact


def find(store: ContentStore, image: Opened) -> Artifact:
    """The lazy image of an image: what was made here, else what was pulled.

    Raises:
        NotFoundError: there is none.
        InvalidError, VerificationError: it is damaged, or of another image.
    """
    attached = store.attached(image.descriptor.digest)
    found = attached.get(KIND) or attached.get(PULLED)
    if found is None:
        raise NotFoundError(f"no lazy image was made of {image.reference.familiar}")
    made = read(store.read(found.digest), image.descriptor.digest)
    return replace(made, pulled=KIND not in attached)


def read(data: bytes, subject: str) -> Artifact:
    """A lazy image of that subject, by its manifest. Raises InvalidError."""
    what = f"the lazy image of {subject}"
    manifest = parse(Manifest, data, what)
    if manifest.subject is None or manifest.subject.digest != subject:
        raise InvalidError(f"{what} is of another image")
    if manifest.artifact_type != TYPE:
        raise InvalidError(f"{what} is of the unknown type {manifest.artifact_type!r}")
    text = manifest.annotations.get(SEAL)
    return Artifact(digests.of(data), manifest, Seal.decode(text, subject) if text else None)


def load(store: ContentStore, found: Artifact) -> Lazy:
    """A lazy image's metadata, table and points.

    Raises:
        InvalidError: they cannot be read, or contradict each other.
        NotFoundError: a part is not in the store.
        VerificationError: a part is damaged, or was encrypted by another key.
        DeniedError: the key is not there.
    """
    cipher = found.seal.open() if found.seal else None

    def part(kind: str) -> bytes:
        data = found.part(store, kind)
        return cipher.open(kind, 0, data) if cipher else data

    metadata, table = unpack(part(METADATA)), Table.decode(part(TABLE))
    spans = {
        layer.annotations.get(LAYER, ""): Spans.decode(store.read(layer.digest, PART))
        for layer in found.manifest.layers
        if layer.media_type == SPANS
    }
    for blob in table.blobs:
        if blob.kind == "gzip" and (
            blob.digest not in spans or not _soluble(table, spans[blob.digest])
        ):
            raise InvalidError(f"lazy image {found.digest} has no sound points of {blob.digest}")
    return Lazy(metadata, table, spans)


def _soluble(table: Table, spans: Spans) -> bool:
    """Whether each window is a chunk that lies by itself: none needs another one to be inflated."""
    wanted = {point.window for point in spans.points if point.window >= 0}
    return all(
        number < len(table) and table.blobs[table.place(number).blob].kind == "chunks"
        for number in wanted
    )


def is_encrypted(image: Opened) -> bool:
    """Whether all of an image is in a lazy image, sealed."""
    return ENCRYPTED in image.manifest.annotations


def unsealed(store: ContentStore, image: Opened) -> Opened:
    """The image with the config that it is run by: that of the original, if it is encrypted.

    Raises: as `load`.
    """
    if not is_encrypted(image):
        return image
    found = find(store, image)
    if found.seal is None:
        raise InvalidError(f"{image.reference.familiar} says it is encrypted, and is not")
    data = found.seal.open().open(CONFIG, 0, found.part(store, CONFIG))
    return replace(image, config=parse(ImageConfig, data, "the encrypted config"))


def remember(store: ContentStore, subject: str, lazy: str, touched: Sequence[int]) -> None:
    """Keep what the first run has touched, for the next ones to read ahead.

    Args:
        store: the store.
        subject: the digest of the image's manifest.
        lazy: the digest of the lazy image that was run; nothing is kept if it is not the one that
            is attached now, or if a list of it is there.
        touched: numbers of chunks, in order.
    """
    attached = store.attached(subject)
    current = attached.get(KIND) or attached.get(PULLED)
    if not touched or current is None or current.digest != lazy:
        return
    if _remembered(store, attached, lazy):
        return
    with store.lease(f"lazy-touched-{digests.of(lazy.encode())}", seconds=600) as lease:
        put = _keeping(store, lease)
        body = {"lazy": lazy, "chunks": list(touched)[:_CHUNKS_OF_LIST]}
        manifest = Manifest(
            artifact_type=TOUCHED,
            config=put(b"{}", OCI_EMPTY),
            layers=(put(_json(body), _TOUCHED_JSON),),
            subject=Descriptor(media_type=OCI_MANIFEST, digest=subject, size=store.size(subject)),
        )
        store.attach(subject, TOUCHED_KIND, put(_document(manifest), OCI_MANIFEST))


def remembered(store: ContentStore, image: Opened, lazy: str) -> list[int]:
    """What an earlier run has touched, in order; nothing if none was, or of another lazy image."""
    return _remembered(store, store.attached(image.descriptor.digest), lazy)


def _remembered(store: ContentStore, attached: Mapping[str, Descriptor], lazy: str) -> list[int]:
    touched = attached.get(TOUCHED_KIND)
    if touched is None:
        return []
    try:
        manifest = parse(Manifest, store.read(touched.digest), "a list of chunks")
        return listed(store, manifest, lazy)
    except Error:
        return []


def listed(store: ContentStore, manifest: Manifest, lazy: str) -> list[int]:
    """The chunks of a list. Raises InvalidError: it is none, or of another lazy image."""
    try:
        found = json.loads(store.read(manifest.layers[0].digest))
        if found["lazy"] != lazy:
            raise InvalidError("the list of chunks is of another lazy image")
        chunks = [it for it in found["chunks"] if isinstance(it, int) and it >= 0]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InvalidError(f"the list of chunks cannot be read: {error!r}") from error
    return chunks[:_CHUNKS_OF_LIST]


def _layer(store: ContentStore, descriptor: Descriptor, diff_id: str) -> Layer:
    compression = descriptor.compression
    if compression not in ("", "gzip", "zstd"):
        raise InvalidError(f"a layer is {descriptor.media_type!r}, which is no layer that we know")
    if not store.has(descriptor.digest):
        raise NotFoundError(f"layer {descriptor.digest} is not in the store")
    kind: Literal["", "gzip", "zstd"] = compression  # type: ignore[assignment]
    return Layer(descriptor.digest, store.path(descriptor.digest), kind, diff_id)


def _import(store: ContentStore, path: Path, digest: str) -> None:
    """A file's content into the store."""
    if store.has(digest):
        return
    with path.open("rb") as file, store.writer(digest, path.stat().st_size) as writer:
        if writer.offset:
            writer.restart()
        while block := file.read(1 << 20):
            writer.write(block)
        writer.commit()


def _keeping(store: ContentStore, lease: Lease) -> Callable[..., Descriptor]:
    """Puts parts into the store, each held before it is there."""

    def put(data: bytes, kind: str, annotations: dict[str, str] | None = None) -> Descriptor:
        digest = digests.of(data)
        lease.add(digest)
        store.put(data, digest)
        return _described(kind, digest, len(data), annotations)

    return put


def _described(
    kind: str, digest: str, size: int, annotations: dict[str, str] | None = None
) -> Descriptor:
    return Descriptor(media_type=kind, digest=digest, size=size, annotations=annotations or {})


def _plain(descriptor: Descriptor) -> Descriptor:
    return _described(descriptor.media_type, descriptor.digest, descriptor.size)


def _document(manifest: Manifest) -> bytes:
    return _json({"schemaVersion": 2, "mediaType": OCI_MANIFEST, **dump(manifest)})


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
