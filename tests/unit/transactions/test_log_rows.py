"""What is written to the log's rows is read back equal, and what rows can't hold is refused."""

from __future__ import annotations

import json
import math
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedstone.errors import InvalidError
from bedstone.transactions import log_rows
from bedstone.transactions.log_rows import Stored
from bedstone.transactions.model import (
    Branch,
    BranchState,
    Event,
    Mode,
    Outcome,
    State,
    Transaction,
)

TIMES = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TIMES | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
REPORTS = st.dictionaries(st.text(), JSON, max_size=3)
BRANCHES = st.builds(
    Branch,
    number=st.integers(1, 10_000),
    mode=st.sampled_from(Mode),
    resource=st.text(min_size=1),
    payload=st.binary(),
    locks=st.lists(st.text(min_size=1), max_size=3).map(tuple),
    state=st.sampled_from(BranchState),
    attempts=st.integers(0, 1 << 40),
    error=st.none() | st.text(),
    stuck=st.none() | REPORTS,
)
TRANSACTIONS = st.builds(
    Transaction,
    xid=st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True),
    name=st.text(),
    deadline=TIMES,
    created=TIMES,
    owner=st.text(min_size=1),
    epoch=st.integers(1, 1 << 40),
    state=st.sampled_from(State),
    branches=st.lists(BRANCHES, max_size=3).map(tuple),
    next_attempt=TIMES,
)


@given(TRANSACTIONS, st.integers(0, 1 << 30), st.none() | TIMES)
def test_a_transaction_is_read_as_it_was_written(
    transaction: Transaction, events: int, ended_at: float | None
) -> None:
    text = log_rows.encode_branches(transaction.branches)
    held = Stored(transaction, text, events, ended_at)
    values = dict(zip(log_rows.WRITTEN.split(", "), log_rows.row(held), strict=True))
    assert log_rows.stored([values[it] for it in log_rows.READ.split(", ")]) == held
    assert values["stuck"] == any(it.stuck is not None for it in transaction.branches)
    assert text.isascii()


@given(st.builds(Event, TIMES, st.text(min_size=1), st.none() | st.integers(1, 9), REPORTS))
def test_an_event_is_read_as_it_was_written(event: Event) -> None:
    values = log_rows.event_row("x", 7, event)
    assert values[:2] == ("x", 7)
    assert log_rows.event(values[2:]) == event


@given(BRANCHES)
def test_a_database_takes_any_branch(branch: Branch) -> None:
    """Even payloads that are no text at all, and errors with NUL or half a surrogate pair."""
    with sqlite3.connect(":memory:") as database:
        text = log_rows.encode_branches([branch])
        (back,) = database.execute("SELECT ?", (text,)).fetchone()
    database.close()
    assert log_rows.decode_branches(back) == (branch,)


def test_people_can_read_the_rows() -> None:
    branch = Branch(1, Mode.TCC, "local:debit", b'{"arguments":{"amount":5}}', ("r/t/1",))
    assert json.loads(log_rows.encode_branches([branch])) == [
        {
            "number": 1,
            "mode": "tcc",
            "resource": "local:debit",
            "payload": '{"arguments":{"amount":5}}',
            "locks": ["r/t/1"],
        }
    ]


def test_what_rows_cannot_hold_is_refused() -> None:
    good = Transaction("x", "n", 1.0, 0.0, "one")
    log_rows.check_transaction(good)
    lock = "k" * log_rows.LONGEST_LOCK
    log_rows.check_branches([Branch(1, Mode.AT, "r", locks=(lock,))])
    for bad in (
        Transaction("x/y", "n", 1.0, 0.0, "one"),
        Transaction("x", "a\0b", 1.0, 0.0, "one"),
        Transaction("x", "\ud800", 1.0, 0.0, "one"),
        Transaction("x", "n" * 1001, 1.0, 0.0, "one"),
        Transaction("x", "n", math.nan, 0.0, "one"),
        Transaction("x", "n", math.inf, 0.0, "one"),
        Transaction("x", "n", 1.0, 0.0, ""),
        Transaction("x", "n", 1.0, 0.0, "one", branches=(Branch(1, Mode.TCC, ""),)),
        Transaction("x", "n", 1.0, 0.0, "one", branches=(Branch(1, Mode.AT, "r", locks=("",)),)),
        Transaction(
            "x", "n", 1.0, 0.0, "one", branches=(Branch(1, Mode.AT, "r", locks=(f"{lock}k",)),)
        ),
    ):
        with pytest.raises(InvalidError):
            log_rows.check_transaction(bad)
    circle: dict[str, object] = {}
    circle["itself"] = circle
    reports: list[dict[str, object]] = [{"a": b"bytes"}, {"a": object()}, circle]
    for report in reports:
        with pytest.raises(InvalidError):
            log_rows.check_outcomes([Outcome(1, BranchState.REGISTERED, stuck=report)])
        with pytest.raises(InvalidError):
            log_rows.check_events([Event(0.0, "step", detail=report)])
    with pytest.raises(InvalidError):
        log_rows.check_events([Event(0.0, "")])
