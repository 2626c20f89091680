"""The options of a store's URL: `scheme://place?option=value`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from urllib.parse import unquote

from bedstone.errors import InvalidError


def split_options(
    url: str, names: Collection[str], *, others: bool = False
) -> tuple[str, dict[str, str]]:
    """Take the named options out of a URL; `others` leaves further ones in it, as they are.

    Raises:
        InvalidError: an option is unknown or given twice.
    """
    place, _, query = url.partition("?")
    taken: dict[str, str] = {}
    left: list[str] = []
    for option in filter(None, query.split("&")):
        name, _, value = option.partition("=")
        if name in taken:
            raise InvalidError(f"the store's option {name!r} is given twice")
        if name in names:
            taken[name] = unquote(value)
        elif others:
            left.append(option)
        else:
            known = ", ".join(sorted(names))
            raise InvalidError(f"got store option {name!r}, expected one of {known}")
    return (f"{place}?{'&'.join(left)}" if left else place), taken


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
