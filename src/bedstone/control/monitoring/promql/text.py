"""Numbers as Prometheus writes them."""

from __future__ import annotations

import math


def number(value: float) -> str:
    """The shortest text that reads back as the same number; `NaN`, `+Inf` and `-Inf` by name."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if value.is_integer() and abs(value) < 1e15:
        return str(int(value)) if value or math.copysign(1, value) > 0 else "-0"
    text = repr(value)
    mantissa, _, exponent = text.partition("e")
    if not exponent:
        return text
    power = int(exponent)
    mantissa = mantissa.removesuffix(".0")
    return f"{mantissa}e{'-' if power < 0 else '+'}{abs(power):02d}"


def scalar(value: float) -> str:
    """As `number`, and without an exponent, as Prometheus's query API writes values."""
    text = number(value)
    if "e" not in text:
        return text
    from decimal import Decimal

    return format(Decimal(text), "f")
