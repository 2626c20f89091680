"""Pretended traces, logs, alerts and transactions."""

from __future__ import annotations

import hashlib
import json

from tests.e2e.console.fake.world import noise

from bedstone.model.alerts import AlertEvent, AlertLine, Notification, Silence
from bedstone.model.api import BranchDetail, TransactionDetail, TransactionEvent, TransactionSummary
from bedstone.model.monitoring import TapRecord
from bedstone.model.traces import Span, SpanEvent, StructuredLine, TraceDetail, TraceSummary

STUCK = "1a20fab69fa5e9f6a5f05bfae60624e1"
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def trace_id(index: int) -> str:
    return hashlib.md5(str(index).encode(), usedforsecurity=False).hexdigest()


def trace(index: int) -> TraceDetail:
    """The trace that began at second `index`."""
    start = float(index)
    slow = index % 5 == 0
    bad = index % 7 == 0
    scale = (8 if slow else 1) * (0.8 + noise("trace", index))
    spans = list[Span]()

    def span(name: str, service: str, parent: str, at: float, long: float, **more: object) -> str:
        number = f"{index % 10**6:06x}{len(spans):010x}"
        given = {
            "span": number, "parent": parent, "name": name, "service": service, "app": "bank",
            "start": start + at * scale, "seconds": long * scale, "origin": "application",
            "instance": f"{service}-0" if service != "gateway" else "", "node": "local",
            **more,
        }  # fmt: skip
        spans.append(Span.model_validate(given))
        return number

    http = {
        "http.request.method": "POST",
        "http.route": "/transfers",
        "http.response.status_code": 504 if bad else 201,
    }
    root = span(
        "POST /transfers",
        "gateway",
        "",
        0,
        0.062,
        kind="server",
        origin="proxy",
        attributes=http,
        error=bad,
    )
    web = span(
        "POST /transfers", "web", root, 0.001, 0.060, kind="server", attributes=http, error=bad
    )
    span(
        "GET /limits",
        "risk",
        web,
        0.004,
        0.014,
        kind="client",
        error=bad,
        message="timeout: no answer in 800 ms" if bad else "",
    )
    call = span("POST /book", "web", web, 0.020, 0.038, kind="client", origin="proxy")
    book = span("POST /book", "accounts", call, 0.021, 0.036, kind="server")
    for number in range(3):
        span(
            "SELECT accounts",
            "accounts",
            book,
            0.022 + number * 0.004,
            0.003,
            kind="client",
            attributes={
                "db.system": "postgresql",
                "db.name": "ledger",
                "db.query.text": "SELECT balance FROM accounts WHERE id = $1 FOR UPDATE",
            },
        )
    span("UPDATE accounts", "accounts", book, 0.035, 0.006, kind="client", attributes={"db.system": "postgresql", "db.name": "ledger"},
         events=(SpanEvent(time=start + 0.037 * scale, name="global lock", attributes={"key": "accounts/78995519"}),))  # fmt: skip
    span("transaction commit", "accounts", book, 0.043, 0.013, attributes={"bedstone.xid": STUCK})
    first = spans[0]
    summary = TraceSummary(
        trace=trace_id(index), app="bank", name=first.name, services=("gateway", "web", "risk", "accounts"),
        start=start, seconds=first.seconds, spans=len(spans), errors=sum(s.error for s in spans),
        status=504 if bad else 201, kept="error" if bad else "slow" if slow else "sampled",
    )  # fmt: skip
    return TraceDetail(summary=summary, spans=tuple(spans))


def lines(app: str, workload: str, start: int, end: int) -> list[StructuredLine]:
    made = []
    for second in range(start, end + 1):
        for part in range(2):
            level = ("info", "info", "debug", "warning", "error")[
                int(noise(workload, second * 2 + part) * 5)
            ]
            text = {
                "info": "transfer booked", "debug": "pool has 4 idle connections",
                "warning": "limits answered late", "error": HOSTILE if second % 60 == 0 else "limits did not answer",
            }[level]  # fmt: skip
            fields = {"event": text, "amount": 2500 + second % 100, "level": level}
            made.append(
                StructuredLine(
                    time=second + part * 0.5, app=app, workload=workload, instance=f"{workload}-{part}",
                    level=level, text=text, trace=trace_id(second) if level in {"error", "warning"} else "",
                    fields=fields,
                )
            )  # fmt: skip
    return made


