"""Garbage collection: removes what no reference and no lease leads to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ValidationError

from bedstone.errors import NotFoundError
from bedstone.images.models import DOCUMENT_BYTES, Index, Manifest
from bedstone.images.roots import sweep_roots
from bedstone.images.store import ContentStore


@dataclass(frozen=True, slots=True)
class Collected:
    """What was removed: digests, and their bytes (those of downloads that were cut included)."""

    removed: tuple[str, ...]
    freed: int


def closure(store: ContentStore, roots: Iterable[str]) -> set[str]:
    """The digests that some lead to, themselves included, whether they are in the store or not.

    A manifest leads to its config and layers, an index to its manifests, and anything to what is
    attached to it; an artifact does not lead to the image that it is about.
    """
    seen = set(roots)
    waiting = list(seen)
    while waiting:
        digest = waiting.pop()
        found = {*_children(store, digest)}
        found.update(child.digest for child in store.attached(digest).values())
        waiting += found - seen
        seen |= found
    return seen


def roots(store: ContentStore) -> set[str]:
    """What references mean and leases hold."""
    named = {named.descriptor.digest for named in store.names()}
    return named.union(*(lease.holds for lease in store.leases()))


def collect(store: ContentStore, *, partial_after: float = 86400.0) -> Collected:
    """Remove what is not used. Blocks; whoever adds an image waits for it.

    Args:
        store: the store.
        partial_after: seconds after which a download that was cut is given up.

    Raises:
        OSError: the disk refuses.
    """
    if any(store.root.glob("lazy/run-*")):
        from bedstone.images.lazy.holding import sweep  # it needs much, and is seldom needed

        sweep(store)
    with store.collecting():
        kept = closure(store, roots(store))
        removed = [(digest, size) for digest, size in store.blobs() if digest not in kept]
        for digest, _ in removed:
            store.delete(digest)
        freed = store.sweep(kept, partial_after)
        sweep_roots(store, kept)
    return Collected(
        tuple(sorted(digest for digest, _ in removed)), freed + sum(size for _, size in removed)
    )


def stored_bytes(store: ContentStore, root: str) -> int:
    """Bytes in the store of what one digest leads to, each blob counted once."""
    total = 0
    for digest in closure(store, [root]):
        try:
            total += store.size(digest)
        except NotFoundError:
            continue  # of another platform
    return total


def _children(store: ContentStore, digest: str) -> list[str]:
    """What a blob refers to, if it is a manifest or an index.

    By its content, not by a type that somebody gave: a lease knows digests only, and to follow one
    too many only keeps something.
    """
    try:
        if store.size(digest) > DOCUMENT_BYTES:
            return []
        with store.open(digest) as file:
            start = file.read(64)
            if not start.lstrip().startswith(b"{"):
                return []
            data = start + file.read()
    except NotFoundError:
        return []
    found = []
    for kind in (Manifest, Index):
        with contextlib.suppress(ValidationError):
            found += [child.digest for child in kind.model_validate_json(data).children()]
    return found
