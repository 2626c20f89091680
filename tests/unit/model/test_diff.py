"""What an apply will do, as the user reads it."""

from __future__ import annotations

import pytest

from bedstone.model.diff import diff, format_change
from bedstone.model.manifest import parse_manifest
from bedstone.model.spec import AppSpec

BASE = """\
app: bank
gateway:
  routes:
    - {path: /, to: accounts}
workloads:
  accounts:
    run: accounts:app
    uses: [ledger]
    env: {TOKEN: old-secret}
    ready: /healthz
  risk: {command: [python, risk.py]}
databases:
  ledger: {url: "postgres://u:old-secret@host/db"}
"""


def spec(text: str = BASE) -> AppSpec:
    return parse_manifest(text).spec


def lines(old: str, new: str, *, text: str = BASE) -> list[str]:
    assert text.count(old) == 1
    return [format_change(c) for c in diff(spec(text), spec(text.replace(old, new)), {}, {})]


def test_no_change_is_no_line() -> None:
    sources = {"accounts": "1", "risk": "2"}
    assert diff(spec(), spec(), sources, sources) == []


def test_a_first_apply_adds_everything() -> None:
    assert [format_change(change) for change in diff(None, spec(), {}, {"risk": "1"})] == [
        "+ gateway 127.0.0.1:8080",
        "+ route / to accounts",
        "+ workload accounts 1 instance",
        "+ workload risk 1 instance",
        "+ database ledger external",
    ]


def test_a_delete_removes_everything_but_data() -> None:
    assert [format_change(change) for change in diff(spec(), None, {"risk": "1"}, {})] == [
        "- gateway (nothing enters from outside)",
        "- workload accounts (drains)",
        "- workload risk (drains)",
        "- database ledger (data is kept)",
    ]


R = "    ready: /healthz\n"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (R, R + "    replicas: 2\n", "~ workload accounts: replicas 1 → 2 (scales)"),
        (R, R + "    timeout: 90s\n", "~ workload accounts: timeout → 90s (rolls out)"),
        (
            R,
            "    ready: {path: /healthz, interval: 5s}\n",
            "~ workload accounts: ready /healthz → /healthz {interval 5s} (rolls out)",
        ),
        (R, "    ready: tcp\n", "~ workload accounts: ready /healthz → tcp (rolls out)"),
        (R, "", "~ workload accounts: ready /healthz → default (rolls out)"),
        (
            R,
            "    ready: {command: [a, b]}\n",
            "~ workload accounts: ready /healthz → [a, b] (rolls out)",
        ),
        (
            R,
            R + "    limits: {memory: 256MiB, cpu: 2}\n",
            "~ workload accounts: limits → memory 256MiB, cpu 2.0 (rolls out)",
        ),
        (
            "[ledger]",
            "[ledger, risk]",
            "~ workload accounts: uses [ledger] → [ledger, risk] (rolls out)",
        ),
        (
            "risk.py]",
            "risk2.py]",
            "~ workload risk: command [python, risk.py] → [python, risk2.py] (rolls out)",
        ),
        (
            "{TOKEN: old-secret}",
            "{TOKEN: new-secret}",
            "~ workload accounts: env.TOKEN changed (rolls out)",
        ),
        (
            "{TOKEN: old-secret}",
            "{TOKEN: old-secret, X: y}",
            "~ workload accounts: env.X added (rolls out)",
        ),
        ("{TOKEN: old-secret}", "{}", "~ workload accounts: env.TOKEN removed (rolls out)"),
        (
            "{path: /, to: accounts}",
            "{path: /, to: risk, strip: true, timeout: 2s}",
            "~ route / to accounts → to risk, stripped, within 2s (no restart)",
        ),
        (
            "    - {path: /, to: accounts}\n",
            "    - {path: /, to: accounts}\n    - {path: /r, to: risk, host: a.b}\n",
            "+ route a.b/r to risk (no restart)",
        ),
        ("  routes:", "  port: 9090\n  routes:", "~ gateway.port 8080 → 9090 (no restart)"),
        (
            "u:old-secret@",
            "u:new-secret@",
            "~ database ledger: url changed (its users roll out; data is not moved)",
        ),
        (
            "  risk: {command: [python, risk.py]}\n",
            "",
            "- workload risk (drains)",
        ),
    ],
)
def test_a_change_is_one_line_without_secrets(old: str, new: str, line: str) -> None:
    assert lines(old, new) == [line]
    assert "secret" not in line


def test_a_changed_source_rolls_out() -> None:
    changes = diff(spec(), spec(), {"accounts": "1", "risk": "2"}, {"accounts": "3", "risk": "2"})
    assert [format_change(c) for c in changes] == [
        "~ workload accounts: source changed (rolls out)"
    ]


def test_the_gateway_comes_and_goes() -> None:
    without = BASE.replace("gateway:\n  routes:\n    - {path: /, to: accounts}\n", "")
    gone = diff(spec(), spec(without), {}, {})
    assert [c.op for c in gone] == ["-"]
    back = diff(spec(without), spec(), {}, {})
    assert [c.subject for c in back] == ["gateway", "route /"]


def test_a_transaction_log_comes_moves_and_goes() -> None:
    logged = BASE + "transactions: {database: ledger}\n"
    moved = logged.replace("databases:", "databases:\n  other: {}").replace(
        "database: ledger", "database: other, second_person: true"
    )

    def between(old: str, new: str) -> list[str]:
        return [
            line
            for change in diff(spec(old), spec(new), {}, {})
            if "transactions" in (line := format_change(change))
        ]

    assert between(BASE, logged) == ["+ transactions logged in ledger"]
    assert between(logged, BASE) == ["- transactions (the log is kept)"]
    assert between(logged, moved) == [
        "~ transactions: database ledger → other (what is unfinished in the old log stays there)",
        "~ transactions: second_person false → true (no restart)",
    ]
