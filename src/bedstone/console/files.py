"""The files of the console's pages, held in memory: compressed and digested once.

A path is looked up in a table of the files that are there, so that no path can lead out of their
folder. A file whose name carries its digest never changes, and may be kept for ever; all else is
asked for again, by its ETag (RFC 9110 §8.8.3). Files that were built anew are taken up when
`index.html` has changed.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import Response

_TYPES: Mapping[str, str] = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
_DIGESTED = re.compile(r"[.-](?=[A-Za-z0-9_]*[0-9])[A-Za-z0-9_]{8,}\.[a-z0-9]+$")
"""`app-3FA9C2D1.js`."""
_SMALLEST = 512
"""Bytes from which compressing is worth it."""
INDEX = "/index.html"


@dataclass(frozen=True, slots=True)
class File:
    """One file: as it is, and compressed where that is smaller."""

    content: bytes
    compressed: bytes | None
    etag: str
    type: str
    lasting: bool


class Files:
    """A folder of files, by the path under which they are served.

    Args:
        folder: where they are; what is not there is simply not served.
        index: the path of the page that every other path without a file gets, if there is one.
    """

    def __init__(self, folder: Path, index: str = INDEX) -> None:
        self._folder = folder
        self._index = index
        self._files: dict[str, File] = {}
        self._stamp: tuple[int, int] | None = None

    def find(self, path: str) -> File | None:
        """The file of a path; for the path of a page, the index."""
        self._refresh()
        if path in self._files:
            return None if path == self._index else self._files[path]
        last = path.rpartition("/")[2]
        return None if "." in last else self._files.get(self._index)

    def _refresh(self) -> None:
        try:
            found = (self._folder / self._index.lstrip("/")).stat()
        except OSError:
            return  # being built just now: what was there serves on
        stamp = (found.st_mtime_ns, found.st_ino)
        if stamp != self._stamp:
            self._files = _read(self._folder)
            self._stamp = stamp


def _read(folder: Path) -> dict[str, File]:
    found = {}
    for path in sorted(folder.rglob("*")):
        kind = _TYPES.get(path.suffix)
        if kind is not None and path.is_file() and not path.is_symlink():
            name = "/" + path.relative_to(folder).as_posix()
            found[name] = _file(path.read_bytes(), kind, os.fspath(path.name))
    return found


def _file(content: bytes, kind: str, name: str) -> File:
    text = kind.startswith("text/") or "json" in kind or "svg" in kind
    packed = gzip.compress(content, 9, mtime=0) if text and len(content) >= _SMALLEST else None
    return File(
        content,
        packed if packed is not None and len(packed) < len(content) else None,
        f'"{hashlib.sha256(content).hexdigest()[:24]}"',
        kind,
        _DIGESTED.search(name) is not None,
    )


def answer(file: File, method: str, headers: Headers) -> Response:
    """What to answer a GET or HEAD of a file."""
    kept = "public, max-age=31536000, immutable" if file.lasting else "no-cache"
    given = {"Cache-Control": kept, "ETag": file.etag, "Vary": "Accept-Encoding"}
    known = {tag.strip().removeprefix("W/") for tag in headers.get("if-none-match", "").split(",")}
    if file.etag in known:
        return Response(status_code=304, headers=given)
    content = file.content
    if file.compressed is not None and _takes_gzip(headers.get("accept-encoding", "")):
        content, given["Content-Encoding"] = file.compressed, "gzip"
    given["Content-Length"] = str(len(content))
    return Response(content if method == "GET" else b"", headers=given, media_type=file.type)


def _takes_gzip(accepted: str) -> bool:
    """RFC 9110 §12.5.3, as far as browsers go: named, and not with a weight of zero."""
    for part in accepted.lower().split(","):
        coding, _, weight = part.partition(";")
        if coding.strip() == "gzip":
            return weight.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False
