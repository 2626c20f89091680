"""`label_replace`: a regular expression with groups, from whoever may read.

The linear engine that matchers use gives no groups, so Python's is used; expressions that it may
take exponential time for (a repetition within a repetition) are refused.
"""

from __future__ import annotations

import re
from typing import Final

from bedstone.control.monitoring.promql.functions import check_label, with_label
from bedstone.control.monitoring.promql.table import Table, made
from bedstone.errors import InvalidError

_REPETITIONS: Final = 5
"""At most so many; each may multiply the time by the length of the value."""
_LONGEST: Final = 1000
"""Characters of a value."""


def label_replace(table: Table, target: str, template: str, source: str, expression: str) -> Table:
    """Set a label from the groups of another's value, where that matches as a whole.

    Raises:
        InvalidError: the expression is malformed, or may take too long.
    """
    check_label(target)
    pattern = compiled(expression)
    changed: dict[str, str | None] = {}
    found = []
    for labels in table.labels:
        value = labels.get(source, "")
        if value not in changed:
            match = pattern.fullmatch(value) if len(value) <= _LONGEST else None
            changed[value] = None if match is None else _expanded(match, template)
        new = changed[value]
        found.append(labels if new is None else with_label(labels, target, new))
    return made(found, table.values, table.present)


def compiled(expression: str) -> re.Pattern[str]:
    """An expression that takes polynomial time.

    Raises:
        InvalidError: it is malformed, or might take longer.
    """
    repetitions = _repetitions(expression)
    if repetitions > _REPETITIONS:
        raise InvalidError(
            f"label_replace got {repetitions} repetitions in {expression!r}, "
            f"expected at most {_REPETITIONS}"
        )
    try:
        return re.compile(expression, re.DOTALL)
    except re.error as error:
        raise InvalidError(f"label_replace got {expression!r}: {error}") from error


def _repetitions(expression: str) -> int:
    """Count the quantifiers that can repeat.

    Raises:
        InvalidError: one stands behind a group that can match in several ways itself.
    """
    plain = re.sub(r"\\.", "x", expression, flags=re.DOTALL)
    plain = re.sub(r"\[\^?\]?[^\]]*\]", "x", plain)
    groups: list[bool] = []
    closed: bool | None = None
    count = 0
    for position, character in enumerate(plain):
        match character:
            case "(":
                groups.append(False)
                closed = None
                continue
            case ")":
                closed = groups.pop() if groups else False
                if groups and closed:
                    groups[-1] = True
                continue
            case "|":
                groups = [True for _ in groups]
            case "*" | "+" | "{" if position and plain[position - 1] != "(":
                if closed:
                    raise InvalidError(
                        f"label_replace got a repetition within a repetition in {expression!r}",
                        hint="repeat single characters only",
                    )
                count += 1
                groups = [True for _ in groups]
        closed = None
    return count


def _expanded(match: re.Match[str], template: str) -> str:
    """A template with `$1`, `$name`, `${name}` and `$$`; groups that are not there are empty."""

    def group(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if found[0] == "$$":
            return "$"
        try:
            return match.group(int(name) if name.isdigit() else name) or ""
        except (IndexError, ValueError):
            return ""

    return re.sub(r"\$\$|\$(\w+)|\$\{(\w+)\}", group, template)
