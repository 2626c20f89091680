"""Prometheus's remote-write 1.0: what is sent of some seconds, in bytes.

https://prometheus.io/docs/specs/prw/remote_write_spec/: a `prometheus.WriteRequest` in protobuf,
compressed as one block of snappy. Labels are sorted, samples ascend; times are milliseconds.

- A series that has no value any more gets a *stale marker* in the first second without one, so that
  a gap is a gap over there, too.
- Bodies are cut by series, never by time: each is in order for the series that it has.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from bedstone.control.monitoring.reading import Matcher, Reader, SeriesKey

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAMPLES: Final = 10_000
"""About so many samples in one body."""
STALE: Final = struct.pack("<Q", 0x7FF0_0000_0000_0002)
"""The NaN that says that a series ended (Prometheus, `model/value`)."""
_EVERY: Final = (Matcher("__name__", "=~", ".+"),)
_SERIES, _LABEL, _SAMPLE, _NAME, _VALUE = b"\x0a", b"\x0a", b"\x12", b"\x0a", b"\x12"
_DOUBLE, _TIME = b"\x09", b"\x10"
_REMEMBERED: Final = 200_000


@dataclass(frozen=True, slots=True)
class Body:
    """One request's content.

    Args:
        content: compressed.
        samples: how many there are.
        seconds: the same, one body a second.
    """

    content: bytes
    samples: int
    seconds: Callable[[], list[Body]]


@dataclass(slots=True)
class Encoder:
    """Encodes seconds; remembers how the labels of series are written."""

    _labels: dict[SeriesKey, bytes] = field(default_factory=dict)

    def bodies(self, reader: Reader, after: int, upto: int) -> list[Body]:
        """What is sent of the seconds after one, up to and including another.

        Args:
            reader: of the series.
            after: the last second that was sent; what had a value then may have ended since.
            upto: the last second to send.
        """
        import numpy as np

        selection = reader.select(_EVERY, after, upto, 1)
        present = ~np.isnan(selection.values)
        ended = present[:, :-1] & ~present[:, 1:]
        sent = present[:, 1:] | ended
        rows = np.flatnonzero(sent.any(axis=1))
        if len(self._labels) > _REMEMBERED:
            self._labels.clear()
        named = [
            self._named(SeriesKey(selection.names[row], selection.labels[row], "gauge"))
            for row in rows.tolist()
        ]
        samples = _samples(selection.values[rows, 1:], ended[rows], selection.times[1:])
        sent = sent[rows]
        many = max(1, SAMPLES // max(1, upto - after))
        return [
            _body(named[first : first + many], samples[first : first + many], part)
            for first in range(0, len(named), many)
            for part in (sent[first : first + many],)
        ]

    def _named(self, key: SeriesKey) -> bytes:
        found = self._labels.get(key)
        if found is None:
            pairs = sorted((("__name__", key.name), *key.labels))
            found = self._labels[key] = b"".join(_label(name, value) for name, value in pairs)
        return found


def _body(named: list[bytes], samples: NDArray[np.uint8], sent: NDArray[np.bool_]) -> Body:
    import cramjam

    parts: list[bytes] = []
    for row, labels in enumerate(named):
        content = labels + samples[row][sent[row]].tobytes()
        parts += (_SERIES, varint(len(content)), content)

    def seconds() -> list[Body]:
        columns = range(sent.shape[1])
        found = []
        for column in columns:
            rows = sent[:, column].nonzero()[0].tolist()
            if rows:
                one = slice(column, column + 1)
                found.append(_body([named[r] for r in rows], samples[rows, one], sent[rows, one]))
        return found

    content = bytes(cramjam.snappy.compress_raw(b"".join(parts)))
    return Body(content, int(sent.sum()), seconds)


def _samples(
    values: NDArray[np.float64], ended: NDArray[np.bool_], times: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Each sample as its bytes, in shape (S, T, bytes of one)."""
    import numpy as np

    moments = [varint(time * 1000) for time in times.tolist()]
    size = len(moments[0])  # the same for all times of about our age
    length = len(_DOUBLE) + 8 + len(_TIME) + size
    found = np.empty((*values.shape, 2 + length), dtype=np.uint8)
    found[:, :, 0], found[:, :, 1], found[:, :, 2] = _SAMPLE[0], length, _DOUBLE[0]
    raw = np.ascontiguousarray(values).astype("<f8").view(np.uint8).reshape(*values.shape, 8)
    found[:, :, 3:11] = raw
    found[ended, 3:11] = np.frombuffer(STALE, dtype=np.uint8)
    found[:, :, 11] = _TIME[0]
    for column, moment in enumerate(moments):
        found[:, column, 12:] = np.frombuffer(moment, dtype=np.uint8)
    return found


def _label(name: str, value: str) -> bytes:
    content = _text(_NAME, name) + _text(_VALUE, value)
    return _LABEL + varint(len(content)) + content


def _text(tag: bytes, text: str) -> bytes:
    raw = text.encode()
    return tag + varint(len(raw)) + raw


def varint(number: int) -> bytes:
    """A number that is not negative, as protobuf writes it."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
