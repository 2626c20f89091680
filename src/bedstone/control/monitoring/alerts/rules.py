"""Rules: what is declared of alerts, in the form in which it is evaluated.

A rule has one source, which tells its kind. Its version changes with everything that decides
whether it holds, and with nothing else: a new summary ends no alert.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from bedstone.control.monitoring.reading import Matcher
from bedstone.model.monitoring_spec import (
    AlertSpec,
    BaselineAlert,
    BurnRateAlert,
    ConditionAlert,
    DeadManAlert,
)
from bedstone.model.spec import AppSpec
from bedstone.model.units import format_share, format_span
from bedstone.telemetry import names
from bedstone.telemetry.frames import Labels

Kind = Literal["condition", "burn-rate", "baseline", "dead-man"]
DAY: Final = 86400
SEASONS: Final = {"1d": DAY, "1w": 7 * DAY}
_TRAFFIC_WINDOW: Final = 5


@dataclass(frozen=True, slots=True)
class BurnWindow:
    """One pair of windows; see `bedstone.model.monitoring_spec.Window`."""

    long: int
    short: int
    factor: float
    severity: str


WINDOWS: Final = (
    BurnWindow(3600, 300, 14.4, "page"),
    BurnWindow(6 * 3600, 1800, 6.0, "page"),
    BurnWindow(3 * DAY, 6 * 3600, 1.0, "ticket"),
)
"""For a period of 30 days, 2 %, 5 % and 10 % of the budget are gone when they fire (The Site
Reliability Workbook, chapter 5, "Alerting on SLOs", table 5-8)."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Holds for every series that an expression gives."""

    expression: str


@dataclass(frozen=True, slots=True)
class BurnRate:
    """Holds for every pair of windows over both of which the budget burns too fast."""

    objective: float
    errors: tuple[Matcher, ...]
    total: tuple[Matcher, ...]
    windows: tuple[BurnWindow, ...]
    told: str


@dataclass(frozen=True, slots=True)
class Baseline:
    """Holds for every series of an expression that differs from the seasons before.

    `sigmas` or `share` is 0: the one that does not count.
    """

    expression: str
    season: int
    sigmas: float
    share: float
    above: bool
    below: bool


@dataclass(frozen=True, slots=True)
class DeadMan:
    """Holds when an expression has had no value for so many seconds that were collected."""

    expression: str
    within: float


@dataclass(frozen=True, slots=True)
class Facts:
    """Holds for what the server itself knows, as of a second; for built-in rules."""

    told: str
    facts: Callable[[int], Mapping[Labels, float]]


