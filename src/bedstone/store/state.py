"""The present entries in memory, ready to be listed by prefix.

Cost: a look-up is a hash; a change of a key is a hash, a new or removed key also a search in the
sorted keys and a move of pointers (some microseconds at 10,000 keys); a list is what it returns.
"""

from __future__ import annotations

import bisect
import sys
from collections.abc import Iterable

from bedstone.store.protocol import Entry, Event, Listing


def upper_bound(prefix: str) -> str | None:
    """The least text that is greater than all that start with `prefix`; None if there is none.

    It is text too (no surrogate), so it can be sent to a database that compares code points.
    """
    for end in range(len(prefix), 0, -1):
        last = ord(prefix[end - 1])
        if last < sys.maxunicode:
            following = 0xE000 if last + 1 == 0xD800 else last + 1
            return prefix[: end - 1] + chr(following)
    return None


class State:
    """Entries as of one revision, with an index by prefix and one by lease."""

    def __init__(self, revision: int = 0, entries: Iterable[Entry] = ()) -> None:
        self.revision = revision
        self._entries = {entry.key: entry for entry in entries}
        self._keys = sorted(self._entries)
        self._by_lease: dict[str, set[str]] = {}
        for entry in self._entries.values():
            if entry.lease is not None:
                self._by_lease.setdefault(entry.lease, set()).add(entry.key)

    def get(self, key: str) -> Entry | None:
        """The key's entry."""
        return self._entries.get(key)

    def list(self, prefix: str) -> Listing:
        """The entries under a prefix, sorted by key."""
        start = bisect.bisect_left(self._keys, prefix)
        bound = upper_bound(prefix)
        end = None if bound is None else bisect.bisect_left(self._keys, bound, start)
        return Listing(self.revision, [self._entries[key] for key in self._keys[start:end]])

    def lease_keys(self, lease: str) -> Iterable[str]:
        """The keys that end with a lease."""
        return self._by_lease.get(lease, ())

    def apply(self, batch: tuple[Event, ...]) -> None:
        """Take over one commit."""
        self.revision = batch[0].revision
        for event in batch:
            before = self._entries.get(event.key)
            if before is not None and before.lease is not None:
                self._detach(before.lease, event.key)
            if event.entry is None:
                if before is not None:
                    del self._entries[event.key]
                    del self._keys[bisect.bisect_left(self._keys, event.key)]
                continue
            if before is None:
                bisect.insort(self._keys, event.key)
            self._entries[event.key] = event.entry
            if event.entry.lease is not None:
                self._by_lease.setdefault(event.entry.lease, set()).add(event.key)

    def _detach(self, lease: str, key: str) -> None:
        keys = self._by_lease[lease]
        keys.discard(key)
        if not keys:
            del self._by_lease[lease]
