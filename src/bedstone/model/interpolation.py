"""References in the values of a manifest, and their replacement.

`${databases.NAME.FIELD}` with FIELD one of url, host, port, user, password, name; `${env.NAME}` and
`${env.NAME:-default}` (the default serves an unset or empty variable); `$$` is a `$`. A `$` before
anything else is itself. What is put in is not looked at again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from bedstone.errors import InvalidError

DATABASE_FIELDS: Final = ("url", "host", "port", "user", "password", "name")

_TOKEN: Final = re.compile(r"\$\$|\$\{([^}]*)(\}?)")
_DATABASE: Final = re.compile(r"databases\.([^.]+)\.([^.]+)")
_VARIABLE: Final = re.compile(r"env\.([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Reference:
    """One `${…}`.

    Attributes:
        scope: `databases` or `env`.
        name: the database or the variable.
        field: what of the database; empty for a variable.
        default: what serves an unset variable.
        text: as it is written.
    """

    scope: Literal["databases", "env"]
    name: str
    field: str = ""
    default: str | None = None
    text: str = ""


def references(text: str) -> tuple[Reference, ...]:
    """The references in a text, in order.

    Raises:
        InvalidError: a reference is malformed.
    """
    return tuple(part for part in _parts(text) if isinstance(part, Reference))


def interpolate(text: str, lookup: Callable[[Reference], str | None]) -> str:
    """Replace each reference by what `lookup` gives for it.

    Args:
        text: the text.
        lookup: the value of a reference, or None where there is none.

    Raises:
        InvalidError: a reference is malformed, or has neither a value nor a default.
    """
    return "".join(
        part if isinstance(part, str) else _value(part, lookup(part)) for part in _parts(text)
    )


def escape(text: str) -> str:
    """The text that `interpolate` turns into this one."""
    return text.replace("$", "$$")


def _value(reference: Reference, value: str | None) -> str:
    if value is None or (value == "" and reference.default is not None):
        value = reference.default
    if value is None:
        if reference.scope == "env":
            raise InvalidError(
                f"the environment variable {reference.name} is not set, "
                f"expected by {reference.text}",
                hint=f"set it, or write ${{env.{reference.name}:-default}}",
            )
        raise InvalidError(f"nothing has a value for {reference.text}")
    return value


def _parts(text: str) -> Iterator[str | Reference]:
    end = 0
    for match in _TOKEN.finditer(text):
        yield text[end : match.start()]
        yield "$" if match[0] == "$$" else _reference(match)
        end = match.end()
    yield text[end:]


def _reference(match: re.Match[str]) -> Reference:
    written, inside = match[0], match[1]
    if not match[2]:
        # What follows may be a secret with a "${" in it: it is not shown.
        raise InvalidError(
            "got '${' without an end, expected '}'", hint="write '$$' for a plain '$'"
        )
    if found := _VARIABLE.fullmatch(inside):
        return Reference("env", found[1], default=found[2], text=written)
    if (found := _DATABASE.fullmatch(inside)) and found[2] in DATABASE_FIELDS:
        return Reference("databases", found[1], found[2], text=written)
    raise InvalidError(
        f"got {written!r}, expected ${{databases.NAME.FIELD}} with FIELD one of "
        f"{', '.join(DATABASE_FIELDS)}, or ${{env.NAME}}",
        hint="write '$$' for a plain '$'",
    )
