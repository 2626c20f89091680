"""Regular expressions from whoever may read: matched in time that is linear in a value's length.

Rules:
- Python's own engine takes exponential time for some expressions, during which it stops every
  thread; the one used here does not, and has Prometheus's syntax (RE2's).
- Its time for each character grows with the expression, counted repetitions written out; so these
  are bounded, as in RE2 (https://github.com/google/re2/wiki/Syntax, "repetition … above 1000").
- Flags that RE2 does not have are refused: with `x`, an expression is not what it looks like.
"""

from __future__ import annotations

import functools
import re
from typing import Final

from pydantic_core import SchemaError, SchemaValidator, core_schema

from bedstone.errors import InvalidError

MOST: Final = 1000
"""Characters and classes that counted repetitions may add, written out."""

_PIECE: Final = re.compile(
    r"""
      \\[xpPuU]\{[^}]*\} | \\.                          # an escape
    | \[\^?\]?(?:\\.|[^\]\\])*\]                        # a class
    | \((?:\?P?<[^>]*>|\?(?P<flags>[a-zA-Z-]*)(?P<end>[:)]))?
    | \{(?P<least>\d+)(?P<comma>,)?(?P<most>\d*)\}
    | .
    """,
    re.VERBOSE | re.DOTALL,
)
_FLAGS: Final = frozenset("imsU-")


@functools.lru_cache(maxsize=1024)
def compiled(expression: str) -> SchemaValidator:
    """What says whether an expression matches a whole value, by `isinstance_python`.

    Raises:
        InvalidError: it is malformed, not of RE2's syntax, or too large.
    """
    _refuse_large(expression)
    # Alone it must be well-formed, too: "a)|(b" would be so only within the parentheses.
    for whole in (expression, f"^(?s:{expression})$"):
        try:
            validator = SchemaValidator(core_schema.str_schema(pattern=whole))
        except SchemaError as error:
            raise InvalidError(
                f"got the regular expression {expression!r}, expected one of RE2's syntax",
                hint=str(error).rpartition("error: ")[2].strip(),
            ) from error
    return validator


def _refuse_large(expression: str) -> None:
    """Add up what counted repetitions are, written out; `last` is the piece that one repeats."""
    outer: list[int] = []
    size = last = added = 0
    for piece in _PIECE.finditer(expression):
        text = piece[0]
        if text[0] == "(":
            if unknown := set(piece["flags"] or "") - _FLAGS:
                raise InvalidError(
                    f"got the expression {expression[:200]!r}, expected one of RE2's syntax",
                    hint=f"it has no flag {min(unknown)}",
                )
            if piece["end"] != ")":  # flags alone open no group
                outer.append(size)
                size = last = 0
        elif text == ")" and outer:
            last, size = size, outer.pop() + size
        elif piece["least"] is not None:
            least, most = int(piece["least"][:9]), int(piece["most"][:9] or 0)
            more = last * (max(least, most) - 1)
            size, last, added = size + max(0, more), last + max(0, more), added + max(0, more)
            if added > MOST:
                raise InvalidError(
                    f"the regular expression {expression[:200]!r} is too large",
                    hint=f"with its counted repetitions written out, it grows by more than {MOST}",
                )
        elif text not in {"*", "+", "?", "|", "^", "$"}:
            last = 1
            size += 1
