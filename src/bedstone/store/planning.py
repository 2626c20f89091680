"""What a write would change: pure, and the same for every driver.

A driver hands a `Draft` what it knows (a `View`) and the requests that wait, in order. The draft
decides each one by itself, against the view and the requests drafted before it, and gathers what
must be written. Nothing here touches a disk, a network, a clock or the view.

Rules:
- A refused request leaves no trace in the draft.
- Each request that changes a key takes the next revision; one that changes none takes none.
- The outcomes hold only once the draft as a whole is durable: a conflict may be with a change of
  the same draft. A driver that cannot write the draft fails every request in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, assert_never

from bedstone.errors import ConflictError, Error, InvalidError, NotFoundError
from bedstone.store.protocol import ABSENT, ANY, Delete, Entry, Event, Operation, Put

LONGEST_NAME: Final = 1024
"""Bytes of UTF-8 in a key or the name of a lease: what every database can index."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Apply all operations or none."""

    operations: tuple[Operation, ...]


@dataclass(frozen=True, slots=True)
class Grant:
    """Create or renew a lease."""

    lease: str
    ttl: float


@dataclass(frozen=True, slots=True)
class Renew:
    """Start a lease's time anew."""

    lease: str


@dataclass(frozen=True, slots=True)
class Revoke:
    """End a lease and delete its keys; with `renewal`, only if it was not renewed since."""

    lease: str
    renewal: int | None = None


Request = Commit | Grant | Renew | Revoke
Outcome = int | Error
"""The store's revision after the request, or why it was refused."""


class View(Protocol):
    """What a draft reads: the store before it."""

    @property
    def revision(self) -> int:
        """The last revision."""
        ...

    def entry(self, key: str) -> Entry | None:
        """The key's entry."""
        ...

    def renewal(self, lease: str) -> int | None:
        """The lease's renewal counter; None when there is no such lease."""
        ...

    def lease_keys(self, lease: str) -> Iterable[str]:
        """The keys that end with the lease."""
        ...


def check_name(kind: str, name: str) -> None:
    """Refuse what some driver could not keep.

    Raises:
        InvalidError: empty, too long, holds NUL, or is no Unicode text (a lone surrogate).
    """
    if not name:
        raise InvalidError(f"got an empty {kind}, expected a name")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise InvalidError(f"got {kind} {name!r}, expected Unicode text") from error
    if size > LONGEST_NAME:
        raise InvalidError(f"got a {kind} of {size} bytes, expected at most {LONGEST_NAME}")
    if "\0" in name:
        raise InvalidError(f"got {kind} {name!r}, expected no NUL character")


def check_operations(operations: Sequence[Operation]) -> tuple[Operation, ...]:
    """Refuse what no state of the store could accept.

    Raises:
        InvalidError: a key is unfit or named twice, a value is not bytes, or an expected revision
            is negative.
    """
    seen: set[str] = set()
    for operation in operations:
        check_name("key", operation.key)
        if operation.key in seen:
            raise InvalidError(f"key {operation.key!r} is named twice in one commit")
        seen.add(operation.key)
        if operation.expected < ANY:
            raise InvalidError(
                f"got expected revision {operation.expected} for key {operation.key!r}, "
                "expected ANY, ABSENT or a revision"
            )
        if isinstance(operation, Put):
            _check_value(operation.key, operation.value)
    return tuple(operations)


def check_lease(lease: str, ttl: float) -> float:
    """Refuse a lease that could never be kept.

    Raises:
        InvalidError: the name is unfit or the time to live is not a positive, finite number.
    """
    check_name("lease", lease)
    if not (math.isfinite(ttl) and ttl > 0):
        raise InvalidError(f"got a time to live of {ttl} s, expected a positive number")
    return float(ttl)


def _check_value(key: str, value: object) -> None:
    if not isinstance(value, bytes):
        raise InvalidError(
            f"got {type(value).__name__} as the value of key {key!r}, expected bytes"
        )


class Draft:
    """Several requests, decided one after the other, to be written as one.

    Attributes:
        batches: the changes, one batch a revision, in order.
        grants: leases to create or renew, with their time to live.
        renewals: leases to renew.
        ended: leases to remove.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._entries: dict[str, Entry | None] = {}
        self.revision = view.revision
        self.batches: list[tuple[Event, ...]] = []
        self.grants: dict[str, float] = {}
        self.renewals: set[str] = set()
        self.ended: set[str] = set()

    @property
    def empty(self) -> bool:
        """Whether nothing needs to be written (a renewal is observed, not kept)."""
        return not (self.batches or self.grants or self.ended)

    @property
    def final(self) -> dict[str, Entry | None]:
        """Every changed key as it is after the last batch; None when it is gone."""
        return self._entries

    def add(self, request: Request) -> Outcome:
        """Decide one request."""
        try:
            match request:
                case Commit():
                    self._change([*self._events(request.operations)])
                case Grant():
                    self.grants[request.lease] = request.ttl
                    self.ended.discard(request.lease)
                case Renew():
                    self._renew(request.lease)
                case Revoke():
                    self._end(request)
                case _:
                    assert_never(request)
        except Error as error:
            return error
        return self.revision

    def entry(self, key: str) -> Entry | None:
        """The key's entry as of this draft."""
        return self._entries[key] if key in self._entries else self._view.entry(key)

    def _has_lease(self, lease: str) -> bool:
        if lease in self.grants:
            return True
        return lease not in self.ended and self._view.renewal(lease) is not None

    def _events(self, operations: Sequence[Operation]) -> Iterable[Event]:
        revision = self.revision + 1
        for operation in operations:
            key = operation.key
            present = self.entry(key)
            _check_expected(key, operation.expected, present)
            match operation:
                case Delete():
                    if present is not None:
                        yield Event(key, revision, None)
                case Put(_, value, _, lease):
                    if lease is not None and not self._has_lease(lease):
                        raise InvalidError(
                            f"key {key!r} names lease {lease!r}, which does not exist",
                            hint="grant the lease first; it may have ended",
                        )
                    created = revision if present is None else present.created
                    yield Event(key, revision, Entry(key, value, revision, created, lease))
                case _:
                    assert_never(operation)

    def _change(self, events: Sequence[Event]) -> None:
        if not events:
            return
        self.revision += 1
        for event in events:
            self._entries[event.key] = event.entry
        self.batches.append(tuple(events))

    def _renew(self, lease: str) -> None:
        if not self._has_lease(lease):
            raise NotFoundError(
                f"lease {lease!r} has ended", hint="grant it again and write its keys anew"
            )
        self.renewals.add(lease)

    def _end(self, request: Revoke) -> None:
        lease = request.lease
        if not self._has_lease(lease):
            return
        if request.renewal is not None and (
            lease in self.grants
            or lease in self.renewals
            or request.renewal != self._view.renewal(lease)
        ):
            return  # renewed after it was seen to lapse
        keys = {key for key in self._view.lease_keys(lease) if key not in self._entries}
        keys |= {
            key
            for key, entry in self._entries.items()
            if entry is not None and entry.lease == lease
        }
        self.grants.pop(lease, None)
        self.renewals.discard(lease)
        self.ended.add(lease)
        self._change([Event(key, self.revision + 1, None) for key in sorted(keys)])


def _check_expected(key: str, expected: int, present: Entry | None) -> None:
    if expected == ANY:
        return
    found = ABSENT if present is None else present.revision
    if found != expected:
        raise ConflictError(
            f"key {key!r} is {_name(found)}, expected {_name(expected)}",
            hint="read it again, then retry",
        )


def _name(revision: int) -> str:
    return "absent" if revision == ABSENT else f"at revision {revision}"
