"""Both ends of a stream of frames: the sender's, which says what changed, and the receiver's.

Rules:
- The builder is told the whole of each second, and remembers what it has told the receiver.
- Series of a source that did not answer stay as they are: they are neither told nor gone. A source
  that is neither among the incarnations, nor missing, nor has a series, exists no more.
- `Received` holds what a receiver knows of one node; what is stored is `bedstone.control`'s matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bedstone.telemetry.frames import Frame, Series


class FrameBuilder:
    """Makes the frames of one sender."""

    def __init__(self) -> None:
        self._forget_all()

    def _forget_all(self) -> None:
        self._sequence = -1
        self._next = 0
        self._numbers: dict[Series, int] = {}
        self._values: dict[int, float] = {}
        self._incarnations: dict[str, str] = {}

    def build(
        self,
        second: int,
        values: Mapping[Series, float],
        incarnations: Mapping[str, str],
        missing: Mapping[str, str],
        *,
        full: bool = False,
    ) -> Frame:
        """The frame after the one before, or a complete one: the first, and when asked.

        Args:
            second: since the epoch.
            values: every series of every source that answered.
            incarnations: of every source that answered.
            missing: for each source that did not answer in time, why. Its values are not looked at.
            full: the receiver has missed a frame, or is new.
        """
        if full or self._sequence < 0:
            self._forget_all()
        self._sequence += 1
        anew = {
            source: incarnation
            for source, incarnation in incarnations.items()
            if source not in missing and self._incarnations.get(source) != incarnation
        }
        self._incarnations |= anew
        new: dict[int, Series] = {}
        changed: dict[int, float] = {}
        for series, value in values.items():
            if series.source in missing:
                continue
            number = self._numbers.get(series)
            if number is None:
                number = self._numbers[series] = self._next
                self._next += 1
                new[number] = series
            elif self._values[number] == value and series.source not in anew:
                continue
            changed[number] = self._values[number] = value
        gone = [
            series
            for series in self._numbers
            if series not in values and series.source not in missing
        ]
        for source in self._incarnations.keys() - incarnations.keys() - missing.keys():
            del self._incarnations[source]
        return Frame(
            second=second,
            sequence=self._sequence,
            new=new,
            gone=tuple(sorted(self._forget(series) for series in gone)),
            incarnations=anew,
            values=changed,
            missing=dict(missing),
        )

    def _forget(self, series: Series) -> int:
        number = self._numbers.pop(series)
        del self._values[number]
        return number


@dataclass(slots=True)
class Received:
    """What a receiver knows of one node, by the frames that came.

    Attributes:
        sequence: of the last frame; -1 before the first.
        second: of the last frame.
        series: those that exist, by number.
        values: their last values, by number; of a missing source, those from before.
        incarnations: of the sources.
        missing: the sources that did not answer in the last second, and why.
    """

    sequence: int = -1
    second: int = 0
    series: dict[int, Series] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)
    incarnations: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def apply(self, frame: Frame) -> bool:
        """Take the next frame; False, and nothing is taken, if one before it was missed."""
        if not follows(self.sequence, frame):
            return False
        if frame.sequence == 0:
            self.series, self.values, self.incarnations = {}, {}, {}
        self.sequence, self.second = frame.sequence, frame.second
        self.series |= frame.new
        self.values |= frame.values
        for number in frame.gone:
            self.series.pop(number, None)
            self.values.pop(number, None)
        self.incarnations |= frame.incarnations
        self.missing = dict(frame.missing)
        return True

    def current(self) -> dict[Series, float]:
        """The values of the last second: those of the sources that answered."""
        return {
            series: self.values[number]
            for number, series in self.series.items()
            if number in self.values and series.source not in self.missing
        }


def follows(sequence: int, frame: Frame) -> bool:
    """Whether a frame may be taken after the one of `sequence` (-1: none)."""
    return frame.sequence == 0 or (sequence >= 0 and frame.sequence == sequence + 1)
