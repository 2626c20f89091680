"""`bedstone tx`, against a fake server."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

from bedstone.errors import NotFoundError
from bedstone.model.api import (
    BranchDetail,
    RepairResult,
    TransactionDetail,
    TransactionEvent,
    TransactionList,
    TransactionSummary,
)
from bedstone.testing.api import Answer, FakeApi, problem

Command = Callable[..., Any]

BASE = "/v1/apps/bank/transactions"
NOW = time.time()
STUCK = TransactionSummary(
    xid="01jd3k7",
    name="transfer",
    state="aborting",
    stuck=True,
    created=NOW - 259_230,
    deadline=NOW - 31,
    owner="accounts/1",
    epoch=2,
    next_attempt=NOW,
    branches=2,
    attempts=3,
    trouble="account 7 is neither as before nor as after",
)
DETAIL = TransactionDetail(
    app="bank",
    transaction=STUCK,
    branches=(
        BranchDetail(
            number=1,
            mode="at",
            resource="local:at/ledger",
            state="registered",
            attempts=3,
            payload_digest="ab" * 32,
            locks=("ledger/accounts/7",),
            error=STUCK.trouble,
            stuck={
                "resource": "ledger",
                "table": "accounts",
                "key": {"id": 7},
                "before": {"id": 7, "balance": 100},
                "after": {"id": 7, "balance": 60},
                "now": {"id": 7, "balance": 55},
                "repair": ["UPDATE accounts SET balance = 100 WHERE id = 7"],
            },
        ),
        BranchDetail(
            number=2,
            mode="tcc",
            resource="http://risk/.bedstone/transactions/hold",
            state="cancelled",
            attempts=1,
            payload_digest="cd" * 32,
        ),
    ),
    events=(
        TransactionEvent(at=NOW - 61, kind="begun", detail={"name": "transfer", "deadline": 1e9}),
        TransactionEvent(at=NOW - 40, kind="decided", detail={"late": False, "state": "aborting"}),
        TransactionEvent(at=NOW - 31, kind="stuck", branch=1, detail={"error": "a dirty row"}),
    ),
)


def test_ls_says_which_are_stuck_and_why(server: FakeApi, command: Command) -> None:
    more = TransactionList(app="bank", items=(STUCK,), next="01jd3k7")
    server.answers[f"GET {BASE}"] = Answer(more)
    ended = command("tx", "ls", "--stuck", "--state", "aborting", "--limit", "1")
    assert ended.status == 0
    assert re.search(r"01jd3k7 +transfer +aborting, stuck +3d00h +2 +3 +account 7", ended.out)
    assert "bedstone tx ls --after 01jd3k7" in ended.out + ended.err
    assert server.asked[-1].query == {"stuck": "true", "state": "aborting", "limit": "1"}
    parsed = json.loads(command("tx", "ls", "-o", "json").out)
    assert TransactionList.model_validate(parsed) == more


def test_ls_says_when_there_is_none(server: FakeApi, command: Command) -> None:
    server.answers[f"GET {BASE}"] = Answer(TransactionList(app="bank"))
    ended = command("tx", "ls", "--stuck")
    assert (ended.status, ended.out) == (0, "")
    assert ended.err == "there is no transaction that is stuck\n"


def test_show_has_the_time_line_the_three_images_and_what_to_do(
    server: FakeApi, command: Command
) -> None:
    server.answers[f"GET {BASE}/01jd3k7"] = Answer(DETAIL)
    out = command("tx", "show", "01jd3k7").out
    assert re.search(r"balance +100 +60 +55 +← neither", out)
    assert re.search(r"id +7 +7 +7$", out, re.MULTILINE)
    assert "UPDATE accounts SET balance = 100 WHERE id = 7" in out
    assert "bedstone tx retry 01jd3k7" in out
    assert "bedstone tx repair 01jd3k7 --branch 1 --why TEXT" in out
    assert re.search(r"1 +stuck +error a dirty row", out)
    assert re.search(r"begun +name transfer, deadline 2001-09-0", out), "a time that people read"
    assert re.search(r"decided +state aborting$", out, re.MULTILINE)
    assert "abababababab" in out
    shown = command("tx", "show", "01jd3k7", "-o", "json").out
    assert TransactionDetail.model_validate(json.loads(shown)) == DETAIL


def test_what_a_row_says_cannot_control_the_terminal(server: FakeApi, command: Command) -> None:
    report = {"before": {"\x1b[2J": "\x1b]0;owned\x07"}, "now": None, "repair": "\x1b[2J"}
    branch = DETAIL.branches[0].model_copy(update={"stuck": report, "error": "\x1b[2J"})
    evil = DETAIL.model_copy(update={"branches": (branch,)})
    server.answers[f"GET {BASE}/01jd3k7"] = Answer(evil)
    out = command("tx", "show", "01jd3k7").out
    assert "\x1b" not in out
    assert "(no row)" in out


def test_an_unknown_transaction_is_an_error_and_never_finished(
    server: FakeApi, command: Command
) -> None:
    server.answers[f"GET {BASE}/x"] = problem(NotFoundError("there is no transaction x"))
    ended = command("tx", "show", "x")
    assert ended.status != 0
    assert "there is no transaction x" in ended.err


def test_retry_and_repair_say_why(server: FakeApi, command: Command) -> None:
    server.answers[f"POST {BASE}/01jd3k7/retry"] = Answer(DETAIL)
    assert command("tx", "retry", "01jd3k7", "--why", "set by hand").status == 0
    assert server.asked[-1].body == {"why": "set by hand"}
    repaired = RepairResult(outcome="repaired", detail=DETAIL)
    proposed = RepairResult(outcome="proposed", detail=DETAIL)
    server.answers[f"POST {BASE}/01jd3k7/repair"] = [Answer(proposed), Answer(repaired)]
    words = ("tx", "repair", "01jd3k7", "--branch", "1", "--why", "case 4711")
    assert "a second person" in command(*words).out
    assert server.asked[-1].body == {"branch": 1, "why": "case 4711"}
    assert "branch 1 is recorded as repaired" in command(*words).out
    assert command("tx", "repair", "01jd3k7", "--branch", "1").status == 2, "why is demanded"
