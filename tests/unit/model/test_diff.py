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


WATCHED = (
    BASE
    + """\
monitoring: {otlp: [{url: "http://old-secret/"}]}
alerts:
  slow: {when: x > 5, for: 2m}
  budget: {objective: 99.9%, of: accounts}
receivers:
  people: {webhook: "http://old-secret/", secret: "${env.S}", headers: {a: old-secret}}
"""
)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("when: x > 5", "when: x > 6", "~ alert slow: when x > 5 → x > 6"),
        ("for: 2m", "for: 90s", "~ alert slow: for 2m → 90s"),
        ("for: 2m", "severity: page, for: 2m", "~ alert slow: severity ticket → page"),
        ("for: 2m", "labels: {a: b}, for: 2m", "~ alert slow: labels {} → {a: b}"),
        ("when: x > 5, for: 2m", "expects: x", "~ alert slow when x > 5 for 2m → x within 30s"),
        ("objective: 99.9%", "objective: 99%", "~ alert budget: objective 99.9% → 99%"),
        (
            "of: accounts}",
            "of: accounts, windows: [{long: 3d, short: 6h, factor: 2}]}",
            "~ alert budget: windows [] → [3d/6h at 2]",
        ),
        ("of: accounts}", "of: accounts, period: 7d}", "~ alert budget: period 30d → 7d"),
        ("  slow: {when: x > 5, for: 2m}\n", "", "- alert slow (its alerts end)"),
        (
            "  budget:",
            "  quiet: {expects: risk}\n  budget:",
            "+ alert quiet risk within 30s",
        ),
        (
            'webhook: "http://old-secret/"',
            'webhook: "http://new-secret/"',
            "~ receiver people: webhook changed",
        ),
        ("{a: old-secret}", "{a: new-secret}", "~ receiver people: headers changed"),
        ("${env.S}", "${env.T}", "~ receiver people: secret changed"),
        ('"${env.S}"', '"${env.S}", repeat: 1h', "~ receiver people: repeat 4h → 1h"),
        ('[{url: "http://old-secret/"}]', "[]", "~ monitoring: otlp changed"),
        ("{otlp:", "{traces: {slow: 1s}, otlp:", "~ monitoring: traces.slow 500ms → 1s"),
        ("{otlp:", "{traces: {share: 0}, otlp:", "~ monitoring: traces.share 10% → 0%"),
    ],
)
def test_a_change_of_monitoring_is_one_line_without_secrets(old: str, new: str, line: str) -> None:
    found = lines(old, new, text=WATCHED)
    assert found == [line]
    assert "secret" not in line or "secret changed" in line


def test_monitoring_comes_and_goes() -> None:
    assert [format_change(c) for c in diff(spec(), spec(WATCHED), {}, {})] == [
        "~ monitoring: otlp changed",
        "+ alert slow when x > 5 for 2m",
        "+ alert budget 99.9% of accounts",
        "+ receiver people webhook",
    ]
    assert [format_change(c) for c in diff(spec(WATCHED), spec(), {}, {})] == [
        "~ monitoring: otlp changed",
        "- alert slow (its alerts end)",
        "- alert budget (its alerts end)",
        "- receiver people (is told no more)",
    ]
