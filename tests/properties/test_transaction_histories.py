"""Stores of known isolation, under random transactions: the checker says what they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from bedstone.testing.histories import (
    Level,
    Operation,
    Txn,
    anomalies,
    append,
    read_list,
    strongest_level,
)

Plan = list[tuple[str, bool]]
plans = st.lists(
    st.lists(st.tuples(st.sampled_from("xyz"), st.booleans()), min_size=1, max_size=4),
    min_size=1,
    max_size=6,
)


@dataclass
class Store:
    """Lists under snapshot isolation: reads of the snapshot; of two writers the first wins."""

    lists: dict[str, tuple[int, ...]] = field(default_factory=dict)
    fresh: Iterator[int] = field(default_factory=lambda: count(1))

    def run(self, name: str, plan: Plan) -> Iterator[Txn]:
        """One transaction, a step at a time; the last step gives what became of it."""
        snapshot, mine = dict(self.lists), dict(self.lists)
        done: list[Operation] = []
        for register, reads in plan:
            if reads:
                done.append(read_list(register, *mine.get(register, ())))
            else:
                value = next(self.fresh)
                mine[register] = (*mine.get(register, ()), value)
                done.append(append(register, value))
            yield Txn(name, tuple(done), committed=False)
        written = {it.register for it in done if it.kind == "append"}
        wins = all(self.lists.get(it, ()) == snapshot.get(it, ()) for it in written)
        if wins:
            self.lists.update({it: mine[it] for it in written})
        yield Txn(name, tuple(done), committed=wins)

    def all(self) -> Txn:
        """A last transaction that reads everything."""
        return Txn("last", tuple(read_list(name, *seen) for name, seen in self.lists.items()))


@given(plans)
def test_a_serial_history_is_clean(chosen: list[Plan]) -> None:
    store = Store()
    history = [list(store.run(f"T{n}", plan))[-1] for n, plan in enumerate(chosen)]
    history.append(store.all())
    assert all(txn.committed for txn in history)
    assert anomalies(history) == ()


@given(plans, st.randoms(use_true_random=False))
def test_snapshot_isolation_shows_write_skew_alone(chosen: list[Plan], order: object) -> None:
    history = _interleaved(chosen, order)
    assert {anomaly.name for anomaly in anomalies(history)} <= {"G2-item"}
    assert strongest_level(history) in {Level.SNAPSHOT_ISOLATION, Level.SERIALIZABLE}


def _interleaved(chosen: list[Plan], order: object) -> list[Txn]:
    store = Store()
    running = [store.run(f"T{n}", plan) for n, plan in enumerate(chosen)]
    history: list[Txn] = []
    latest: dict[int, Txn] = {}
    while running:
        one = order.choice(running)  # type: ignore[attr-defined]
        step = next(one, None)
        if step is None:
            running.remove(one)
            history.append(latest[id(one)])
        else:
            latest[id(one)] = step
    return [*history, store.all()]


@given(plans)
def test_dirty_reads_are_found(chosen: list[Plan]) -> None:
    """A reader that sees an uncommitted append, which is then aborted."""
    store = Store()
    history = [list(store.run(f"T{n}", plan))[-1] for n, plan in enumerate(chosen)]
    seen = store.lists.get("x", ())
    history.append(Txn("aborted", (append("x", 0),), committed=False))
    history.append(Txn("reader", (read_list("x", *seen, 0),)))
    assert "G1a" in {anomaly.name for anomaly in anomalies(history)}
    assert strongest_level(history) is Level.READ_UNCOMMITTED


def test_write_skew_of_the_store_is_found() -> None:
    store = Store()
    one = store.run("T1", [("x", True), ("y", False)])
    other = store.run("T2", [("y", True), ("x", False)])
    next(one)
    history = [list(other)[-1], list(one)[-1]]
    assert strongest_level(history) is Level.SNAPSHOT_ISOLATION
