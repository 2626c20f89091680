"""Envoy's statistics as series of ours: the pure part of reading the proxy.

Rules:
- What a statistic is, is worked out once, when its name is first seen. After that a line costs one
  look-up, and nothing more while its value stays.
- Several statistics may make one series (a route under two hosts); their counts are added.
- A statistic that Envoy took away and made again counts on from where it was, as long as something
  else of its series is there. A series of which nothing is left is gone.

What counts as one request is said in docs/reference/metrics.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from bedstone.control.mesh import counting
from bedstone.engines.envoy import BELOW
from bedstone.telemetry import names
from bedstone.telemetry.frames import Series
from bedstone.telemetry.names import Metric

SOURCE = "envoy"
_LINE = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)\{(.*)\}")
_LABEL = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')
_TIME_PARTS = ("_bucket", "_sum", "_count")
_LISTENER = "envoy_http_conn_manager_prefix"
_CLUSTER = "envoy_cluster_name"
_CLASS = "envoy_response_code_class"


class Target(NamedTuple):
    """A series that a statistic is a part of, and what its value is multiplied by."""

    series: Series
    scale: float = 1.0


Revision = Callable[[str], str | None]
"""The revision of an instance by its path; None if there is no such instance."""


@dataclass(frozen=True, slots=True)
class Naming:
    """Turns names of statistics into series.

    Args:
        node: the node's name.
        revision: of an instance.
    """

    node: str
    revision: Revision

    def targets(self, key: str) -> tuple[Target, ...]:
        """The series that one statistic, `NAME{LABELS}`, belongs to; none if it is not ours."""
        found = _LINE.fullmatch(key)
        if found is None:
            return ()
        name, labels = found[1], dict(_LABEL.findall(found[2]))
        return tuple(self._targets(name, labels))

    def _targets(self, name: str, labels: dict[str, str]) -> Iterator[Target]:
        listener, cluster = labels.get(_LISTENER, ""), labels.get(_CLUSTER, "")
        code = f"{labels.get(_CLASS, '')}xx"
        if code == "1xx":
            return  # "100 Continue" too, which is no answer; see `_ended`
        match name:
            case "envoy_http_downstream_rq_xx":
                yield from self._listener(
                    listener, names.REQUESTS, names.GATEWAY_REQUESTS, code=code
                )
            case "envoy_http_downstream_rq_active":
                yield from self._listener(listener, names.REQUESTS_ACTIVE, None)
            case "envoy_http_rbac_denied":
                yield from self._listener(listener, names.REQUEST_ERRORS, None, kind="denied")
            case "envoy_http_rq_direct_response":
                yield from self._refused(listener)
            case "envoy_cluster_upstream_rq_xx":
                yield from self._edge(cluster, names.EDGE_REQUESTS, code=code)
            case "envoy_cluster_upstream_rq_retry":
                yield from self._edge(cluster, names.EDGE_RETRIES)
            case "envoy_vhost_route_upstream_rq_xx":
                yield from self._route(labels.get("envoy_route", ""), names.ROUTE_REQUESTS, code)
            case "envoy_bedstone_ended":
                yield from self._ended(labels)
            case _:
                yield from self._time(name, labels)

    def _time(self, name: str, labels: dict[str, str]) -> Iterator[Target]:
        for part in _TIME_PARTS:
            if name.endswith(part):
                match name.removesuffix(part):
                    case "envoy_http_downstream_rq_time":
                        listener = labels.get(_LISTENER, "")
                        found = self._listener(
                            listener, names.REQUEST_SECONDS, names.GATEWAY_SECONDS
                        )
                    case "envoy_cluster_upstream_rq_time":
                        found = self._edge(labels.get(_CLUSTER, ""), names.EDGE_SECONDS)
                    case "envoy_vhost_route_upstream_rq_time":
                        found = self._route(labels.get("envoy_route", ""), names.ROUTE_SECONDS)
                    case _:
                        return
                for target in found:
                    yield _part(target.series, part, labels.get("le", ""))

    def _listener(
        self, listener: str, inbound: Metric, gateway: Metric | None, **more: str
    ) -> Iterator[Target]:
        """What is counted where requests arrive at an instance, or from outside."""
        match listener.split("/"):
            case ["inbound", app, cell, workload, instance]:
                revision = self.revision(f"{app}/{cell}/{workload}/{instance}")
                if revision is not None:
                    yield self._target(
                        inbound,
                        app=app,
                        cell=cell,
                        workload=workload,
                        instance=instance,
                        revision=revision,
                        **more,
                    )
            case ["gateway", app] if gateway is not None:
                yield self._target(gateway, app=app, **more)

    def _edge(self, cluster: str, metric: Metric, **more: str) -> Iterator[Target]:
        match cluster.split("/"):
            case ["to", app, cell, caller, callee]:
                yield self._target(metric, app=app, cell=cell, caller=caller, callee=callee, **more)

    def _route(self, prefix: str, metric: Metric, code: str | None = None) -> Iterator[Target]:
        more = {} if code is None else {"code": code}
        if (found := counting.route_of(prefix)) is not None:
            app, to, route = found
            yield self._target(metric, app=app, to=to, route=route, **more)

    def _refused(self, listener: str) -> Iterator[Target]:
        """Requests for what the caller does not declare: which callee it was is not counted."""
        match listener.split("/"):
            case ["outbound", app, cell, caller, _] | ["connect", app, cell, caller]:
                pass
            case ["call", _, app, cell, caller]:
                pass
            case _:
                return
        yield self._target(
            names.EDGE_ERRORS, app=app, cell=cell, caller=caller, callee="", kind="denied"
        )

    def _ended(self, labels: dict[str, str]) -> Iterator[Target]:
        """What `counting.exceptional` counts: requests without an answer, and failures."""
        status = labels.get(counting.CODE, "")
        code = int(status) if status.isdigit() else 0
        listener, cluster = labels.get(counting.LISTENER, ""), labels.get(counting.CLUSTER, "")
        if code < 200:
            # every other answer is among Envoy's own counters
            named = names.NO_ANSWER if code == 0 else "1xx"
            yield from self._listener(listener, names.REQUESTS, names.GATEWAY_REQUESTS, code=named)
            yield from self._edge(cluster, names.EDGE_REQUESTS, code=named)
            yield from self._route(labels.get(counting.ROUTE, ""), names.ROUTE_REQUESTS, named)
        kind = counting.error_kind(
            code, labels.get(counting.FLAGS, ""), labels.get(counting.OUTCOME, "")
        )
        if kind is not None:
            yield from self._listener(listener, names.REQUEST_ERRORS, None, kind=kind)
            yield from self._edge(cluster, names.EDGE_ERRORS, kind=kind)

    def _target(self, metric: Metric, **values: str) -> Target:
        return Target(metric.series(SOURCE, node=self.node, **values))

    def zeros(self, gateways: Iterable[str], instances: Iterable[str]) -> list[Series]:
        """What is said to be zero before anything was counted: answers, by class."""
        listeners = [f"gateway/{app}" for app in gateways]
        listeners += [f"inbound/{path}" for path in instances]
        return [
            target.series
            for listener in listeners
            for code in ("2xx", "3xx", "4xx", "5xx")
            for target in self._listener(
                listener, names.REQUESTS, names.GATEWAY_REQUESTS, code=code
            )
        ]


def _part(series: Series, part: str, bound: str) -> Target:
    """One series of a histogram, whose bounds and sum are milliseconds in Envoy."""
    labels = series.labels
    if part == "_bucket":
        le = bound if bound == "+Inf" else f"{(float(bound) + BELOW) / 1000:g}"
        labels = tuple(sorted((*labels, ("le", le))))
    scale = 0.001 if part == "_sum" else 1.0
    return Target(Series(series.name + part, labels, "counter", series.source), scale)


class _Slot:
    """One statistic: what it belongs to, and its last value."""

    __slots__ = ("read", "seen", "targets", "value")

    def __init__(self, targets: tuple[Target, ...]) -> None:
        self.targets = targets
        self.value = 0.0
        self.read = b"0"
        self.seen = 0


class EnvoyCounts:
    """What one Envoy has counted; made anew for the next one."""

    def __init__(self, naming: Naming) -> None:
        self._naming = naming
        self._slots: dict[bytes, _Slot] = {}
        self._parts: dict[Series, int] = {}
        self._turn = 0
        self.values: dict[Series, float] = {}

    def update(self, text: bytes) -> dict[Series, float]:
        """Take in one answer in Prometheus's text format; the values of all series now."""
        self._turn += 1
        turn, slots, seen = self._turn, self._slots, 0
        for line in text.split(b"\n"):
            if line.startswith(b"#"):
                continue
            key, _, read = line.rpartition(b" ")
            slot = slots.get(key)
            if slot is None:
                if not key:
                    continue
                slot = self._add(key)
            slot.seen = turn
            seen += 1
            if slot.read != read:
                self._change(slot, read)
        if seen != len(slots):
            self._remove([key for key, slot in slots.items() if slot.seen != turn])
        return self.values

    def _add(self, key: bytes) -> _Slot:
        slot = self._slots[key] = _Slot(self._naming.targets(key.decode()))
        for series, _ in slot.targets:
            self._parts[series] = self._parts.get(series, 0) + 1
            self.values.setdefault(series, 0.0)
        return slot

    def _change(self, slot: _Slot, read: bytes) -> None:
        value = float(read)
        for series, scale in slot.targets:
            if series.kind == "gauge":
                self.values[series] = value * scale
            else:
                # less than before: Envoy made the statistic anew, and it counts from zero
                more = value - slot.value if value >= slot.value else value
                self.values[series] += more * scale
        slot.value, slot.read = value, read

    def _remove(self, keys: list[bytes]) -> None:
        for key in keys:
            for series, _ in self._slots.pop(key).targets:
                self._parts[series] -= 1
                if not self._parts[series]:
                    del self._parts[series], self.values[series]
