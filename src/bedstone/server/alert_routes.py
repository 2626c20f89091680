"""The routes of alerts, and what they show.

Also `rules` and `alerts` of Prometheus's HTTP API, for who knows that one
(https://prometheus.io/docs/prometheus/latest/querying/api/#rules).
"""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
from collections.abc import Iterator
from typing import Annotated, Any, Final

from fastapi import FastAPI, Query

from bedstone.control.monitoring.alerts.board import labels_of, summary_of, told
from bedstone.control.monitoring.alerts.evaluation import Examiner
from bedstone.control.monitoring.alerts.machine import Alert, Certainty
from bedstone.control.monitoring.alerts.rules import (
    Baseline,
    Condition,
    DeadMan,
    Facts,
    Rule,
    Source,
)
from bedstone.model.alerts import (
    AlertHistory,
    AlertLine,
    AlertList,
    AlertSample,
    AlertTest,
    Notification,
    Silence,
    SilenceList,
    SilenceRequest,
)
from bedstone.server.alerting import Alerting
from bedstone.server.api import Operator, Reader, Routes

_ORDER: Final = ("firing", "pending", "unknown", "inactive")
_SEVERITIES: Final = ("page", "ticket", "info")


def alert_routes(alerting: Alerting) -> Routes:
    """Adds the routes of alerts."""

    def add(app: FastAPI) -> None:
        _read(app, alerting)
        _silence(app, alerting)
        _prometheus(app, alerting)

    return add


def _read(app: FastAPI, alerting: Alerting) -> None:
    @app.get("/v1/alerts")
    async def alerts(_: Reader) -> AlertList:
        return AlertList(second=alerting.second, items=tuple(lines(alerting)))

    @app.get("/v1/alerts/history")
    async def history(
        _: Reader,
        *,
        app: str = "",
        rule: str = "",
        limit: Annotated[int, Query(ge=1, le=5_000)] = 100,
    ) -> AlertHistory:
        return AlertHistory(items=tuple(await alerting.kept.history(app, rule, limit)))

    @app.get("/v1/alerts/test")
    async def test(_: Reader, *, rule: str, app: str = "") -> AlertTest:
        return await tested(alerting, alerting.rule(rule, app))


def _silence(app: FastAPI, alerting: Alerting) -> None:
    @app.get("/v1/silences")
    async def silences(_: Reader) -> SilenceList:
        return SilenceList(items=tuple(alerting.silences.list()))

    @app.post("/v1/silences")
    async def silence(request: SilenceRequest, who: Operator) -> Silence:
        return await alerting.silence(request, who.who)

    @app.delete("/v1/silences/{silence_id}")
    async def unsilence(silence_id: str, who: Operator) -> dict[str, str]:
        await alerting.silences.end(silence_id, who.who)
        return {"deleted": silence_id}


def _prometheus(app: FastAPI, alerting: Alerting) -> None:
    @app.get("/prometheus/api/v1/rules")
    async def rules(_: Reader) -> dict[str, Any]:
        return _success({"groups": list(_groups(alerting))})

    @app.get("/prometheus/api/v1/alerts")
    async def alerts(_: Reader) -> dict[str, Any]:
        found = [
            _active(rule, alert)
            for key, rule in alerting.board.rules.items()
            for alert in alerting.board.of(key)
        ]
        return _success({"alerts": found})


def lines(alerting: Alerting) -> list[AlertLine]:
    """All alerts and the rules that have none, those that fire first, urgent ones before."""
    found = [line for rule in alerting.board.rules.values() for line in _of_rule(alerting, rule)]
    return sorted(
        found,
        key=lambda line: (
            _ORDER.index(line.state),
            _SEVERITIES.index(line.severity),
            line.app,
            line.rule,
            sorted(line.labels.items()),
        ),
    )


def _of_rule(alerting: Alerting, rule: Rule) -> Iterator[AlertLine]:
    key = rule.app, rule.name
    outcome = alerting.board.outcomes.get(key)
    error = outcome.error if outcome else ""
    line = AlertLine(
        app=rule.app,
        rule=rule.name,
        kind=rule.kind,
        state="unknown" if error else "inactive",
        severity=rule.severity,  # type: ignore[arg-type]
        value=outcome.value if outcome else None,
        expression=rule.expression,
        query=_query(rule.source),
        error=error,
    )
    alerts = alerting.board.of(key)
    if error or not alerts:
        yield line
    for alert in alerts:
        labels = labels_of(rule, alert)
        silence = alerting.silences.of(labels)
        yield line.model_copy(
            update={
                "state": alert.state,
                "severity": alert.severity,
                "labels": {**dict(alert.labels), **dict(rule.labels)},
                "value": alert.value,
                "summary": summary_of(rule, labels, alert.value),
                "since": alert.since,
                "fired_at": alert.fired_at,
                "silenced_until": silence.until if silence else None,
                "silence": silence.id if silence else "",
                "notified": tuple(_notified(alerting, rule, alert)),
            }
        )


