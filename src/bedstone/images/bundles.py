"""Brings images from files: OCI image layouts, in directories or archives, and `docker save`'s.

Rules: content is verified on its way in as if it came from a registry; names inside an archive are
looked up in a table and never used as paths of this machine.
"""

from __future__ import annotations

import io
import json
import posixpath
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from bedstone.errors import ConflictError, InvalidError, NotFoundError, UnavailableError
from bedstone.images import digests, tar
from bedstone.images.decompress import LayerStream
from bedstone.images.models import (
    CONFIG_BYTES,
    DOCUMENT_BYTES,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    dump,
    parse,
    parse_manifest,
)
from bedstone.images.reference import Reference
from bedstone.images.references import Named
from bedstone.images.store import ContentStore

REF_NAME = "org.opencontainers.image.ref.name"
FULL_NAME = "io.containerd.image.name"
_BLOCK = 1 << 20
_LEASE_SECONDS = 86400.0
_ARCHIVE_BYTES = 256 << 30
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class Bundle(Protocol):
    """Files by name."""

    def open(self, name: str) -> BinaryIO:
        """One file. Raises NotFoundError."""


@dataclass
class _Folder:
    root: Path

    def open(self, name: str) -> BinaryIO:
        try:
            return (self.root / name).open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise NotFoundError(f"{self.root} has no {name}") from None


@dataclass
class _Archive:
    """A tar archive that can be read at any place."""

    path: Path
    file: BinaryIO
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    def scan(self) -> None:
        stream = LayerStream(self.file, "", _ARCHIVE_BYTES)
        for entry in tar.entries(stream):
            name = posixpath.normpath(entry.name.decode(errors="replace"))
            match entry.kind:
                case tar.FILE if entry.extents is None:
                    self.places[name] = stream.position, entry.size
                case tar.SYMLINK | tar.LINK:
                    # `docker save` of old: a layer that two images have is a link in the second.
                    base = "" if entry.kind == tar.LINK else posixpath.dirname(name)
                    target = entry.target.decode(errors="replace")
                    self.links[name] = posixpath.normpath(posixpath.join(base, target))

    def open(self, name: str) -> BinaryIO:
        name = posixpath.normpath(name)
        place = self.places.get(self.links.get(name, name))
        if place is None:
            raise NotFoundError(f"{self.path} has no {name}")
        return io.BufferedReader(_Part(self.file, *place), _BLOCK)


