"""Numbers as Prometheus writes them."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Final

_EXACT: Final = 1e15
"""Whole numbers below are written without a point or an exponent."""


def number(value: float) -> str:
    """The shortest text that reads back as the same number; `NaN`, `+Inf` and `-Inf` by name."""
    if -_EXACT < value < _EXACT and value == int(value):
        return str(int(value)) if value or math.copysign(1, value) > 0 else "-0"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value).replace(".0e", "e")


def plain(value: float) -> str:
    """As `number`, but never with an exponent: as the query API writes values."""
    text = number(value)
    return format(Decimal(text), "f") if "e" in text else text
