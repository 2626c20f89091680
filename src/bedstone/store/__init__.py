"""The store: where every resource lives and where controllers meet.

`open_store("sqlite:///path")` gives a `Store`; see `bedstone.store.protocol` for what it promises.
"""

from bedstone.store.protocol import (
    ABSENT,
    ANY,
    CompactedError,
    Delete,
    Entry,
    Event,
    Listing,
    Operation,
    Put,
    Store,
    open_store,
)

__all__ = [
    "ABSENT",
    "ANY",
    "CompactedError",
    "Delete",
    "Entry",
    "Event",
    "Listing",
    "Operation",
    "Put",
    "Store",
    "open_store",
]