class _Part(io.RawIOBase):
    """A part of a file."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file = file
        self._start = start
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        count = max(min(len(buffer), self._size - self._at), 0)
        self._file.seek(self._start + self._at)
        data = self._file.read(count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


@contextmanager
def _opened(path: Path) -> Iterator[Bundle]:
    """A directory or an archive, compressed or not."""
    if path.is_dir():
        yield _Folder(path)
        return
    try:
        with path.open("rb") as file:
            start = file.read(4)
            file.seek(0)
            compression = "gzip" if start[:2] == _GZIP else "zstd" if start == _ZSTD else ""
            if not compression:
                archive = _Archive(path, file)
                archive.scan()
                yield archive
                return
            with tempfile.TemporaryFile() as plain:
                stream = LayerStream(file, compression, _ARCHIVE_BYTES)
                while data := stream.some(_BLOCK):
                    plain.write(data)
                plain.seek(0)
                archive = _Archive(path, plain)
                archive.scan()
                yield archive
    except FileNotFoundError:
        raise NotFoundError(f"there is no {path}") from None
    except OSError as error:
        raise UnavailableError(f"cannot read {path}: {error.strerror}") from error


def load(
    store: ContentStore,
    path: Path,
    *,
    tag: str | None = None,
    name: Reference | None = None,
    tell: Callable[[Descriptor], None] = lambda _: None,
) -> list[Named]:
    """Bring the images of a layout or an archive into the store. Blocks; run it in a thread.

    Args:
        store: where to.
        path: a directory with an OCI layout, or an archive of one or of `docker save`.
        tag: only the image with that tag there; all by default.
        name: names it so here, when it is one; by default, as it is named there.
        tell: is told of content that is there.

    Returns: what was named.

    Raises:
        NotFoundError: there is no such file, no such tag in it, or content is missing.
        InvalidError: it holds no image, or several and `name` is given, or one without a name.
        VerificationError: content is not what its digest says.
        UnavailableError: the disk fails.
    """
    with (
        _opened(path) as bundle,
        store.lease(f"load-{secrets.token_hex(8)}", seconds=_LEASE_SECONDS) as lease,
    ):
        bringing = _Bringing(store, bundle, lease.add, tell, path)
        found = bringing.images()
        chosen = [(names, root) for names, root in found if tag is None or tag in map(_tag, names)]
        if not chosen:
            raise NotFoundError(f"{path} has no image{f' tagged {tag}' if tag else ''}")
        if name is not None and len(chosen) != 1:
            raise InvalidError(
                f"{path} has {len(chosen)} images, expected one to name {name.familiar}",
                hint="say which by its tag",
            )
        named = []
        for names, root in chosen:
            if not name and not names:
                raise InvalidError(f"{path} has an image without a name", hint="give it one")
            for reference in [name] if name else [_reference(text, path) for text in names]:
                bringing.tree(root)
                store.name(reference, root)
                named.append(Named(reference, root, 0.0))
        return named


class _Bringing:
    def __init__(
        self,
        store: ContentStore,
        bundle: Bundle,
        hold: Callable[[str], None],
        tell: Callable[[Descriptor], None],
        path: Path,
    ) -> None:
        self._store = store
        self._bundle = bundle
        self._hold = hold
        self._tell = tell
        self._path = path

    def images(self) -> list[tuple[list[str], Descriptor]]:
        """Each image of the bundle: its names there, and its descriptor."""
        try:
            data = self._small("index.json", DOCUMENT_BYTES)
        except NotFoundError:
            return [self._saved(record) for record in self._saved_records()]
        index = parse(Index, data, f"{self._path}: index.json")
        found = []
        for descriptor in index.manifests:
            names = [descriptor.annotations.get(key, "") for key in (FULL_NAME, REF_NAME)]
            plain = descriptor.model_copy(update={"annotations": {}})
            found.append(([name for name in names if name][:1], plain))
        return found

    def tree(self, descriptor: Descriptor) -> None:
        """Bring a manifest or index with all that the bundle has of it."""
        self._hold(descriptor.digest)
        if not self._store.has(descriptor.digest):
            name = blob_path(descriptor.digest)
            self._store.put(self._small(name, DOCUMENT_BYTES), descriptor.digest)
        data = self._store.read(descriptor.digest)
        document = parse_manifest(data, descriptor.media_type, str(self._path))
        for child in document.children():
            if isinstance(document, Index):
                if self._has(child.digest):
                    self.tree(child)
            else:
                self._content(child.digest, child.size, blob_path(child.digest))
                self._tell(child)

    def _has(self, digest: str) -> bool:
        """A layout may hold fewer platforms than its index names."""
        if self._store.has(digest):
            return True
        try:
            self._bundle.open(blob_path(digest)).close()
        except NotFoundError:
            return False
        return True

    def _content(self, digest: str, size: int | None, name: str) -> None:
        self._hold(digest)
        if self._store.has(digest):
            return
        try:
            writer = self._store.writer(digest, size)
        except ConflictError as error:
            raise UnavailableError(f"{error.message}; try again") from error
        with writer, self._bundle.open(name) as file:
            writer.restart()
            while data := file.read(_BLOCK):
                writer.write(data)
            writer.commit()

    def _small(self, name: str, limit: int) -> bytes:
        with self._bundle.open(name) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise InvalidError(f"{self._path}: {name} has more than {limit} bytes")
        return data

    # What `docker save` wrote before it wrote layouts

    def _saved_records(self) -> list[dict[str, Any]]:
        try:
            data = self._small("manifest.json", DOCUMENT_BYTES)
        except NotFoundError:
            raise InvalidError(
                f"{self._path} holds no image: neither index.json nor manifest.json is there",
                hint="expected an OCI image layout, or what `docker save` writes",
            ) from None
        try:
            records = json.loads(data)
            for record in records:
                record["Config"] + "", [layer + "" for layer in record["Layers"]]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidError(f"{self._path}: manifest.json cannot be read: {error!r}") from error
        return list(records)

    def _saved(self, record: dict[str, Any]) -> tuple[list[str], Descriptor]:
        """Put an image together that has no manifest."""
        data = self._small(record["Config"], CONFIG_BYTES)
        config = parse(ImageConfig, data, f"{self._path}: {record['Config']}")
        if len(config.rootfs.diff_ids) != len(record["Layers"]):
            raise InvalidError(f"{self._path}: {record['Config']} speaks of other layers")
        digest = digests.of(data)
        self._hold(digest)
        self._store.put(data, digest)
        layers = [
            self._saved_layer(name, diff_id)
            for name, diff_id in zip(record["Layers"], config.rootfs.diff_ids, strict=True)
        ]
        manifest = Manifest(
            media_type=OCI_MANIFEST,
            config=Descriptor(media_type=OCI_CONFIG, digest=digest, size=len(data)),
            layers=tuple(layers),
        )
        body = json.dumps({"schemaVersion": 2, **dump(manifest)}, sort_keys=True).encode()
        self._hold(digests.of(body))
        root = Descriptor(media_type=OCI_MANIFEST, digest=self._store.put(body), size=len(body))
        return [str(name) for name in record.get("RepoTags") or []], root

    def _saved_layer(self, name: str, diff_id: str) -> Descriptor:
        with self._bundle.open(name) as file:
            packed = file.read(2) == _GZIP
            file.seek(0)
            # What is not compressed is what the config says, or is refused.
            digest = _digest(file) if packed else diff_id
            size = file.seek(0, io.SEEK_END)
        self._content(digest, size, name)
        media_type = f"{OCI_LAYER}+gzip" if packed else OCI_LAYER
        descriptor = Descriptor(media_type=media_type, digest=digest, size=size)
        self._tell(descriptor)
        return descriptor


def blob_path(digest: str) -> str:
    """Where content is in a layout."""
    return "blobs/" + "/".join(digests.parts(digest))


def _digest(file: BinaryIO) -> str:
    import hashlib

    state = hashlib.sha256()
    while data := file.read(_BLOCK):
        state.update(data)
    return f"sha256:{state.hexdigest()}"


def _tag(text: str) -> str | None:
    """The tag of a name in a bundle, which may be one itself."""
    return Reference.parse(text).tag if "/" in text or ":" in text else text


def _reference(text: str, path: Path) -> Reference:
    """The name of an image in a bundle: a whole one, or a tag only."""
    if "/" in text or ":" in text:
        return Reference.parse(text)
    # A layout gives tags only; its directory names the image, as good as any.
    stem = path.resolve().name.lower().split(".")[0]
    return Reference.parse(f"localhost/{stem}").tagged(text)
