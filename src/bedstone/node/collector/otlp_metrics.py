"""OpenTelemetry's metrics as series: names, labels and values by Prometheus's rules; pure.

It follows "Prometheus and OpenMetrics Compatibility" of the OpenTelemetry specification:

| OpenTelemetry | series |
|---|---|
| monotonic sum | counter `NAME_UNIT_total` |
| other sum | gauge `NAME_UNIT` |
| gauge | gauge `NAME_UNIT`, of unit `1`: `NAME_ratio` |
| histogram | counters `NAME_UNIT_bucket{le}`, `NAME_UNIT_sum`, `NAME_UNIT_count` |
| exponential histogram | the same; its buckets are joined to at most two an octave |
| summary | refused: its quantiles cannot be merged |

Rules:
- A label that an application names as one of ours is `exported_…`.
- Names that begin with `bedstone_` are ours alone, and refused.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from bedstone.telemetry.frames import Labels
from bedstone.telemetry.names import SCOPE

if TYPE_CHECKING:
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
        ExportMetricsServiceRequest,
    )

LONGEST_NAME: Final = 200
LONGEST_VALUE: Final = 500
MOST_LABELS: Final = 30
MOST_BUCKETS: Final = 1000
OURS: Final = "bedstone_"
FINEST: Final = 1
"""Scale to which exponential histograms are joined: two buckets an octave."""

_NO_VALUE: Final = 1  # DataPointFlags.FLAG_NO_RECORDED_VALUE_MASK
_DELTA: Final = 1  # AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
_UNITS: Final = {
    "d": "days",
    "h": "hours",
    "min": "minutes",
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "ns": "nanoseconds",
    "By": "bytes",
    "KiBy": "kibibytes",
    "MiBy": "mebibytes",
    "GiBy": "gibibytes",
    "TiBy": "tibibytes",
    "KBy": "kilobytes",
    "kBy": "kilobytes",
    "MBy": "megabytes",
    "GBy": "gigabytes",
    "TBy": "terabytes",
    "m": "meters",
    "V": "volts",
    "A": "amperes",
    "J": "joules",
    "W": "watts",
    "g": "grams",
    "Cel": "celsius",
    "Hz": "hertz",
    "%": "percent",
}
_PER: Final = {"s": "second", "m": "minute", "min": "minute", "h": "hour", "d": "day"}

Kind = Literal["counter", "gauge"]


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one series.

    Args:
        stream: who wrote it: another process or meter of the same instance is another stream.
        name: of the series.
        labels: the application's own, sorted.
        kind: what the value means.
        start: when the stream began to count, in nanoseconds since the epoch; 0 for unknown.
        time: of the value, likewise.
        value: it.
        delta: it is what came since the value before it.
        level: it is a level (a gauge), of which the last one counts; else it adds up over streams.
    """

    stream: int
    name: str
    labels: Labels
    kind: Kind
    start: int
    time: int
    value: float
    delta: bool = False
    level: bool = False


@dataclass(slots=True)
class Refused:
    """Points that are not taken, by why."""

    count: int = 0
    reason: str = ""

    def add(self, count: int, reason: str) -> None:
        """Some more."""
        self.count += count
        self.reason = self.reason or reason


def points(request: ExportMetricsServiceRequest, refused: Refused) -> Iterator[Point]:
    """What a request says; what it says that cannot be taken is counted in `refused`."""
    for resource in request.resource_metrics:
        who = resource.resource.SerializeToString(deterministic=True)
        for scope in resource.scope_metrics:
            stream = hash((who, scope.scope.name, scope.scope.version))
            for metric in scope.metrics:
                yield from _points(metric, stream, refused)


