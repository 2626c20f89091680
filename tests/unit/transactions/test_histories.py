"""Each anomaly is found in a history made for it, with its witness; clean ones are clean."""

from __future__ import annotations

import pytest

from bedstone.errors import InvalidError
from bedstone.testing.histories import (
    Level,
    Operation,
    Txn,
    anomalies,
    append,
    read,
    read_list,
    strongest_level,
    write,
)
from bedstone.testing.history_graph import Edge


def history(*operations: tuple[Operation, ...], aborted: str = "") -> list[Txn]:
    """T1, T2 and so on; those in `aborted` were not committed."""
    return [Txn(f"T{n}", it, committed=str(n) not in aborted) for n, it in enumerate(operations, 1)]


CASES = {
    "G0": (
        history(
            (append("x", 1), append("y", 1)),
            (append("x", 2), append("y", 2)),
            (read_list("x", 1, 2), read_list("y", 2, 1)),
        ),
        Level.NONE,
    ),
    "G1a": (
        history((append("x", 1),), (read_list("x", 1),), aborted="1"),
        Level.READ_UNCOMMITTED,
    ),
    "G1b": (
        history((append("x", 1), append("x", 2)), (read_list("x", 1),), (read_list("x", 1, 2),)),
        Level.READ_UNCOMMITTED,
    ),
    "G1c": (
        history((append("x", 1), read_list("y", 1)), (append("y", 1), read_list("x", 1))),
        Level.READ_UNCOMMITTED,
    ),
    "G-single": (
        history((append("x", 1), append("y", 1)), (read_list("x"), read_list("y", 1))),
        Level.READ_COMMITTED,
    ),
    "lost-update": (
        history(
            (read_list("x"), append("x", 1)),
            (read_list("x"), append("x", 2)),
            (read_list("x", 1, 2),),
        ),
        Level.READ_COMMITTED,
    ),
    "G2-item": (
        history((read_list("x"), append("y", 1)), (read_list("y"), append("x", 1))),
        Level.SNAPSHOT_ISOLATION,
    ),
    "incompatible-order": (
        history((append("x", 1),), (append("x", 2),), (read_list("x", 1),), (read_list("x", 2),)),
        Level.NONE,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_anomaly_is_found_and_named(name: str) -> None:
    made, level = CASES[name]
    assert name in {anomaly.name for anomaly in anomalies(made)}
    assert strongest_level(made) is level


@pytest.mark.parametrize("name", ["G0", "G1c", "G-single", "G2-item"])
def test_a_witness_is_a_cycle_of_the_right_edges(name: str) -> None:
    made, _ = CASES[name]
    (found,) = [anomaly for anomaly in anomalies(made) if anomaly.name == name]
    for step, following in zip(found.cycle, (*found.cycle[1:], found.cycle[0]), strict=True):
        assert step.target == following.source
    edges = [step.edge for step in found.cycle]
    match name:
        case "G0":
            assert set(edges) == {Edge.WW}
        case "G1c":
            assert Edge.WR in edges
            assert Edge.RW not in edges
        case "G-single":
            assert edges.count(Edge.RW) == 1
        case "G2-item":
            assert edges.count(Edge.RW) == 2


CLEAN = {
    "nothing": [],
    "serial": history(
        (read_list("x"), append("x", 1)),
        (read_list("x", 1), append("x", 2)),
        (read_list("x", 1, 2),),
    ),
    "own writes are no anomaly": history((append("x", 1), read_list("x", 1), append("x", 2))),
    "an abort that nobody saw": history((append("x", 1),), (read_list("x"),), aborted="1"),
    "not G0: the same order everywhere": history(
        (append("x", 1), append("y", 1)),
        (append("x", 2), append("y", 2)),
        (read_list("x", 1, 2), read_list("y", 1, 2)),
    ),
    "not G1a: the reader came before": history((append("x", 1),), (read_list("x"),), aborted="1"),
    "not G1b: the last of it was read": history(
        (append("x", 1), append("x", 2)), (read_list("x", 1, 2),)
    ),
    "not G1c: one way alone": history(
        (append("x", 1), read_list("y")), (append("y", 1), read_list("x", 1))
    ),
    "not G-single: all of it was read": history(
        (append("x", 1), append("y", 1)), (read_list("x", 1), read_list("y", 1))
    ),
    "not lost-update: the second read the first": history(
        (read_list("x"), append("x", 1)), (read_list("x", 1), append("x", 2))
    ),
    "not lost-update: they wrote others": history(
        (read_list("x"), append("y", 1)), (read_list("x"), append("z", 1))
    ),
    "not G2-item: the second saw the first": history(
        (read_list("x"), append("y", 1)), (read_list("y", 1), append("x", 1))
    ),
    "not incompatible: one is longer": history(
        (append("x", 1),), (append("x", 2),), (read_list("x", 1),), (read_list("x", 1, 2),)
    ),
    "an aborted reader proves nothing": history(
        (append("x", 1),), (append("x", 2), read_list("x", 1, 2)), (read_list("x", 1),), aborted="2"
    ),
}


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_history_is_serializable(name: str) -> None:
    assert anomalies(CLEAN[name]) == ()
    assert strongest_level(CLEAN[name]) is Level.SERIALIZABLE


def test_registers_that_are_written_need_their_order() -> None:
    made = history((read("x", None), write("x", 1)), (read("x", None), write("x", 2)))
    with pytest.raises(InvalidError, match="order is not given"):
        anomalies(made)
    found = anomalies(made, {"x": (1, 2)})
    assert "lost-update" in {anomaly.name for anomaly in found}
    serial = history((read("x", None), write("x", 1)), (read("x", 1), write("x", 2)))
    assert strongest_level(serial, {"x": (1, 2)}) is Level.SERIALIZABLE


def test_write_skew_of_registers() -> None:
    made = history((read("x", None), write("y", 1)), (read("y", None), write("x", 1)))
    assert strongest_level(made, {"x": (1,), "y": (1,)}) is Level.SNAPSHOT_ISOLATION


def test_a_value_written_twice_is_refused() -> None:
    with pytest.raises(InvalidError, match="written twice"):
        anomalies(history((append("x", 1),), (append("x", 1),)))


def test_what_was_taken_back_is_no_version() -> None:
    """Reading it is G1a, and no more: the order of what was committed is one."""
    made = history(
        (append("x", 1),),
        (append("x", 2),),
        (read_list("x", 1, 2),),
        (append("x", 3),),
        (read_list("x", 1, 3),),
        aborted="2",
    )
    assert {anomaly.name for anomaly in anomalies(made)} == {"G1a"}


def test_what_was_written_and_taken_back_is_in_no_order() -> None:
    made = history((write("r", 1),), (write("r", 2),), (write("r", 3),), aborted="2")
    reader = Txn("reader", (read("r", 1),))
    late = Txn("late", (read("r", 2),))
    assert anomalies([*made, reader], {"r": (1, 2, 3)}) == ()
    assert {it.name for it in anomalies([*made, late], {"r": (1, 2, 3)})} == {"G1a"}


def test_a_long_clean_history_is_checked() -> None:
    made = history(*((read_list("x", *range(n)), append("x", n)) for n in range(500)))
    assert anomalies(made) == ()


def test_a_cycle_within_a_long_history_is_found() -> None:
    made = history(*((read_list("x", *range(n)), append("x", n)) for n in range(200)))
    made += [
        Txn("one", (read_list("y"), append("z", 1))),
        Txn("other", (read_list("z"), append("y", 1))),
    ]
    (found,) = anomalies(made)
    assert (found.name, set(found.transactions)) == ("G2-item", {"one", "other"})
