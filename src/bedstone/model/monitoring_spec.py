"""What a manifest declares of monitoring: traces, where measurements go, alerts and receivers.

Rules:
- An alert is of exactly one kind; which one is told by the key that only it has (`ALERT_KEYS`).
- Secrets come from the environment of whoever applies (`${env.NAME}`), as URLs of databases do: the
  manifest has none, what the server holds has them, and readers are never shown them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, StringConstraints, Tag, WithJsonSchema

from bedstone.model.fields import (
    KIND_TAG,
    Duration,
    Flag,
    Name,
    Objective,
    Share,
    Span,
    Spec,
)
from bedstone.model.units import PERCENT_PATTERN, parse_deviation

URL_PATTERN = r"^(https?://[^\s/]|\$\{env\.)\S*$"
LABEL_PATTERN = r"^[a-zA-Z_][a-zA-Z0-9_]*$"
ALERT_KEYS = ("when", "objective", "series", "expects")
"""The keys of which an alert has one."""

BuiltIn = Literal[
    "instance-restarting",
    "workload-not-ready",
    "transaction-stuck",
    "certificate-expiring",
    "node-silent",
    "monitoring-incomplete",
    "disk-almost-full",
]
"""Alerts that exist without being declared."""

Severity = Literal["page", "ticket", "info"]
Url = Annotated[
    str,
    StringConstraints(pattern=URL_PATTERN),
    Field(description="A URL of http or https; `${env.NAME}` is replaced."),
]
Label = Annotated[str, StringConstraints(pattern=LABEL_PATTERN)]
Expression = Annotated[str, StringConstraints(min_length=1)]
Deviation = Annotated[
    float | str,
    BeforeValidator(parse_deviation),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "pattern": PERCENT_PATTERN},
            ]
        }
    ),
]


class TracesSpec(Spec):
    """Which traces are kept. Those with an error always are."""

    slow: Duration = Field(default=0.5, description="Traces that took at least so long are kept.")
    share: Share = Field(
        default=0.1,
        description="How many of the others are kept where there are more than 10 a second:"
        " a share, as 0.1 or 10%. Below that all are.",
    )


class ExportSpec(Spec):
    """Another system that is sent what is measured."""

    url: Url
    headers: dict[str, str] = Field(
        default_factory=dict,
        description="Headers of each request; `${env.NAME}` is replaced.",
    )
    bearer: str | None = Field(
        default=None, description="A bearer token, as `${env.NAME}`: the manifest has no secret."
    )


class RemoteWriteSpec(ExportSpec):
    """A Prometheus or VictoriaMetrics that is sent every series, by its remote-write protocol."""


class OtlpSpec(ExportSpec):
    """An OpenTelemetry collector that is sent the traces that are kept, by OTLP over HTTP."""


class MonitoringSpec(Spec):
    """What is kept of traces, what is sent to others, and which built-in alerts are off."""

    traces: TracesSpec = Field(default_factory=TracesSpec, description="Which traces are kept.")
    remote_write: tuple[RemoteWriteSpec, ...] = Field(
        default=(), description="Where series are sent, by Prometheus's remote-write."
    )
    otlp: tuple[OtlpSpec, ...] = Field(
        default=(), description="Where traces are sent, by OTLP over HTTP."
    )
    disabled: tuple[BuiltIn, ...] = Field(
        default=(), description="Built-in alerts that are switched off."
    )


class AlertBase(Spec):
    """What every alert has."""

    severity: Severity = Field(default="ticket", description="How urgent it is.")
    summary: str = Field(
        default="",
        description="One sentence for whoever is told; `{LABEL}` and `{value}` are replaced.",
    )
    labels: dict[Label, str] = Field(
        default_factory=dict, description="Labels that are added to it."
    )
    group_by: tuple[Label, ...] = Field(
        default=("rule",),
        description="Alerts that agree in these labels are told in one notification.",
    )


class ConditionAlert(AlertBase):
    """Fires while an expression has a value, once it has had one for long enough."""

    when: Expression = Field(
        description="PromQL; every series that it gives is one alert, as in `x > 5`."
    )
    for_: Duration | None = Field(
        default=None, alias="for", description="How long it must hold; default: fires at once."
    )


class Window(Spec):
    """Fires while the budget burns faster than `factor` over both a long and a short window."""

    long: Span = Field(description="The window that shows that it matters.")
    short: Span = Field(description="The window that shows that it still goes on.")
    factor: float = Field(
        gt=0, strict=True, description="Times the rate at which the budget would last the period."
    )
    severity: Severity | None = Field(default=None, description="Default: the alert's.")


class BurnRateAlert(AlertBase):
    """Fires while an error budget is used up too fast, over several windows."""

    objective: Objective = Field(description="The share that must succeed, as 99.9%.")
    of: str | None = Field(
        default=None,
        min_length=1,
        description="Whose requests: a workload, `gateway`, or a route as `/path`.",
    )
    errors: Expression | None = Field(
        default=None, description="Instead of `of`: the selector of a counter of failures."
    )
    total: Expression | None = Field(
        default=None, description="With `errors`: the selector of a counter of all."
    )
    period: Span = Field(default=30 * 86400.0, description="What the budget is for.")
    windows: tuple[Window, ...] = Field(
        default=(),
        description="Default: 1h/5m at 14.4 and 6h/30m at 6 page, 3d/6h at 1 is a ticket.",
    )


class BaselineAlert(AlertBase):
    """Fires while a value differs from what it was at this time in the seasons before."""

    series: Expression = Field(description="PromQL; every series that it gives is compared.")
    season: Literal["1d", "1w"] = Field(default="1d", description="After what it repeats itself.")
    deviates: Deviation = Field(
        default=3.0,
        description="By how much: standard deviations as `3`, or a share as `50%`.",
    )
    direction: Literal["above", "below", "both"] = Field(
        default="both", description="To which side."
    )
    for_: Duration | None = Field(
        default=None, alias="for", description="How long it must differ; default: fires at once."
    )


class DeadManAlert(AlertBase):
    """Fires when something that is expected does not come."""

    expects: Expression = Field(
        description="A workload, which is to get requests, or PromQL, which is to have a value."
    )
    within: Duration = Field(default=30.0, description="How long it may be away.")


def alert_kind(value: Any) -> str | None:
    """The tag of the alert that a value declares, or None."""
    match value:
        case ConditionAlert() | {"when": _}:
            return KIND_TAG + "condition"
        case BurnRateAlert() | {"objective": _}:
            return KIND_TAG + "burn-rate"
        case BaselineAlert() | {"series": _}:
            return KIND_TAG + "baseline"
        case DeadManAlert() | {"expects": _}:
            return KIND_TAG + "dead-man"
        case _:
            return None


AlertSpec = Annotated[
    Annotated[ConditionAlert, Tag(KIND_TAG + "condition")]
    | Annotated[BurnRateAlert, Tag(KIND_TAG + "burn-rate")]
    | Annotated[BaselineAlert, Tag(KIND_TAG + "baseline")]
    | Annotated[DeadManAlert, Tag(KIND_TAG + "dead-man")],
    Discriminator(alert_kind),
]


class ReceiverSpec(Spec):
    """Who is told of alerts. The receiver `log` is always there."""

    webhook: Url = Field(
        description="Gets a POST in the format of Alertmanager's webhooks; `${env.NAME}` is "
        "replaced."
    )
    headers: dict[str, str] = Field(
        default_factory=dict, description="Headers of each request; `${env.NAME}` is replaced."
    )
    secret: str | None = Field(
        default=None,
        description="As `${env.NAME}`: signs each request, in the header `x-bedstone-signature`.",
    )
    severities: tuple[Severity, ...] = Field(
        default=(), description="Only alerts of these; default: of all."
    )
    group_wait: Duration = Field(
        default=5.0, description="How long a notification waits for others of its group."
    )
    repeat: Duration = Field(
        default=14400.0, description="How often it is told again of what still fires."
    )
    resolved: Flag = Field(default=True, description="Also tell when it is over.")


AlertsByName = dict[Name, AlertSpec]
ReceiversByName = dict[Name, ReceiverSpec]
