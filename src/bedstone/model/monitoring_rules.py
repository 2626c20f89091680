"""What a manifest may say of alerts, receivers and exports beyond the shape of each part.

As `rules`, these look at the plain data and pass over what has another shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from bedstone.model.expressions import ExpressionMistake, selector_mistake, value_mistake
from bedstone.model.fields import KIND_TAG
from bedstone.model.monitoring_spec import alert_kind
from bedstone.model.positions import Document, Location, Problem
from bedstone.model.rules import Rules, list_of, mapping_of, mappings_of
from bedstone.model.units import format_span, parse_span

RESERVED_RECEIVERS: Final = frozenset({"log"})
RESERVED_LABELS: Final = frozenset({"alertname", "app", "rule", "severity"})
"""Labels that every alert has of itself."""
_PERIOD: Final = 30 * 86400.0


def check_monitoring(document: Document, environ: Mapping[str, str] | None) -> list[Problem]:
    """The mistakes in what a manifest says of monitoring.

    Args:
        document: the manifest.
        environ: the variables that `${env.NAME}` may use; None leaves them unchecked.
    """
    rules = Rules(document, environ)
    data = mapping_of(document.data)
    return [
        *_alerts(document, rules, data),
        *_receivers(rules, data),
        *_exports(rules, mapping_of(data.get("monitoring"))),
    ]


def _alerts(document: Document, rules: Rules, data: Mapping[str, Any]) -> Iterator[Problem]:
    for name, alert in mappings_of(data, "alerts").items():
        location: Location = ("alerts", name)
        for key in ("when", "series"):
            yield from _expression(document, (*location, key), alert.get(key), value_mistake)
        for key in ("errors", "total"):
            yield from _expression(document, (*location, key), alert.get(key), selector_mistake)
        if alert.get("expects") not in rules.workloads:
            place = (*location, "expects")
            yield from _expression(document, place, alert.get("expects"), value_mistake)
        for label in mapping_of(alert.get("labels")):
            if label in RESERVED_LABELS:
                yield rules.key_problem(
                    (*location, "labels", label), f"the label {label!r} is set by Bedstone"
                )
        if alert_kind(alert) == KIND_TAG + "burn-rate":
            yield from _burn_rate(rules, data, location, alert)


def _expression(
    document: Document,
    location: Location,
    text: Any,
    check: Callable[[str], ExpressionMistake | None],
) -> Iterator[Problem]:
    if not isinstance(text, str) or not text:
        return
    if mistake := check(text):
        hint = "see the reference of metrics for what PromQL is understood"
        at = document.position_within(location, mistake.index)
        yield Problem(at, f"got {_near(text, mistake.index)}: {mistake.message}", hint, location)


def _near(text: str, index: int) -> str:
    """What stands where a mistake is."""
    rest = " ".join(text[index:].split())
    if not rest:
        return "the end of the expression"
    return repr(rest if len(rest) <= 30 else rest[:29] + "…")


def _burn_rate(
    rules: Rules, data: Mapping[str, Any], location: Location, alert: Mapping[str, Any]
) -> Iterator[Problem]:
    own = [key for key in ("errors", "total") if key in alert]
    of = alert.get("of")
    if "of" in alert and own:
        yield rules.key_problem(
            (*location, own[0]),
            f"the alert {location[-1]!r} has both of and {own[0]}, expected one of them",
            "keep one of the two",
        )
    elif "of" not in alert and len(own) < 2:
        yield rules.key_problem(
            location,
            f"the alert {location[-1]!r} does not say whose requests it is about",
            "write of: WORKLOAD, of: gateway or of: /PATH, or both errors and total",
        )
    elif isinstance(of, str):
        gateway = mapping_of(data.get("gateway"))
        routes = [mapping_of(route) for route in list_of(gateway.get("routes"))]
        known = [
            *rules.workloads,
            *(["gateway"] if gateway else []),
            *(f"{route.get('host', '')}{route.get('path', '/')}" for route in routes),
        ]
        if of not in known:
            yield rules.unknown((*location, "of"), of, known, "a workload, gateway or a route")
    period = _seconds(alert.get("period", _PERIOD))
    for index, item in enumerate(list_of(alert.get("windows"))):
        window = mapping_of(item)
        long, short = _seconds(window.get("long")), _seconds(window.get("short"))
        if long is None or short is None or period is None:
            continue
        if short >= long:
            yield rules.problem(
                (*location, "windows", index, "short"),
                f"got {format_span(short)}, expected less than the long window, "
                f"{format_span(long)}",
            )
        if long > period:
            yield rules.problem(
                (*location, "windows", index, "long"),
                f"got {format_span(long)}, expected at most the period, {format_span(period)}",
            )


def _seconds(value: Any) -> float | None:
    try:
        found = parse_span(value)
    except ValueError:
        return None
    return float(found) if isinstance(found, int | float) else None


def _receivers(rules: Rules, data: Mapping[str, Any]) -> Iterator[Problem]:
    for name, receiver in mappings_of(data, "receivers").items():
        location: Location = ("receivers", name)
        if name in RESERVED_RECEIVERS:
            yield rules.key_problem(location, f"the receiver {name!r} is always there", "rename it")
        yield from _texts(rules, location, receiver, ("webhook",))
        yield from _secret(rules, (*location, "secret"), receiver.get("secret"))


def _exports(rules: Rules, monitoring: Mapping[str, Any]) -> Iterator[Problem]:
    for key in ("remote_write", "otlp"):
        for index, item in enumerate(list_of(monitoring.get(key))):
            location: Location = ("monitoring", key, index)
            export = mapping_of(item)
            yield from _texts(rules, location, export, ("url",))
            yield from _secret(rules, (*location, "bearer"), export.get("bearer"))


def _texts(
    rules: Rules, location: Location, part: Mapping[str, Any], keys: tuple[str, ...]
) -> Iterator[Problem]:
    """The references in a part's own texts and in its headers."""
    found = [((*location, key), part.get(key)) for key in keys]
    found += [
        ((*location, "headers", name), value)
        for name, value in mapping_of(part.get("headers")).items()
    ]
    for place, value in found:
        if isinstance(value, str):
            yield from rules.check_references(place, value, None)


def _secret(rules: Rules, location: Location, value: Any) -> Iterator[Problem]:
    if not isinstance(value, str):
        return
    if "${env." not in value:
        # What stands there may be the secret itself: it is not shown.
        yield rules.problem(
            location,
            "got a text, expected ${env.NAME}: a manifest has no secrets",
            "put it into an environment variable, and name that",
        )
    else:
        yield from rules.check_references(location, value, None)
