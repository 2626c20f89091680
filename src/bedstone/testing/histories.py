"""Which isolation a history of transactions shows: anomalies, each with its witness.

After Elle (Kingsbury and Alvaro, VLDB 2020). Registers are lists that are appended to, or are
written (then every value is written once, and the order of writes must be given). Pure.
`python -m bedstone.testing.histories FILE.jsonl` checks a recorded history (see `history_files`).

Rules:
- Every appended or written value is unique per register, so that a read tells whose write it saw.
- What is found is proved by the history; what is not found may still be there.
- What an aborted transaction appended, and took back, is no version: reading it is G1a alone.
- Edges of the dependency graph: WW (its write was overwritten or appended to by), WR (its write was
  read by), RW (it read what came before a write of).

| anomaly | means |
|---|---|
| `G0` | a cycle of WW: dirty write |
| `G1a` | an aborted transaction's write was read |
| `G1b` | a write was read that its transaction wrote over later |
| `G1c` | a cycle of WW and WR |
| `lost-update` | two transactions read one version of a register, and both wrote it |
| `G-single` | a cycle with exactly one RW: read skew |
| `G2-item` | a cycle with several RW: write skew |
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import combinations, pairwise
from typing import Final

from bedstone.errors import InvalidError
from bedstone.testing.history_graph import Edge, Graph, Step, cycles


class Kind(StrEnum):
    """What an operation does."""

    APPEND = "append"
    WRITE = "write"
    READ = "read"
    READ_LIST = "read-list"


class Level(StrEnum):
    """The strongest level that a history may have had."""

    NONE = "none"
    READ_UNCOMMITTED = "read-uncommitted"
    READ_COMMITTED = "read-committed"
    SNAPSHOT_ISOLATION = "snapshot-isolation"
    SERIALIZABLE = "serializable"


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    Args:
        kind: what.
        register: where.
        value: appended or written, or read (None: nothing was there).
        seen: what READ_LIST saw, in order.
    """

    kind: Kind
    register: str
    value: int | None = None
    seen: tuple[int, ...] = ()


def append(register: str, value: int) -> Operation:
    """Append a value to a list."""
    return Operation(Kind.APPEND, register, value)


def write(register: str, value: int) -> Operation:
    """Write a register."""
    return Operation(Kind.WRITE, register, value)


def read(register: str, value: int | None) -> Operation:
    """Read a register."""
    return Operation(Kind.READ, register, value)


def read_list(register: str, *seen: int) -> Operation:
    """Read a list."""
    return Operation(Kind.READ_LIST, register, seen=seen)


@dataclass(frozen=True, slots=True)
class Txn:
    """One transaction: its operations in order, and whether it was committed."""

    name: str
    operations: tuple[Operation, ...]
    committed: bool = True


@dataclass(frozen=True, slots=True)
class Anomaly:
    """One anomaly.

    Args:
        name: as in the table above.
        cycle: the witness; ends where it began. Empty where the transactions alone say it.
        transactions: who takes part.
        detail: for people.
    """

    name: str
    cycle: tuple[Step, ...] = ()
    transactions: tuple[str, ...] = ()
    detail: str = ""


_FORBIDDEN: Final = (
    (Level.NONE, {"G0", "incompatible-order"}),
    (Level.READ_UNCOMMITTED, {"G1a", "G1b", "G1c"}),
    (Level.READ_COMMITTED, {"G-single", "lost-update"}),
    (Level.SNAPSHOT_ISOLATION, {"G2-item"}),
)


def strongest_level(
    history: Sequence[Txn], orders: Mapping[str, Sequence[int]] | None = None
) -> Level:
    """The strongest level that the history does not disprove."""
    found = {anomaly.name for anomaly in anomalies(history, orders)}
    return next((level for level, names in _FORBIDDEN if names & found), Level.SERIALIZABLE)


def anomalies(
    history: Sequence[Txn], orders: Mapping[str, Sequence[int]] | None = None
) -> tuple[Anomaly, ...]:
    """Every kind of anomaly found, with one witness for each kind of cycle.

    Args:
        history: committed and aborted transactions, in any order.
        orders: for written registers: the values in the order in which they were installed.

    Raises:
        InvalidError: a value is written twice, or a written register has no order.
    """
    view = _view(history, orders or {})
    found = [*view.anomalies, *_aborted_reads(view), *_intermediate_reads(view)]
    found += _lost_updates(view)
    graph = _graph(view)
    found += [
        Anomaly(name, cycle, tuple(dict.fromkeys(step.source for step in cycle)))
        for name, cycle in cycles(graph)
    ]
    return tuple(found)


@dataclass
class _View:
    history: Sequence[Txn]
    writers: dict[tuple[str, int], Txn] = field(default_factory=dict)
    orders: dict[str, tuple[int, ...]] = field(default_factory=dict)
    anomalies: list[Anomaly] = field(default_factory=list)

    def committed(self) -> Iterable[Txn]:
        return (txn for txn in self.history if txn.committed)

    def aborted(self, register: str, value: int) -> bool:
        """Whether the value's transaction is known to have aborted."""
        writer = self.writers.get((register, value))
        return writer is not None and not writer.committed

    def installed(self, operation: Operation) -> tuple[int, ...]:
        """What a read saw of others, oldest first; of a list without what was taken back."""
        match operation.kind:
            case Kind.READ if operation.value is not None:
                return (operation.value,)
            case Kind.READ_LIST:
                register = operation.register
                return tuple(it for it in operation.seen if not self.aborted(register, it))
            case _:
                return ()


