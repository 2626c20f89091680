"""The evaluation of an expression's tree, for all of its steps at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
import promql_parser as promql

from bedstone.control.monitoring.promql import aggregation, functions, operators, ranges
from bedstone.control.monitoring.promql.context import Context, TooMuchError
from bedstone.control.monitoring.promql.histograms import histogram_quantile
from bedstone.control.monitoring.promql.operators import Matching
from bedstone.control.monitoring.promql.relabel import label_replace
from bedstone.control.monitoring.promql.results import LabelMap
from bedstone.control.monitoring.promql.selecting import (
    Aggregate,
    Windows,
    at_times,
    matchers_of,
    over,
    select,
    whole_seconds,
    windows,
)
from bedstone.control.monitoring.promql.table import (
    NAME,
    Floats,
    Operand,
    Steps,
    Table,
    Text,
    filled,
    nameless,
)
from bedstone.errors import InvalidError


def bare(expression: promql.Expr) -> promql.Expr:
    """Without the brackets around it."""
    while isinstance(expression, promql.ParenExpr):
        expression = expression.expr
    return expression


def evaluate(expression: promql.Expr, context: Context) -> Operand:
    """The value of an expression at each step.

    Raises:
        InvalidError: it asks for too much, for what we have not, or for what makes no sense.
    """
    context.watch()
    operand: Operand
    match expression:
        case promql.NumberLiteral():
            operand = Steps(np.full(len(context.times), float(expression.val)))
        case promql.StringLiteral():
            operand = Text(expression.val)
        case promql.ParenExpr():
            operand = evaluate(expression.expr, context)
        case promql.VectorSelector():
            operand, _ = select(context, expression)
        case promql.UnaryExpr():
            operand = _negated(evaluate(expression.expr, context))
        case promql.BinaryExpr():
            operand = _binary(expression, context)
        case promql.AggregateExpr():
            operand = _aggregated(expression, context)
        case promql.Call():
            operand = _called(expression, context)
        case _:
            raise InvalidError(
                "a range of values stands where single values are expected",
                hint="apply a function to it, such as rate or avg_over_time",
            )
    return operand


def _negated(operand: Operand) -> Operand:
    match operand:
        case Steps(values):
            return Steps(-values)
        case Table():
            return nameless(operand.labels, -operand.values, operand.present)
        case _:
            raise InvalidError("a text has no negative")


def _binary(expression: promql.BinaryExpr, context: Context) -> Operand:
    op = str(expression.op)
    modifier = expression.modifier
    as_bool = modifier is not None and modifier.return_bool
    left = evaluate(expression.lhs, context)
    right = evaluate(expression.rhs, context)
    match left, right:
        case Steps(), Steps():
            return operators.numbers(op, left, right)
        case Table(), Steps():
            return operators.mixed(op, left, right, swapped=False, as_bool=as_bool)
        case Steps(), Table():
            return operators.mixed(op, right, left, swapped=True, as_bool=as_bool)
        case Table(), Table():
            matching = _matching(modifier)
            if op in operators.SETS:
                return operators.sets(op, left, right, matching)
            return operators.matched(op, left, right, matching, context, as_bool=as_bool)
        case _:
            raise InvalidError(f"the operator {op} takes no text")


def _matching(modifier: promql.BinModifier | None) -> Matching:
    if modifier is None:
        return Matching()
    labels, on = modifier.matching, False
    if labels is not None:
        on = labels.type == promql.LabelModifierType.Include
    card = modifier.card
    include = tuple(modifier.group_labels or ())
    names = tuple(labels.labels) if labels is not None else ()
    if card == promql.VectorMatchCardinality.ManyToOne:
        return Matching(names, on, "left", include)
    if card == promql.VectorMatchCardinality.OneToMany:
        return Matching(names, on, "right", include)
    return Matching(names, on)


def _aggregated(expression: promql.AggregateExpr, context: Context) -> Operand:
    table = _series(expression.expr, context)
    parameter: Floats | str | None = None
    if expression.param is not None:
        match evaluate(expression.param, context):
            case Steps(values):
                parameter = values
            case Text(value):
                parameter = value
            case Table():
                raise InvalidError(f"{expression.op} takes a number, got a vector")
    grouping = aggregation.Grouping(())
    if expression.modifier is not None:
        without = expression.modifier.type == promql.AggModifierType.Without
        grouping = aggregation.Grouping(tuple(expression.modifier.labels), without)
    return aggregation.aggregate(str(expression.op), table, grouping, parameter, context)


def _series(expression: promql.Expr, context: Context) -> Table:
    operand = evaluate(expression, context)
    if isinstance(operand, Table):
        return operand
    raise InvalidError("got a number, expected series", hint="vector(1) makes a series of a number")


def _numbers(expression: promql.Expr, context: Context) -> Floats:
    match evaluate(expression, context):
        case Steps(values):
            return values
        case _:
            raise InvalidError("got series, expected a number", hint="scalar(…) makes one of one")


def _text(expression: promql.Expr) -> str:
    match bare(expression):
        case promql.StringLiteral() as literal:
            return literal.val
        case _:
            raise InvalidError("got something else, expected a text in quotes")


def _called(call: promql.Call, context: Context) -> Operand:
    name, given = call.func.name, list(call.args)
    if name in ranges.FUNCTIONS:
        return _range_function(name, given, context)
    if name in functions.ELEMENTWISE:
        more = [_numbers(each, context) for each in given[1:]]
        return functions.elementwise(name, _series(given[0], context), more)
    if name in functions.DATES:
        now = functions.vector(Steps(context.times.astype(np.float64)))
        table = _series(given[0], context) if given else now
        return functions.dates(name, table)
    return _CALLS[name](given, context)


def _range_function(name: str, given: list[promql.Expr], context: Context) -> Table:
    function = ranges.FUNCTIONS[name]
    found = windows_of(
        given[function.window],
        context,
        function.aggregate,
        exact=function.exact,
        base=function.base,
    )
    numbers = tuple(
        _numbers(each, context) for index, each in enumerate(given) if index != function.window
    )
    values, present = ranges.reduced(function, found, context, numbers)
    if function.keeps_name:
        return filled(Table(found.labels, values, present))
    return filled(nameless(found.labels, values, present))


def windows_of(
    expression: promql.Expr, context: Context, aggregate: Aggregate, *, exact: bool, base: bool
) -> Windows:
    """The windows of a range selector or a subquery."""
    match bare(expression):
        case promql.MatrixSelector() as matrix:
            return windows(context, matrix, aggregate, exact=exact, base=base)
        case promql.SubqueryExpr() as subquery:
            return _subquery(subquery, context, base=base)
        case _:
            raise InvalidError("got single values, expected a range", hint="as in x[1m]")


def _subquery(subquery: promql.SubqueryExpr, context: Context, *, base: bool) -> Windows:
    """Evaluate the inner expression at all multiples of the step that any window holds."""
    wanted = whole_seconds(subquery.range, "a range")
    step = whole_seconds(subquery.step, "a step") or 1
    times = at_times(context, subquery.at, subquery.offset)
    # The first point of the first window, or the one before it.
    first = ((int(times.min()) - wanted) // step + (0 if base else 1)) * step
    steps = range(first, int(times.max()) + 1, step)
    most = context.limits.points // 10
    if len(steps) > most:
        raise TooMuchError(
            f"a subquery has {len(steps)} steps, expected at most {most}",
            hint="give it a longer step",
        )
    grid = np.arange(steps.start, steps.stop, step, dtype=np.int64)
    inner = replace(context, times=grid, step=step)
    match evaluate(subquery.expr, inner):
        case Table() as table:
            pass
        case Steps() as numbers:
            table = functions.vector(numbers)
        case _:
            raise InvalidError("a subquery gives numbers, got a text")
    return over(table, first, step, wanted, times)


def _timestamp(expression: promql.Expr, context: Context) -> Table:
    match bare(expression):
        case promql.VectorSelector() as selector:
            table, times = select(context, selector)
        case _:
            table, times = _series(expression, context), context.times
    values = np.where(table.present, times.astype(np.float64), np.nan)
    return nameless(table.labels, values, table.present)


def _demanded(expression: promql.Expr) -> LabelMap:
    """The labels that a selector demands to equal something, once each."""
    match bare(expression):
        case promql.VectorSelector() as selector:
            pass
        case promql.MatrixSelector() as matrix:
            selector = matrix.vector_selector
        case _:
            return {}
    found: dict[str, str] = {}
    seen: set[str] = set()
    for matcher in matchers_of(selector):
        if matcher.label == NAME:
            continue
        if matcher.op == "=" and matcher.label not in seen:
            found[matcher.label] = matcher.value
        else:
            found.pop(matcher.label, None)
        seen.add(matcher.label)
    return found


def _absent(given: list[promql.Expr], context: Context) -> Operand:
    return functions.absent(_series(given[0], context), _demanded(given[0]))


def _absent_over_time(given: list[promql.Expr], context: Context) -> Operand:
    found = windows_of(given[0], context, "last", exact=True, base=False)
    values, present = ranges.present_over_time(found, context, ())
    return functions.absent(Table(found.labels, values, present), _demanded(given[0]))


def _histogram_quantile(given: list[promql.Expr], context: Context) -> Operand:
    return histogram_quantile(_numbers(given[0], context), _series(given[1], context), context)


def _label_replace(given: list[promql.Expr], context: Context) -> Operand:
    target, template, source, pattern = [_text(each) for each in given[1:]]
    table = _series(given[0], context)
    return label_replace(table, target, template, source, pattern, context.watch)


def _label_join(given: list[promql.Expr], context: Context) -> Operand:
    target, separator, *sources = [_text(each) for each in given[1:]]
    return functions.label_join(_series(given[0], context), target, separator, sources)


_CALLS: Final[dict[str, Callable[[list[promql.Expr], Context], Operand]]] = {
    "time": lambda _, context: Steps(context.times.astype(np.float64)),
    "pi": lambda _, context: Steps(np.full(len(context.times), math.pi)),
    "vector": lambda given, context: functions.vector(Steps(_numbers(given[0], context))),
    "scalar": lambda given, context: functions.scalar(_series(given[0], context)),
    "timestamp": lambda given, context: _timestamp(given[0], context),
    "sort": lambda given, context: functions.sort(_series(given[0], context), descending=False),
    "sort_desc": lambda given, context: functions.sort(_series(given[0], context), descending=True),
    "absent": _absent,
    "absent_over_time": _absent_over_time,
    "histogram_quantile": _histogram_quantile,
    "label_replace": _label_replace,
    "label_join": _label_join,
}
