"""PromQL in a manifest: whether it can be read, and if not, where its mistake is.

The parser (`promql_parser`) says what is wrong but not where. That is found by asking it again: the
mistake is the first token before which the text can still become an expression, and with which it
no longer can.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

LONGEST: Final = 20_000
"""Characters of an expression."""
DEEPEST: Final = 64
"""Brackets within brackets."""
OPERATORS: Final = 250
"""The parser recurses over a chain of them: thousands overflow its stack and end the process."""
_OPERATORS: Final = frozenset("-+*/%^<>=!,") | {"==", "!=", "<=", ">=", "=~", "!~"}
_WORDS: Final = frozenset({"and", "or", "unless", "atan2"})
_TOKEN: Final = re.compile(
    r"""\s+|\#[^\n]*|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|`[^`]*`"""
    r"""|[A-Za-z_:][A-Za-z0-9_:.]*|[0-9][0-9A-Za-z.]*|[=!<>]=|[=!]~|.""",
    re.DOTALL,
)
_PAIRS: Final = {"(": ")", "[": "]", "{": "}"}
_CLOSING: Final = frozenset(_PAIRS.values())
_COMPLETIONS: Final = (
    "",
    "x",
    "(x)",
    "x[1m]",
    "5m",
    "(a)",
    "(a)(x)",
    ' a="b"',
    '="b"',
    '"b"',
    "1m",
)
_SYNTAX: Final = (
    "invalid promql query",
    "unexpected",
    "unclosed",
    "unterminated",
    "no expression",
    "bad ",
)


@dataclass(frozen=True, slots=True)
class ExpressionMistake:
    """What is wrong in an expression, and the index of the character where."""

    message: str
    index: int


def excess(text: str) -> str | None:
    """What of an expression is too much for the parser to survive, or None; it is not parsed."""
    if len(text) > LONGEST:
        return f"the expression is longer than {LONGEST} characters"
    depth = count = 0
    for token in _TOKEN.finditer(text):
        found = token[0]
        depth += (found in _PAIRS) - (found in _CLOSING)
        count += found in _OPERATORS or found.lower() in _WORDS
        if depth > DEEPEST:
            return f"the expression has more than {DEEPEST} brackets within one another"
        if count > OPERATORS:
            return f"the expression has more than {OPERATORS} operators and commas"
    return None


@contextmanager
def parsing() -> Iterator[None]:
    """What the parser fails with becomes a `ValueError`, where it is made or looked at.

    For numbers that are out of range it panics, which passes every `except Exception`.
    """
    try:
        yield
    except OverflowError as error:
        raise ValueError("a time is out of range") from error
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # pyo3 gives it no name to import
            raise ValueError("a number is out of range") from error
        raise


def expression_mistake(text: str) -> ExpressionMistake | None:
    """What is wrong with a PromQL expression, or None."""
    if message := excess(text):
        return ExpressionMistake(message, 0)
    message = _refusal(text)
    if message is None:
        return None
    return ExpressionMistake(_worded(message), _place(text, message))


def value_mistake(text: str) -> ExpressionMistake | None:
    """What keeps an expression from having one value a series at each time."""
    if mistake := expression_mistake(text):
        return mistake
    import promql_parser

    parsed = promql_parser.parse(text)
    while isinstance(parsed, promql_parser.ParenExpr):
        parsed = parsed.expr
    match parsed:
        case promql_parser.MatrixSelector() | promql_parser.SubqueryExpr():
            message = "a range of values, expected one value a series: put rate(…) around it"
        case promql_parser.StringLiteral():
            message = "a string, expected values"
        case _:
            return None
    return ExpressionMistake(message, 0)


def selector_mistake(text: str) -> ExpressionMistake | None:
    """What keeps an expression from being the selector of series, as `orders_total{shop="a"}`."""
    if mistake := expression_mistake(text):
        return mistake
    import promql_parser

    parsed = promql_parser.parse(text)
    if isinstance(parsed, promql_parser.VectorSelector) and not parsed.offset and not parsed.at:
        return None
    return ExpressionMistake('not the selector of a counter, such as orders_total{shop="a"}', 0)


def _refusal(text: str) -> str | None:
    # Commands that read a manifest without alerts do not pay for the parser.
    import promql_parser

    try:
        with parsing():
            promql_parser.parse(text)
    except ValueError as error:
        return str(error)
    return None


def _worded(message: str) -> str:
    return "not PromQL" if message == "invalid promql query" else message


def _place(text: str, message: str) -> int:
    """Where a mistake is: of what the parser names, or found by trying."""
    if named := re.search(r"function (?:with name )?'(\w+)'", message):
        found = re.search(rf"\b{re.escape(named[1])}\s*\(", text)
        return found.start() if found else 0
    if named := re.search(r"illegal regex for (.*)", message):
        return max(0, text.find(named[1]))
    if not message.startswith(_SYNTAX):
        return 0
    opened = list(_open(text))
    if message.startswith(("unclosed", "unexpected end of input inside")) and opened:
        return opened[-1]
    last = 0
    for token in _TOKEN.finditer(text):
        if token[0].isspace() or token[0].startswith("#"):
            continue
        if not _can_become_one(text[: token.end()]):
            return token.start()
        last = token.end()
    return last


def _open(text: str) -> Iterator[int]:
    """The indexes of the brackets that nothing closes, in order."""
    opened: list[int] = []
    for token in _TOKEN.finditer(text):
        if token[0] in _PAIRS:
            opened.append(token.start())
        elif token[0] in _PAIRS.values() and opened:
            opened.pop()
    yield from opened


def _can_become_one(text: str) -> bool:
    closing = "".join(_PAIRS[text[index]] for index in reversed(list(_open(text))))
    for completion in _COMPLETIONS:
        message = _refusal(f"{text} {completion}{closing}")
        # What fails for its meaning alone has the shape of an expression.
        if message is None or not message.startswith(_SYNTAX):
            return True
    return False
