"""Recorded histories in files: one event a line, as JSON.

| line | means |
|---|---|
| `{"type": "invoke", "name": "T1"}` | it began |
| `{"type": "ok", "name": "T1", "operations": [["append", "x", 1], …]}` | it was committed |
| `{"type": "fail", …}` | it was aborted, certainly |
| `{"type": "unknown", …}` | nobody could say |
| `{"type": "orders", "orders": {"r": [3, 1]}}` | how writes of registers were installed |

Operations: `["append", REGISTER, VALUE]`, `["write", …]`, `["read", REGISTER, VALUE or null]`,
`["read-list", REGISTER, [VALUE, …]]`.

Rules:
- An unknown one may be told by a further line. What stays unknown counts as committed if a
  committed transaction read it; else it is left out, and proves nothing. So does one that only
  began.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bedstone.errors import Error, InvalidError
from bedstone.testing.histories import Anomaly, Kind, Operation, Txn, anomalies, strongest_level

Orders = Mapping[str, Sequence[int]]


def dumped(event: str, txn: Txn) -> str:
    """One line."""
    operations = [
        [it.kind, it.register, list(it.seen) if it.kind is Kind.READ_LIST else it.value]
        for it in txn.operations
    ]
    return json.dumps({"type": event, "name": txn.name, "operations": operations})


def parsed(lines: Iterable[str]) -> tuple[list[Txn], Orders]:
    """A history and the orders of its registers.

    Raises:
        InvalidError: a line is none of the above.
    """
    known: list[Txn] = []
    unknown: list[Txn] = []
    orders: dict[str, Sequence[int]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
            match event["type"]:
                case "ok" | "fail" as kind:
                    known.append(_txn(event, committed=kind == "ok"))
                case "unknown":
                    unknown.append(_txn(event, committed=True))
                case "orders":
                    orders.update(event["orders"])
                case "invoke":
                    pass
                case other:
                    raise InvalidError(f"line {number}: got type {other!r}")
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidError(
                f"line {number} is no event of a history",
                hint='each line is like {"type": "ok", "name": "T1", "operations": []}',
            ) from error
    told = {txn.name for txn in known}
    left = [txn for txn in unknown if txn.name not in told]
    return [*known, *_observed(known, left)], orders


def _txn(event: Mapping[str, object], *, committed: bool) -> Txn:
    found = event["operations"]
    if not isinstance(found, list):
        raise TypeError
    return Txn(str(event["name"]), tuple(_operation(*it) for it in found), committed)


def _operation(kind: str, register: str, value: object) -> Operation:
    match Kind(kind), value:
        case Kind.READ_LIST, list():
            return Operation(Kind.READ_LIST, register, seen=tuple(map(int, value)))
        case Kind.READ, None:
            return Operation(Kind.READ, register)
        case Kind.APPEND | Kind.WRITE | Kind.READ as plain, int():
            return Operation(plain, register, value)
        case _:
            raise ValueError(kind)


def _observed(known: Sequence[Txn], unknown: Sequence[Txn]) -> list[Txn]:
    """Those whose writes somebody who was committed has read, directly or through each other."""
    found: list[Txn] = []
    left = list(unknown)
    while True:
        read = {
            (operation.register, value)
            for txn in [*(txn for txn in known if txn.committed), *found]
            for operation in txn.operations
            for value in (*operation.seen, operation.value)
            if operation.kind in {Kind.READ, Kind.READ_LIST}
        }
        more = [
            txn
            for txn in left
            if any(
                (operation.register, operation.value) in read
                for operation in txn.operations
                if operation.kind in {Kind.APPEND, Kind.WRITE}
            )
        ]
        if not more:
            return found
        found += more
        left = [txn for txn in left if txn not in more]


def shown(anomaly: Anomaly) -> str:
    """One anomaly with its witness, for people."""
    if not anomaly.cycle:
        return f"{anomaly.name}: {anomaly.detail}"
    way = "".join(f" -{step.edge}({step.register})-> {step.target}" for step in anomaly.cycle)
    return f"{anomaly.name}: {anomaly.cycle[0].source}{way}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Check files; 0 for serializable, 1 for anomalies, 2 for what is no history."""
    paths = sys.argv[1:] if arguments is None else arguments
    if not paths:
        sys.stderr.write("usage: python -m bedstone.testing.histories FILE.jsonl...\n")
        return 2
    clean = True
    for path in paths:
        try:
            history, orders = parsed(Path(path).read_text().splitlines())
            found = anomalies(history, orders)
            level = strongest_level(history, orders)
        except (OSError, Error) as error:
            sys.stderr.write(f"{path}: {error}\n")
            return 2
        sys.stdout.write(f"{path}: {len(history)} transactions, at most {level}\n")
        sys.stdout.writelines(f"  {shown(anomaly)}\n" for anomaly in found)
        clean = clean and not found
    return 0 if clean else 1
