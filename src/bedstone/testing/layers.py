"""Layers and images made for tests: tar archives from a few words, and what a tree looks like.

`snapshot` says of a directory what a user can see of it: two directories of the same snapshot are
the same tree.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cramjam

from bedstone.images.lazy.making import Layer

Entry = tuple[tarfile.TarInfo, bytes]


def entry(
    name: str,
    content: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    mode: int = 0o644,
    owner: tuple[int, int] = (0, 0),
    link: str = "",
    device: tuple[int, int] = (0, 0),
    mtime: str = "0",
    xattrs: Mapping[str, bytes] | None = None,
) -> Entry:
    """One entry of a layer."""
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname = kind, mode, link
    info.uid, info.gid = owner
    info.devmajor, info.devminor = device
    info.size = len(content)
    info.mtime = int(float(mtime))
    info.pax_headers = {
        f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape")
        for key, value in (xattrs or {}).items()
    }
    if "." in mtime:
        info.pax_headers["mtime"] = mtime
    return info, content


def folder(name: str, mode: int = 0o755) -> Entry:
    """A directory."""
    return entry(name, kind=tarfile.DIRTYPE, mode=mode)


def symlink(name: str, target: str) -> Entry:
    """A symbolic link."""
    return entry(name, kind=tarfile.SYMTYPE, mode=0o777, link=target)


def hardlink(name: str, target: str) -> Entry:
    """Another name of a file."""
    return entry(name, kind=tarfile.LNKTYPE, link=target)


def tar(entries: Iterable[Entry]) -> bytes:
    """A layer's tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


class Blobs:
    """Blobs in a directory, by `sha256/HEX`, as in an OCI image layout."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "sha256").mkdir(parents=True)

    def put(self, data: bytes) -> str:
        """Store; the digest."""
        value = hashlib.sha256(data).hexdigest()
        (self.root / "sha256" / value).write_bytes(data)
        return f"sha256:{value}"

    def keep(self, path: Path) -> str:
        """Store a file's content; the digest."""
        return self.put(path.read_bytes())

    def path(self, digest: str) -> Path:
        """Where a blob is."""
        return self.root.joinpath(*digest.split(":", 1))

    def layer(self, content: bytes, compression: str = "gzip") -> Layer:
        """Store a layer's tar, compressed."""
        if compression == "gzip":
            digest = self.put(gzip.compress(content, 6))
            return Layer(digest, self.path(digest), "gzip")
        if compression == "zstd":
            digest = self.put(bytes(cramjam.zstd.compress(content)))
            return Layer(digest, self.path(digest), "zstd")
        digest = self.put(content)
        return Layer(digest, self.path(digest), "")


def oci_layout(root: Path, layers: Iterable[bytes], tag: str = "it") -> Path:
    """An OCI image layout with one image of these layers' tars, gzipped; its blobs directory."""
    blobs = Blobs(root / "blobs")
    media = "application/vnd.oci.image"
    described, plain = [], []
    for content in layers:
        plain.append(f"sha256:{hashlib.sha256(content).hexdigest()}")
        packed = gzip.compress(content, 6)
        described.append(
            {
                "mediaType": f"{media}.layer.v1.tar+gzip",
                "digest": blobs.put(packed),
                "size": len(packed),
            }
        )

    def document(value: Any, kind: str) -> dict[str, Any]:
        data = json.dumps(value).encode()
        return {
            "mediaType": f"{media}.{kind}.v1+json",
            "digest": blobs.put(data),
            "size": len(data),
        }

    config = document(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": plain},
            "config": {},
        },
        "config",
    )
    manifest = document({"schemaVersion": 2, "config": config, "layers": described}, "manifest")
    manifest["annotations"] = {"org.opencontainers.image.ref.name": tag}
    (root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    (root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return root / "blobs"


def snapshot(root: Path, *, ignore: Iterable[str] = ()) -> dict[str, tuple[Any, ...]]:
    """What can be seen of each file below a directory, by its path.

    Kind and permissions, owner, time to the nanosecond (of what is no directory), size and digest,
    target, device, extended attributes, and the sorted names that share the inode.
    """
    base = os.fsencode(root)
    seen: dict[str, tuple[Any, ...]] = {}
    names: dict[tuple[int, int], list[str]] = {}
    for folder_path, folders, files in os.walk(base):
        for name in [*folders, *files, *([b""] if folder_path == base else [])]:
            path = os.path.join(folder_path, name)  # noqa: PTH118 (bytes)
            shown = os.path.relpath(path, base).decode("utf-8", "surrogateescape")
            if shown in ignore:
                continue
            found = os.lstat(path)
            content: Any = None
            match stat.S_IFMT(found.st_mode):
                case stat.S_IFREG:
                    with open(path, "rb") as file:  # noqa: PTH123 (bytes)
                        content = found.st_size, hashlib.file_digest(file, "sha256").hexdigest()
                case stat.S_IFLNK:
                    content = os.readlink(path)  # noqa: PTH115 (bytes)
                case stat.S_IFCHR | stat.S_IFBLK:
                    content = os.major(found.st_rdev), os.minor(found.st_rdev)
            attributes = tuple(
                (key, os.getxattr(path, key, follow_symlinks=False))
                for key in sorted(os.listxattr(path, follow_symlinks=False))
            )
            time = None if stat.S_ISDIR(found.st_mode) else found.st_mtime_ns
            if not stat.S_ISDIR(found.st_mode):
                names.setdefault((found.st_dev, found.st_ino), []).append(shown)
            seen[shown] = (
                oct(found.st_mode),
                found.st_uid,
                found.st_gid,
                time,
                content,
                attributes,
                (found.st_dev, found.st_ino),
            )
    return {
        path: (*facts[:-1], tuple(sorted(names.get(facts[-1], [])))) for path, facts in seen.items()
    }
