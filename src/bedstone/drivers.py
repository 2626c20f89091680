"""The plug-in loader: a driver is one implementation behind a protocol.

A `Kind` is a lazy table of built-in drivers, extended by the entry-point group
`bedstone.<kind>`. Configuration names a driver by the scheme of a URL (`postgres://…`).

Rules:
- Nothing is imported until it is used, and importing a driver has no side effect.
- A name defined twice, by us and by an installed package or by two packages, is refused.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from bedstone.errors import InvalidError

T = TypeVar("T")


@dataclass(frozen=True)
class Kind(Generic[T]):
    """One kind of driver.

    Args:
        name: the kind's name; its entry-point group is `bedstone.<name>`.
        builtin: scheme to `"package.module:Class"`.
    """

    name: str
    builtin: Mapping[str, str]

    def names(self) -> list[str]:
        """The schemes that can be loaded, sorted.

        Raises:
            InvalidError: two drivers claim one scheme.
        """
        return sorted(self._table())

    def load(self, scheme: str) -> Any:
        """Import the driver's class (or factory) for a scheme.

        Raises:
            InvalidError: no driver has the scheme, two claim it, or its module cannot be imported.
        """
        table = self._table()
        target = table.get(scheme)
        if target is None:
            known = ", ".join(sorted(table))
            raise InvalidError(
                f"no {self.name} driver named {scheme!r}, expected one of {known}",
                hint="correct the URL's scheme, or install the package that provides the driver",
            )
        module, _, attribute = target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise InvalidError(
                f"the {self.name} driver {scheme!r} cannot be loaded from {target!r}: {error}",
                hint="install the extra that the driver needs",
            ) from error

    def open(self, url: str) -> T:
        """Construct the driver that a URL names; the driver validates the URL at once.

        Raises:
            InvalidError: the URL has no scheme, or the driver refuses it.
        """
        scheme, separator, _ = url.partition("://")
        if not separator:
            raise InvalidError(
                f"got {self.name} {url!r}, expected a URL such as {next(iter(self.builtin))}://"
            )
        driver: T = self.load(scheme).open(url)
        return driver

    def _table(self) -> dict[str, str]:
        table = dict(self.builtin)
        for point in importlib.metadata.entry_points(group=f"bedstone.{self.name}"):
            if point.name in table:
                raise InvalidError(
                    f"two {self.name} drivers are named {point.name!r}: "
                    f"{table[point.name]} and {point.value}",
                    hint="uninstall one of the two packages",
                )
            table[point.name] = point.value
        return table
