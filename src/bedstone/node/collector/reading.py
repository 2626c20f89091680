"""What the sources of a node say of one moment."""

from __future__ import annotations

from dataclasses import dataclass, field

from bedstone.telemetry.frames import Series


@dataclass(slots=True)
class Reading:
    """What sources said.

    Attributes:
        values: of every series of those that answered.
        incarnations: of those that answered.
        missing: of the others, why.
    """

    values: dict[Series, float] = field(default_factory=dict)
    incarnations: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, other: Reading) -> None:
        """Take in what other sources said."""
        self.values |= other.values
        self.incarnations |= other.incarnations
        self.missing |= other.missing
