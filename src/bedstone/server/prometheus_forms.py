"""The forms of Prometheus's HTTP API: parameters in, JSON out.

The shapes are those of https://prometheus.io/docs/prometheus/latest/querying/api/: a value is a
pair of a time and a text, since JSON has no NaN.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl

from bedstone.control.monitoring.promql import (
    Answer,
    Matrix,
    Sample,
    Scalar,
    Series,
    String,
    Value,
    Vector,
)
from bedstone.control.monitoring.promql.text import plain
from bedstone.errors import Error, InvalidError, UnavailableError
from bedstone.model.expressions import parsing

EARLIEST = 0
LATEST = 1 << 40
"""Seconds since the epoch that are taken for times."""
_NAMED = 5


class BadRequestError(InvalidError):
    """A parameter is wrong: nothing was tried."""


@dataclass(frozen=True, slots=True)
class Form:
    """The parameters of a request, from its query and its body."""

    pairs: tuple[tuple[str, str], ...]

    @staticmethod
    def of(query: str, body: str) -> Form:
        """Read both; the body comes first, as in Go's `Request.Form`."""
        found = (
            *parse_qsl(body, keep_blank_values=True),
            *parse_qsl(query, keep_blank_values=True),
        )
        return Form(found)

    def get(self, name: str, default: str = "") -> str:
        """The first value."""
        return next((value for key, value in self.pairs if key == name), default)

    def all(self, name: str) -> list[str]:
        """All values."""
        return [value for key, value in self.pairs if key == name]

    def demanded(self, name: str) -> str:
        """A value that must be there.

        Raises:
            BadRequestError: it is not.
        """
        value = self.get(name)
        if not value:
            raise BadRequestError(f"invalid parameter {name!r}: got nothing")
        return value

    def time(self, name: str, default: float) -> float:
        """A time: seconds since the epoch, or RFC 3339.

        Raises:
            BadRequestError: it is neither.
        """
        text = self.get(name)
        if not text:
            return default
        try:
            moment = float(text)
        except ValueError:
            moment = _rfc3339(name, text)
        if math.isnan(moment):
            raise BadRequestError(f"invalid parameter {name!r}: cannot parse {text!r} to a time")
        return min(max(moment, EARLIEST), LATEST)

    def seconds(self, name: str) -> int:
        """A duration of whole seconds, as a number or as `1m30s`.

        Raises:
            BadRequestError: it is none, or less than a second.
        """
        text = self.demanded(name)
        try:
            seconds = float(text)
        except ValueError:
            seconds = _duration(name, text)
        if not math.isfinite(seconds) or seconds < 1 or not seconds.is_integer():
            raise BadRequestError(
                f"invalid parameter {name!r}: got {text}, expected whole seconds, at least one"
            )
        return int(seconds)

    def limit(self, name: str = "limit") -> int:
        """At most so many; 0 for all.

        Raises:
            BadRequestError: it is no such number.
        """
        text = self.get(name, "0")
        if not text.isdecimal():
            raise BadRequestError(f"invalid parameter {name!r}: got {text!r}, expected a number")
        return int(text)


def _rfc3339(name: str, text: str) -> float:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise BadRequestError(
            f"invalid parameter {name!r}: cannot parse {text!r} to a time"
        ) from error
    if moment.tzinfo is None:
        raise BadRequestError(f"invalid parameter {name!r}: {text!r} names no time zone")
    return moment.timestamp()


def _duration(name: str, text: str) -> float:
    import promql_parser

    try:
        with parsing():
            return float(promql_parser.parse_duration(text).total_seconds())
    except ValueError as error:
        raise BadRequestError(
            f"invalid parameter {name!r}: cannot parse {text!r} to a duration"
        ) from error


def success(data: object, warnings: Sequence[str] = ()) -> bytes:
    """An answer."""
    body: dict[str, object] = {"status": "success", "data": data}
    if warnings:
        body["warnings"] = list(warnings)
    return json.dumps(body, separators=(",", ":")).encode()


def failure(error: Error) -> tuple[int, bytes]:
    """A status and an answer."""
    match error:
        case BadRequestError():
            status, kind = 400, "bad_data"
        case UnavailableError():
            status, kind = 503, "timeout"
        case _:
            status, kind = 422, "execution"
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    body = {"status": "error", "errorType": kind, "error": message}
    return status, json.dumps(body, separators=(",", ":")).encode()


def answered(answer: Answer) -> bytes:
    """The answer of a query. Long ones take long: call it in a thread."""
    kind, result = _result(answer.value)
    tail = ""
    found = [*answer.warnings, *incompleteness(answer.incomplete or {})]
    if found:
        tail = f',"warnings":{json.dumps(found)}'
    return (
        f'{{"status":"success","data":{{"resultType":"{kind}","result":{result}}}{tail}}}'
    ).encode()


def incompleteness(incomplete: Mapping[int, Mapping[str, str]]) -> list[str]:
    """What to say of seconds that are not complete: one sentence, whatever their number."""
    if not incomplete:
        return []
    seconds = sorted(incomplete)
    named = "; ".join(
        f"{second}: {', '.join(f'{what} ({why})' for what, why in incomplete[second].items())}"
        for second in seconds[:_NAMED]
    )
    more = f"; and {len(seconds) - _NAMED} more" if len(seconds) > _NAMED else ""
    return [f"{len(seconds)} of the seconds that were read are incomplete: {named}{more}"]


def _result(value: Value) -> tuple[str, str]:
    match value:
        case Scalar(at, number):
            return "scalar", f'[{at},"{plain(number)}"]'
        case String(at, text):
            return "string", f"[{at},{json.dumps(text)}]"
        case Vector(at, samples):
            return "vector", _list(_sample(at, sample) for sample in samples)
        case Matrix(series):
            return "matrix", _list(_series(each) for each in series)


def _list(items: Iterable[str]) -> str:
    return f"[{','.join(items)}]"


def _sample(at: int, sample: Sample) -> str:
    metric = json.dumps(dict(sample.labels), separators=(",", ":"))
    return f'{{"metric":{metric},"value":[{at},"{plain(sample.value)}"]}}'


def _series(series: Series) -> str:
    metric = json.dumps(dict(series.labels), separators=(",", ":"))
    points = zip(series.times, series.values, strict=True)
    values = ",".join([f'[{time},"{plain(value)}"]' for time, value in points])
    return f'{{"metric":{metric},"values":[{values}]}}'
