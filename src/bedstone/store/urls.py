"""The options of a store's URL: `scheme://place?option=value`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from urllib.parse import parse_qsl, urlencode

from bedstone.errors import InvalidError


def split_options(
    url: str, names: Collection[str], *, others: bool = False
) -> tuple[str, dict[str, str]]:
    """Take the named options out of a URL; `others` leaves further ones in it.

    Raises:
        InvalidError: an option is unknown or given twice.
    """
    place, _, query = url.partition("?")
    taken: dict[str, str] = {}
    left: list[tuple[str, str]] = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in taken:
            raise InvalidError(f"the store's option {name!r} is given twice")
        if name in names:
            taken[name] = value
        elif others:
            left.append((name, value))
        else:
            known = ", ".join(sorted(names))
            raise InvalidError(f"got store option {name!r}, expected one of {known}")
    return (f"{place}?{urlencode(left)}" if left else place), taken


def number(options: Mapping[str, str], name: str, default: int) -> int:
    """An option that is a positive integer.

    Raises:
        InvalidError: it is something else.
    """
    text = options.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise InvalidError(f"got {name}={text!r}, expected a positive integer")
    return int(text)
