"""PromQL for rules: the engine, as `Evaluator` says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from bedstone.control.monitoring.alerts.evaluation import Measured, told_labels
from bedstone.control.monitoring.promql import Engine, Limits
from bedstone.control.monitoring.reading import Reader

if TYPE_CHECKING:
    from bedstone.control.monitoring.promql import Vector

LIMITS: Final = Limits(seconds=5.0)
"""A rule that takes longer is unknown."""


class PromqlEvaluator:
    """Evaluates rules' expressions.

    Args:
        reader: the series.
    """

    def __init__(self, reader: Reader) -> None:
        self._engine = Engine(reader, LIMITS)

    def instant(self, expression: str, at: int) -> Sequence[Measured]:
        """See `Evaluator.instant`."""
        vector: Vector = self._engine.instant(expression, at).vector()
        return [Measured(told_labels(one.labels), one.value) for one in vector.samples]