def _view(history: Sequence[Txn], given: Mapping[str, Sequence[int]]) -> _View:
    view = _View(history)
    for txn in history:
        for operation in txn.operations:
            _note(view, txn, operation)
    longest: dict[str, tuple[int, ...]] = {}
    for txn in view.committed():
        for operation in txn.operations:
            if operation.kind is Kind.READ_LIST:
                before, seen = longest.get(operation.register, ()), view.installed(operation)
                short, long = sorted((before, seen), key=len)
                if long[: len(short)] != short:
                    detail = f"{operation.register}: {short} and {long}"
                    view.anomalies.append(Anomaly("incompatible-order", (), (txn.name,), detail))
                longest[operation.register] = long
    written = {
        operation.register
        for txn in view.committed()
        for operation in txn.operations
        if operation.kind is Kind.WRITE
    }
    if missing := sorted(written - set(given)):
        raise InvalidError(f"registers {missing} are written, and the order is not given")
    view.orders = longest | {
        register: tuple(value for value in order if not view.aborted(register, value))
        for register, order in given.items()
    }
    return view


def _note(view: _View, txn: Txn, operation: Operation) -> None:
    if operation.kind not in {Kind.APPEND, Kind.WRITE} or operation.value is None:
        return
    key = operation.register, operation.value
    if key in view.writers:
        raise InvalidError(f"{operation.register}: the value {operation.value} is written twice")
    view.writers[key] = txn


def _external_reads(txn: Txn) -> Iterable[Operation]:
    """The reads whose answer others gave: before it wrote the register itself."""
    own: set[str] = set()
    for operation in txn.operations:
        if operation.kind in {Kind.APPEND, Kind.WRITE}:
            own.add(operation.register)
        elif operation.register not in own:
            yield operation


def _seen(operation: Operation) -> tuple[int, ...]:
    if operation.kind is Kind.READ:
        return () if operation.value is None else (operation.value,)
    return operation.seen


def _aborted_reads(view: _View) -> Iterable[Anomaly]:
    for txn in view.committed():
        for operation in _external_reads(txn):
            for value in _seen(operation):
                if view.aborted(operation.register, value):
                    writer = view.writers[operation.register, value].name
                    detail = f"{txn.name} read {value} of {operation.register}, aborted: {writer}"
                    yield Anomaly("G1a", (), (writer, txn.name), detail)


def _intermediate_reads(view: _View) -> Iterable[Anomaly]:
    for txn in view.committed():
        for operation in _external_reads(txn):
            seen, register = _seen(operation), operation.register
            writer = view.writers.get((register, seen[-1])) if seen else None
            if writer is not None and _last(writer, register) != seen[-1]:
                detail = f"{txn.name} read {seen[-1]} of {register} within {writer.name}"
                yield Anomaly("G1b", (), (writer.name, txn.name), detail)


def _last(txn: Txn, register: str) -> int | None:
    values = [
        operation.value
        for operation in txn.operations
        if operation.register == register and operation.kind in {Kind.APPEND, Kind.WRITE}
    ]
    return values[-1] if values else None


def _lost_updates(view: _View) -> Iterable[Anomaly]:
    readers: dict[tuple[str, int | None], list[Txn]] = defaultdict(list)
    for txn in view.committed():
        latest = {it.register: view.installed(it) for it in _external_reads(txn)}
        for register, seen in latest.items():
            if _last(txn, register) is not None:
                readers[register, seen[-1] if seen else None].append(txn)
    for (register, value), found in readers.items():
        for one, other in combinations(found, 2):
            detail = f"both read {value} of {register}, and both wrote it"
            yield Anomaly("lost-update", (), (one.name, other.name), detail)


def _graph(view: _View) -> Graph:
    graph: Graph = {txn.name: {} for txn in view.committed()}

    def add(source: Txn | None, edge: Edge, target: Txn | None, register: str) -> None:
        if source and target and source.committed and target.committed and source is not target:
            graph[source.name].setdefault(target.name, {}).setdefault(edge, register)

    writers = view.writers
    for register, order in view.orders.items():
        for value, following in pairwise(order):
            add(
                writers.get((register, value)),
                Edge.WW,
                writers.get((register, following)),
                register,
            )
    for txn in view.committed():
        for operation in _external_reads(txn):
            register, seen = operation.register, view.installed(operation)
            if seen:
                add(writers.get((register, seen[-1])), Edge.WR, txn, register)
            for value in _following(view, register, seen):
                add(txn, Edge.RW, writers.get((register, value)), register)
    return graph


def _following(view: _View, register: str, seen: tuple[int, ...]) -> Sequence[int]:
    """What was installed after the version that was seen: what came next, as far as is known."""
    order = view.orders.get(register, ())
    if seen and seen[-1] not in order:
        return ()
    at = order.index(seen[-1]) + 1 if seen else 0
    if at < len(order):
        return order[at : at + 1]
    # appended, and seen by nobody: after all that was seen
    return [value for name, value in view.writers if name == register and value not in order]


if __name__ == "__main__":
    from bedstone.testing.history_files import main

    raise SystemExit(main())
