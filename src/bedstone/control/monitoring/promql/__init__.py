"""PromQL over series of seconds.

`Engine` answers expressions from a `Reader`; `evaluate` and `evaluate_range` are the same for who
needs the value alone. The language is Prometheus's, less what `docs/reference/metrics.md` lists.
"""

from __future__ import annotations

from bedstone.control.monitoring.promql.engine import (
    Engine,
    Limits,
    check,
    evaluate,
    evaluate_range,
)
from bedstone.control.monitoring.promql.results import (
    Answer,
    Matrix,
    Sample,
    Scalar,
    Series,
    String,
    Value,
    Vector,
)

__all__ = [
    "Answer",
    "Engine",
    "Limits",
    "Matrix",
    "Sample",
    "Scalar",
    "Series",
    "String",
    "Value",
    "Vector",
    "check",
    "evaluate",
    "evaluate_range",
]
