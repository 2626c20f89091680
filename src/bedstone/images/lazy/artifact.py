"""Lazy images in the content store: an OCI artifact beside the image that it is made of.

The artifact is a manifest whose `subject` is the image's manifest; its layers are the metadata, the
table, the points of gzip layers, and the blobs of chunks. It is attached to the subject, so the
garbage collector keeps it as long, and it can be sent to a registry like any other. What a first
run has touched is an artifact of its own, for it changes while the image does not.
"""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import cramjam

from bedstone.errors import InvalidError, NotFoundError
from bedstone.images import digests
from bedstone.images.files import make_directory
from bedstone.images.lazy.making import Layer, Lazy, convert, index
from bedstone.images.lazy.spans import Spans
from bedstone.images.lazy.table import Table
from bedstone.images.leases import Lease
from bedstone.images.models import OCI_EMPTY, OCI_MANIFEST, Descriptor, Manifest, dump, parse
from bedstone.images.opening import Opened
from bedstone.images.store import ContentStore

Form = Literal["converted", "index"]

TYPE = "application/vnd.bedstone.image.lazy.v1"
_METADATA = f"{TYPE}.erofs+zstd"
_TABLE = f"{TYPE}.table"
_SPANS = f"{TYPE}.spans"
_CHUNKS = f"{TYPE}.chunks"
_TOUCHED = f"{TYPE}.touched+json"
_LAYER = "dev.bedstone.layer"  # of points: the digest of their layer
_KIND = "lazy"
_TOUCHED_KIND = "lazy-touched"
_PART = 4 << 30  # bytes of the largest part that is read


def build(store: ContentStore, image: Opened, form: Form) -> Descriptor:
    """Make a lazy image of one whose layers are all in the store, and attach it to that.

    Blocks; the caller holds a lease on the image's root digest. The lazy image that was attached
    before is replaced.

    Raises:
        NotFoundError: a layer is not in the store.
        InvalidError: a layer cannot be read, or has a form that cannot be indexed.
        UnavailableError: the disk refuses.
    """
    layers = [_layer(store, descriptor) for descriptor in image.manifest.layers]
    subject = image.descriptor
    # The artifact's parts must not be collected before it names them.
    lease = store.lease(f"lazy-{subject.digest.replace(':', '-')}", seconds=86400)
    kept: list[Descriptor] = []

    def put(data: bytes, kind: str, annotations: dict[str, str] | None = None) -> None:
        kept.append(_put(store, lease, data, kind, annotations))

    def keep(path: Path) -> str:
        digest = digests.of_file(path, "sha256")
        lease.add(digest)
        _import(store, path, digest)
        kept.append(_described(_CHUNKS, digest, path.stat().st_size))
        return digest

    try:
        make_directory(store.root / "lazy", 0o700)
        with tempfile.TemporaryDirectory(dir=store.root / "lazy", prefix=".new-") as scratch:
            make = convert if form == "converted" else index
            made = make(layers, keep, Path(scratch))
        put(bytes(cramjam.zstd.compress(made.metadata, level=9)), _METADATA)
        put(made.table.encode(), _TABLE)
        for digest, spans in made.spans.items():
            put(spans.encode(), _SPANS, {_LAYER: digest})
        manifest = Manifest(
            artifact_type=TYPE,
            config=_put(store, lease, b"{}", OCI_EMPTY),
            layers=tuple(kept),
            subject=Descriptor(
                media_type=subject.media_type, digest=subject.digest, size=subject.size
            ),
        )
        data = json.dumps(dump(manifest), sort_keys=True).encode()
        artifact = _put(store, lease, data, OCI_MANIFEST)
        store.attach(subject.digest, _KIND, artifact)
    finally:
        lease.release()
    return artifact


def find(store: ContentStore, image: Opened) -> Descriptor:
    """The lazy image that is attached to an image. Raises NotFoundError."""
    attached = store.attached(image.descriptor.digest).get(_KIND)
    if attached is None:
        raise NotFoundError(f"no lazy image was made of {image.reference.familiar}")
    return attached


def load(store: ContentStore, image: Opened) -> Lazy:
    """The lazy image that is attached to an image.

    Raises:
        NotFoundError: none is.
        InvalidError: it cannot be read, or is of another image.
        VerificationError: a part of it is damaged.
    """
    attached = find(store, image)
    what = f"the lazy image of {image.reference.familiar}"
    manifest = parse(Manifest, store.read(attached.digest), what)
    if manifest.subject is None or manifest.subject.digest != image.descriptor.digest:
        raise InvalidError(f"{what} is of another image")
    metadata, table, spans = b"", None, dict[str, Spans]()
    for layer in manifest.layers:
        match layer.media_type:
            case str(kind) if kind == _METADATA:
                metadata = bytes(cramjam.zstd.decompress(store.read(layer.digest, _PART)))
            case str(kind) if kind == _TABLE:
                table = Table.decode(store.read(layer.digest, _PART))
            case str(kind) if kind == _SPANS:
                of = layer.annotations.get(_LAYER, "")
                spans[of] = Spans.decode(store.read(layer.digest, _PART))
    if table is None or not metadata:
        raise InvalidError(f"{what} has no metadata or no table")
    return Lazy(metadata, table, spans)


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
    if not touched or _KIND not in attached or attached[_KIND].digest != lazy:
        return
    if _remembered(store, attached):
        return
    data = json.dumps({"lazy": lazy, "chunks": list(touched)}).encode()
    with store.lease(f"lazy-touched-{secrets.token_hex(8)}", seconds=600) as lease:
        store.attach(subject, _TOUCHED_KIND, _put(store, lease, data, _TOUCHED))


def remembered(store: ContentStore, image: Opened) -> list[int]:
    """What an earlier run has touched, in order; nothing if none was, or of another lazy image."""
    return _remembered(store, store.attached(image.descriptor.digest))


def _remembered(store: ContentStore, attached: Mapping[str, Descriptor]) -> list[int]:
    lazy, touched = attached.get(_KIND), attached.get(_TOUCHED_KIND)
    if lazy is None or touched is None:
        return []
    try:
        found = json.loads(store.read(touched.digest))
        chunks = [it for it in found["chunks"] if isinstance(it, int) and it >= 0]
    except (ValueError, KeyError, TypeError, NotFoundError):
        return []
    return chunks if found["lazy"] == lazy.digest else []


def _layer(store: ContentStore, descriptor: Descriptor) -> Layer:
    compression = descriptor.compression
    if compression not in ("", "gzip", "zstd"):
        raise InvalidError(f"a layer is {descriptor.media_type!r}, which is no layer that we know")
    if not store.has(descriptor.digest):
        raise NotFoundError(f"layer {descriptor.digest} is not in the store")
    kind: Literal["", "gzip", "zstd"] = compression  # type: ignore[assignment]
    return Layer(descriptor.digest, store.path(descriptor.digest), kind)


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


def _put(
    store: ContentStore,
    lease: Lease,
    data: bytes,
    kind: str,
    annotations: dict[str, str] | None = None,
) -> Descriptor:
    """A part into the store, held before it is there."""
    digest = digests.of(data)
    lease.add(digest)
    store.put(data, digest)
    return _described(kind, digest, len(data), annotations)


def _described(
    kind: str, digest: str, size: int, annotations: dict[str, str] | None = None
) -> Descriptor:
    return Descriptor(media_type=kind, digest=digest, size=size, annotations=annotations or {})
