"""Chunks on disk, by digest, shared by all images of a machine.

Invariants:
- A file is written whole under another name first. What a crash tears all the same, or somebody
  changes, does not verify: it is deleted and fetched again, so nothing is flushed to disk.
- Any number of processes may use a cache at once; the last of two equal writers wins.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from pathlib import Path

from bedstone.errors import InvalidError

LIMIT = 10 << 30
"""Bytes of a cache, unless BEDSTONE_CHUNK_CACHE says otherwise."""
_VARIABLE = "BEDSTONE_CHUNK_CACHE"


def limit() -> int:
    """Bytes that the cache of this machine may have. Raises InvalidError."""
    text = os.environ.get(_VARIABLE, "")
    if not text:
        return LIMIT
    found = re.fullmatch(r"(\d+)([kmgt]?)", text.lower())
    if found is None:
        raise InvalidError(f"got {_VARIABLE} {text!r}, expected a size such as 20g")
    return int(found[1]) << {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[found[2]]


class ChunkCache:
    """A directory of chunks.

    Args:
        root: the directory, made when it is written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, digest: bytes) -> bytes | None:
        """A chunk's content, verified; None if it is not here."""
        path = self._path(digest)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(content).digest() != digest:
            path.unlink(missing_ok=True)
            return None
        return content

    def has(self, digest: bytes) -> bool:
        """Whether there is a file for it; it may still fail to verify."""
        return self._path(digest).exists()

    def put(self, digest: bytes, content: bytes) -> None:
        """Keep a chunk that the caller has verified. A full disk is no error: nothing is kept."""
        path = self._path(digest)
        new = path.with_name(f".{path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                new.write_bytes(content)
                new.replace(path)
            finally:
                new.unlink(missing_ok=True)

    def trim(self, limit: int) -> int:
        """Delete the chunks read longest ago until at most `limit` bytes are left.

        Safe beside readers: they fetch again. Returns: the bytes deleted.
        """
        files = []
        for path in self.root.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                files.append((max(found.st_atime, found.st_mtime), found.st_size, path))
        excess = sum(size for _, size, _ in files) - limit
        deleted = 0
        for _, size, path in sorted(files):
            if deleted >= excess:
                break
            path.unlink(missing_ok=True)
            deleted += size
        return deleted

    def _path(self, digest: bytes) -> Path:
        name = digest.hex()
        return self.root / name[:2] / name