def _notified(alerting: Alerting, rule: Rule, alert: Alert) -> list[Notification]:
    labels = labels_of(rule, alert)
    group = {name: labels.get(name, "") for name in rule.group_by}
    attempts = [
        attempt
        for record in alerting.telling.records.values()
        if record.labels == group and rule.app in ("", record.app)
        for attempt in record.notified
        if attempt.at >= (alert.fired_at or alert.since)
    ]
    return sorted(attempts, key=lambda attempt: attempt.at)


async def tested(alerting: Alerting, rule: Rule) -> AlertTest:
    """What a rule says of the last second, whatever came before."""
    second = alerting.reader.last()
    # One of its own: what the other remembers of a rule is for its evaluations alone.
    examiner = Examiner(alerting.reader, alerting.evaluator)
    certainty = await asyncio.to_thread(examiner.certainty, second)
    if isinstance(rule.source, Facts):
        outcome = examiner.examine(rule, second, certainty)
    else:
        outcome = await asyncio.to_thread(examiner.examine, rule, second, certainty)
    samples = [
        AlertSample(labels=dict(labels), value=held.value, holds=True)
        for labels, held in outcome.holds.items()
    ]
    notes: tuple[str, ...] = ()
    if not samples and not outcome.error and isinstance(rule.source, Condition):
        samples = await asyncio.to_thread(_measured, alerting, rule.source, second)
        if not samples:
            notes = await asyncio.to_thread(_unmeasured, alerting, rule.source, second)
    if certainty is not Certainty.WHOLE:
        notes = (*notes, "this second is incomplete: something may only be missing")
    return AlertTest(
        app=rule.app,
        rule=rule.name,
        kind=rule.kind,
        second=second,
        expression=rule.expression,
        holds=bool(outcome.holds),
        samples=tuple(samples),
        value=outcome.value,
        note="; ".join(notes),
        error=outcome.error,
    )


def _measured(alerting: Alerting, source: Condition, second: int) -> list[AlertSample]:
    """What a condition that does not hold compares: the left side of its last comparison."""
    compared = _compared(source.expression)
    if compared == source.expression:
        return []
    return [
        AlertSample(labels=dict(measured.labels), value=measured.value, holds=False)
        for measured in alerting.evaluator.instant(compared, second)
    ]


def _query(source: Source) -> str:
    match source:
        case Condition(expression):
            return _compared(expression)
        case Baseline(expression) | DeadMan(expression):
            return expression
        case _:
            return ""


@functools.lru_cache(maxsize=4096)
def _compared(expression: str) -> str:
    """The left side of an expression's last comparison; the expression, if it has none."""
    import promql_parser

    parsed: Any = promql_parser.parse(expression)
    if not (isinstance(parsed, promql_parser.BinaryExpr) and str(parsed.op) in _COMPARISONS):
        return expression
    left: str = parsed.lhs.prettify()
    return left


def _unmeasured(alerting: Alerting, source: Condition, second: int) -> tuple[str, ...]:
    """Which selectors nothing fits: most often, a name or a label is not spelled as measured."""
    from bedstone.control.monitoring.promql.selectors import each_within

    missing = [
        text
        for text, matchers in each_within(source.expression)
        if not alerting.reader.series(matchers, second - _LOOKED_BACK, second)
    ]
    return tuple(f"nothing in the last hour is {text}" for text in dict.fromkeys(missing))


_LOOKED_BACK: Final = 3600
_COMPARISONS: Final = ("==", "!=", ">", "<", ">=", "<=")


def _success(data: dict[str, Any]) -> dict[str, Any]:
    return {"status": "success", "data": data}


def _groups(alerting: Alerting) -> Iterator[dict[str, Any]]:
    """The rules of each app as one group."""
    rules = alerting.board.rules
    for app in dict.fromkeys(rule.app for rule in rules.values()):
        yield {
            "name": app or "bedstone",
            "file": "bedstone.yaml",
            "interval": 1,
            "rules": [_rule(alerting, rule) for rule in rules.values() if rule.app == app],
        }


def _rule(alerting: Alerting, rule: Rule) -> dict[str, Any]:
    key = rule.app, rule.name
    outcome = alerting.board.outcomes.get(key)
    alerts = alerting.board.of(key)
    return {
        "type": "alerting",
        "name": rule.name,
        "query": rule.expression,
        "duration": rule.lasting,
        "labels": {**dict(rule.labels), "severity": rule.severity},
        "annotations": {"summary": rule.summary} if rule.summary else {},
        "state": alerts[0].state if alerts else "inactive",
        "health": "unknown" if outcome is None else "err" if outcome.error else "ok",
        "lastError": outcome.error if outcome else "",
        "alerts": [_active(rule, alert) for alert in alerts],
    }


def _active(rule: Rule, alert: Alert) -> dict[str, Any]:
    known = told(rule, alert)
    return {
        "labels": {"alertname": rule.name, **known.labels},
        "annotations": {"summary": known.summary} if known.summary else {},
        "state": alert.state,
        "activeAt": dt.datetime.fromtimestamp(alert.since, dt.UTC).isoformat(),
        "value": "" if alert.value is None else f"{alert.value:g}",
    }
