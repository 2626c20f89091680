"""Durations, sizes and shares as people write them in a manifest.

Rules: a number is in the base unit (seconds, bytes, one); a string is one number and one unit,
without a space. Each pattern is what the published JSON Schema says, and what the parser matches.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any, Final

DURATION_PATTERN: Final = r"^(?=[^1-9]*[1-9])[0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h)$"
SIZE_PATTERN: Final = r"^(?=[^1-9]*[1-9])[0-9]{1,15}(\.[0-9]{1,9})?(B|[kKMGT]B|[KMGT]iB)$"
SPAN_PATTERN: Final = r"^(?=[^1-9]*[1-9])[0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h|d|w)$"
SHARE_PATTERN: Final = r"^(100(\.0{1,9})?|[0-9]{1,2}(\.[0-9]{1,9})?)%$"
OBJECTIVE_PATTERN: Final = r"^(?=[^1-9]*[1-9])[0-9]{1,2}(\.[0-9]{1,9})?%$"
PERCENT_PATTERN: Final = r"^(?=[^1-9]*[1-9])[0-9]{1,6}(\.[0-9]{1,9})?%$"

_NUMBER: Final = re.compile(r"[0-9.]+")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_BYTES: Final = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}


def parse_duration(value: Any) -> Any:
    """Seconds of a duration such as `500ms`; what is not a string is left alone.

    Raises:
        ValueError: the string is not a duration.
    """
    if not isinstance(value, str):
        return value
    number, unit = _split(value, DURATION_PATTERN)
    return number * _SECONDS[unit]


def parse_span(value: Any) -> Any:
    """As `parse_duration`, with days and weeks: `3d`, `1w`.

    Raises:
        ValueError: the string is not a duration.
    """
    if not isinstance(value, str):
        return value
    number, unit = _split(value, SPAN_PATTERN)
    return number * _SECONDS[unit]


def parse_share(value: Any) -> Any:
    """The share that `10%` is; what is not a string is left alone.

    Raises:
        ValueError: the string is not a share from 0% to 100%.
    """
    return _percent(value, SHARE_PATTERN)


def parse_objective(value: Any) -> Any:
    """As `parse_share`, without 0% and 100%.

    Raises:
        ValueError: the string is not a share between the two.
    """
    return _percent(value, OBJECTIVE_PATTERN)


def parse_deviation(value: Any) -> float | str:
    """Standard deviations (a number), or a share (`50%`), which stays as it is written.

    Raises:
        ValueError: neither, or not above zero.
    """
    match value:
        case bool():
            raise ValueError("expected a number or a share")
        case int() | float() if 0 < value < float("inf"):
            return float(value)
        case str():
            _split(value, PERCENT_PATTERN)
            return value
        case _:
            raise ValueError("expected a number above zero or a share")


def _percent(value: Any, pattern: str) -> Any:
    if not isinstance(value, str):
        return value
    _split(value, pattern)
    # Exact: 99.9 / 100 is not the float nearest to 0.999.
    return float(Decimal(value[:-1]) / 100)


def parse_size(value: Any) -> Any:
    """Bytes of a size such as `256MiB`, to the nearest; what is not a string is left alone.

    Raises:
        ValueError: the string is not a size.
    """
    if not isinstance(value, str):
        return value
    number, unit = _split(value, SIZE_PATTERN)
    return max(1, round(number * _BYTES[unit]))


def _split(value: str, pattern: str) -> tuple[float, str]:
    if value.endswith("\n") or not re.search(pattern, value, re.ASCII):
        raise ValueError("expected a number and a unit")
    number = _NUMBER.match(value)
    if number is None:
        raise ValueError("expected a number")
    return float(number[0]), value[number.end() :]


def format_span(seconds: float) -> str:
    """As `format_duration`, with days from two on: `3d`, but `24h`."""
    if seconds >= 2 * 86400 and seconds % 86400 == 0:
        return f"{seconds / 86400:.12g}d"
    return format_duration(seconds)


def format_share(share: float) -> str:
    """A share as per cent, as in `99.9%`."""
    return f"{share * 100:.10g}%"


def format_duration(seconds: float) -> str:
    """The shortest spelling of a duration, as in `500ms`, `2s`, `5m`, `1h`."""
    for unit, size in (("h", 3600), ("m", 60), ("s", 1)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.12g}{unit}"
    return f"{seconds * 1000:.12g}ms" if seconds < 1 else f"{seconds:.12g}s"


def format_size(size: int) -> str:
    """The shortest exact spelling of a size, as in `256MiB` or `1000`."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)
