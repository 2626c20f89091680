"""Writes images to files: OCI image layouts, as directories or archives that docker loads too."""

from __future__ import annotations

import gzip
import json
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bedstone.errors import InvalidError, UnavailableError
from bedstone.images.bundles import FULL_NAME, REF_NAME, blob_path
from bedstone.images.models import Descriptor, Index, Manifest, dump, parse_manifest
from bedstone.images.opening import resolve
from bedstone.images.reference import Reference
from bedstone.images.store import ContentStore

_BLOCK = 1 << 20
_ARCHIVES = (".tar", ".tgz", ".gz")


def save(store: ContentStore, reference: Reference, path: Path, *, tag: str | None = None) -> None:
    """Write an image as an OCI layout. Blocks; run it in a thread.

    What is here of it is written; platforms of its index that are not here are not.

    Args:
        store: where it is.
        reference: its name here.
        path: a directory, to which the image is added when it is a layout already; or a file that
            ends in `.tar`, `.tar.gz` or `.tgz`, which `docker load` takes too.
        tag: its tag there; its own by default.

    Raises:
        NotFoundError: it is not here.
        InvalidError: `path` is a directory that is no layout and not empty.
        UnavailableError: the disk fails.
    """
    root = resolve(store, reference)
    tag = tag or reference.tag or "latest"
    try:
        if path.suffix in _ARCHIVES:
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".layout-") as folder:
                layout = _Layout(store, Path(folder), linked=True)
                layout.add(reference.tagged(tag), root)
                layout.describe_for_docker(reference.tagged(tag))
                _pack(Path(folder), path)
        else:
            _Layout(store, path, linked=False).add(reference.tagged(tag), root)
    except OSError as error:
        raise UnavailableError(f"cannot write {path}: {error.strerror}") from error


class _Layout:
    """A layout that images are added to.

    Args:
        store: where content is.
        folder: the layout's directory.
        linked: whether content is linked to rather than copied, for an archive.
    """

    def __init__(self, store: ContentStore, folder: Path, *, linked: bool) -> None:
        self._store = store
        self._folder = folder
        self._linked = linked
        self._manifests: list[Manifest] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._entries: list[dict[str, Any]] = []
        index = folder / "index.json"
        if index.is_file():
            self._entries = _read_entries(index)
        elif any(folder.iterdir()):
            raise InvalidError(f"got directory {folder}, expected an OCI image layout or none")

    def add(self, reference: Reference, root: Descriptor) -> None:
        """Add an image; one of the same tag loses it."""
        self._visit(root, reference.familiar)
        self._entries = [
            entry
            for entry in self._entries
            if entry.get("annotations", {}).get(REF_NAME) != reference.tag
        ]
        names = {FULL_NAME: str(reference), REF_NAME: reference.tag}
        self._entries.append({**dump(root), "annotations": names})
        (self._folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        index = {"schemaVersion": 2, "manifests": self._entries}
        (self._folder / "index.json").write_text(json.dumps(index))

    def describe_for_docker(self, reference: Reference) -> None:
        """Say the same in docker's way, which knows one platform an archive."""
        if len(self._manifests) != 1:
            return
        manifest = self._manifests[0]
        record = {
            "Config": blob_path(manifest.config.digest),
            "RepoTags": [str(reference).removeprefix("docker.io/").removeprefix("library/")],
            "Layers": [blob_path(layer.digest) for layer in manifest.layers],
        }
        (self._folder / "manifest.json").write_text(json.dumps([record]))

    def _visit(self, descriptor: Descriptor, what: str) -> None:
        data = self._store.read(descriptor.digest)
        document = parse_manifest(data, descriptor.media_type, what)
        self._write(descriptor.digest)
        if isinstance(document, Index):
            for child in document.manifests:
                if self._store.has(child.digest):
                    self._visit(child, what)
            return
        for child in document.children():
            self._write(child.digest)
        self._manifests.append(document)

    def _write(self, digest: str) -> None:
        target = self._folder / blob_path(digest)
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        if self._linked:
            self._store.size(digest)
            target.symlink_to(self._store.path(digest).absolute())
            return
        part = target.with_name(f".{target.name}.part")
        with self._store.open(digest) as source, part.open("wb") as file:
            shutil.copyfileobj(source, file, _BLOCK)
        part.rename(target)


def _read_entries(path: Path) -> list[dict[str, Any]]:
    try:
        index = Index.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InvalidError(f"{path} is no index of an OCI image layout") from error
    return [dump(one) for one in index.manifests]


def _pack(folder: Path, path: Path) -> None:
    """An archive of a directory, without owners and times."""

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.mtime, info.uid, info.gid, info.uname, info.gname = 0, 0, 0, "", ""
        info.mode = 0o755 if info.isdir() else 0o644
        return info

    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as raw:
            file: Any = raw if path.suffix == ".tar" else gzip.GzipFile("", "wb", 6, raw, 0)
            with file, tarfile.open(fileobj=file, mode="w", dereference=True) as archive:
                for place in sorted(folder.iterdir()):
                    archive.add(place, place.name, filter=plain)
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
