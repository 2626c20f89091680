"""`label_replace`: a regular expression with groups, from whoever may read.

The linear engine that matchers use gives no groups, so Python's is used, which tries one way after
another. So an expression is refused if there may be too many ways: a repetition within a repetition
at once, and others by how long the value is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bedstone.control.monitoring.promql.functions import check_label, with_label
from bedstone.control.monitoring.promql.table import Table, made
from bedstone.control.monitoring.reading import Matcher
from bedstone.errors import InvalidError

_WAYS: Final = 2_000_000
"""About so many are tried in 20 ms; more for one value are refused."""


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression with groups.

    Args:
        pattern: compiled.
        repetitions: how many of its parts repeat.
        choices: how many of its parts are this or that.
    """

    pattern: re.Pattern[str]
    repetitions: int
    choices: int

    def match(self, value: str) -> re.Match[str] | None:
        """Match a whole value.

        Raises:
            InvalidError: it may take too long.
        """
        length = len(value)
        ways = math.comb(length + self.repetitions, self.repetitions) << min(self.choices, 64)
        if ways > _WAYS:
            raise InvalidError(
                f"label_replace got {self.pattern.pattern!r}, which may match a value of {length} "
                "characters in too many ways",
                hint="use fewer of * + ? { |",
            )
        return self.pattern.fullmatch(value)


def label_replace(
    table: Table,
    target: str,
    template: str,
    source: str,
    expression: str,
    watch: Callable[[], None],
) -> Table:
    """Set a label from the groups of another's value, where that matches as a whole.

    Raises:
        InvalidError: the expression is malformed, or may take too long.
    """
    check_label(target)
    known = compiled(expression)
    changed: dict[str, str | None] = {}
    found = []
    for labels in table.labels:
        value = labels.get(source, "")
        if value not in changed:
            watch()
            match = known.match(value)
            changed[value] = None if match is None else _expanded(match, template)
        new = changed[value]
        found.append(labels if new is None else with_label(labels, target, new))
    return made(found, table.values, table.present)


def compiled(expression: str) -> Expression:
    """An expression of RE2's syntax that takes polynomial time.

    Raises:
        InvalidError: it is malformed, or might take longer.
    """
    Matcher("", "=~", expression).matches("")  # refuses what RE2 does not have, as look-around
    repetitions, choices = _counted(expression)
    try:
        return Expression(re.compile(expression, re.DOTALL), repetitions, choices)
    except re.error as error:
        raise InvalidError(f"label_replace got {expression!r}: {error}") from error


def _counted(expression: str) -> tuple[int, int]:
    """How many parts repeat, and how many are this or that.

    Raises:
        InvalidError: a group repeats that can match in several ways itself.
    """
    plain = re.sub(r"\\.", "x", expression, flags=re.DOTALL)
    plain = re.sub(r"\[\^?\]?[^\]]*\]", "x", plain)
    groups: list[bool] = []
    closed = False
    before = ""
    repetitions = choices = 0
    for character in plain:
        was_closed, closed = closed, False
        match character:
            case "(":
                groups.append(False)
            case ")":
                closed = groups.pop() if groups else False
                groups = [inner or closed for inner in groups]
            case "*" | "+" | "{":
                if was_closed:
                    raise InvalidError(
                        f"label_replace got a repetition within a repetition in {expression!r}",
                        hint="repeat single characters only",
                    )
                repetitions += 1
                groups = [True for _ in groups]
            case "|" | "?" if before not in {"(", "*", "+", "}", "?"} or character == "|":
                choices += 1
                groups = [True for _ in groups]
            case _:
                pass
        before = character
    return repetitions, choices


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