def tap(second: float, index: int) -> TapRecord:
    bad = index % 9 == 0
    denied = index % 13 == 0
    return TapRecord(
        time=second, node="local", side=("gateway", "outbound", "inbound")[index % 3], app="bank",
        source=("gateway", "web", "web")[index % 3] if not denied else "risk",
        target=("web", "accounts", "risk")[index % 3] if not denied else "accounts",
        instance=f"web-{index % 2}", method=("GET", "POST", "POST")[index % 3],
        path=("/accounts/78995519-f8f2-41c5-96d5-7369009e595f", "/book", "/limits")[index % 3],
        status=403 if denied else 504 if bad else 200, kind="denied" if denied else "timeout" if bad else "",
        flags="UT" if bad else "", seconds=0.8 if bad else 0.004 + 0.01 * noise("tap", index),
        bytes_in=120, bytes_out=480 + index % 200, trace=trace_id(int(second)),
    )  # fmt: skip


def alerts(second: int, silences: list[Silence]) -> list[AlertLine]:
    told = (
        Notification(at=second - 300, receiver="webhook https://chat.bank.example/hooks", ok=True),
        Notification(at=second - 240, receiver="log", ok=True),
        Notification(at=second - 60, receiver="webhook https://pager.bank.example", ok=False, message="503 Service Unavailable; again in 60 s"),
    )  # fmt: skip
    found = [
        AlertLine(app="bank", rule="risk-errors", kind="burn-rate", state="firing", severity="page", labels={"workload": "risk"}, value=14.2 + noise("a", second), summary="risk burns its error budget 14 times too fast: it is gone in 2 days", expression='errors("risk") / 0.001', since=second - 360, fired_at=second - 300, notified=told),
        AlertLine(app="bank", rule="stuck", kind="condition", state="firing", severity="ticket", labels={}, value=1, summary="a transaction waits for a person", expression="bedstone_transactions_stuck > 0", query="bedstone_transactions_stuck", since=second - 1900, fired_at=second - 1890, notified=told[1:2]),
        AlertLine(app="shop", rule="slow", kind="condition", state="pending", severity="ticket", labels={"workload": "search"}, value=0.31, summary="p99 of search is above 300 ms", expression="p99 > 300ms", since=second - 12),
        AlertLine(app="shop", rule="traffic", kind="baseline", state="unknown", severity="info", error="less than a day of history, expected 7 days", expression="rate within 3 sigma of its week"),
        AlertLine(app="bank", rule="alive", kind="dead-man", state="inactive", severity="page", expression="absent(up)", value=0),
        AlertLine(app="shop", rule="errors", kind="burn-rate", state="inactive", severity="page", value=0.2, expression="errors / 0.001"),
    ]  # fmt: skip
    held = {(name, value): s for s in silences for name, value in s.labels.items()}
    return [
        each.model_copy(update={"silence": s.id, "silenced_until": s.until})
        if (s := held.get(("rule", each.rule))) and each.state == "firing"
        else each
        for each in found
    ]


def history(second: int) -> list[AlertEvent]:
    return [
        AlertEvent(at=second - 60, app="bank", rule="risk-errors", labels={"workload": "risk"}, what="failed", detail="webhook https://pager.bank.example: 503"),
        AlertEvent(at=second - 300, app="bank", rule="risk-errors", labels={"workload": "risk"}, what="notified", detail="webhook https://chat.bank.example/hooks"),
        AlertEvent(at=second - 300, app="bank", rule="risk-errors", labels={"workload": "risk"}, what="firing", value=14.4),
        AlertEvent(at=second - 360, app="bank", rule="risk-errors", labels={"workload": "risk"}, what="pending", value=14.1),
        AlertEvent(at=second - 1890, app="bank", rule="stuck", what="firing", value=1),
        AlertEvent(at=second - 8000, app="shop", rule="slow", labels={"workload": "search"}, what="resolved", value=0.12),
    ]  # fmt: skip