def _points(metric: Any, stream: int, refused: Refused) -> Iterator[Point]:
    kind = metric.WhichOneof("data")
    if kind is None:
        return
    data = getattr(metric, kind)
    monotonic = kind == "sum" and data.is_monotonic
    name = series_name(metric.name, metric.unit, counter=monotonic, gauge=kind == "gauge")
    if not name or name.startswith(OURS):
        reason = f"the name {metric.name[:80]!r} " + ("is ours" if name else "is no name")
        refused.add(len(data.data_points), reason)
        return
    for point in data.data_points:
        if not point.flags & _NO_VALUE:
            labels = series_labels(point.attributes)
            match kind:
                case "sum" | "gauge":
                    yield from _value(stream, name, labels, kind, data, point, refused)
                case "histogram" | "exponential_histogram":
                    buckets = _buckets(kind, name, point, refused)
                    if buckets is not None:
                        yield from _histogram(stream, name, labels, data, point, buckets)
                case _:
                    refused.add(1, f"{name} is a summary: make it a histogram")


def _value(
    stream: int,
    name: str,
    labels: Labels,
    kind: str,
    data: Any,
    point: Any,
    refused: Refused,
) -> Iterator[Point]:
    """The series of one sum or gauge."""
    value = float(point.as_int if point.WhichOneof("value") == "as_int" else point.as_double)
    if not math.isfinite(value):
        refused.add(1, f"{name} is no finite number")
        return
    adds_up = kind == "sum"
    if adds_up and data.is_monotonic and value < 0:
        refused.add(1, f"{name} only grows, and was told to fall")
        return
    yield Point(
        stream,
        name,
        labels,
        "counter" if adds_up and data.is_monotonic else "gauge",
        point.start_time_unix_nano,
        point.time_unix_nano,
        value,
        delta=adds_up and data.aggregation_temporality == _DELTA,
        level=not adds_up,
    )


def _buckets(
    kind: str, name: str, point: Any, refused: Refused
) -> Iterable[tuple[float, int]] | None:
    """Upper bounds and counts of a histogram's finite buckets; None if it is refused."""
    if kind == "exponential_histogram":
        counts = point.positive.bucket_counts, point.negative.bucket_counts
        if max(map(len, counts)) > MOST_BUCKETS:
            refused.add(1, f"{name} has more than {MOST_BUCKETS} buckets")
            return None
        return exponential_buckets(
            point.scale,
            point.zero_count,
            point.zero_threshold,
            (point.positive.offset, point.positive.bucket_counts),
            (point.negative.offset, point.negative.bucket_counts),
        )
    bounds = tuple(point.explicit_bounds)
    fit = len(bounds) + 1 == len(point.bucket_counts) <= MOST_BUCKETS
    if not fit and (bounds or point.bucket_counts):
        refused.add(1, f"{name} has buckets that do not fit its bounds, or too many")
        return None
    return zip(bounds, point.bucket_counts, strict=False)


def _histogram(
    stream: int,
    name: str,
    labels: Labels,
    data: Any,
    point: Any,
    buckets: Iterable[tuple[float, int]],
) -> Iterator[Point]:
    """The series of one histogram; `buckets` are upper bounds, ascending, and counts."""
    delta = data.aggregation_temporality == _DELTA
    start, time = point.start_time_unix_nano, point.time_unix_nano

    def counter(name: str, labels: Labels, value: float) -> Point:
        return Point(stream, name, labels, "counter", start, time, value, delta)

    total = 0
    for bound, count in buckets:
        total += count
        le = tuple(sorted((*labels, ("le", written(bound)))))
        yield counter(f"{name}_bucket", le, float(total))
    yield counter(f"{name}_bucket", tuple(sorted((*labels, ("le", "+Inf")))), float(point.count))
    yield counter(f"{name}_count", labels, float(point.count))
    if point.HasField("sum") and math.isfinite(point.sum):
        yield counter(f"{name}_sum", labels, point.sum)


