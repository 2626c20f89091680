"""The text of a statement before it is parsed: quoting, comments and parameters.

Rules: what is quoted or commented is never looked into, except with the style FORMAT: its drivers
look for `%` everywhere; so does this.
"""

from __future__ import annotations

import re

from bedstone.transactions.errors import UnsupportedStatementError
from bedstone.transactions.sql import Dialect, Style

MARKER = re.compile(r"\bbedstone_parameter_(\d+)\b")
_LEADING = re.compile(r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/|\()*", re.DOTALL)
_PERCENT = re.compile(r"%(?:%|\((?P<name>[^)]*)\)[sbt]|(?P<next>[sbt]))")
_STANDARD = r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`(?:[^`]|``)*`|--[^\n]*|/\*.*?\*/"
_QUOTED = {
    Dialect.POSTGRES: r"\b[eE]'(?:[^'\\]|''|\\.)*'|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$|" + _STANDARD,
    Dialect.MYSQL: r"'(?:[^'\\]|''|\\.)*'|\"(?:[^\"\\]|\"\"|\\.)*\"|\#[^\n]*|" + _STANDARD,
    Dialect.SQLITE: r"\[[^\]]*\]|" + _STANDARD,
}
_MARKS = {
    Style.QMARK: r"\?(?P<number>\d+)?|[:@$](?P<name>[A-Za-z_]\w*)",
    Style.NUMBERED: r"\$(?P<number>\d+)(?P<name>(?!))?",
}


def first_word(text: str) -> str:
    """The word that a statement begins with, in capitals."""
    found = _LEADING.match(text)
    word = re.compile(r"\w*").match(text, found.end() if found else 0)
    return word[0].upper() if word else ""


def refused(reason: str, hint: str | None = None) -> UnsupportedStatementError:
    """The error that says why a statement is not run."""
    return UnsupportedStatementError(
        f"the statement can't be undone automatically: {reason}; it was not run",
        hint=hint or "run it outside of the transaction, or write this step as a TCC participant",
    )


def marked(
    text: str, dialect: Dialect, style: Style, *, bound: bool
) -> tuple[str, tuple[int | str, ...]]:
    """The text with a name for each parameter, and what each stands for."""
    if not bound:
        return text, ()
    references: list[int | str] = []
    positions = iter(range(1 << 20))

    def marker(reference: int | str) -> str:
        references.append(reference)
        return f" bedstone_parameter_{len(references) - 1} "

    def percent(found: re.Match[str]) -> str:
        if found["name"] is not None:
            return marker(found["name"])
        return marker(next(positions)) if found["next"] else "%"

    def other(found: re.Match[str]) -> str:
        if found["quoted"] is not None:
            return found[0]
        if found["number"]:
            return marker(int(found["number"]) - 1)
        return marker(found["name"] or next(positions))

    if style is Style.FORMAT:
        return _PERCENT.sub(percent, text), tuple(references)
    pattern = f"(?P<quoted>{_QUOTED[dialect]}|::)|{_MARKS[style]}"
    return re.sub(pattern, other, text, flags=re.DOTALL), tuple(references)


def outside(text: str, dialect: Dialect) -> str:
    """The text without what is quoted or commented."""
    return re.sub(_QUOTED[dialect], "", text, flags=re.DOTALL)