def transactions(second: int) -> list[TransactionSummary]:
    made = [
        TransactionSummary(xid=STUCK, name="order", state="aborting", stuck=True, created=second - 1900, deadline=second - 1870, owner="orders/orders-d9e23a53-0-11511-1a102b39", epoch=2, next_attempt=second + 20, branches=3, attempts=9, trouble="the row lamp of public.items was changed by somebody else; nothing of 2 rows is undone"),
        TransactionSummary(xid="1a20fab7e0aa4f1f9a5f05bfae60ffff", name="transfer", state="committing", stuck=False, created=second - 9, deadline=second + 21, owner="accounts/accounts-0-1", epoch=1, next_attempt=second + 2, branches=2, attempts=3, trouble="savings: connection refused"),
    ]  # fmt: skip
    for index in range(60):
        state = ("committed", "committed", "committed", "aborted", "active")[index % 5]
        made.append(
            TransactionSummary(
                xid=trace_id(-index - 1), name=("transfer", "order", "refund")[index % 3], state=state, stuck=False,
                created=second - 20 - index * 13, deadline=second + 10 - index * 13, owner=f"accounts/accounts-{index % 2}-1",
                epoch=1, next_attempt=0, branches=2 + index % 2, attempts=2 if state == "committed" else 0,
            )
        )  # fmt: skip
    return made


def transaction(second: int, xid: str) -> TransactionDetail | None:
    summary = next((each for each in transactions(second) if each.xid == xid), None)
    if summary is None:
        return None
    at = summary.created
    done = {"committed": "confirmed", "aborted": "cancelled"}.get(summary.state, "registered")
    modes = ("at", "tcc", "saga")
    row = {
        "resource": "http://orders/.bedstone/transactions/at/stock", "table": "public.items", "key": ["lamp"],
        "before": {"id": "lamp", "stock": 7, "price": 40}, "after": {"id": "lamp", "stock": 6, "price": 40},
        "now": {"id": "lamp", "stock": 20, "price": 40},
        "repair": ["""UPDATE "public"."items" SET "stock" = 7, "price" = 40 WHERE "id" = 'lamp'"""],
    }  # fmt: skip
    branches = tuple(
        BranchDetail(
            number=number + 1, mode=modes[number % 3], resource=f"http://{('orders', 'payments', 'stock')[number % 3]}/.bedstone/transactions/{modes[number % 3]}/{('stock', 'charge', 'plan')[number % 3]}",
            state="cancelled" if summary.stuck and number else done, attempts=7 if summary.stuck and not number else 1,
            payload_digest=hashlib.sha256(json.dumps(number).encode()).hexdigest(),
            locks=("stock/public.items/lamp",) if number == 0 else (),
            error=summary.trouble or None if number == 0 else None,
            stuck={**row, "rows": [row]} if summary.stuck and number == 0 else None,
        )
        for number in range(summary.branches)
    )  # fmt: skip
    events = [
        TransactionEvent(
            at=at, kind="begun", detail={"name": summary.name, "deadline": summary.deadline}
        )
    ]
    events += [
        TransactionEvent(
            at=at + 0.09 * b.number,
            kind="registered",
            branch=b.number,
            detail={"mode": b.mode, "resource": b.resource},
        )
        for b in branches
    ]
    if summary.state != "active":
        decided = "committing" if summary.state.startswith("commit") else "aborting"
        events.append(TransactionEvent(at=at + 0.41, kind="decided", detail={"state": decided}))
        for b in reversed(branches):
            kind = "stuck" if b.stuck else "ended" if b.state != "registered" else "failed"
            events.append(
                TransactionEvent(
                    at=at + 0.41 + 0.1 * (4 - b.number),
                    kind=kind,
                    branch=b.number,
                    detail={"state": b.state, **({"error": b.error} if b.error else {})},
                )
            )
    return TransactionDetail(
        app="bank", transaction=summary, branches=branches, events=tuple(events)
    )