def exponential_buckets(
    scale: int,
    zeros: int,
    threshold: float,
    positive: tuple[int, Iterable[int]],
    negative: tuple[int, Iterable[int]],
) -> list[tuple[float, int]]:
    """Upper bounds, ascending, and counts of an exponential histogram's buckets.

    Bucket i of scale s holds (b^i, b^(i+1)] with b = 2^(2^-s). Joined buckets have bounds that are
    bounds of the finer ones, so nothing is guessed.
    """
    shift = max(0, scale - FINEST)
    # At a scale of -11 one bucket holds every number above 1; below, the buckets are the same.
    step = 2.0 ** -max(-11, min(scale, FINEST))

    def joined(offset: int, counts: Iterable[int]) -> dict[int, int]:
        found: dict[int, int] = {}
        for place, count in enumerate(counts, offset):
            found[place >> shift] = found.get(place >> shift, 0) + count
        return found

    below = joined(*negative)
    above = joined(*positive)
    buckets = [(-_power(step * place), below[place]) for place in sorted(below, reverse=True)]
    if zeros or below:
        buckets.append((threshold, zeros))
    buckets += [(_power(step * (place + 1)), above[place]) for place in sorted(above)]
    return [(bound, count) for bound, count in buckets if math.isfinite(bound)]


def _power(exponent: float) -> float:
    try:
        return float(2.0**exponent)
    except OverflowError:
        return math.inf


def series_name(name: str, unit: str, *, counter: bool = False, gauge: bool = False) -> str:
    """The name of a metric's series, with its unit; empty if nothing is left of it."""
    plain = _name(name)
    if not plain or plain.isdigit():
        return ""
    words = [word for part in unit_words(unit) for word in part.split("_")]
    if gauge and unit == "1":
        words = ["ratio"]
    present = set(plain.split("_"))
    suffix = "_".join(words)
    if counter:
        plain = plain.removesuffix("_total")
    if suffix and not set(words) <= present:
        plain = f"{plain}_{suffix}"
    if counter:
        plain = f"{plain}_total"
    return (f"_{plain}" if plain[0].isdigit() else plain)[:LONGEST_NAME]


def unit_words(unit: str) -> list[str]:
    """A unit (UCUM) in words: `By/s` as `bytes`, `per_second`; annotations are left out."""
    main, _, per = re.sub(r"\{[^}]*\}", "", unit.strip()).partition("/")
    words = []
    if main and main != "1":
        words.append(_name(_UNITS.get(main, main)))
    if per and per != "1":
        words.append(f"per_{_name(_PER.get(per, _UNITS.get(per, per)))}")
    return [word for word in words if word and word != "per_"]


def series_labels(attributes: Iterable[Any]) -> Labels:
    """A point's attributes as labels, sorted; none of them is one of ours."""
    found: dict[str, list[str]] = {}
    for attribute in sorted(attributes, key=lambda it: str(it.key)):
        name = _name(attribute.key)
        if not name:
            continue
        if name[0].isdigit():
            name = f"key_{name}"
        if name in SCOPE or name == "le":
            name = f"exported_{name}"
        found.setdefault(name[:LONGEST_NAME], []).append(label_value(attribute.value))
    labels = ((name, ";".join(values)[:LONGEST_VALUE]) for name, values in found.items())
    return tuple(sorted((name, value) for name, value in labels if value))[:MOST_LABELS]


def label_value(value: Any) -> str:
    """An attribute's value as text."""
    found = plain_value(value)
    match found:
        case str():
            return found
        case bool():
            return "true" if found else "false"
        case None:
            return ""
        case _:
            return json.dumps(found, ensure_ascii=False)


def plain_value(value: Any) -> Any:
    """A value of OTLP's (`AnyValue`) as JSON has it."""
    match value.WhichOneof("value"):
        case "array_value":
            return [plain_value(item) for item in value.array_value.values]
        case "kvlist_value":
            return plain_values(value.kvlist_value.values)
        case "bytes_value":
            return value.bytes_value.hex()
        case None:
            return None
        case kind:
            return getattr(value, kind)


def plain_values(attributes: Iterable[Any]) -> Mapping[str, Any]:
    """Attributes as JSON has them."""
    return {attribute.key: plain_value(attribute.value) for attribute in attributes}


def written(bound: float) -> str:
    """A bucket's bound as Prometheus writes it: `0.25`, `1.0`, `1e+20`."""
    if math.isinf(bound):
        return "+Inf" if bound > 0 else "-Inf"
    return repr(float(bound))


def _name(text: str) -> str:
    """Letters, digits and single underscores."""
    return re.sub(r"_+", "_", re.sub(r"[^a-zA-Z0-9_]", "_", text)).strip("_")
