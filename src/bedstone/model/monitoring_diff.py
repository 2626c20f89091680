"""What an apply will do to alerts, receivers and what is sent to others. Pure.

Rules: secrets, headers and URLs (which may hold a token) are named, never shown; nothing here
restarts anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bedstone.model.api import Change
from bedstone.model.fields import Spec
from bedstone.model.monitoring_spec import (
    BaselineAlert,
    BurnRateAlert,
    ConditionAlert,
    DeadManAlert,
    MonitoringSpec,
    ReceiverSpec,
    Window,
)
from bedstone.model.spec import AppSpec
from bedstone.model.units import format_duration, format_share, format_span

_HIDDEN = frozenset({"webhook", "headers", "secret", "remote_write", "otlp"})
_DURATIONS = frozenset({"for", "within", "group_wait", "repeat", "slow", "period"})


def monitoring_changes(old: AppSpec | None, new: AppSpec | None) -> Iterator[Change]:
    """The changes of `monitoring`, `alerts` and `receivers`, in this order."""
    yield from _monitoring(old.monitoring if old else None, new.monitoring if new else None)
    yield from _named(
        "alert", old.alerts if old else {}, new.alerts if new else {}, "its alerts end"
    )
    yield from _named(
        "receiver", old.receivers if old else {}, new.receivers if new else {}, "is told no more"
    )


def described(part: Spec) -> str:
    """An alert or a receiver in a few words."""
    match part:
        case ConditionAlert(when=when, for_=lasting):
            return f"when {when}" + (f" for {format_duration(lasting)}" if lasting else "")
        case BurnRateAlert(objective=objective, of=of):
            return f"{format_share(objective)} of {of or 'its own counters'}"
        case BaselineAlert(series=series, season=season):
            return f"{series} against {season} before"
        case DeadManAlert(expects=expects, within=within):
            return f"{expects} within {format_duration(within)}"
        case ReceiverSpec():
            return "webhook"
        case _:
            return ""


def _monitoring(old: MonitoringSpec | None, new: MonitoringSpec | None) -> Iterator[Change]:
    was, is_now = (
        {key: value for key, value in _flat(part or MonitoringSpec()).items() if key != "traces"}
        for part in (old, new)
    )
    for part, values in ((old, was), (new, is_now)):
        traces = (part or MonitoringSpec()).traces
        values |= {f"traces.{key}": value for key, value in _flat(traces).items()}
    yield from _fields("monitoring", was, is_now)


def _named(
    what: str, old: Mapping[str, Spec], new: Mapping[str, Spec], effect: str
) -> Iterator[Change]:
    for name in (*new, *(name for name in old if name not in new)):
        subject = f"{what} {name}"
        was, is_now = old.get(name), new.get(name)
        if is_now is None:
            yield Change(op="-", subject=subject, effect=effect)
        elif was is None:
            yield Change(op="+", subject=subject, after=described(is_now))
        elif type(was) is not type(is_now):
            yield Change(op="~", subject=subject, before=described(was), after=described(is_now))
        else:
            yield from _fields(subject, _flat(was), _flat(is_now))


def _flat(part: Spec) -> dict[str, Any]:
    """The fields of a part by the keys that a manifest has for them."""
    return {
        field.alias or name: getattr(part, name) for name, field in type(part).model_fields.items()
    }


def _fields(subject: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for key, value in new.items():
        if old[key] == value:
            continue
        if key in _HIDDEN:
            yield Change(op="~", subject=f"{subject}: {key} changed")
        else:
            before, after = _text(key, old[key]), _text(key, value)
            yield Change(op="~", subject=f"{subject}: {key}", before=before, after=after)


def _text(key: str, value: Any) -> str:
    last = key.rpartition(".")[2]
    match value:
        case None:
            text = ""
        case bool():
            text = str(value).lower()
        case float() if last in _DURATIONS:
            text = format_span(value)
        case float() if last in ("objective", "share"):
            text = format_share(value)
        case float():
            text = f"{value:g}"
        case dict():
            text = "{" + ", ".join(f"{name}: {item}" for name, item in value.items()) + "}"
        case tuple():
            text = "[" + ", ".join(_item(item) for item in value) + "]"
        case _:
            text = str(value)
    return text


def _item(value: Any) -> str:
    if isinstance(value, Window):
        return f"{format_span(value.long)}/{format_span(value.short)} at {value.factor:g}"
    return str(value)
