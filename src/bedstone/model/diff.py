"""What an apply will do, in the terms of the manifest. Pure.

Rules:
- What enters a workload's revision rolls out; `replicas` scales; the gateway changes in place.
- Values that may hold secrets (environment, database URLs) are named, never shown.
- A removed database keeps its data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from bedstone.model.api import Change
from bedstone.model.monitoring_diff import monitoring_changes
from bedstone.model.spec import (
    AppSpec,
    DatabaseSpec,
    ExecProbe,
    Gateway,
    HttpProbe,
    Limits,
    Route,
    TcpProbe,
    TransactionsSpec,
    WorkloadSpec,
)
from bedstone.model.units import format_duration, format_size

ROLLS_OUT: Final = "rolls out"
IN_PLACE: Final = "no restart"

_DURATIONS: Final = frozenset({"start_timeout", "stop_timeout", "timeout"})
_SECRET_DATABASE_KEYS: Final = frozenset({"url"})


def diff(
    old: AppSpec | None,
    new: AppSpec | None,
    old_sources: Mapping[str, str],
    new_sources: Mapping[str, str],
    scaled: Mapping[str, int] | None = None,
) -> list[Change]:
    """The changes from one declaration to another, in the order of the manifest.

    Args:
        old: what is applied now; None: nothing.
        new: what shall be applied; None: the app is deleted.
        old_sources: source digest by workload, as of `old`.
        new_sources: likewise, as of `new`.
        scaled: the replicas of workloads that were scaled since `old`.
    """
    changes = [*_gateway(old.gateway if old else None, new.gateway if new else None)]
    before, after = (old.workloads if old else {}), (new.workloads if new else {})
    for name in _union(before, after):
        sources = (old_sources.get(name, ""), new_sources.get(name, ""))
        held = (scaled or {}).get(name)
        changes += _workload(name, before.get(name), after.get(name), sources, held)
    stores, wanted = (old.databases if old else {}), (new.databases if new else {})
    for name in _union(stores, wanted):
        changes += _database(name, stores.get(name), wanted.get(name))
    changes += _transactions(old.transactions if old else None, new.transactions if new else None)
    changes += monitoring_changes(old, new)
    return changes


def format_change(change: Change) -> str:
    """One line: `~ workload accounts: replicas 1 → 2 (scales)`."""
    words = [change.op, change.subject]
    match change.before, change.after:
        case "", "":
            pass
        case "", after:
            words.append(f"→ {after}" if change.op == "~" else after)
        case before, "":
            words.append(f"{before} → default" if change.op == "~" else before)
        case before, after:
            words.append(f"{before} → {after}")
    if change.effect:
        words.append(f"({change.effect})")
    return " ".join(words)


def _union(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [*after, *(name for name in before if name not in after)]


def _gateway(old: Gateway | None, new: Gateway | None) -> Iterator[Change]:
    if old is None or new is None:
        if new is not None:
            where = f"{new.address}:{new.port}"
            yield Change(op="+", subject="gateway", after=where)
            for key, route in _routes(new).items():
                yield Change(op="+", subject=f"route {key}", after=_route(route))
        elif old is not None:
            yield Change(op="-", subject="gateway", effect="nothing enters from outside")
        return
    for key in ("port", "address"):
        yield from _value(f"gateway.{key}", getattr(old, key), getattr(new, key), IN_PLACE)
    before, after = _routes(old), _routes(new)
    for key in _union(before, after):
        was, is_now = before.get(key), after.get(key)
        if was is None and is_now is not None:
            yield Change(op="+", subject=f"route {key}", after=_route(is_now), effect=IN_PLACE)
        elif is_now is None:
            yield Change(op="-", subject=f"route {key}", effect=IN_PLACE)
        elif was is not None and was != is_now:
            yield Change(
                op="~",
                subject=f"route {key}",
                before=_route(was),
                after=_route(is_now),
                effect=IN_PLACE,
            )


def _routes(gateway: Gateway) -> dict[str, Route]:
    return {f"{route.host or ''}{route.path}": route for route in gateway.routes}


def _route(route: Route) -> str:
    words = [f"to {route.to}"]
    if route.strip:
        words.append("stripped")
    if route.timeout is not None:
        words.append(f"within {format_duration(route.timeout)}")
    return ", ".join(words)


def _workload(
    name: str,
    old: WorkloadSpec | None,
    new: WorkloadSpec | None,
    sources: tuple[str, str],
    scaled: int | None,
) -> Iterator[Change]:
    subject = f"workload {name}"
    if new is None:
        yield Change(op="-", subject=subject, effect="drains")
        return
    if old is None:
        yield Change(op="+", subject=subject, after=_replicas(new.replicas))
        return
    for key in WorkloadSpec.model_fields:
        was, is_now = getattr(old, key), getattr(new, key)
        if was == is_now:
            continue
        if key == "env":
            yield from _env(subject, was, is_now)
            continue
        if key == "replicas" and scaled is not None:
            was = f"{scaled}, scaled by hand,"
        effect = "scales" if key == "replicas" else ROLLS_OUT
        yield from _value(f"{subject}: {key}", was, is_now, effect, duration=key in _DURATIONS)
    if sources[0] != sources[1]:
        yield Change(op="~", subject=f"{subject}: source changed", effect=ROLLS_OUT)


def _replicas(count: int) -> str:
    return "1 instance" if count == 1 else f"{count} instances"


def _env(subject: str, old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[Change]:
    for variable in _union(old, new):
        was, is_now = old.get(variable), new.get(variable)
        if was == is_now:
            continue
        word = "added" if was is None else "removed" if is_now is None else "changed"
        yield Change(op="~", subject=f"{subject}: env.{variable} {word}", effect=ROLLS_OUT)


def _database(name: str, old: DatabaseSpec | None, new: DatabaseSpec | None) -> Iterator[Change]:
    subject = f"database {name}"
    if new is None:
        yield Change(op="-", subject=subject, effect="data is kept")
        return
    if old is None:
        after = "external" if new.url else new.engine
        yield Change(op="+", subject=subject, after=after)
        return
    for key in DatabaseSpec.model_fields:
        was, is_now = getattr(old, key), getattr(new, key)
        if was == is_now:
            continue
        if key in _SECRET_DATABASE_KEYS:
            effect = "its users roll out; data is not moved"
            yield Change(op="~", subject=f"{subject}: {key} changed", effect=effect)
        else:
            yield from _value(f"{subject}: {key}", was, is_now, "")


def _transactions(old: TransactionsSpec | None, new: TransactionsSpec | None) -> Iterator[Change]:
    if old is None or new is None:
        if new is not None:
            yield Change(op="+", subject="transactions", after=f"logged in {new.database}")
        elif old is not None:
            yield Change(op="-", subject="transactions", effect="the log is kept")
        return
    if old.database != new.database:
        yield Change(
            op="~",
            subject="transactions: database",
            before=old.database,
            after=new.database,
            effect="what is unfinished in the old log stays there",
        )
    yield from _value("transactions: second_person", old.second_person, new.second_person, IN_PLACE)


def _value(
    subject: str, old: Any, new: Any, effect: str, *, duration: bool = False
) -> Iterator[Change]:
    if old != new:
        before, after = (_text(value, duration=duration) for value in (old, new))
        yield Change(op="~", subject=subject, before=before, after=after, effect=effect)


def _text(value: Any, *, duration: bool = False) -> str:
    """A value as a manifest would have it."""
    match value:
        case None:
            text = ""
        case bool():
            text = str(value).lower()
        case float() if duration:
            text = format_duration(value)
        case tuple():
            text = f"[{', '.join(map(_text, value))}]"
        case HttpProbe(path=path):
            text = path + _timing(value)
        case TcpProbe():
            text = "tcp" + _timing(value)
        case ExecProbe(command=command):
            text = _text(command) + _timing(value)
        case Limits():
            text = _fields(value.model_dump(exclude_none=True))
        case _:
            text = str(value)
    return text


def _timing(probe: HttpProbe | TcpProbe | ExecProbe) -> str:
    """What of a probe's timing is not the default."""
    given = probe.model_dump(exclude_defaults=True, exclude={"path", "tcp", "command"})
    return f" {{{_fields(given)}}}" if given else ""


def _fields(values: Mapping[str, Any]) -> str:
    def spelled(key: str, value: Any) -> str:
        if key == "memory":
            return format_size(value)
        return _text(value, duration=key in {"interval", "timeout"})

    return ", ".join(f"{key} {spelled(key, value)}" for key, value in values.items())
