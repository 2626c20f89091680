"""The text in which metrics are scraped: Prometheus's 0.0.4, and OpenMetrics 1.0.0.

- https://prometheus.io/docs/instrumenting/exposition_formats/
- https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md

A family is a counter, a gauge or a histogram; the latter is known by its buckets. Series of one
family stand together, as both formats demand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from bedstone.control.monitoring.promql.text import number
from bedstone.control.monitoring.reading import SeriesKey
from bedstone.telemetry import names

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]
_PARTS: Final = ("_bucket", "_sum", "_count")
_KNOWN: Final = {metric.name: metric for metric in names.CATALOGUE}


@dataclass(frozen=True, slots=True)
class Family:
    """The series of one metric, with values."""

    name: str
    kind: Kind
    help: str
    unit: str
    samples: list[tuple[SeriesKey, float]] = field(default_factory=list)


def negotiated(accept: str) -> str:
    """The media type for who accepts this: OpenMetrics where it is asked for."""
    for each in accept.split(","):
        media, *parameters = (part.strip() for part in each.split(";"))
        versions = [p.removeprefix("version=") for p in parameters if p.startswith("version=")]
        if media == "application/openmetrics-text" and versions in ([], ["1.0.0"]):
            return OPEN_METRICS
    return TEXT


def catalogue() -> list[Family]:
    """Our own families, without series."""
    return [Family(it.name, it.kind, it.help, it.unit) for it in names.CATALOGUE]


def families(series: Iterable[tuple[SeriesKey, float]]) -> list[Family]:
    """Series by metric, in the order of their names."""
    every = list(series)
    histograms = {
        key.name.removesuffix("_bucket")
        for key, _ in every
        if key.name.endswith("_bucket") and any(name == "le" for name, _ in key.labels)
    }
    found: dict[str, Family] = {}
    for key, value in every:
        base = next(
            (
                key.name.removesuffix(part)
                for part in _PARTS
                if key.name.endswith(part) and key.name.removesuffix(part) in histograms
            ),
            None,
        )
        name = base or key.name
        if name not in found:
            known = _KNOWN.get(name)
            found[name] = Family(
                name,
                "histogram" if base else key.kind,
                known.help if known else "A metric of an application's own.",
                known.unit if known else "",
            )
        found[name].samples.append((key, value))
    return [found[name] for name in sorted(found)]


def written(series: Iterable[tuple[SeriesKey, float]], media: str) -> bytes:
    """The whole text, as `media` demands."""
    open_metrics = media == OPEN_METRICS
    lines: list[str] = []
    for family in families(series):
        lines += _family(family, open_metrics=open_metrics)
    if open_metrics:
        lines.append("# EOF")
    return "".join(f"{line}\n" for line in lines).encode()


def _family(family: Family, *, open_metrics: bool) -> list[str]:
    name, kind = family.name, str(family.kind)
    if open_metrics and kind == "counter":
        # A counter's family has no suffix, and each of its samples must have it.
        name, kind = (
            (name.removesuffix("_total"), kind) if name.endswith("_total") else (name, "unknown")
        )
    lines = [f"# HELP {name} {_escaped_help(family.help, open_metrics=open_metrics)}"]
    lines.append(f"# TYPE {name} {kind}")
    if open_metrics and family.unit and name.endswith(f"_{family.unit}"):
        lines.append(f"# UNIT {name} {family.unit}")
    samples: Sequence[tuple[SeriesKey, float]] = family.samples
    if family.kind == "histogram":
        samples = sorted(samples, key=_within_histogram)
    lines += [f"{_series(key)} {number(value)}" for key, value in samples]
    return lines


def _within_histogram(sample: tuple[SeriesKey, float]) -> tuple[object, ...]:
    """The series of one histogram together: its buckets by their bounds, its sum, its count."""
    key, _ = sample
    labels = tuple(pair for pair in key.labels if pair[0] != "le")
    bound = dict(key.labels).get("le", "")
    part = next(i for i, each in enumerate(_PARTS) if key.name.endswith(each))
    try:
        return labels, part, float(bound or 0)
    except ValueError:
        return labels, part, 0.0


def _series(key: SeriesKey) -> str:
    if not key.labels:
        return key.name
    return f"{key.name}{{{','.join(f'{n}={_quoted(v)}' for n, v in key.labels)}}}"


def _quoted(value: str) -> str:
    escaped = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'"{escaped}"'


def _escaped_help(text: str, *, open_metrics: bool) -> str:
    escaped = text.replace("\\", r"\\").replace("\n", r"\n")
    return escaped.replace('"', r"\"") if open_metrics else escaped