Source: TypeAlias = Condition | BurnRate | Baseline | DeadMan | Facts


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Args:
        app: whose; empty for the whole installation.
        name: unique within the app.
        source: what decides whether it holds.
        lasting: for how many seconds it must hold before it fires.
        severity: how urgent.
        summary: for people; `{LABEL}` and `{value}` are replaced.
        labels: added to those of its alerts.
        group_by: alerts that agree in these are told together.
        every: seconds between evaluations, at least.
        built_in: it was not declared.
    """

    app: str
    name: str
    source: Source
    lasting: float = 0.0
    severity: str = "ticket"
    summary: str = ""
    labels: Labels = ()
    group_by: tuple[str, ...] = ("rule",)
    every: int = 1
    built_in: bool = False
    version: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        told = self.source.told if isinstance(self.source, Facts) else repr(self.source)
        decides = json.dumps([self.app, self.name, told, self.lasting])
        digest = hashlib.sha256(decides.encode()).hexdigest()[:16]
        object.__setattr__(self, "version", digest)

    @property
    def kind(self) -> Kind:
        """What people call its kind."""
        match self.source:
            case Condition() | Facts():
                return "condition"
            case BurnRate():
                return "burn-rate"
            case Baseline():
                return "baseline"
            case DeadMan():
                return "dead-man"

    @property
    def expression(self) -> str:
        """What it says, in words for people."""
        match self.source:
            case Condition(expression) | DeadMan(expression):
                return expression
            case BurnRate(told=told) | Facts(told=told):
                return told
            case Baseline(expression, season):
                return f"{expression} against {format_span(season)} before"


def declared(spec: AppSpec) -> Iterator[Rule]:
    """The rules that a manifest declares."""
    for name, alert in spec.alerts.items():
        yield _rule(spec, name, alert)


def _rule(spec: AppSpec, name: str, alert: AlertSpec) -> Rule:
    lasting = 0.0
    every = 1
    source: Source
    match alert:
        case ConditionAlert():
            source = Condition(alert.when)
            lasting = alert.for_ or 0.0
        case BurnRateAlert():
            source = burn_rate(spec, alert)
            every = max(1, min(60, min(window.short for window in source.windows) // 30))
        case BaselineAlert():
            source = baseline(alert)
            lasting = alert.for_ or 0.0
            every = 15
        case DeadManAlert():
            source = DeadMan(_expected(spec, alert.expects), alert.within)
    return Rule(
        app=spec.app,
        name=name,
        source=source,
        lasting=lasting,
        severity=alert.severity,
        summary=alert.summary or _summary(alert),
        labels=tuple(sorted(alert.labels.items())),
        group_by=alert.group_by,
        every=every,
    )


def _summary(alert: AlertSpec) -> str:
    """What is told where the manifest says nothing."""
    match alert:
        case ConditionAlert(when=when):
            return when
        case BurnRateAlert(of=of):
            return f"the error budget of {of or 'its counters'} burns {{value}} times too fast"
        case BaselineAlert(series=series):
            return f"{series} is {{value}}, which is unusual for this time"
        case DeadManAlert(expects=expects):
            return f"nothing has come of {expects} for {{value}} s"


def burn_rate(spec: AppSpec, alert: BurnRateAlert) -> BurnRate:
    """The counters of a burn rate, and its windows."""
    if alert.of is None:
        errors, total = selector(alert.errors or ""), selector(alert.total or "")
        told = f"{alert.errors} / {alert.total}"
    else:
        total = _requests(spec, alert.of)
        errors = (*total, Matcher("code", "=", "5xx"))
        told = f"failed requests of {alert.of}"
    windows = tuple(
        BurnWindow(
            max(1, round(window.long)),
            max(1, round(window.short)),
            window.factor,
            window.severity or alert.severity,
        )
        for window in alert.windows
    )
    told = f"{told}, objective {format_share(alert.objective)}"
    # The factors of the default windows mean a share of a budget of 30 days.
    scale = alert.period / (30 * DAY)
    return BurnRate(alert.objective, errors, total, windows or _scaled(scale), told)


def _scaled(scale: float) -> tuple[BurnWindow, ...]:
    """The default windows for another period: as long in relation to it, with the same factors."""
    if math.isclose(scale, 1.0):
        return WINDOWS
    return tuple(
        BurnWindow(
            max(2, round(w.long * scale)), max(1, round(w.short * scale)), w.factor, w.severity
        )
        for w in WINDOWS
    )


def _requests(spec: AppSpec, of: str) -> tuple[Matcher, ...]:
    app = Matcher("app", "=", spec.app)
    if of == "gateway":
        return (Matcher("__name__", "=", names.GATEWAY_REQUESTS.name), app)
    if of in spec.workloads:
        name = Matcher("__name__", "=", names.REQUESTS.name)
        return (name, app, Matcher("workload", "=", of))
    return (
        Matcher("__name__", "=", names.ROUTE_REQUESTS.name),
        app,
        Matcher("route", "=", of),
    )


def selector(text: str) -> tuple[Matcher, ...]:
    """The matchers of the selector of series.

    Raises:
        ValueError: it is none.
    """
    import promql_parser

    parsed = promql_parser.parse(text)
    if not isinstance(parsed, promql_parser.VectorSelector):
        raise ValueError("not the selector of a counter")  # noqa: TRY004 - of the text
    ops: dict[str, Literal["=", "!=", "=~", "!~"]] = {
        "Equal": "=",
        "NotEqual": "!=",
        "Re": "=~",
        "NotRe": "!~",
    }
    found = [
        Matcher(matcher.name, ops[str(matcher.op).rpartition(".")[2]], matcher.value)
        for matcher in parsed.matchers.matchers
    ]
    if parsed.name:
        found.insert(0, Matcher("__name__", "=", parsed.name))
    return tuple(found)


def baseline(alert: BaselineAlert) -> Baseline:
    """What a baseline compares with what."""
    sigmas = share = 0.0
    match alert.deviates:
        case str(text):
            share = float(text.rstrip("%")) / 100
        case number:
            sigmas = number
    return Baseline(
        alert.series,
        SEASONS[alert.season],
        sigmas,
        share,
        above=alert.direction != "below",
        below=alert.direction != "above",
    )


def _expected(spec: AppSpec, expects: str) -> str:
    if expects not in spec.workloads:
        return expects
    counter = f'{names.REQUESTS.name}{{app="{spec.app}",workload="{expects}"}}'
    return f"sum(increase({counter}[{_TRAFFIC_WINDOW}s])) > 0"
